"""Windows over tokens of sound: what they hold, and what chance decides.

Left out: files of tokens (test_clips.py), and priors that learn windows
(pipelines/scripts/test_sound_priors.py).
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.tokens.clips import CodeClips
from pipelines.tokens.info import TokenInfo
from pipelines.tokens.items import token_batches
from pipelines.tokens.windows import Windows, window_info

INFO = TokenInfo(
    tokenizer="runs/tok",
    fingerprint="0123456789abcdef",
    codebook_size=16,
    num_codebooks=2,
    grid=(),
    item_shape=(1,),
    class_names=("high", "low"),
    source="tones",
    frame_rate=50.0,
    sample_rate=16000,
    stride=320,
)


def clips_of(*lengths: int, labels: Any = None) -> CodeClips:
    """CodeClips whose codes tell where they are: of frame f of clip c, 1000 c + f and its double."""
    place = np.concatenate([1000 * c + np.arange(n) for c, n in enumerate(lengths)])
    codes = np.stack([place, 2 * place], axis=1).astype(np.uint32)
    labels = np.zeros(len(lengths), np.int64) if labels is None else np.array(labels)
    return CodeClips.joined(codes, np.array(lengths)[:, None], labels)


def places(windows: Windows, epoch: int = 0) -> NDArray[np.int64]:
    """The first codebook of all windows, (n, frames); the second must go with it."""
    codes, labels = windows.rows(slice(None), np.full(len(windows), epoch))
    assert codes.dtype == labels.dtype == torch.int64 and codes.shape == (len(windows), 2, windows.frames)
    assert torch.equal(codes[:, 1], 2 * codes[:, 0])
    assert np.array_equal(labels.numpy(), windows.clips.labels[codes[:, 0, 0].numpy() // 1000])
    return codes[:, 0].numpy()


def test_a_clip_counts_as_many_windows_as_fit_to_the_nearest() -> None:
    for length, count in [(1, 1), (4, 1), (10, 1), (14, 1), (15, 2), (24, 2), (25, 3), (100, 10)]:
        assert len(Windows(clips_of(length), 10)) == count
    windows = Windows(clips_of(4, 25, 10), 10)
    assert len(windows) == 5
    assert (places(windows)[:, 0] // 1000).tolist() == [0, 1, 1, 1, 2]


def test_the_first_window_begins_with_its_clip_the_others_anywhere_in_it() -> None:
    windows = Windows(clips_of(200, 7, 35), 10)
    starts = np.stack([places(windows, epoch)[:, 0] for epoch in range(40)])
    assert (starts[:, [0, 20, 21]] == [0, 1000, 2000]).all()
    others = starts[:, 1:20]
    assert others.min() < 10 and others.max() >= 195 and others.max() < 200
    assert 90 < others.mean() < 109  # uniform: 99.5, with a standard error of 2
    assert len(np.unique(others)) > 180


def test_what_a_window_lacks_comes_from_other_clips_of_its_label() -> None:
    lengths, labels = (5, 3, 25, 4, 2, 9), [0, 1, 0, 1, 1, -1]
    windows = Windows(clips_of(*lengths, labels=labels), 10)
    followers = set()
    for epoch in range(30):
        for row in places(windows, epoch):
            clip = row // 1000
            cuts = np.flatnonzero(np.diff(row) != 1) + 1
            for before, after in zip(cuts - 1, cuts, strict=True):
                assert row[before] % 1000 == lengths[clip[before]] - 1  # joined end …
                assert row[after] % 1000 == 0  # … to start
                assert labels[clip[before]] == labels[clip[after]]
                # Another clip, but for the one that has no label.
                assert (clip[before] != clip[after]) == (clip[before] != 5)
                followers.add((int(clip[before]), int(clip[after])))
    assert followers == {(0, 2), (2, 0), (1, 3), (1, 4), (3, 1), (3, 4), (4, 1), (4, 3), (5, 5)}


def test_the_only_clip_of_a_label_repeats() -> None:
    windows = Windows(clips_of(4), 10)
    assert places(windows).tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]


def test_seed_epoch_and_number_alone_decide_a_window() -> None:
    clips = clips_of(30, 45, 3, 8, labels=[0, 0, 1, 1])
    windows = Windows(clips, 10, seed=1)
    whole = places(windows, 2)
    assert np.array_equal(whole, places(Windows(clips, 10, seed=1), 2))
    for order in ([5], [7, 0, 3], [3, 3]):
        codes, labels = windows.rows(np.array(order), np.full(len(order), 2))
        assert np.array_equal(codes[:, 0].numpy(), whole[order])
        assert labels.tolist() == [int(n >= 8) for n in order]
    codes, _ = windows.rows(np.array([1, 1]), np.array([2, 3]))
    assert np.array_equal(codes[0, 0].numpy(), whole[1]) and not torch.equal(codes[0], codes[1])
    assert not np.array_equal(places(windows, 3), whole)
    assert not np.array_equal(places(Windows(clips, 10, seed=2), 2), whole)
    # What is measured does not change: epoch 0.
    assert np.array_equal(windows.rows(slice(None))[0][:, 0].numpy(), places(windows, 0))


def test_the_first_windows_are_those_of_all() -> None:
    windows = Windows(clips_of(30, 4, 12), 10)
    assert [len(windows.first(count)) for count in (0, 2, 5, 9)] == [0, 2, 5, 5]
    assert np.array_equal(places(windows.first(4)), places(windows)[:4])
    assert len(windows.first(2).first(4)) == 2
    none = Windows(clips_of(30).pick(np.array([False])), 10)
    assert len(none) == 0 and none.rows(slice(None))[0].shape == (0, 2, 10)


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 2), (2, 1), (2, 3)])
def test_batches_do_not_depend_on_ranks_accumulation_or_resume(world: int, micro_batches: int) -> None:
    windows = Windows(clips_of(33, 4, 12, 21), 10, seed=3)  # 7 windows: every step has items of two epochs

    def batches(rank: int, world: int, micro_batches: int, start: int = 0) -> dict[tuple[int, int], Any]:
        found = token_batches(
            windows,
            batch_size=12,
            micro_batches=micro_batches,
            rank=rank,
            world=world,
            seed=3,
            start_step=start,
            stop_step=5,
        )
        return {
            (b.step, b.offset + row): (codes.tolist(), label.item())
            for b in found
            for row, (codes, label) in enumerate(zip(b.x, b.labels, strict=True))
        }

    alone = batches(0, 1, 1)
    together: dict[tuple[int, int], Any] = {}
    for rank in range(world):
        together |= batches(rank, world, micro_batches)
    assert together == alone and len(alone) == 60
    assert batches(0, 1, 1, start=3) == {k: v for k, v in alone.items() if k[0] >= 3}
    # 60 items are more than 8 epochs of 4 windows that begin with their clips and 3 that begin anywhere.
    starts = {codes[0][0] for codes, _ in alone.values()}
    assert {0, 1000, 2000, 3000} < starts and len(starts) > 12


def test_seconds_become_frames() -> None:
    assert window_info(INFO, 0.5).grid == (25,) and window_info(INFO, 0.5).codes_per_item == 50
    assert window_info(INFO, 0.049).grid == (2,)
    with pytest.raises(ValueError, match=r"--seconds 0.02 is 1 frames at 50 per second.* --seconds 0.04"):
        window_info(INFO, 0.02)
