"""Nats of codes from hidden layers, in parts, so that no more logits are held than those of one part.

Left out: where the hidden layers come from (`network.py`), and sums over examples (`model.py`).
"""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prior.layers import at_least_float32

# Logits that are held at once: 16 MiB in float32 on a CPU, whose caches they fit, and 256 MiB on a GPU, to
# which many small products would be a call each.
MOST_LOGITS, MOST_ON_GPU = 1 << 22, 1 << 26

# Hidden layers (K, M, width), heads (K, N, width), targets (K, M) → values (V, K, M).
Score = Callable[[Tensor, Tensor, Tensor], Tensor]


def nats(hidden: Tensor, heads: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, (1, K, M), of targets (K, M) int64.

    hidden: (K, M, width); heads: (K, N, width), a head for each codebook.
    """
    logits = at_least_float32(hidden @ heads.mT)
    found = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return found.view(1, *targets.shape)


def nats_and_entropy(hidden: Tensor, heads: Tensor, targets: Tensor) -> Tensor:
    """What `nats` gives, and the entropy in nats of the distribution that predicts each target, (2, K, M)."""
    logprobs = at_least_float32(hidden @ heads.mT).log_softmax(dim=-1)
    found = -logprobs.gather(-1, targets[..., None])[..., 0]
    return torch.stack([found, -(logprobs.exp() * logprobs).sum(dim=-1)])


def in_parts(score: Score, hidden: Tensor, heads: Tensor, targets: Tensor) -> Tensor:
    """`score` in parts of one codebook and so many rows as may be held at once; all at once if they may.

    With gradients the logits of a part are computed once more in the backward pass.
    """
    books, rows, size = len(heads), hidden.shape[1], heads.shape[1]
    most = MOST_LOGITS if hidden.device.type == "cpu" else MOST_ON_GPU
    if books * rows * size <= most:
        return score(hidden, heads, targets)
    count = max(1, most // size)
    cuts = tuple(range(count, rows, count))
    run = partial(checkpoint, score, use_reentrant=False) if torch.is_grad_enabled() else score
    # Split, not sliced: the gradients of all parts are then joined once.
    by_book = [x.tensor_split(books) for x in (hidden, heads, targets)]
    found = [
        run(part, head, target)
        for book, head, of_book in zip(*by_book, strict=True)
        for part, target in zip(book.tensor_split(cuts, 1), of_book.tensor_split(cuts, 1), strict=True)
    ]
    return rearrange(torch.cat(found, dim=2), "v 1 (k m) -> v k m", k=books)
