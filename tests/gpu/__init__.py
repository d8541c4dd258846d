"""What only a GPU can show: `pytest -m gpu` checks and measures it there, and writes a card."""
