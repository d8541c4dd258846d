"""A Hub in one thread: enough of its HTTP interface to create a repository, commit to it, and download it.

Left out: accounts, branches, large files, and everything else.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class LocalHub:
    """Repositories as {name: {path: content}}, a `log` of (method, path), and the server's `url`."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.log: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def sha(self, name: str) -> str:
        """The one commit of a repository, a hash of its content."""
        files = sorted(self.repositories[name].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request."""
        parts = path.strip("/").split("/")
        if (method, path) == ("POST", "/api/repos/create"):
            self.created.append(json.loads(body))
            name = "/".join(filter(None, (self.created[-1].get("organization"), self.created[-1]["name"])))
            name = name if "/" in name else f"user/{name}"
            self.repositories.setdefault(name, {})
            return reply({"url": f"{self.url}/{name}", "name": name, "id": "1"})
        if (method, path) == ("POST", "/api/validate-yaml"):
            return reply({"errors": [], "warnings": []})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        files, verb = self.repositories[name], (parts[4:5] or [""])[0]
        if method == "POST" and verb == "preupload":
            asked = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return reply({"files": [{"path": f["path"], **regular} for f in asked]})
        if method == "POST" and verb == "commit":
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.url}/{name}/commit/{self.sha(name)}"
            return reply({"success": True, "commitOid": self.sha(name), "commitUrl": url})
        if parts[0] == "api" and verb in ("", "revision"):
            if verb and parts[5] not in ("main", self.sha(name)):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            siblings = [{"rfilename": f} for f in sorted(files)]
            return reply({"id": name, "modelId": name, "sha": self.sha(name), "siblings": siblings})
        if parts[0] == "api" and verb == "tree":
            return reply(
                [
                    {"type": "file", "path": f, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for f, c in sorted(files.items())
                ]
            )
        if parts[2:3] == ["resolve"] and "/".join(parts[4:]) in files:
            content = files["/".join(parts[4:])]
            return 200, {"ETag": hashlib.sha1(content).hexdigest(), "X-Repo-Commit": self.sha(name)}, content
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"


def reply(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serve() -> Iterator[LocalHub]:
    """A Hub that answers on a free local port while the context is open."""
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.log.append((self.command, path))
            hub.tokens.add(self.headers.get("Authorization"))
            status, headers, content = hub.answer(self.command, path, body)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
