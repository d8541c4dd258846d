"""A browser that sees the served page and nothing else, and what it must not have seen.

Left out: tests.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.running import Script
from tests.helpers.served import Served, browser_path, served

# How many tests could not be run for want of a browser.
WITHOUT_BROWSER = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)  # once tests that nobody asked for are gone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needing = [item for item in items if "chromium" in getattr(item, "fixturenames", ())]
    if needing and browser_path() is None:
        config.stash[WITHOUT_BROWSER] = len(needing)
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(WITHOUT_BROWSER, 0):
        terminalreporter.write_line(f"{count} tests in a browser not run: there is no Chromium on the path")


DESKTOP, PHONE = (1100, 800), (390, 844)
# Milliseconds that an answer of the page may take.
PATIENCE = 30_000


@pytest.fixture(scope="session")
def page_served(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page with models that ship, of pictures and of sound, and codes of some of what they learnt."""
    folder, tokens = tmp_path_factory.mktemp("page"), list[Path]()
    for name, count in (("embedded:emoji", 48), ("embedded:speech", 6)):
        tokens.append(folder / name.partition(":")[2])
        words = ("--tokenizer", name, "--data.path", name, "--data.limit", count, "--output", tokens[-1])
        script("encode_dataset", *words)
    words = ("--prior", "embedded:emoji", "embedded:speech", "--tokens", *tokens)
    with served(("-m", "pipelines.page", *words), folder) as page:
        yield page


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Headless Chromium of the system."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    assert path is not None
    with sync_playwright() as playwright:
        # Names of others are not even looked up. Playwright could refuse them too, but then nothing would be
        # cached, and every test would read the whole page anew.
        alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", alone])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def windows(chromium: Any) -> Iterator[Callable[[tuple[int, int]], Any]]:
    """What opens a window of a size; those of one size have their cache in common."""
    contexts = dict[tuple[int, int], Any]()

    def window(size: tuple[int, int]) -> Any:
        if size not in contexts:
            viewport = {"width": size[0], "height": size[1]}
            contexts[size] = chromium.new_context(viewport=viewport, accept_downloads=True)
        return contexts[size].new_page()

    yield window
    for context in contexts.values():
        context.close()


class Visit:
    """A person's window on the page: `page` is Playwright's. What is asked of others than the page's server
    is kept in `outside`, what goes wrong in `wrong`."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.outside, self.wrong = list[str](), list[str]()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", self._asked)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.goto(url)
        self.page.get_by_role("tab", name="Rebuild", exact=True).wait_for()

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, *tabs: str) -> None:
        """Go to a tab, and to one within it."""
        for name in tabs:
            self.page.get_by_role("tab", name=name, exact=True).locator("visible=true").first.click()

    def upload(self, part: str, path: Path) -> None:
        """Give a file to a part of the page."""
        self.page.set_input_files(f"#{part} input[type=file]", path)

    def shown(self, part: str) -> str:
        """The address of the picture or sound that a part shows, "" for none; a new result has a new one."""
        found = self.page.locator(f"#{part} img, #{part} audio")
        return str(found.first.get_attribute("src") or "") if found.count() else ""

    def until(self, condition: Callable[[], Any]) -> Any:
        """What becomes true, once it is."""
        end = time.monotonic() + PATIENCE / 1000
        while not (value := condition()):
            assert time.monotonic() < end, self.page.inner_text("body")
            self.page.wait_for_timeout(20)
        return value

    def new(self, part: str, before: str = "") -> str:
        """The address of what a part shows once that is not what it was."""
        return str(self.until(lambda: (now := self.shown(part)) != before and now))

    def says(self, part: str, words: str) -> str:
        """What a part of the page says once it holds some words."""
        place = self.page.locator(f"#{part}")
        return str(self.until(lambda: words in (text := place.inner_text()) and text))

    def told(self, words: str) -> str:
        """A sentence of the page about a mistake, which is put away."""
        toast = self.page.locator(".toast-body.error").filter(has_text=words).first
        text = str(toast.inner_text(timeout=PATIENCE))
        assert "Traceback" not in text and "Error:" not in text, text
        toast.locator("button").first.click()
        toast.wait_for(state="detached")
        return text

    def cell(self, part: str, column: int, row: int, columns: int, rows: int) -> None:
        """Click on a cell of a grid."""
        picture = self.page.locator(f"#{part} img")
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        x, y = (column + 0.5) * box["width"] / columns, (row + 0.5) * box["height"] / rows
        picture.click(position={"x": x, "y": y})

    def download(self, part: str, name: str, to: Path) -> Path:
        """A file of a part's downloads, by its name."""
        with self.page.expect_download() as waiting:
            self.page.locator(f"#{part} tr").filter(has_text=name.rpartition(".")[0]).locator(
                "a"
            ).first.click()
        waiting.value.save_as(to / name)
        return to / name

    def end(self) -> None:
        """Nothing may have been asked of others, and nothing gone wrong."""
        assert self.outside == [] and self.wrong == []


@pytest.fixture
def visit(page_served: Served, windows: Callable[[tuple[int, int]], Any]) -> Iterator[Callable[..., Visit]]:
    """What opens the page in a new window, of a size; the page takes each for another person."""
    visits = list[Visit]()

    def begin(size: tuple[int, int] = DESKTOP) -> Visit:
        visits.append(Visit(windows(size), page_served.url))
        return visits[-1]

    yield begin
    for each in visits:
        each.page.close()
    for each in visits:
        each.end()
