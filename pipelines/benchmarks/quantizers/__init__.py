"""The bake-off of quantizers: the same tokenizer with ours and with peers' bottlenecks."""
