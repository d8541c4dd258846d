"""The page served by a process of its own, as a person starts it.

Left out: browsers, and what is asked of the page.
"""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.running import environment

# Where browsers may be found, and how they are called.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 240


def browser_path() -> str | None:
    """Where Chromium is installed; None if it is not."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@dataclass
class Served:
    """A running page: its address, its process, its folder of uploads, and the seconds after which it first
    answered."""

    url: str
    process: "subprocess.Popen[str]"
    folder: Path
    passed: float
    log: Path

    def memory(self) -> int:
        """Bytes that the process holds."""
        (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(line) * 1024


@contextlib.contextmanager
def served(command: Sequence[object], folder: Path, **variables: str) -> Iterator[Served]:
    """`python COMMAND --port N`, once it answers; ended as by Ctrl-C, after which its uploads must be gone.
    `folder` keeps its log and its temporary files."""
    port, log, temporary = free_port(), folder / "page.log", folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *map(str, command), "--port", str(port)]
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            words,
            env={**environment(), "TMPDIR": str(temporary), **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while not answers(url):
            assert process.poll() is None and time.monotonic() - started < PATIENCE, log.read_text()
            time.sleep(0.05)
        passed = time.monotonic() - started
        while "the models are loaded" not in log.read_text():
            assert process.poll() is None and time.monotonic() - started < PATIENCE, log.read_text()
            time.sleep(0.05)
        (uploads,) = temporary.glob("tokenloom-page-*")
        yield Served(url, process, uploads, passed, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()
        # Gradio itself writes one of who asks for a file that was not uploaded.
        said = log.read_text()
        assert not uploads.exists() and said.count("Traceback") == said.count("InvalidPathError: "), said
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    """Whether a server gives its page."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False
