"""Drawing codes one step of the pattern after the other: the loop, guidance, and what stays fixed.

Left out: several positions in a step (`parallel.py`), the network (`decoder.py`), choosing a code from
logits (`choice.py`), and the forms that users give things in (`checks.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prior.checks import UNCONDITIONAL
from prior.network import PriorNetwork
from prior.orders import in_order, in_raster
from prior.sampling.choice import Choice, Generators, draw, uniform_table
from prior.sampling.cpu.decoder import CompiledDecoder, serves
from prior.sampling.decoder import Decoder, OrderedDecoder
from prior.sampling.decoder_cuda import static_decoder
from prior.sampling.weights import PreparedWeights


def chosen_decoder(
    prior: PriorNetwork, prepared: PreparedWeights, rows: int, steps: int
) -> Decoder | CompiledDecoder:
    """The decoder for so many sequences of so many steps, compiled if `prepared` asks for it."""
    if prepared.compiled and prior.head.device.type == "cuda":
        return static_decoder(prior, prepared, rows)
    if serves(prior, prepared):
        return CompiledDecoder(prior, prepared, rows, steps)
    return Decoder(prior, prepared, rows, steps)


# Called after each step with the codes so far (B, K, *grid), -1 where there is none yet, and how many steps
# are done of how many; True stops.
OnStep = Callable[[Tensor, int, int], bool | None]


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn: codes (B, K, *grid) int64 with those where `free` (B, K, *grid) bool holds drawn
    anew, for `classes` (B,) or mixtures of them (B, classes + 1), as `PriorNetwork.inputs` takes them."""

    codes: Tensor
    free: Tensor
    classes: Tensor
    choice: Choice
    generator: Generators
    on_step: OnStep | None = None


def with_guide(prior: PriorNetwork, classes: Tensor, choice: Choice) -> Tensor:
    """The classes of all sequences: those given, and with guidance once more as no class.

    Raises `ValueError` for guidance where no class is given, and for what the prior has not learnt.
    """
    guided = choice.cfg_scale != 1
    without_class = classes == UNCONDITIONAL if classes.ndim == 1 else classes[:, -1] == 1
    if guided and bool(without_class.all()):
        raise ValueError(
            f"cfg_scale={choice.cfg_scale} needs a label to guide towards; give one, or cfg_scale=1"
        )
    if not prior.config.unconditional and (guided or bool(without_class.any())):
        what = f"cfg_scale={choice.cfg_scale}" if guided else "sampling without a label"
        raise ValueError(
            f"{what} needs p(codes) without a class, which this prior has not learnt (label dropout was 0); "
            "give every example a label and leave cfg_scale at 1, or train with label dropout"
        )
    if not guided:
        return classes
    if classes.ndim == 1:
        nothing = torch.full_like(classes, UNCONDITIONAL)
    else:
        nothing = torch.zeros_like(classes)
        nothing[:, -1] = 1
    return torch.cat([classes, nothing])


def guided_logits(logits: Tensor, choice: Choice, done: float) -> Tensor:
    """Logits of all sequences (rows, N) → those to draw from (B, N), a share `done` of the way on."""
    if choice.cfg_scale == 1:
        return logits
    cond, uncond = logits.chunk(2)
    return uncond + choice.guidance(done) * (cond - uncond)


def followed(prior: PriorNetwork, prepared: PreparedWeights | None) -> PreparedWeights:
    """The weights that are `prepared`, as the prior has them now, or those of the network."""
    if prepared is None:
        return PreparedWeights(prior)
    prepared.follow(prior)
    return prepared


def generate(
    prior: PriorNetwork,
    prepared: PreparedWeights | None,
    wanted: Wanted,
    stop: int | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Draw what is wanted, with the weights that are `prepared`, or those of the network.

    A code is drawn given all codes of the steps before its own, drawn or fixed; with an `order` (1 or B, P)
    steps come in that order of their positions. With `stop` only the steps before that one are taken. All
    chance is one table of uniform numbers (B, S, Q), a number for each code whether it is drawn or not.
    Where `on_step` stops it, codes that are not drawn yet are -1. Raises `ValueError` as `with_guide` does.
    """
    pattern, choice, codes, free = prior.pattern, wanted.choice, wanted.codes, wanted.free
    classes = with_guide(prior, wanted.classes, choice)
    copies = len(classes) // len(codes)
    uniform = uniform_table((len(codes), pattern.num_steps, pattern.width), wanted.generator, codes.device)
    if order is not None:
        codes, free = in_order(codes, order), in_order(free, order)
        steps = pattern.steps_in(order)[..., None].expand(uniform.shape)
        uniform = uniform.gather(1, steps)
    sequence, drawn = pattern.to_sequence(codes), pattern.to_sequence(free.long()) == 1
    # Whether none, some or all examples are to get a code from a step; looked at once, not in the loop.
    some, every = drawn.any(0).tolist(), drawn.all(0).tolist()
    taken = [step for step in range(pattern.num_steps if stop is None else stop) if any(some[step])]
    if not taken:
        return wanted.codes
    first, last = taken[0], taken[-1]
    layout = pattern.layout()
    prepared, rows = followed(prior, prepared), copies * len(codes)
    shown = None if wanted.on_step is None else sequence.masked_fill(drawn, -1)

    def copied(values: Tensor) -> Tensor:
        return values if copies == 1 else torch.cat([values] * copies)

    def as_codes(values: Tensor) -> Tensor:
        found = pattern.to_codes(values)
        return found if order is None else in_raster(found, order)

    if order is None:
        context = chosen_decoder(prior, prepared, rows, last + 1)
    else:
        context = OrderedDecoder(prior, prepared, rows, last + 1, order if len(order) == 1 else copied(order))
    with context as decoder:
        x = prior.inputs(copied(sequence[:, :first]), classes)
        for step in range(first, last + 1):
            hidden = decoder.advance(x)
            for q, (book, _) in enumerate(layout[step]):
                if some[step][q]:
                    logits = decoder.logits(hidden, book, copied(sequence[:, step, :q]))
                    logits = guided_logits(logits, choice, step / max(1, pattern.num_steps - 1))
                    new = draw(choice.probabilities(logits), uniform[:, step, q])
                    old = sequence[:, step, q]
                    sequence[:, step, q] = new if every[step][q] else new.where(drawn[:, step, q], old)
            if shown is not None and wanted.on_step is not None:
                shown[:, step] = sequence[:, step]
                if wanted.on_step(as_codes(shown), step - first + 1, last - first + 1):
                    return as_codes(shown)
            x = prior.embed(copied(sequence[:, step : step + 1]), step)
    return as_codes(sequence)
