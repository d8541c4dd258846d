"""What a Hub answers to the requests by which huggingface_hub creates repositories, uploads and downloads.

Left out: what is kept (hub_repositories.py), HTTP itself (local_hub.py), and all that models do not need.
"""

import base64
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from tests.helpers.hub_repositories import (
    LICENSES,
    Large,
    Refused,
    Repository,
    account_of,
    git_oid,
    require_read,
    require_write,
    size,
    xet_hashes,
)

Answer = tuple[int, dict[str, str], bytes]


class Hub:
    """Repositories by name, the content of `large` files by SHA-256, and a `store` of the client's Xet."""

    def __init__(self, store: Path) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.store = store
        self.url = ""
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Answer:
        """Status, headers and body of the answer to a request."""
        match [method, *map(unquote, path.strip("/").split("/"))]:
            case ["POST", "api", "repos", "create"]:
                return self.create(json.loads(body), token)
            case ["POST", "api", "validate-yaml"]:
                return validate_card(json.loads(body)["content"])
            case [verb, "api", "models", owner, name, *rest]:
                return self.answer_api([verb, *rest], owner, name, token, body)
            case ["POST", owner, name, "info", "lfs", "objects", "batch"]:
                require_write(owner, token)
                return self.lfs_batch(json.loads(body)["objects"])
            case ["PUT", "lfs", oid] if hashlib.sha256(body).hexdigest() == oid:
                self.large[oid] = body
                return reply({})
            case ["POST", "lfs", "verify"]:
                value = json.loads(body)
                if len(self.large.get(value["oid"], b"")) == value["size"]:
                    return reply({})
            case ["GET", "cdn", oid]:
                return 200, {"ETag": oid}, self.large[oid]
            case [("GET" | "HEAD"), owner, name, "resolve", revision, *parts]:
                repository = require_read(self.repositories.get(f"{owner}/{name}"), owner, token, True)
                return self.resolve(f"{owner}/{name}", repository, repository.find(revision), "/".join(parts))
        raise Refused(404, "", f"{method} {path} is not for this Hub")

    def answer_api(self, words: list[str], owner: str, name: str, token: str | None, body: bytes) -> Answer:
        full = f"{owner}/{name}"
        repository = require_read(self.repositories.get(full), owner, token, False)
        if words[0] == "POST" or words[1:] == ["auth-check", "write"] or words[1:2] == ["xet-write-token"]:
            require_write(owner, token)
        match words:
            case ["GET"] | ["GET", "revision", _]:
                commit = repository.find(words[2] if words[1:] else "main")
                return reply({"id": full, "sha": commit, "private": repository.private, "siblings": []})
            case ["GET", "auth-check", "write"]:
                return reply({})
            case ["GET", "tree", revision]:
                return self.tree(repository.commits[repository.find(revision)])
            case ["POST", "preupload", revision]:
                files = repository.commits[repository.find(revision)]
                return reply({"files": [upload_mode(f, files) for f in json.loads(body)["files"]]})
            case ["POST", "commit", revision]:
                repository.find(revision)
                with self.lock:
                    commit = repository.commit(revision, self.changes(body))
                return reply({"commitOid": commit, "commitUrl": f"{self.url}/{full}/commit/{commit}"})
            case ["POST", "branch", branch]:
                if branch in repository.refs:
                    raise Refused(409, "", f"Reference already exists: refs/heads/{branch}")
                repository.refs[branch] = repository.find("main")
                return reply({})
            case ["POST", "tag", revision]:
                repository.refs[json.loads(body)["tag"]] = repository.find(revision)
                return reply({})
            case ["GET", ("xet-write-token" | "xet-read-token"), _]:
                url, until = f"local://{self.store}", str(int(time.time()) + 3600)
                headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "a", "X-Xet-Token-Expiration": until}
                status, more, content = reply({"casUrl": url, "accessToken": "a", "exp": int(until)})
                return status, headers | more, content
        raise Refused(404, "", f"{words} of {full} is not for this Hub")

    def create(self, asked: dict[str, Any], token: str | None) -> Answer:
        owner = asked["organization"] or account_of(token)
        require_write(owner, token)
        name = f"{owner}/{asked['name']}"
        status, headers, content = reply({"url": f"{self.url}/{name}", "name": name, "id": "1"})
        if name in self.repositories:
            return 409, headers, content
        private = asked["visibility"] == "private" if "visibility" in asked else asked["private"]
        self.repositories[name] = Repository(private=private)
        return status, headers, content

    def lfs_batch(self, objects: list[dict[str, Any]]) -> Answer:
        upload = [
            {
                **wanted,
                "actions": {
                    "upload": {"href": f"{self.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.url}/lfs/verify"},
                },
            }
            for wanted in objects
            if wanted["oid"] not in self.large
        ]
        there = [wanted for wanted in objects if wanted["oid"] in self.large]
        return reply({"transfer": "basic", "objects": upload + there})

    def changes(self, body: bytes) -> dict[str, bytes | Large]:
        """The files of a commit; a large one must have been uploaded before."""
        files: dict[str, bytes | Large] = {}
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in {**self.large, **xet_hashes(self.store)}:
                    raise Refused(400, "", f"LFS pointer to a file that does not exist: {value['path']}")
                files[value["path"]] = Large(value["oid"], value["size"])
        return files

    def tree(self, files: dict[str, bytes | Large]) -> Answer:
        hashes, rows = xet_hashes(self.store), []
        for path, content in sorted(files.items()):
            rows.append({"type": "file", "path": path, "size": size(content), "oid": git_oid(content)})
            if isinstance(content, Large):
                rows[-1]["lfs"] = {"oid": content.oid, "size": content.size, "pointerSize": 130}
                if content.oid in hashes:
                    rows[-1]["xetHash"] = hashes[content.oid]
        return reply(rows)

    def resolve(self, name: str, repository: Repository, commit: str, path: str) -> Answer:
        """A file, or where it is: as from the real Hub, large ones come from another host."""
        if path not in repository.commits[commit]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, headers = repository.commits[commit][path], {"X-Repo-Commit": commit}
        if isinstance(content, bytes):
            return 200, headers | {"ETag": git_oid(content)}, content
        headers |= {"X-Linked-Etag": content.oid, "X-Linked-Size": str(content.size)}
        if content.oid not in self.large:
            headers["X-Xet-Hash"] = xet_hashes(self.store)[content.oid]
            headers["X-Xet-Refresh-Route"] = f"{self.url}/api/models/{name}/xet-read-token/{commit}"
        elsewhere = self.url.replace("127.0.0.1", "localhost")
        return 302, headers | {"Location": f"{elsewhere}/cdn/{content.oid}"}, b""


def reply(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def upload_mode(asked: dict[str, Any], files: dict[str, bytes | Large]) -> dict[str, Any]:
    """Whether a file goes into git, as text does, or beside it, as .gitattributes or bytes that are no text
    ask for."""
    attributes = files[".gitattributes"]
    assert isinstance(attributes, bytes)
    patterns = [line.split()[0].lstrip("*") for line in attributes.decode().splitlines()]
    path, there = asked["path"], files.get(asked["path"])
    beside = path.endswith(tuple(patterns)) or b"\0" in base64.b64decode(asked["sample"])
    mode = {"uploadMode": "lfs" if beside else "regular", "shouldIgnore": False}
    return {"path": path, "oid": None if there is None else git_oid(there), **mode}


def validate_card(card: str) -> Answer:
    """What the Hub says of a card's front matter."""
    try:
        facts = yaml.safe_load(card.removeprefix("---\n").split("\n---\n")[0])
    except yaml.YAMLError as error:
        facts = {"license": str(error)}
    problems = [] if facts["license"] in LICENSES else [f'"license" must be one of {sorted(LICENSES)}']
    status, headers, _ = reply(None)
    answer = {"errors": [{"message": p} for p in problems], "warnings": []}
    return 400 if problems else status, headers, json.dumps(answer).encode()
