"""Tokenizers of other libraries: what every registered family keeps, beside its library's own model.

Left out: configs and files that are refused (test_refusals.py), and the sizes of well-known checkpoints
(test_checkpoints.py).
"""

import copy
from pathlib import Path

import pytest
import torch

from tests.helpers.foreign import PICTURES, TINY, model_of, saved, sounds
from tokenizer import Tokenizer, model
from tokenizer.foreign import families, hash_of_layers
from tokenizer.streaming import DecodeStream, EncodeStream

NAMES = sorted(TINY)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp("foreign") / name) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_pretrained(folder) for name, folder in folders.items()}


@pytest.fixture
def tok(name: str, loaded: dict[str, Tokenizer]) -> Tokenizer:
    return copy.deepcopy(loaded[name])


def test_every_family_is_tested() -> None:
    assert set(families()) == set(TINY) | set(PICTURES)


def test_codes_and_sound_are_those_of_the_library(name: str, tok: Tokenizer) -> None:
    peer, x = model_of(name), sounds(3, tok.stride * 40)
    with torch.no_grad():
        codes = TINY[name].encode(peer, x)
        x_hat = TINY[name].decode(peer, codes)
    assert not tok.training and tok.is_discrete
    assert torch.equal(tok.encode(x), codes) and codes.unique().numel() > 4
    assert codes.shape == (3, tok.num_codebooks, 40) and codes.max() < tok.codebook_size
    assert torch.equal(tok.decode(codes)[:, :, : x_hat.shape[2]], x_hat)
    assert tok.decode(codes, size=x.shape[2]).shape == x.shape


def test_between_whole_frames_the_last_code_alone_is_ours(name: str, tok: Tokenizer) -> None:
    """Sound is padded with zeros to whole frames, not layer by layer, where a frame would not be the same in
    a batch."""
    if name not in ("encodec", "mimi"):  # their own readers pad to whole frames
        return
    x = sounds(2, tok.stride * 20 - 1)
    with torch.no_grad():
        codes = TINY[name].encode(model_of(name), x)
    assert torch.equal(tok.encode(x)[:, :, :-1], codes[:, :, :-1]) and codes.shape[2] == 20


def test_every_length_comes_back(tok: Tokenizer) -> None:
    x, n = sounds(1, 3 * tok.stride), tok.stride
    some = (1, 2, n - 1, n, n + 1, 2 * n - 1, 2 * n, 3 * n)
    for length in some if n > 10 else range(1, 3 * n + 1):
        codes = tok.encode(x[:, :, :length])
        assert codes.shape[2] == tok.code_lengths([length])[0] == -(-length // tok.stride)
        assert tok.decode(codes, size=length).shape[2] == length


def test_items_of_a_padded_batch_have_the_codes_they_have_alone(tok: Tokenizer) -> None:
    frames = (30, 1, 7, 30, 2, 19, 8, 3)
    lengths = torch.tensor([n * tok.stride - n % 3 for n in frames])
    x = sounds(len(frames), int(lengths.max()))
    codes = tok.encode(x, lengths)
    for row, item, length in zip(codes, x, lengths.tolist(), strict=True):
        alone = tok.encode(item[None, :, :length])[0]
        assert torch.equal(row[:, : alone.shape[1]], alone) and not row[:, alone.shape[1] :].any()


def test_how_many_passes_a_padded_batch_takes(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`batch_exact`: all at once, but for those of a few frames; else those of equal length together."""
    runs: list[int] = []
    run = tok.encoder._run
    monkeypatch.setattr(tok.encoder, "_run", lambda parts, x: (runs.append(len(x)), run(parts, x))[1])
    lengths = [n * tok.stride for n in (30, 20, 30, 25)]
    tok.encode(sounds(4, max(lengths)), lengths)
    assert runs == ([4] if tok.batch_exact else [2, 1, 1])


def test_long_sound_has_the_codes_of_the_whole(tok: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = sounds(1, (400 if tok.chunk_exact else 60) * tok.stride - 1)
    codes, longest = tok.encode(x), 0
    x_hat = tok.decode(codes)
    run = tok.encoder._run

    def counted(parts: torch.nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
        nonlocal longest
        longest = max(longest, x.shape[2])
        return run(parts, x)

    monkeypatch.setattr(tok.encoder, "_run", counted)
    monkeypatch.setattr(model, "CHUNK", 30 * tok.stride)
    assert torch.equal(tok.encode(x), codes)
    torch.testing.assert_close(tok.decode(codes), x_hat, rtol=0, atol=1e-5)
    assert (longest < x.shape[2] // 2) == tok.chunk_exact


def test_streams_take_chunks_of_any_length(tok: Tokenizer) -> None:
    x = sounds(2, 50 * tok.stride + 1)
    codes = tok.encode(x)
    sizes = (1, 7, 3 * tok.stride, x.shape[2])
    parts = torch.split(x, [*sizes[:3], sizes[3] - sum(sizes[:3])], dim=2)
    assert torch.equal(torch.cat(list(tok.encode_stream(parts)), dim=2), codes)
    parts = list(tok.decode_stream(torch.split(codes, 4, dim=2)))
    torch.testing.assert_close(torch.cat(parts, dim=2), tok.decode(codes), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="got none"):
        EncodeStream(tok).finish()
    with pytest.raises(ValueError, match="got none"):
        DecodeStream(tok).finish()


def test_the_first_codebooks_decode_alone(tok: Tokenizer) -> None:
    if not tok.bottleneck.prefix_decodes:
        assert tok.num_codebooks == 1
        return
    x = sounds(2, 9 * tok.stride)
    codes = tok.encode(x)
    for k in range(1, tok.num_codebooks + 1):
        assert torch.equal(tok.encode(x, num_codebooks=k), codes[:, :k])
        assert torch.isfinite(tok.decode(codes[:, :k])).all()
    for k in (0, tok.num_codebooks + 1):
        with pytest.raises(ValueError, match="codebooks"):
            tok.encode(x, num_codebooks=k)


def test_forward_is_encode_and_decode_with_a_gradient(tok: Tokenizer) -> None:
    x = sounds(2, 9 * tok.stride - 1).requires_grad_()
    out = tok(x)
    codes = tok.encode(x.detach())
    assert out.codes is not None and torch.equal(out.codes, codes) and out.x_hat.shape == x.shape
    # A recurrent layer that keeps what its gradient needs rounds otherwise.
    torch.testing.assert_close(out.x_hat.detach(), tok.decode(codes, size=x.shape[2]), rtol=0, atol=1e-6)
    assert set(out.losses) == {"l1", "mel"} and all(torch.isfinite(v) for v in out.losses.values())
    out.losses["l1"].backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_what_is_saved_loads_here_and_in_the_library(name: str, tok: Tokenizer, tmp_path: Path) -> None:
    x = sounds(2, 8 * tok.stride)
    with torch.no_grad():
        for parameter in tok.decoder.parameters():
            parameter.mul_(1.01)
    codes = tok.encode(x)
    x_hat = tok.decode(codes)
    tok.save_pretrained(tmp_path)
    again, peer = Tokenizer.from_pretrained(tmp_path), type(model_of(name)).from_pretrained(tmp_path)
    assert again.fingerprint() == tok.fingerprint() and again.config == tok.config
    assert torch.equal(again.encode(x), codes) and torch.equal(again.decode(codes), x_hat)
    with torch.no_grad():
        assert torch.equal(TINY[name].encode(peer, x), codes)
        theirs = TINY[name].decode(peer, codes)
    assert torch.equal(x_hat[:, :, : theirs.shape[2]], theirs)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "metrics.json")
    }


def test_the_fingerprint_is_of_what_decides_codes(
    tok: Tokenizer, name: str, folders: dict[str, Path]
) -> None:
    mark = tok.fingerprint()
    assert mark == Tokenizer.from_pretrained(folders[name]).fingerprint()
    with torch.no_grad():
        next(tok.decoder.parameters()).add_(1)
    assert tok.fingerprint() == mark
    weights = next(tok.encoder.parameters())
    with torch.no_grad():
        weights.add_(1)
    assert tok.fingerprint() != mark
    with torch.no_grad():
        weights.sub_(1)
        deciding = [v for k, v in tok.bottleneck.state_dict().items() if k not in tok.bottleneck.not_coding]
        deciding[0].add_(1)
    assert tok.fingerprint() != mark


def test_the_fingerprint_is_of_the_adapter_and_of_what_the_config_decides(
    tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, marks = type(tok.family), {tok.fingerprint()}
    monkeypatch.setattr(family, "adapter", family.adapter + 1)
    marks.add(tok.fingerprint())
    monkeypatch.setattr(family, "decides", family.decides[1:])
    marks.add(tok.fingerprint())
    assert len(marks) == 3


def test_the_fingerprint_tells_tensors_of_one_shape_apart(tok: Tokenizer) -> None:
    mark, found = tok.fingerprint(), 0
    first: dict[tuple[int, ...], torch.Tensor] = {}
    with torch.no_grad():
        for value in tok.encoder.parameters():
            other = first.setdefault(tuple(value.shape), value)
            if not torch.equal(other, value):
                kept = value.clone()
                value.copy_(other), other.copy_(kept)
                assert tok.fingerprint() != mark
                kept = value.clone()
                value.copy_(other), other.copy_(kept)
                found += 1
                if found == 6:
                    break
    assert found and tok.fingerprint() == mark


def test_a_hash_of_layers_is_of_their_order_not_of_their_names() -> None:
    a, b, c = torch.rand(2, 2), torch.rand(2, 2), torch.rand(2)
    mark = hash_of_layers({"x.weight": a, "x.bias": c, "y.embed_sum": b, "y.usage": c})
    assert mark == hash_of_layers({"p.q.weight": a, "p.q.bias": c, "r.count": c, "r.sum": b})
    assert mark != hash_of_layers({"x.weight": b, "x.bias": c, "y.embed_sum": a, "y.usage": c})
    assert mark != hash_of_layers({"y.embed_sum": b, "y.usage": c, "x.weight": a, "x.bias": c})
    old = hash_of_layers({"x.bias": c, "x.weight_g": a, "x.weight_v": b, "y.weight": a})
    new = {"x.bias": c, "x.parametrizations.weight.original0": a, "x.parametrizations.weight.original1": b}
    assert hash_of_layers({**new, "y.weight": a}) == old
    swapped = {"x.bias": c, "x.weight_g": b, "x.weight_v": a, "y.weight": a}
    assert hash_of_layers(swapped) != old
    ih, hh = (
        {f"lstm.weight_{k}_l0": v for k, v in zip(order, (a, b), strict=True)}
        for order in (["ih", "hh"], ["hh", "ih"])
    )
    assert hash_of_layers(ih) != hash_of_layers(hh)


def test_an_unchanged_model_keeps_card_and_reader(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "theirs")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Theirs\n")
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "Theirs"}')
    Tokenizer.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    for kept in ("README.md", "preprocessor_config.json"):
        assert (tmp_path / "ours" / kept).read_bytes() == (folder / kept).read_bytes()


@pytest.mark.parametrize("card", ["", "# Theirs\n", "---\nlicense: [a\n---\n", "---\nlicense: [mit]\n---\n"])
def test_a_licence_that_no_card_names_is_unknown(tmp_path: Path, card: str) -> None:
    folder = saved("encodec", tmp_path / "theirs")
    if card:
        (folder / "README.md").write_text(card)
    tok = Tokenizer.from_pretrained(folder)
    assert tok.license == "unknown"
    with torch.no_grad():
        next(tok.decoder.parameters()).mul_(2)
    tok.save_pretrained(tmp_path / "ours")
    assert "license: unknown\n" in (tmp_path / "ours" / "README.md").read_text()
    assert Tokenizer.from_pretrained(tmp_path / "ours").license == "unknown"


def test_weights_of_another_type_are_loaded_and_saved_as_such(tok: Tokenizer, tmp_path: Path) -> None:
    half = tok.to(torch.bfloat16)
    codes = half.encode(sounds(1, 4 * tok.stride))
    half.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert next(again.parameters()).dtype == torch.bfloat16
    assert torch.equal(again.encode(sounds(1, 4 * tok.stride)), codes)
    assert next(Tokenizer.from_pretrained(tmp_path, dtype="float32").parameters()).dtype == torch.float32
