"""Readers of files: pictures, and sound of any rate, to arrays."""
