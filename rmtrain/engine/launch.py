"""`--processes` and `--accelerate-config`: the same command as several ranks, started through `accelerate launch`.

The launcher runs in this process, which so stays what the user started: it waits for the ranks, passes signals on to them, gives them all
the time they need to save, and ends with the exit code of the first that failed.
"""

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from rmtrain.engine.watch import LAUNCHER, SIGNALS, killed_line
from rmtrain.errors import RecipeError, TryAgain

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "accelerate"
OPTIONS = ("--processes", "--accelerate-config")
TIME_TO_SAVE = 3600
"""Seconds that ranks have, after a signal, to finish their step and save, before they are killed."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to be started.

    config: a file of configs/accelerate, or the user's own.
    processes: of this machine and all others.
    machines: how many there are.
    on_cpu: whether GPUs are left alone, or there are none.
    needs: the module that its strategy needs, beside torch; None: none.
    content: what the file says.
    """

    config: Path
    processes: int
    machines: int
    on_cpu: bool
    needs: str | None
    content: Mapping[str, Any]

    @property
    def local(self) -> int:
        """Processes of this machine."""
        return self.processes // self.machines

    def check(self) -> None:
        """Raise RecipeError for what cannot be started here."""
        gpus = torch.cuda.device_count()
        if not self.on_cpu and gpus < self.local:
            raise RecipeError(f"--processes: {self.local} on this machine, which has {gpus} GPUs; start {gpus}, one for each")
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            raise RecipeError(f"{self.config.name} needs {self.needs}, which is not installed; install rmtrain[{self.needs}]")


def launch(processes: int | None, config: str | None) -> int | None:
    """Start this command line as several ranks and wait for them.

    Args:
        processes: how many; None: as many as the configuration says.
        config: name of a file in configs/accelerate, or a file of accelerate's own form; None: DDP, of CPUs where there is no GPU.

    Returns:
        The exit code of the first rank that failed, 0 where none did; None where one process is all that is asked for: it is this one.

    Raises:
        RecipeError: no such configuration, or one that this machine cannot run; or this process is a rank already.
    """
    if "RANK" in os.environ:
        raise RecipeError(f"{' and '.join(OPTIONS)}: this process is one of a launched job; say there how many there are")
    found = read(processes, config)
    if found is None:
        return None
    found.check()
    logging.disable()  # what the launcher has to say, its ranks have said
    os.environ.update(environment(found))
    arguments = [f"--config_file={found.config}", f"--num_processes={found.processes}"]
    arguments += [f"--main_process_port={free_port()}"] if found.machines == 1 else []
    try:
        launch_command(launch_command_parser().parse_args([*arguments, "-m", "rmtrain", *without_options(sys.argv[1:])]))
    except ChildFailedError as failed:
        return code_of(failed)
    except SignalException as ended:
        return 128 + int(ended.sigval)
    except (ValueError, ConnectionError) as error:
        raise RecipeError(f"{found.config}: {error}") from error
    return 0


def read(processes: int | None, config: str | None) -> Launch | None:
    """What the options say; None where it is one process without a strategy."""
    default = "ddp" if torch.cuda.is_available() else "cpu"
    path = find(config or default)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind, machines = str(content["distributed_type"]), int(content.get("num_machines", 1))
        count = processes or int(content["num_processes"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path}: no configuration of accelerate; take one of {', '.join(names())} as a pattern") from error
    if machines > 1 and path.parent == CONFIGS:
        raise RecipeError(f"{path.stem} does not know your machines: copy it and say which they are, or see docs/several.md")
    if count % machines:
        raise RecipeError(f"--processes: {count} are not the same number on each of {machines} machines")
    if count == 1 and kind in ("NO", "MULTI_GPU"):
        return None
    if kind not in ("MULTI_GPU", "FSDP", "DEEPSPEED"):
        raise RecipeError(f"{path}: distributed_type {kind}: expected MULTI_GPU, also without a GPU, FSDP or DEEPSPEED")
    on_cpu = bool(content.get("use_cpu")) or not torch.cuda.is_available()
    return Launch(path, count, machines, on_cpu, "deepspeed" if kind == "DEEPSPEED" else None, content)


def find(config: str) -> Path:
    """The file of a configuration."""
    path = CONFIGS / f"{config}.yaml" if config in names() else Path(config).expanduser()
    if not path.is_file():
        raise RecipeError(f"--accelerate-config {config}: neither a file nor one of {', '.join(names())}")
    return path


def names() -> list[str]:
    """The configurations that come with rmtrain."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def environment(found: Launch) -> dict[str, str]:
    """What the ranks are told beside what accelerate tells them: who started them, their threads, and where CPUs are meant, that."""
    told = {"PET_SHUTDOWN_TIMEOUT": str(TIME_TO_SAVE), LAUNCHER: str(os.getpid())}
    if found.on_cpu:
        told |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    if "OMP_NUM_THREADS" not in os.environ:
        told["OMP_NUM_THREADS"] = str(max(1, cores() // found.local))
    if not {"", os.getcwd()} & set(sys.path):
        told["PYTHONSAFEPATH"] = "1"  # `python -m` would look for modules where the user is, which this command does not
    return told


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A port where the ranks can meet: two runs on a machine must not share one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def without_options(arguments: Sequence[str]) -> list[str]:
    """A command line without the options that brought us here."""
    left, skip = [], False
    for argument in arguments:
        if skip or argument.startswith(tuple(f"{option}=" for option in OPTIONS)):
            skip = False
        elif argument in OPTIONS:
            skip = True
        else:
            left.append(argument)
    return left


def code_of(failed: ChildFailedError) -> int:
    """The exit code of the first rank that ended by itself; where all were killed before they could say so, it is said here."""
    failures: list[tuple[int, Any]] = sorted(failed.failures.items(), key=lambda item: item[1].timestamp)
    killed = [(rank, failure.pid) for rank, failure in failures if failure.exitcode < 0 and -failure.exitcode not in SIGNALS]
    codes = [failure.exitcode for _, failure in failures if failure.exitcode > 0]
    told = [code for code in codes if not killed or code - 128 not in SIGNALS]
    if told:
        return int(told[0])
    if killed:
        raise TryAgain(killed_line(*killed[0]))
    return 128 + max(-int(failure.exitcode) for _, failure in failures)
