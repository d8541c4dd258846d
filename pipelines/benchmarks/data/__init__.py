"""Loading data against other loaders: rates, waits of training, and memory."""
