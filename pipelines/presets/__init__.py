"""Presets: named sets of options that the first word of a command line chooses. A new file here is found
without touching others.
"""

from pipelines.presets.registry import DECODERS, PRIORS, TOKENIZERS
from tokenizer.variants import import_modules

import_modules(__name__)

__all__ = ["DECODERS", "PRIORS", "TOKENIZERS"]
