"""Measures of speech in other processes: the values of direct calls, no error swallowed, no process left.

Left out: the measures themselves (tokenizer/test_sound_metrics.py).
"""

import functools
import json
import math
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.data.batches import load_splits
from pipelines.data.clips import Clips
from pipelines.data.config import DataConfig
from pipelines.evaluation import sounds as sound_evaluation
from pipelines.evaluation.clips import one_thread
from pipelines.evaluation.sounds import evaluate_sound
from pipelines.evaluation.speech import MEASURES, MOST, SECONDS_EACH, SLOW, SpeechScores, helper_count
from pipelines.evaluation.tokenizers import Measured
from tests.helpers.running import as_a_new_process
from tests.helpers.speech import RATE, noise, speech
from tests.helpers.tiny import codec
from tests.helpers.warm import run_ranks, run_words
from tokenizer import Tokenizer
from tokenizer.sound_metrics import available, dnsmos, is_silent, si_sdr
from tokenizer.spectral import mel_distance, stft_distance

Added = list[tuple[int, str, float, float]]
QUICK = tuple(name for name in available() if name not in SLOW)


def pair(i: int) -> tuple[Tensor, Tensor]:
    """Speech with some noise, and alone; of each four the last is too short for both measures, and the one
    before is silent. All are (1, 1, T)."""
    x = speech(4 + i, 1.0)[None]
    if i % 4 == 3:
        x = x[..., :1000]
    if i % 4 == 2:
        x = torch.zeros_like(x)
    return x + noise(x, 0.002 * (1 + i), seed=i), x


@functools.cache
def direct() -> Added:
    """What direct calls make of nine pairs."""
    wanted = []
    for i in range(9):
        for name in QUICK:
            score = MEASURES[name](*pair(i), RATE)
            wanted.append((i, name, score.values.double().sum().item(), float(score.measured.sum())))
    return wanted


def take(added: Added, i: int, name: str, total: float, count: float) -> None:
    added.append((i, name, total, count))


def noted(scores: SpeechScores) -> list[object]:
    """The jobs that go to helpers from now on."""
    asked: list[object] = []
    ask = scores._ask
    scores._ask = lambda job: (asked.append(job), ask(job))[1]  # type: ignore[method-assign]
    return asked


def add_all(scores: SpeechScores) -> None:
    """Wait for what was asked for so far."""
    while scores._results:
        scores._add_first()


@pytest.mark.parametrize("helpers", [0, 1])
def test_scores_are_those_of_direct_calls_in_the_same_order_until_one_raises(helpers: int) -> None:
    added: Added = []
    with pytest.raises(ValueError, match=r"x_hat .*finite.*\[-1, 1\], got NaN") as raised:  # noqa: SIM117
        with SpeechScores(QUICK, RATE, helpers) as scores:
            asked = noted(scores)
            for i in range(9):
                scores.measure(functools.partial(take, added, i), *pair(i))
            add_all(scores)
            assert 2 * helpers <= len(asked) <= (9 if helpers else 0)
            x_hat, x = pair(0)
            scores.measure(functools.partial(take, added, 9), x_hat.log(), x)
    assert added == direct()  # and nothing of the pair that raised
    assert {count for *_, count in added} == {0, 1}
    if helpers:  # where it happened is told too
        assert "in totals" in "".join(raised.value.__notes__)


def test_what_takes_long_is_left_out_where_asked_and_dnsmos_is_that_of_the_data_too() -> None:
    added: Added = []
    x = speech(4, 1.2)[None]  # 8 times make one window
    x_hat = x + noise(x, 0.02)
    with SpeechScores(available(), RATE, 0) as scores:
        scores.measure(functools.partial(take, added, 0), x_hat, x, slow=False)
        scores.measure(functools.partial(take, added, 1), x_hat, x)
        scores.measure(functools.partial(take, added, 2), *pair(2))  # silent
    assert [name for i, name, *_ in added if i == 0] == [*QUICK]
    rebuilt, original = (dnsmos(y, x, RATE).values.item() for y in (x_hat, x))
    wanted = [(1, "dnsmos", rebuilt, 1.0), (1, "dnsmos_original", original, 1.0)]
    assert [row for row in added if row[0] == 1][len(QUICK) :] == wanted
    assert original > rebuilt + 0.1
    assert added[-2:] == [(2, "dnsmos", 0.0, 0.0), (2, "dnsmos_original", 0.0, 0.0)]


def test_nothing_is_started_or_added_for_no_measures() -> None:
    added: Added = []
    with SpeechScores((), RATE, 2) as scores:
        scores.measure(functools.partial(take, added, 0), *pair(0))
        assert scores.helpers == []
    assert added == []


def test_helpers_are_deaf_to_signals_of_the_run_and_end_with_the_context() -> None:
    added: Added = []
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with SpeechScores(QUICK, RATE, 2) as scores:
            first, second = (helper.process for helper in scores.helpers)
            assert len({os.getpgid(0), os.getpgid(first.pid), os.getpgid(second.pid)}) == 3
            asked = noted(scores)
            for i in range(5):
                scores.measure(functools.partial(take, added, i), *pair(i))
            add_all(scores)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                first.send_signal(number)
                second.send_signal(number)
            for i in range(5, 9):
                scores.measure(functools.partial(take, added, i), *pair(i))
            add_all(scores)
            assert added == direct()
            assert 4 <= len(asked) <= 9
            # One that dies is an error for whoever waits for it; the other lives until the context ends.
            first.kill()
            with pytest.raises(ChildProcessError, match=r"stoi.* exit code -9.*taskset -c 0"):
                for i in range(2):  # one for each
                    scores.measure(lambda *_: None, *pair(i))
                add_all(scores)
            assert second.poll() is None
            raise KeyboardInterrupt
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, -signal.SIGKILL)


# Its helpers hold its stdout too.
KILLED = """
import os, signal
from tests.pipelines.evaluation.test_speech import QUICK, RATE, SpeechScores, pair

with SpeechScores(QUICK, RATE, 2) as scores:
    for i in range(4):
        scores.measure(lambda *_: None, *pair(i))
    print("measuring", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_helpers_end_with_a_run_that_is_killed() -> None:
    killed = run_words("-c", KILLED)  # returns once the last that holds stdout has ended
    assert (killed.code, killed.out) == (-signal.SIGKILL, "measuring\n"), killed.err


def test_helpers_are_as_many_as_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, seconds, wanted in [
        (1, 1, math.inf, 0),
        (2, 1, 1e6, 1),
        (2, 2, 1e6, 0),
        (8, 2, 1e6, 3),
        (2, 4, 1e6, 0),
        (8, 1, SECONDS_EACH - 1, 0),
        (8, 1, 2.5 * SECONDS_EACH, 2),
        (64, 1, 1e6, MOST),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
            assert helper_count(min(seconds, 1e9), processes) == wanted


def measured_with(helpers: int, tok: Tokenizer, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> Measured:
    with monkeypatch.context() as patch, as_a_new_process():
        patch.setattr(sound_evaluation, "helper_count", lambda *_: helpers)
        return evaluate_sound(tok, clips, Accelerator(cpu=True), 1, thorough=True)


def plain_means(tok: Tokenizer, clips: Clips, k: int) -> dict[str, float]:
    """Means over clips at k codebooks, each measured by itself."""
    values: dict[str, list[float]] = {}
    for i in range(len(clips)):
        x = clips.x(i)[None]
        x_hat = tok.decode(tok.encode(x)[:, :k], size=x.shape[2]).clamp(-1, 1)
        found = {
            "l1": (x_hat - x).abs().mean().item(),
            "mel_distance": mel_distance(x_hat, x, RATE).item(),
            "stft_distance": stft_distance(x_hat, x).item(),
        }
        assert not is_silent(x)
        found["si_sdr"] = si_sdr(x_hat, x).item()
        for name in QUICK:
            mean = MEASURES[name](x_hat, x, RATE).mean()
            if mean is not None:
                found[name] = mean
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return {name: sum(v) / len(v) for name, v in values.items()}


def test_an_evaluation_is_the_mean_of_plain_measures_with_and_without_helpers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tok = codec().eval()
    monkeypatch.setattr(sound_evaluation, "available", lambda: QUICK)
    clips = load_splits(DataConfig("embedded:speech", limit=2), tok.modality).held_out
    threads = torch.get_num_threads()
    found = [measured_with(helpers, tok, clips, monkeypatch) for helpers in (0, 1)]
    assert torch.get_num_threads() == threads
    for k in range(1, tok.num_codebooks + 1):
        wanted = plain_means(tok, clips, k)
        rows = [
            {n: v for n, v in measured.rates[k].items() if not n.endswith("_speed")} for measured in found
        ]
        assert rows[0] == rows[1]  # bit for bit
        assert set(wanted) <= set(rows[0])
        assert {n: rows[0][n] for n in wanted} == pytest.approx(wanted, rel=1e-4)
    assert found[0].counts is not None and found[1].counts is not None
    assert torch.equal(found[0].counts, found[1].counts)


# One of two ranks, each with a helper. Rank 0 prints the means; ranks and helpers hold stdout.
RANK = """
import json, os, sys
from accelerate import Accelerator
from pipelines.data.batches import load_splits
from pipelines.data.config import DataConfig
from pipelines.evaluation import sounds as sound_evaluation
from pipelines.evaluation.sounds import evaluate_sound
from tests.helpers.tiny import codec
from tests.pipelines.evaluation.test_speech import QUICK

tok = codec().eval()  # before it could start its codes together with the other rank
accelerator = Accelerator(cpu=True)
asked = []
sound_evaluation.helper_count = lambda _, local: asked.append(local) or 1
sound_evaluation.available = lambda: QUICK
if accelerator.process_index == 1 and sys.argv[1] == "dies":
    sound_evaluation.measure_sounds = lambda *_: os._exit(3)
clips = load_splits(DataConfig("embedded:speech", limit=3), tok.modality).held_out
measured = evaluate_sound(tok, clips, accelerator, 1, thorough=True)
if accelerator.is_main_process:
    print(json.dumps([accelerator.num_processes, asked, measured.rates, measured.counts.tolist()]))
accelerator.end_training()
"""


def test_two_ranks_with_helpers_get_the_scores_of_one_process_and_leave_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = run_ranks(2, "-c", RANK, "lives")
    assert [rank.code for rank in ranks] == [0, 0], ranks
    processes, asked, rates, counts = json.loads(ranks[0].out)
    assert (processes, asked) == (2, [2])
    with one_thread(True):  # as the ranks have
        tok = codec().eval()
    clips = load_splits(DataConfig("embedded:speech", limit=3), tok.modality).held_out
    monkeypatch.setattr(sound_evaluation, "available", lambda: QUICK)
    alone = measured_with(0, tok, clips, monkeypatch)
    assert list(rates) == [str(k) for k in alone.rates]
    for k, row in alone.rates.items():
        wanted = {name: value for name, value in row.items() if not name.endswith("_speed")}
        assert {*QUICK} <= set(wanted)
        assert {name: rates[str(k)][name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert alone.counts is not None and counts == alone.counts.tolist()


def test_a_rank_that_dies_takes_the_helpers_of_both_along() -> None:
    ranks = run_ranks(2, "-c", RANK, "dies")  # returns once the last that holds stdout has ended
    assert [(rank.code, rank.out) for rank in ranks] == [(1, ""), (3, "")], ranks


def test_a_thorough_evaluation_uses_one_thread_and_gives_the_others_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tok = codec()
    clips = load_splits(DataConfig("embedded:speech", limit=1), tok.modality).held_out
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(sound_evaluation, "available", lambda: ())
    monkeypatch.setattr(sound_evaluation, "measure_sounds", lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        measured_with(0, tok, clips, monkeypatch)
        assert set(seen) == {1} and torch.get_num_threads() == 3
        with as_a_new_process():
            evaluate_sound(tok, clips, Accelerator(cpu=True), 1, False)  # as in training, whose steps go on
        assert seen[-1] == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
