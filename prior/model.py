"""`Prior`: an autoregressive transformer over codes, with classes, exact likelihoods and sampling.

Left out: training, label dropout included (the script passes -1), and whatever the codes stand for.
"""

import math
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from prior.card import describe
from prior.config import PriorConfig
from prior.inputs import UNCONDITIONAL, Label, check_codes, check_prefix, label_index, label_rows
from prior.layers import Block, KeyValueCache, at_least_float32, rotary_table
from prior.patterns import Pattern
from prior.sampling import Generators, check_options, draw, probabilities, uniform_table
from tokenizer.hub import HubModel


class PriorOutput(NamedTuple):
    """`losses["nll"]`: mean nats per code, `stats["bits_per_code"]`: the same in bits, `nll` (B,): nats."""

    losses: dict[str, Tensor]
    stats: dict[str, Tensor]
    nll: Tensor


class Prior(HubModel):
    """p(codes | class), one step of the config's pattern after the other."""

    model_type = "tokenloom-prior"
    config_class = PriorConfig
    config: PriorConfig

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = Pattern(config.pattern, config.num_codebooks, config.grid)
        # One table per codebook, one below the other; the last class stands for "no class".
        self.code_embedding = nn.Embedding(config.num_codebooks * config.codebook_size, config.dim)
        self.class_embedding = nn.Embedding(len(config.class_names) + 1, config.dim)
        # What a step is about to predict: RoPE only tells where its input stands.
        self.target_embedding = nn.Parameter(torch.empty(self.pattern.num_steps, config.dim))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.ffn_dim) for _ in range(config.depth)
        )
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.head = nn.Parameter(torch.empty(config.num_codebooks, config.codebook_size, config.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal weights; zeros at the end of every residual branch and in the heads, so that the
        blocks of an untrained prior are identities and its codes exactly uniform."""
        for name, parameter in self.named_parameters():
            if name == "head" or name.endswith(".out.weight"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, codes: Tensor, label: Tensor | None = None) -> PriorOutput:
        """codes (B, K, *grid) int64, label (B,) int64 (-1 or None: unconditional) → losses, stats and nats.

        Dropout acts in training mode. Raises `ValueError` for codes or labels of wrong shape, dtype or range.
        """
        nll = self._nats(codes, label, self.config.dropout if self.training else 0.0)
        mean = nll.mean() / self.config.num_codes
        return PriorOutput({"nll": mean}, {"bits_per_code": mean.detach() / math.log(2)}, nll)

    @torch.no_grad()
    def nll(self, codes: Tensor, label: Label = None) -> Tensor:
        """Exact negative log-likelihood in nats, (B,) float32, of codes (B, K, *grid); never with dropout.

        `label` takes all forms that `sample` takes. Raises `ValueError` as `forward` does.
        """
        return self._nats(codes, label, dropout=0.0)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int,
        label: Label = None,
        prefix: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        cfg_scale: float = 1.0,
        generator: Generators = None,
        size: int | None = None,
    ) -> Tensor:
        """Draw codes (batch_size, K, *grid) int64; never with dropout.

        `label`: a class (name or number) for all, a list or (batch_size,) tensor of them, -1 or None for the
        unconditional class. `prefix` (batch_size or 1, K, n, *grid[1:]) fixes the first n rows or frames; a
        code is drawn given the steps before its own, so what the pattern puts later of a prefix is not seen.
        `temperature` 0 takes the most likely codes, `top_k` and `top_p` cut the tail. `cfg_scale` s takes
        uncond + s (cond - uncond) as logits (classifier-free guidance, arXiv 2207.12598). With `size` only
        the first so many rows or frames are drawn, (batch_size, K, size, *grid[1:]), equal to those of the
        whole. All chance is one table of uniform numbers, drawn before the first step from `generator`: one
        for all, or a list with one for each. Raises `ValueError` for an argument out of range.
        """
        config, pattern = self.config, self.pattern
        check_options(config.codebook_size, temperature, top_k, top_p, cfg_scale)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        classes = label_rows(label, batch_size, config.class_names, self.head.device)
        guided = cfg_scale != 1
        if guided and bool((classes == UNCONDITIONAL).all()):
            raise ValueError(
                f"cfg_scale={cfg_scale} needs a label to guide towards; give one, or cfg_scale=1"
            )
        copies = 2 if guided else 1
        if guided:
            classes = torch.cat([classes, torch.full_like(classes, UNCONDITIONAL)])
        sequence, known, steps = self._begin(prefix, batch_size, size)
        uniform = uniform_table(tuple(sequence.shape), generator, sequence.device)
        layout = pattern.layout()
        caches = [KeyValueCache(steps.stop) for _ in self.blocks]
        x = self._inputs(sequence[:, : steps.start].repeat(copies, 1, 1), classes)
        for step in steps:
            hidden = self._hidden(x, caches=caches)[:, -1]
            for q, (book, position) in enumerate(layout[step]):
                if position >= known:  # neither of the prefix nor a gap (-1)
                    logits = at_least_float32(F.linear(hidden, self.head[book]))
                    if guided:
                        cond, uncond = logits.chunk(2)
                        logits = uncond + cfg_scale * (cond - uncond)
                    probs = probabilities(logits, temperature, top_k, top_p)
                    sequence[:, step, q] = draw(probs, uniform[:, step, q])
            x = self._embed(sequence[:, step : step + 1].repeat(copies, 1, 1), step)
        return pattern.to_codes(sequence)[:, :, :size]

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

    def card_fields(self) -> dict[str, Any]:
        """`pipeline_tag`, `tags`, `summary` and `usage` of the card."""
        return describe(self.config)

    def _nats(self, codes: Tensor, label: Label, dropout: float) -> Tensor:
        """Nats per example, (B,), of codes (B, K, *grid)."""
        config = self.config
        check_codes(codes, config.codebook_size, (config.num_codebooks, *config.grid))
        rows = label_rows(label, len(codes), config.class_names, self.head.device)
        sequence = self.pattern.to_sequence(codes)
        hidden = self._hidden(self._inputs(sequence[:, :-1], rows), dropout)
        # Each code is predicted by its codebook's head from the step that holds it.
        hidden = rearrange(hidden[:, self.pattern.step], "b k p d -> k (b p) d")
        logits = rearrange(hidden @ self.head.mT, "k bp n -> (k bp) n")
        targets = rearrange(codes, "b k ... -> (k b ...)")
        nats = F.cross_entropy(at_least_float32(logits), targets, reduction="none")
        return reduce(nats, "(k b p) -> b", "sum", k=config.num_codebooks, b=len(codes))

    def _inputs(self, sequence: Tensor, rows: Tensor) -> Tensor:
        """The first n steps (B, n, Q) and labels (B,) → inputs (B, 1 + n, dim): the class, then the codes."""
        start = self.class_embedding(torch.where(rows == UNCONDITIONAL, len(self.config.class_names), rows))
        return torch.cat([start[:, None], self._embed(sequence, 0)], dim=1)

    def _embed(self, sequence: Tensor, start: int) -> Tensor:
        """Codes (B, n, Q) of the steps from `start` on → embeddings (B, n, dim), summed over each step."""
        book = self.pattern.codebook[start : start + sequence.shape[1]]
        x: Tensor = self.code_embedding((book * self.config.codebook_size + sequence).clamp_min(0))
        if self.pattern.width == 1:
            return x.squeeze(2)
        return (x * (sequence >= 0)[..., None]).sum(dim=2)

    def _hidden(self, x: Tensor, dropout: float = 0.0, caches: list[KeyValueCache] | None = None) -> Tensor:
        """Inputs (B, n, dim), following those in `caches` if given → last hidden layer (B, n, dim)."""
        start = caches[0].length if caches else 0
        # An input stands where the step before stands, the class before all of them.
        coordinates = F.pad(self.pattern.coordinates[:-1], (0, 0, 1, 0), value=-1)
        table = rotary_table(coordinates, self.config.dim // self.config.heads, self.config.rope_theta)
        steps = slice(start, start + x.shape[1])
        x = F.dropout(x + self.target_embedding[steps], dropout)
        for i, block in enumerate(self.blocks):
            x = block(x, table[steps], dropout, caches[i] if caches else None)
        y: Tensor = self.norm(x)
        return y

    def _begin(self, prefix: Tensor | None, batch_size: int, size: int | None) -> tuple[Tensor, int, range]:
        """The sequence (B, S, Q) with the prefix's codes filled in (0 elsewhere, -1 in gaps), the number of
        positions, in raster order, that the prefix fixes, and the steps after which `size` rows are there."""
        config, device = self.config, self.head.device
        shape = (config.num_codebooks, *config.grid)
        codes = torch.zeros((batch_size, *shape), dtype=torch.int64, device=device)
        rows = 0
        if prefix is not None:
            rows = check_prefix(prefix, config.codebook_size, shape, batch_size)
            codes[:, :, :rows] = prefix.to(device)
        if size is None:
            size = config.grid[0]
        elif not max(rows, 1) <= size <= config.grid[0]:
            least = f"{max(rows, 1)} (the prefix's)" if rows > 1 else "1"
            raise ValueError(f"size: expected {least} to {config.grid[0]} rows or frames, got {size}")
        known, wanted = (n * math.prod(config.grid[1:]) for n in (rows, size))
        if known == wanted:
            return self.pattern.to_sequence(codes), known, range(0)
        # From the first step that holds a code to draw. Codes beyond `size` in these steps are drawn too:
        # the steps after see them.
        step = self.pattern.step[:, known:]
        steps = range(int(step.min()), int(step[:, : wanted - known].max()) + 1)
        return self.pattern.to_sequence(codes), known, steps
