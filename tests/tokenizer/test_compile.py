"""torch.compile: eval passes trace into one graph and give what they give without it.

Left out: speed, and training passes, which ask for values to keep statistics.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.tiny import VARIANTS, latents, trained
from tokenizer.bottlenecks import kinds

KINDS = [*sorted(kinds()), *VARIANTS]


def one_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` traced; a break of its graph is an error."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="eager")


@pytest.mark.parametrize("kind", KINDS)
def test_eval_passes_are_one_graph(kind: str) -> None:
    bottleneck = trained(kind).eval()
    z = latents(bottleneck, 2, 3, 4, seed=99)
    expected, out = bottleneck(z), one_graph(bottleneck)(z)
    assert torch.equal(out.z_q, expected.z_q)
    assert {k: v.item() for k, v in (out.losses | out.stats).items()} == {
        k: v.item() for k, v in (expected.losses | expected.stats).items()
    }
    if bottleneck.num_codebooks:
        assert torch.equal(out.codes, expected.codes)
        assert torch.equal(one_graph(bottleneck.encode)(z), expected.codes)
        assert torch.equal(one_graph(bottleneck.decode)(expected.codes), expected.z_q)
