"""Graphs of tokenizers of other libraries: those that can be exported agree with torch, the others are
refused before anything is traced.

Left out: graphs of our own (test_tokenizers.py).
"""

from pathlib import Path

import pytest
import torch
import transformers

from pipelines.graphs.agreement import Session
from pipelines.graphs.files import Port, to_onnx, write
from pipelines.graphs.networks import Decoder, Encoder, check_exportable
from tests.helpers import foreign
from tests.helpers.foreign import model_of, saved
from tests.helpers.running import Script, assert_refused
from tests.helpers.tiny import pictures
from tokenizer import Tokenizer
from tokenizer.foreign import families

UNTRACED = [name for name, family in families().items() if family.untraced]


def test_codes_of_dac(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        foreign.dac(downsampling_ratios=[5], n_codebooks=2, decoder_hidden_size=8).save_pretrained(tmp_path)
    tok = Tokenizer.from_pretrained(tmp_path)
    check_exportable(tok, "dac")
    ports = Port("x", (("batch", 1), 1, ("t", 5))), Port("codes", (("batch", 1), 2, ("t", 1)))
    graph = to_onnx(Encoder(tok).eval(), "encoder", [foreign.sounds(2, 15)], [ports[0]], [ports[1]])
    write(graph, tmp_path / "encoder.onnx")
    x = foreign.sounds(3, 105)
    found = torch.from_numpy(Session(tmp_path / "encoder.onnx")(x)[0])
    assert torch.equal(found, tok.encode(x)) and found.unique().numel() > 4


def test_pictures_of_janus(tmp_path: Path) -> None:
    sizes = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 8}
    sizes |= {"embed_dim": 4, "num_embeddings": 16, "num_patches": 4}
    transformers.JanusVQVAE(transformers.JanusVQVAEConfig(**sizes)).save_pretrained(tmp_path)
    tok = Tokenizer.from_pretrained(tmp_path)
    check_exportable(tok, "janus")
    grid = (("h", 1), ("w", 1))
    ports = Port("codes", (("batch", 1), 1, *grid)), Port("x_hat", (("batch", 1), 3, ("h", 2), ("w", 2)))
    example = torch.zeros(2, 1, 3, 4, dtype=torch.int64)
    write(to_onnx(Decoder(tok).eval(), "decoder", [example], [ports[0]], [ports[1]]), tmp_path / "d.onnx")
    codes = torch.randint(16, (3, 1, 5, 7), generator=torch.Generator().manual_seed(0))
    found = torch.from_numpy(Session(tmp_path / "d.onnx")(codes)[0])
    torch.testing.assert_close(found, tok.decode(codes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dac", "janus_vqgan"])
def test_gaps_are_those_of_the_nearest_entry(name: str, tmp_path: Path) -> None:
    tok = Tokenizer.from_pretrained(saved(name, tmp_path))
    x = foreign.sounds(2, 200) if name == "dac" else pictures(2, 3, 16, 16)
    with torch.no_grad():
        z = tok.encoder(x)
    codes = tok.bottleneck.encode(z)
    gaps = tok.bottleneck.gaps(z, codes)
    assert gaps.shape == codes.shape and float(gaps.amax()) < 1e-6
    codes[0, -1, 0] = (codes[0, -1, 0] + 1) % tok.codebook_size
    assert (tok.bottleneck.gaps(z, codes)[0, -1, 0] > 1e-6).all()


@pytest.mark.parametrize("name", UNTRACED)
def test_others_are_refused_by_name(name: str, script: Script, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "theirs")
    done = script("export", "--tokenizer", folder, "--output", tmp_path / "onnx", code=2)
    assert_refused(
        done, str(folder), type(model_of(name)).__name__, "no graph can follow", "DacModel, JanusVQVAE"
    )
    assert not (tmp_path / "onnx").exists()
