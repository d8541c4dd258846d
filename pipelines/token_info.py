"""tokens.json: what every code of a data set of tokens means.

Left out: the codes (`tokens.py`).
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenizer.config import config_from_dict, require
from tokenizer.files import read_json, write_atomically

TOKENS_FILE = "tokens.json"
# Not written for pictures.
OF_SOUND = ("frame_rate", "sample_rate", "stride")


@dataclass(frozen=True)
class TokenInfo:
    """What every code of a data set of tokens means."""

    tokenizer: str
    """Folder or Hub id of the tokenizer, as it was given."""
    fingerprint: str
    """Its fingerprint."""
    codebook_size: int
    num_codebooks: int
    grid: tuple[int, ...]
    """Positions along each axis of the grid; () for items of sound of any number of frames."""
    item_shape: tuple[int, ...]
    """(C, *size) of the data that one grid stands for; (C,) for sound."""
    class_names: tuple[str, ...] = ()
    source: str = ""
    """Name of the data set that was encoded."""
    frame_rate: float = 0.0
    """Sound: frames of codes per second, sample_rate / stride. Pictures: 0, as the next two."""
    sample_rate: int = 0
    """Sound: samples per second."""
    stride: int = 0
    """Sound: samples per frame."""

    def __post_init__(self) -> None:
        require(
            1 <= self.codebook_size <= 1 << 24, f"codebook_size is {self.codebook_size}, expected 1 to 2^24"
        )
        require(1 <= self.num_codebooks <= 1024, f"num_codebooks is {self.num_codebooks}, expected 1 to 1024")
        require(
            (bool(self.grid) or self.is_sound) and all(n >= 1 for n in self.grid),
            f"grid is {self.grid}, expected 1 or more each (or none, for sound with a frame_rate)",
        )
        if self.is_sound:
            fits = math.isclose(self.frame_rate * self.stride, self.sample_rate)
            require(
                self.frame_rate > 0 and self.stride >= 1 and fits and len(self.grid) <= 1,
                f"frame_rate is {self.frame_rate}, grid {self.grid}: expected for sound a frame_rate of "
                f"sample_rate / stride = {self.sample_rate} / {self.stride}, and one axis at most",
            )

    @property
    def is_sound(self) -> bool:
        """Whether the codes have a time axis."""
        return self.frame_rate != 0

    @property
    def codes_per_item(self) -> int:
        """K · positions, for sound of any length those of one frame."""
        return self.num_codebooks * int(np.prod(self.grid))


def write_info(folder: Path, info: TokenInfo) -> None:
    """Write tokens.json, last of all: a folder with it is complete."""
    values = dataclasses.asdict(info)
    if not info.is_sound:
        values = {k: v for k, v in values.items() if k not in OF_SOUND}
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(folder / TOKENS_FILE, lambda p: p.write_text(text, encoding="utf-8"))


def read_info(folder: Path) -> TokenInfo:
    """tokens.json of a folder. `ValueError` if it is not there or not whole."""
    if not (folder / TOKENS_FILE).exists():
        raise ValueError(
            f"{folder}: no tokens there ({TOKENS_FILE} is missing); make them with encode_dataset.py"
        )
    return config_from_dict(TokenInfo, read_json(folder / TOKENS_FILE), str(folder / TOKENS_FILE))
