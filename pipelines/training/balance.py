"""Losses of one output brought to shares of its gradient, whatever their sizes are (Défossez et al. 2022,
arXiv 2210.13438, section 3.4, equation 4).

Left out: losses that do not act through the output, such as those of a bottleneck.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tokenizer.devices import send
from tokenizer.distributed import all_reduce_sum, world_size

# Decay of the moving averages of the gradients' norms (section 3.4).
DECAY = 0.999


class Balance(nn.Module):
    """Gives each loss, by name, its share of the gradient of x_hat: its weight over the sum of those that
    act.

    The averages of norms are of all processes, and are saved with a checkpoint.
    """

    norms: Tensor
    counts: Tensor

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        # By name: the average of the norm of an example's gradient, and what its beginning at 0 leaves of it.
        self.register_buffer("norms", torch.zeros(len(self.weights)))
        self.register_buffer("counts", torch.zeros(len(self.weights)))

    def forward(self, losses: Mapping[str, Tensor], x_hat: Tensor) -> Tensor:
        """losses: scalars, means over the examples of x_hat (B, ...) → a scalar whose gradient of x_hat is
        the balanced one: for an example about 1 / B long if all losses pull alike. Every process must call
        it."""
        names = [name for name in self.weights if name in losses]
        found = [torch.autograd.grad(losses[name], x_hat, retain_graph=True)[0] for name in names]
        grads = torch.stack(found) * len(x_hat)  # (losses, B, ...), each of its own example's loss
        norms = all_reduce_sum(grads.flatten(2).norm(dim=2).mean(1)) / world_size()
        where = send(torch.tensor([list(self.weights).index(name) for name in names]), norms.device)
        norms = self._averaged(where, norms.to(self.norms))
        weights = send(torch.tensor([self.weights[name] for name in names]), norms.device)
        shares = weights / weights.sum() / norms.clamp(min=1e-12)
        total = torch.tensordot(shares.to(grads), grads, dims=1)
        balanced: Tensor = (x_hat * total).sum() / len(x_hat)
        return balanced

    @torch.no_grad()
    def _averaged(self, where: Tensor, norms: Tensor) -> Tensor:
        """The averages of the losses `where` after taking in these norms; those that are not finite do not
        count."""
        finite = torch.isfinite(norms)
        old, count = self.norms[where], self.counts[where]
        self.norms[where] = torch.where(finite, DECAY * old + (1 - DECAY) * norms, old)
        self.counts[where] = torch.where(finite, DECAY * count + (1 - DECAY), count)
        return self.norms[where] / self.counts[where].clamp(min=1e-12)
