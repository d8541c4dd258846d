"""Residual quantisation: stages that each quantise what the stages before left over, one code per stage.

Left out: the quantiser of a stage, which is any bottleneck with one codebook, and entropy coding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, Bottlenecked
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.config import require
from tokenizer.distributed import Step


@dataclass(frozen=True)
class RVQConfig(BottleneckConfig, kind="rvq"):
    """Several codebooks in a row, each for what those before left over; fewer are a lower bitrate."""

    num_codebooks: int = 6
    """Stages K."""
    stage: BottleneckConfig = field(
        default_factory=lambda: VQConfig(codebook_size=1024, dim=64, kmeans_steps=4)
    )
    """The quantizer of every stage: any bottleneck with one codebook, and as many channels in as out."""
    dropout: float = 0.5
    """Share of training examples that use a random number of stages, 1 to K, so that one model serves every
    bitrate (Kumar et al. 2023, arXiv 2306.06546, section 3.2)."""

    def __post_init__(self) -> None:
        require(1 <= self.num_codebooks <= 256, f"num_codebooks is {self.num_codebooks}, expected 1 to 256")
        require(0 <= self.dropout <= 1, f"dropout is {self.dropout}, expected 0 to 1")
        require(
            not isinstance(self.stage, RVQConfig), "stage is rvq itself; choose one with a single codebook"
        )

    @property
    def start_steps(self) -> int:
        return self.num_codebooks * self.stage.start_steps

    def starting_within(self, steps: int) -> Self:
        return replace(self, stage=self.stage.starting_within(steps // self.num_codebooks))

    def build(self) -> "RVQ":
        return RVQ(self)


class RVQ(Bottleneck):
    """z_q = Σ_k q_k(r_k), r_1 = z, r_{k+1} = r_k − q_k(r_k) (Zeghidour et al. 2021, arXiv 2107.03312,
    algorithm 1)."""

    def __init__(self, config: RVQConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(config.stage.build() for _ in range(config.num_codebooks))
        first = next(self._each())
        if first.num_codebooks != 1 or first.in_dim != first.out_dim:
            raise ValueError(
                f"stage {config.stage.kind}: rvq needs one codebook and as many channels in as out, got "
                f"{first.num_codebooks}, {first.in_dim} and {first.out_dim}"
            )
        self.in_dim, self.out_dim = first.in_dim, first.out_dim
        self.num_codebooks, self.codebook_size = config.num_codebooks, first.codebook_size
        # What a stage gives decides the codes of those after it, so only its statistics do not count.
        last = config.num_codebooks - 1
        self.not_coding = frozenset(
            f"stages.{k}.{name}"
            for k, stage in enumerate(self._each())
            for name in (stage.not_coding if k == last else stage.statistics)
        )

    def forward(self, z: Tensor, step: Step | None = None) -> Bottlenecked:
        residual = z.to(torch.promote_types(z.dtype, torch.float32))
        used = self._stages_used(z, step)
        # Stages with weights learn them through the residuals of all that follow (Kumar et al. 2023). Without
        # any, q(r) has the gradient of r, so the residuals would have none: the commitment of later stages
        # reaches z only if the q before them count as constants.
        learn = any(True for _ in self.parameters())
        z_q, codes, outs, waiting = torch.zeros_like(residual), [], [], False
        for k, stage in enumerate(self._each()):
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
        if self.training and not learn:
            z_q = z + (z_q - z).detach()  # straight-through, once for all stages
        if waiting:
            # Until the last stage has started, z goes unquantized to the decoder. Every parameter takes part,
            # with a gradient of zero: DDP would wait for those that do not.
            z_q = z.to(z_q.dtype) + 0 * sum(p.sum() for p in self.parameters())
            codes += [torch.zeros_like(codes[0])] * (self.num_codebooks - len(codes))
        losses = {k: torch.stack([o.losses[k] for o in outs]).mean() for k in outs[0].losses}
        stats = {k: torch.stack([o.stats[k] for o in outs]).mean() for k in outs[0].stats}
        if "usage" in stats:
            stats["usage_least"] = torch.stack([o.stats["usage"] for o in outs]).amin()
        return Bottlenecked(z_q, torch.cat(codes, dim=1), losses, stats)

    def encode(self, z: Tensor) -> Tensor:
        residual = z.to(torch.promote_types(z.dtype, torch.float32))
        codes = []
        for stage in self._each():
            codes.append(stage.encode(residual))
            residual = residual - stage.decode(codes[-1]).to(residual.dtype)
        return torch.cat(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes: (B, k, *grid) of the first k stages, 1 ≤ k ≤ K → z_q: (B, dim, *grid)."""
        stages = zip(self._each(), torch.split(codes, 1, dim=1), strict=False)
        z_q: Tensor = sum(stage.decode(c) for stage, c in stages)  # type: ignore[assignment]
        return z_q

    def _stages_used(self, z: Tensor, step: Step | None) -> Tensor:
        """How many stages each example uses, (B, 1, ...): all but where quantizer dropout takes some away."""
        count = torch.full((len(z),), self.num_codebooks)
        if self.training and self.config.dropout > 0:
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
        return count.to(z.device).view(-1, *(1,) * (z.ndim - 1))

    def _each(self) -> Iterator[Bottleneck]:
        for stage in self.stages:
            assert isinstance(stage, Bottleneck)
            yield stage

    @property
    def ready(self) -> bool:
        return all(stage.ready for stage in self._each())

    def codebook_vectors(self) -> Tensor | None:
        vectors = [stage.codebook_vectors() for stage in self._each()]
        return torch.stack([v for v in vectors if v is not None]) if None not in vectors else None

    def training_state(self) -> dict[str, Tensor]:
        return {f"{k}.{n}": v for k, s in enumerate(self._each()) for n, v in s.training_state().items()}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        for k, stage in enumerate(self._each()):
            mine = {n.removeprefix(f"{k}."): v for n, v in state.items() if n.startswith(f"{k}.")}
            stage.load_training_state(mine)

    def events(self) -> list[str]:
        return [f"codebook {k}: {event}" for k, s in enumerate(self._each(), 1) for event in s.events()]
