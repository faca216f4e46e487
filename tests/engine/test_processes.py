"""Processes that leave their group."""

import subprocess
import sys

from tests.runs import ROOT, environment_of_process

LEAVING = """
import faulthandler, os, time

import torch
from accelerate import Accelerator
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from rmtrain.engine.distributed import LEFT, leave_group

faulthandler.dump_traceback_later(60, exit=True)
accelerator, count, until = Accelerator(cpu=True), 0, time.monotonic() + 10
while count < 100 or time.monotonic() < until:
    count += 1
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    gathered = [torch.zeros(4)]
    distributed.all_gather(gathered, torch.ones(4))
    leave_group(accelerator)
    del gathered, model
assert not distributed.is_initialized() and len(LEFT) == count, "guard: each time"
print(count, flush=True)
os._exit(0)
"""


def test_a_process_that_has_left_its_group_does_not_wait_for_ever_when_its_model_goes() -> None:
    environment = environment_of_process(ACCELERATE_USE_CPU="true")
    result = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 100, "guard: a group that is not kept hangs after a few"
