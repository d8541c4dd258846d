"""Tokenizers for pictures and sound: discrete codes (VQ-VAE) or a Gaussian posterior (VAE), and back.

Left out: training scripts and data sets (`pipelines`), and models of codes (`prior`).
"""

from tokenizer.model import Tokenizer, TokenizerOutput
from tokenizer.model_config import TokenizerConfig

__all__ = ["Tokenizer", "TokenizerConfig", "TokenizerOutput"]
