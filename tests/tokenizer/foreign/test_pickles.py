"""Checkpoints under the names of taming-transformers and of LlamaGen, made of tiny models of diffusers and
transformers: written as folders, they give these models' own codes and pictures.

Left out: files that are refused (test_refusals.py).
"""

import argparse
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.foreign import janus
from tests.helpers.running import Script
from tests.helpers.tiny import pictures
from tokenizer import Tokenizer
from tokenizer.foreign import read_family
from tokenizer.foreign.authors import Checkpoint, renamed
from tokenizer.hub.meta import outline_of

BLOCK = ("norm1", "conv1", "norm2", "conv2")


def taming_names(levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    """(name in taming-transformers, in diffusers) of every layer that a VQGAN may have."""
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_in", f"{side}.conv_in"
        yield f"{side}.norm_out", f"{side}.conv_norm_out"
        yield f"{side}.conv_out", f"{side}.conv_out"
        for layer in BLOCK:
            yield f"{side}.mid.block_1.{layer}", f"{side}.mid_block.resnets.0.{layer}"
            yield f"{side}.mid.block_2.{layer}", f"{side}.mid_block.resnets.1.{layer}"
        yield from attention(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        yield f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"
        yield f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"
        for theirs, ours, count in (("encoder.down", down, blocks), ("decoder.up", up, blocks + 1)):
            for i in range(count):
                for layer in BLOCK:
                    yield f"{theirs}.{level}.block.{i}.{layer}", f"{ours}.resnets.{i}.{layer}"
                yield f"{theirs}.{level}.block.{i}.nin_shortcut", f"{ours}.resnets.{i}.conv_shortcut"
                yield from attention(f"{theirs}.{level}.attn.{i}", f"{ours}.attentions.{i}")
    for name in ("quant_conv", "post_quant_conv", "quantize.embedding"):
        yield name, name


def attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.norm", f"{ours}.group_norm"
    yield f"{theirs}.q", f"{ours}.to_q"
    yield f"{theirs}.k", f"{ours}.to_k"
    yield f"{theirs}.v", f"{ours}.to_v"
    yield f"{theirs}.proj_out", f"{ours}.to_out.0"


def taming_state(model: Any) -> dict[str, Tensor]:
    """A model of diffusers under taming-transformers' names, where attention is of convolutions."""
    config, state = model.config, dict(model.state_dict())
    found = {}
    for theirs, ours in taming_names(len(config.block_out_channels), config.layers_per_block):
        for kind in ("weight", "bias"):
            if (value := state.pop(f"{ours}.{kind}", None)) is not None:
                linear = value.ndim == 2 and "attentions" in ours
                found[f"{theirs}.{kind}"] = value[:, :, None, None] if linear else value
    assert not state
    return found


def vqgan(**changes: Any) -> Any:
    """Three levels of several widths, with attention in the last, and two blocks each."""
    sizes: dict[str, Any] = {"block_out_channels": (32, 32, 64), "layers_per_block": 2, "latent_channels": 8}
    sizes |= {"down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D")}
    sizes |= {"up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D")}
    model = diffusers.VQModel(num_vq_embeddings=16, vq_embed_dim=4, sample_size=32, **sizes | changes).eval()
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(std=0.5)
    return model


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def lightning(state: dict[str, Tensor], path: Path) -> Path:
    """As pytorch-lightning keeps weights: beside losses, and states of callbacks by their class."""
    more = {"loss.logvar": torch.zeros(()), "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 2)}
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    other = {"epoch": 3, "callbacks": {kind: {"best_model_path": ""}}, "optimizer_states": []}
    with pytest.MonkeyPatch.context() as patch:  # as if it were installed
        for i in range(3):
            module = types.ModuleType(name.rsplit(".", i)[0])
            module.ModelCheckpoint = kind
            patch.setitem(sys.modules, module.__name__, module)
        torch.save({"state_dict": {**state, **more}, **other}, path)
    return path


def test_a_vqgan_of_taming_transformers(script: Script, tmp_path: Path) -> None:
    peer, x = vqgan(), pictures(3, 3, 32, 32)
    path, out = lightning(taming_state(peer), tmp_path / "last.ckpt"), tmp_path / "vqgan"
    words = ("--from-pickle", path, "--output", out, "--picture-size", 32, "--license", "mit")
    done = script("export", *words)
    assert "VQModel, 16 codes, one for 4 × 4 pixels" in done.err and "weights in state_dict" in done.err
    tok, theirs = Tokenizer.from_pretrained(out), diffusers.VQModel.from_pretrained(out).eval()
    with torch.no_grad():
        h = peer.encode(x).latents
        assert torch.equal(theirs.encode(x).latents, h)
        indices, x_hat = peer.quantize(h)[2][2], peer.decode(h).sample
    codes = tok.encode(x)
    assert codes.shape == (3, 1, 8, 8) and codes.unique().numel() > 4 and tok.modality.size == (32, 32)
    assert torch.equal(codes.flatten(), indices)
    torch.testing.assert_close(tok.decode(codes), x_hat, rtol=0, atol=1e-5)
    assert "license: mit\n" in (out / "README.md").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "vqgan"}
    assert "not empty" in script("export", *words, code=2).err


def test_attention_may_be_in_any_level_or_none(tmp_path: Path) -> None:
    down = ("AttnDownEncoderBlock2D", "DownEncoderBlock2D")
    some = {"block_out_channels": (32, 64), "down_block_types": down, "layers_per_block": 1}
    for up in (("UpDecoderBlock2D",) * 2, ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")):
        peer = vqgan(**some, up_block_types=up)
        found = renamed(Checkpoint(taming_state(peer), "", {}), 32)
        assert found.state.keys() == peer.state_dict().keys()
        assert tuple(found.config["up_block_types"]) == up and tuple(found.config["down_block_types"]) == down


def llamagen_state(model: Any) -> dict[str, Tensor]:
    """A model of transformers under LlamaGen's names."""
    mid = {"block_1": "0", "attn_1": "1", "block_2": "2"}
    found = {"quantize.codebook_used": torch.zeros(65536)}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[1] in ("down", "up"):
            kind = "res" if parts[3] == "block" else parts[3]
            parts = [parts[0], "conv_blocks", parts[2], kind, *parts[4:]]
        elif parts[1] == "mid":
            parts[2] = mid[parts[2]]
        found[".".join(parts)] = value
    return found


@pytest.mark.parametrize("place", ["model", "ema"])
def test_a_vqgan_of_llamagen(script: Script, tmp_path: Path, place: str) -> None:
    peer, x = janus(channel_multiplier=[1, 2, 2]).eval(), pictures(3, 3, 16, 16)
    state = llamagen_state(peer)
    held: dict[str, Any] = {place: state, "args": argparse.Namespace(codebook_l2_norm=True), "steps": 5}
    if place == "ema":  # which goes before
        held["model"] = {name: value + 1 for name, value in state.items()}
    torch.save(held, tmp_path / "vq.pt")
    words = ("--from-pickle", tmp_path / "vq.pt", "--output", tmp_path / "vq", "--picture-size", 16)
    done = script("export", *words)
    assert (
        f"weights in {place}" in done.err and "license: unknown\n" in (tmp_path / "vq/README.md").read_text()
    )
    tok = Tokenizer.from_pretrained(tmp_path / "vq")
    codes = tok.encode(x)
    with torch.no_grad():
        z = F.normalize(peer.quant_conv(peer.encoder(x)), dim=1)
        similar = torch.einsum("bdhw, nd -> bnhw", z, F.normalize(peer.quantize.embedding.weight, dim=1))
        x_hat = peer.decode(codes.flatten(1))
        again = transformers.JanusVQVAE.from_pretrained(tmp_path / "vq").eval().decode(codes.flatten(1))
    assert torch.equal(codes[:, 0], similar.argmax(1)) and codes.unique().numel() > 4
    torch.testing.assert_close(tok.decode(codes), x_hat, rtol=0, atol=1e-5)
    assert torch.equal(again, x_hat)


# configs/imagenet_vqgan.yaml of CompVis/taming-transformers, with n_embed 1024 and, as its README has it,
# 16384; VQ_16 and VQ_8 of FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py, whose README
# says 72 and 70 million weights.
WIDE: dict[str, Any] = {"block_out_channels": (128, 128, 256, 256, 512), "latent_channels": 256}
WIDE |= {"down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",)}
WIDE |= {"up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4, "layers_per_block": 2}
JANUS: dict[str, Any] = {"embed_dim": 8, "num_embeddings": 16384}
KNOWN = {
    "vqgan_imagenet_f16_1024": ("VQModel", {**WIDE, "num_vq_embeddings": 1024}, 16, 1024, 72_141_699),
    "vqgan_imagenet_f16_16384": ("VQModel", {**WIDE, "num_vq_embeddings": 16384}, 16, 16384, 76_073_859),
    "vq_ds16_c2i": ("janus_vqgan", {**JANUS, "channel_multiplier": [1, 1, 2, 2, 4]}, 16, 16384, 71_883_403),
    "vq_ds8_c2i": ("janus_vqgan", {**JANUS, "channel_multiplier": [1, 2, 2, 4]}, 8, 16384, 70_109_835),
}


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_of_well_known_checkpoints_are_read_from_their_tensors(name: str, tmp_path: Path) -> None:
    kind, sizes, stride, entries, parameters = KNOWN[name]
    if kind == "VQModel":
        model = outline_of(lambda: diffusers.VQModel(**sizes))
        state = taming_state(model)
    else:
        model = outline_of(lambda: transformers.JanusVQVAE(transformers.JanusVQVAEConfig(**sizes)))
        state = llamagen_state(model)
    found = renamed(Checkpoint(state, "", {}), 256)
    tok = outline_of(lambda: Tokenizer(read_family(found.config, tmp_path).config()))
    assert found.state.keys() == model.state_dict().keys()
    assert (tok.stride, tok.codebook_size, tok.modality.size) == (stride, entries, (256, 256))
    assert sum(p.numel() for p in tok.parameters()) == parameters
