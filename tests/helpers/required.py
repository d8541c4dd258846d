"""What pyproject.toml asks for, and what that brings.

Left out: whether versions fit (test_installation.py).
"""

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.running import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def asked_for() -> list[Requirement]:
    """All that pyproject.toml asks for, extras included."""
    lists = (PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"], *EXTRAS.values())
    return [Requirement(text) for texts in lists for text in texts]


def installed_by(requirements: Iterable[Requirement]) -> Iterator[str]:
    """Names of the requirements, and of all that these ask for in turn on this machine."""
    queue, seen = list(requirements), set()
    while queue:
        requirement = queue.pop()
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            yield name
            try:
                texts = requires(name) or []
            except PackageNotFoundError:  # an extra that is not installed here
                continue
            further = [Requirement(text) for text in texts]
            queue += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]
