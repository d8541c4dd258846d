"""Base of bottlenecks made of several others: their states, codebooks and events, by number.

Left out: how they share z (`rvq.py`, `grouped.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, Bottlenecked, Event

# Statistics of which not the mean over the members counts, but the greatest.
GREATEST = ("dead_age",)


class Several(Bottleneck):
    """Members that are bottlenecks with codes, in a `ModuleList` named `members` (a class variable)."""

    members: ClassVar[str]

    def __init__(self, config: BottleneckConfig, count: int) -> None:
        """`count` members built by `config`. `ValueError` if they have no codes."""
        super().__init__()
        self.add_module(self.members, nn.ModuleList(config.build() for _ in range(count)))
        first = next(self.each())
        if first.num_codebooks == 0:
            raise ValueError(f"bottleneck {config.kind} has no codes; choose one that has")
        self.num_codebooks, self.codebook_size = count * first.num_codebooks, first.codebook_size

    def each(self) -> Iterator[Bottleneck]:
        """The members in order."""
        for member in self.get_submodule(self.members).children():
            assert isinstance(member, Bottleneck)
            yield member

    def names_of_members(self, which: Sequence[frozenset[str]]) -> frozenset[str]:
        """Names of members' entries in the state_dict, as names in that of the whole."""
        return frozenset(f"{self.members}.{k}.{name}" for k, names in enumerate(which) for name in names)

    def merged(self, outs: Sequence[Bottlenecked]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and stats of the members as means; also the least usage, and the greatest age of a code."""
        losses = {k: torch.stack([o.losses[k] for o in outs]).mean() for k in outs[0].losses}
        stats = {k: torch.stack([o.stats[k] for o in outs]) for k in outs[0].stats}
        least = {"usage_least": stats["usage"].amin()} if "usage" in stats else {}
        return losses, {k: v.amax() if k in GREATEST else v.mean() for k, v in stats.items()} | least

    @property
    def ready(self) -> bool:
        return all(member.ready for member in self.each())

    def codebook_vectors(self) -> Tensor | None:
        vectors = [member.codebook_vectors() for member in self.each()]
        known = [v if v.ndim == 3 else v[None] for v in vectors if v is not None]
        return torch.cat(known) if len(known) == len(vectors) else None

    def training_state(self) -> dict[str, Tensor]:
        return {f"{k}.{n}": v for k, m in enumerate(self.each()) for n, v in m.training_state().items()}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        for k, member in enumerate(self.each()):
            member.load_training_state(_of_member(k, state))

    def events(self) -> list[Event]:
        """Those of the members, each with the number of its first codebook."""
        each = next(self.each()).num_codebooks
        return [
            e._replace(text=f"codebook {1 + k * each}: {e.text}")
            for k, member in enumerate(self.each())
            for e in member.events()
        ]


def _of_member(k: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(f"{k}."): v for n, v in state.items() if n.startswith(f"{k}.")}
