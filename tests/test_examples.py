"""The examples for clusters and the Dockerfile: what can be checked without a cluster, a GPU and a container engine."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from rmtrain import errors
from rmtrain.cli import app
from rmtrain.engine.launch import read
from rmtrain.errors import TryAgain
from tests.runs import ROOT

SLURM = ROOT / "examples/slurm.sbatch"
JOB: dict[str, Any] = yaml.safe_load((ROOT / "examples/kubernetes.yaml").read_text(encoding="utf-8"))
CODES = {error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")}
FAKES = {
    "srun": """[ "$1" = --kill-on-bad-exit=1 ] || exit 99
shift; most=0
for id in 0 1; do SLURM_PROCID=$id "$@"; code=$?; ((code > most)) && most=$code; done; exit $most""",
    "scontrol": """if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" >> requeued; fi""",
    "rmtrain": """echo "$@" >> commands; exit "$(sed -n "$((SLURM_PROCID + 1))p" codes)\"""",
}
"""Commands of a cluster of two machines; each task of rmtrain ends with its line of the file `codes`."""


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    instructions = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in instructions)]


def pip_command(wheels: Path) -> list[str]:
    """The command of the Dockerfile that installs rmtrain, for another folder of wheels."""
    (line,) = [rest for word, rest in dockerfile() if word == "RUN" and "pip install" in rest]
    default = dict(rest.split("=") for word, rest in dockerfile() if word == "ARG")["PACKAGE"]
    words = shlex.split(line.replace("${PACKAGE}", default))
    return [word.replace("/wheels", str(wheels)) for word in words if not word.startswith("--mount")]


def run_slurm(folder: Path, codes: tuple[int, int], restarts: int = 0) -> int:
    """Run the batch script with the commands of a cluster replaced, and return its exit code."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    for name, script in {**FAKES, "python": f'exec "{sys.executable}" "$@"'}.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_RESTART_COUNT": str(restarts)}
    environment = {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(SLURM), "recipes/mine.yaml", "training.epochs=2"]
    return subprocess.run(command, cwd=folder, env=environment, timeout=60).returncode


def test_slurm_tasks_get_their_configurations(tmp_path: Path) -> None:
    """Each machine has a configuration that rmtrain reads: all processes, its own rank, and the address of the first machine."""
    assert run_slurm(tmp_path, (0, 0)) == 0
    commands = (tmp_path / "commands").read_text().splitlines()
    files = [command.split(" --accelerate-config ")[1] for command in commands]
    assert all(command.startswith("train recipes/mine.yaml training.epochs=2 --accelerate-config ") for command in commands)
    assert len(commands) == 2
    for rank, file in enumerate(files):
        job = read(None, file)
        assert job is not None
        assert (job.processes, job.machines, job.local) == (16, 2, 8)
        assert (job.content["machine_rank"], job.content["main_process_ip"]) == (rank, "node7")
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("codes", "restarts", "code", "queued"),
    [
        ((75, 137), 0, 137, True),
        ((138, 138), 3, 138, True),
        ((75, 75), 20, 75, False),
        ((3, 143), 0, 3, False),
        ((137, 6), 0, 6, False),
    ],
)
def test_slurm_queues_again_what_can_resume(tmp_path: Path, codes: Any, restarts: int, code: int, queued: bool) -> None:
    """A code of 1 to 6 of any task is final, also where another one was then killed; the number of restarts is limited."""
    assert run_slurm(tmp_path, codes, restarts) == code
    assert (tmp_path / "requeued").exists() == queued
    assert not queued or (tmp_path / "requeued").read_text() == "requeue 17\n"


def test_kubernetes_fails_only_what_cannot_resume() -> None:
    """The codes that end the job are those of rmtrain except "try again"; a pod has time to save."""
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
    ignored, failed = JOB["spec"]["podFailurePolicy"]["rules"]
    pod = JOB["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert ignored["action"] == "Ignore"
    assert failed["action"] == "FailJob"
    assert set(failed["onExitCodes"]["values"]) == {code for code in CODES if 0 < code < TryAgain.exit_code}
    assert failed["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never", "needed by podFailurePolicy"
    assert pod["terminationGracePeriodSeconds"] >= 600
    assert pod["securityContext"]["runAsNonRoot"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    verb, _, *options = container["args"]
    known = {option for parameter in typer.main.get_command(app).commands[verb].params for option in parameter.opts}
    assert {word for word in options if word.startswith("-")} <= known
    assert options == ["--processes", str(container["resources"]["limits"]["nvidia.com/gpu"])]


def test_image_is_small_and_not_root() -> None:
    """It installs from the folder of wheels alone, which no layer keeps, and runs the command as a user without rights."""
    instructions = dockerfile()
    arguments = dict(instructions)
    assert [word for word, _ in instructions][:2] == ["ARG", "FROM"]
    assert "slim" in instructions[0][1]
    assert arguments["USER"] not in ("root", "0")
    assert json.loads(arguments["ENTRYPOINT"]) == ["rmtrain"]
    runs = [rest for word, rest in instructions if word == "RUN"]
    assert all("--no-index" in line and "--no-cache-dir" in line for line in runs if "pip" in line)
    assert not any(word in line for line in runs for word in ("apt", "curl", "git ", "http"))
    assert not any(word in ("COPY", "ADD") for word, _ in instructions), "wheels are mounted"
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == ["*", "!wheels"]
    (mounted,) = re.findall(r"--mount=type=bind,source=(\w+),target=/wheels", "".join(runs))
    assert mounted == "wheels"
    assert pip_command(Path("/elsewhere"))[-2:] == ["/elsewhere", "rmtrain"], "guard: the line was read"
