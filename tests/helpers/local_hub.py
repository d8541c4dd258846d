"""A Hub on a local port, whose answers may be cut short or refused, as those of a bad line are.

Left out: what it answers (hub_api.py).
"""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.helpers.hub_api import Hub
from tests.helpers.hub_repositories import Large, Refused


class Seen(NamedTuple):
    """A request that came in."""

    method: str
    path: str
    token: str | None
    range: str | None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of this method whose path contains `part`: an error
    `status`, or an answer whose body ends after `cut` bytes, by closing the connection or by a `reset`."""

    method: str
    part: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False


class LocalHub(Hub):
    """A Hub with the requests that it has `seen`, and the `faults` to come."""

    def __init__(self, store: Path) -> None:
        super().__init__(store)
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that befalls this request."""
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.part in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def take_seen(self) -> list[Seen]:
        """The requests since the last call."""
        seen, self.seen = self.seen, []
        return seen

    def content(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision, but for what every repository begins with."""
        repository = self.repositories[name]
        files = repository.commits[repository.find(revision)]
        whole = {p: self.large[c.oid] if isinstance(c, Large) else c for p, c in files.items()}
        whole.pop(".gitattributes")
        return whole


class Handler(BaseHTTPRequestHandler):
    """Requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer takes 40 ms
    hub: LocalHub

    def handle_any(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization")
        token = token and token.removeprefix("Bearer ")
        self.hub.seen.append(Seen(self.command, path, token, self.headers.get("Range")))
        fault = self.hub.fault(self.command, path)
        try:
            if fault is not None and fault.status:
                status, headers, content = fault.status, fault.headers, b"{}"
            else:
                status, headers, content = self.hub.answer(self.command, path, token, body)
        except Refused as refused:
            status, headers = refused.status, refused.headers
            content = json.dumps({"error": str(refused)}).encode()
        wanted = self.headers.get("Range")
        if wanted and self.command == "GET" and status == 200:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            status, content = 206, content[start:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.write(content, fault)

    def write(self, content: bytes, fault: Fault | None) -> None:
        if fault is None or fault.cut is None:
            self.wfile.write(content)
            return
        self.wfile.write(content[: fault.cut])
        self.wfile.flush()
        if fault.reset:  # closing sends a reset in place of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def serve(store: Path) -> Iterator[LocalHub]:
    """A Hub that answers on a free local port while the context is open; files by Xet go to `store`."""
    hub = LocalHub(store)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
