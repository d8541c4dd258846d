"""What a page asks a prior for: samples in parts, regions filled, and what cannot be asked.

Left out: sampling itself (prior/sampling).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines import Generator
from pipelines.browser.drawing import (
    MOST_PROPOSALS,
    MOST_SAMPLES,
    NO_CLASS,
    PICTURES_AT_ONCE,
    SUGGESTED,
    Wish,
    classes_of,
    classes_to_fill,
    drawn,
    filled,
    windows,
)
from pipelines.browser.files import Folder
from pipelines.browser.models import read_models
from pipelines.run.models import load_models
from prior import Prior, PriorConfig
from tests.helpers.tiny import pictures
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def pair(tiny_prior: Path) -> tuple[Prior, Tokenizer]:
    generator = Generator.from_pretrained(tiny_prior)
    return generator.prior, generator.tokenizer


@pytest.fixture(scope="module")
def sound_pair(tiny_codec_prior: Path) -> tuple[Prior, Tokenizer]:
    """Windows of 25 frames."""
    generator = Generator.from_pretrained(tiny_codec_prior)
    return generator.prior, generator.tokenizer


def never() -> bool:
    return False


def after(count: int) -> Iterator[bool]:
    return itertools.chain([False] * (count - 1), itertools.repeat(True))


def test_samples_come_in_parts_and_are_those_of_the_generator(pair: tuple[Prior, Tokenizer]) -> None:
    wish = Wish("flags", 6, temperature=0.9, top_p=0.8, cfg_scale=1.5, seed=3)
    parts = list(drawn(*pair, wish, None, never))
    assert [len(part) for part in parts] == [PICTURES_AT_ONCE, 2]
    options = {"temperature": 0.9, "top_p": 0.8, "cfg_scale": 1.5}
    whole = next(Generator(*pair).draw("flags", 6, seed=3, **options))  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts), whole)


def test_a_prior_of_every_order_draws_in_steps(pair: tuple[Prior, Tokenizer]) -> None:
    prior, tok = pair
    of_any, of_raster = (
        Prior(dataclasses.replace(prior.config, order=order)).eval() for order in ("any", "raster")
    )
    of_any.load_state_dict(prior.state_dict())
    found = torch.cat(list(drawn(of_any, tok, Wish("flags", 2, seed=3, steps=5), None, never)))
    expected = next(Generator(of_any, tok).draw("flags", 2, seed=3, steps=5, order="confidence"))
    assert torch.equal(found, expected)
    raster = torch.cat(list(drawn(of_any, tok, Wish("flags", 2, seed=3), None, never)))
    assert not torch.equal(found, raster)
    with pytest.raises(ValueError, match=r"--model\.order any"):
        next(drawn(of_raster, tok, Wish("flags", 2, steps=5), None, never))


def test_a_drawing_stops_between_parts(pair: tuple[Prior, Tokenizer]) -> None:
    answers = after(2)
    assert len(list(drawn(*pair, Wish(num=64), None, lambda: next(answers)))) == 2


def test_sound_is_drawn_one_by_one_for_so_many_seconds(sound_pair: tuple[Prior, Tokenizer]) -> None:
    parts = list(drawn(*sound_pair, Wish(num=2), 0.7, never))
    assert [tuple(part.shape[::2]) for part in parts] == [(1, 35), (1, 35)]
    with pytest.raises(ValueError, match="seconds"):
        next(drawn(*sound_pair, Wish(num=1), 31, never))


def test_only_the_marked_codes_of_a_picture_are_drawn(pair: tuple[Prior, Tokenizer]) -> None:
    prior, tok = pair
    codes = tok.encode(pictures(1, 3, 32, 32))
    mask = torch.zeros(codes.shape[1:], dtype=torch.bool)
    mask[:, 2:5, 3:6] = True
    found = list(filled(prior, tok, codes, mask, Wish("food", 3, seed=1), never))
    assert len(found) == 3 and all(torch.equal(new[0][~mask], codes[0][~mask]) for new in found)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    again = list(filled(prior, tok, codes, mask, Wish("food", 2, seed=1), never))
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=False))
    answers = after(1)
    assert len(list(filled(prior, tok, codes, mask, Wish(num=3), lambda: next(answers)))) == 1


def test_a_region_is_filled_with_a_class_that_the_rest_suggests(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, tok = load_models("embedded:digits", "", "cpu")
    assert prior is not None
    assert classes_to_fill(prior.config)[:2] == [SUGGESTED, NO_CLASS]
    codes = prior.sample(1, label="0", generator=0, temperature=0.5)
    mask = torch.zeros(codes.shape[1:], dtype=torch.bool)
    mask[:, 3] = True
    suggested = int(prior.label_posterior(codes, mask[None]).argmax())
    asked, fill = list[object](), prior.inpaint

    def inpaint(codes: Tensor, mask: Tensor, label: object, *rest: Any, **options: Any) -> Tensor:
        asked.append(label)
        return fill(codes, mask, label, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(prior, "inpaint", inpaint)
    (*_, last) = filled(prior, tok, codes, mask, Wish(SUGGESTED, 4), never)
    assert asked == [suggested] * 4 and torch.equal(last[:, ~mask], codes[:, ~mask])


def test_what_cannot_be_filled_is_told(
    pair: tuple[Prior, Tokenizer], sound_pair: tuple[Prior, Tokenizer]
) -> None:
    prior, tok = pair
    codes = tok.encode(pictures(1, 3, 40, 32))
    mask = torch.ones(codes.shape[1:], dtype=torch.bool)
    cases: list[tuple[Prior, Tensor, Wish, str]] = [
        (prior, mask, Wish(num=1), "8 × 8 codes, and the picture has 10 × 8"),
        (prior, ~mask, Wish(num=1), "nothing is marked"),
        (prior, mask, Wish(num=MOST_PROPOSALS + 1), "proposals"),
        (sound_pair[0], mask, Wish(num=1), tok.fingerprint()),
    ]
    for some_prior, marked, wish, words in cases:
        with pytest.raises(ValueError, match=words):
            next(filled(some_prior, tok, codes, marked, wish, never))
    with pytest.raises(ValueError, match="unknown class 'no such'"):
        next(drawn(prior, tok, Wish("no such"), None, never))
    with pytest.raises(ValueError, match="needs a label"):
        next(drawn(prior, tok, Wish(cfg_scale=2), None, never))


@pytest.mark.parametrize("frames", [10, 25, 60])
def test_only_the_marked_seconds_of_a_sound_are_drawn(
    sound_pair: tuple[Prior, Tokenizer], frames: int
) -> None:
    """In sounds shorter than the prior's window, as long, and longer."""
    prior, tok = sound_pair
    shape = (1, tok.num_codebooks, frames)
    codes = torch.randint(tok.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(shape[1:], dtype=torch.bool)
    mask[:, 2 : frames - 3] = True
    (new,) = filled(prior, tok, codes, mask, Wish(num=1), never)
    assert new.shape == codes.shape and torch.equal(new[0][~mask], codes[0][~mask])
    assert (new != codes)[0][mask].float().mean() > 0.5


def test_windows_cover_what_is_marked_with_context_before_it() -> None:
    mask = torch.zeros(2, 100, dtype=torch.bool)
    mask[0, 40:44] = mask[1, 90] = True
    spans = windows(mask, 20)
    assert [(span.start, span.stop) for span in spans] == [(30, 50), (80, 100)]
    mask[:] = True
    spans = windows(mask, 20)
    assert spans[0].start == 0 and spans[-1].stop == 100 and all(s.stop - s.start == 20 for s in spans)
    assert all(b.start == a.stop - 10 for a, b in itertools.pairwise(spans))
    assert [(s.start, s.stop) for s in windows(mask[:, :7], 20)] == [(0, 7)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num": 0}, "samples"),
        ({"num": MOST_SAMPLES + 1}, "samples"),
        ({"seed": -1}, "seed"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"cfg_scale": float("nan")}, "cfg_scale"),
    ],
)
def test_a_wish_checks_itself(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(Wish(), **changes)  # type: ignore[arg-type]


def test_classes_to_choose_of() -> None:
    assert classes_of(("a", "b"), True) == [NO_CLASS, "a", "b"]
    assert classes_of(("a",), False) == ["a"] and classes_of((), True) == [NO_CLASS]
    raster = PriorConfig(codebook_size=4, grid=(2, 2), class_names=("a",))
    assert classes_to_fill(raster) == [NO_CLASS, "a"]
    assert classes_to_fill(dataclasses.replace(raster, order="any")) == [SUGGESTED, NO_CLASS, "a"]
    assert classes_to_fill(dataclasses.replace(raster, order="any", class_names=())) == [NO_CLASS]


def test_models_are_known_at_once_and_loaded_later(
    tiny_prior: Path, tiny_codec: Path, tiny_tokenizer: Path, tiny_tokens: Path
) -> None:
    """The page's models: from configs, with kinds, names and what belongs to what."""
    models = read_models([str(tiny_tokenizer), str(tiny_codec)], [str(tiny_prior)], [str(tiny_tokens)])
    pictures_of, sounds_of = models.of_kind("image"), models.of_kind("audio")
    assert len(pictures_of) == len(sounds_of) == 1 and models.priors_of(sounds_of[0]) == []
    (prior,) = models.priors_of_kind("image")
    models.load().join(timeout=120)
    assert not models.tokenizer(pictures_of[0]).training and models.prior(prior).config.grid == (8, 8)
    items = models.items(prior)
    assert items is not None and len(items) > 0
    with pytest.raises(ValueError, match="no tokenizer 'x'"):
        models.tokenizer("x")


def test_weights_that_cannot_be_read_are_told_to_who_asks(tiny_tokenizer: Path, tmp_path: Path) -> None:
    for path in tiny_tokenizer.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    models = read_models([str(tmp_path)], [])
    models.load().join(timeout=120)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        models.tokenizer(models.of_kind("image")[0])


def test_a_folder_of_results_is_nobodys_module_state() -> None:
    first, second = Folder(), Folder()
    assert first.path != second.path
    first.remove()
    assert second.path.exists()
    second.remove()
