"""Tokenizers for pictures and sound: discrete codes (VQ-VAE) or a Gaussian posterior (VAE), and back.

Left out: training scripts and data sets (`pipelines`), and models of codes (`prior`).
"""

from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer, TokenizerOutput

__all__ = ["Tokenizer", "TokenizerConfig", "TokenizerOutput"]
