"""FSDP and DeepSpeed in two processes, by the config files that ship: what one process learns, exact resumes,
and checkpoints that any number of processes can continue.

Left out: GPUs. accelerate shards on GPUs only; here its state says that the CPU is one.
"""

import importlib.util
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.launching import IN_ONE_LAUNCH, launch_as
from tests.helpers.running import ROOT, TINY_PRIOR, TINY_TOKENIZER, Finished, Script, without_plots
from tests.helpers.whole_runs import rows_of

SEVERAL = """
import shutil
import torch
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from pipelines.training import averaging, sharding

form, runs = sys.argv[1], json.loads(sys.argv[2])
PartialState(cpu=True)
is_enabled = torch.is_autocast_enabled
# Asked of no device it answers for CUDA, which DeepSpeed asks; here as if the CPU were one.
torch.is_autocast_enabled = lambda *device: is_enabled(*(device or ("cpu",)))
finish = train_prior.finish

def finish_and_tell(options, accelerator, info, splits, prior, course):
    weights = list(prior.parameters())
    mine = sum(getattr(p, "_local_tensor", p).numel() for p in weights)
    if accelerator.is_main_process:
        state = course.optimizers[0].optimizer
        state = getattr(state, "optimizer", state).state.values()
        moments = sum(getattr(s["exp_avg"], "_local_tensor", s["exp_avg"]).numel() for s in state)
        print(f"of {sum(p.numel() for p in weights)} weights {mine} and {moments} moments", flush=True)
    finish(options, accelerator, info, splits, prior, course)

train_prior.finish = finish_and_tell
lend = averaging.lend

def lend_and_tell(model, device):
    lend(model, device)
    print(f"{len(sharding._LENT[model])} blocks of {type(model).__name__} are lent", flush=True)

averaging.lend = lend_and_tell
make = Accelerator.__init__

def make_of_version(self, **arguments):
    make(self, **arguments)
    if "VERSION" in os.environ:  # accelerate's own variable makes it look for a GPU
        self.state.fsdp_plugin.fsdp_version = int(os.environ["VERSION"])

Accelerator.__init__ = make_of_version
for name, *words in runs:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    PartialState._shared_state["distributed_type"] = getattr(DistributedType, form)
    if name == "copy" and PartialState().is_main_process:
        shutil.copytree(*words)
    if name == "set":
        os.environ[words[0]] = words[1]
    PartialState().wait_for_everyone()
    if name in ("copy", "set"):
        continue
    run(name, words)
leave_group()
"""

FORMS = [
    "fsdp",
    pytest.param(
        "deepspeed",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
        ),
    ),
]
STEPS = ("--max-steps", 4, "--checkpoint-every", 2, "--tracker", "none")
# k-means starts after the second step; in the first checkpoint its reservoir is half full.
TOKENIZER = ("emoji", *TINY_TOKENIZER, "--optimizer", "adamw", *STEPS, "--model.bottleneck.kmeans-steps", 3)


def prior_words(tokens: Path) -> tuple[object, ...]:
    # Without dropout, the one noise that differs between processes; with decay, for a second parameter group.
    words = ("--optimizer", "adamw", "--model.dropout", 0, "--weight-decay", 0.1, "--model.depth", 2)
    return ("small", *TINY_PRIOR, *words, "--tokens", tokens, *STEPS)


@pytest.fixture(scope="module")
def one(script: Script, tiny_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and a prior that one process trained."""
    folder = tmp_path_factory.mktemp("one")
    with without_plots():
        script("train_tokenizer", *TOKENIZER, "--output", folder / "tokenizer")
        script("train_prior", *prior_words(tiny_tokens), "--output", folder / "prior")
    return folder


# What the config files may not be changed to, and the options that do not go with them.
REFUSED = {
    "fsdp": [("set", "VERSION", 1), ("train_prior", "--optimizer", "adamw")],
    "deepspeed": [
        ("train_prior", "--optimizer", "adamw", "--skip-non-finite", 3),
        ("set", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu"),
        ("train_prior", "--optimizer", "adamw"),
        ("set", "ACCELERATE_DEEPSPEED_ZERO_STAGE", 3),
        ("train_prior", "--optimizer", "adamw"),
    ],
}
MESSAGES = {
    "fsdp": ["FSDP 1 joins weights into flat tensors"],
    "deepspeed": [
        "--skip-non-finite cannot work with DeepSpeed",
        "DeepSpeed's offload_optimizer is not supported; set offload_optimizer_device to none",
        "DeepSpeed's ZeRO stage is 3, expected 1 or 2",
    ],
}


@dataclass(frozen=True)
class Sharded:
    """What two processes did in one launch."""

    form: str
    folder: Path
    finished: Finished


@pytest.fixture(scope="module", params=FORMS)
def two(
    one: Path, tiny_tokens: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Sharded:
    """The same, trained by two, and more; with bf16, resumed, diverging, and with options that do not go."""
    folder, form, prior = tmp_path_factory.mktemp("two"), request.param, prior_words(tiny_tokens)
    half = Path("checkpoints") / "step-2"
    runs = [
        ("train_tokenizer", *TOKENIZER, "--gradient-accumulation", 2, "--output", folder / "tokenizer"),
        ("train_prior", *prior, "--output", folder / "prior"),
        ("copy", folder / "prior" / half, folder / "again" / half),
        ("train_prior", *prior, "--output", folder / "again", "--resume", "latest"),
        ("copy", one / "tokenizer" / half, folder / "from-one" / half),
        ("train_tokenizer", *TOKENIZER, "--output", folder / "from-one", "--resume", "latest"),
        ("train_prior", *prior, "--mixed-precision", "bf16", "--output", folder / "bf16"),
        ("train_tokenizer", *TOKENIZER, "--optimizer", "muon", "--output", folder / "muon"),
        ("train_prior", *prior, "--learning-rate", 1e18, "--clip-norm", 0, "--output", folder / "diverging"),
        *REFUSED[form],
    ]
    (folder / "several.py").write_text(IN_ONE_LAUNCH + SEVERAL)
    state, variables = {
        "fsdp": ("MULTI_GPU", {}),
        "deepspeed": ("DEEPSPEED", {"DS_ACCELERATOR": "cpu"}),
    }[form]
    words = json.dumps([[str(word) for word in run] for run in runs])
    how = ("--config_file", ROOT / "pipelines" / "configs" / f"{form}.yaml")
    return Sharded(
        form,
        folder,
        launch_as(how, variables, folder / "several.py", state, words),
    )


def assert_close(found: Path, expected: Path, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(
        load_file(found / "model.safetensors"),
        load_file(expected / "model.safetensors"),
        atol=tolerance,
        rtol=tolerance,
    )


@pytest.mark.parametrize("name", ["tokenizer", "prior"])
def test_sharded_training_learns_what_one_process_learns(two: Sharded, one: Path, name: str) -> None:
    assert_close(two.folder / name, one / name)
    last = Path("checkpoints") / "step-4"
    found, expected = (
        load_file(folder / name / last / "optimizers.safetensors") for folder in (two.folder, one)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    for ours, alone in zip(rows_of(two.folder / name), rows_of(one / name), strict=True):
        assert ours == {key: pytest.approx(value, abs=1e-3, rel=1e-3) for key, value in alone.items()}


def test_states_are_spread_over_the_processes(two: Sharded) -> None:
    held = re.findall(r"of (\d+) weights (\d+) and (\d+) moments", two.finished.out)
    whole, weights, moments = map(int, held[0])
    assert weights <= 0.55 * whole if two.form == "fsdp" else weights == whole
    assert 0.45 * whole <= moments <= 0.55 * whole


def test_no_process_evaluates_with_all_blocks_on_its_device(two: Sharded) -> None:
    told = set(re.findall(r"(\d) blocks of (\w+) are lent", two.finished.out))
    assert told == ({("2", "Prior"), ("0", "Tokenizer")} if two.form == "fsdp" else set())


def test_a_sharded_run_resumes_to_the_byte(two: Sharded) -> None:
    files = sorted((two.folder / "prior" / "checkpoints" / "step-4").iterdir())
    assert "model.safetensors" in [path.name for path in files]
    for path in files:
        assert (two.folder / "again" / "checkpoints" / "step-4" / path.name).read_bytes() == path.read_bytes()


def test_a_run_of_one_process_goes_on_sharded(two: Sharded, one: Path) -> None:
    assert_close(two.folder / "from-one", one / "tokenizer")


@pytest.mark.parametrize("name", ["tokenizer", "prior"])
def test_a_sharded_run_goes_on_in_one_process(
    two: Sharded, one: Path, name: str, script: Script, no_plots: None, tiny_tokens: Path, tmp_path: Path
) -> None:
    half = Path("checkpoints") / "step-2"
    shutil.copytree(two.folder / name / half, tmp_path / half)
    words = TOKENIZER if name == "tokenizer" else prior_words(tiny_tokens)
    script(f"train_{name}", *words, "--output", tmp_path, "--resume", "latest")
    assert_close(tmp_path, one / name)


def test_bf16_is_for_arithmetic_alone(two: Sharded, one: Path) -> None:
    found, expected = (load_file(f / "model.safetensors") for f in (two.folder / "bf16", one / "prior"))
    assert all(value.dtype == torch.float32 for value in found.values() if value.is_floating_point())
    assert any(not torch.allclose(found[key], value, atol=1e-6) for key, value in expected.items())
    losses = [rows_of(f)[-1]["valid/bits_per_code"] for f in (two.folder / "bf16", one / "prior")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_muon_is_refused_before_anything_is_written(two: Sharded) -> None:
    assert re.search("Error: --optimizer muon .*--optimizer adamw", two.finished.err)
    assert not (two.folder / "muon").exists()


def test_gradients_that_are_not_finite_end_a_sharded_run(two: Sharded) -> None:
    assert re.search(r"Error: step \d: .* not finite", two.finished.err)
    assert ("--skip-non-finite 10" in two.finished.err) == (two.form == "fsdp")
    assert not (two.folder / "diverging" / "model.safetensors").exists()


def test_what_does_not_go_with_sharding_is_refused(two: Sharded) -> None:
    for message in MESSAGES[two.form]:
        assert f"Error: {message}" in two.finished.err
    # The diverging run and those that were refused, on both processes.
    ended = two.finished.out.splitlines().count("train_prior ended with 2")
    assert ended == 2 * (1 + len(MESSAGES[two.form]))
