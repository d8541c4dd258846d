"""A prior together with the tokenizer whose codes it knows.

Left out: loading a model alone, which is `from_pretrained`.
"""

from pathlib import Path
from typing import Any

import torch

from pipelines.run.folder import RUN_FILE, TOKENS_FILE
from prior import Prior
from tokenizer import Tokenizer
from tokenizer.hub.embedded import EMBEDDED
from tokenizer.hub.files import read_json


def require_models(prior: str, tokenizer: str) -> None:
    """`ValueError` if neither is named."""
    if not prior and not tokenizer:
        raise ValueError("give --prior DIR, or --tokenizer DIR, or both")


def load_tokenizer(name: str, **options: Any) -> Tokenizer:
    """The tokenizer in a folder or on the Hub: user/name, or user/name:FOLDER for one in a folder within;
    `options` are those of `from_pretrained`."""
    source, subfolder = split_name(name)
    return Tokenizer.from_pretrained(source, subfolder=subfolder, **options)


def split_name(name: str) -> tuple[str, str]:
    """The folder or Hub id of a model, and the folder within, "" for none."""
    whole, _, subfolder = name.partition(":")
    as_it_is = Path(name).is_dir() or not whole or name.startswith(EMBEDDED)
    return (name, "") if as_it_is else (whole, subfolder)


def load_models(
    prior: str, tokenizer: str, device: torch.device | str | int | None, local_files_only: bool = False
) -> tuple[Prior | None, Tokenizer]:
    """The prior (None without a name) and the tokenizer of that name, or else the one that the prior names.

    `device` and `local_files_only` are those of `from_pretrained`. Raises `ValueError` if neither is given,
    one cannot be loaded, or they do not belong together.
    """
    require_models(prior, tokenizer)
    options: dict[str, Any] = {"device": device, "local_files_only": local_files_only}
    loaded = Prior.from_pretrained(prior, **options) if prior else None
    if loaded is None or tokenizer:
        tok = load_tokenizer(tokenizer, **options)
    else:
        try:
            tok = load_tokenizer(str(tokenizer_of(Path(prior), loaded)), **options)
        except ValueError as error:
            raise ValueError(
                f"the prior's tokenizer cannot be loaded; give it with --tokenizer: {error}"
            ) from error
    if loaded is not None:
        loaded.check_tokenizer(tok.fingerprint())
    return loaded, tok


def public_name(tokenizer: str) -> str:
    """What a prior, which may be published, names as its tokenizer: the Hub id that this was loaded from or
    pushed to, else the name of its folder without the path, which is nobody else's; an embedded one's is
    embedded:NAME."""
    source, within = split_name(tokenizer)
    folder = Path(source, within)
    if not folder.is_dir() and source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return tokenizer
    run = folder / RUN_FILE
    pushed = read_json(run).get("push_to_hub") if run.exists() else None
    return pushed if pushed and isinstance(pushed, str) else folder.resolve().name


def tokenizer_of(prior: Path, loaded: Prior) -> str | Path:
    """The tokenizer of the prior in a folder: the one that it names, if that is a path, as in priors of older
    releases; the one of the tokens that a run here learnt; or a folder of its name beside the prior's own,
    with which it may have been moved."""
    named = loaded.config.tokenizer_id
    if "/" in named and Path(named).is_dir():
        return named
    if (prior / TOKENS_FILE).exists():
        learnt = read_json(prior / TOKENS_FILE).get("tokenizer")
        if isinstance(learnt, str) and Path(*split_name(learnt)).is_dir():
            return learnt
    beside = prior.parent / Path(named).name
    return beside if named and beside.is_dir() else named
