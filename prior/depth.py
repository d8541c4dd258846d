"""The depth transformer of the pattern `depth`: the codes of one position in turn, given what the large
transformer says of it (RQ-Transformer, arXiv 2203.01941, section 3.2.2; Moshi, arXiv 2410.00037, section
3.4.2).

Left out: the large transformer and the heads (`network.py`), and sampling (`decoder.py`).
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from prior.config import PriorConfig
from prior.layers import Blocks, RMSNorm, rotary_table


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
        self.register_buffer("first_row", torch.arange(0, (books - 1) * size, size), persistent=False)
        self.blocks = Blocks(
            config.inner_depth, dim, config.inner_heads, config.inner_ffn_dim, config.qk_norm
        )
        self.norm = RMSNorm(dim)

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
