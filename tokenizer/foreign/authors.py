"""Two kinds of VQGAN under their authors' names of tensors, as the libraries that have them name them:
taming-transformers' for diffusers' VQModel, LlamaGen's for transformers' JanusVQVAE. Sizes are read from
the tensors.

Left out: GumbelVQ of taming-transformers, whose codes no class of these libraries gives.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tokenizer.variants import require, shortened

# Groups of every normalisation, in both.
GROUPS = 32
# Layers of an attention there and in diffusers, where they are linear instead of convolutions of one pixel.
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# Of training alone: losses with their networks, averages beside the weights, and which entries were used.
DROPPED = ("loss.", "model_ema.", "quantize.codebook_used")

SIDES = ("encoder.down", "decoder.up")

State = Mapping[str, Tensor]


class Checkpoint(NamedTuple):
    """Weights by name, where in the file they stood ("" for the file itself), and the options of the run that
    wrote them, as far as it tells."""

    state: dict[str, Tensor]
    place: str
    options: Mapping[str, Any]


class Renamed(NamedTuple):
    """What config.json is to say, what each tensor is to be called, and what it was called."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    old: dict[str, str]


def renamed(checkpoint: Checkpoint, picture_size: int) -> Renamed:
    """A checkpoint as its library has it; no tensor tells `picture_size`, the side of its pictures.
    `ValueError` for one of neither kind, with the first of its names."""
    state = {k: v for k, v in checkpoint.state.items() if not k.startswith(DROPPED)}
    if any(name.startswith("quantize.proj.") for name in state):
        raise ValueError(
            "is a GumbelVQ of taming-transformers, whose codes are the largest of scores (quantize.proj): "
            "no model of diffusers or transformers has them; take a VQGAN with quantize.embedding.weight"
        )
    if "encoder.down.0.block.0.conv1.weight" in state:
        return _taming(state, picture_size)
    if "encoder.conv_blocks.0.res.0.conv1.weight" in state:
        return _llamagen(state, picture_size, checkpoint.options)
    first = ", ".join(shortened(name) for name in list(checkpoint.state)[:3])
    raise ValueError(
        "is of no kind that is known: names are expected as encoder.down.0.block.0.conv1.weight "
        f"(taming-transformers) or encoder.conv_blocks.0.res.0.conv1.weight (LlamaGen), found {first}"
    )


def _taming(state: State, picture_size: int) -> Renamed:
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    widths = _widths(state, "encoder.down.{}.block.0.conv1.weight", levels)
    first = _size(state, "encoder.conv_in.weight", 4)[0]
    require(
        widths[0] == first,
        f"is {first} channels wide at first and {widths[0]} in the first level (ch_mult does not begin with "
        "1), which diffusers' VQModel cannot be",
    )
    _check_picture(picture_size, levels)
    attends = [[f"{side}.{i}.attn.0.norm.weight" in state for i in range(levels)] for side in SIDES]
    down, up = (
        [f"{'Attn' if a else ''}{kind}" for a in which]
        for kind, which in zip(("DownEncoderBlock2D", "UpDecoderBlock2D"), attends, strict=True)
    )
    entries, dim = _size(state, "quantize.embedding.weight", 2)
    config = {
        "_class_name": "VQModel",
        "in_channels": _size(state, "encoder.conv_in.weight", 4)[1],
        "out_channels": _size(state, "decoder.conv_out.weight", 4)[0],
        "down_block_types": down,
        "up_block_types": up[::-1],
        "block_out_channels": widths,
        "layers_per_block": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "act_fn": "silu",
        "latent_channels": _size(state, "encoder.conv_out.weight", 4)[0],
        "sample_size": picture_size,
        "num_vq_embeddings": entries,
        "vq_embed_dim": dim,
        "norm_num_groups": GROUPS,
        "norm_type": "group",
        "mid_block_add_attention": True,
    }
    return _all_renamed(config, state, lambda name: diffusers_name(name, levels))


def diffusers_name(name: str, levels: int) -> str:
    """What diffusers calls a tensor of taming-transformers; its decoder counts levels the other way."""
    name = re.sub(r"\.norm_out\.", ".conv_norm_out.", name).replace(".nin_shortcut.", ".conv_shortcut.")
    name = re.sub(r"\.mid\.block_(\d+)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    name = re.sub(r"\.mid\.attn_1\.", ".mid_block.attentions.0.", name)
    name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
    name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", name)
    name = name.replace(".downsample.", ".downsamplers.0.").replace(".upsample.", ".upsamplers.0.")
    name = re.sub(r"(_blocks\.\d+)\.block\.", r"\1.resnets.", name)
    name = re.sub(r"(_blocks\.\d+)\.attn\.", r"\1.attentions.", name)
    return re.sub(r"(\.attentions\.\d+)\.(\w+)\.", lambda m: f"{m[1]}.{ATTENTION.get(m[2], m[2])}.", name)


def _llamagen(state: State, picture_size: int, options: Mapping[str, Any]) -> Renamed:
    require(
        options.get("codebook_l2_norm", True) is not False,
        "was trained with codebook_l2_norm false, but transformers' JanusVQVAE compares vectors at length 1",
    )
    levels = _count(state, r"encoder\.conv_blocks\.(\d+)\.")
    widths = _widths(state, "encoder.conv_blocks.{}.res.0.conv1.weight", levels)
    first = _size(state, "encoder.conv_in.weight", 4)[0]
    require(
        all(width % first == 0 for width in widths),
        f"has levels of {widths} channels, expected multiples of the first {first}",
    )
    _check_picture(picture_size, levels)
    entries, dim = _size(state, "quantize.embedding.weight", 2)
    config = {
        "model_type": "janus_vqgan",
        "architectures": ["JanusVQVAE"],
        "in_channels": _size(state, "encoder.conv_in.weight", 4)[1],
        "out_channels": _size(state, "decoder.conv_out.weight", 4)[0],
        "base_channels": first,
        "channel_multiplier": [width // first for width in widths],
        "num_res_blocks": _count(state, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        "latent_channels": _size(state, "encoder.conv_out.weight", 4)[0],
        "double_latent": False,
        "embed_dim": dim,
        "num_embeddings": entries,
        "num_patches": picture_size >> (levels - 1),
        "dropout": 0.0,
    }
    return _all_renamed(config, state, janus_name)


def janus_name(name: str) -> str:
    """What transformers calls a tensor of LlamaGen; both count the decoder's levels from the smallest."""
    mid = {"0": "block_1", "1": "attn_1", "2": "block_2"}
    name = re.sub(r"\.mid\.([012])\.", lambda m: f".mid.{mid[m[1]]}.", name)
    name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
    name = re.sub(r"^decoder\.conv_blocks\.", "decoder.up.", name)
    return re.sub(r"^((?:encoder\.down|decoder\.up)\.\d+)\.res\.", r"\1.block.", name)


def _all_renamed(config: dict[str, Any], state: State, name_of: Callable[[str], str]) -> Renamed:
    old = {name_of(name): name for name in state}
    return Renamed(config, {new: state[name] for new, name in old.items()}, old)


def _count(state: State, pattern: str) -> int:
    """Numbers that stand in names of the pattern, from 0 on."""
    found = {int(m[1]) for name in state if (m := re.match(pattern, name))}
    require(
        found == set(range(len(found))) and bool(found),
        f"names as {pattern} count {sorted(found)[:9]}, expected 0, 1, 2 and so on",
    )
    return len(found)


def _widths(state: State, name: str, levels: int) -> list[int]:
    return [_size(state, name.format(i), 4)[0] for i in range(levels)]


def _size(state: State, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor. `ValueError` if it is missing, or has other axes."""
    require(name in state, f"has no tensor {name!r}, from which sizes are read")
    shape = tuple(state[name].shape)
    fits = len(shape) == axes and min(shape) > 0
    require(fits, f"tensor {name!r} has shape {shape}, expected {axes} axes, none of them empty")
    return shape


def _check_picture(size: int, levels: int) -> None:
    stride = 1 << (levels - 1)
    require(
        size % stride == 0,
        f"has one code for {stride} × {stride} pixels; expected a multiple of {stride} for --picture-size, "
        f"got {size}",
    )
