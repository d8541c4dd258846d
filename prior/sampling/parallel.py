"""Drawing several positions in a step, in random order or the likeliest first, by a prior of every order.

After n positions are known, p(codes of position p | those n) takes one more input: the latest position's
codes, told to predict p. Such inputs for several positions are branches: each sees the n inputs before and
itself, no other branch. So codes of one step are drawn independently of each other given all steps before,
and with as many steps as positions exactly as one by one. Positions that were drawn together enter the cache
in the order they were chosen in, each told the next, as the prior learnt it; those inputs and the next
branches go in one pass.

Which positions come next: by chance, or those whose codes are likeliest, with Gumbel noise that fades to
none; and ever more of them, by a cosine (MaskGIT, arXiv 2202.04200, sections 3.2 and 3.3).

Left out: one position after the other in a given order (`generate.py`), and compiled steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prior.network import PriorNetwork
from prior.orders import first_to_last
from prior.sampling.choice import draw, uniform_table
from prior.sampling.decoder import Decoder, DepthSteps
from prior.sampling.generate import Wanted, followed, guided_logits, with_guide
from prior.sampling.weights import PreparedWeights

# What becomes of a position.
KNOWN, FREE, LEFT_OUT = 0, 1, 2


def group_sizes(count: int, steps: int) -> list[int]:
    """How many of `count` positions each step draws, at least one: as many are left after it as the cosine of
    the share of the steps that is done says. Of more steps than positions only as many are taken."""
    steps, left, sizes = min(steps, count), count, []
    for step in range(1, steps + 1):
        after = math.floor(count * math.cos(math.pi / 2 * step / steps)) if step < steps else 0
        after = min(max(after, steps - step), left - 1)
        sizes.append(left - after)
        left = after
    return sizes


class Branches(Decoder):
    """Inputs of which the first are kept, in a row, and the others branch off: they see those and themselves.

    `at_once`: the most of them for each sequence.
    """

    def __init__(
        self, prior: PriorNetwork, prepared: PreparedWeights, rows: int, steps: int, at_once: int
    ) -> None:
        super().__init__(prior, prepared, rows, steps, at_once)
        self.prior, self.ready = prior, prepared.of(prior, rows * at_once)
        self.standing = torch.view_as_complex(prior.standing())[:, None, None]

    def branch(self, x: Tensor, targets: Tensor, places: Tensor, kept: int) -> Tensor:
        """Inputs (rows, n, dim), the positions (rows, n) that they are to predict, and where they stand,
        (rows, n), 0 for the class and 1 + p for position p → the last hidden layer (rows, n - kept, dim) of
        all but the `kept` first."""
        assert self.target is not None
        start, count = self.length, x.shape[1]
        x = x + F.embedding(targets, self.target)
        number = torch.arange(count, device=x.device)
        own = (number < number[:, None]) & (number < kept) | (number == number[:, None])
        seen = F.pad(own, (start, 0), value=True)
        hidden = self.through(x, self.standing[places], start, seen)[:, kept:]
        self.length += kept
        return self.norm(hidden)

    def keep(self, branch: Tensor) -> None:
        """Take one of the latest branches (rows,) into the row: it is told what came next."""
        at = (self.length + branch).view(1, 1, -1, 1, 1, 1)
        layers, both, rows, heads, _, width = self.cache.shape
        chosen = self.cache.gather(4, at.expand(layers, both, rows, heads, 1, width))
        self.cache[:, :, :, :, self.length : self.length + 1] = chosen
        self.length += 1

    def of_codebook(self, hidden: Tensor) -> "Heads":
        """What gives logits from hidden layers (rows, n, dim)."""
        flat = hidden.flatten(0, 1)
        if self.prior.inner is None:
            return Heads(self, flat, None)
        depth = DepthSteps(self.prior.inner, *self.ready.inner, len(flat), self.cache)
        depth.begin(flat)
        return Heads(self, flat, depth)


@dataclass
class Heads:
    """Logits of the codebooks of positions, given the codes that they have so far."""

    decoder: Branches
    hidden: Tensor
    depth: DepthSteps | None

    def logits(self, codebook: int, before: Tensor) -> Tensor:
        """(rows · n, N) of a codebook; `before` (rows · n, q): codes of those before it."""
        hidden = self.hidden if self.depth is None else self.depth.reach(codebook, before)
        return self.decoder.codebook_heads[codebook](hidden).to(self.decoder.cache.dtype)


@dataclass
class Alike:
    """Examples of which as many positions are known, and as many to be drawn.

    `codes` (B, P, Q) as `Pattern.to_sequence` has them, -1 where there is none yet; `drawn` (B, P, Q): which
    of them are drawn, by `uniform` (B, P, Q); `noise` (B, P) in [0, 1); `order` (B, P): those known first,
    then those to be drawn; `classes` of all sequences, as `with_guide` gives them.
    """

    codes: Tensor
    drawn: Tensor
    uniform: Tensor
    noise: Tensor
    order: Tensor
    classes: Tensor
    known: int
    count: int


def generate_parallel(
    prior: PriorNetwork,
    prepared: PreparedWeights | None,
    wanted: Wanted,
    fate: Tensor,
    order: Tensor | None = None,
) -> Tensor:
    """Draw what is wanted in the steps and the order that its choice says, or in a given `order` (1 or B, P).

    `fate` (B, P) says of each position whether it is `KNOWN`, `FREE` or `LEFT_OUT`; of a free one codes that
    are not to be drawn stay, and are seen by other positions once it is drawn. All chance is one table of
    uniform numbers, (B, P · Q + P): one for each code, then one for each position, by which it is chosen.
    Where `on_step` stops it, and in what is left out, codes are -1. Raises `ValueError` as `with_guide` does.
    """
    pattern, choice, batch = prior.pattern, wanted.choice, len(wanted.codes)
    classes = with_guide(prior, wanted.classes, choice)
    codes, drawn = pattern.to_sequence(wanted.codes), pattern.to_sequence(wanted.free.long()) == 1
    positions, width = codes.shape[1:]
    codes = codes.masked_fill(drawn, -1)
    numbers = uniform_table((batch, positions * width + positions), wanted.generator, codes.device)
    uniform, noise = numbers[:, :-positions].view(codes.shape), numbers[:, -positions:]
    if order is None:
        rank = torch.where(fate == KNOWN, torch.arange(positions, device=codes.device) - positions, 1 - noise)
        order = rank.argsort(dim=1, stable=True)
    order = first_to_last(order, fate)
    counts = (fate == FREE).sum(1)
    steps = positions if choice.steps is None else choice.steps
    sizes = {count: group_sizes(count, steps) for count in sorted(set(counts.tolist())) if count}
    total, done = sum(map(len, sizes.values())), 0
    prepared = followed(prior, prepared)
    for count, groups in sizes.items():
        some = (counts == count).nonzero()[:, 0]
        both = torch.cat([some + batch * i for i in range(len(classes) // batch)])
        of_codes = (codes[some], drawn[some], uniform[some])
        known = int((fate[some[0]] == KNOWN).sum())
        alike = Alike(*of_codes, noise[some], order[some], classes[both], known, count)
        for _ in fill(prior, prepared, alike, groups, wanted, choose=choice.order == "confidence"):
            codes[some], done = alike.codes, done + 1
            if wanted.on_step is not None and wanted.on_step(pattern.to_codes(codes), done, total):
                return pattern.to_codes(codes)
    return pattern.to_codes(codes)


def fill(
    prior: PriorNetwork,
    prepared: PreparedWeights,
    alike: Alike,
    groups: list[int],
    wanted: Wanted,
    choose: bool,
) -> Iterator[None]:
    """Draw the positions that are to be drawn, so many in each step; the likeliest first if one is to
    `choose`, else in their order."""
    codes, known, count, rows = alike.codes, alike.known, alike.count, len(alike.classes)
    copies, positions = rows // len(codes), codes.shape[1]
    decoder = Branches(prior, prepared, rows, known + count, max(groups))

    def copied(values: Tensor) -> Tensor:
        return values if copies == 1 else torch.cat([values] * copies)

    # Known positions in the order they were predicted in, and the rest.
    path, rest = alike.order[:, :known], alike.order[:, known : known + count]
    for number, size in enumerate(groups):
        looked = rest if choose else rest[:, :size]
        # Inputs from the first that is not in the cache yet to that of the branches, and where they stand.
        before = path[:, max(decoder.length - 1, 0) :]
        latest = copied(codes.gather(1, before[..., None].expand(-1, -1, codes.shape[2])))
        places = before + 1
        if decoder.length:
            x = prior.embed(latest, 0)
        else:
            x, places = prior.inputs(latest, alike.classes), F.pad(places, (1, 0))
        kept = x.shape[1] - 1
        each = torch.arange(kept + looked.shape[1], device=x.device).clamp_max(kept)
        targets = torch.cat([path[:, decoder.length :], looked], dim=1)
        hidden = decoder.branch(x[:, each], copied(targets), copied(places[:, each]), kept)
        share = path.shape[1] / max(1, positions - 1)
        new, score = _drawn(decoder, hidden, alike, looked, wanted, share, choose and size < rest.shape[1])
        if score is not None:
            noise = alike.noise.gather(1, looked).clamp_min(torch.finfo(torch.float64).tiny)
            fading = wanted.choice.choice_temperature * (1 - (number + 1) / len(groups))
            turn = (score - fading * (-noise.log()).log()).argsort(dim=1, descending=True, stable=True)
        else:
            turn = torch.arange(looked.shape[1], device=x.device).expand(len(codes), -1)
        first = turn[:, :size]
        chosen, rest = looked.gather(1, first), rest.gather(1, turn[:, size:]) if choose else rest[:, size:]
        wide = first[..., None].expand(-1, -1, codes.shape[2])
        codes.scatter_(1, chosen[..., None].expand(wide.shape), new.gather(1, wide))
        if number + 1 < len(groups):
            decoder.keep(copied(first[:, 0]))
        path = torch.cat([path, chosen], dim=1)
        yield


def _drawn(
    decoder: Branches, hidden: Tensor, alike: Alike, looked: Tensor, wanted: Wanted, share: float, judge: bool
) -> tuple[Tensor, Tensor | None]:
    """Codes (B, n, Q) of the positions (B, n) that are `looked` at, from their hidden layers (rows, n, dim),
    and if they are to `judge`, their mean log-probability (B, n) without temperature and cuts."""
    batch, count, width = len(looked), looked.shape[1], alike.codes.shape[2]
    wide = looked[..., None].expand(-1, -1, width)
    old, drawn, uniform = (
        part.gather(1, wide).flatten(0, 1) for part in (alike.codes, alike.drawn, alike.uniform)
    )
    new = torch.empty_like(old)
    score = torch.zeros(batch * count, dtype=torch.float64, device=looked.device)
    heads, copies = decoder.of_codebook(hidden), len(hidden) // batch
    for q, (book, _) in enumerate(decoder.prior.pattern.layout()[0]):
        before = new[:, :q] if copies == 1 else torch.cat([new[:, :q]] * copies)
        logits = guided_logits(heads.logits(book, before), wanted.choice, share)
        found = draw(wanted.choice.probabilities(logits), uniform[:, q])
        new[:, q] = found.where(drawn[:, q], old[:, q])
        if judge:
            likely = logits.double().log_softmax(dim=-1).gather(1, new[:, q : q + 1])[:, 0]
            score += likely.where(drawn[:, q], 0)
    if not judge:
        return new.view(batch, count, width), None
    return new.view(batch, count, width), (score / drawn.sum(1)).view(batch, count)
