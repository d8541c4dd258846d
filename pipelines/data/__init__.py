"""Data sets: what `--data.path` names, looked through, split and drawn from in batches."""
