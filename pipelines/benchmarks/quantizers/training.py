"""One training of the bake-off of quantizers: a tokenizer, its codes, and a small prior over them; and the
time of its steps.

Left out: who takes part (`contestants.py`), tables and plot (`reports/sheets.py`), and the command line.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.benchmarks.quantizers.contestants import Contestant
from pipelines.benchmarks.registry import in_turns
from pipelines.data.batches import Splits, batches
from pipelines.data.kinds import Split, to_float
from pipelines.evaluation.tokenizers import EVAL_BATCH
from pipelines.presets import PRIORS, TOKENIZERS
from pipelines.tokens.items import TokenSplit, token_batches
from pipelines.training.averaging import WeightAverage
from pipelines.training.options import PriorSize, PriorTraining, TokenizerTraining, TrainingOptions
from pipelines.training.setup import optimizers_of, rate_scale, set_rates, short_run
from prior import Prior, PriorConfig
from tokenizer import Tokenizer
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.distributed import Step
from tokenizer.metrics import CodeUsage, psnr
from tokenizer.modalities.image import ImageConfig
from tokenizer.variants import config_to_dict

PRESET = "emoji"
PRIOR_SIZE = PriorSize(dim=64, depth=2, heads=4, dropout=0.0)


@dataclass(frozen=True)
class Recipe:
    """What is the same for all contestants."""

    steps: int
    prior_steps: int
    batch_size: int
    widths: tuple[int, ...] = ()
    """Of the encoder's and decoder's levels; () are the preset's."""

    def modality(self) -> ImageConfig:
        """The pictures and networks, those of the preset."""
        modality: ImageConfig = TOKENIZERS[PRESET].build().model.modality
        return dataclasses.replace(modality, widths=self.widths) if self.widths else modality

    def tokenizer(self, contestant: Contestant, seed: int) -> TokenizerTraining:
        """The preset's training with another bottleneck, for these steps; only the warm-ups are shorter where
        the steps are few."""
        preset: TokenizerTraining = TOKENIZERS[PRESET].build()
        model = dataclasses.replace(preset.model, modality=self.modality(), bottleneck=contestant.config)
        options = dataclasses.replace(self._common(preset, self.steps, seed), model=model)
        short: TokenizerTraining = short_run(options, log=False)
        return short

    def prior(self, seed: int) -> PriorTraining:
        """The preset's training of a smaller prior."""
        preset: PriorTraining = PRIORS["small"].build()
        options: PriorTraining = self._common(preset, self.prior_steps, seed)
        return dataclasses.replace(options, model=PRIOR_SIZE)

    def _common(self, preset: Any, steps: int, seed: int) -> Any:
        warmup = min(preset.warmup_steps, steps // 4)
        return dataclasses.replace(
            preset, max_steps=steps, batch_size=self.batch_size, seed=seed, warmup_steps=warmup
        )


def channels() -> int:
    """What the preset's encoder gives to its bottleneck."""
    bottleneck = TOKENIZERS[PRESET].build().model.bottleneck
    assert isinstance(bottleneck, VQConfig)
    return bottleneck.dim


def build_tokenizer(options: TokenizerTraining) -> Tokenizer:
    """A tokenizer whose encoder and decoder begin with the same weights whatever its bottleneck; layers whose
    shape the bottleneck decides have their own."""
    torch.manual_seed(options.seed)
    tok = Tokenizer(options.model)
    torch.manual_seed(options.seed)
    dim = channels()
    common = (tok.modality.build_encoder(dim), tok.modality.build_decoder(dim))
    with torch.no_grad():
        for own, other in zip((tok.encoder, tok.decoder), common, strict=True):
            for p, q in zip(own.parameters(), other.parameters(), strict=True):
                if p.shape == q.shape:
                    p.copy_(q)
    return tok


def tokenizer_step(
    tok: Tokenizer, optimizers: Sequence[Optimizer], x: Tensor, step: int, options: TokenizerTraining
) -> Tensor:
    """One optimizer step on a whole batch x; returns the loss before it."""
    set_rates(list(optimizers), rate_scale(step, options.warmup_steps, options.max_steps))
    out = tok(x, step=Step(options.seed, step, 0, len(x)))
    return descend(tok, optimizers, torch.stack(list(out.losses.values())).sum(), options.clip_norm)


def descend(model: nn.Module, optimizers: Sequence[Optimizer], loss: Tensor, clip_norm: float) -> Tensor:
    loss.backward()
    if clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


# Steps between looks at the loss, which would else end as NaN in the table.
LOOK_EVERY = 50


class Bar(Protocol):
    """The part of a progress bar that trainings move."""

    def update(self, n: int = 1) -> object: ...


def train_contestant(
    contestant: Contestant, bits: int, recipe: Recipe, splits: Splits, seed: int, bar: Bar
) -> dict[str, Any]:
    """Train a tokenizer and a prior on its codes → what was measured, as JSON values. Usage is the share of
    codes used, usage and perplexity are means over codebooks, bits are of held-out codes."""
    started = time.perf_counter()
    tok = trained_tokenizer(contestant, recipe, splits, seed, bar)
    train, held_out = tokens(tok, splits.train), tokens(tok, splits.held_out)
    positions = math.prod(train.codes.shape[2:])
    nats = prior_nats(train, held_out, tok, recipe.prior(seed), bar)
    bits_per_code = nats / math.log(2) / tok.num_codebooks / positions
    used = [count(tok, split) for split in (train, held_out)]
    return {
        "contestant": contestant.name,
        "bits": bits,
        "seed": seed,
        "config": config_to_dict(contestant.config),
        "num_codebooks": tok.num_codebooks,
        "codebook_size": tok.codebook_size,
        "psnr": held_out_psnr(tok, splits.held_out, held_out),
        "usage_train": float(used[0].usage().mean()),
        "usage_held_out": float(used[1].usage().mean()),
        "perplexity": float(used[1].perplexity().mean()),
        "bits_per_code": bits_per_code,
        "bits_per_position": bits_per_code * tok.num_codebooks,
        "seconds": time.perf_counter() - started,
    }


def trained_tokenizer(
    contestant: Contestant, recipe: Recipe, splits: Splits, seed: int, bar: Bar
) -> Tokenizer:
    """The training loop of `train_tokenizer.py` on one process, without its files."""
    options = recipe.tokenizer(contestant, seed)
    tok = build_tokenizer(options)
    optimizers, average = optimizers_of(tok, options), WeightAverage(tok, options.ema_decay)
    torch.manual_seed(seed)  # the peers draw from torch's generator
    tok.train()
    for batch in batches(
        splits.train,
        batch_size=options.batch_size,
        seed=seed,
        stop_step=options.max_steps,
        augment=options.augment,
    ):
        loss = tokenizer_step(tok, optimizers, to_float(batch.x), batch.step, options)
        average.update(tok, batch.step + 1)
        _look(loss, batch.step + 1, options, contestant.name)
        bar.update()
    return average.averaged(tok)


def prior_nats(
    train: TokenSplit, held_out: TokenSplit, tok: Tokenizer, options: PriorTraining, bar: Bar
) -> float:
    """Train a prior without classes by the loop of `train_prior.py` → nats of a held-out picture's codes."""
    torch.manual_seed(options.seed)
    size = options.model
    prior = Prior(
        PriorConfig(
            codebook_size=tok.codebook_size,
            num_codebooks=tok.num_codebooks,
            grid=train.codes.shape[2:],
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
            dropout=size.dropout,
        )
    )
    optimizers = optimizers_of(prior, options, betas=(0.9, 0.95))
    average = WeightAverage(prior, options.ema_decay)
    prior.train()
    for batch in token_batches(
        train,
        batch_size=options.batch_size,
        micro_batches=1,
        rank=0,
        world=1,
        seed=options.seed,
        start_step=0,
        stop_step=options.max_steps,
    ):
        set_rates(optimizers, rate_scale(batch.step, options.warmup_steps, options.max_steps))
        loss = descend(prior, optimizers, prior(batch.x).losses["nll"], options.clip_norm)
        average.update(prior, batch.step + 1)
        _look(loss, batch.step + 1, options, "the prior")
        bar.update()
    prior, total = average.averaged(prior), 0.0
    for start in range(0, len(held_out), EVAL_BATCH):
        codes, _ = held_out.rows(slice(start, start + EVAL_BATCH))
        total += float(prior.nll(codes).double().sum())
    return total / len(held_out)


def _look(loss: Tensor, step: int, options: TrainingOptions, name: str) -> None:
    if (step % LOOK_EVERY == 0 or step == options.max_steps) and not math.isfinite(float(loss)):
        raise ValueError(
            f"{name}, seed {options.seed}: the loss is {float(loss)} at step {step}; what was trained before "
            "is kept in --output, so leave this one out with --contestants"
        )


@torch.no_grad()
def tokens(tok: Tokenizer, examples: Split) -> TokenSplit:
    """The codes of all pictures, without labels."""
    parts = [tok.encode(x) for x, _ in examples.inputs(EVAL_BATCH)]
    codes = torch.cat(parts).numpy().astype(np.uint32)
    return TokenSplit(codes, np.full(len(codes), -1, np.int64))


@torch.no_grad()
def held_out_psnr(tok: Tokenizer, examples: Split, coded: TokenSplit) -> float:
    """Mean over pictures, in dB."""
    total = 0.0
    for x, index in examples.inputs(EVAL_BATCH):
        codes, _ = coded.rows(index)
        total += float(psnr(tok.decode(codes, size=tuple(x.shape[2:])), x).sum())
    return total / len(examples)


def count(tok: Tokenizer, split: TokenSplit) -> CodeUsage:
    """How often each code occurs."""
    usage = CodeUsage(tok.num_codebooks, tok.codebook_size)
    usage.update(torch.from_numpy(split.codes.astype(np.int64)))
    return usage


def step_seconds(
    entered: Sequence[Contestant], recipe: Recipe, splits: Splits, turns: int
) -> dict[str, list[float]]:
    """Seconds of a tokenizer's optimizer steps, all contestants in turns, after their codes have started."""
    jobs: dict[str, Callable[[], object]] = {}
    x = to_float(next(batches(splits.train, batch_size=recipe.batch_size, seed=0, stop_step=1)).x)
    for contestant in entered:
        quick = Contestant(contestant.name, contestant.config.starting_within(1))
        options = recipe.tokenizer(quick, seed=0)
        tok = build_tokenizer(options).train()
        optimizers, steps = optimizers_of(tok, options), itertools.count()

        def job(tok=tok, optimizers=optimizers, options=options, steps=steps) -> None:  # type: ignore[no-untyped-def]
            tokenizer_step(tok, optimizers, x, next(steps), options)

        while not tok.bottleneck.ready:
            job()
        jobs[contestant.name] = job
    return in_turns(jobs, turns, warm_up=2)
