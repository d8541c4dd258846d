"""A hash of all that decides what a code means, so that a prior never gets the codes of another tokenizer.

Left out: comparing fingerprints, which is up to those who hold codes.
"""

import hashlib
import json
from typing import Any

from torch import nn

from tokenizer.bottlenecks import Bottleneck


def fingerprint(described: dict[str, Any], encoder: nn.Module, bottleneck: Bottleneck) -> str:
    """16 hex digits of a config as plain JSON values, the encoder's weights and the bottleneck's coding
    state."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    skipped = bottleneck.not_coding
    state |= {f"bottleneck.{k}": v for k, v in bottleneck.state_dict().items() if k not in skipped}
    for name in sorted(state):
        values = state[name].detach().to("cpu").float().contiguous()
        digest.update(name.encode() + str(tuple(values.shape)).encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]
