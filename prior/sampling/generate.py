"""Drawing codes one step of the pattern after the other: the loop, guidance, and what stays fixed.

Left out: the network (`decoder.py`), choosing a code from logits (`choice.py`), and the forms that users
give things in (`checks.py`).
"""

import torch
from torch import Tensor

from prior.checks import UNCONDITIONAL
from prior.network import PriorNetwork
from prior.sampling.choice import Choice, Generators, draw, uniform_table
from prior.sampling.cpu.decoder import CompiledDecoder, serves
from prior.sampling.decoder import Decoder
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


def generate(
    prior: PriorNetwork,
    prepared: PreparedWeights | None,
    codes: Tensor,
    free: Tensor,
    classes: Tensor,
    choice: Choice,
    generator: Generators,
    stop: int | None = None,
) -> Tensor:
    """codes (B, K, *grid) int64 with those where `free` (B, K, *grid) bool holds drawn anew, for `classes`
    (B,) or mixtures of them (B, classes + 1), as `PriorNetwork.inputs` takes them; with the weights that are
    `prepared`, or those of the network.

    A code is drawn given all codes of the steps before its own, drawn or fixed. With `stop` only the steps
    before that one are taken. All chance is one table of uniform numbers (B, S, Q), a number for each code
    whether it is drawn or not. Raises `ValueError` for guidance where no class is given, and for what the
    prior has not learnt.
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
    copies = 2 if guided else 1
    if guided:
        if classes.ndim == 1:
            nothing = torch.full_like(classes, UNCONDITIONAL)
        else:
            nothing = torch.zeros_like(classes)
            nothing[:, -1] = 1
        classes = torch.cat([classes, nothing])
    pattern = prior.pattern
    sequence, drawn = pattern.to_sequence(codes), pattern.to_sequence(free.long()) == 1
    uniform = uniform_table(tuple(sequence.shape), generator, sequence.device)
    # Whether none, some or all examples are to get a code from a step; looked at once, not in the loop.
    some, every = drawn.any(0).tolist(), drawn.all(0).tolist()
    taken = [step for step in range(pattern.num_steps if stop is None else stop) if any(some[step])]
    if not taken:
        return codes
    first, last = taken[0], taken[-1]
    layout = pattern.layout()
    if prepared is None:
        prepared = PreparedWeights(prior)
    else:
        prepared.follow(prior)
    rows = copies * len(codes)
    with chosen_decoder(prior, prepared, rows, last + 1) as decoder:
        x = prior.inputs(sequence[:, :first].repeat(copies, 1, 1), classes)
        for step in range(first, last + 1):
            hidden = decoder.advance(x)
            for q, (book, _) in enumerate(layout[step]):
                if some[step][q]:
                    before = sequence[:, step, :q]
                    logits = decoder.logits(hidden, book, before.repeat(2, 1) if guided else before)
                    if guided:
                        cond, uncond = logits.chunk(2)
                        logits = uncond + choice.guidance(step / max(1, pattern.num_steps - 1)) * (
                            cond - uncond
                        )
                    new = draw(choice.probabilities(logits), uniform[:, step, q])
                    old = sequence[:, step, q]
                    sequence[:, step, q] = new if every[step][q] else new.where(drawn[:, step, q], old)
            latest = sequence[:, step : step + 1]
            x = prior.embed(latest.repeat(2, 1, 1) if guided else latest, step)
    return pattern.to_codes(sequence)
