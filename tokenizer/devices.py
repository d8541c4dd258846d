"""Moving what the host draws or reads to a device, without making either wait for the other."""

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`; to a GPU the copy begins at once, and what follows on the device comes after it.

    Only memory that is pinned is copied so: from other memory CUDA first waits for all work before it.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
