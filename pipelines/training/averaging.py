"""The moving average of weights, which is what is measured and saved."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipelines.training.sharding import sharded_like, whole_tensors
from tokenizer.hub.model import HubModel

M = TypeVar("M", bound=HubModel)


class WeightAverage:
    """Exponential moving average of a model's parameters; buffers such as codebooks are taken as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters()} if decay else {}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After optimizer step `step`. Early on the average is short, so that it forgets the initial
        weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self.shadow:
            weights = dict(model.named_parameters())
            # All in one call: on a GPU some launches, not one for each of them.
            torch._foreach_lerp_(
                [*self.shadow.values()], [weights[name].detach() for name in self.shadow], 1 - decay
            )

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor]) -> None:
        """Take over the averages of a checkpoint. `KeyError` if they are not this model's."""
        if differing := sorted(shadow.keys() ^ self.shadow.keys()):
            what = "is missing" if differing[0] in self.shadow else "is not the model's"
            raise KeyError(
                f"shadow: averaged weights of another model, tensor {differing[0]!r} {what}; give those of "
                "this model's own run"
            )
        for name, value in self.shadow.items():
            value.copy_(sharded_like(shadow[name], value))

    def averaged(self, model: M) -> M:
        """A copy of a `HubModel` with the averaged weights, whole and in eval mode. Every process must
        call it."""
        # The copy's first weights must not shift the noise of layer dropout.
        with torch.random.fork_rng(devices=[]):
            copy = type(model)(model.config)
        copy.load_state_dict({**whole_tensors(model.state_dict()), **whole_tensors(self.shadow)})
        return copy.to(next(model.parameters()).device).eval()
