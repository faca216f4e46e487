"""Work of rank 0 whose outcome every rank gets, and processes that leave their group."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from rmtrain.engine.distributed import any_rank, run_on_main
from rmtrain.errors import TryAgain
from tests.runs import ROOT, environment_of_process, torchrun

SCRIPT = """
import sys
from pathlib import Path
from accelerate import Accelerator
from rmtrain.engine.distributed import any_rank, largest_on_any_rank, run_on_main
from rmtrain.errors import TryAgain

accelerator, rank_file = Accelerator(cpu=True), Path(sys.argv[1])
rank, calls = accelerator.process_index, []
first = run_on_main(accelerator, lambda: calls.append(1) or {"answer": 42})
def fail():
    raise TryAgain("the disk is full")
try:
    run_on_main(accelerator, fail)
except TryAgain as error:
    problems = error.problems
flags = [any_rank(accelerator, flag) for flag in (False, rank == 1, True)], largest_on_any_rank(accelerator, 15 * rank)
rank_file.with_suffix(f".{rank}").write_text(f"{first} {problems} {flags} {len(calls)}")
accelerator.state.destroy_process_group()  # as a run does: threads of a group that is left at exit can abort the process
"""
LEAVING = """
import faulthandler, os

import torch
from accelerate import Accelerator
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from rmtrain.engine.distributed import LEFT_GROUPS, leave_group

faulthandler.dump_traceback_later(60, exit=True)
accelerator = Accelerator(cpu=True)
for _ in range(400):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    gathered = [torch.zeros(4)]
    distributed.all_gather(gathered, torch.ones(4))
    leave_group(accelerator)
    del gathered, model
assert not distributed.is_initialized() and len(LEFT_GROUPS) == 400, "guard: each time"
print("done", flush=True)
os._exit(0)
"""


def test_one_process_calls_the_work() -> None:
    def fail() -> None:
        raise TryAgain("full")

    accelerator = Accelerator(cpu=True)
    assert run_on_main(accelerator, lambda: 7) == 7
    assert [any_rank(accelerator, flag) for flag in (False, True)] == [False, True]
    with pytest.raises(TryAgain, match="full"):
        run_on_main(accelerator, fail)


def test_trap_46_error_on_main_reaches_all_ranks(tmp_path: Path) -> None:
    """Each rank gets the result or the error of rank 0's work, and none waits."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*torchrun(2), str(tmp_path / "script.py"), str(tmp_path / "rank.txt")]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(ACCELERATE_USE_CPU="true"), timeout=120
    )
    assert result.returncode == 0, result.stderr
    main, other = ((tmp_path / f"rank.{rank}").read_text() for rank in (0, 1))
    shared = "{'answer': 42} ('the disk is full',) ([False, True, True], 15)"
    assert main == f"{shared} 1"
    assert other == f"{shared} 0", "guard: the other process did not do the work"


def test_process_that_left_its_group_ends() -> None:
    """The end of a gloo group can wait for ever for a thread that waits for Python; kept groups do not."""
    environment = environment_of_process(ACCELERATE_USE_CPU="true")
    result = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n", "guard: a group that is not kept hangs, most often within a hundred"
