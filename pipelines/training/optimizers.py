"""The optimizers of training: AdamW, and Muon for the matrices inside a network with AdamW for the rest.

Left out: schedules, which are functions of the step (`setup.py`), and sharded parameters: Muon needs whole
matrices, so under FSDP choose AdamW.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


class Muon(Optimizer):
    """Momentum whose step is orthogonalised: every direction of a weight matrix moves equally far.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A convolution's weight
    counts as the matrix (out, in · kernel). torch.optim.Muon takes no convolutions and works in bfloat16 on
    CPUs too, which emulate it.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(average, group["momentum"]).flatten(1))
                # Tall matrices get larger steps, so that the output moves as far as with square ones.
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view(p.shape), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """matrix (m, n) with its singular values brought near 1 by a quintic Newton-Schulz iteration.

    The coefficients are those of Jordan et al. 2024: they trade an exact 1 for speed (values end in 0.7 to
    1.2). As there, GPUs iterate in bfloat16, many times faster than in float32, if they have it.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    half = matrix.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    x = matrix.to(torch.bfloat16 if half else torch.promote_types(matrix.dtype, torch.float32))
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = (x.T if tall else x).to(matrix.dtype)
    return found


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay falls on a parameter: on matrices, but neither on the gains of weight
    normalisation nor on codebooks, whose entries belong where their vectors are."""
    return parameter.ndim > 1 and not name.endswith(".weight.original0") and "codebook." not in name


def build_optimizers(
    model: nn.Module,
    kind: str,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.99),
) -> list[Optimizer]:
    """AdamW over everything (`adamw`), or Muon over hidden matrices and AdamW over the rest (`muon`).

    Hidden are weights of convolutions and linear maps between at least 24 channels, which leaves layers
    that touch pixels or codes, embeddings, gains and biases to AdamW, as Jordan et al. advise. Weight
    decay falls on matrices alone.
    """
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    hidden = {n for n, m in layers.items() if min(m.weight.shape[:2]) >= 24}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    muon = {n: p for n, p in trained.items() if kind == "muon" and n in hidden}
    rest = {n: p for n, p in trained.items() if n not in muon}
    groups = [
        {"params": [p for n, p in rest.items() if decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in rest.items() if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [
        AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=True)
    ]
    if muon:
        optimizers.append(Muon(muon.values(), lr=muon_learning_rate, weight_decay=weight_decay))
    return optimizers
