"""Checkpoints that other people's training left as a pickle: read without running code, and written anew."""
