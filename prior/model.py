"""`Prior`: an autoregressive transformer over codes, with classes, exact likelihoods and sampling.

Left out: the network (`network.py`), training, label dropout included (the script passes -1), and whatever
the codes stand for.
"""

import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

import torch
from einops import rearrange, reduce
from torch import Tensor

from prior.card import describe
from prior.checks import (
    Array,
    Label,
    as_codes,
    check_codes,
    check_prefix,
    check_size,
    free_codes,
    label_index,
    label_rows,
)
from prior.interop import to_llama
from prior.likelihood import Score, in_parts, nats, nats_and_entropy
from prior.network import PriorNetwork
from prior.orders import (
    check_order,
    first_to_last,
    in_order,
    in_raster,
    random_orders,
    require_any_order,
)
from prior.sampling.choice import (
    ByName,
    Choice,
    CodeOptions,
    Generators,
    SamplingOptions,
    generator_of,
)
from prior.sampling.generate import OnStep, Wanted, generate
from prior.sampling.parallel import LEFT_OUT, generate_parallel
from prior.sampling.weights import PreparedWeights, Weights

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class PriorOutput(NamedTuple):
    """`losses["nll"]`: mean nats per code, `stats["bits_per_code"]`: the same in bits, `nll` (B,): nats."""

    losses: dict[str, Tensor]
    stats: dict[str, Tensor]
    nll: Tensor


class Likelihood(NamedTuple):
    """Of every code, (B, K, *grid), in nats: `nats`, its negative log-likelihood; `entropy`, that of the
    distribution it was predicted with."""

    nats: Tensor
    entropy: Tensor


class Prior(PriorNetwork):
    """p(codes | class), one step of the config's pattern after the other."""

    # Weights for sampling, if they are to serve several calls.
    prepared: PreparedWeights | None = None
    # What FSDP gathers the weights of at a time; the name is transformers', which accelerate reads.
    _no_split_modules = ("Block",)

    def forward(self, codes: Tensor, label: Tensor | None = None, order: Tensor | None = None) -> PriorOutput:
        """codes (B, K, *grid) int64, label (B,) int64 (-1 or None: unconditional) → losses, stats and nats.

        `order` as in `nll`. Dropout acts in training mode. Raises `ValueError` for codes, labels or orders of
        wrong shape, dtype or range; in training on a GPU their range is not looked at, for which it would
        stand still.
        """
        codes = self._checked(codes)
        if not len(codes):
            raise ValueError("codes: expected 1 example or more, got 0")
        nll = self._nats(codes, label, self.config.dropout if self.training else 0.0, order)
        mean = nll.mean() / self.config.num_codes
        return PriorOutput({"nll": mean}, {"bits_per_code": mean.detach() / math.log(2)}, nll)

    @torch.no_grad()
    def nll(self, codes: Array, label: Label = None, order: Array | None = None) -> Tensor:
        """Exact negative log-likelihood in nats, (B,) float32, of codes (B, K, *grid); never with dropout.

        Codes are integers of torch or numpy, of any width; none of them give none. `label` takes all forms
        that `sample` takes. With an `order` (P,) or (B, P), which a prior of the order `any` takes, positions
        come in that order, order[i] the i-th (`prior/orders.py`). Raises `ValueError` as `forward` does.
        """
        codes = self._checked(codes)
        if not len(codes):
            return torch.zeros(len(self._classes(label, 0)), device=codes.device)
        return self._nats(codes, label, dropout=0.0, order=order)

    @torch.no_grad()
    def nll_over_orders(
        self,
        codes: Array,
        label: Label = None,
        orders: int = 8,
        generator: torch.Generator | int | None = None,
    ) -> Tensor:
        """What `nll` gives in each of so many random orders, the same ones for all examples, (orders, B).

        Each row is an exact likelihood; of a prior that has learnt every order equally well all have equal
        means. Raises `ValueError` as `nll` does, and for a prior of raster order.
        """
        require_any_order(self.config, "nll_over_orders")
        if orders < 1:
            raise ValueError(f"orders: expected 1 or more, got {orders}")
        drawn = random_orders(orders, self.config.num_positions, generator_of(generator))
        return torch.stack([self.nll(codes, label, order) for order in drawn])

    @torch.no_grad()
    def likelihood(self, codes: Array, label: Label = None, order: Array | None = None) -> Likelihood:
        """What `nll` adds up, code by code; same arguments, same errors."""
        codes = self._checked(codes)
        if not len(codes):
            return Likelihood(*torch.zeros((2, *codes.shape), device=codes.device))
        order = self._order(order, len(codes))
        values = self._score(nats_and_entropy, codes, label, 0.0, order)
        both = rearrange(values, "v k (b p) -> v b k p", b=len(codes)).view(2, *codes.shape)
        return Likelihood(*both) if order is None else Likelihood(*(in_raster(x, order) for x in both))

    @torch.no_grad()
    def label_posterior(self, codes: Array, mask: Tensor | None = None) -> Tensor:
        """How likely each class is given the codes (B, K, *grid): (B, classes), each row of sum 1.

        Bayes' rule on exact likelihoods, all classes equally likely beforehand, so a prior of classes is a
        classifier too. With a `mask` as of `inpaint`, which needs a prior of the order `any`, positions of
        which something is hidden do not count: what fills them is then best drawn with a class that the rest
        suggests. Raises `ValueError` for a prior without classes, and as `nll` and `inpaint` do.
        """
        codes, names = self._checked(codes), self.config.class_names
        if not names:
            raise ValueError("label_posterior: this prior has no classes")
        known, order = torch.ones_like(codes[:, 0], dtype=torch.bool).flatten(1), None
        if mask is not None:
            require_any_order(self.config, "mask")
            known = ~free_codes(mask, codes).any(1).flatten(1)
            order = first_to_last(torch.arange(known.shape[1], device=known.device)[None], (~known).long())
            known = known.gather(1, order)
        if not len(codes):
            return torch.zeros((0, len(names)), device=codes.device)
        found = [self._score(nats, codes, label, 0.0, order) for label in range(len(names))]
        by_position = [reduce(x, "1 k (b p) -> b p", "sum", b=len(codes)) for x in found]
        return torch.stack([-(x * known).sum(1) for x in by_position], dim=1).softmax(1)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int,
        label: Label = None,
        prefix: Array | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        cfg_scale: float = 1.0,
        generator: Generators = None,
        size: int | None = None,
        min_p: float | None = None,
        cfg_schedule: str = "constant",
        steps: int | None = None,
        order: Array | ByName | None = None,
        choice_temperature: float = 1.0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw codes (batch_size, K, *grid) int64; never with dropout. `sample_long` draws more of them.

        `label`: a class (name or number) for all, a list, array or (batch_size,) tensor of them, -1 or None
        for the unconditional class. `prefix` (batch_size or 1, K, n, *grid[1:]) fixes the first n rows or
        frames; a code is drawn given the steps before its own, so what the pattern puts later of a prefix is
        not seen.
        `temperature` 0 takes the most likely codes; `top_k`, `top_p` and `min_p` cut the tail. `cfg_scale` s
        takes uncond + s (cond - uncond) as logits (classifier-free guidance, arXiv 2207.12598); with the
        `cfg_schedule` linear or cosine s grows from 1 at the first step to `cfg_scale` at the last one. With
        `size` only the first so many rows or frames are drawn, (batch_size, K, size, *grid[1:]), equal to
        those of the whole. All chance is one table of uniform numbers, drawn before the first step from
        `generator`: one, or its seed, for all, or a list with one for each.

        A prior of the order `any` draws positions in any `order`: (P,) or (batch_size, P) of them (see
        `nll`), or one that is found while drawing: `random`, or `confidence`, which draws codes for all
        positions and keeps the likeliest, with Gumbel noise times `choice_temperature` that fades to none.
        With `steps` it draws several positions in each, few at first and then more, independently of each
        other given those before; left out, one by one. `steps` alone takes random order. A prefix comes
        before all; what `size` leaves out is never drawn.

        `on_step(codes, done, total)` is called after each step with codes of the result's shape, -1 where
        there is none yet; when it returns True no more is drawn, and these are the result. Raises
        `ValueError` for an argument out of range.
        """
        named = order if isinstance(order, str) or order is None else None
        choice = Choice(
            *(temperature, top_k, top_p, min_p, cfg_scale, cfg_schedule, steps, named, choice_temperature)
        )
        choice.check(self.config)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        classes = self._classes(label, batch_size)
        codes, rows = self._begin(prefix, batch_size)
        size = check_size(size, rows, self.config.grid[0])
        free = torch.ones_like(codes, dtype=torch.bool)
        free[:, :, :rows] = False
        if on_step is not None:
            on_step = _of_size(on_step, size)
        wanted = Wanted(codes, free, classes, choice, generator, on_step)
        given = None if isinstance(order, str) else self._order(order, batch_size)
        if given is not None or choice.in_parallel:
            fate = free.any(1).long()
            fate[:, size:] = LEFT_OUT
            return self._in_any_order(wanted, fate.flatten(1), given)[:, :, :size]
        # Up to the last step that holds one of these rows. Codes beyond them in these steps are drawn too:
        # the steps after see them.
        held = self.pattern.step.view(-1, *self.config.grid)[:, rows:size]
        stop = int(held.max()) + 1 if held.numel() else 0
        return generate(self, self.prepared, wanted, stop)[:, :, :size]

    def sample_long(
        self,
        batch_size: int,
        frames: int,
        label: Label = None,
        prefix: Array | None = None,
        overlap: int | None = None,
        generator: torch.Generator | int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """Draw codes (batch_size, K, frames, *grid[1:]) int64 of any number of frames (rows of a picture).

        The first window of grid[0] frames is drawn as `sample` does, each further one with the last `overlap`
        frames (left out: half of the window) as its prefix. This is an approximation: a window forgets all
        that lies before its prefix, and takes that for its beginning. A larger overlap forgets less and costs
        more. `prefix` (batch_size or 1, K, n, *grid[1:]), of any length up to `frames`, begins the result.
        `label` and `options` are those of `sample`, in every window.

        Each example has a stream of its own, seeded from `generator`, so that neither the number of frames
        nor the other examples change what is drawn. Raises `ValueError` for an argument out of range.
        """
        window = self.config.grid[0]
        overlap = window // 2 if overlap is None else overlap
        if not 0 <= overlap < window:
            raise ValueError(
                f"overlap: expected 0 to {window - 1} frames (the window has {window}), got {overlap}"
            )
        codes = self._begin_long(prefix, batch_size)
        if frames < max(1, codes.shape[2]):
            least = f"{codes.shape[2]} (the prefix's) or more" if codes.shape[2] else "1 or more"
            raise ValueError(f"frames: expected {least}, got {frames}")
        generator = generator_of(generator)
        source = torch.device("cpu") if generator is None else generator.device
        seeds = torch.randint(1 << 62, (batch_size,), generator=generator, device=source).tolist()
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        while codes.shape[2] < frames:
            done = codes.shape[2]
            # A prefix that leaves room in the window is seen whole.
            kept = done if done < window else overlap
            size = min(window, kept + frames - done)
            seen = codes[:, :, done - kept :]
            new = self.sample(batch_size, label, seen, generator=streams, size=size, **options)
            codes = torch.cat([codes, new[:, :, kept:]], dim=2)
        return codes

    def for_sampling(self, weights: Weights = "full", compile: bool = False) -> Self:
        """A copy whose `sample` and `inpaint` have their weights ready, for many calls.

        `weights`: `full`, as they are; `bf16`, rounded to bfloat16; `int8`, to whole numbers, which is the
        fastest for one sequence (CPUs only). The copy shares the weights of this prior: once they have
        changed (training, `load_state_dict`, `to`), its next call makes them ready anew.

        With `compile` a float32 prior's steps are compiled loops on a CPU, and codes do not depend on how
        many are drawn at once, to the bit (but for the pattern `depth`); on a GPU steps are CUDA graphs
        (torch.compile), for one thread. The first call compiles them. This is for raster order: any other,
        and several positions in a step, are drawn as without `compile`. Without, codes from `full` weights
        depend on how many are drawn by rounding only; those from others do depend on it, as torch computes
        few and many in other ways, with `int8` many in bfloat16. Raises `ValueError` for what cannot be had
        here.
        """
        ready = copy.copy(self)
        ready.prepared = PreparedWeights(self, weights, compile)
        return ready

    @torch.no_grad()
    def inpaint(
        self,
        codes: Array,
        mask: Tensor,
        label: Label = None,
        generator: Generators = None,
        on_step: OnStep | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """codes (B, K, *grid) int64 with those where `mask` holds drawn anew; never with dropout.

        `mask`: bool, (*grid), (B, *grid) or (B, K, *grid). `label`, `generator`, `on_step` and `options` are
        those of `sample`, with the same meaning and the same use of chance.

        A prior of raster order draws codes in the pattern's order, each given all before it, drawn or fixed:
        what is fixed after it is not seen, so the end of a region may not fit what follows. One of the order
        `any` sees all that is fixed, before and after: those positions come first, and then the others, in
        raster order or as `options` say. Positions of which only some codebooks are masked come with the
        others, and what is fixed of them stays. Raises `ValueError` for an argument of wrong shape, dtype or
        range, and for a mask that hides nothing.
        """
        choice = Choice(**options)
        choice.check(self.config)
        codes = self._checked(codes)
        if len(codes) < 1:
            raise ValueError("codes: expected 1 example or more, got 0")
        free = free_codes(mask, codes)
        if not bool(free.any()):
            raise ValueError("mask: expected true somewhere, where codes are to be drawn; it hides nothing")
        wanted = Wanted(codes, free, self._classes(label, len(codes)), choice, generator, on_step)
        if self.config.order == "raster":
            return generate(self, self.prepared, wanted)
        return self._in_any_order(wanted, free.any(1).long().flatten(1))

    @torch.no_grad()
    def interpolate(
        self,
        first: int | str,
        second: int | str,
        steps: int,
        generator: torch.Generator | int | None = None,
        **options: Unpack[CodeOptions],
    ) -> Tensor:
        """Codes (steps, K, *grid) int64 for classes that go evenly from `first` to `second`.

        What is mixed are the embeddings of the classes. All are drawn in raster order with the same uniform
        numbers, so that
        they differ by the class alone. `options` are those of `sample`. Raises `ValueError` for an unknown
        class or an argument out of range.
        """
        choice = Choice(**options)
        choice.check(self.config)
        if steps < 2:
            raise ValueError(f"steps: expected 2 (both classes) or more, got {steps}")
        share = torch.linspace(0, 1, steps, device=self.head.device)
        classes = share.new_zeros(steps, len(self.class_embedding.weight))
        classes[:, self.label_index(first)] += 1 - share
        classes[:, self.label_index(second)] += share
        generator = generator_of(generator)
        source = torch.device("cpu") if generator is None else generator.device
        seed = int(torch.randint(1 << 62, (), generator=generator, device=source))
        streams = [torch.Generator().manual_seed(seed) for _ in range(steps)]
        codes, _ = self._begin(None, steps)
        free = torch.ones_like(codes, dtype=torch.bool)
        return generate(self, self.prepared, Wanted(codes, free, classes, choice, streams))

    def label_index(self, label: int | str) -> int:
        """The number of a class given by name or number, -1 for "no class"; `ValueError` if it is unknown."""
        return label_index(label, self.config.class_names)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raise `ValueError` unless `fingerprint` is that of the tokenizer whose codes this prior knows."""
        expected = self.config.tokenizer_fingerprint
        if fingerprint != expected:
            raise ValueError(
                f"this prior knows codes of the tokenizer with fingerprint {expected or '(not recorded)'} "
                f"({self.config.tokenizer_id or 'id not recorded'}), but got fingerprint {fingerprint}; "
                "use that tokenizer, or train a prior on the codes of this one"
            )

    def to_transformers(self) -> "LlamaForCausalLM":
        """This prior as a model of transformers, with the same logits; see `prior.interop.to_llama`."""
        return to_llama(self)

    def card_fields(self) -> dict[str, Any]:
        """`pipeline_tag`, `tags`, `summary` and `usage` of the card."""
        return describe(self.config)

    def _checked(self, codes: Array) -> Tensor:
        """Codes (B, K, *grid) as int64; `ValueError` or `TypeError` for what is none."""
        codes = as_codes(codes, self.head.device)
        shape = (self.config.num_codebooks, *self.config.grid)
        check_codes(codes, self.config.codebook_size, shape, look=self._looks())
        return codes

    def _looks(self) -> bool:
        """Whether values are checked: not in a step of training on a GPU."""
        return not (self.training and torch.is_grad_enabled()) or self.head.device.type == "cpu"

    def _nats(self, codes: Tensor, label: Label, dropout: float, order: Array | None = None) -> Tensor:
        """Nats per example, (B,), of codes (B, K, *grid)."""
        values = self._score(nats, codes, label, dropout, self._order(order, len(codes)))
        return reduce(values, "1 k (b p) -> b", "sum", b=len(codes))

    def _score(
        self, score: Score, codes: Tensor, label: Label, dropout: float, order: Tensor | None = None
    ) -> Tensor:
        """Values (V, K, B · P) of codes (B, K, *grid), positions in `order` (1 or B, P)."""
        rows = self._classes(label, len(codes))
        if order is not None:
            codes = in_order(codes, order)
        sequence = self.pattern.to_sequence(codes)
        hidden = self.hidden(self.inputs(sequence[:, :-1], rows), dropout, order)
        hidden = self.by_codebook(hidden, codes, dropout)
        return in_parts(score, hidden, self.head, rearrange(codes, "b k ... -> k (b ...)"))

    def _in_any_order(self, wanted: Wanted, fate: Tensor, order: Tensor | None = None) -> Tensor:
        """Draw what is wanted in `order` (1 or B, P), or as its choice says, or else in raster order; what is
        `KNOWN`, as `fate` (B, P) says, comes before all."""
        if wanted.choice.in_parallel:
            return generate_parallel(self, self.prepared, wanted, fate, order)
        if order is None:
            order = torch.arange(fate.shape[1], device=fate.device)[None]
        stop = int((fate != LEFT_OUT).sum(1).max()) * self.pattern.steps_per_position
        return generate(self, self.prepared, wanted, stop, first_to_last(order, fate))

    def _order(self, order: Array | None, batch_size: int) -> Tensor | None:
        """An order in any form as (1 or batch_size, P) int64."""
        if order is None:
            return None
        return check_order(order, self.config, batch_size, self.head.device, look=self._looks())

    def _classes(self, label: Label, batch_size: int) -> Tensor:
        names, device = self.config.class_names, self.head.device
        return label_rows(label, batch_size, names, device, look=self._looks())

    def _begin_long(self, prefix: Array | None, batch_size: int) -> Tensor:
        """The codes (batch_size, K, n, *grid[1:]) before the first window, n 0 without a prefix."""
        config = self.config
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        if prefix is None:
            prefix = torch.zeros((1, config.num_codebooks, 0, *config.grid[1:]), dtype=torch.int64)
        prefix = as_codes(prefix, self.head.device, "prefix")
        # Checked here and not by the windows, which see only its end.
        length = prefix.shape[2] if prefix.ndim == len(config.grid) + 2 else 0
        shape = (config.num_codebooks, length, *config.grid[1:])
        check_prefix(prefix, config.codebook_size, shape, batch_size)
        return prefix.expand(batch_size, *shape)

    def _begin(self, prefix: Array | None, batch_size: int) -> tuple[Tensor, int]:
        """Codes (B, K, *grid), 0 but for the prefix, and the rows or frames that it fixes."""
        shape = (self.config.num_codebooks, *self.config.grid)
        codes = torch.zeros((batch_size, *shape), dtype=torch.int64, device=self.head.device)
        rows = 0
        if prefix is not None:
            prefix = as_codes(prefix, self.head.device, "prefix")
            rows = check_prefix(prefix, self.config.codebook_size, shape, batch_size)
            codes[:, :, :rows] = prefix
        return codes, rows


def _of_size(on_step: OnStep, size: int) -> OnStep:
    """`on_step`, told of the first so many rows or frames only."""
    return lambda codes, done, total: on_step(codes[:, :, :size], done, total)
