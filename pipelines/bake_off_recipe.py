"""What all contestants of `benchmark.py quantizers` share: network, options, first weights, optimizer step.

Left out: the loops (`bake_off.py`), and the contestants (`contestants.py`).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.contestants import Contestant
from pipelines.optimizers import build_optimizers
from pipelines.options import PriorSize, PriorTraining, TokenizerTraining, TrainingOptions
from pipelines.presets import PRIORS, TOKENIZERS
from pipelines.training import rate_scale, set_rates, short_run
from tokenizer import Tokenizer
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.distributed import Step
from tokenizer.modalities.image import ImageConfig

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
        modality = TOKENIZERS[PRESET].build().model.modality
        return dataclasses.replace(modality, widths=self.widths) if self.widths else modality

    def tokenizer(self, contestant: Contestant, seed: int) -> TokenizerTraining:
        """The preset's training with another bottleneck, for these steps; only the warm-ups are shorter where
        the steps are few."""
        preset: TokenizerTraining = TOKENIZERS[PRESET].build()
        model = dataclasses.replace(preset.model, modality=self.modality(), bottleneck=contestant.config)
        options = dataclasses.replace(self._common(preset, self.steps, seed), model=model)
        return short_run(options, log=False)

    def prior(self, seed: int) -> PriorTraining:
        """The preset's training of a smaller prior."""
        preset: PriorTraining = PRIORS["small"].build()
        return dataclasses.replace(self._common(preset, self.prior_steps, seed), model=PRIOR_SIZE)

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


def optimizers_of(model: nn.Module, options: TrainingOptions, **more: Any) -> list[Optimizer]:
    """As the training scripts build them."""
    return build_optimizers(
        model,
        options.optimizer,
        options.learning_rate,
        options.muon_learning_rate,
        options.weight_decay,
        **more,
    )


def tokenizer_step(
    tok: Tokenizer, optimizers: Sequence[Optimizer], x: Tensor, step: int, options: TokenizerTraining
) -> Tensor:
    """One optimizer step on a whole batch x; returns the loss before it."""
    set_rates(list(optimizers), rate_scale(step, options.warmup_steps, options.max_steps))
    out = tok(x, step=Step(options.seed, step, 0, len(x)))
    return descend(tok, optimizers, torch.stack(list(out.losses.values())).sum(), options.clip_norm)


def descend(model: nn.Module, optimizers: Sequence[Optimizer], loss: Tensor, clip_norm: float) -> Tensor:
    loss.backward()  # type: ignore[no-untyped-call]
    if clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()
