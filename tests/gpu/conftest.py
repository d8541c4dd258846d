"""How `pytest -m gpu` tells what it did: the card, what was not run and why, and that there is no GPU.

Left out: the checks, and what they need of the rest of the suite.
"""

import os
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.gpu import card as cards
from tests.gpu.card import Card, NotRun, machine

# Of this run: the card, and how many checks there were no GPU for.
CARD, WITHOUT_GPU = pytest.StashKey[Card](), pytest.StashKey[int]()


@cache
def known_machine() -> list[str]:
    return machine(cards.DEVICE)


def card_of(config: pytest.Config) -> Card:
    return config.stash.setdefault(CARD, Card())


@pytest.hookimpl(trylast=True)  # once checks that nobody asked for are gone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    checks = [item for item in items if item.get_closest_marker("gpu")]
    if checks and not torch.cuda.is_available():
        config.stash[WITHOUT_GPU] = len(checks)
        config.hook.pytest_deselected(items=checks)
        items[:] = [item for item in items if item not in checks]
    elif checks:
        # --deterministic needs it from cuBLAS's first use on.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.collectonly:
        return
    if count := config.stash.get(WITHOUT_GPU, 0):
        terminalreporter.write_line(f"{count} checks for GPUs not run: there is no GPU that torch can use")
    if CARD in config.stash:
        terminalreporter.write_line(f"the card of this run: {Path(config.option.gpu_card).resolve()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("gpu") and (call.when == "call" or (call.when == "setup" and call.excinfo)):
        outcome = report.outcome
        if call.excinfo is not None:
            said = str(call.excinfo.value).strip().splitlines() or [call.excinfo.typename]
            outcome = said[0] if report.skipped else f"failed: {said[0]:.300}"
        card = card_of(item.config)
        card.end(item.name.removeprefix("test_"), outcome, call.duration)
        # After each, for a run that is ended before its last.
        card.write(Path(item.config.option.gpu_card), known_machine())
    return report


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    try:
        return (yield)
    except NotRun as reason:
        pytest.skip(f"not run: {reason}")


@pytest.fixture
def card(pytestconfig: pytest.Config) -> Card:
    """The card of this run, for figures."""
    return card_of(pytestconfig)


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The GPU, with nothing left to do, and peaks of memory that begin anew."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cards.DEVICE)
    yield cards.DEVICE
    torch.cuda.synchronize(cards.DEVICE)
