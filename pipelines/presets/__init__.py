"""Presets: named sets of options that the first word of a command line chooses. A new file here is found
without touching others.
"""

import importlib
import pkgutil

from pipelines.presets.registry import PRIORS, TOKENIZERS

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)  # which enters its presets

__all__ = ["PRIORS", "TOKENIZERS"]
