"""What a Hub keeps: repositories with their commits, branches and tags, and who may do what with them.

Left out: HTTP (local_hub.py), pull requests, deleted files, and everything but models.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# The tokens that are valid: their account, and whether they may write.
TOKENS = {"hf_user": ("user", True), "hf_reader": ("user", False), "hf_other": ("other", True)}
LICENSES = {"apache-2.0", "cc-by-4.0", "mit", "other"}
# What the real Hub puts into every new repository: large files of these names go beside git.
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Large:
    """A file that a commit only points to, by its SHA-256."""

    oid: str
    size: int


class Refused(Exception):
    """An answer other than the one asked for, with the real Hub's headers."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass
class Repository:
    """Commits by hash, each all files by path, and the commits that branches and tags name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes | Large]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": ATTRIBUTES})

    def commit(self, branch: str, changes: Mapping[str, bytes | Large]) -> str:
        """The hash of a new commit on `branch`: its files with `changes`."""
        parent = self.refs.get(branch, "")
        files = {**self.commits.get(parent, {}), **changes}
        commit = hashlib.sha1(repr((parent, sorted(files.items()))).encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit

    def find(self, revision: str) -> str:
        """The commit that a branch, a tag or a whole hash names."""
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


def account_of(token: str | None) -> str:
    """The account of a token; none is nobody's."""
    if token is None:
        return ""
    if token not in TOKENS:
        raise Refused(401, "", "Invalid credentials in Authorization header")
    return TOKENS[token][0]


def require_write(owner: str, token: str | None) -> None:
    account = account_of(token)
    if not account:
        raise Refused(401, "", "Invalid username or password.")
    assert token is not None
    if account != owner or not TOKENS[token][1]:
        raise Refused(403, "", f"You don't have the rights to write under the namespace {owner!r}")


def require_read(repository: Repository | None, owner: str, token: str | None, content: bool) -> Repository:
    """The repository, if this token may see it, and its `content` if that is asked for."""
    account = account_of(token)
    if repository is None or (repository.private and account != owner):
        if account:
            raise Refused(404, "RepoNotFound", "Repository not found")
        raise Refused(401, "RepoNotFound", "Invalid username or password.")
    if content and repository.gated and account != owner:
        raise Refused(403 if account else 401, "GatedRepo", "Access to this model is restricted.")
    return repository


def git_oid(content: bytes | Large) -> str:
    """What the client takes a file's content for: git's hash, or the SHA-256 of a large file."""
    if isinstance(content, Large):
        return content.oid
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def size(content: bytes | Large) -> int:
    return content.size if isinstance(content, Large) else len(content)


def xet_hashes(store: Path) -> dict[str, str]:
    """By SHA-256, the Xet hashes of all files in a store of the client's own (`local://`).

    Its shards list them in records of 48 bytes: a hash, flags and a number of records that follow, as many
    again if the highest flag is set, and one with the SHA-256 if the second highest is.
    """
    found = {}
    for shard in store.rglob("*.mdb"):
        data, at = shard.read_bytes(), 48
        while data[at : at + 32] != b"\xff" * 32:
            name = _hex(data[at : at + 32])
            flags, count = struct.unpack("<II", data[at + 32 : at + 40])
            at += 48 * (1 + count * (2 if flags >> 31 else 1))
            if flags >> 30 & 1:
                found[_hex(data[at : at + 32])] = name
                at += 48
    return found


def _hex(hash_: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", hash_))
