"""The start of a run and its end on several ranks: what is refused and recorded, work of rank 0 that all get, groups that are left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.engine.distributed import any_rank, environment, launched, note_idle_gpus, run_on_main, start
from rmtrain.engine.strategy import Strategy
from rmtrain.engine.strategy_kind import check_recipe
from rmtrain.errors import RecipeError, TryAgain
from tests.engine.ranks import SHARDING
from tests.forks import ON_CPU, fork_server
from tests.runs import ROOT, environment_of_process, tiny_recipe


@pytest.mark.parametrize(("gpus", "variables", "said"), [(8, {}, 1), (1, {}, 0), (0, {}, 0), (8, ON_CPU, 0)])
def test_one_process_names_idle_gpus(
    gpus: int, variables: dict[str, str], said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with the option that uses all."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    note_idle_gpus.cache_clear()
    with caplog.at_level("INFO", logger="rmtrain"):
        launched()
        launched()
    lines = [record.getMessage() for record in caplog.records if "GPUs" in record.getMessage()]
    assert len(lines) == said
    assert all(f"1 of {gpus} GPUs" in line and f"--processes {gpus}" in line for line in lines)


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
    ended = fork_server().run(tmp_path / "rank.txt", program=str(tmp_path / "script.py"), processes=2, **ON_CPU)
    assert ended.code == 0, ended.stderr
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


def test_missing_tracker_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        start(tiny_recipe(tmp_path, tracking={"to": ["mlflow"]}))
    (problem,) = refused.value.problems
    assert problem.startswith("tracking.to: mlflow ")
    assert "rmtrain[mlflow]" in problem


@pytest.mark.parametrize(
    ("strategy", "variable", "value", "key"),
    [
        ("fsdp2", "FSDP_VERSION", "1", "fsdp_version"),
        ("fsdp2", "FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading"),
        ("fsdp2", "FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing"),
        ("zero2", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "0", "zero_stage"),
        ("zero3", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "nvme", "offload_optimizer_device"),
        ("zero3", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "offload_param_device"),
        ("zero2_offload", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "offload_param_device"),
    ],
)
def test_unsupported_sharding_is_refused(
    strategy: str, variable: str, value: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting of accelerate that rmtrain has in its recipe, or does not support, is named with its remedy."""
    for name, setting in {**SHARDING[strategy], variable: value}.items():
        monkeypatch.setenv(name, setting)
    with pytest.raises(RecipeError) as refused:
        start(tiny_recipe(tmp_path))
    assert f" {key}: " in refused.value.problems[0]


@pytest.mark.parametrize(
    ("key", "strategy"),
    [
        ("optimizer.name", "fsdp2"),
        ("optimizer.name", "zero2_offload"),
        ("model.quantization", "zero3"),
        ("training.precision", "zero2"),
    ],
)
def test_unshardable_recipe_is_refused(key: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, setting in SHARDING[strategy].items():
        monkeypatch.setenv(name, setting)
    precision = "float16" if key == "training.precision" else "float32"
    optimizer = {"lr": 1e-3, "name": "adamw_8bit" if key == "optimizer.name" else "adamw"}
    recipe = tiny_recipe(tmp_path, optimizer=optimizer, training={"batch_size": 8, "precision": precision})
    if key == "model.quantization":
        recipe.model.__dict__["quantization"] = "nf4"  # of a model that need not exist: `start` loads none
    with pytest.raises(RecipeError) as refused:
        start(recipe)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{key}:")


def test_4_bit_shards_need_a_later_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch shards integers from 2.12 on; before, it refuses them in the middle of sharding."""
    recipe, cpu = tiny_recipe(tmp_path), torch.device("cpu")
    recipe.model.__dict__["quantization"] = "nf4"
    monkeypatch.setattr("rmtrain.engine.strategy_kind.is_torch_version", lambda *_: False)
    with pytest.raises(RecipeError) as refused:
        check_recipe(recipe, "fsdp2", cpu)
    assert refused.value.problems[0].startswith("model.quantization: ")
    assert torch.__version__ in refused.value.problems[0]
    check_recipe(recipe, "ddp", cpu)
    monkeypatch.undo()
    check_recipe(recipe, "fsdp2_offload", cpu)


def test_environment_names_nothing_of_the_machine(tmp_path: Path) -> None:
    record = environment(Strategy(Accelerator(cpu=True)), "float32", {"data": "abc"})
    assert record["versions"]["torch"]
    assert record["hashes"] == {"data": "abc"}
    assert str(Path.home()) not in json.dumps(record)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_reload")
def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, tracking={"to": ["tensorboard"], "log_every": 1}), Console(quiet=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = list((tmp_path / "run").rglob("events.out.tfevents*"))
    tags: set[str] = set()
    for file in events:
        accumulator = EventAccumulator(str(file.parent))
        accumulator.Reload()
        tags |= set(accumulator.Tags()["scalars"])
    assert {"train/loss", "eval/accuracy"} <= tags
