"""Requests to stop: signals, and the end of the launcher. A run answers them with a checkpoint between two
steps; other scripts end at once.

Left out: what a run then writes (`training/loop.py`).
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

from tokenizer.distributed import world_size

# What schedulers and people send; USR1 is what some schedulers can send some time before.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A launcher passes on what its whole group got already; later than that it is somebody who insists.
REPEATED = 2.0
# What accelerate and torch's launcher leave in the environment of what they start.
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
# Seconds that a process has to end after its launcher did, which may be stuck waiting for others.
GRACE = 60.0
# Between two looks at the launcher.
PAUSE = 1.0


class Stopped(Exception):
    """A run that ends early because it was asked to; `code` is the process's exit code, as shells have it."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.code = 128 + number


class StopRequests:
    """Within the context signals of `SIGNALS` are taken down, and end the process only when repeated."""

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._take_down) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _take_down(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.number and now - self.since > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.number:
            self.number, self.since = number, now
            if os.environ.get("LOCAL_RANK", "0") == "0":
                # No print: the handler may have interrupted one, and streams take no second writer.
                text = f"\n{signal.Signals(number).name}: stopping after this step, with a checkpoint\n"
                os.write(2, text.encode())

    def agreed(self, device: torch.device) -> int:
        """The signal that any process got, 0 for none; every process must call it."""
        if world_size() == 1:
            return self.number
        number = torch.tensor(self.number, device=device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)


def ignore_requests(_worker: int = 0) -> None:
    """Make a process that loads data deaf to requests to stop, which a scheduler sends to all processes: the
    one that trains still needs its batches. It ends with that one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return any(name in os.environ for name in LAUNCHED)


def end_with_launcher() -> None:
    """From now on end this process, if a launcher started it, when that ends: as by SIGTERM, and `GRACE`
    seconds later in any case."""
    if not is_launched():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(PAUSE)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
