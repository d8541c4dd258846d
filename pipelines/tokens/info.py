"""tokens.json: what every code of a data set of tokens means.

Left out: the codes (`items.py`).
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.run.folder import TOKENS_FILE
from tokenizer.hub.files import read_json, write_json
from tokenizer.variants import config_from_dict, require

SPLITS = ("train", "held_out")
MAX_VIEWS = 1000
# Of a grid; a picture of 16384 x 16384 pixels has as many.
MAX_POSITIONS = 1 << 26
# Not written for pictures.
OF_TIME = ("frame_rate", "sample_rate", "stride")


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
    """Positions along each axis of the grid; () for items of any number of frames."""
    item_shape: tuple[int, ...]
    """(C, *size) of the data that one grid stands for; (C,) where items have any length."""
    class_names: tuple[str, ...] = ()
    source: str = ""
    """Name of the data set that was encoded."""
    frame_rate: float = 0.0
    """Of signals over time: frames of codes per second, sample_rate / stride; else 0."""
    sample_rate: int = 0
    """Of signals over time: samples per second."""
    stride: int = 0
    """Of signals over time: samples per frame."""
    views: int = 1
    """Rows of every training item: it as it is, and `views` - 1 augmented ones. Held-out items have one."""
    encoding: str = ""
    """Digest of encoding.json, which every shard bears too. Empty, as `shards`: of an older release."""
    shards: tuple[int, ...] = ()
    """How many shards the training and the held-out split have."""
    license: str = ""
    """That of the tokenizer, as its card names it, or unknown; empty: of an older release."""

    def __post_init__(self) -> None:
        require(
            1 <= self.codebook_size <= 1 << 24, f"codebook_size is {self.codebook_size}, expected 1 to 2^24"
        )
        require(1 <= self.num_codebooks <= 1024, f"num_codebooks is {self.num_codebooks}, expected 1 to 1024")
        require(
            bool(self.grid or self.frame_rate) and all(n >= 1 for n in self.grid) and len(self.grid) <= 3,
            f"grid is {self.grid}, expected 1 or more each (or none, with a frame_rate)",
        )
        require(
            math.prod(self.grid) <= MAX_POSITIONS,
            f"grid is {self.grid}, expected {MAX_POSITIONS} positions in all or fewer",
        )
        require(
            1 <= len(self.item_shape) <= 4 and all(1 <= n <= MAX_POSITIONS for n in self.item_shape),
            f"item_shape is {self.item_shape}, expected 1 to {MAX_POSITIONS} along each of 1 to 4 axes",
        )
        require(
            max(len(self.fingerprint), len(self.encoding), len(self.license)) <= 200,
            "fingerprint, encoding and license are expected to have 200 characters at most",
        )
        require(1 <= self.views <= MAX_VIEWS, f"views is {self.views}, expected 1 to {MAX_VIEWS}")
        require(
            len(self.shards) in (0, 2) and all(n >= 1 for n in self.shards),
            f"shards is {self.shards}, expected how many {' and '.join(SPLITS)} have, 1 or more",
        )
        if self.frame_rate != 0:
            fits = math.isclose(self.frame_rate * self.stride, self.sample_rate)
            require(
                0 < self.frame_rate < math.inf and self.stride >= 1 and fits and len(self.grid) <= 1,
                f"frame_rate is {self.frame_rate}, grid {self.grid}: expected for sound a frame_rate of "
                f"sample_rate / stride = {self.sample_rate} / {self.stride}, and one axis at most",
            )

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest of uint16 and uint32 that holds every code."""
        return np.dtype(np.uint16 if self.codebook_size <= 1 << 16 else np.uint32)

    @property
    def codes_per_item(self) -> int:
        """K · positions, for sound of any length those of one frame."""
        return self.num_codebooks * int(np.prod(self.grid))


def write_info(folder: Path, info: TokenInfo) -> None:
    """Write tokens.json, last of all: a folder with it is complete."""
    values = dataclasses.asdict(info)
    if not info.frame_rate:
        values = {k: v for k, v in values.items() if k not in OF_TIME}
    write_json(folder / TOKENS_FILE, values)


def read_info(folder: Path) -> TokenInfo:
    """tokens.json of a folder. `ValueError` if it is not there or not whole."""
    if not (folder / TOKENS_FILE).exists():
        raise ValueError(
            f"{folder}: no tokens there ({TOKENS_FILE} is missing); make them with encode_dataset.py"
        )
    values = read_json(folder / TOKENS_FILE)
    try:
        return config_from_dict(TokenInfo, values, str(folder / TOKENS_FILE))
    except ValueError as error:
        raise ValueError(f"{error}; make the tokens anew with encode_dataset.py") from error


def require_same_tokens(run: Path, info: TokenInfo) -> None:
    """`ValueError` if the run in a folder, which keeps the tokens.json that it began with, learnt codes of
    another tokenizer or encoding. Runs of older releases keep none."""
    if not (run / TOKENS_FILE).exists():
        return
    began = read_info(run)
    if began.fingerprint != info.fingerprint:
        raise ValueError(
            f"{run} learnt codes of the tokenizer with fingerprint {began.fingerprint}, but the tokens are "
            f"now of {info.fingerprint}; bring those tokens back, or start a new run in another --output"
        )
    if began.encoding != info.encoding:
        raise ValueError(
            f"{run} learnt tokens of the encoding {began.encoding or 'unknown'}, but they are now of "
            f"{info.encoding or 'unknown'}; bring those tokens back, or start a new run in another --output"
        )
