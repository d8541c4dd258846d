"""The search: equal to brute force in float64 in tiles and compiled loops, alone and in a batch, with ties.

Left out: memory, bad input, hard numbers, torch.compile and triton's kernel (test_limits.py), and
speed, which a benchmark measures.
"""

import pytest
import torch

from tests.helpers.brute_force import brute_force, normal
from tokenizer.installation import install_extra
from tokenizer.search import cpu as search_cpu
from tokenizer.search import exact as search
from tokenizer.search import tiles as search_tiles
from tokenizer.search.exact import Distance, directions, nearest


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and parts even for small shapes."""
    for module, name, value in (
        (search, "TILE", 64),
        (search, "PAIRS", 20),
        (search_tiles, "TILE", 1 << 10),
        (search_tiles, "WIDEST", 128),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops of numba, however small the work."""
    if not search_cpu.installed():
        pytest.skip(f"numba is not installed ({install_extra('fast')})")
    monkeypatch.setattr(search_tiles, "COMPILED_FROM", 0)


SIZES = [
    (0, 5, 3),
    (1, 1, 1),
    (7, 1, 4),
    (300, 17, 1),
    (33, 100, 8),
    (1, 2049, 5),
    (1025, 512, 8),
    (100, 33, 64),
    (130, 4101, 16),
    (40, 300, 512),
    (5, 1 << 18, 3),
]


@pytest.mark.parametrize(("m", "n", "d"), SIZES)
def test_equals_brute_force(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    expected = brute_force(z, codebook)
    codes = nearest(z, codebook)
    assert codes.shape == (m,) and codes.dtype == torch.int64
    assert torch.equal(codes, expected)
    assert torch.equal(nearest(z.double(), codebook), expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("m", "n", "d"), SIZES)
def test_equals_brute_force_in_small_tiles(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("m", "n", "d"), [s for s in SIZES if s[2] in (8, 64)] + [(70, 15, 8), (1, 2049, 8)])
def test_equals_brute_force_in_compiled_loops(m: int, n: int, d: int) -> None:
    z, codebook = normal(m, d), normal(n, d, seed=1)
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 8), (65, 16, 8), (200, 301, 8), (5, 300, 8)])
def test_compiled_loops_propose_as_the_tiles_do(
    m: int, n: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, entries, offset = normal(m, d), normal(n, d, seed=1), normal(n, seed=2)
    compared = [search_tiles.propose(z, entries, offset)]
    products = (z @ entries.T + offset).contiguous()
    compared.append((*(x.clone() for x in search_cpu.two_least(products)),))
    monkeypatch.setattr(search_tiles, "COMPILED_FROM", 1 << 60)
    least, codes, second = search_tiles.propose(z, entries, offset)
    for other_least, other_codes, other_second in compared:
        assert torch.equal(other_codes, codes)
        torch.testing.assert_close(other_least, least, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other_second, second, rtol=1e-5, atol=1e-5)
    assert torch.isinf(second).all() == (n == 1)


@pytest.mark.usefixtures("compiled")
def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    z, codebook = normal(700, 8), normal(60, 8, seed=1)
    assert torch.equal(nearest(z, codebook), brute_force(z, codebook))


def test_every_entry_finds_itself_across_all_tiles() -> None:
    codebook = normal(2 * search_tiles.WIDEST + 300, 3)
    z = codebook[::7]
    assert torch.equal(nearest(z, codebook), torch.arange(0, len(codebook), 7))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_vector_has_the_same_code_alone_as_in_a_batch(distance: Distance) -> None:
    # A lattice, where float32 rounds many pairs of distances the wrong way.
    codebook = (normal(300, 6, seed=1) * 2).round() / 3 + 0.1
    z = (normal(200, 6) * 4).round() / 6 + 0.1
    codes = nearest(z, codebook, distance)
    assert torch.equal(torch.cat([nearest(row[None], codebook, distance) for row in z]), codes)
    assert torch.equal(nearest(z.flip(0), codebook, distance).flip(0), codes)


@pytest.mark.parametrize("d", [1, 3, 8, 64])
def test_cosine_is_the_distance_of_directions(d: int) -> None:
    z, codebook = normal(200, d) * 30, normal(80, d, seed=1) * torch.arange(1, 81)[:, None]
    z[0] = 0
    codes = nearest(z, codebook, "cosine")
    assert torch.equal(codes, brute_force(directions(z, "z"), directions(codebook, "")))
    similarity = torch.nn.functional.cosine_similarity(z[1:, None].double(), codebook.double(), dim=2)
    chosen = similarity.gather(1, codes[1:, None])[:, 0]
    assert (chosen > similarity.amax(1) - 1e-7).all()
    codebook[7] = 0
    assert nearest(z, codebook, "cosine")[0] == 7
    codes = nearest(z, codebook, "cosine")
    scaled = nearest(z * 2.0**60, codebook * 2.0**-60, "cosine")
    assert torch.equal(scaled, codes)


def test_layout_in_memory_does_not_matter() -> None:
    z, codebook = normal(200, 6), normal(40, 6, seed=1)
    expected = nearest(z, codebook)
    wide = torch.stack([z, -z], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(nearest(wide, codebook), expected)
    assert torch.equal(nearest(z.T.contiguous().T, codebook.T.contiguous().T), expected)
    assert torch.equal(nearest(z[::2], codebook), expected[::2])
    assert torch.equal(nearest(z[:1].expand(5, -1), codebook), expected[:1].expand(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(dtype: torch.dtype) -> None:
    z, codebook = normal(500, 8).to(dtype), normal(64, 8, seed=1)
    expected = nearest(z.float(), codebook)
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(expected, brute_force(z, codebook))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(nearest(z, codebook.to(dtype)), brute_force(z, codebook.to(dtype)))


def test_far_from_the_origin_no_code_flips() -> None:
    # Multiples of 2⁻¹⁰ are exact in float32 even beside 1000.
    z = (normal(2000, 8) * 1024).round() / 1024 + 1000
    codebook = (normal(256, 8, seed=1) * 1024).round() / 1024 + 1000
    expected = brute_force(z, codebook)
    uncentred = (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(dim=1)
    assert (uncentred != expected).float().mean() > 0.05
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(nearest(z - 1000, codebook - 1000), expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("rows", [1, 2, 51])
@pytest.mark.parametrize(
    ("size", "first", "second"), [(5, 2, -1), (17, 2, -1), (511, 2, -1), (257, 127, 128)]
)
def test_of_equal_entries_the_lowest_index_wins(size: int, first: int, second: int, rows: int) -> None:
    for d in (1, 2, 3, 5, 8, 12, 33):
        codebook = normal(size, d, seed=d)
        codebook[first] = codebook[second] = 10 + normal(d)
        z = codebook[first] + 0.1 * normal(rows, d, seed=size)
        assert (nearest(z, codebook) == first).all()


def test_points_halfway_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[2.0], [-2.0], [0.0], [4.0], [-4.0]])
    z = torch.tensor([[1.0], [-1.0], [3.0], [-3.0], [0.0]])
    assert nearest(z, codebook).tolist() == [0, 1, 0, 1, 2]
    assert nearest(z, codebook.expand(5, 1).repeat(2000, 1)).tolist() == [0, 1, 0, 1, 2]
    assert nearest(torch.zeros(3, 2), torch.zeros(2051, 2)).tolist() == [0, 0, 0]


def test_cuda_graphs_leave_the_search_out() -> None:
    assert torch.Tag.cudagraph_unsafe in torch.ops.tokenloom.nearest.default.tags
