"""`--processes` and `--accelerate-config`: the same command line as several ranks, in the strategy asked for, with the same result."""

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

from rmtrain.engine.launch import CONFIGS, Launch, names, without_options
from rmtrain.errors import RecipeError
from tests.runs import ROOT, environment_of_process, metrics_of, rmtrain, tiny_recipe, write_recipe

STEPS = 4
STRATEGIES = {
    "cpu": "DDP",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "deepspeed_zero1": "DeepSpeed ZeRO-1",
    "deepspeed_zero2": "DeepSpeed ZeRO-2",
    "deepspeed_zero3": "DeepSpeed ZeRO-3",
}
"""What each configuration for one machine and several processes puts in force."""
WITHOUT_DEEPSPEED = "import sys\nsys.modules['deepspeed'] = None\n"


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
    result = rmtrain("train", recipe, f"run.output_dir={run}", *options, "--json", cwd=recipe.parent)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["directory"] == str(run)
    assert "Traceback" not in result.stderr
    return run


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "environment.json").read_text())
    return found


def assert_as_one(run: Path, alone: Path) -> None:
    """Losses, norms and evaluations are those of one process, within the rounding of sums."""
    for one, other in zip(metrics_of(run), metrics_of(alone), strict=True):
        assert one["step"] == other["step"]
        for key in ("train/loss", "train/grad_norm", "eval/loss"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=2e-5), (key, one["step"])
    assert [line["ids"] for line in ledger(run)] == [line["ids"] for line in ledger(alone)]


def ledger(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_configuration_starts_its_processes_in_its_strategy_with_the_losses_of_one(
    name: str, recipe: Path, alone: Path
) -> None:
    run = trained(recipe, name, "--processes", "2", f"--accelerate-config={name}")
    assert (facts(run)["processes"], facts(run)["strategy"]) == (2, STRATEGIES[name])
    assert_as_one(run, alone)
    assert len(metrics_of(run)) >= STEPS, "guard: there are losses"


def test_processes_alone_are_enough_and_a_file_of_the_user_is_as_good_as_a_name(recipe: Path, alone: Path) -> None:
    run = trained(recipe, "processes", "--processes=2")
    own = recipe.parent / "own.yaml"
    own.write_text((CONFIGS / "cpu.yaml").read_text().replace("num_processes: 2", "num_processes: 3"))
    other = trained(recipe, "own", "--accelerate-config", str(own))
    assert [facts(path)["processes"] for path in (alone, run, other)] == [1, 2, 3]
    assert_as_one(run, alone)
    assert_as_one(other, alone)


@pytest.mark.parametrize("options", [("--processes", "1"), ("--accelerate-config", "single_gpu")], ids=str)
def test_one_process_is_this_one(options: tuple[str, ...], recipe: Path, alone: Path) -> None:
    run = trained(recipe, "-".join(options).strip("-"), *options)
    assert facts(run)["strategy"] == facts(alone)["strategy"]
    assert metrics_of(run)[0]["train/loss"] == metrics_of(alone)[0]["train/loss"]


def test_eval_and_score_on_two_processes_give_what_one_gives(recipe: Path, alone: Path) -> None:
    texts = recipe.parent / "texts.jsonl"
    texts.write_text("".join(json.dumps({"prompt": "Say:", "responses": [f"word {n}", "no"]}) + "\n" for n in range(7)))
    found: dict[str, list[Any]] = {"eval": [], "score": []}
    for count in ("1", "2"):
        folder = recipe.parent / f"by{count}"
        result = rmtrain("eval", alone, "--output", folder, "--processes", count, "--json", cwd=recipe.parent)
        assert result.returncode == 0, result.stderr
        document = json.loads(result.stdout)
        found["eval"].append({key: document[key] for key in ("accuracy", "n", "ties", "longer_wins")})
        out = recipe.parent / f"rewards{count}.jsonl"
        result = rmtrain("score", alone / "model", texts, "-o", out, "--processes", count, "--json", cwd=recipe.parent)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)
        found["score"].append([json.loads(line)["rewards"] for line in out.read_text().splitlines()])
    assert found["eval"][0] == found["eval"][1]
    for one, other in zip(*found["score"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert len(found["score"][0]) == 7, "guard: there were lines"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_several_machines_meet_and_train_as_one_process(recipe: Path, alone: Path) -> None:
    run, port = recipe.parent / "machines", free_port()
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "configs/accelerate/multi_node.yaml"),
    ]
    command = ["-m", "rmtrain", "train", str(recipe), f"run.output_dir={run}"]
    environment = environment_of_process(ACCELERATE_USE_CPU="true")
    machines = [
        subprocess.Popen(
            [*launcher, "--num_processes", "2", "--main_process_port", port, "--machine_rank", str(number), *command],
            cwd=recipe.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [machine.communicate(timeout=240)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert (facts(run)["processes"], facts(run)["strategy"]) == (2, "DDP")
    assert_as_one(run, alone)
    assert sum("evaluation at step" in text for text in said) == 1, "guard: one of the two machines showed the run"


REFUSED = {
    "no such configuration": (
        ("--accelerate-config", "fsdp9"),
        {},
        r"--accelerate-config fsdp9: neither a file nor one of cpu, ddp, ",
    ),
    "a launched rank": (("--processes", "2"), {"WORLD_SIZE": "2", "RANK": "0"}, "this process is one of a launched job"),
    "one process by configuration, two by option": (
        ("--processes", "2", "--accelerate-config", "single_gpu"),
        {},
        "distributed_type NO: expected MULTI_GPU, also without a GPU, FSDP or DEEPSPEED",
    ),
    "a kind that starts one process": (
        ("--accelerate-config", "multi_cpu.yaml"),
        {},
        "distributed_type MULTI_CPU: expected MULTI_GPU",
    ),
    "machines that only the user knows": (
        ("--accelerate-config", "multi_node"),
        {},
        "multi_node does not know your machines: copy it and say which they are, or see docs/several.md",
    ),
    "no configuration": (("--accelerate-config", "list.yaml"), {}, "list.yaml: no configuration of accelerate"),
    "no YAML": (("--accelerate-config", "broken.yaml"), {}, "broken.yaml: no configuration of accelerate"),
    "DeepSpeed is not installed": (
        ("--processes", "2", "--accelerate-config", "deepspeed_zero2"),
        {"PYTHONPATH": f"without:{ROOT}"},
        "needs deepspeed, which is not installed; install rmtrain[deepspeed]",
    ),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of odd configurations, and of an interpreter without DeepSpeed."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "multi_cpu.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    (folder / "list.yaml").write_text("- distributed_type\n")
    (folder / "broken.yaml").write_text("distributed_type: [\n")
    (folder / "without").mkdir()
    (folder / "without/sitecustomize.py").write_text(WITHOUT_DEEPSPEED)
    return folder


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_started_is_told_before_anything_starts(why: str, recipe: Path, odd: Path) -> None:
    options, environment, message = REFUSED[why]
    result = rmtrain("train", recipe, f"run.output_dir={odd / 'run'}", *options, cwd=odd, **environment)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert result.stdout == ""
    assert not (odd / "run").exists(), "guard: nothing was begun"


def test_a_wrong_recipe_is_told_once_and_before_torch_is_imported(odd: Path) -> None:
    (odd / "wrong.yaml").write_text("run: {nmae: x}\n")
    (odd / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    result = rmtrain("train", "wrong.yaml", "--processes", "2", cwd=odd, PYTHONPATH=f"{odd}:{ROOT}")
    (odd / "torch.py").unlink()
    assert result.returncode == 2
    assert result.stderr.count("run.nmae: unknown key; did you mean name?") == 1
    assert "torch was imported" not in result.stderr, "guard: it would have ended so"


def test_more_processes_than_gpus_are_refused() -> None:
    """Also shown where there is no GPU: a machine that has none has too few for those that are meant to have one each."""
    count = torch.cuda.device_count()
    wanted = Launch(CONFIGS / "ddp.yaml", count + 1, machines=1, on_cpu=False, needs=None, content={})
    with pytest.raises(RecipeError, match=rf"--processes: {count + 1} on this machine, which has {count} GPUs"):
        wanted.check()
    replace(wanted, on_cpu=True).check()


def test_options_are_taken_out_of_the_command_line_wherever_they_stand() -> None:
    rest = ["train", "recipe.yaml", "training.epochs=2", "--json"]
    for options in (["--processes", "2"], ["--processes=2"], ["--accelerate-config", "ddp"], ["--accelerate-config=x/y.yaml"]):
        for place in range(1, len(rest) + 1):
            assert without_options([*rest[:place], *options, *rest[place:]]) == rest
    both = ["--accelerate-config", "fsdp2", "--processes", "8"]
    assert without_options([*both, *rest]) == rest != [*both, *rest], "guard: there was something to take out"


def test_each_configuration_comes_with_the_package_says_when_to_use_it_and_leaves_precision_and_accumulation_to_the_recipe() -> (
    None
):
    assert set(names()) == {*STRATEGIES, "single_gpu", "multi_node"}
    for name in names():
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
