"""Makes tests/golden/*.safetensors: tiny trained models with the codes and likelihoods that they give.

Left out: the comparison (test_models.py). Run `python -m tests.golden.make_models` only when a change of
codes is meant, and say so in the commit: saved models of users then mean something else. A golden file is one
safetensors file: the tensors `model.*` are the model's weights, the others its inputs and outputs, and the
metadata hold its config. For every kind of bottleneck there is `KIND.safetensors`, of pictures; and there are
`codec.safetensors` and `codec_frames.safetensors`, of sound and its two networks, and `prior.safetensors`.
Names on the command line make those files only. Pictures and sound whose codes lie so close to a border
between two entries that another machine's rounding could move them are passed over.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from prior import Prior, PriorConfig
from tests.helpers.tiny import audio_config, bottleneck_config, image_config
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.bottlenecks import kinds
from tokenizer.distributed import Step
from tokenizer.modalities.audio import AudioConfig
from tokenizer.modalities.image import ImageConfig
from tokenizer.variants import config_to_dict

GOLDEN = Path(__file__).parent
PICTURES = 2
# Noise on z_e that may not change a code; rounding is a hundred times smaller.
MARGIN = 1e-4


def emoji(count: int) -> Tensor:
    """The first emoji of the held-out set, which are real pictures: (count, 3, 32, 32) uint8."""
    splits = load_splits(DataConfig(limit=count), ImageConfig().build())
    return torch.stack([splits.held_out.x(i) for i in range(count)])


def to_float(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def to_pixels(x_hat: Tensor) -> Tensor:
    return ((x_hat.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def train_tokenizer(kind: str, x: Tensor) -> Tokenizer:
    """A tiny tokenizer after a few hundred steps on x (B, 3, 32, 32)."""
    return trained(TokenizerConfig(image_config(size=(32, 32)), bottleneck_config(kind), {"l2": 1.0}), x)


def trained(config: TokenizerConfig, x: Tensor) -> Tokenizer:
    torch.manual_seed(0)
    tok = Tokenizer(config).train()
    optimizer = torch.optim.Adam(tok.parameters(), 3e-3)
    for index in range(300):
        batch = x[torch.randint(len(x), (16,))]
        losses = tok(batch, Step(0, index, 0, 16)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    return tok.eval()


def robust(tok: Tokenizer, x: Tensor) -> list[int]:
    """Indices of the pictures whose codes stay when z_e is moved a little, in many directions."""
    z_e = tok._latents(x).detach()
    codes = tok.encode(x)
    steady = torch.ones(len(x), dtype=torch.bool)
    for seed in range(50):
        noise = torch.randn(z_e.shape, generator=torch.Generator().manual_seed(seed))
        moved = tok.bottleneck.encode(z_e + MARGIN * z_e.std() * noise)
        steady &= (moved == codes).flatten(1).all(dim=1)
    return steady.nonzero()[:, 0].tolist()


def write(name: str, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    tensors = {**{f"model.{k}": v for k, v in model.state_dict().items()}, **tensors}
    config = json.dumps(config_to_dict(model.config), sort_keys=True)
    path = GOLDEN / f"{name}.safetensors"
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path, {"config": config})
    path.chmod(0o644)
    if path.stat().st_size >= 50_000:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected less than 50,000")


def make_tokenizer(kind: str, pictures: Tensor) -> None:
    tok = train_tokenizer(kind, to_float(pictures))
    if tok.bottleneck.num_codebooks == 0:
        x = pictures[:PICTURES]
        posterior = tok.posterior(to_float(x))
        tensors = {"mean": posterior.mean, "logvar": posterior.logvar}
        tensors["x_hat"] = tok.decode_latents(posterior.mean)
    else:
        steady = pictures[robust(tok, to_float(pictures))]
        variety = torch.tensor([codes.unique().numel() for codes in tok.encode(to_float(steady))])
        x = steady[variety.argsort(descending=True, stable=True)[:PICTURES]]
        codes = tok.encode(to_float(x))
        tensors = {"codes": codes, "x_hat": tok.decode(codes)}
    tensors["x_hat"] = to_pixels(tensors["x_hat"])
    write(kind, tok, {"x": x, **tensors})


# Files of sound, and their networks.
CODECS: dict[str, dict[str, Any]] = {
    "codec": {"widths": (4, 6, 6)},
    "codec_frames": {"network": "frames", "dim": 6, "depth": 1},
}


def make_codec(name: str) -> None:
    """A tokenizer of sound with three codebooks, and two pieces of speech."""
    clips = load_splits(DataConfig("embedded:speech", limit=60), AudioConfig().build()).train
    x = torch.stack([clips.segment(i, 1200, 0.5)[0] for i in range(len(clips))])
    config = TokenizerConfig(
        audio_config(**CODECS[name]), bottleneck_config("rvq", num_codebooks=3), {"l1": 1.0, "mel": 1.0}
    )
    tok = trained(config, x)
    x = x[robust(tok, x)]
    loudest = x.square().mean((1, 2)).argsort(descending=True)[:PICTURES]
    x = x[loudest]
    codes = tok.encode(x)
    write(name, tok, {"x": x, "codes": codes, "x_hat": tok.decode(codes)})


def make_prior() -> None:
    """A prior with random weights everywhere, two classes and two codebooks."""
    config = PriorConfig(
        codebook_size=7, num_codebooks=2, grid=(2, 3), class_names=("a", "b"), dim=16, depth=2, heads=2
    )
    generator = torch.Generator().manual_seed(0)
    prior = Prior(config).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    codes = torch.randint(7, (6, 2, 2, 3), generator=generator)
    labels = torch.tensor([0, 1, -1, 0, 1, -1])
    greedy = prior.sample(3, [0, 1, -1], temperature=0)
    write(
        "prior", prior, {"codes": codes, "labels": labels, "nll": prior.nll(codes, labels), "greedy": greedy}
    )


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    wanted = sys.argv[1:] or [*kinds(), *CODECS, "prior"]
    for name in wanted:
        if name in CODECS:
            make_codec(name)
        elif name == "prior":
            make_prior()
        else:
            make_tokenizer(name, emoji(128))


if __name__ == "__main__":
    main()
