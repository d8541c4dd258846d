"""Codes on disk: what they mean, their shards, and the items and batches that a prior learns from."""
