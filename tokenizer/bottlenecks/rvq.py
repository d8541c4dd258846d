"""Residual quantisation: stages that each quantise what the stages before left over, one code per stage.

Left out: the quantiser of a stage, which is any bottleneck with one codebook, and entropy coding.
"""

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokenizer.bottlenecks import MAX_PARTS, BottleneckConfig, Bottlenecked
from tokenizer.bottlenecks.parts.estimators import straight_through
from tokenizer.bottlenecks.parts.several import Several
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.devices import send
from tokenizer.distributed import Step
from tokenizer.variants import require, training_only


@dataclass(frozen=True)
class RVQConfig(BottleneckConfig, kind="rvq"):
    """Several codebooks in a row, each for what those before left over; fewer are a lower bitrate."""

    num_codebooks: int = 6
    """Stages K."""
    stage: BottleneckConfig = field(
        default_factory=lambda: VQConfig(codebook_size=1024, dim=64, kmeans_steps=4)
    )
    """The quantizer of every stage: any bottleneck with one codebook, and as many channels in as out."""
    dropout: float = training_only(0.5)
    """Share of training examples that use a random number of stages, 1 to K, so that one model serves every
    bitrate (Kumar et al. 2023, arXiv 2306.06546, section 3.2)."""

    def __post_init__(self) -> None:
        require(1 <= self.num_codebooks <= 256, f"num_codebooks is {self.num_codebooks}, expected 1 to 256")
        require(0 <= self.dropout <= 1, f"dropout is {self.dropout}, expected 0 to 1")
        require(
            not isinstance(self.stage, RVQConfig), "stage is rvq itself; choose one with a single codebook"
        )
        require(self.parts <= MAX_PARTS, f"{self.parts} quantizers in all, expected at most {MAX_PARTS}")

    @property
    def parts(self) -> int:
        return self.num_codebooks * self.stage.parts

    @property
    def start_steps(self) -> int:
        return self.num_codebooks * self.stage.start_steps

    def starting_within(self, steps: int) -> Self:
        return replace(self, stage=self.stage.starting_within(steps // self.num_codebooks))

    def build(self) -> "RVQ":
        return RVQ(self)


class RVQ(Several):
    """z_q = Σ_k q_k(r_k), r_1 = z, r_{k+1} = r_k − q_k(r_k) (Zeghidour et al. 2021, arXiv 2107.03312,
    algorithm 1)."""

    members: ClassVar[str] = "stages"
    prefix_decodes = True

    def __init__(self, config: RVQConfig) -> None:
        super().__init__(config.stage, config.num_codebooks)
        self.config = config
        first = next(self.each())
        if first.num_codebooks != 1 or first.in_dim != first.out_dim:
            raise ValueError(
                f"stage {config.stage.kind}: rvq needs one codebook and as many channels in as out, got "
                f"{first.num_codebooks}, {first.in_dim} and {first.out_dim}"
            )
        self.in_dim, self.out_dim = first.in_dim, first.out_dim
        self.identity_gradient = first.identity_gradient
        # What a stage gives decides the codes of those after it, so only its statistics do not count.
        last = config.num_codebooks - 1
        ignored = [s.not_coding if k == last else s.statistics for k, s in enumerate(self.each())]
        self.not_coding = self.names_of_members(ignored)
        self.statistics = self.names_of_members([s.statistics for s in self.each()])

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        residual = z.to(torch.promote_types(z.dtype, torch.float32))
        used = self._stages_used(z, step, vary=self.training)
        # Stages that weigh or bend z learn to through the residuals of all that follow (Kumar et al. 2023).
        # Others give q(r) the gradient of r, so the residuals would have none: the commitment of later stages
        # reaches z only if the q before them count as constants.
        learn = not self.identity_gradient
        z_q, codes, outs, waiting = torch.zeros_like(residual), [], [], False
        for k, stage in enumerate(self.each()):
            # Asked before the stage runs, whose last accumulation pass may start it.
            waiting = self.training and not stage.ready
            out = stage(residual, step)
            outs.append(out)
            codes.append(out.codes)
            if waiting:
                break  # it still passes its input through, which leaves nothing to the stages after it
            q = out.z_q if learn else out.z_q.detach()
            z_q = z_q + torch.where(used > k, q, 0.0)
            residual = residual - q
        if not learn:
            z_q = straight_through(z, z_q)  # once for all stages
        if waiting:
            # Until the last stage has started, z goes unquantized to the decoder. Every parameter takes part,
            # with a gradient of zero: DDP would wait for those that do not.
            z_q = z.to(z_q.dtype) + 0 * sum(p.sum() for p in self.parameters())
            codes += [torch.zeros_like(codes[0])] * (self.num_codebooks - len(codes))
        losses, stats = self.merged(outs)
        return Bottlenecked(z_q, torch.cat(codes, dim=1), losses, stats)

    def encode(self, z: Tensor) -> Tensor:
        return self.encode_first(z, self.num_codebooks)

    def encode_first(self, z: Tensor, count: int) -> Tensor:
        residual = z.to(torch.promote_types(z.dtype, torch.float32))
        codes: list[Tensor] = []
        for stage in islice(self.each(), count):
            codes.append(stage.encode(residual))
            if len(codes) < count:
                residual = residual - stage.decode(codes[-1]).to(residual.dtype)
        return torch.cat(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes: (B, k, *grid) of the first k stages, 1 ≤ k ≤ K → z_q: (B, dim, *grid)."""
        stages = zip(self.each(), torch.split(codes, 1, dim=1), strict=False)
        z_q: Tensor = sum(stage.decode(c) for stage, c in stages)  # type: ignore[assignment]
        return z_q

    @torch.no_grad()
    def frozen(self, z: Tensor, step: Step | None = None) -> Tensor:
        """With quantizer dropout as in training, so that the decoder learns to serve every bitrate."""
        used = self._stages_used(z, step, vary=True)
        parts = zip(self.each(), torch.split(self.encode(z), 1, dim=1), strict=True)
        z_q: Tensor = sum(  # type: ignore[assignment]
            torch.where(used > k, stage.decode(codes), 0.0) for k, (stage, codes) in enumerate(parts)
        )
        return z_q

    def _stages_used(self, z: Tensor, step: Step | None, vary: bool) -> Tensor:
        """How many stages each example uses, (B, 1, ...): all but where quantizer dropout takes some away."""
        count = torch.full((len(z),), self.num_codebooks)
        if vary and self.config.dropout > 0:
            u = (
                torch.rand(len(z), dtype=torch.float64)
                if step is None
                else step.uniform(len(z), "quantizers")
            )
            # One uniform number says both whether (u < dropout) and, where so, how many.
            fewer = 1 + (u / self.config.dropout * self.num_codebooks).long().clamp(
                max=self.num_codebooks - 1
            )
            count = torch.where(u < self.config.dropout, fewer, count)
        return send(count, z.device).view(-1, *(1,) * (z.ndim - 1))

    @torch.no_grad()
    def gaps(self, z: Tensor, codes: Tensor) -> Tensor:
        residual, found = z.to(torch.promote_types(z.dtype, torch.float32)), []
        for stage, chosen in zip(self.each(), torch.split(codes, 1, dim=1), strict=True):
            found.append(stage.gaps(residual, chosen))
            residual = residual - stage.decode(chosen).to(residual.dtype)
        return torch.cat(found, dim=1)

    def compared(self, z: Tensor) -> Tensor | None:
        residual, seen = z.to(torch.promote_types(z.dtype, torch.float32)), []
        for stage in self.each():
            seen.append(stage.compared(residual))
            residual = residual - stage.decode(stage.encode(residual)).to(residual.dtype)
        known = [s for s in seen if s is not None]
        return torch.cat(known) if len(known) == len(seen) else None
