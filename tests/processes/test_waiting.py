"""How long processes wait for each other: for minutes in a step, for hours where one has more to do.

Left out: processes that end (test_interruption.py).
"""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from pipelines.run.processes import MEETING_TIMEOUT, STEP_TIMEOUT
from tests.helpers.warm import run_ranks

# Two processes that wait three seconds in a step, of which the main one, or the other, is late by more.
LATE = """
import sys, time
from datetime import timedelta
import torch
from accelerate import Accelerator
from pipelines.run import processes
from pipelines.run.command_line import leave_group

late, way = int(sys.argv[1]), sys.argv[2]
processes.STEP_TIMEOUT = timedelta(seconds=3)
accelerator = Accelerator(kwargs_handlers=[processes.process_group()])
processes.meet(accelerator)
rank = accelerator.process_index

def work(value):
    if rank == late:
        time.sleep(4.5)
    return value

value = torch.tensor(float(rank + 1))
found = {
    "main": lambda: processes.on_main(accelerator, lambda: work(5)),
    "objects": lambda: processes.gather_objects(accelerator, work(rank)),
    "sum": lambda: float(processes.sum_over_processes(accelerator, work(value))),
    "alike": lambda: processes.load_alike(accelerator, "data", lambda: work(7), str),
    "step": lambda: processes.mean_over_processes(accelerator, {"loss": work(value)}),
}[way]()
print(found)
leave_group()
"""


def test_work_of_one_process_may_take_longer_than_a_step_and_a_step_may_not() -> None:
    expected = {(0, "main"): "5", (1, "objects"): "[0, 1]", (0, "sum"): "3.0", (1, "alike"): "7"}
    cases = [*expected, (1, "step")]
    with ThreadPoolExecutor(len(cases)) as pool:  # which wait, and do nothing else
        *done, lost = pool.map(lambda case: run_ranks(2, "-c", LATE, *case), cases)
    for ranks, found in zip(done, expected.values(), strict=True):
        assert [(rank.code, rank.out.strip()) for rank in ranks] == [(0, found)] * 2, ranks
    assert lost[0].code == 1 and "Timed out" in lost[0].err, lost


# The patience of the group of a script and of a training, in seconds.
GROUPS = """
import json, sys
import torch
import torch.distributed as dist
from pipelines.run.command_line import leave_group
from pipelines.run.processes import plain_accelerator
from pipelines.training.options import PriorTraining
from pipelines.training.setup import start_accelerator

if sys.argv[1] == "script":
    accelerator = plain_accelerator(PriorTraining())
else:
    accelerator = start_accelerator(PriorTraining())
group = dist.group.WORLD._get_backend(torch.device("cpu"))
if accelerator.is_main_process:
    print(json.dumps(group.options._timeout.total_seconds()))
leave_group()
"""


@pytest.mark.parametrize("kind", ["script", "training"])
def test_groups_of_scripts_wait_for_minutes(kind: str) -> None:
    main, _ = run_ranks(2, "-c", GROUPS, kind)
    assert main.code == 0, main
    assert timedelta(seconds=json.loads(main.out)) == STEP_TIMEOUT
    assert STEP_TIMEOUT.total_seconds() <= 900 and MEETING_TIMEOUT.total_seconds() > 3600
