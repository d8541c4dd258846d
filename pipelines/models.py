"""Loading a prior together with the tokenizer whose codes it knows.

Left out: loading a model alone, which is `from_pretrained`.
"""

from pathlib import Path

import torch

from prior import Prior
from tokenizer import Tokenizer


def load_models(prior: str, tokenizer: str, device: torch.device) -> tuple[Prior | None, Tokenizer]:
    """The prior (None without a name) and the tokenizer of that name, or else the one that the prior names.

    Raises `ValueError` if neither is given, one cannot be loaded, or they do not belong together.
    """
    if not prior and not tokenizer:
        raise ValueError("give --prior DIR, or --tokenizer DIR, or both")
    loaded = Prior.from_pretrained(prior).to(device) if prior else None
    if loaded is None or tokenizer:
        tok = Tokenizer.from_pretrained(tokenizer).to(device)
    else:
        try:
            tok = Tokenizer.from_pretrained(_tokenizer_of(prior, loaded)).to(device)
        except ValueError as error:
            raise ValueError(
                f"the prior's tokenizer cannot be loaded; give it with --tokenizer: {error}"
            ) from error
    if loaded is not None:
        loaded.check_tokenizer(tok.fingerprint())
    return loaded, tok


def _tokenizer_of(prior: str, loaded: Prior) -> str | Path:
    """The tokenizer that a prior names, or a folder of that name beside the prior's own: the two may have
    been moved together, as those of the quickstart are easily."""
    named = loaded.config.tokenizer_id
    beside = Path(prior).parent / Path(named).name
    return beside if named and not Path(named).is_dir() and beside.is_dir() else named
