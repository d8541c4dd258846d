"""The scripts, and what only they need."""
