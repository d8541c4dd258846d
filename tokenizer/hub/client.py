"""Saved folders to the Hub and back, and what the Hub's refusals mean and ask for.

Left out: the files of a model and what they hold (`tokenizer.hub.model`).
"""

import glob
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import HfApi, ModelCard, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tokenizer.hub.files import CONFIG, DIFFUSION_WEIGHTS, KNOWN_FILES, WEIGHTS, read_json

logger = logging.getLogger(__name__)

Token = str | bool | None

# Of a download that breaks off.
ATTEMPTS = 3
NOT_CACHED = (
    "local_files_only was given, and not all of it was downloaded before; leave that out to ask the Hub"
)
LOG_IN = "run `hf auth login` or set HF_TOKEN"


class HubSource(NamedTuple):
    """Which of a repository's models is meant, and how it is asked for."""

    revision: str | None = None
    subfolder: str = ""
    cache_dir: str | Path | None = None
    token: Token = None
    local_files_only: bool = False


def fetch(path_or_hub_id: str | Path, check: Callable[[Path], object], source: HubSource) -> Path:
    """The local folder of a saved model, downloaded first if it is a Hub id.

    Of a Hub id config.json comes first, and `check` of its folder may refuse it by a `ValueError` before the
    weights are downloaded. Raises `ValueError` that names what is neither a folder nor on the Hub, and why,
    and for a subfolder that would lead out of the model's folder.
    """
    path, name, within = Path(path_or_hub_id), str(path_or_hub_id), checked_subfolder(source.subfolder)
    if not name:
        raise ValueError("no folder or Hub id of a model was given")
    if path.is_dir():
        if not (path / within).is_dir():
            raise ValueError(
                f"{path}: has no folder {within}, which was given as the subfolder; there are: "
                f"{_folders_beside(path / within, path)}"
            )
        return path / within
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"{name}: no such folder (and not a Hub id of the form user/name)")
    what = "its cache does not hold it" if source.local_files_only else "the Hub did not give it"
    problem = f"{name}: no such folder, and {what}"
    with _explained(problem, name, source):
        folder = _download(name, [CONFIG], source)
        if not (folder / within / CONFIG).exists():
            if source.local_files_only:
                raise ValueError(NOT_CACHED)
            raise ValueError(f"it has no {(within / CONFIG).as_posix()}, so it is no model of tokenloom")
    check(folder / within)
    with _explained(problem, name, source):
        # The cache names the folder by its commit: all files are of one, whatever is pushed meanwhile.
        folder = _download(name, list(KNOWN_FILES), source._replace(revision=folder.name))
        weights = [folder / within / file for file in (WEIGHTS, DIFFUSION_WEIGHTS)]
        if source.local_files_only and not any(path.exists() for path in weights):
            raise ValueError(NOT_CACHED)
    return folder / within


def _folders_beside(missing: Path, path: Path) -> str:
    """A few folders where `missing`, a path below `path`, was looked for, as subfolders of `path`."""
    there = next(folder for folder in missing.parents if folder.is_dir())
    names = sorted(p.relative_to(path).as_posix() for p in there.iterdir() if p.is_dir())
    return ", ".join(names[:5] + ["..."] * (len(names) > 5)) or "none"


def checked_subfolder(subfolder: str) -> PurePosixPath:
    """A folder within a repository, "" the repository itself. `ValueError` for what would lead out of it."""
    path = PurePosixPath(subfolder) if isinstance(subfolder, str) else None
    if path is None or path.is_absolute() or ".." in path.parts or "\\" in subfolder or ":" in subfolder:
        raise ValueError(
            f"subfolder: expected the path of a folder within the repository, such as models/small, got "
            f"{subfolder!r}; it may neither be absolute nor hold .., a backslash or a colon"
        )
    return path


def _download(name: str, files: list[str], source: HubSource) -> Path:
    """The cache's folder of a repository with those of `files` that it has (in its subfolder).

    The client itself goes on where a connection ended, but gives up when one was reset, and at most errors
    of the server; these are tried again here.
    """
    within = checked_subfolder(source.subfolder)
    for attempt in range(ATTEMPTS):
        try:
            return Path(
                snapshot_download(
                    name,
                    revision=source.revision,
                    cache_dir=source.cache_dir,
                    token=source.token,
                    allow_patterns=[glob.escape((within / file).as_posix()) for file in files],
                    local_files_only=source.local_files_only,
                )
            )
        except Exception as error:
            wait = _wait(_root(error), attempt)
            if wait is None or attempt + 1 == ATTEMPTS:
                raise
            logger.warning("%s: the download broke off (%s); again in %g s", name, _root(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _wait(error: BaseException, attempt: int) -> float | None:
    """Seconds after which what failed may work; None if never, or not soon."""
    seconds = float(2**attempt)
    if isinstance(error, HfHubHTTPError):
        status, after = error.response.status_code, error.response.headers.get("Retry-After", "")
        if status != 429 and status < 500:
            return None
        seconds = max(seconds, float(after)) if after.isdigit() else seconds
    elif type(error).__name__ != "ReadError":  # of httpx or httpx2, as the client's version has it
        return None
    return seconds if seconds <= 60 else None


def prepare_push(
    repo_id: str,
    private: bool = False,
    token: Token = None,
    revision: str | None = None,
    license: str | None = None,
) -> None:
    """Make the Hub repository `repo_id`, and its branch `revision`, if they are not there.

    Raises `ValueError` for whatever would refuse a push there: the name, the token, its rights, a public
    repository where a `private` one is asked for, and a `license` that the Hub does not know.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r}: cannot be pushed to; expected a Hub repository user/name")
    problem = f"{repo_id}: the Hub did not take the model"
    api = HfApi(token=token)
    with _explained(problem, repo_id, HubSource(revision, token=token)):
        if _without_token(token) and not constants.HF_HUB_OFFLINE:
            raise ValueError(f"there is no token; {LOG_IN}, with a token that may write to it")
        api.create_repo(repo_id, private=private, exist_ok=True)
        # A repository that is there already is fine with `exist_ok`, whoever owns it.
        api.auth_check(repo_id, write=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                "it is there already and public, but a private one is asked for; make it private in its "
                "settings, or choose another name"
            )
        if license is not None:
            _require_license(license)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)


def push_folder(
    directory: str | Path,
    repo_id: str,
    private: bool = False,
    token: Token = None,
    revision: str | None = None,
    subfolder: str = "",
) -> str:
    """Upload the model's files of a saved folder (no checkpoints, logs or run options) to the Hub repository
    `repo_id`, on its branch `revision`, or to a `subfolder` of it; returns the commit's URL. What is not
    there is made first.

    Raises `ValueError` that says why the Hub refuses, and what to do.
    """
    directory = Path(directory)
    read_json(directory / CONFIG)
    prepare_push(repo_id, private, token, revision)
    source = HubSource(revision, token=token)
    with _explained(f"{repo_id}: the Hub did not take the model", repo_id, source):
        commit = HfApi(token=token).upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            path_in_repo=subfolder or None,
            revision=revision,
            allow_patterns=list(KNOWN_FILES),
            commit_message="Upload model",
        )
    return str(commit)


def _require_license(license: str) -> None:
    try:
        ModelCard(f"---\nlicense: {license}\n---\n").validate()
    except ValueError as error:  # with all licences there are
        known = "https://huggingface.co/docs/hub/repositories-licenses"
        raise ValueError(f"it knows no license {license!r}; take an id of {known}, or `other`") from error


@contextmanager
def _explained(problem: str, name: str, source: HubSource) -> Iterator[None]:
    """Whatever the Hub's client and its transport raise, as a `ValueError`: `problem`, and the reason."""
    try:
        yield
    except Exception as error:  # of a dozen unrelated kinds
        raise ValueError(f"{problem}: {_reason(error, name, source)}") from error


def _reason(error: BaseException, name: str, source: HubSource) -> str:
    """Why the Hub did not do what it was asked, and what to do about it."""
    hub, error = constants.ENDPOINT, _root(error)
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        if source.local_files_only:
            return NOT_CACHED
        return "HF_HUB_OFFLINE is set, and the cache does not hold it; unset it to ask the Hub"
    if isinstance(error, GatedRepoError):
        return f"it is gated; ask for access at {hub}/{name}, then {LOG_IN}, with a token of that account"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {source.revision!r}; expected a branch, a tag or a whole commit hash"
    if isinstance(error, RepositoryNotFoundError):
        who = "no token was given" if _without_token(source.token) else "this token may not read it"
        return f"there is no such repository, or it is private and {who}; check the name, or {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, name)
    if "httpx" in type(error).__module__:
        return f"the connection to {hub} failed ({type(error).__name__}: {error}); try again"
    return str(error) or type(error).__name__


def _root(error: BaseException) -> BaseException:
    """The error behind the client's own words for "and the cache has no copy", and for a failed upload."""
    while error.__cause__ is not None and isinstance(error, (LocalEntryNotFoundError, RuntimeError)):
        error = error.__cause__
    return error


def _refusal(error: HfHubHTTPError, name: str) -> str:
    status, said = error.response.status_code, error.server_message
    answer = f"it answered {status}" + (f" ({said})" if said else "")
    if status == 401:
        settings = f"{constants.ENDPOINT}/settings/tokens"
        return f"{answer}: the token is not valid; make one at {settings}, then {LOG_IN}"
    if status == 403:
        return f"{answer}: the token has no right to it; {LOG_IN}, with a token that may write there"
    if status == 429 or status >= 500:
        return f"{answer}; try again later"
    return f"{answer}; check the name, the revision and the files at {constants.ENDPOINT}/{name}"


def _without_token(token: Token) -> bool:
    return token is False or (not isinstance(token, str) and get_token() is None)
