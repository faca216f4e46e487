"""`--processes` and `--accelerate-config`: start the same command line as several ranks, through `accelerate launch`.

The launcher runs in this process: it waits for the ranks, forwards signals to them, gives them time to save, stops them all when one
fails, and exits with the code of the first that failed.
"""

import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from rmtrain.engine.rank import SIGNALS, RankReport, read_reports, reports_folder
from rmtrain.errors import RecipeError, TryAgain
from rmtrain.files import expanded

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "accelerate"
SECONDS_TO_SAVE = 3600
"""Time that ranks have, after a signal, to finish their step and save, before they are killed."""
CAUSE_SECONDS = 10.0
"""A rank whose peer was killed notices up to this much earlier than the launcher."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A job of several ranks.

    config: file of accelerate's form, one of configs/accelerate or the user's; `content` is what it holds.
    processes: ranks on all machines together.
    on_cpu: GPUs are not used, or there are none.
    needs: module that the strategy needs in addition to torch, or None.
    """

    config: Path
    processes: int
    machines: int
    on_cpu: bool
    needs: str | None
    content: Mapping[str, Any]

    @property
    def local(self) -> int:
        """Ranks on this machine."""
        return self.processes // self.machines

    def check(self) -> None:
        """Raise RecipeError if this machine cannot run the job."""
        gpus = torch.cuda.device_count()
        if not self.on_cpu and gpus < self.local:
            raise RecipeError(f"--processes: expected at most {gpus}, one for each GPU of this machine, got {self.local}")
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            raise RecipeError(f"{self.config.name}: {self.needs} is not installed; install rmtrain[{self.needs}]")


def launch(processes: int | None, config: str | None) -> RankReport | None:
    """Start this command line as several ranks and wait for them.

    Args:
        processes: number of ranks; None: that of the configuration.
        config: name of a file in configs/accelerate, or a path; None: DDP, on CPUs where there is no GPU.

    Returns:
        The report of the first rank that failed, or code 0. None if the job is a single process, which is this one.

    Raises:
        RecipeError: an unknown configuration, this machine cannot run it, or this process is a rank already.
    """
    if "RANK" in os.environ:
        problem = "a launcher already started this process; set the process count there"
        raise RecipeError(f"--processes and --accelerate-config: {problem}")
    job = read(processes, config)
    if job is None:
        return None
    job.check()
    logging.disable()  # torch's agent logs what we print ourselves
    arguments = [f"--config_file={job.config}", f"--num_processes={job.processes}"]
    if job.machines == 1:
        arguments.append("--main_process_port=0")  # any free one: jobs on one machine must not share the default one
    arguments += ["-m", "rmtrain", *sys.argv[1:]]
    with reports_folder() as reports:
        os.environ |= _rank_environment(job)
        try:
            launch_command(launch_command_parser().parse_args(arguments))
        except ChildFailedError as failed:
            return first_failure(read_reports(reports), failed.failures)
        except SignalException as ended:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # the ranks have ended
            stopped = RankReport(0, 128 + ended.sigval, [f"error: stopped by {ended.sigval.name}"], True, time.time())
            return min(read_reports(reports), key=lambda report: report.time, default=stopped)
        except (ValueError, ConnectionError) as error:
            raise RecipeError(f"{job.config}: {error}") from error
    return RankReport(0, 0, [], False, time.time())


def read(processes: int | None, config: str | None) -> Launch | None:
    """Read a configuration; see `launch`. Return None if it means one process without a strategy."""
    path = find_config(config or ("ddp" if torch.cuda.is_available() else "cpu"))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind, machines = str(content["distributed_type"]), int(content.get("num_machines", 1))
        count = processes or int(content["num_processes"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path}: not an accelerate configuration; start from one of {', '.join(config_names())}") from error
    if machines > 1 and path.parent == CONFIGS:
        raise RecipeError(f"--accelerate-config {path.stem}: this is a template; copy it and fill in your machines")
    if count % machines:
        raise RecipeError(f"--processes: {count} cannot be split evenly over {machines} machines")
    if count == 1 and kind in ("NO", "MULTI_GPU"):
        return None
    if kind not in ("MULTI_GPU", "FSDP", "DEEPSPEED"):
        raise RecipeError(f"{path}: distributed_type: expected MULTI_GPU (with or without GPUs), FSDP or DEEPSPEED, got {kind}")
    on_cpu = bool(content.get("use_cpu")) or not torch.cuda.is_available()
    return Launch(path, count, machines, on_cpu, "deepspeed" if kind == "DEEPSPEED" else None, content)


def find_config(config: str) -> Path:
    """Return the file of a built-in configuration, or of the user's; raise RecipeError if there is none."""
    path = CONFIGS / f"{config}.yaml" if config in config_names() else expanded(config)
    if not path.is_file():
        raise RecipeError(f"--accelerate-config {config}: not found; expected a file or one of {', '.join(config_names())}")
    return path


def config_names() -> list[str]:
    """Return the names of the built-in configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def first_failure(reports: Sequence[RankReport], failures: Mapping[int, ProcessFailure]) -> RankReport:
    """Return the failure that ended the others.

    Args:
        reports: left by the ranks; one that was killed leaves none.
        failures: exit codes and times of failed ranks, as torch's agent saw them, by rank.
    """
    ends = [(report.time + CAUSE_SECONDS * report.may_follow, report) for report in reports]
    for rank, failure in failures.items():
        number = -failure.exitcode
        if number > 0 and number not in SIGNALS:
            hint = " (out of memory?)" if number == signal.SIGKILL else ""
            killed = f"rank {rank} (pid {failure.pid}) was killed by {failure.signal_name()}{hint}"
            line = f"error: {killed}; run the same command again to resume"
            time_ = failure.timestamp + 1.0  # whole seconds, rounded down: not before a report of the same second
            ends.append((time_, RankReport(rank, TryAgain.exit_code, [line], False, time_)))
    if ends:
        return min(ends, key=lambda end: end[0])[1]
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return RankReport(rank, code, [f"error: rank {rank} exited with code {code}"], False, failure.timestamp)


def _rank_environment(job: Launch) -> dict[str, str]:
    """Return what the ranks need in their environment in addition to what accelerate sets."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {
        "PET_SIGNALS_TO_HANDLE": ",".join(number.name for number in SIGNALS),
        "PET_SHUTDOWN_TIMEOUT": str(SECONDS_TO_SAVE),  # after a signal; where a rank fails, torch gives the others 30 seconds
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # stack traces of a peer that is gone
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // job.local))),
    }
    if job.on_cpu:
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    if not {"", os.getcwd()} & set(sys.path):
        environment["PYTHONSAFEPATH"] = "1"  # `python -m` would import from the working directory, which this command does not
    return environment
