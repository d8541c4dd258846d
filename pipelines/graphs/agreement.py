"""Whether onnxruntime computes with a file what torch computes with the model: codes, sound and pictures,
posteriors, and a prior's likelihoods.

Left out: making the files (`files.py`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prior import Prior
from tokenizer import Tokenizer

# Of full scale: of 1, or of the largest number that torch gives, if that is more, as rounding grows with it.
MOST_OFF = 1e-4
# Codes may differ where the two entries' distances differ by less than this share of their sum ...
NEAR_TIE = 1e-5
# ... at so many of all positions at most.
MOST_TIES = 1e-3
# Of the likelihood of a code, in nats.
MOST_NATS = 1e-3
# Steps of a prior that are compared, and sequences.
STEPS, SEQUENCES = 256, 2

UNWRITTEN = "Nothing was written"


class Session:
    """A file in onnxruntime: arrays or tensors in, arrays out, in their order."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait by turning would take the time of torch's own.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, *values: Tensor | NDArray[Any]) -> list[NDArray[Any]]:
        arrays = (v.numpy() if isinstance(v, Tensor) else v for v in values)
        names = (i.name for i in self.session.get_inputs())
        found: list[NDArray[Any]] = self.session.run(None, dict(zip(names, arrays, strict=True)))
        return found


class Agreement(NamedTuple):
    """What was compared, for export.json and the log."""

    figures: dict[str, float]

    def in_words(self) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in self.figures.items())


@torch.no_grad()
def compare_tokenizer(
    tok: Tokenizer, encoder: Session, decoder: Session, data: Iterable[Tensor]
) -> Agreement:
    """By `data`, each x (B, C, *size) in [-1, 1]. `ValueError` where they do not agree, or nothing was
    compared."""
    items = positions = differing = 0
    widest = off = 0.0
    for x in data:
        items += len(x)
        if tok.is_discrete:
            expected, found = tok.encode(x), torch.from_numpy(encoder(x)[0])
            changed = (expected != found).any(dim=1)
            positions, differing = positions + changed.numel(), differing + int(changed.sum())
            if changed.any():
                gaps = tok.bottleneck.gaps(tok.encoder(tok.modality.pad(x)), found)
                widest = max(widest, float(gaps.amax()))
            coded, x_hat = expected, tok.decode(expected)
        else:
            posterior = tok.posterior(x)
            for name, wanted, array in zip(
                ("mean", "logvar"), (posterior.mean, posterior.logvar), encoder(x), strict=True
            ):
                _require_close(f"encoder.onnx: {name}", _share_of_scale(wanted, array))
            coded, x_hat = posterior.mean, tok.decode_latents(posterior.mean)
        off = max(off, _share_of_scale(x_hat, decoder(coded)[0]))
    if items == 0:
        raise ValueError("there is nothing to check the export on; give other data with --data.path")
    figures = {"items": items, "decoder_largest_difference": off}
    if tok.is_discrete:
        figures |= {"positions": positions, "positions_that_differ": differing, "widest_gap": widest}
        require_ties(differing, positions, widest)
    _require_close("decoder.onnx: x_hat", off)
    return Agreement(figures)


def require_ties(differing: int, positions: int, widest: float) -> None:
    """`ValueError` unless codes that differ are near ties, and few."""
    if widest >= NEAR_TIE or differing > MOST_TIES * positions:
        raise ValueError(
            f"encoder.onnx: {differing} of {positions} positions have other codes than the tokenizer gives, "
            f"whose entries are up to {widest:.3g} (of the sum of both distances) farther than the nearest; "
            f"expected at most {MOST_TIES:g} of the positions, each less than {NEAR_TIE:g}. {UNWRITTEN}"
        )


@torch.no_grad()
def compare_prior(prior: Prior, step: Session) -> Agreement:
    """By the likelihoods of codes that the prior draws, of its classes in turn. `ValueError` where they do
    not agree."""
    config, pattern = prior.config, prior.pattern
    label = torch.arange(SEQUENCES) % max(1, len(config.class_names))
    if not config.class_names:
        label = torch.full((SEQUENCES,), -1)
    stop = min(STEPS, pattern.num_steps)
    rows = int(pattern.coordinates[:stop, 0].amax())
    codes = torch.zeros(SEQUENCES, config.num_codebooks, *config.grid, dtype=torch.int64)
    drawn = prior.sample(SEQUENCES, label, generator=0, size=min(config.grid[0], rows + 1))
    codes[:, :, : drawn.shape[2]] = drawn
    expected = prior.likelihood(codes, label).nats.flatten(2)
    sequence, off = pattern.to_sequence(codes), 0.0
    before = torch.full_like(sequence[:, 0], -1)
    cache = empty_cache(prior, SEQUENCES)
    for s, held in enumerate(pattern.layout()[:stop]):
        logits, cache = step(before, np.array([s]), label, cache)
        nats = -torch.from_numpy(logits).log_softmax(dim=-1)
        before = sequence[:, s]
        for q, (book, position) in enumerate(held):
            if position >= 0:
                found = nats[:, q].gather(1, before[:, q, None])[:, 0]
                off = max(off, _distance(expected[:, book, position], found.numpy()))
    if not off <= MOST_NATS:
        raise ValueError(
            f"prior.onnx: likelihoods of codes differ by up to {off:.3g} nats from the prior's, expected at "
            f"most {MOST_NATS:g}. {UNWRITTEN}"
        )
    return Agreement({"steps": stop, "largest_difference_in_nats": off})


def empty_cache(prior: Prior, batch: int) -> NDArray[np.float32]:
    """What the first step is given."""
    config = prior.config
    shape = (config.depth, 2, batch, config.heads, 0, config.dim // config.heads)
    return np.zeros(shape, np.float32)


def _distance(wanted: Tensor, found: NDArray[Any]) -> float:
    if tuple(wanted.shape) != found.shape:
        raise ValueError(f"onnxruntime gives {found.shape}, torch {tuple(wanted.shape)}. {UNWRITTEN}")
    return float((wanted - torch.from_numpy(found)).abs().amax())


def _share_of_scale(wanted: Tensor, found: NDArray[Any]) -> float:
    return _distance(wanted, found) / max(1.0, float(wanted.abs().amax()))


def _require_close(what: str, off: float) -> None:
    if not off <= MOST_OFF:
        raise ValueError(
            f"{what} differs by up to {off:.3g} from the tokenizer's, expected at most {MOST_OFF:g} of full "
            f"scale. {UNWRITTEN}"
        )
