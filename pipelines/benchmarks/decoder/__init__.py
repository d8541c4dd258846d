"""Steps of a decoder's training beside those of the tokenizer that it belongs to."""
