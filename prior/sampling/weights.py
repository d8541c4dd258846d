"""A prior's weights ready for sampling: as they are, in bfloat16, or as 8-bit whole numbers.

Left out: the steps that use them (`decoder.py`, `sampling/cpu/decoder.py`, `decoder_cuda.py`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior.checks import require_compiler
from prior.layers import NORM_EPS, Block, at_least_float32
from prior.network import PriorNetwork
from prior.sampling.cpu.products import installed

Weights = Literal["full", "bf16", "int8"]
WEIGHTS: tuple[Weights, ...] = ("full", "bf16", "int8")
# Rows from which on a product is faster with the weights the other way round in memory, on a CPU. Measured at
# 512 x 2752: 16 rows in 212 instead of 588 µs, 1 row in 139 instead of 127. Products on a GPU read either.
MANY_ROWS = 3
INT8_BLOCK = 16
# Numbers of a parameter that tell whether it changed.
LOOKED_AT = 64

# x (rows, in) → (rows, out).
Matrix = Callable[[Tensor], Tensor]


class Dense:
    """A matrix (out, in) in its dtype, which is also that of the products; `many` rows or few."""

    def __init__(self, weight: Tensor, many: bool) -> None:
        self.weight = weight.T.contiguous() if many else weight.T

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x.to(self.weight.dtype), self.weight)


class Int8:
    """A matrix (out, in) of which each row is whole numbers up to 127 times a scale; products in bfloat16.

    Only the weights are rounded, as what one sequence costs is reading them (arXiv 2208.07339, section 2.1,
    has this scaling by rows).
    """

    def __init__(self, weight: Tensor) -> None:
        # The product reads rows in blocks, beyond their end if they have no whole number of them.
        self.missing = -weight.shape[1] % INT8_BLOCK
        weight = F.pad(weight, (0, self.missing))
        largest = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        # The scale as the product reads it, so that rounding fits it.
        self.scale = (largest.float() / 127).bfloat16()
        self.weight = (weight.float() / self.scale[:, None]).round().clamp(-127, 127).to(torch.int8)

    def __call__(self, x: Tensor) -> Tensor:
        x = F.pad(x.bfloat16(), (0, self.missing)) if self.missing else x.bfloat16()
        y: Tensor = torch._weight_int8pack_mm(x, self.weight, self.scale)
        return y


class Norm:
    """An RMSNorm in at least float32, in fewer operations than torch has for it on a CPU."""

    def __init__(self, *norms: nn.RMSNorm) -> None:
        (width,) = norms[0].normalized_shape
        weights = torch.stack([at_least_float32(norm.weight.detach()) for norm in norms])
        # (width,), or (norms, 1, width) for as many parts with heads.
        self.scale = (weights * math.sqrt(width)).unsqueeze(1) if len(norms) > 1 else weights[0] * width**0.5
        self.shift = weights.new_tensor(math.sqrt(width * NORM_EPS))

    def __call__(self, x: Tensor) -> Tensor:
        # √(‖x‖² + width · ε) is √width times what RMSNorm divides by.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.shift)
        return torch.div(x, length).mul_(self.scale)


class BlockWeights(NamedTuple):
    """A block's norms and matrices."""

    attention_norm: Norm
    qkv: Matrix
    qk_norm: Norm | None
    out: Matrix
    ffn_norm: Norm
    gate: Matrix
    # None: `gate` gives both, one beside the other.
    up: Matrix | None
    down: Matrix


class Stack(NamedTuple):
    """Blocks, and the norm after them."""

    layers: list[BlockWeights]
    norm: Norm


class Ready:
    """What the steps of `prior` read for `many` or few rows, each part made at its first use."""

    def __init__(self, prior: PriorNetwork, weights: Weights, many: bool) -> None:
        self.prior, self.weights, self.many = prior, weights, many

    @cached_property
    def stack(self) -> Stack:
        """The blocks."""
        return self._stack(self.prior.blocks, self.prior.norm)

    @cached_property
    def heads(self) -> list[Matrix]:
        """By codebook."""
        return [self._matrix(head) for head in self.prior.head.detach()]

    @cached_property
    def inner(self) -> tuple[Matrix, Stack]:
        """Of the depth transformer, which there must be: the projections of a position, and the blocks."""
        assert self.prior.inner is not None
        start = self._matrix(self.prior.inner.start.weight.detach())
        return start, self._stack(self.prior.inner.blocks, self.prior.inner.norm)

    def _stack(self, blocks: Iterable[nn.Module], norm: nn.RMSNorm) -> Stack:
        return Stack([self._layer(block) for block in blocks], Norm(norm))  # type: ignore[arg-type]

    def _layer(self, block: Block) -> BlockWeights:
        attention, ffn = block.attention, block.ffn
        qk_norm = None
        if attention.q_norm is not None and attention.k_norm is not None:
            qk_norm = Norm(attention.q_norm, attention.k_norm)
        linears = (attention.qkv, attention.out, ffn.gate, ffn.up, ffn.out)
        qkv, out, gate, up, down = (linear.weight.detach() for linear in linears)
        # Wide products are faster, but take a copy.
        gates = [self._matrix(weight) for weight in ([torch.cat([gate, up])] if self.many else [gate, up])]
        return BlockWeights(
            attention_norm=Norm(block.attention_norm),
            qkv=self._matrix(qkv),
            qk_norm=qk_norm,
            out=self._matrix(out),
            ffn_norm=Norm(block.ffn_norm),
            gate=gates[0],
            up=None if self.many else gates[1],
            down=self._matrix(down),
        )

    def _matrix(self, weight: Tensor) -> Matrix:
        if self.weights == "int8" and not self.many:
            return Int8(weight)
        # Products of many rows are faster in bfloat16 than with int8.
        return Dense(weight if self.weights == "full" else weight.bfloat16(), self.many)


def _many(prior: PriorNetwork, rows: int) -> bool:
    return rows >= MANY_ROWS and prior.head.device.type == "cpu"


class Weighed:
    """The weights that a network has now, to tell later whether it still has them.

    Place and version tell of most changes in place. Those that torch does not count, as by fused optimizers
    or through `.data`, are seen by `LOOKED_AT` numbers of each parameter: training changes nearly all.
    """

    def __init__(self, network: nn.Module) -> None:
        # Held, so that no other tensor can come to lie where they are.
        self.values = [parameter.detach() for parameter in network.parameters()]
        self.versions = [_version(parameter) for parameter in network.parameters()]
        self.some = _some_of(self.values)

    def are_those_of(self, network: nn.Module) -> bool:
        """Whether the network has these weights, unchanged."""
        now = list(network.parameters())
        return (
            len(now) == len(self.values)
            and all(a.data_ptr() == b.data_ptr() for a, b in zip(now, self.values, strict=True))
            and self.versions == [_version(parameter) for parameter in now]
            # One comparison, as each is waited for on a GPU.
            and torch.equal(_some_of(now), self.some)
        )


def _version(parameter: Tensor) -> int:
    """How often torch counted a change in place; it does not where it was made in inference mode."""
    return 0 if parameter.is_inference() else parameter._version


def _some_of(values: Sequence[Tensor]) -> Tensor:
    """Numbers of each tensor, evenly spread."""
    rows = [value.detach().reshape(-1) for value in values]
    return torch.cat([row[:: max(1, len(row) // LOOKED_AT)] for row in rows])


class PreparedWeights:
    """The weights of a prior ready for sampling, as they are at their first use: `full`, in `bf16`, or
    rounded to `int8` (products of many rows then take bfloat16 as well).

    With `compiled` the steps are compiled loops on a CPU (`sampling/cpu/decoder.py`) and CUDA graphs on a GPU
    (`decoder_cuda.py`). Raises `ValueError` for int8 or compiling on a device that has it not, for compiled
    loops without numba, and for CUDA graphs without a C compiler.
    """

    def __init__(self, prior: PriorNetwork, weights: Weights = "full", compiled: bool = False) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"weights: unknown {weights!r}; known: {', '.join(WEIGHTS)}")
        self.weights, self.compiled = weights, compiled
        self._require_device(prior.head.device.type)
        self._made: dict[bool, Ready] = {}
        self._made_of: Weighed | None = None
        # What the compiled steps make once and use in the next call too.
        self.kept: object = None

    def _require_device(self, device: str) -> None:
        weights, compiled = self.weights, self.compiled
        if weights == "int8" and device != "cpu":
            raise ValueError(f"weights: int8 is for CPUs, and this prior is on {device}; take bf16")
        if compiled and device not in ("cpu", "cuda"):
            raise ValueError(f"compile: is for CPUs and CUDA, and this prior is on {device}; leave it out")
        if compiled and device == "cuda":
            require_compiler(device, "compile")
        if compiled and device == "cpu" and not installed():
            raise ValueError(
                "compile: needs numba; pip install -c pipelines/configs/constraints.txt -e '.[fast]', "
                "or leave it out"
            )

    def follow(self, prior: PriorNetwork) -> None:
        """Drop what was made of other weights than those that `prior` has now. Raises `ValueError` if it has
        gone to a device that has not what was asked for."""
        if self._made_of is not None and self._made_of.are_those_of(prior):
            return
        self._require_device(prior.head.device.type)
        self._made.clear()
        self.kept = None
        self._made_of = Weighed(prior)

    def of(self, prior: PriorNetwork, rows: int) -> Ready:
        """The weights for products of so many rows."""
        many = _many(prior, rows)
        if many not in self._made:
            self._made[many] = Ready(prior, self.weights, many)
        return self._made[many]

    def tensors(self, prior: PriorNetwork, rows: int) -> list[Tensor]:
        """All tensors that the blocks read for products of so many rows."""
        ready = self.of(prior, rows)
        parts = [part for layer in ready.stack.layers for part in layer if part is not None]
        parts.append(ready.stack.norm)
        return [value for part in parts for value in vars(part).values() if isinstance(value, Tensor)]
