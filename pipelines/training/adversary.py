"""Discriminators in training: what a decoder pays to them, and what they learn themselves.

Left out: the discriminators and their losses (`tokenizer.discriminators`, `tokenizer.adversarial`), and the
decoder's own step (`loop.py`).
"""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW

from pipelines.training.options import AdversarialOptions
from tokenizer.adversarial import (
    decoder_loss,
    differentiable_view,
    discriminator_loss,
    feature_matching,
    steepness,
)
from tokenizer.bottlenecks import Event
from tokenizer.discriminators import Jury
from tokenizer.distributed import Step

# Shares of right answers, in the mean since the last report, beyond which decoder and discriminators hardly
# learn from each other any more.
WINS, LOSES = 0.97, 0.53
# Standard deviation of what is added to data to see how steep discriminators are there.
NEAR = 0.05
# Steps that discriminators get before a warning: at first neither knows anything.
PATIENCE = 200


class Adversary:
    """Discriminators, prepared for any number of processes apart from the decoder, with their optimizer."""

    def __init__(self, accelerator: Accelerator, net: Jury, options: AdversarialOptions) -> None:
        self.accelerator, self.net, self.options = accelerator, net, options
        optimizer = AdamW(
            net.parameters(), lr=options.learning_rate, betas=options.betas, weight_decay=0.0, fused=True
        )
        self.model, self.optimizer = accelerator.prepare(net, optimizer)
        # Data and what the decoder made of them in this pass, for the discriminators to learn from.
        self._pair: tuple[Tensor, Tensor] | None = None
        # Sum of accuracies since the last report, and how many; how many passes there were.
        self._right: Tensor | float = 0.0
        self._passes = self._since = 0

    def charge(self, x: Tensor, x_hat: Tensor, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the decoder pays for x_hat (B, C, *size) made of x: weighted losses and unweighted stats. None
        before `options.start`, when discriminators learn alone. Every step must call it once in each pass,
        before `learn`."""
        self._pair = (x, x_hat.detach())
        if step.index < self.options.start:
            return {}, {}
        with self._as_they_are():
            of_x_hat = self.net(self._view(x_hat, step, "decoder"))
            stats = {"adversarial": decoder_loss(self.options.loss, of_x_hat)}
            if self.options.feature_weight:
                with torch.no_grad():
                    of_x = self.net(self._view(x, step, "decoder"))
                stats["features"] = feature_matching(of_x, of_x_hat)
        weights = {"adversarial": self.options.weight, "features": self.options.feature_weight}
        losses = {name: weights[name] * value for name, value in stats.items()}
        return losses, {name: value.detach() for name, value in stats.items()}

    def learn(self, step: Step) -> dict[str, Tensor]:
        """The discriminators' forward and backward pass on what `charge` was given; their loss and accuracy,
        detached scalars."""
        assert self._pair is not None
        (x, x_hat), self._pair = self._pair, None
        shown = [self._view(x, step, "data"), self._view(x_hat, step, "made")]
        if self.options.smoothness:
            shown += [y + NEAR * step.normal(y, f"near.{i}") for i, y in enumerate(shown)]
        # In one pass, as DistributedDataParallel expects.
        parts = [[layer.chunk(len(shown)) for layer in view] for view in self.model(torch.cat(shown))]
        judged = [[[layer[i] for layer in view] for view in parts] for i in range(len(shown))]
        loss, accuracy = discriminator_loss(self.options.loss, *judged[:2])
        total = loss
        for of_y, of_near in zip(judged[:2], judged[2:], strict=False):
            total = total + self.options.smoothness / 2 * steepness(of_y, of_near, NEAR)
        self.accelerator.backward(total)
        self._right = self._right + accuracy
        self._passes, self._since = self._passes + 1, self._since + 1
        return {"discriminator": loss.detach(), "discriminator_accuracy": accuracy}

    def events(self) -> list[Event]:
        """A warning with the fix where one side has won. It reads values from the device: for log steps."""
        if not self._since:
            return []
        accuracy = float(self._right) / self._since
        self._right, self._since = 0.0, 0
        if self._passes < PATIENCE or LOSES <= accuracy <= WINS:
            return []
        wins = accuracy > WINS
        what = "nearly always tell" if wins else "can hardly tell"
        fix = "lower --adversarial.learning-rate" if wins else "raise --adversarial.learning-rate or lower"
        fix += ", or raise --adversarial.weight" if wins else " --adversarial.weight"
        return [
            Event(
                f"warning: the discriminators {what} data from what the decoder makes ({accuracy:.0%} "
                f"right): neither learns much from the other; {fix}"
            )
        ]

    @contextlib.contextmanager
    def _as_they_are(self) -> Iterator[None]:
        """Gradients go through the discriminators to the decoder, and none to their own weights."""
        self.net.requires_grad_(False)
        try:
            yield
        finally:
            self.net.requires_grad_(True)

    def _view(self, x: Tensor, step: Step, purpose: str) -> Tensor:
        if not (self.options.augment and self.net.config.modality == "image"):
            return x
        return differentiable_view(x, step, f"view.{purpose}")
