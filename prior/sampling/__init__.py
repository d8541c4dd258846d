"""Drawing codes from a prior: choosing from logits, and the network step by step."""
