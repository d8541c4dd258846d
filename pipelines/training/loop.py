"""The course of a training run: what both training scripts do around the forward pass of a batch.

Left out: data, models and their evaluation, which stand in the scripts, and the form of checkpoints.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Protocol, Self, TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from pipelines.run.processes import gather_objects, mean_over_processes, meet
from pipelines.run.progress import progress
from pipelines.run.signals import Stopped, StopRequests
from pipelines.training.adversary import Adversary
from pipelines.training.averaging import Best, M, WeightAverage, round_weights
from pipelines.training.balance import Balance
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.log import MetricsLog
from pipelines.training.options import TrainingOptions
from pipelines.training.setup import (
    deterministic,
    put_back,
    rate_scale,
    require_finite_terms,
    seed_layers,
    set_rates,
    start_trackers,
)
from pipelines.training.sharding import is_sharded, may_leave_steps_out, prepare
from tokenizer.bottlenecks import Event
from tokenizer.bottlenecks.parts.health import STANDING
from tokenizer.checks import NotFinite
from tokenizer.distributed import Step
from tokenizer.hub.model import HubModel

# Names of examples in a message.
LISTED = 8

# (network, some rows of the batch, where the pass stands) → losses and what else is logged. Without a place
# in the run nothing may be learnt.
Forward = Callable[[nn.Module, slice, Step | None], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]


@torch.no_grad()
def offending(net: nn.Module, passes: Sequence[tuple[Forward, Sequence[str]]]) -> list[str]:
    """The examples of a step's passes, each with the names of its own, that alone give a loss which is not
    finite. Leaves `net` in training mode."""
    found = []
    net.eval()
    for forward, names in passes:
        for i, name in enumerate(names):
            try:
                losses, _ = forward(net, slice(i, i + 1), None)
                finite = all(bool(torch.isfinite(v)) for v in losses.values())
            except NotFinite:
                finite = False
            if not finite:
                found.append(name)
    net.train()
    return found


def blame(examples: Sequence[str], total: int) -> str:
    """In words, which of a step's `total` examples give alone what is wrong with it."""
    if not examples:
        return "no example alone gives it"
    if len(examples) == total:
        return "every example gives it alone"
    more = f" and {len(examples) - LISTED} more" if len(examples) > LISTED else ""
    return f"of {total} examples these give it alone: {', '.join(examples[:LISTED])}{more}"


def diagnosis(what: str, blame: str, last: Path | None, may_skip: bool) -> str:
    """The message for a step with `what` wrong; `last` is the newest checkpoint, and `may_skip` whether such
    steps can be left out."""
    intact = "there is no checkpoint yet" if last is None else f"the last checkpoint, {last}, is intact"
    skip = "; or resume this one with --skip-non-finite 10, which leaves out such steps" if may_skip else ""
    return (
        f"{what}: the training diverged; {blame}; {intact}. Start a new run with lower --learning-rate "
        f"and --muon-learning-rate, or in float32{skip}"
    )


logger = logging.getLogger(__name__)


class Placed(Protocol):
    """A batch's place: its optimizer step, its accumulation step, and its first row in the global batch."""

    @property
    def step(self) -> int: ...
    @property
    def micro(self) -> int: ...
    @property
    def offset(self) -> int: ...


class Share(TypedDict):
    """What of the data a process gets, as `data.batches` and `tokens.token_batches` take it."""

    batch_size: int
    micro_batches: int
    rank: int
    world: int
    seed: int
    start_step: int
    stop_step: int


class Course:
    """From the step that a run begins or resumes at to its last one; a context, in which it can be stopped.

    `net` is the model unwrapped, for evaluation and saving only; what trains is made of it here, or of
    `trained`, a module around it. `headline` is the value that the progress bar shows, `events` what happened
    since the last call, to be logged. An `adversary` learns in the same steps, from what the forward passes
    leave with it; the averages of a `balance` of losses are kept in checkpoints. With `keep_best` so are the
    averaged weights of the evaluation whose `headline` was lowest.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: TrainingOptions,
        net: HubModel,
        optimizers: list[Optimizer],
        name: str,
        headline: str = "loss",
        events: Callable[[], list[Event]] = list,
        trained: nn.Module | None = None,
        adversary: Adversary | None = None,
        balance: Balance | None = None,
        keep_best: bool = False,
    ) -> None:
        self.accelerator, self.options, self.net = accelerator, options, net
        self.name, self.headline, self.events = name, headline, events
        self.trained, self.adversary = trained or net, adversary
        prepared = prepare(accelerator, options, self.trained, optimizers)
        self.model, self.optimizers, self.precision = prepared.model, prepared.optimizers, prepared.precision
        # All that trains, by the beginnings of the names of its gradient's norm.
        self.learners: dict[str, nn.Module] = {"": net}
        if adversary is not None:
            self.optimizers = [*self.optimizers, adversary.optimizer]
            self.learners["discriminator_"] = adversary.net
        self.average = WeightAverage(net, options.ema_decay)
        self.best = Best(self.average) if keep_best else None
        self.checkpoints = Checkpoints(
            *(accelerator, options.output, net, self.average, self.optimizers),
            *(options.keep_checkpoints, options.seed),
            others={
                **({} if adversary is None else {"discriminator": adversary.net}),
                **({} if balance is None else {"balance": balance}),
                **({} if self.best is None else {"best": self.best}),
            },
        )
        seed_layers(options.seed, 0, accelerator.process_index)
        state = self.checkpoints.resume(options.resume) if options.resume else None
        self.start = state.step if state else 0
        # Steps that were left out, in all and just before the next one.
        self.skipped = state.skipped if state else 0
        self.skipped_in_a_row = state.skipped_in_a_row if state else 0
        # A run that was stopped between its last checkpoint and its model still gets the model.
        written = bool(options.resume) and self.checkpoints.model_is_written(self.start, options.max_steps)
        # The main process says so: others may see its files later.
        self.finished: bool = gather_objects(accelerator, written)[0]
        if self.finished:
            logger.info(
                "%s is finished: %d of %d steps are done", options.output, self.start, options.max_steps
            )
        self.requests = StopRequests()
        self.passes: list[tuple[Forward, list[str]]] = []
        # Undoes what the forward passes of the step changed, if such a step may be left out.
        self.put_back: Callable[[], None] | None = None
        # Losses and statistics of the step, as means over its passes.
        self.terms: Mapping[str, Tensor] = {}
        # Norms of the gradients in the latest step, before they were brought down; none where DeepSpeed keeps
        # them.
        self.norms: dict[str, Tensor | float] = {}
        # Step and time of the latest log line; what evaluations and checkpoints take is added to the time.
        self.logged, self.clock = self.start, time.monotonic()

    def __enter__(self) -> Self:
        options, main = self.options, self.accelerator.is_main_process
        self.log = MetricsLog(options.output / "metrics.jsonl", self.start, main, options.max_steps)
        start_trackers(self.accelerator, options)
        self.clock = time.monotonic()
        self.model.train()
        with contextlib.ExitStack() as stack:
            stack.enter_context(deterministic(options.deterministic))
            stack.enter_context(self.requests)
            self.bar = progress(options.max_steps, self.name, self.start, main)
            stack.callback(self.bar.close)
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def share(self) -> Share:
        """The batches from the first step of this course to its last one."""
        return Share(
            batch_size=self.options.batch_size,
            micro_batches=self.options.gradient_accumulation,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            seed=self.options.seed,
            start_step=self.start,
            stop_step=self.options.max_steps,
        )

    def learn(self, batch: Placed, forward: Forward, names: list[str]) -> bool:
        """A forward and backward pass of `batch`, whose examples have `names`, and with the last one of a
        step the step itself. Whether it was the last one.

        Raises `ValueError` for losses or gradients that are not finite, unless such a step may be left out.
        """
        options, accelerator = self.options, self.accelerator
        last = batch.micro == options.gradient_accumulation - 1
        optional = options.skip_non_finite > 0
        where = Step(options.seed, batch.step, batch.offset, options.batch_size, last, optional)
        set_rates(self.optimizers, rate_scale(batch.step, options.warmup_steps, options.max_steps))
        if batch.micro == 0:
            self.passes = []
            self.put_back = put_back(self.net) if optional else None
        self.passes.append((forward, names))
        rivals = [] if self.adversary is None else [self.adversary.model]
        with accelerator.accumulate(self.model, *rivals):
            try:
                with self.precision():
                    losses, stats = forward(self.model, slice(None), where)
            except NotFinite as error:
                raise ValueError(self._diagnosis(str(error), self._offending())) from error
            loss = torch.stack(list(losses.values())).sum()
            terms = {"loss": loss, **{f"loss_{name}": value for name, value in losses.items()}, **stats}
            accelerator.backward(loss)
            if self.adversary is not None:
                terms |= self.adversary.learn(where)
            self.terms = self._mean_with({k: v.detach() for k, v in terms.items()})
            usable = not accelerator.sync_gradients or self._gradients(batch.step + 1)
            for optimizer in self.optimizers:
                if usable:
                    optimizer.step()
                optimizer.zero_grad()
        if last and usable:
            self.average.update(self.net, batch.step + 1)
        if last and self.put_back and not (usable and not accelerator.optimizer_step_was_skipped):
            self.put_back()
        return last

    def _mean_with(self, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The means of these terms, the last pass's, and those of the passes of this step before it."""
        if (passes := len(self.passes)) == 1:
            return terms
        before = self.terms
        return {k: v if k in STANDING else before[k] + (v - before[k]) / passes for k, v in terms.items()}

    def _gradients(self, step: int) -> bool:
        """Bring the gradients to the norm that is allowed; whether they are finite. They are alike on every
        process, and so is the answer."""
        most = self.options.clip_norm or math.inf
        for name, learner in self.learners.items():
            norm = self.accelerator.clip_grad_norm_(learner.parameters(), most)
            if norm is not None:
                self.norms[f"{name}gradient_norm"] = norm
        # In fp16 the scaler finds gradients too large and leaves the step out by itself.
        if self.accelerator.scaler is not None or all(map(math.isfinite, self.norms.values())):
            self.skipped_in_a_row = 0
            return True
        self.skipped_in_a_row += 1
        losses = {name.removeprefix("loss_"): v for name, v in self.terms.items() if name.startswith("loss_")}
        terms = {name for name, value in losses.items() if not bool(torch.isfinite(value))}
        found = gather_objects(self.accelerator, (sorted(terms), self._offending()))
        terms, examples = {t for ts, _ in found for t in ts}, [e for _, es in found for e in es]
        what = "the gradient is" if not terms else f"the loss {', '.join(sorted(terms))} and the gradient are"
        text = f"step {step}: {what} not finite"
        if self.skipped_in_a_row > self.options.skip_non_finite:
            raise ValueError(self._diagnosis(text, examples))
        self.skipped += 1
        logger.warning("%s: left out (%s)", text, self._blame(examples))
        return False

    def _offending(self) -> list[str]:
        """`offending`, of this process's passes. Sharded, a pass needs all processes, and with DeepSpeed the
        weights from before the step are gone."""
        return [] if is_sharded(self.accelerator) else offending(self.trained, self.passes)

    def _blame(self, examples: list[str]) -> str:
        if is_sharded(self.accelerator):
            return "which examples give it is found by a run without sharding"
        return blame(examples, sum(len(names) for _, names in self.passes) * self.accelerator.num_processes)

    def _diagnosis(self, what: str, examples: list[str]) -> str:
        may_skip = may_leave_steps_out(self.accelerator)
        return diagnosis(what, self._blame(examples), self.checkpoints.latest(), may_skip)

    def close_step(self, step: int, evaluate: Callable[[HubModel], Mapping[str, float]]) -> None:
        """After the optimizer step `step`: log, evaluate and write checkpoints when they are due, and answer
        requests to stop. Every process must call it."""
        options, last = self.options, step == self.options.max_steps
        self.bar.update()
        stepped = time.monotonic()
        if step % options.log_every == 0 or last:
            values = mean_over_processes(self.accelerator, self.terms)
            if not options.skip_non_finite:
                require_finite_terms(values, step)
            else:
                values["skipped_steps"] = self.skipped
            self.record(step, values | self._pace(step), "train")
            self.bar.set_postfix(**{self.headline: f"{values[self.headline]:.4g}"})
            self._log_events(step)
        if step % options.eval_every == 0 and not last:
            measured = evaluate(self.average.averaged(self.net))
            self.record(step, measured, "valid")
            if self.best is not None:
                self.best.offer(measured[self.headline], step)
            meet(self.accelerator)
        asked = self.requests.agreed(self.accelerator.device)
        if step % options.checkpoint_every == 0 or last or asked:
            self.log.sync()
            self.checkpoints.save(step, self.skipped, self.skipped_in_a_row)
        self.clock += time.monotonic() - stepped
        if asked:
            self._log_events(step)
            raise Stopped(
                f"Stopped by {Signals(asked).name} after step {step}, of which there is a checkpoint in "
                f"{options.output}; --resume latest continues.",
                asked,
            )

    def _log_events(self, step: int) -> None:
        """What happened since the last log line, with the step that it is of, or else this one. Every process
        must call it."""
        of_rivals = [] if self.adversary is None else self.adversary.events()
        for event in [*self.events(), *of_rivals]:
            logger.info("step %d: %s", step if event.step is None else event.step, event.text)

    def final(self, net: M, trained: str = "") -> M:
        """`net`, the model of this course, as it is to be measured and saved at the end: with the averaged
        weights, of which those whose names begin with `trained` are rounded if that is asked for. Every
        process must call it."""
        model = self.average.averaged(net)
        if self.options.rounded:
            round_weights(model, trained)
        return model

    def _pace(self, step: int) -> dict[str, float]:
        """After the optimizer step `step`: its learning rate, the norm of its gradient, and the items per
        second since the last log line, over all processes and without evaluations and checkpoints."""
        options, now = self.options, time.monotonic()
        scale = rate_scale(step - 1, options.warmup_steps, options.max_steps)
        pace = {"learning_rate": options.learning_rate * scale}
        pace |= {name: float(norm) for name, norm in self.norms.items()}
        items = (step - self.logged) * options.batch_size
        pace["items_per_second"] = items / max(now - self.clock, 1e-9)
        self.logged, self.clock = step, now
        return pace

    def conclude(self, metrics: Mapping[str, float]) -> None:
        """Once the model is written, on the main process alone: the run is finished, with these metrics."""
        self.checkpoints.mark_written(self.options.max_steps)
        measured = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        measured = f"held-out: {measured}" if measured else "nothing is held out, so nothing was measured"
        logger.info("%s\nsaved to %s", measured, self.options.output)

    def record(self, step: int, values: Mapping[str, float], of: str) -> None:
        """Log values of a kind, `train` or `valid`."""
        rows = {f"{of}/{k}": v for k, v in values.items()}
        self.log.add(step, rows)
        self.accelerator.log(rows, step=step)
