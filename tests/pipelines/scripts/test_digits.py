"""Digits drawn by a prior are read as the digits asked for (slow, soak): those of the quickstart, and of the
commands of cards/digits-prior.md.

Left out: how fast any of it is.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from pipelines.quickstart import QuickstartOptions, commands
from pipelines.reports.neighbours import nearest_items, training_items
from pipelines.tokens.items import TokenSplit
from tests.helpers.digit_classifier import embedded_digits, read_digits, train_classifier, views
from tests.helpers.running import Script, read, without_plots
from tokenizer import Tokenizer

EACH = 100  # samples of a digit

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Chain:
    """Runs in `folder`, a classifier of pictures, and the least shares that it must read right: of held-out
    digits, of the same rebuilt, and of samples."""

    folder: Path
    classifier: nn.Module
    of_real: float
    of_rebuilt: float
    of_samples: float

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_pretrained(self.folder / "tokenizer")

    def samples(self) -> Tensor:
        """The pictures that sample.py wrote, by the digit asked for: (10, EACH, 1, 28, 28) in [-1, 1]."""
        paths = [self.folder / "samples" / f"{d}-{i:04d}.png" for d in range(10) for i in range(EACH)]
        return rearrange(self.tokenizer().preprocess(paths), "(d i) c h w -> d i c h w", d=10)


@pytest.fixture(scope="module")
def digits() -> tuple[Labelled, Labelled]:
    """Those to train on, and those held out."""
    return embedded_digits()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("quickstart", marks=pytest.mark.slow),
        pytest.param("card", marks=pytest.mark.soak),
    ],
)
def chain(
    request: pytest.FixtureRequest,
    script: Script,
    digits: tuple[Labelled, Labelled],
    tmp_path_factory: pytest.TempPathFactory,
) -> Chain:
    """A tokenizer, its codes, a prior over them, and samples with guidance 2, at the quickstart's temperature
    or at 1."""
    folder = tmp_path_factory.mktemp("digits")
    tok, tokens, prior = folder / "tokenizer", folder / "tokens", folder / "prior"
    if request.param == "quickstart":
        with without_plots():
            for _, words in commands(QuickstartOptions(output=folder, samples_per_class=EACH))[:4]:
                name = next(word for word in words if word.startswith("pipelines."))
                script(name.removeprefix("pipelines."), *words[words.index(name) + 1 :])
        return Chain(folder, train_classifier(*digits[0], epochs=3, widths=(16, 32, 64)), 0.97, 0.94, 0.95)
    with without_plots():
        script("train_tokenizer", "digits", "--output", tok)
        script("encode_dataset", "--tokenizer", tok, "--data.path", "embedded:digits", "--output", tokens)
        script("train_prior", "small", "--tokens", tokens, "--output", prior)
    words = ("--label", "all", "--num", EACH, "--cfg-scale", 2, "--output", folder / "samples")
    script("sample", "--prior", prior, *words)
    return Chain(folder, train_classifier(*digits[0]), 0.99, 0.98, 0.95)


def share(read_as: Tensor, digits: Tensor) -> float:
    """How many of `read_as` (N,) are the `digits` (N,), 0 to 1."""
    return read_as.eq(digits).double().mean().item()


def test_samples_are_read_as_the_digit_asked_for(chain: Chain, digits: tuple[Labelled, Labelled]) -> None:
    _, (x, known) = digits
    tok = chain.tokenizer()
    with torch.no_grad():
        rebuilt = tok.decode(tok.encode(x), tok.modality.size).clamp(-1, 1)
    real, ceiling = (share(read_digits(chain.classifier, y), known) for y in (x, rebuilt))
    shares = torch.tensor(
        [
            share(read_digits(chain.classifier, drawn), torch.full((EACH,), digit))
            for digit, drawn in enumerate(chain.samples())
        ]
    )
    print(f"\nread right: held-out digits {real:.4f}, as the tokenizer rebuilds them {ceiling:.4f}")
    print(f"samples read as asked: {shares.mean():.4f}, of 0 to 9: {[round(s, 2) for s in shares.tolist()]}")
    assert real >= chain.of_real and ceiling >= chain.of_rebuilt
    assert shares.mean() >= chain.of_samples and shares.min() >= 0.8


def test_samples_differ_from_each_other_and_from_training(chain: Chain) -> None:
    tok = chain.tokenizer()
    items = training_items(tok, str(chain.folder / "tokens"))
    assert isinstance(items, TokenSplit)
    x = rearrange(chain.samples(), "d i c h w -> (d i) c h w")
    codes = tok.encode(x)
    near = items.rows(nearest_items(tok, codes, items).numpy())[0]
    same = (near == codes).flatten(1).double().mean(1)
    different = len(x.unique(dim=0)) / len(x)
    print(f"\ncodes shared with the nearest training item: {same.median():.2f} (median), {same.max():.2f}")
    print(f"pictures that differ from all others: {different:.3f}")
    assert different > 0.98
    assert same.median() < 0.8 and same.eq(1).double().mean() < 0.02


def test_the_prior_knows_held_out_digits_nearly_as_well_as_those_of_training(chain: Chain) -> None:
    metrics = read(chain.folder / "prior" / "metrics.json")
    held_out, train = metrics["bits_per_code"], metrics["train_bits_per_code"]
    print(f"\nbits per code: held out {held_out:.3f}, training {train:.3f}")
    assert 0 < held_out - train < 0.4
    assert held_out < metrics["bits_per_code_unconditional"] - 0.05  # the label tells something


def test_the_seed_decides_the_classifier_and_nothing_else_does(digits: tuple[Labelled, Labelled]) -> None:
    (x, known), _ = digits

    def train(seed: int) -> Tensor:
        return train_classifier(x[:128], known[:128], epochs=1, widths=(4, 4), seed=seed)(x[:8])

    first = train(0)
    state = torch.get_rng_state()
    assert torch.equal(train(0), first) and not torch.equal(train(1), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_views_are_the_same_digits_moved_a_little(digits: tuple[Labelled, Labelled]) -> None:
    (x, _), _ = digits
    moved = views(x[:256], torch.Generator().manual_seed(0))
    assert moved.shape == (256, 1, 28, 28) and moved.min() >= -1 and moved.max() <= 1
    assert (moved - x[:256]).flatten(1).abs().amax(1).min() > 0.1  # none stays as it was
    places = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij"))

    def middle(x: Tensor) -> Tensor:
        """The centres of mass (N, 2) of pictures, in pixels."""
        return torch.einsum("nhw,chw->nc", x[:, 0] + 1, places) / (x + 1).sum((1, 2, 3))[:, None]

    offsets = middle(moved) - middle(x[:256])
    assert offsets.abs().max() < 4 and offsets.std(0).min() > 0.5 and offsets.mean(0).abs().max() < 0.5
