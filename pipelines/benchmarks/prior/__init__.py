"""Sampling from a prior and training it, against a Llama of the same size."""
