"""What the sub-folders of a data set are: splits, classes, or wrappers around both, by their usual names.

Left out: walking through folders (folders.py), and labels that stand in files (folders.py).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.data.config import TEST_NAMES, TRAIN_NAMES, VALID_NAMES, DataConfig

_LIBRISPEECH = re.compile(r"-(clean|other)(-\d+)?$")  # as in train-clean-100
# Where all folders begin so, as train-2017 and val-2017 do, they are splits too.
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class FolderLayout:
    """Folders below `base` ("" or "wrapper/"): those to train on and those to hold out (neither: all is one
    split), and folders that are left out."""

    base: str
    train: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def prefixes(self, folders: Iterable[str]) -> tuple[str, ...]:
        """What the names of all files in `folders` begin with."""
        return tuple(f"{self.base}{folder}/" for folder in folders)


def layout_of(config: DataConfig, names: Sequence[str], where: object) -> FolderLayout:
    """The layout of files `names`, relative and with "/".

    Splits are folders called by their usual names, if there is one to train on and one to hold out, or by the
    names that `config` gives; a folder with everything in it is a wrapper. Raises `ValueError` for a split
    that was asked for and is not there, and for folders that may be meant in several ways.
    """
    base = ""
    while True:
        below = [name[len(base) :] for name in names]
        tops = sorted({name.split("/", 1)[0] for name in below if "/" in name})
        found = _splits(config, tops, where)
        if found is not None and (found[1] or len(tops) > 1):
            train, held_out = found
            return FolderLayout(base, train, held_out, tuple(t for t in tops if t not in (*train, *held_out)))
        sole = len(tops) == 1 and all("/" in name for name in below)
        # A sole folder of files, without folders in it, may be a class; one called as a split is none.
        if not sole or not (found or split_of(tops[0]) or any(name.count("/") > 1 for name in below)):
            for option in config.splits_given:
                raise config.no_split(option, tops, where)
            return FolderLayout(base)
        base += f"{tops[0]}/"
        if found is not None and config.given("split"):
            return FolderLayout(base)


def _splits(
    config: DataConfig, tops: Sequence[str], where: object
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The folders to train on, and those to hold out, among `tops`; None if these are not splits."""
    kinds = [split_of(top) for top in tops]
    firsts = [_first_word(top) for top in tops]
    if all(firsts) and "train" in firsts and len(set(firsts)) > 1:
        kinds = firsts
    of = dict(zip(tops, kinds, strict=True))
    asked = config.splits_given
    named = {option: _same_name(name, tops) for option, name in asked.items()}
    if not all(named.values()):
        return None
    train = named.get("split", tuple(t for t in tops if of[t] == "train"))
    rest = [t for t in tops if t not in train]
    usual = (tuple(t for t in rest if of[t] == kind) for kind in ("test", "valid"))
    held_out = named.get("test_split") or next(filter(None, usual), ())
    if train and (asked or held_out or not rest):
        return train, held_out
    if held_out and (asked or (len(tops) > 1 and all(kinds))):
        raise ValueError(
            f"{where}: there is {held_out[0]}/ to hold out, and no folder to train on; name it with "
            f"--data.split (there are: {', '.join(tops)}), or give the folder of one split alone"
        )
    return None


def _same_name(name: str, tops: Sequence[str]) -> tuple[str, ...]:
    """The folder of this name, or else those that differ from it in case only."""
    return (name,) if name in tops else tuple(t for t in tops if t.casefold() == name.casefold())


def split_of(name: str) -> str | None:
    """Which of train, test and valid it is for a usual name of a split, whatever its case; else None."""
    word = _LIBRISPEECH.sub("", name.casefold())
    kinds = {"train": TRAIN_NAMES, "test": TEST_NAMES, "valid": VALID_NAMES}
    return next((kind for kind, names in kinds.items() if word in names), None)


def _first_word(name: str) -> str | None:
    """The split that the first word of a name names."""
    word = _WORD.match(name)
    return split_of(word[0]) if word else None


def class_of(name: str, prefix: str) -> str | None:
    """The folder right below `prefix` that a file lies in, in Unicode's composed form (NFC), which file
    systems and archives change; None for a file outside of such."""
    first, slash, _ = name[len(prefix) :].partition("/")
    return unicodedata.normalize("NFC", first) if slash else None
