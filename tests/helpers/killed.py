"""Training scripts that end themselves by SIGKILL at an instant that is counted, not timed:
`python tests/helpers/killed.py` with a file of lives, or with a folder, an instant, a script and its words.

Left out: choosing instants (processes/test_kills.py). Nothing of the run is changed, it is only looked at.
"""

import importlib
import json
import mmap
import os
import runpy
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.helpers.running import ROOT

# Where a process is, by the innermost of these functions that it is in: (room/module, qualified name).
PLACES = {
    ("training/run_folder", "_claim"): "claim",
    ("training/checkpoints", "Checkpoints.resume"): "resume",
    ("training/checkpoints", "set_aside"): "set aside",
    ("training/log", "MetricsLog.__init__"): "log cut",
    ("training/loop", "Course.learn"): "step",
    ("training/loop", "Course.record"): "log",
    ("evaluation/tokenizers", "measure_tokenizer"): "evaluation",
    ("evaluation/priors", "evaluate_prior"): "evaluation",
    ("training/checkpoints", "Checkpoints.save"): "checkpoint",
    ("training/checkpoints", "Checkpoints._prune"): "prune",
    ("pipelines/train_tokenizer", "finish"): "report",
    ("pipelines/train_prior", "finish"): "report",
    ("hub/model", "HubModel.save_pretrained"): "model",
}
# Outside of all of them: before the log is opened, from then on, and after the report.
OUTSIDE = START, BETWEEN, END = "start", "between steps", "end"
ALL = (*OUTSIDE, *dict.fromkeys(PLACES.values()))
# Imported before the watch begins, which would see more of imports than of all else.
HEAVY = ("pipelines.train_prior", "pipelines.train_tokenizer", "torchmetrics.functional.image")
HEAVY += ("matplotlib.pyplot", "torch.utils.tensorboard", "torch._dynamo", "pandas", "pyarrow.parquet")


@dataclass(frozen=True)
class Instant:
    """The `count`-th event at a place: of a kind (`call`, `return`, `c_call`, `c_return`; "": any), of the
    function of a name, as `learn` or `posix.rename` ("": any)."""

    place: str
    count: int = 1
    kind: str = ""
    name: str = ""


class Watch:
    """A profile function, which sees every call and return of the main thread: kills the process at an
    instant, and keeps in the file `seen` where it is."""

    def __init__(self, instant: Instant | None, seen: Path) -> None:
        self.instant, self.matches = instant, 0
        self.counts = dict.fromkeys(ALL, 0)
        self.inside: list[tuple[FrameType, str]] = []
        self.codes: dict[CodeType, str | None] = {}
        # The file keeps what is written into this memory, however the process ends.
        seen.write_bytes(bytes(4))
        with seen.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 4)
        self.place = START

    def __call__(self, frame: FrameType, kind: str, arg: Any) -> None:
        if kind == "call" and (place := self.place_of(frame.f_code)) is not None:
            self.inside.append((frame, place))
            self.move(place)
        self.counts[self.place] += 1
        if self.instant is not None and self.instant.place == self.place:
            name = arg.__name__ if kind.startswith("c_") else frame.f_code.co_name
            names = ("", name, f"{getattr(arg, '__module__', None)}.{name}")
            self.matches += self.instant.kind in ("", kind) and self.instant.name in names
            if self.matches == self.instant.count:
                os.kill(os.getpid(), signal.SIGKILL)
        if kind == "return" and self.inside and self.inside[-1][0] is frame:
            self.inside.pop()
            self.move(self.inside[-1][1] if self.inside else self.outside())

    def place_of(self, code: CodeType) -> str | None:
        if code not in self.codes:
            path = Path(code.co_filename)
            self.codes[code] = PLACES.get((f"{path.parent.name}/{path.stem}", code.co_qualname))
        return self.codes[code]

    def outside(self) -> str:
        if self.counts["report"]:
            return END
        return BETWEEN if self.counts["log cut"] else START

    def move(self, place: str) -> None:
        self.place = place
        struct.pack_into("<i", self.memory, 0, ALL.index(place))


def live(folder: Path, instant: Instant | None, script: str, words: list[str], early: bool = True) -> None:
    """Run a script as `python SCRIPT words…` does, up to the instant. In `folder` the file `place` says where
    it is, and at its end `counts.json` how many events it had where; without `early` those from its lock on.
    """
    watch = Watch(instant, folder / "place")
    # Not in the workers that load data.
    os.register_at_fork(after_in_child=lambda: sys.setprofile(None))
    sys.argv = [script, *words]

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith("/.lock"):
            sys.setprofile(watch)

    if early:
        sys.setprofile(watch)
    else:
        sys.addaudithook(look)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.setprofile(None)
        (folder / "counts.json").write_text(json.dumps(watch.counts))


def place_of_death(folder: Path) -> str:
    """Where a life with this folder ended."""
    return ALL[struct.unpack("<i", (folder / "place").read_bytes())[0]]


def live_in_turn(path: Path) -> None:
    """Several lives, each in a process of its own that need not import anything. `path` holds their folders,
    instants (null: the run's end), scripts and words; in its place come, for each, the exit status and,
    relative to the folder, all files when it was over."""
    import pipelines.reports.plots
    import pipelines.reports.tokenizers

    # Pictures take ten times longer than tiny runs.
    pipelines.reports.tokenizers.write_tokenizer_report = lambda *_: None
    pipelines.reports.plots.loss_plot = lambda *_: None
    ends = []
    for folder, fields, script, words in json.loads(path.read_text()):
        Path(folder).mkdir(exist_ok=True)
        if (child := os.fork()) == 0:
            live(Path(folder), fields and Instant(**fields), script, words, early=False)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        files = sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())
        ends.append([os.waitstatus_to_exitcode(status), files])
    path.write_text(json.dumps(ends))


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    if len(sys.argv) == 2:
        live_in_turn(Path(sys.argv[1]))
    else:
        folder, instant, script, *words = sys.argv[1:]
        fields = json.loads(instant)
        live(Path(folder), fields and Instant(**fields), script, words)


if __name__ == "__main__":
    main()
