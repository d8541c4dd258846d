"""Measures of what a prior draws, beside those of real and of rebuilt data: numbers only."""
