"""Well-known checkpoints: their sizes, from the library's default config or its conversion script, build a
model on the device meta that has as many weights as is known of them.

Left out: their weights, which no test downloads.
"""

from typing import Any, NamedTuple

import pytest
from torchaudio.compliance import kaldi

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


# Sizes of DAC: conf/final/*.yml of descriptinc/descript-audio-codec, which its conversion script reads from
# its checkpoints; the others are the defaults of the configs of the library, which name these checkpoints.
DAC: dict[str, Any] = {"model_type": "dac", "downsampling_ratios": [2, 4, 5, 8]}
DAC_44: dict[str, Any] = {"model_type": "dac", "downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9}
KNOWN = {
    "facebook/encodec_24khz": Known({"model_type": "encodec"}, 24000, 320, 32, 1024, 14_851_810),
    "descript/dac_16khz": Known(
        {**DAC, "n_codebooks": 12, "sampling_rate": 16000}, 16000, 320, 12, 1024, 74_141_697
    ),
    "descript/dac_24khz": Known(
        {**DAC, "n_codebooks": 32, "sampling_rate": 24000}, 24000, 320, 32, 1024, 74_653_857
    ),
    "descript/dac_44khz": Known({**DAC_44, "sampling_rate": 44100}, 44100, 512, 9, 1024, 76_620_777),
    "kyutai/mimi": Known({"model_type": "mimi", "frame_rate": 12.5}, 24000, 1920, 32, 2048, 79_308_609),
    "HKUSTAudio/xcodec2-hf": Known({"model_type": "xcodec2"}, 16000, 320, 1, 65536, 629_281_706),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_checkpoint_builds_with_its_sizes(name: str, tmp_path: Any) -> None:
    known = KNOWN[name]
    tok = outline_of(lambda: Tokenizer(read_family(known.raw, tmp_path).config()))
    assert (tok.sample_rate, tok.stride) == (known.sample_rate, known.stride)
    assert (tok.num_codebooks, tok.codebook_size) == (known.num_codebooks, known.codebook_size)
    assert sum(p.numel() for p in tok.parameters()) == known.parameters
    assert tok.modality.size[0] % tok.stride == 0 and abs(tok.modality.size[0] - tok.sample_rate) < tok.stride
    assert tok.bottleneck.in_dim == tok.encoder.channels and tok.decoder.channels == 1
    # Modules that were imported meanwhile have their constants in memory.
    assert not kaldi.EPSILON.is_meta
    if tok.chunk_exact:  # less than half a second on either side
        assert tok.encoder.reach * tok.stride < tok.sample_rate / 2 > tok.decoder.reach * tok.stride
