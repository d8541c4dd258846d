"""A prior's matrices as the compiled loops read them: in panels of as many outputs as a tile has, the weights
of each input beside each other.

Left out: the loops (`kernels.py`), and the forms that torch's products take (`sampling/weights.py`).
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from prior.layers import Block
from prior.network import PriorNetwork
from prior.sampling.cpu.products import VECTORS, lanes
from prior.sampling.weights import Int8, Norm, Weights


class Panels:
    """A matrix (out, in) as `numbers` (panels, in, outputs of a panel), whose last outputs may be zeros."""

    def __init__(self, weight: Tensor, form: Weights) -> None:
        self.inputs, panel = weight.shape[1], VECTORS * lanes()
        missing = -len(weight) % panel
        # By outputs, float32; empty for none.
        self.scale = torch.empty(0)
        if form == "int8":
            rounded = Int8(weight)
            self.scale = F.pad(rounded.scale.float(), (0, missing))
            weight = rounded.weight[:, : self.inputs]
        elif form == "bf16":
            weight = weight.bfloat16()
        parts = F.pad(weight, (0, 0, 0, missing))
        self.numbers = rearrange(parts, "(panels out) k -> panels k out", out=panel).contiguous()
        self.outputs = len(parts)


class PackedPrior:
    """All matrices of `prior` in panels of the form, block by block: of each head its queries, keys and
    values, then out, gate, up and down; at the end the heads of the codebooks, where no depth transformer has
    them.

    And of its norms: `norms` (2 depth + 1, dim), the scales of those of the blocks and after them;
    `head_norms` (depth, 2, width), those of queries and keys, or (0, 2, width); `shifts` of both kinds.
    """

    def __init__(self, prior: PriorNetwork, form: Weights) -> None:
        config = prior.config
        self.matrices: list[Panels] = []
        norms, of_heads = [], []
        for block in prior.blocks:
            assert isinstance(block, Block)
            attention, ffn = block.attention, block.ffn
            # Every head in panels of its own, as one thread takes it.
            by_head = rearrange(attention.qkv.weight.detach(), "(p h w) k -> h (p w) k", p=3, h=config.heads)
            missing = -by_head.shape[1] % (VECTORS * lanes())
            self.matrices.append(Panels(F.pad(by_head, (0, 0, 0, missing)).flatten(0, 1), form))
            for linear in (attention.out, ffn.gate, ffn.up, ffn.out):
                self.matrices.append(Panels(linear.weight.detach(), form))
            norms += [Norm(block.attention_norm), Norm(block.ffn_norm)]
            if attention.q_norm is not None and attention.k_norm is not None:
                of_heads.append(Norm(attention.q_norm, attention.k_norm))
        if prior.inner is None:
            self.matrices += [Panels(head, form) for head in prior.head.detach()]
        norms.append(Norm(prior.norm))
        self.norms = torch.stack([norm.scale for norm in norms])
        width = config.dim // config.heads
        self.head_norms = torch.empty(0, 2, width)
        if of_heads:
            self.head_norms = torch.stack([norm.scale[:, 0] for norm in of_heads])
        self.shifts = torch.stack([norm.shift for norm in (norms[-1], *of_heads[:1])])
        # Where the loops find them.
        self.addresses = torch.tensor([matrix.numbers.data_ptr() for matrix in self.matrices])
        self.scales = torch.tensor([matrix.scale.data_ptr() for matrix in self.matrices])
        self.panels = torch.tensor([len(matrix.numbers) for matrix in self.matrices])
