"""The moving average of weights, which is what is measured and saved, and the best of it so far."""

import copy
import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipelines.training.sharding import lend, sharded_like, whole_tensors
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
        """A `HubModel` with the averaged weights, in eval mode, to read from until the next step: its
        tensors are those of the average, and of the model itself where none are averaged. Every process must
        call it.

        Under FSDP it is a copy on every process, each of which measures its share of the data: in the host's
        memory as far as FSDP gathers it block by block (`lend`).
        """
        from torch.distributed.tensor import DTensor  # takes most of a second, so not with this module

        if any(isinstance(p, DTensor) for p in model.parameters()):
            # The copy's first weights must not shift the noise of layer dropout.
            with torch.random.fork_rng(devices=[]):
                whole = type(model)(model.config)
            whole.load_state_dict({**whole_tensors(model.state_dict()), **whole_tensors(self.shadow)})
            lend(whole, next(model.parameters()).device)
            return whole.eval()
        # What deepcopy takes for each tensor, so that it makes none.
        taken: dict[int, Tensor] = {id(b): b for b in model.buffers()}
        for name, p in model.named_parameters():
            taken[id(p)] = nn.Parameter(self.shadow.get(name, p.detach()), requires_grad=False)
        found = copy.deepcopy(model, taken).eval()
        for name in ("forward", "_original_forward"):  # accelerate's, which autocasts
            vars(found).pop(name, None)
        return found


def round_weights(model: nn.Module, prefix: str = "") -> None:
    """Round all weights to bfloat16 that a model saves, and whose names begin with `prefix`; they stay
    float32, in new tensors, so that what they were taken from stays as it is."""
    saved = model.state_dict()
    for path, module in model.named_modules():
        own = [(n, t) for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None]
        for name, tensor in own:
            full = f"{path}.{name}" if path else name
            if full in saved and full.startswith(prefix) and tensor.is_floating_point():
                rounded = tensor.detach().to(torch.bfloat16).to(tensor.dtype)
                is_weight = name in module._parameters
                setattr(module, name, nn.Parameter(rounded, tensor.requires_grad) if is_weight else rounded)


class Best(nn.Module):
    """The averaged weights of that evaluation at which a measure, of which less is better, was lowest; kept
    with checkpoints. `step` is 0 before the first one."""

    step: Tensor
    value: Tensor

    def __init__(self, average: WeightAverage) -> None:
        super().__init__()
        self.average = average
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("value", torch.zeros((), dtype=torch.float64))
        for name, weight in average.shadow.items():
            self.register_buffer(self._of(name), weight.clone())

    @staticmethod
    def _of(name: str) -> str:
        return f"weight/{name.replace('.', '/')}"

    @torch.no_grad()
    def offer(self, value: float, step: int) -> bool:
        """Keep the averages as they are after `step` if they are the first, or none had so low a value; a NaN
        is above all. Whether they are kept. Every process must offer the same."""
        before = float(self.value)
        lower = value < before or (math.isnan(before) and not math.isnan(value))
        if int(self.step) and not lower:
            return False
        self.value.fill_(value)
        self.step.fill_(step)
        for name, weight in self.average.shadow.items():
            self.get_buffer(self._of(name)).copy_(weight)
        return True

    @torch.no_grad()
    def put_back(self) -> None:
        """Make the kept weights the averages again."""
        for name, weight in self.average.shadow.items():
            weight.copy_(self.get_buffer(self._of(name)))
