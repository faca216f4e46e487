"""Two machines, as two network namespaces: one is killed, and the same command on both resumes with the losses of an undisturbed run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rmtrain.engine.launch import CONFIGS
from tests.runs import ROOT, environment_of_process, metrics_of, tiny_recipe, write_recipe

pytestmark = pytest.mark.long
STEPS, KILLED_AFTER = 24, 6
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Names of two network namespaces that reach each other over a pair of virtual cards, and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"rm{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("link", "set", name, "netns", name)
            for card in (("addr", "add", f"{address}/24", "dev", name), ("link", "set", name, "up"), ("link", "set", "lo", "up")):
                ip("-n", name, *card)
    except subprocess.CalledProcessError as error:
        remove(names)
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    yield names
    remove(names)


def remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start(machine: str, rank: int, recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a machine's part of a run from its own copy of `multi_node.yaml`; processes are a group, to be killed together."""
    content = yaml.safe_load((CONFIGS / "multi_node.yaml").read_text())
    content |= {"machine_rank": rank, "num_processes": 2, "use_cpu": True, "main_process_ip": ADDRESSES[0]}
    config = recipe.parent / f"machine{rank}.yaml"
    config.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "rmtrain", "train", str(recipe), *overrides, f"--accelerate-config={config}"]
    environment = environment_of_process(GLOO_SOCKET_IFNAME=machine)
    with (recipe.parent / f"machine{rank}.log").open("w") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", machine, *command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def finish(parts: list[subprocess.Popen[str]], recipe: Path) -> None:
    for part in parts:
        part.wait(timeout=200)
    codes = [part.returncode for part in parts]
    assert codes == [0, 0], "".join(path.read_text()[-2000:] for path in sorted(recipe.parent.glob("machine*.log")))


def losses(run: Path) -> dict[int, float]:
    lines = metrics_of(run) if (run / "metrics.jsonl").is_file() else []
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def kill_machine(part: subprocess.Popen[str]) -> None:
    """Kill every process of a machine at once, as a power failure does."""
    machine = part.args[3]  # type: ignore[index]
    pids = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True).stdout.split()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    part.wait()


def test_killed_machine_is_resumed_with_equal_losses(machines: list[str], tmp_path: Path) -> None:
    training = {"batch_size": 8, "precision": "float32", "max_steps": STEPS, "epochs": 10}
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path, training=training, checkpoints={"every": 2}))
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    finish([start(name, rank, recipe, f"run.output_dir={undisturbed}") for rank, name in enumerate(machines)], recipe)

    parts = [start(name, rank, recipe) for rank, name in enumerate(machines)]
    deadline = time.monotonic() + 120
    while not (run / "checkpoints").is_dir() or len(losses(run)) < KILLED_AFTER:
        assert time.monotonic() < deadline, (tmp_path / "machine0.log").read_text()[-2000:]
        assert all(part.poll() is None for part in parts)
        time.sleep(0.02)
    kill_machine(parts[1])
    killed = time.monotonic()
    assert parts[0].wait(timeout=120) != 0
    print(f"the other machine stopped with {parts[0].returncode} after {time.monotonic() - killed:.1f} s")
    at_kill = max(losses(run))
    assert at_kill < STEPS, "guard: it was killed on the way"

    finish([start(name, rank, recipe) for rank, name in enumerate(machines)], recipe)
    assert losses(run) == losses(undisturbed)
    assert len(losses(run)) == STEPS, "guard"
    assert (run / "model" / "model.safetensors").is_file()
