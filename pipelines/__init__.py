"""The scripts, and what only they need."""

from pipelines.heap import use_huge_pages

# Here, as some of what the scripts import makes tensors at once.
use_huge_pages()
