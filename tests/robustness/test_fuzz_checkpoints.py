"""Checkpoints that are broken: state.json and the safetensors of all kinds, and then a step of training.

Left out: what single breakages are called (test_broken_checkpoints.py).
"""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipelines.training.averaging import WeightAverage
from pipelines.training.checkpoints import STATE, Checkpoints
from pipelines.training.optimizers import build_optimizers
from tests.helpers.broken_safetensors import broken_safetensors
from tests.helpers.fuzzing import ERROR, RESULT, Subject, fuzz, shares
from tests.helpers.mutators import broken_json
from tests.helpers.tiny import bottleneck_config, image_config, pictures
from tokenizer import Tokenizer, TokenizerConfig
from tokenizer.checks import NotFinite
from tokenizer.distributed import Step

# Of which the model, the averages and the state of training come more often than they would by size.
FILES = (STATE, STATE, "model", "average", "optimizers", "optimizers", "optimizers", "training_state", "rng")
SAVED = 2


def checkpoints(folder: Path) -> Subject:
    """A tokenizer with Muon and AdamW, stopped one step before its codebook starts by k-means."""
    torch.manual_seed(0)
    model = Tokenizer(TokenizerConfig(image_config(widths=(24,), strides=(2,), blocks=(1,)), bottleneck()))
    optimizers = build_optimizers(model, "muon", 1e-3, 1e-2, 0.0)
    average = WeightAverage(model, 0.9)
    run = Checkpoints(Accelerator(cpu=True), folder, model, average, optimizers, 3, seed=0)

    def step(index: int) -> None:
        loss = sum(model(pictures(2, 3, 8, 8, seed=index), Step(0, index, 0, 2)).losses.values())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update(model, index)

    model.train()
    for index in range(SAVED):
        step(index)
    run.save(SAVED)
    path = folder / "checkpoints" / f"step-{SAVED}"
    wholes = {file: file.read_bytes() for file in path.iterdir()}
    counts: Counter[str] = Counter()

    def read(rng: random.Random) -> None:
        name = rng.choice(FILES)
        file = path / (name if name == STATE else f"{name}.safetensors")
        whole = wholes[file]
        if name == STATE:
            text = broken_json(json.loads(whole), rng)
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            file.write_bytes(broken_safetensors(whole, rng))
        try:
            state = run.resume(str(path))
            assert state is not None and state.step == SAVED
            assert all(v.isfinite().all() for v in model.state_dict().values())
            # What was taken over can be trained on, also when the files are gone, or is too large for it.
            for read_from in wholes:
                os.truncate(read_from, 0)
            step(SAVED)
        except NotFinite:
            counts["too large to train on"] += 1
        finally:
            for read_from, content in wholes.items():
                read_from.write_bytes(content)

    return Subject(read, (str(path),), counts)


def bottleneck() -> object:
    return bottleneck_config("vq", kmeans_steps=SAVED + 1)


@shares
def test_broken_checkpoints_are_refused_or_right(share: int, tmp_path: Path) -> None:
    report = fuzz(checkpoints, range(600 // share), tmp_path)
    assert report.ends[ERROR] > 200 // share and report.ends[RESULT] > 50 // share
    assert len(report.refusals) > 20


@pytest.mark.soak
def test_many_more_broken_checkpoints(tmp_path: Path) -> None:
    fuzz(checkpoints, range(10_000, 14_000), tmp_path)
