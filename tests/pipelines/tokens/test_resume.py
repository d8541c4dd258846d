"""A prior's run that is resumed after its tokens were made anew.

Left out: resuming in general (pipelines/training/test_run_folder.py, test_windows.py) and encoding
(pipelines/scripts/test_encode_dataset.py).
"""

import dataclasses
import shutil
from pathlib import Path

from pipelines.tokens.info import write_info
from pipelines.tokens.items import read_tokens
from pipelines.tokens.shards import write_shard
from tests.helpers.running import TINY_PRIOR, Script, assert_refused


def test_a_run_does_not_continue_with_tokens_of_another_tokenizer(
    script: Script, no_plots: None, tiny_tokens: Path, tmp_path: Path
) -> None:
    info, splits = read_tokens(tiny_tokens)
    tokens, words = (
        tmp_path / "tokens",
        ("small", *TINY_PRIOR, "--tracker", "none", "--output", tmp_path / "p"),
    )
    shutil.copytree(tiny_tokens, tokens)
    script("train_prior", *words, "--tokens", tokens, "--max-steps", 1)
    other = dataclasses.replace(info, fingerprint="f" * 16, shards=(1, 1))
    for name, split in splits.items():  # made anew in the same place
        codes, labels = split.rows(slice(None))
        write_shard(tokens, name, 0, 1, other, codes, labels.numpy(), [str(i) for i in range(len(codes))])
    write_info(tokens, other)
    resume = ("--tokens", tokens, "--max-steps", 2, "--resume", "latest")
    finished = script("train_prior", *words, *resume, code=2)
    assert_refused(finished, tmp_path / "p", info.fingerprint, "f" * 16, "--output")
