"""The two stages of a tokenizer's training as functions that take a step at each call, and the memory of one.

Left out: data, the loop of a run, and perceptual networks.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from pipelines.benchmarks.process_memory import MIB, peak
from pipelines.presets import DECODERS, TOKENIZERS
from pipelines.training.adversary import Adversary
from pipelines.training.options import DecoderTraining, TokenizerTraining
from pipelines.training.setup import optimizers_of
from tokenizer import Tokenizer
from tokenizer.decoder_stage import DecoderStage
from tokenizer.discriminators import Jury, JuryConfig
from tokenizer.distributed import Step, keyed_generator

FIRST, ALONE, SECOND = "first stage", "second, before its start", "second stage"
STAGES = (FIRST, ALONE, SECOND)


def stage_of(name: str, first: TokenizerTraining, second: DecoderTraining) -> Callable[[], None]:
    """What takes a step of a stage at each call, on data that look like nothing."""
    accelerator = Accelerator()
    torch.manual_seed(0)
    tok = Tokenizer(first.model).to(accelerator.device).train()
    size = (first.batch_size, tok.modality.channels, *tok.modality.size)
    x = torch.rand(size, generator=keyed_generator("decoder")).to(accelerator.device) * 2 - 1
    options = first if name == FIRST else second
    optimizers: list[Optimizer] = optimizers_of(tok, options)
    start = first.model.bottleneck.start_steps
    adversary = None
    if name != FIRST:
        for index in range(start):  # codes that stand for nothing yet are not decoded
            tok(x, Step(0, index, 0, len(x)))
        config = JuryConfig.of(
            tok.modality.name, tok.modality.channels, second.adversarial.names, second.adversarial.width
        )
        adversary = Adversary(accelerator, Jury(config).to(accelerator.device), second.adversarial)
        optimizers = [*optimizers_of(tok, second, second.betas), adversary.optimizer]
    trained = tok if adversary is None else DecoderStage(tok, first.model.losses).train()
    index = second.adversarial.start if name == SECOND else 0

    def step() -> None:
        nonlocal index
        where = Step(0, index, 0, len(x))
        out = trained(x, where)
        losses = dict(out.losses)
        if adversary is not None:
            losses |= adversary.charge(x, out.x_hat, where)[0]
        torch.stack(list(losses.values())).sum().backward()
        if adversary is not None:
            adversary.learn(where)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        index += name != ALONE

    return step


def peak_of_steps(name: str, tokenizer: str, decoder: str, steps: int = 3) -> float:
    """MiB of the process's largest resident memory during some steps, above that before."""
    step = stage_of(name, TOKENIZERS[tokenizer].build(), DECODERS[decoder].build())
    before = peak()
    for _ in range(steps):
        step()
    return (peak() - before) / MIB
