"""See, hear and edit codes in a browser: `python -m pipelines.page`, `python -m pipelines.page --prior DIR`.

Opens a page on this machine: rebuild your own picture or voice, see its codes, change them, have a prior fill
a hole or draw new ones, and compare tokenizers. Needs the extra `page`.

Left out: training (the other scripts).
"""

if __name__ == "__main__":  # before anything imports torch
    from pipelines.run.environment import prepare_environment

    prepare_environment()

import logging
import signal
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated

from pipelines.browser.models import read_models
from pipelines.run.command_line import NOTHING, parse, run
from tokenizer.installation import install_extra
from tokenizer.variants import require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageOptions:
    """Options of page.py."""

    tokenizer: Annotated[tuple[str, ...], NOTHING] = ()
    """Folders or Hub ids of up to four tokenizers of pictures or sound (ID:FOLDER for one in a folder
    within), or embedded:NAME; left out, those that the priors name."""
    prior: Annotated[tuple[str, ...], NOTHING] = ()
    """Folders or Hub ids of up to four priors, or embedded:NAME, for filling and drawing; left out with
    --tokenizer too, those that ship with the project."""
    tokens: Annotated[tuple[str, ...], NOTHING] = ()
    """Folders of the tokens that the priors learnt: each sample is shown beside the training item nearest to
    it."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """The port to listen on."""
    space: Path | None = None
    """Serve nothing, but write this folder, ready to be a Space of the Hub with these models in it."""

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, f"port is {self.port}, expected 1 to 65535")


def main() -> None:
    """Serve the page until the process is asked to end."""
    options = parse(PageOptions, __doc__ or "")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.space is not None:
        from pipelines.browser.space import write_space

        write_space(options.space, options.tokenizer, options.prior, options.tokens)
        logger.info("%s is ready to be pushed as a Space; try it: python %s/app.py", *[options.space] * 2)
        return
    serve(options)


def serve(options: PageOptions) -> None:
    """Serve the page; its models are loaded while it is shown already."""
    if find_spec("gradio") is None:
        raise ValueError(f"the page needs the package gradio; {install_extra('page')}")
    require_port(options.host, options.port)
    models = read_models(options.tokenizer, options.prior, options.tokens)
    from pipelines.browser.app import served, wait_for_end

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with served(models, options.host, options.port) as address:
        logger.info("the page is at %s (end it with Ctrl-C)", address)
        models.load()
        try:
            wait_for_end()
        except KeyboardInterrupt:
            logger.info("ended")


def require_port(host: str, port: int) -> None:
    """`ValueError` unless the port can be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"--host {host}: there is no such host here ({error.strerror})") from error
    with socket.socket(family, kind, protocol) as sock:
        # As the server does: a port that was just left is free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise ValueError(
                f"--port {port}: cannot be taken on {host} ({error.strerror}); choose another --port"
            ) from error


def _end(number: int, frame: FrameType | None) -> None:
    """A request to end does what Ctrl-C does, so that uploads are removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    run(main)
