"""DNSMOS P.835 (Reddy et al. 2021, arXiv 2110.01763): the mean opinion score that listeners would give
speech, by a network that needs no original and comes with the package speechmos.

Left out: rates and channels (`sound_metrics.py`), the scores of voice and background alone, P.808, and the
package's code, which needs librosa and of which none is run.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tokenizer.installation import install_extra

PACKAGE, FILE = "speechmos", "dnsmos_models/sig_bak_ovr.onnx"
# Of the file in release 0.0.1.1.
SHA256 = "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"
RATE = 16000  # Hz
WINDOW_SECONDS, WINDOW = 9.01, 144_160
# Raw overall score → that of listeners: the package's polynomial for scores that are not personalised.
OVERALL = (-0.06766283, 1.11546468, 0.04602535)


def weights_file() -> Path | None:
    """The file with the network, found without running the package; None if there is none, or nothing to run
    it."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations or find_spec("onnxruntime") is None:
        return None
    path = Path(found.submodule_search_locations[0], FILE)
    return path if path.is_file() else None


def overall_score(x: Tensor) -> float:
    """x (T,) in [-1, 1] at 16 kHz, T > 0 → OVRL, about 1 (bad) to 4.

    The mean over windows, as the package takes it. What does not fill a window is repeated, and scored in the
    first alone: the package scores up to 7 windows of such a loop, which differ in where it begins. Of 24
    clips of 1 to 9 s its scores were 0.03 away on average, and their mean 0.001. `ValueError` where the
    network's file is missing or not the one that was tried.
    """
    session = load_session()
    if len(x) < WINDOW:
        x = x.repeat(WINDOW // len(x) + 1)[:WINDOW]
    samples, name = x.detach().float().cpu().numpy(), session.get_inputs()[0].name
    windows = [samples[None, start * RATE :][:, :WINDOW] for start in window_starts(len(x))]
    raw = [session.run(None, {name: window})[0][0, 2] for window in windows]  # after voice, background
    return float(np.polyval(OVERALL, raw).mean())


def window_starts(samples: int) -> list[int]:
    """Seconds at which windows begin that the package scores: by whole seconds, but for those whose end its
    arithmetic rounds down by a sample, as all from second 7 to 23 (so that of sounds of 16 to 33 s it hears
    the first 16)."""
    count = int(samples // RATE - WINDOW_SECONDS) + 1
    return [i for i in range(count) if int((i + WINDOW_SECONDS) * RATE) - i * RATE >= WINDOW]


@cache
def load_session() -> Any:
    """The network, for one thread: who measures many sounds does so in several processes."""
    path = weights_file()
    data = b"" if path is None else path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(
            f"dnsmos: {path} is missing or not the file of {PACKAGE} 0.0.1.1; install that release: "
            f"{install_extra('metrics')}"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
