"""Checks of a tokenizer's codes on a device: they do not depend on the batch.

Left out: what the codes are (tests/tokenizer/).
"""

import torch
from torch import Tensor

from tests.helpers import tiny
from tokenizer import Tokenizer
from tokenizer.bottlenecks import kinds


def discrete() -> list[str]:
    """The kinds of bottleneck that have codes, and their variants."""
    named = [*kinds(), *tiny.VARIANTS]
    return [name for name in named if tiny.bottleneck_config(name).build().num_codebooks > 0]


def alone_and_together(device: torch.device, tok: Tokenizer, x: Tensor) -> str:
    """Codes of each example alone are those in the batch; how many are not with TF32."""
    tok, x = tok.to(device), x.to(device)
    share = []
    for tf32 in (False, True):
        tok.tf32 = tf32
        alone = torch.cat([tok.encode(row) for row in x.split(1)])
        share.append((alone != tok.encode(x)).double().mean().item())
    assert share[0] == 0, f"{share[0]:.3%} of the codes depend on the batch"
    return f"{len(x)} alone and together: equal; with TF32 {share[1]:.3%} of the codes differ"
