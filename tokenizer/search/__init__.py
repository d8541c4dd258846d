"""The search for nearest codebook entries, which every bottleneck uses; exact, with back ends for devices."""

from tokenizer.search.exact import nearest

__all__ = ["nearest"]
