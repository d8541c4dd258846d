"""The prior's network: embeddings, blocks and heads, and what a whole pass through them computes.

Left out: likelihoods and sampling (`model.py`), and the same blocks step by step (`sampling/`).
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from prior.checks import UNCONDITIONAL, require_compiler
from prior.config import PriorConfig
from prior.layers import Blocks, RMSNorm, rotary_table
from prior.patterns import Pattern
from tokenizer.hub.meta import outline_of
from tokenizer.hub.model import HubModel

MAX_PARAMETERS = 10_000_000_000


class DepthTransformer(nn.Module):
    """Hidden layers of positions and their codes → hidden layers of codebooks, each of which has seen the
    codes of those before it.

    Every codebook has a projection of its own of the position's hidden layer, as in Moshi; the blocks are
    shared, as in the RQ-Transformer.
    """

    first_row: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        books, size, dim = config.num_codebooks, config.codebook_size, config.inner_dim
        self.start = nn.Linear(config.dim, books * dim, bias=False)
        # One table for each codebook but the last, one below the other.
        self.code_embedding = nn.Embedding((books - 1) * size, dim)
        self.make_unsaved()
        self.blocks = Blocks(
            config.inner_depth, dim, config.inner_heads, config.inner_ffn_dim, config.qk_norm
        )
        self.norm = RMSNorm(dim)

    def make_unsaved(self) -> None:
        """Where the table of each codebook begins."""
        books, size = self.config.num_codebooks, self.config.codebook_size
        self.register_buffer("first_row", torch.arange(0, (books - 1) * size, size), persistent=False)

    def forward(self, hidden: Tensor, codes: Tensor, dropout: float = 0.0) -> Tensor:
        """hidden (M, dim) and codes (M, K) of M positions → last hidden layers (M, K, inner_dim)."""
        before = F.embedding(codes[:, :-1] + self.first_row, self.code_embedding.weight)
        x = rearrange(self.start(hidden), "m (k d) -> m k d", k=codes.shape[1])
        x = self.blocks(x + F.pad(before, (0, 0, 1, 0)), self.rotary(), dropout)
        y: Tensor = self.norm(x)
        return y

    def rotary(self) -> Tensor:
        """By what channels turn at each codebook, (K, channels of a head / 2, 2)."""
        config = self.config
        books = torch.arange(config.num_codebooks, device=self.first_row.device)[:, None]
        return rotary_table(books, config.inner_dim // config.inner_heads, config.rope_theta)


class PriorNetwork(HubModel):
    """A transformer over the steps of the config's pattern, each predicted from those before it."""

    model_type = "tokenloom-prior"
    config_class = PriorConfig
    config: PriorConfig
    first_row: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        if torch.get_default_device().type != "meta":
            _require_size(config)
        self.config = config
        self.pattern = Pattern(config.pattern, config.num_codebooks, config.grid)
        # One table per codebook, one below the other; the last class stands for "no class".
        self.code_embedding = nn.Embedding(config.num_codebooks * config.codebook_size, config.dim)
        self.make_unsaved()
        self.class_embedding = nn.Embedding(len(config.class_names) + 1, config.dim)
        # What a step is about to predict: RoPE only tells where its input stands.
        self.target_embedding = (
            nn.Parameter(torch.empty(self.pattern.num_steps, config.dim)) if config.target_embedding else None
        )
        self.blocks = Blocks(config.depth, config.dim, config.heads, config.ffn_dim, config.qk_norm)
        self.norm = RMSNorm(config.dim)
        self.inner = DepthTransformer(config) if config.in_turn else None
        last = config.inner_dim if config.in_turn else config.dim
        self.head = nn.Parameter(torch.empty(config.num_codebooks, config.codebook_size, last))
        self.reset_parameters()

    def make_unsaved(self) -> None:
        """Where the tables of each step's codebooks begin."""
        first_row = self.pattern.first_rows(self.config.codebook_size)
        self.register_buffer("first_row", first_row, persistent=False)

    def reset_parameters(self) -> None:
        """Small normal weights; zeros at the end of every residual branch and in the heads, so that the
        blocks of an untrained prior are identities and its codes exactly uniform."""
        for name, parameter in self.named_parameters():
            if name == "head" or name.endswith(".out.weight"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def inputs(self, sequence: Tensor, classes: Tensor) -> Tensor:
        """The first n steps (B, n, Q) and classes → inputs (B, 1 + n, dim): the class, then the codes.

        classes: labels (B,) int64, -1 for none; or of a mixture the shares (B, classes + 1), none the last.
        """
        table = self.class_embedding.weight
        if classes.is_floating_point():
            start = classes.to(table.dtype) @ table
        else:
            start = F.embedding(torch.where(classes == UNCONDITIONAL, len(table) - 1, classes), table)
        return torch.cat([start[:, None], self.embed(sequence, 0)], dim=1)

    def embed(self, sequence: Tensor, start: int) -> Tensor:
        """Codes (B, n, Q) of the steps from `start` on → embeddings (B, n, dim), summed over each step."""
        table = self.code_embedding.weight
        rows = sequence + self.first_row[start : start + sequence.shape[1]]
        if self.pattern.width == 1:
            return F.embedding(rows[:, :, 0], table)
        x = F.embedding(rows.clamp_min(0), table)
        return (x * (sequence >= 0)[..., None]).sum(dim=2)

    def hidden(self, x: Tensor, dropout: float = 0.0, order: Tensor | None = None) -> Tensor:
        """Inputs (B, n, dim) of the first n steps → last hidden layer (B, n, dim).

        With an `order` (1 or B, P) they are inputs of codes in that order: only where a step stands and what
        it predicts are not as in raster order.
        """
        targets, rotary = self.targets_and_rotary(order)
        steps = x.shape[1]
        if targets is not None:
            x = x + targets[..., :steps, :]
        if order is not None:
            rotary = rotary[:, None]  # the same for all heads
        x = self.blocks(F.dropout(x, dropout), rotary[..., :steps, :, :], dropout)
        y: Tensor = self.norm(x)
        return y

    def targets_and_rotary(self, order: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """What tells each step what it predicts, (S, dim), if anything does, and by what its channels turn,
        (S, channels of a head / 2, 2); of codes in an `order` (B, P) with an axis for B."""
        if order is None:
            return self.target_embedding, self.rotary()
        assert self.target_embedding is not None
        steps = self.pattern.steps_in(order)
        standing = F.pad(steps[:, :-1] + 1, (1, 0))
        return F.embedding(steps, self.target_embedding), self.standing()[standing]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Have torch.compile's `backend` compile the blocks at their next use, one code for all; their
        weights and names stay as they are. Raises `ValueError` for inductor without a C++ compiler on a CPU,
        or a C compiler, which triton has build its launchers, on a GPU.
        """
        if backend == "inductor":
            require_compiler(self.head.device.type, "--compile")
        for blocks in self._all_blocks():
            for block in blocks:
                block.compile(backend=backend, fullgraph=True)

    def checkpoint_activations(self) -> None:
        """Have training keep the inputs of the blocks only: less memory, and about a third more time."""
        for blocks in self._all_blocks():
            blocks.checkpointing = True

    def _all_blocks(self) -> list[Blocks]:
        return [self.blocks] if self.inner is None else [self.blocks, self.inner.blocks]

    def by_codebook(self, hidden: Tensor, codes: Tensor, dropout: float = 0.0) -> Tensor:
        """The hidden layer (B, S, dim) of all steps → what the heads read, (K, B · P, width), of every
        code of codes (B, K, *grid)."""
        if self.inner is None:
            # Each code is predicted from the step that holds it. Not by hidden[:, step]: where a step holds
            # several codes, threads would sum its gradient in any order, and no run be like another.
            step = self.pattern.step
            return rearrange(hidden.index_select(1, step.flatten()), "b (k p) d -> k (b p) d", k=len(step))
        positions = rearrange(codes, "b k ... -> (b ...) k")
        last: Tensor = self.inner(hidden.flatten(0, 1), positions, dropout)
        return rearrange(last, "m k d -> k m d")

    def rotary(self) -> Tensor:
        """By what channels turn at each step, (S, channels of a head / 2, 2)."""
        # An input stands where the step before stands, the class before all of them.
        return self.standing()[:-1]

    def standing(self) -> Tensor:
        """By what channels turn where the class stands, and where each step does, (1 + S, channels of a head
        / 2, 2)."""
        positions = self.pattern.coordinates
        if self.config.rotary == "sequence":
            positions = torch.arange(len(positions), device=positions.device)[:, None]
        coordinates = F.pad(positions, (0, 0, 1, 0), value=-1)
        return rotary_table(coordinates, self.config.dim // self.config.heads, self.config.rope_theta)


def num_parameters(config: PriorConfig) -> int:
    """Parameters of the network of `config`, counted without taking memory for them."""
    return sum(parameter.numel() for parameter in outline_of(lambda: PriorNetwork(config)).parameters())


def _require_size(config: PriorConfig) -> None:
    """`ValueError` for a network larger than any real one."""
    if (count := num_parameters(config)) > MAX_PARAMETERS:
        raise ValueError(
            f"number of parameters: expected at most {MAX_PARAMETERS:g}, got {count:g}; take a smaller dim, "
            "depth or ffn, or fewer classes"
        )
