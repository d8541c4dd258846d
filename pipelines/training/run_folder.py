"""The folder of a run: its options in run.json, its command, and what it knows of its data.

Left out: its log (`log.py`), checkpoints (`checkpoints.py`) and the model's own files (`tokenizer.hub`).
"""

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.data.batches import Splits, load_splits
from pipelines.run.command_line import flag_of, flatten
from pipelines.run.folder import (
    COMMAND_FILE,
    DATA_FILE,
    LOCK,
    RUN_FILE,
    SKIPPED_FILE,
    TOKENS_FILE,
    claimed_folder,
    locked,
    require_writable,
)
from pipelines.run.processes import load_alike, on_main
from pipelines.run.publishing import license_of
from pipelines.run.signals import is_launched
from pipelines.training.checkpoints import find_checkpoint
from pipelines.training.options import MAY_CHANGE, DecoderTraining, TokenizerTraining, TrainingOptions
from tokenizer.hub.embedded import EMBEDDED
from tokenizer.hub.files import CHECKPOINTS, read_json, write_atomically, write_json, write_text
from tokenizer.modalities import Modality
from tokenizer.variants import config_from_dict, config_to_dict, shortened

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def run_folder(accelerator: Accelerator, options: TrainingOptions) -> Iterator[Path]:
    """The run's folder, locked against a second run, with run.json written or, on a resume, compared.

    Raises `ValueError` for a folder that holds another run, that is in use or cannot be written, and for a
    resume with other options.
    """
    processes = accelerator.num_processes
    with claimed_folder(accelerator, options.output, lambda: _claim(options.output, options, processes)):
        yield options.output


@contextlib.contextmanager
def run_on_data(
    accelerator: Accelerator,
    options: TokenizerTraining | DecoderTraining,
    modality: Modality,
    license: str = "",
) -> Iterator[Splits]:
    """`run_folder` of a training on data, which are loaded before it is claimed, alike on all processes, and
    compared on a resume; what cannot be read of them is listed in the folder. `license`: of the tokenizer
    that is trained further."""
    with remembered_place(options, "data.path"):
        splits = load_alike(
            accelerator, "the data", lambda: load_splits(options.data, modality), Splits.digest
        )
    note_license(accelerator, options, options.data.path, license)
    with run_folder(accelerator, options):
        on_main(accelerator, lambda: require_same_data(options.output, bool(options.resume), splits.record()))
        skipped = dict.fromkeys((*splits.train.skipped, *splits.held_out.skipped))
        if skipped and accelerator.is_main_process:
            write_skipped(options.output, skipped)
        yield splits


def check_run_folder(accelerator: Accelerator, options: TrainingOptions) -> None:
    """`ValueError` on every process for what `run_folder` would refuse, before the data are read. Writes
    nothing."""
    on_main(accelerator, lambda: _check(options.output, options))


def _check(folder: Path, options: TrainingOptions) -> None:
    """`ValueError` for a folder that cannot be written, that another run uses, or whose run is not the one of
    `options`."""
    require_writable(folder)
    if (folder / LOCK).exists():
        locked(folder).close()
    _check_run(folder, options)
    if options.resume:
        find_checkpoint(folder / CHECKPOINTS, options.resume)


def _check_run(folder: Path, options: TrainingOptions) -> None:
    """`ValueError` for another run than that of `options`."""
    path = folder / RUN_FILE
    if options.resume:
        if path.exists():
            # One that a run of an older release does not have had its default.
            old = config_to_dict(config_from_dict(type(options), read_json(path), str(path)))
            _compare(old, config_to_dict(options), path, MAY_CHANGE | _may_lie_elsewhere(folder))
    elif path.exists() or (folder / "config.json").exists():
        raise ValueError(
            f"{folder} already holds a run; choose another --output, or continue it with --resume latest"
        )


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
        # The launcher sets it, to 1 unless its flag or the environment says otherwise.
        if is_launched() and (threads := os.environ.get("OMP_NUM_THREADS", "1")) != "1":
            launch += ["--num_cpu_threads_per_process", threads]
        command = shlex.join([*launch, f"pipelines/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        write_atomically(folder / COMMAND_FILE, lambda p: p.write_bytes(os.fsencode(command + "\n")))
    write_json(path, config_to_dict(options))


def write_skipped(folder: Path, skipped: Iterable[tuple[str, str]]) -> None:
    """All that was left out of the data, a name and why on each line."""
    text = "".join(f"{name}: {' '.join(why.split())}\n" for name, why in skipped)
    write_text(folder / SKIPPED_FILE, text)


def command_line(folder: Path) -> str:
    """The command that began the run in `folder`, for the model's card."""
    # Names of files may be no UTF-8; those bytes are shown as \xff is.
    return (folder / COMMAND_FILE).read_text(encoding="utf-8", errors="backslashreplace").strip()


def _may_lie_elsewhere(folder: Path) -> set[str]:
    """Options that say where what the run learns from lies, if the run knows that again by itself."""
    files = {"data.path": DATA_FILE, "tokens": TOKENS_FILE}
    return {option for option, file in files.items() if (folder / file).exists()}


def note_license(
    accelerator: Accelerator, options: TrainingOptions, source: str, tokenizer: str = ""
) -> None:
    """Say which licence the card of a new model of a user's own data, `source`, is going to name; and if
    --license is another than that of the `tokenizer` which it is made of."""
    if not accelerator.is_main_process or options.resume:
        return
    if not source.startswith(EMBEDDED):
        named = license_of(options.license, tokenizer)
        logger.info("the model's card says %s; give --license for another", named)
    if tokenizer and license_of(options.license, tokenizer) != tokenizer:
        text = "--license is %s, but the tokenizer's own card says %s: the model's card names both"
        logger.warning(text, options.license, tokenizer)


@contextlib.contextmanager
def remembered_place(options: TrainingOptions, option: str) -> Iterator[None]:
    """Within the context what is learnt from is read, from the place that `option` says. If that fails on a
    resume, and the place is the one that the run remembers, the `ValueError` says so."""
    try:
        yield
    except ValueError as error:
        path = options.output / RUN_FILE
        place = flatten(config_to_dict(options))[option]
        if not options.resume or not path.exists() or flatten(read_json(path)).get(option) != place:
            raise
        raise ValueError(
            f"{error}\nThe run in {options.output} began with {place}; if that was moved, give its new place "
            f"with {flag_of(option)}"
        ) from error


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
    write_json(path, record)


def _compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    path: Path,
    may_change: Collection[str],
) -> None:
    """`ValueError` naming an option that may not change."""
    before, after = flatten(old), flatten(new)
    for name in sorted(before.keys() | after.keys()):
        # A loss that a run does not name, such as one of a later release, has no weight.
        unset = 0.0 if "losses" in name.split(".")[:-1] else None
        was, now = before.get(name, unset), after.get(name, unset)
        if name == "max_steps" and isinstance(was, int) and isinstance(now, int) and now != was:
            if now < was:
                raise ValueError(
                    f"--max-steps may only grow on a resume: expected {was} or more, got {now}; leave it "
                    "out, or start a new run in another --output"
                )
        elif was != now and name not in may_change:
            raise ValueError(
                f"{flag_of(name)} is {now!r}, but the run in {path.parent} has {was!r}; leave it out to "
                "resume that run, or start a new one in another --output"
            )
