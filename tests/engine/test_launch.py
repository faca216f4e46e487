"""`--processes` and `--accelerate-config`: the same command line as several ranks, under the requested strategy, with the same result."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.run import get_args_parser

from rmtrain.engine.launch import CONFIGS, Launch, _rank_environment, config_names, first_failure, launch, read
from rmtrain.engine.rank import SIGNALS, RankReport
from rmtrain.errors import RecipeError
from tests import forks
from tests.runs import ROOT, environment_of_process, metrics_of, rmtrain, tiny_recipe, write_recipe

STEPS = 4
STRATEGIES = {
    "cpu": "DDP",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "deepspeed_zero1": "DeepSpeed ZeRO-1",
    "deepspeed_zero2": "DeepSpeed ZeRO-2",
    "deepspeed_zero3": "DeepSpeed ZeRO-3",
    "fsdp2_offload": "FSDP2 with CPU offload",
    "deepspeed_zero3_offload": "DeepSpeed ZeRO-3 with CPU offload",
}
"""The strategy of each configuration for one machine and several processes."""
LONG = tuple(name for name in STRATEGIES if name != "fsdp2")
"""Configurations that only `make faults` starts: `--processes` alone means one of the first two, and `tests/faults/test_elastic.py` trains
under DeepSpeed."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a few steps whose micro-batches differ in number and size."""
    folder = tmp_path_factory.mktemp("launch")
    training = {"batch_size": 9, "precision": "float32", "max_steps": STEPS}
    optimizer = {"lr": 1e-3, "eps": 1e-6}
    return write_recipe(folder, tiny_recipe(folder, training=training, optimizer=optimizer, batching={"max_tokens": 200}))


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run of one process."""
    return trained(recipe, "alone")


def trained(recipe: Path, name: str, *options: str) -> Path:
    """A run of the recipe under a name, after which stdout has one JSON document."""
    run = recipe.parent / name
    result = forks.rmtrain("train", recipe, f"run.output_dir={run}", *options, "--json", cwd=recipe.parent)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["directory"] == str(run)
    assert "Traceback" not in result.stderr
    (run / "document.json").write_text(result.stdout)
    return run


def facts(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "environment.json").read_text())
    return record


def assert_as_one(run: Path, alone: Path) -> None:
    """Losses, norms and evaluations are those of one process, within the rounding of sums."""
    for one, other in zip(metrics_of(run), metrics_of(alone), strict=True):
        assert one["step"] == other["step"]
        for key in ("train/loss", "train/grad_norm", "train/accuracy", "train/learning_rate", "eval/loss", "eval/accuracy"):
            assert (key in one) == (key in other)
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=2e-5), (key, one["step"])
    assert [line["ids"] for line in ledger(run)] == [line["ids"] for line in ledger(alone)]
    assert len(metrics_of(run)) >= STEPS, "guard: there are losses"


def ledger(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in STRATEGIES])
def test_trap_17_configuration_starts_its_strategy(name: str, recipe: Path, alone: Path) -> None:
    """Each configuration starts its processes under its strategy, with the losses of one process."""
    run = trained(recipe, name, "--processes", "2", f"--accelerate-config={name}")
    assert (facts(run)["processes"], facts(run)["strategy"]) == (2, STRATEGIES[name])
    assert_as_one(run, alone)


def test_processes_alone_or_own_file_suffice(recipe: Path, alone: Path) -> None:
    run = trained(recipe, "processes", "--processes=2")
    own = recipe.parent / "own.yaml"
    own.write_text((CONFIGS / "cpu.yaml").read_text().replace("num_processes: 2", "num_processes: 3"))
    job = read(None, str(own))
    assert job is not None
    assert (job.config, job.processes, job.on_cpu) == (own, 3, True)
    assert [facts(path)["processes"] for path in (alone, run)] == [1, 2]
    assert_as_one(run, alone)


def test_one_process_is_not_launched() -> None:
    assert launch(1, None) is None
    assert launch(None, "single_gpu") is None
    job = read(2, None)
    assert job is not None
    assert job.processes == 2, "guard: two are"


def test_eval_on_two_processes_equals_one(recipe: Path, alone: Path) -> None:
    """`score` and more numbers of `eval` are compared in test_eval_ranks."""
    result = forks.rmtrain("eval", alone, "--output", recipe.parent / "by2", "--processes", "2", "--json", cwd=recipe.parent)
    assert result.returncode == 0, result.stderr
    both, one = json.loads(result.stdout), json.loads((alone / "document.json").read_text())["evaluation"]
    assert {key: both[key] for key in ("accuracy", "n", "ties", "longer_wins")} == {
        key: one[key] for key in ("accuracy", "n", "ties", "longer_wins")
    }
    assert both["loss"] == pytest.approx(one["loss"], rel=2e-5)
    assert both["n"] == 16, "guard: rows were scored"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_several_machines_train_as_one(recipe: Path, alone: Path) -> None:
    """Two launchers that meet over the network play two machines."""
    run, port = recipe.parent / "machines", free_port()
    config = str(ROOT / "configs/accelerate/multi_node.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command = ["-m", "rmtrain", "train", str(recipe), f"run.output_dir={run}"]
    machines = [
        subprocess.Popen(
            [*launcher, "--num_processes", "2", "--main_process_port", port, "--machine_rank", str(number), *command],
            cwd=recipe.parent,
            env=environment_of_process(ACCELERATE_USE_CPU="true"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        printed = [machine.communicate(timeout=240)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert (facts(run)["processes"], facts(run)["strategy"]) == (2, "DDP")
    assert_as_one(run, alone)
    assert sum("evaluation at step" in text for text in printed) == 1, "guard: one of the two machines showed the run"


REFUSED: dict[str, tuple[int | None, str | None, dict[str, str], str, str]] = {
    "no such configuration": (None, "fsdp9", {}, "--accelerate-config fsdp9:", "cpu, ddp, "),
    "a launched rank": (2, None, {"WORLD_SIZE": "2", "RANK": "0"}, "--processes and --accelerate-config:", "launcher"),
    "one process by configuration, two by option": (
        2,
        "single_gpu",
        {},
        f"{CONFIGS / 'single_gpu.yaml'}: distributed_type:",
        "NO",
    ),
    "a kind that starts one process": (None, "multi_cpu.yaml", {}, "multi_cpu.yaml: distributed_type:", "MULTI_CPU"),
    "a template for several machines": (None, "multi_node", {}, "--accelerate-config multi_node:", "copy"),
    "an uneven split": (3, "two_machines.yaml", {}, "--processes:", "3"),
    "not a configuration": (None, "list.yaml", {}, "list.yaml:", "cpu, ddp, "),
    "not YAML": (None, "broken.yaml", {}, "broken.yaml:", "cpu, ddp, "),
    "DeepSpeed is not installed": (2, "deepspeed_zero2", {}, "deepspeed_zero2.yaml:", "rmtrain[deepspeed]"),
}
"""Options and environment; the place that the error begins with, and what else it names."""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of odd configurations, and an interpreter without DeepSpeed."""
    (tmp_path / "multi_cpu.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    (tmp_path / "two_machines.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 2\n")
    (tmp_path / "list.yaml").write_text("- distributed_type\n")
    (tmp_path / "broken.yaml").write_text("distributed_type: [\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    return tmp_path


@pytest.mark.parametrize("why", REFUSED)
def test_impossible_job_is_refused(why: str, odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, config, environment, place, detail = REFUSED[why]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError) as refused:
        launch(processes, config)
    (problem,) = refused.value.problems
    assert problem.startswith(place)
    assert detail in problem


def test_refusal_precedes_the_run(recipe: Path, odd: Path) -> None:
    """One line and code 2; nothing is written."""
    result = rmtrain("train", recipe, f"run.output_dir={odd / 'run'}", "--accelerate-config", "fsdp9", cwd=odd)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --accelerate-config fsdp9:")
    assert result.stdout == ""
    assert not (odd / "run").exists()


def test_wrong_recipe_is_reported_before_torch_loads(tmp_path: Path) -> None:
    """Once, by the launcher."""
    (tmp_path / "wrong.yaml").write_text("run: {nmae: x}\n")
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    result = rmtrain("train", "wrong.yaml", "--processes", "2", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 2
    assert result.stderr.count("run.nmae:") == 1
    assert "torch was imported" not in result.stderr, "guard: it would have ended so"


def test_more_processes_than_gpus_are_refused() -> None:
    """Also shown without a GPU: a machine that has none has too few for processes that need one each."""
    count = torch.cuda.device_count()
    job = Launch(CONFIGS / "ddp.yaml", count + 1, machines=1, on_cpu=False, needs=None, content={})
    with pytest.raises(RecipeError) as refused:
        job.check()
    assert refused.value.problems[0].startswith("--processes:")
    assert {str(count), str(count + 1)} <= set(refused.value.problems[0].replace(",", "").split())
    replace(job, on_cpu=True).check()


def test_configurations_ship_with_the_package() -> None:
    """Each says when to use it, and leaves precision and accumulation to the recipe."""
    assert set(config_names()) == {*STRATEGIES, "single_gpu", "multi_node"}
    for name in config_names():
        text = (ROOT / f"configs/accelerate/{name}.yaml").read_text()
        assert text == (CONFIGS / f"{name}.yaml").read_text(), "the folder shows what the package has"
        assert len(text.splitlines()[0]) > 40, "when to use it"
        assert text.startswith("# ")
        content = yaml.safe_load(text)
        assert content["mixed_precision"] == "no"
        assert content.get("deepspeed_config", {}).get("gradient_accumulation_steps", 1) == 1
        assert not {"gradient_clipping", "deepspeed_config_file"} & set(content.get("deepspeed_config", {}))
    assert CONFIGS.is_relative_to(ROOT / "rmtrain"), "guard: package data"
    assert os.listdir(CONFIGS), "guard"


def failure(rank: int, code: int, second: int) -> ProcessFailure:
    """The end of a rank as torch's agent sees it."""
    ended = ProcessFailure(local_rank=rank, pid=1000 + rank, exitcode=code, error_file="")
    ended.timestamp = second
    return ended


def report(rank: int, code: int, when: float, may_follow: bool = False) -> RankReport:
    return RankReport(rank, code, [f"error: of rank {rank}"], may_follow, when)


ENDS = {
    "a refusal, and the peer whose collective fails": (
        [report(1, 3, 10.9), report(0, 75, 10.95, may_follow=True)],
        [failure(1, 3, 10), failure(0, 75, 11)],
        (1, 3),
    ),
    "a refusal, and a peer that torch kills after 30 s": ([report(1, 3, 10.9)], [failure(1, 3, 11), failure(0, -9, 41)], (1, 3)),
    "a refusal, and a peer that aborts": ([report(1, 3, 10.2)], [failure(1, 3, 10), failure(0, -6, 10)], (1, 3)),
    "a killed rank, and a peer that noticed first": (
        [report(0, 75, 10.2, may_follow=True)],
        [failure(0, 75, 10), failure(1, -9, 10)],
        (1, 75),
    ),
    "a killed rank, and a peer stopped for it": (
        [report(0, 143, 10.4, may_follow=True)],
        [failure(1, -9, 10), failure(0, 143, 10)],
        (1, 75),
    ),
    "a killed rank alone": ([], [failure(1, -11, 10), failure(0, -9, 40)], (1, 75)),
    "a stopped rank, and the peer that it leaves": (
        [report(1, 143, 10.2, may_follow=True), report(0, 75, 10.5, may_follow=True)],
        [failure(1, 143, 10), failure(0, 75, 10)],
        (1, 143),
    ),
    "exits without a report": ([], [failure(1, 7, 10), failure(0, -15, 10)], (1, 7)),
    "ranks that a signal ended before they could handle it": ([], [failure(0, -15, 10), failure(1, -15, 11)], (0, 143)),
}
"""Reports of ranks, what torch's agent saw, and the rank and code that count."""


@pytest.mark.parametrize("what", ENDS)
def test_first_failure_counts(what: str) -> None:
    reports, failures, expected = ENDS[what]
    first = first_failure(reports, {ended.local_rank: ended for ended in failures})
    assert (first.rank, first.code) == expected
    (line,) = first.lines
    assert line.startswith("error: ")
    if first not in reports:
        assert f"rank {expected[0]}" in line
        assert (f"pid {1000 + expected[0]}" in line) == (expected[1] == 75)


def test_launcher_forwards_the_signals_that_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's agent has a default of its own, without SIGUSR1 and SIGXCPU, and with SIGHUP under `nohup`."""
    job = read(2, "cpu")
    assert job is not None
    for name, value in _rank_environment(job).items():
        monkeypatch.setenv(name, value)
    forwarded = get_args_parser().parse_args(["script.py"]).signals_to_handle.split(",")
    assert forwarded == [number.name for number in SIGNALS]
    assert {"SIGTERM", "SIGUSR1", "SIGXCPU"} <= set(forwarded), "guard"
