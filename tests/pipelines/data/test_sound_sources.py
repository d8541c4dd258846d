"""Where clips come from: embedded speech, tables and the Hub; data of the other kind are refused.

Left out: clips of a folder, and what is made of clips (test_sounds.py).
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.data.sounds import SOUND
from pipelines.data.tables import read_hub
from tests.helpers.clips import RATE, load, ramp, wav, write
from tokenizer.modalities.audio import AudioConfig
from tokenizer.modalities.image import ImageConfig


def test_embedded_speech() -> None:
    audio = AudioConfig(sample_rate=16000).build()
    splits = load_splits(DataConfig(path="embedded:speech", limit=12), audio)
    assert (len(splits.train), len(splits.held_out)) == (12, 12) and splits.class_names == ()
    assert splits.train.samples(0) == splits.train.x(0).shape[1] == 11570
    assert splits.train.id(0) == "train:0" and splits.train.skipped == ()


def table(kind: str, decoded: bool, name: str = "audio") -> pa.Table:
    """Sound as `datasets` writes it (with its types), or as bytes only."""
    cells = [{"bytes": wav(ramp(300 + i)), "path": None} for i in range(4)]
    if kind == "bytes":
        return pa.table({name: [c["bytes"] for c in cells], "label": ["x", "y", "x", "y"]})
    typed = {"_type": "Audio", "sampling_rate": RATE} | ({} if decoded else {"decode": False})
    features = {"text": {"dtype": "string", "_type": "Value"}, name: typed}
    stored = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    made = pa.table({"text": list("abcd"), name: stored})
    info = json.dumps({"info": {"features": features}})
    return made.replace_schema_metadata({"huggingface": info})


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("made", "options"),
    [
        (table("bytes", False), {}),
        (table("bytes", False, "speech"), {}),
        (table("bytes", False, "odd"), {"column": "odd"}),
        (table("typed", False, "odd"), {}),
        (table("typed", True, "odd"), {}),
    ],
)
def test_tables_of_sound(made: pa.Table, options: dict[str, str], tmp_path: Path) -> None:
    pq.write_table(made, tmp_path / "a.parquet")
    splits = load(tmp_path / "a.parquet", valid_fraction=0, **options)
    assert [splits.train.samples(i) for i in range(4)] == [300, 301, 302, 303]
    assert splits.class_names == (("x", "y") if "label" in made.column_names else ())


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_is_decoded_by_datasets(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(table("typed", True), tmp_path / "set" / "train.parquet")
    found = read_hub(DataConfig(path=str(tmp_path / "set"), streaming=streaming, limit=3), SOUND)
    assert len(found.train) == 3 and found.train.raw(2) == wav(ramp(302))


@pytest.mark.usefixtures("hub_cache")
def test_loose_files_of_the_hub(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {"train/a/1.wav": 50, "train/b/2.wav": 60})
    found = read_hub(DataConfig(path=str(root), streaming=True, limit=2), SOUND)
    assert found.class_names == ("a", "b") and found.train.raw(0) == str(root / "train/a/1.wav")
    with pytest.raises(ValueError, match=r"torchcodec; .*--data\.streaming"):
        read_hub(DataConfig(path=str(root)), SOUND)


def test_data_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "sound", {"a.wav": 10})
    pictures = ImageConfig().build()
    with pytest.raises(
        ValueError, match=r"1 sound files, expected pictures; .*train_tokenizer\.py.*--data\.path"
    ):
        load_splits(DataConfig(path=str(root)), pictures)
    with pytest.raises(ValueError, match=r"'image'.*, expected sound files; .*train_tokenizer\.py"):
        load("embedded:emoji")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    with pytest.raises(ValueError, match=r"1 pictures, expected sound files; .*train_tokenizer\.py"):
        load(tmp_path / "pictures")
    (tmp_path / "sound" / "cover.png").touch()
    assert len(load(root, valid_fraction=0).train) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no sound files .*\.parquet.*--data\.path"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"column 'label' .*int64, expected sound files.*--data\.column"):
        load("embedded:emoji", column="label")
