"""Well-known checkpoints: their sizes, from the library's default config or its conversion script, build a
model on the device meta that has as many weights as is known of them.

Left out: their weights, which no test downloads.
"""

from typing import Any, NamedTuple

import pytest
import torch

from tokenizer import Tokenizer
from tokenizer.foreign import read_family
from tokenizer.hub.meta import outline_of


class Known(NamedTuple):
    """A checkpoint: its config.json but for what the library has by default, and what it is known for."""

    raw: dict[str, Any]
    sample_rate: int
    stride: int
    num_codebooks: int
    codebook_size: int
    parameters: int


KNOWN = {
    # The defaults of EncodecConfig, which names this checkpoint.
    "facebook/encodec_24khz": Known({"model_type": "encodec"}, 24000, 320, 32, 1024, 14_851_810),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_checkpoint_builds_with_its_sizes(name: str, tmp_path: Any) -> None:
    known = KNOWN[name]
    tok = outline_of(lambda: Tokenizer(read_family(known.raw, tmp_path).config()))
    assert (tok.sample_rate, tok.stride) == (known.sample_rate, known.stride)
    assert (tok.num_codebooks, tok.codebook_size) == (known.num_codebooks, known.codebook_size)
    assert sum(p.numel() for p in tok.parameters()) == known.parameters
    assert tok.modality.size[0] % tok.stride == 0 and abs(tok.modality.size[0] - tok.sample_rate) < tok.stride
    x = torch.zeros(1, 1, 2 * tok.stride, device="meta")
    assert tok.bottleneck.in_dim == tok.encoder.channels and x.shape[2] // tok.stride == 2
