"""Tokenizers of other libraries through ours beside their libraries' own calls."""
