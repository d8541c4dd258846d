"""Encoding and decoding of sound against other codecs, in time and memory."""
