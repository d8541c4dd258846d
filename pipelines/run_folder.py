"""The folder of a run: its lock, its options in run.json, and its log metrics.jsonl.

Left out: checkpoints (`pipelines.checkpoints`) and the model's own files (`tokenizer.hub`).
"""

import contextlib
import fcntl
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from accelerate import Accelerator

from pipelines.agreement import on_main
from pipelines.checkpoints import find_checkpoint
from pipelines.interruption import is_launched
from pipelines.option_values import flag_of, flatten, options_to_dict
from pipelines.options import MAY_CHANGE, TrainingOptions
from pipelines.token_info import TOKENS_FILE
from tokenizer.config import shortened
from tokenizer.files import CHECKPOINTS, read_json, remove_unfinished, write_atomically

logger = logging.getLogger(__name__)

T = TypeVar("T")

RUN_FILE = "run.json"
COMMAND_FILE = "command.txt"
SKIPPED_FILE = "skipped.txt"
DATA_FILE = "data.json"
LOCK = ".lock"


@contextlib.contextmanager
def run_folder(accelerator: Accelerator, options: TrainingOptions) -> Iterator[Path]:
    """The run's folder, locked against a second run, with run.json written or, on a resume, compared.

    Raises `ValueError` for a folder that holds another run, that is in use or cannot be written, and for a
    resume with other options.
    """
    processes = accelerator.num_processes
    with claimed_folder(accelerator, options.output, lambda: _claim(options.output, options, processes)):
        yield options.output


def check_run_folder(accelerator: Accelerator, options: TrainingOptions) -> None:
    """`ValueError` on every process for what `run_folder` would refuse, before the data are read. Writes
    nothing."""
    on_main(accelerator, lambda: _check(options.output, options))


@contextlib.contextmanager
def claimed_folder(accelerator: Accelerator, folder: Path, claim: Callable[[], T]) -> Iterator[T]:
    """`folder`, made if it is not there and locked; what `claim` returned on the main process, on every one.

    The lock is the kernel's (`flock`), so it ends with the process however that ends. Raises `ValueError` on
    every process if the folder is in use or cannot be written, or `claim` raised on the main one.
    """
    with contextlib.ExitStack() as stack:

        def take() -> T:
            stack.enter_context(_lock(folder))
            claimed = claim()
            remove_unfinished(folder)
            return claimed

        yield on_main(accelerator, take)


def _lock(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"{folder}: another run is writing here; choose another --output or wait for it"
        ) from None
    # A worker that loads data holds it too, and may outlive a killed run by some seconds.
    os.register_at_fork(after_in_child=file.close)
    return file


def _check(folder: Path, options: TrainingOptions) -> None:
    """`ValueError` for a folder that cannot be written, that another run uses, or whose run is not the one of
    `options`."""
    require_writable(folder)
    if (folder / LOCK).exists():
        _lock(folder).close()
    _check_run(folder, options)
    if options.resume:
        find_checkpoint(folder / CHECKPOINTS, options.resume)


def _check_run(folder: Path, options: TrainingOptions) -> None:
    """`ValueError` for another run than that of `options`."""
    path = folder / RUN_FILE
    if options.resume:
        if path.exists():
            new, defaults = options_to_dict(options), options_to_dict(type(options)())
            _compare(read_json(path), new, defaults, path, MAY_CHANGE | _may_lie_elsewhere(folder))
    elif path.exists() or (folder / "config.json").exists():
        raise ValueError(
            f"{folder} already holds a run; choose another --output, or continue it with --resume latest"
        )


def require_writable(folder: Path) -> None:
    """`ValueError` if `folder` is none, or neither it nor a new one in its place can be written to."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not place.is_dir():
        raise ValueError(f"--output {folder}: {place} is a file, expected a folder; choose another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--output {folder}: {place} cannot be written to; choose another")


def _claim(folder: Path, options: TrainingOptions, processes: int) -> None:
    """Check the folder against `options`; write, for a new run, its command, and run.json."""
    path = folder / RUN_FILE
    _check_run(folder, options)
    if options.resume and path.exists():
        before, steps = read_json(path).get("max_steps"), options.max_steps
        if isinstance(before, int) and before != steps:
            logger.info("max_steps grows from %d to %d; the schedule of rates follows", before, steps)
    # The command first: a run that was killed between the two has not begun, and not lost its command.
    if not (options.resume and (folder / COMMAND_FILE).exists()):
        launch = ["accelerate", "launch"] if is_launched() else ["python"]
        if processes > 1:
            launch += ["--num_processes", str(processes)]
        command = shlex.join([*launch, f"pipelines/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        write_atomically(folder / COMMAND_FILE, lambda p: p.write_bytes(os.fsencode(command + "\n")))
    text = json.dumps(options_to_dict(options), indent=2) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_skipped(folder: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """All that was left out of the data, a name and why on each line."""
    text = "".join(f"{name}: {' '.join(why.split())}\n" for name, why in skipped)
    write_atomically(folder / SKIPPED_FILE, lambda p: p.write_text(text, encoding="utf-8"))


def command_line(folder: Path) -> str:
    """The command that began the run in `folder`, for the model's card."""
    # Names of files may be no UTF-8; those bytes are shown as \xff is.
    return (folder / COMMAND_FILE).read_text(encoding="utf-8", errors="backslashreplace").strip()


def _may_lie_elsewhere(folder: Path) -> set[str]:
    """Options that say where what the run learns from lies, if the run knows that again by itself."""
    files = {"data.path": DATA_FILE, "tokens": TOKENS_FILE}
    return {option for option, file in files.items() if (folder / file).exists()}


def require_same_data(folder: Path, resumed: bool, record: Mapping[str, Any]) -> None:
    """Keep what a run knows of its data, `Splits.record`, in data.json; on a resume compare it.

    `ValueError` that says what differs. A run of an older release kept nothing: the log says so, and what the
    data are now is kept.
    """
    path = folder / DATA_FILE
    if resumed and path.exists():
        began = read_json(path)
        differs = [
            f"{name.replace('_', ' ')} {shortened(began.get(name))}, now {shortened(record[name])}"
            for name in record
            if name != "digest" and began.get(name) != record[name]
        ]
        if began.get("digest") != record["digest"]:
            what = "; ".join(differs) or "files were changed, renamed or labelled otherwise"
            raise ValueError(
                f"{folder} began with other data ({what}); bring those back, or give their place with "
                "--data.path, or start a new run in another --output"
            )
        return
    if resumed:
        logger.warning("%s is of an older release and does not know its data: nothing compares them", folder)
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def _compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    defaults: Mapping[str, Any],
    path: Path,
    may_change: Collection[str],
) -> None:
    """`ValueError` naming an option that may not change. One that a run of an older release does not have had
    its default."""
    before, after, unset = flatten(old), flatten(new), flatten(defaults)
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, unset.get(name)), after.get(name)
        if name == "max_steps" and isinstance(was, int) and isinstance(now, int) and now != was:
            if now < was:
                raise ValueError(f"--max-steps may only grow on a resume: it was {was}, now {now}")
        elif was != now and name not in may_change:
            raise ValueError(
                f"{flag_of(name)} is {now!r}, but the run in {path.parent} has {was!r}; leave it out to "
                "resume that run, or start a new one in another --output"
            )


class MetricsLog:
    """metrics.jsonl, one object per line; on a resume the lines that came after the checkpoint are dropped
    first: those of later steps, and the evaluation after the run's last step."""

    def __init__(self, path: Path, start_step: int, enabled: bool, last_step: int | None = None) -> None:
        self.path, self.enabled = path, enabled
        if not enabled:
            return
        rows = read_metrics(path) if path.exists() else []
        rows = [row for row in rows if row["step"] <= start_step]
        if start_step == last_step:
            rows = [row for row in rows if row["step"] < start_step or not is_evaluation(row)]
        kept = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(path, lambda p: p.write_text(kept if start_step else "", encoding="utf-8"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row and flush it."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def sync(self) -> None:
        """Have all rows written to the disk, before a checkpoint that comes after them."""
        if self.enabled and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def is_evaluation(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("valid/") for name in row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a half-written last line, as a killed run leaves it, is left out.

    `ValueError` for a line of JSON that is no row of ours.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(
                f"{path}: line {number} is {shortened(row)}, expected an object with a step; remove the line"
            )
        rows.append(row)
    return rows
