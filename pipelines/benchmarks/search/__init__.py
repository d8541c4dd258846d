"""The search for nearest codebook entries against other ways to search, in time and memory."""
