"""Measures of drawn pictures: how far they lie from held-out ones as a set, whether they show the class asked
for, how many are blank, and how near they are to what was trained on.

Where the data have the prior's classes, each class counts alike in every set, as it does among the samples:
the distance is then not one between different mixes of classes.
"""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.data.batches import Splits
from pipelines.data.kinds import Split
from pipelines.evaluation.kid import lite_features
from pipelines.evaluation.samples.classifier import Classifier, small, train_classifier
from pipelines.evaluation.samples.codes import measure_codes
from pipelines.evaluation.samples.kinds import MEASURES, Draw, Figures, decoded, rebuilt
from pipelines.run.generator import Generator
from pipelines.run.progress import progress
from pipelines.tokens.items import TokenRows
from tokenizer.distributed import keyed_generator
from tokenizer.metrics import mmd2
from tokenizer.search.exact import nearest

logger = logging.getLogger(__name__)

# A picture whose values, in [-1, 1], have a smaller standard deviation than this shows nothing.
BLANK = 0.03


class Seen:
    """What is kept of pictures that were looked at, with their labels (n,)."""

    def __init__(self, network: nn.Module, classifier: Classifier | None) -> None:
        self._network, self._classifier = network, classifier
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Look at x (b, C, H, W) in [-1, 1]; labels (b,), -1 for none."""
        found = {
            "labels": labels,
            "features": self._network(x),
            "pixels": small(x).flatten(1),
            "blank": x.flatten(1).std(1, correction=0) < BLANK,
        }
        if self._classifier is not None:
            found["read"] = self._classifier.read(x)
        for name, values in found.items():
            self._parts.setdefault(name, []).append(values.cpu())

    def __getitem__(self, name: str) -> Tensor:
        """features (n, d), pixels (n, D), blank (n,), read (n,) or labels (n,)."""
        return torch.cat(self._parts[name])


@MEASURES.enter("image")
class PictureSamples:
    """kid, agreement, blanks, nearest, repeats and copies (cards/samples.md says what they are)."""

    def __init__(self, generator: Generator, splits: Splits, count: int, batch_size: int) -> None:
        self.generator, self.splits, self.count, self.batch_size = generator, splits, count, batch_size
        self.network = lite_features("--samples").to(generator.tokenizer.device)
        names = generator.prior.config.class_names
        self.classes = len(names) if splits.class_names == names and _labelled(splits) else 0
        if names and not self.classes:
            logger.warning(
                "the data have not the prior's classes, so nothing says whether samples show what was asked "
                "for, and the mix of classes differs between samples and data; give the data that the prior "
                "learnt"
            )
        if self.classes and (missing := set(range(self.classes)) - set(_labels(splits.held_out).tolist())):
            logger.warning(
                "nothing is held out of %s, of which samples are drawn: that makes their distance larger",
                ", ".join(names[c] for c in sorted(missing)),
            )

    def measure(self, draws: Sequence[Draw], items: TokenRows | None) -> Figures:
        figures, device = Figures(), self.generator.tokenizer.device
        train = self.splits.train
        classifier = train_classifier(train, self.classes, device) if self.classes else None
        real, again, codes = self._held_out(classifier)
        weights = self._weights(real["labels"])
        figures.add(
            "kid", "reconstructions", mmd2(again["features"], real["features"], weights, weights, True)
        )
        queries = [("reconstructions", again["pixels"], weights), ("held_out", real["pixels"], weights)]
        self._shares(figures, "reconstructions", again, weights)
        self._shares(figures, "held_out", real, weights)
        for seed, draw in enumerate(draws):
            sample, known = (
                self._seen(decoded(self.generator, draw, self.batch_size), classifier),
                Seen(self.network, None),
            )
            for x, labels in self._training(seed):
                known.add(x.to(device), labels)
            even = self._weights(known["labels"])
            figures.add("kid", "samples", mmd2(sample["features"], real["features"], None, weights))
            figures.add("kid", "training", mmd2(known["features"], real["features"], even, weights))
            self._shares(figures, "samples", sample, None)
            self._shares(figures, "training", known, even)
            queries.append(("samples", sample["pixels"], None))
        distances = nearest_distances(
            torch.cat([q for _, q, _ in queries]),
            (small(x).flatten(1) for x, _ in train.inputs(self.batch_size)),
        )
        parts = distances.split([len(q) for _, q, _ in queries])
        for (of, _, even), part in zip(queries, parts, strict=True):
            figures.add("nearest", of, weighted_median(part, even))
        measure_codes(figures, draws, codes, items)
        return figures

    def _seen(self, batches: Iterable[tuple[Tensor, Tensor]], classifier: Classifier | None) -> Seen:
        seen = Seen(self.network, classifier)
        with progress(self.count, "measure samples") as bar:
            for x, labels in batches:
                seen.add(x, labels)
                bar.update(len(x))
        return seen

    def _held_out(self, classifier: Classifier | None) -> tuple[Seen, Seen, Tensor]:
        """Held-out pictures, the same rebuilt, and their codes (n, K, *grid)."""
        real, again, codes = Seen(self.network, classifier), Seen(self.network, classifier), []
        tok, split = self.generator.tokenizer, self.splits.held_out
        with progress(len(split), "measure held-out") as bar:
            for x, index in split.inputs(self.batch_size):
                x, labels = x.to(tok.device), torch.from_numpy(_labels(split)[index])
                x_hat, found = rebuilt(tok, x)
                real.add(x, labels)
                again.add(x_hat, labels)
                codes.append(found)
                bar.update(len(x))
        return real, again, torch.cat(codes)

    def _training(self, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
        """As many training pictures as samples and as many of each class, or all there are."""
        train, labels = self.splits.train, _labels(self.splits.train)
        order = torch.randperm(len(train), generator=keyed_generator(seed, "training pictures")).numpy()
        groups = [order[labels[order] == c] for c in range(self.classes)] if self.classes else [order]
        mask = np.zeros(len(train), bool)
        for group in groups:
            mask[group[: self.count // len(groups)]] = True
        picked = train.pick(mask)
        for x, index in picked.inputs(self.batch_size):
            yield x, torch.from_numpy(_labels(picked)[index])

    def _weights(self, labels: Tensor) -> Tensor | None:
        """By which each class counts alike: (n,), 0 for what has none."""
        if not self.classes:
            return None
        counts = torch.bincount(labels[labels >= 0], minlength=self.classes).double().clamp(min=1)
        return torch.where(labels >= 0, 1 / counts[labels.clamp(min=0)], 0.0)

    def _shares(self, figures: Figures, of: str, seen: Seen, weights: Tensor | None) -> None:
        figures.add("blanks", of, mean(seen["blank"], weights))
        if self.classes and of != "training":  # which the classifier has learnt
            figures.add("agreement", of, mean(seen["read"] == seen["labels"], weights))


def _labelled(splits: Splits) -> bool:
    return all((_labels(split) >= 0).any() for split in (splits.train, splits.held_out))


def _labels(split: Split) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.full(len(split), -1, np.int64) if split.labels is None else split.labels


def mean(values: Tensor, weights: Tensor | None) -> float:
    """The mean of values (n,) that count by their weights (n,), or all alike."""
    if weights is None:
        return float(values.double().mean())
    return float((values.double() * weights).sum() / weights.sum())


def weighted_median(values: Tensor, weights: Tensor | None) -> float:
    """The least of values (n,) that half of all weight is not above."""
    ordered, order = values.sort()
    share = (torch.ones(len(values)) if weights is None else weights)[order].double().cumsum(0)
    return float(ordered[int((share >= share[-1] / 2 * (1 - 1e-9)).double().argmax())])


@torch.no_grad()
def nearest_distances(queries: Tensor, batches: Iterable[Tensor]) -> Tensor:
    """queries (M, D) → the L2 distance (M,) of each to the nearest of all rows of `batches`, (b, D) each."""
    best = torch.full((len(queries),), torch.inf)
    for table in batches:
        index = nearest(queries, table)
        best = torch.minimum(best, (queries - table[index]).norm(dim=1))
    return best
