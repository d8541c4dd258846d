"""Autoregressive models of codes: `Prior` learns p(codes | class), gives exact likelihoods and samples codes,
in raster order, or, if it learnt every order (`PriorConfig.order`), in any, several positions at once, and
given codes on all sides.

Left out: pictures and sound; to a prior, codes are integers on a grid.
"""

from prior.config import PriorConfig
from prior.model import Prior

__all__ = ["Prior", "PriorConfig"]
