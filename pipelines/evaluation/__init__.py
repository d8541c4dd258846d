"""Measures of tokenizers and priors on held-out data: numbers only."""
