"""Training: the loop that both training scripts share, its options, checkpoints, optimizers and folder."""
