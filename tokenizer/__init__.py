"""Tokenizers for pictures and sound: `Tokenizer` turns data into discrete codes or a Gaussian posterior, and back."""
