"""Real training steps of a tokenizer or a prior, and how long each of them waits for its batch.

Left out: evaluation and checkpoints, which a step in a few hundred has, and what is printed
(`speed.py`).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from pipelines.benchmarks.registry import synchronizer
from pipelines.data.batches import Batch, Splits, batches
from pipelines.data.kinds import to_float
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import TokenRows, TokenSplit, token_batches
from pipelines.tokens.windows import rows_of, window_info
from pipelines.train_prior import losses_of as prior_losses
from pipelines.train_prior import prior_config
from pipelines.train_tokenizer import losses_of as tokenizer_losses
from pipelines.training.loop import Course
from pipelines.training.options import PriorTraining, TokenizerTraining
from pipelines.training.setup import optimizers_of
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.distributed import keyed_generator


class Waits(NamedTuple):
    """Seconds of some steps: waiting for the batch, and all that comes after."""

    waiting: list[float]
    working: list[float]

    @property
    def idle(self) -> list[float]:
        """The share of each step that is waiting."""
        return [a / (a + b) for a, b in zip(self.waiting, self.working, strict=True)]


@dataclass
class Run:
    """A training run that goes on by some steps at a time.

    `load` gives the batches of the steps from one to another with so many loader processes, `learn` does one.
    """

    load: Callable[[int, int, int], Iterator[Any]]
    learn: Callable[[Any], None]
    device: torch.device
    done: int = 0

    def steps(self, count: int, workers: int, warm_up: int) -> Waits:
        """The next `count` steps, after `warm_up` that do not count, with a loader of their own.

        It begins without a batch, and has more of them to make after the last step, so that it neither lives
        on what it made before nor rests at the end.
        """
        synchronize = synchronizer(self.device)
        last = self.done + warm_up + count
        found = self.load(workers, self.done, last + 2 * workers + 1)
        waits = Waits([], [])
        for step in range(self.done, last):
            synchronize()
            asked = time.perf_counter()
            batch = next(found)
            got = time.perf_counter()
            self.learn(batch)
            synchronize()
            if step >= last - count:
                waits.waiting.append(got - asked)
                waits.working.append(time.perf_counter() - got)
        self.done = last
        return waits


def tokenizer_run(
    options: TokenizerTraining, accelerator: Accelerator, tok: Tokenizer
) -> Callable[[Splits], Run]:
    """What makes runs over splits; all of them train one model, with the steps of `train_tokenizer.train`."""
    course = Course(accelerator, options, tok, optimizers_of(tok, options), "tokenizer")
    course.model.train()

    def over(splits: Splits) -> Run:
        def load(workers: int, start: int, stop: int) -> Iterator[Any]:
            share = course.share() | {"start_step": start, "stop_step": stop}
            return batches(splits.train, workers=workers, augment=options.augment, **share)

        def learn(batch: Any) -> None:
            x = to_float(batch.x.to(accelerator.device, non_blocking=True))
            forward = partial(tokenizer_losses, x=x, perceptual=None, weight=0.0)
            course.learn(batch, forward, [splits.train.id(int(i)) for i in batch.index])

        return Run(load, learn, accelerator.device)

    return over


def prior_run(options: PriorTraining, accelerator: Accelerator, info: TokenInfo, rows: TokenRows) -> Run:
    """A run with the steps of `train_prior.train`, which loads tokens in its own process."""
    prior = Prior(prior_config(options, info)).to(accelerator.device)
    course = Course(accelerator, options, prior, optimizers_of(prior, options), "prior")
    course.model.train()

    def load(workers: int, start: int, stop: int) -> Iterator[Batch]:
        return token_batches(rows, **(course.share() | {"start_step": start, "stop_step": stop}))

    def learn(batch: Batch) -> None:
        codes = batch.x.to(accelerator.device, non_blocking=True)
        labels = batch.labels.to(accelerator.device)
        forward = partial(prior_losses, codes=codes, labels=labels, label_dropout=options.label_dropout)
        course.learn(batch, forward, [f"training item {i}" for i in batch.index.tolist()])

    return Run(load, learn, accelerator.device)


def random_tokens(tok: Tokenizer, splits: Splits, seconds: float) -> tuple[TokenInfo, TokenRows]:
    """As many random codes as `tok` makes of the training data, and what they are: how fast they are loaded
    does not depend on their values. Sound in windows of `seconds`."""
    train, generator = splits.train, keyed_generator(0, "codes")
    labels = np.full(len(train), -1) if train.labels is None else train.labels
    kind: dict[str, Any] = {"tokenizer": "random", "fingerprint": "", "class_names": splits.class_names}
    kind |= {"codebook_size": tok.codebook_size, "num_codebooks": tok.num_codebooks}
    layout = train.layout(tok)
    info = TokenInfo(**kind, **layout._asdict())
    if not layout.grid:
        frames = [-(-train.x(i).shape[1] // tok.stride) for i in range(len(train))]
        codes = [
            torch.randint(tok.codebook_size, (tok.num_codebooks, n), generator=generator) for n in frames
        ]
        info = window_info(info, seconds)
        return info, rows_of(CodeClips.of(codes, labels), info.grid[0])
    shape = (tok.num_codebooks, *layout.grid)
    drawn = torch.randint(tok.codebook_size, (len(train), *shape), generator=generator)
    return info, TokenSplit(drawn.numpy().astype(info.dtype), labels)
