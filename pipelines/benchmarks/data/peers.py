"""Loaders as a user writes them: a `Dataset` that decodes one example, in torch's `DataLoader`.

Left out: what ours has besides: an order that a run resumes in, equal data for any number of processes, and
broken files.
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchaudio.functional import resample

from pipelines.data.augment import Augment
from pipelines.data.clips import Clips
from pipelines.data.examples import Examples
from pipelines.data.pictures import PICTURES
from pipelines.data.sounds import SOUND
from pipelines.tokens.items import TokenRows, TokenSplit
from pipelines.tokens.windows import Windows

Item = tuple[Tensor, int]


def opened(raw: bytes | str) -> Any:
    """What Pillow and soundfile take."""
    return BytesIO(raw) if isinstance(raw, bytes) else raw


class Pictures(Dataset[Item]):
    """Pictures by Pillow, as torchvision's ImageFolder reads them, mirrored and moved at random."""

    def __init__(self, examples: Examples, augment: Augment) -> None:
        self.examples, self.augment = examples, augment
        self.channels, self.height, self.width = examples.shape

    def __len__(self) -> int:
        return len(self.examples)

    def open(self, i: int) -> Image.Image:
        return Image.open(opened(self.examples.raw(i)))

    def __getitem__(self, i: int) -> Item:
        image = self.open(i).convert("RGB" if self.channels == 3 else "L")
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height))
        x = torch.from_numpy(np.array(image)).reshape(self.height, self.width, -1).permute(2, 0, 1)
        if self.augment.flip and torch.rand(()) < 0.5:
            x = x.flip(-1)
        if by := self.augment.shift:
            top, left = torch.randint(2 * by + 1, (2,)).tolist()
            x = torch.nn.functional.pad(x[None].float(), (by,) * 4, "replicate")[0].to(torch.uint8)
            x = x[:, top : top + self.height, left : left + self.width]
        labels = self.examples.labels
        return x, -1 if labels is None else int(labels[i])


class DatasetsPictures(Pictures):
    """The same with the decoding of `datasets.Image`."""

    def __init__(self, examples: Examples, augment: Augment) -> None:
        import datasets

        super().__init__(examples, augment)
        raw = [examples.raw(i) for i in range(len(examples))]
        cells = [
            {"bytes": r, "path": None} if isinstance(r, bytes) else {"bytes": None, "path": r} for r in raw
        ]
        self.rows = datasets.Dataset.from_dict(
            {"image": cells}, features=datasets.Features({"image": datasets.Image()})
        )

    def open(self, i: int) -> Image.Image:
        image: Image.Image = self.rows[i]["image"]
        return image


class Sounds(Dataset[Item]):
    """A random crop of a sound that soundfile reads whole and torchaudio resamples."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> Item:
        samples, rate = soundfile.read(opened(self.clips.raw(i)), dtype="float32", always_2d=True)
        x = torch.from_numpy(samples.T)
        if self.clips.channels == 1:
            x = x.mean(0, keepdim=True)
        x = resample(x, rate, self.clips.sample_rate)
        size = self.clips.crop
        start = int(torch.randint(max(0, x.shape[1] - size) + 1, ()))
        x = x[:, start : start + size]
        labels = self.clips.labels
        return torch.nn.functional.pad(x, (0, size - x.shape[1])), -1 if labels is None else int(labels[i])


class CodeCrops(Dataset[Item]):
    """A random window of the codes of a random clip."""

    def __init__(self, windows: Windows) -> None:
        self.clips, self.frames, self.count = windows.clips, windows.frames, len(windows)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Item:
        clip = i % len(self.clips)
        whole = self.clips.clip(clip)
        start = int(torch.randint(max(0, len(whole) - self.frames) + 1, ()))
        codes = torch.from_numpy(whole[start : start + self.frames].T.astype(np.int64))
        return torch.nn.functional.pad(codes, (0, self.frames - codes.shape[1])), int(self.clips.labels[clip])


def peers_of(examples: Any, augment: Augment) -> dict[str, Callable[[], Dataset[Item]]]:
    """The peers for some training data by name."""
    pictures: dict[str, Callable[[], Dataset[Item]]] = {
        "DataLoader, Pillow": lambda: Pictures(examples, augment),
        "DataLoader, datasets": lambda: DatasetsPictures(examples, augment),
    }
    sound: dict[str, Callable[[], Dataset[Item]]] = {"DataLoader, soundfile": lambda: Sounds(examples)}
    known = {PICTURES: pictures, SOUND: sound}
    return known[examples.kind]


def peer_of_tokens(rows: TokenRows) -> Dataset[Any]:
    """Codes and labels: all of them as tensors, or crops of clips."""
    if isinstance(rows, Windows):
        return CodeCrops(rows)
    assert isinstance(rows, TokenSplit)
    return TensorDataset(*rows.rows(slice(None)))


def endless(dataset: Dataset[Any], batch_size: int, workers: int) -> Iterator[Any]:
    """Batches of shuffled epochs, one after the other."""
    loader = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader
