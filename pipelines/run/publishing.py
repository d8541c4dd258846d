"""Pushing what a script made to the Hub: what would refuse it is found before the work, and its folder stays
whole.

Left out: the Hub itself (`tokenizer.hub.client`).
"""

import json
import logging
import shlex
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator

from pipelines.run.processes import on_main
from tokenizer.hub.client import prepare_push, push_folder
from tokenizer.hub.model import UNKNOWN, USUAL

logger = logging.getLogger(__name__)


class Publishing(Protocol):
    """Options of a script that can push."""

    @property
    def output(self) -> Path: ...
    @property
    def license(self) -> str: ...
    @property
    def push_to_hub(self) -> str: ...
    @property
    def push_private(self) -> bool: ...


def license_of(given: str, tokenizer: str = "") -> str:
    """What a model's card names: the licence that --license gives, unless that is the usual one and the
    `tokenizer` which it is made of has another."""
    return tokenizer if tokenizer and given == USUAL else given


def license_note(name: str, license: str, what: str = "Its codes are those of") -> str:
    """A sentence on the licence of the tokenizer that a model is made of, for the model's card."""
    if not license:  # of tokens from an older release, or of a tokenizer that was never saved
        return ""
    known = license != UNKNOWN
    return f" {what} {name}, " + (f"licence {license}." if known else UNKNOWN_LICENSE)


UNKNOWN_LICENSE = "whose licence is unknown here: read that of its own page before anything is published."


def check_push(accelerator: Accelerator, options: Publishing, resumed: bool = False) -> None:
    """`ValueError` on every process if the Hub would refuse what --push-to-hub asks for; only a warning for a
    run that is resumed, which a Hub that is down must not end."""
    if not options.push_to_hub:
        return

    def prepare() -> None:
        try:
            prepare_push(options.push_to_hub, options.push_private, license=options.license)
        except ValueError as error:
            raise ValueError(f"--push-to-hub {error}") from error

    try:
        on_main(accelerator, prepare)
    except ValueError as error:
        if not resumed:
            raise
        logger.warning("%s\nThe run goes on; if this is still so at its end, it says how to push", error)


def push(accelerator: Accelerator, options: Publishing, subfolder: str = "") -> None:
    """Upload the model in the output folder, if --push-to-hub asks for it; or the one in its `subfolder`, to
    the same place in the repository."""
    if not (options.push_to_hub and accelerator.is_main_process):
        return
    folder, repo_id, private = str(options.output / subfolder), options.push_to_hub, options.push_private
    try:
        url = push_folder(folder, repo_id, private=private, subfolder=subfolder)
    except ValueError as error:
        into = f", subfolder={json.dumps(subfolder)}" if subfolder else ""
        call = f"push_folder({json.dumps(folder)}, {json.dumps(repo_id)}, private={private}{into})"
        code = shlex.quote(f"from tokenizer.hub.client import push_folder; {call}")
        raise ValueError(
            f"{error}\nThe model is whole in {folder}. To push it later:\n  python -c {code}"
        ) from error
    logger.info("pushed: %s", url)
