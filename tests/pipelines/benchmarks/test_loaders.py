"""Loaders that ours is compared with: they give the same examples.

Left out: how fast they are.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipelines.benchmarks.data.peers import endless, peer_of_tokens, peers_of
from pipelines.data.augment import Augment
from pipelines.data.batches import batches, load_splits
from pipelines.data.config import DataConfig
from pipelines.tokens.clips import CodeClips
from pipelines.tokens.items import TokenSplit
from pipelines.tokens.windows import Windows
from tests.helpers.pictures_on_disk import load, write
from tests.helpers.tiny import audio_config


@pytest.mark.parametrize("name", ["DataLoader, Pillow", "DataLoader, datasets"])
def test_pictures_are_those_of_our_loader(tmp_path: Path, name: str) -> None:
    train = load(write(tmp_path, [f"{'ab'[i % 2]}/{i}.png" for i in range(7)]), valid_fraction=0).train
    (ours,) = batches(train, batch_size=7, seed=0, stop_step=1)
    wanted = {i: (x, int(y)) for i, x, y in zip(ours.index.tolist(), ours.x, ours.labels, strict=True)}
    plain = peers_of(train, Augment())[name]()
    for i in range(7):
        x, label = plain[i]
        assert torch.equal(x, wanted[i][0]) and label == wanted[i][1]
    augment = Augment(flip=True, shift=1)
    torch.manual_seed(0)
    views = {peers_of(train, augment)[name]()[3][0].numpy().tobytes() for _ in range(200)}
    possible = {
        augment.view(x[None], np.array([0]), np.array([e]), 1, 0)[0].numpy().tobytes()
        for x in [wanted[3][0]]
        for e in range(400)
    }
    assert len(possible) == 18 and views == possible
    for _, (x, labels) in zip(range(5), endless(plain, 3, workers=0), strict=False):
        assert x.dtype == torch.uint8 and len(x) == len(labels) and len(x) in (1, 3)


def test_sounds_are_crops_of_ours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, (rate, samples) in enumerate([(16000, 3000), (16000, 500), (8000, 2000)]):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, (samples, 2)), rate, subtype="FLOAT")
    data = DataConfig(path=str(tmp_path), valid_fraction=0)
    clips = load_splits(data, audio_config().build(), cache_bytes=0).train
    (peer,) = (build() for build in peers_of(clips, Augment()).values())
    assert len(peer) == 3
    for i in range(3):
        x, label = peer[i]
        whole = torch.nn.functional.pad(clips.x(i), (0, max(0, 960 - clips.samples(i))))
        places = whole.unfold(1, 960, 1)[0]
        assert x.shape == (1, 960) and label == -1
        # Resampled in pieces and in one go: the same to rounding.
        assert (places - x).abs().amax(1).min() < 1e-4


def test_tokens_are_those_of_ours() -> None:
    codes = np.arange(5 * 6, dtype=np.uint16).reshape(5, 1, 2, 3)
    split = TokenSplit(codes, np.arange(5))
    found = list(itertools.islice(endless(peer_of_tokens(split), 2, workers=0), 3))
    rows = {tuple(row.flatten().tolist()): int(y) for x, ys in found for row, y in zip(x, ys, strict=True)}
    assert rows == {tuple(codes[i].flatten().tolist()): i for i in range(5)}
    clips = CodeClips.of(
        [torch.arange(14).reshape(2, 7), torch.arange(14, 20).reshape(2, 3)], np.array([4, 6])
    )
    windows = Windows(clips, 4)
    peer = peer_of_tokens(windows)
    assert len(peer) == len(windows) == 3
    x, label = peer[0]
    assert label == 4 and torch.equal(x[1] - x[0], torch.full((4,), 7)) and x.shape == (2, 4)
    x, label = peer[1]
    assert label == 6 and x.tolist() == [[14, 15, 16, 0], [17, 18, 19, 0]]
