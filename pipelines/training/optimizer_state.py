"""States of optimizers as whole tensors by name, whichever processes hold them, and back: what a checkpoint
holds must be what they take.

Left out: learning rates, which follow from the step, and the checkpoint's other files (`checkpoints.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import Tensor
from torch.optim import AdamW, Optimizer

from pipelines.training.optimizers import Muon
from pipelines.training.sharding import sharded_like
from tokenizer.hub.files import load_tensors

# What they keep of a parameter, in its shape; AdamW its number of steps too, a scalar.
KEPT: dict[type[Optimizer], tuple[str, ...]] = {AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}
STEP = "step"
# What ZeRO, which works with AdamW alone, cuts up.
MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer_tensors(optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All parameters' states as tensors named `optimizer.parameter.name`. Every process must call it."""
    return {
        f"{i}.{p}.{name}": torch.as_tensor(value)
        for i, optimizer in enumerate(optimizers)
        for p, values in _states(optimizer).items()
        for name, value in values.items()
    }


def load_optimizers(optimizers: list[Optimizer], path: Path) -> None:
    """Take over the states of a checkpoint's file, the model's weights being loaded. `ValueError` for those
    of other parameters."""
    tensors = load_tensors(path, _expected(optimizers), partly=True)
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        params = _parameters(optimizer)
        for p in range(len(params)):
            held = {name: tensors.get(f"{i}.{p}.{name}") for name in _kept(optimizer)}
            found = {name: value for name, value in held.items() if value is not None}
            if found and len(found) < len(held):
                raise ValueError(f"{path}: the state of parameter {p} of optimizer {i} is incomplete")
            if STEP in found and float(found[STEP]) < 0:
                raise ValueError(
                    f"{path}: parameter {p} of optimizer {i} has taken {float(found[STEP])} steps"
                )
            if found:
                state[p] = found
        # Every parameter has stepped, or none has.
        if len(state) not in (0, len(params)):
            raise ValueError(f"{path}: the state of optimizer {i} is incomplete")
        if isinstance(optimizer, DeepSpeedOptimizerWrapper):
            _load_zero(optimizer.optimizer, params, state)
            continue
        for p, found in state.items():
            # In copies: the file is mapped, and may be overwritten.
            state[p] = {n: v.clone() if n == STEP else _as(v, params[p]) for n, v in found.items()}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _as(value: Tensor, param: Tensor) -> Tensor:
    """In the parameter's order in memory too, which fused optimizers take for granted."""
    return torch.empty_like(param, dtype=value.dtype).copy_(sharded_like(value, param))


def _expected(optimizers: list[Optimizer]) -> Mapping[str, Tensor]:
    return {
        f"{i}.{p}.{name}": torch.zeros(()) if name == STEP else param
        for i, optimizer in enumerate(optimizers)
        for p, param in enumerate(_parameters(optimizer))
        for name in _kept(optimizer)
    }


def _parameters(optimizer: Any) -> list[Tensor]:
    if isinstance(optimizer, DeepSpeedOptimizerWrapper):
        return [p for group in optimizer.optimizer.bit16_groups for p in group]
    return [p for group in optimizer.param_groups for p in group["params"]]


def _kept(optimizer: Optimizer) -> tuple[str, ...]:
    """`accelerate` wraps optimizers in its own, and ZeRO them in another."""
    while type(optimizer) not in KEPT:
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return KEPT[type(optimizer)]


def _states(optimizer: Any) -> dict[int, dict[str, Any]]:
    if not isinstance(optimizer, DeepSpeedOptimizerWrapper):
        states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
        return states
    from deepspeed.utils import safe_get_full_optimizer_state

    # ZeRO steps flat tensors, each a part of a group of weights, all of them at the same time.
    steps = [state[STEP] for state in optimizer.optimizer.optimizer.state.values()]
    if not steps:
        return {}
    _link(optimizer.optimizer)
    return {
        p: {STEP: steps[0], **{name: safe_get_full_optimizer_state(param, name) for name in MOMENTS}}
        for p, param in enumerate(_parameters(optimizer))
    }


def _load_zero(zero: Any, params: list[Tensor], state: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Give ZeRO's flat tensors their parts of whole states, and of the weights that the model has loaded."""
    from deepspeed.utils import safe_set_full_optimizer_state

    zero.refresh_fp32_params()
    if not state:
        return
    for flat in zero.single_partition_of_fp32_groups:
        zeros = {name: torch.zeros_like(flat) for name in MOMENTS}
        zero.optimizer.state[flat] = {STEP: state[0][STEP].clone(), **zeros}
    _link(zero)
    for p, param in enumerate(params):
        for name in MOMENTS:
            safe_set_full_optimizer_state(param, state[p][name].to(param.device), name)


def _link(zero: Any) -> None:
    """Tell the weights where in ZeRO's flat tensors their states lie; ZeRO itself does so after the first
    group has stepped, when the other groups have no states yet."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        lazy_init_hp_params_optimizer_state(group, flat, zero.optimizer.state)
