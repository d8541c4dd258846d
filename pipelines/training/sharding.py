"""Training whose weights or optimizer states are spread over processes: FSDP2, and DeepSpeed's ZeRO 1 and 2,
both through accelerate.

Left out: Muon, which needs whole matrices; fp16; ZeRO 3 and offloading, for which there is FSDP2.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.training.options import TrainingOptions

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


@dataclass(frozen=True)
class Prepared:
    """What trains: the model and its optimizers as accelerate made them, and a context for forward passes."""

    model: nn.Module
    optimizers: list[Any]
    precision: Callable[[], AbstractContextManager[None]]


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type in SHARDED


def may_leave_steps_out(accelerator: Accelerator) -> bool:
    """Whether a step is known to be of use before it is made: DeepSpeed looks at gradients after it."""
    return bool(accelerator.distributed_type != DistributedType.DEEPSPEED)


def check_sharding(accelerator: Accelerator, options: TrainingOptions) -> None:
    """`ValueError` for options, or accelerate's settings, that do not go with sharding."""
    if not is_sharded(accelerator):
        return
    if options.optimizer == "muon":
        raise ValueError(
            "--optimizer muon needs whole matrices, which sharding cuts up; use --optimizer adamw"
        )
    if accelerator.mixed_precision == "fp16":
        raise ValueError("fp16 does not go with sharding; use --mixed-precision bf16")
    if accelerator.distributed_type == DistributedType.FSDP:
        if accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ValueError(
                "FSDP 1 joins weights into flat tensors that no checkpoint here can hold; use "
                "--fsdp_version 2, or --config_file pipelines/configs/fsdp.yaml"
            )
        return
    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    stage = zero.get("stage", 0)
    if stage not in (1, 2):
        raise ValueError(
            f"DeepSpeed's ZeRO stage is {stage}, expected 1 or 2; use --zero_stage 2, or to shard weights "
            "too FSDP (--config_file pipelines/configs/fsdp.yaml)"
        )
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device") not in (None, "none"):
            raise ValueError(f"DeepSpeed's {name} is not supported; set {name}_device to none")
    if options.skip_non_finite:
        raise ValueError(
            "--skip-non-finite cannot work with DeepSpeed, which looks at gradients after its step; use 0"
        )


def prepare(
    accelerator: Accelerator, options: TrainingOptions, net: nn.Module, optimizers: list[Optimizer]
) -> Prepared:
    """`net` and its optimizers for training with any number of processes; sharded, `net` itself is changed.

    Sharded networks keep float32 weights and buffers and compute in bf16 by autocast, as others do: weights
    cast to bf16 would take codebooks along.
    """
    if not is_sharded(accelerator):
        model, *prepared = accelerator.prepare(net, *optimizers)
        return Prepared(model, prepared, contextlib.nullcontext)
    for p in net.parameters():
        p.data = p.data.contiguous()  # both take no other order in memory
    bf16 = accelerator.mixed_precision == "bf16"
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = None
        # Every process has the same weights already.
        plugin.cpu_ram_efficient_loading = False
    else:
        parts = accelerator.num_processes * options.gradient_accumulation
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            bf16={"enabled": False},
            # Its own, as it switches off any other on CUDA. Gradients are summed in float32.
            torch_autocast={"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
            train_batch_size=options.batch_size,
            train_micro_batch_size_per_gpu=options.batch_size // parts,
            gradient_accumulation_steps=options.gradient_accumulation,
            gradient_clipping=options.clip_norm,
        )
    model, *prepared = accelerator.prepare(net, *optimizers)
    device = accelerator.device.type
    return Prepared(model, prepared, partial(torch.autocast, device, torch.bfloat16, enabled=bf16))


def whole_tensors(state: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The tensors on the CPU, gathered from all processes if FSDP sharded them (then a collective); none
    where they are not to be kept. One whole tensor at a time stands on the device."""
    from torch.distributed.tensor import DTensor  # takes most of a second, so not with this module

    whole = {}
    for name, value in state.items():
        value = value.detach()
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if keep:
            whole[name] = value.to("cpu")
    return whole


class Lent:
    """A block of a model that stays in the host's memory: its weights are on `device` during its own forward
    pass alone."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.block, self.device = block, device
        self.host: list[Tensor] = []
        # Also where the pass fails.
        hooks = (
            block.register_forward_pre_hook(self._come),
            block.register_forward_hook(self._go, always_call=True),
        )
        self.hooks = hooks

    def _come(self, block: nn.Module, inputs: Any) -> None:
        self.host = [weight.data for weight in block.parameters()]
        for weight in block.parameters():
            weight.data = weight.data.to(self.device, copy=True)

    def _go(self, block: nn.Module, inputs: Any, output: Any) -> None:
        for weight, host in zip(block.parameters(), self.host, strict=True):
            weight.data = host
        self.host = []

    def keep(self) -> None:
        """Bring the block to the device for good."""
        for hook in self.hooks:
            hook.remove()
        self.block.to(self.device)


# The blocks of a model that are lent.
_LENT: WeakKeyDictionary[nn.Module, list[Lent]] = WeakKeyDictionary()


def lend(model: nn.Module, device: torch.device) -> None:
    """Take `model` to `device`, but for the blocks that FSDP gathers one at a time: each is there during its
    own forward pass alone. What reads their weights without a pass needs `bring_whole` first."""
    names = getattr(model, "_no_split_modules", None) or ()
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    inside = {module for block in blocks for module in block.modules()}
    for module in model.modules():
        if module not in inside:
            module._apply(lambda t: t.to(device), recurse=False)
    _LENT[model] = [Lent(block, device) for block in blocks]


def bring_whole(model: nn.Module) -> None:
    """Bring the blocks of `model` that are lent, if there are any, to its device for good."""
    for lent in _LENT.pop(model, []):
        lent.keep()


def sharded_like(whole: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor as `pattern` is: on its device and, under FSDP, this process's shard of it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(pattern.device)
    if isinstance(pattern, DTensor):
        return distribute_tensor(whole, pattern.device_mesh, pattern.placements)
    return whole
