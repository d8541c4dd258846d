"""What else has to be installed: the commands that messages name, and torchaudio, which must fit torch.

torchaudio's binary fits some of torch's only, which its metadata does not say, so it is imported here alone,
when sound is first touched.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

# Exact versions that were tested together: nothing that is released later comes with an installation.
PIP_INSTALL = "pip install -c pipelines/configs/constraints.txt"
# Seen to load and to resample; torchaudio 2.11.1 beside torch 2.11 and 2.12, 2.11.0 beside 2.15, and both
# beside builds of torch for CPUs alone do not.
PAIRS = "torch 2.11 to 2.14 with torchaudio 2.11.0, torch 2.14 and 2.15 with torchaudio 2.11.1"


def install_extra(extra: str) -> str:
    """The command that installs an extra of this project, in a clone of it."""
    return f"{PIP_INSTALL} -e '.[{extra}]'"


def import_torchaudio() -> Any:
    """torchaudio, its functions and transforms. `ValueError` that says what was found, which pairs work and
    what to install, where it is missing or does not load beside this torch."""
    try:
        import torchaudio.functional
        import torchaudio.transforms
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # Its loader hides the linker's words, such as an undefined symbol, in the cause.
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ValueError(
            f"sound needs torchaudio, and {_found()} ({reason[0] if reason else type(error).__name__}); "
            f"pairs that work: {PAIRS}; {PIP_INSTALL} torch torchaudio"
        ) from error
    return torchaudio


def _found() -> str:
    try:
        return f"torchaudio {version('torchaudio')} does not load beside torch {torch.__version__}"
    except PackageNotFoundError:
        return f"there is none beside torch {torch.__version__}"
