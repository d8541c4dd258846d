"""export.py: files that run where there is no torch, and mistakes that leave nothing behind.

Left out: what the graphs compute (tests/pipelines/graphs/).
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.graphs import agreement, files
from prior import Prior
from tests.helpers.running import Script
from tokenizer import Tokenizer

WITHOUT_TORCH = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
folder = Path(sys.argv[1])
info = json.loads((folder / "export.json").read_text())
encoder, decoder, prior = (
    onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    for name in ("encoder", "decoder", "prior")
)
x = np.load(folder.parent / "x.npy")
codes, = encoder.run(None, {"x": x})
x_hat, = decoder.run(None, {"codes": codes})
layers, two, _, heads, _, width = info["files"]["prior.onnx"]["inputs"]["cache"]
cache, label = np.zeros((layers, two, 1, heads, 0, width), np.float32), np.array([1])
before, drawn = np.array([[-1]]), []
for step in range(len(info["prior"]["steps"])):
    feed = {"codes": before, "step": np.array([step]), "label": label, "cache": cache}
    logits, cache = prior.run(None, feed)
    before = logits.argmax(-1)
    drawn.append(int(before[0, 0]))
np.savez(folder.parent / "found.npz", codes=codes, x_hat=x_hat, drawn=drawn)
assert not any(name == "torch" or name.startswith("torch.") for name in sys.modules)
"""


def test_files_run_without_torch(
    script: Script, tiny_tokenizer: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    output, words = tmp_path / "onnx", ("--data.limit", 32, "--items", 20)
    models = ("--tokenizer", tiny_tokenizer, "--prior", tiny_prior)
    done = script("export", *models, *words, "--output", output)
    assert "compared with torch: items 20, " in done.err and "positions_that_differ 0" in done.err
    assert {p.name for p in output.iterdir()} == {"encoder.onnx", "decoder.onnx", "prior.onnx", "export.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["onnx"]
    info = json.loads((output / "export.json").read_text())
    tok, prior = Tokenizer.from_pretrained(tiny_tokenizer), Prior.from_pretrained(tiny_prior)
    assert info["tokenizer"]["fingerprint"] == info["prior"]["tokenizer_fingerprint"] == tok.fingerprint()
    for name, file in info["files"].items():
        held = (output / name).read_bytes()
        assert file["bytes"] == len(held)
        assert not any(word in held for word in (b"/tests/", b"/site-packages/", b".py")), name
    x = np.random.default_rng(0).uniform(-1, 1, (3, 3, 29, 40)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, output], check=True, timeout=300)
    with np.load(tmp_path / "found.npz") as found:
        codes = tok.encode(x)
        assert (found["codes"] == codes.numpy()).all()
        assert np.abs(found["x_hat"] - tok.decode(codes).numpy()).max() < 1e-5
        assert (found["drawn"] == prior.sample(1, 1, temperature=0).flatten().numpy()).all()


def test_mistakes_leave_nothing(
    script: Script, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "onnx"
    words = ("--tokenizer", tiny_tokenizer, "--data.limit", 8, "--output", output)
    assert "--prior DIR, or --tokenizer DIR" in script("export", "--output", output, code=2).err
    with monkeypatch.context() as patch:
        patch.setattr(files, "PACKAGES", ("onnx", "no_such_package"))
        err = script("export", *words, code=2).err
    assert "no_such_package: pip install -c pipelines/configs/constraints.txt -e '.[onnx]'" in err
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "MOST_OFF", 1e-12)
        err = script("export", *words, code=2).err
    assert "decoder.onnx: x_hat differs by up to" in err and not list(tmp_path.iterdir())
    output.mkdir()
    (output / "mine.txt").touch()
    assert f"--output {output} is not empty" in script("export", *words, code=2).err
