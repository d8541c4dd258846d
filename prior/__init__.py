"""Autoregressive models of codes: `Prior` learns p(codes | class), gives exact likelihoods and samples new codes."""
