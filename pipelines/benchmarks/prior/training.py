"""Training steps of a prior beside those of transformers' Llama with the same weights and batches: their
time, their losses, and the memory they take.

Left out: sampling (`prior/sampling/choice.py`), and the memory of GPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.benchmarks.process_memory import MIB, peak, status
from pipelines.benchmarks.registry import in_turns, ratios, spread, synchronizer
from pipelines.run.own_process import in_own_process
from prior import Prior, PriorConfig
from tokenizer.distributed import keyed_generator

OURS, COMPILED, PEER = "tokenloom", "tokenloom compiled", "transformers"
PRECISIONS = ("float32", "bf16")
LEARNING_RATE = 3e-4


def llama_like(codes: int, codebook_size: int, dim: int, depth: int, heads: int) -> PriorConfig:
    """A prior that a Llama can equal, without dropout, which that Llama has not."""
    return PriorConfig(
        codebook_size=codebook_size,
        grid=(codes,),
        dim=dim,
        depth=depth,
        heads=heads,
        dropout=0.0,
        rope_theta=10000.0,
        rotary="sequence",
        qk_norm=False,
        target_embedding=False,
    )


def build(config: PriorConfig, device: torch.device) -> Prior:
    """A prior of this config with normal weights."""
    prior = Prior(config)
    generator = keyed_generator(0, "weights")
    with torch.no_grad():
        for parameter in prior.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
    return prior.eval().to(device)


def walks(config: PriorConfig, batch: int, step: int) -> Tensor:
    """Codes (batch, 1, S) of training step `step`: random walks over the entries, which can be learnt."""
    generator = keyed_generator(step, "walks")
    moves = torch.randint(-2, 3, (batch, 1, config.num_codes), generator=generator)
    moves[:, :, 0] = torch.randint(config.codebook_size, (batch, 1), generator=generator)
    return moves.cumsum(2) % config.codebook_size


@dataclass
class Learner:
    """A model in training: each call is one step of AdamW on the next batch."""

    name: str
    model: nn.Module
    config: PriorConfig
    batch: int
    precision: str

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, fused=True)
        self.losses: list[float] = []

    def __call__(self) -> None:
        codes = walks(self.config, self.batch, len(self.losses)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(codes)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def loss(self, codes: Tensor) -> Tensor:
        """Mean nats per code of codes (batch, 1, S)."""
        if self.name != PEER:
            found: Tensor = self.model(codes).losses["nll"]
            return found
        # The class, here always "no class", has the last row of its table.
        start = codes.new_full((len(codes), 1), self.config.codebook_size)
        tokens = torch.cat([start, codes[:, 0]], dim=1)
        of_peer: Tensor = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return of_peer


def learner(name: str, config: PriorConfig, batch: int, precision: str, device: torch.device) -> Learner:
    """The model of this name, of the same weights as the others."""
    prior = build(config, device)
    if name == COMPILED:
        prior.compile_blocks()
    model = prior.to_transformers() if name == PEER else prior
    return Learner(name, model.train(), config, batch, precision)


def prior_training(
    config: PriorConfig, batch: int, turns: int, warm_up: int, compiled: bool, device: torch.device
) -> dict[str, dict[str, dict[str, Any]]]:
    """By precision and name: milliseconds of a step, how many times as fast as transformers, and the loss of
    the last step."""
    names = [OURS, *([COMPILED] if compiled else []), PEER]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for precision in PRECISIONS:
        learners = {name: learner(name, config, batch, precision, device) for name in names}
        seconds = in_turns(learners, turns, warm_up, synchronizer(device))
        found[precision] = {
            name: {
                "ms": spread([1000 * s for s in values]),
                "faster": ratios(seconds[PEER], values),
                "loss": learners[name].losses[-1],
            }
            for name, values in seconds.items()
        }
    return found


def memory(config: PriorConfig, batch: int) -> dict[str, dict[str, float]]:
    """By precision and name, MiB that training takes at most on a CPU: weights, optimizer, activations."""
    sizes = (config.num_codes, config.codebook_size, config.dim, config.depth, config.heads)
    threads = torch.get_num_threads()

    def peak_of(name: str, precision: str) -> float:
        found: float = in_own_process(peak_of_training, name, precision, sizes, batch, threads=threads)
        return found

    return {p: {name: peak_of(name, p) for name in (OURS, PEER)} for p in PRECISIONS}


def peak_of_training(name: str, precision: str, sizes: Sequence[int], batch: int) -> float:
    """MiB by which this process grows at most in three steps of a model of `llama_like` sizes."""
    config = llama_like(*sizes)
    device = torch.device("cpu")
    # What is imported and set up at the first use does not count.
    tiny = replace(config, dim=2 * config.heads, depth=1, grid=(2,))
    learner(name, tiny, 1, precision, device)()
    before = status("VmRSS")
    step = learner(name, config, batch, precision, device)
    for _ in range(3):
        step()
    return (peak() - before) / MIB
