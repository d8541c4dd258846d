"""Measurements of ours against peers in one run: a room for each benchmark, and what they share."""
