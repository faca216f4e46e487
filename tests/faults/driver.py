"""`rmtrain` with injected faults: `python -m tests.faults.driver FAULTS ARGUMENTS ...`.

FAULTS are JSON: `[[point, when, action], ...]`. The `when`-th call (0: every call) of the function at the point in `POINTS` first does
the `action`: `kill` (as kill -9 and the out-of-memory killer), a signal by name (`SIGTERM`; twice: `SIGTERM SIGTERM`), a disk error by
name (`ENOSPC`: it is full), `nan` (a NaN loss), `hang` or `raise`; or it does nothing at all: `skip`. `kill@1`: only on rank 1.
"""

import errno
import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Fault = tuple[str, int, str]
ALWAYS = 0
POINTS = {
    "tokenizer": "rmtrain.commands.train:load_tokenizer",
    "data": "rmtrain.commands.train:prepare",
    "model": "rmtrain.commands.train:build_reward_model",
    "open": "rmtrain.engine.run_dir:RunDirectory.open",
    "mark": "rmtrain.engine.run_dir:RunDirectory._mark",
    "resume": "rmtrain.engine.checkpoint_manager:CheckpointManager.resume",
    "rewind": "rmtrain.engine.run_dir:RunDirectory.rewind",
    "rehearse": "rmtrain.engine.loop:warmup_largest_batch",
    "step": "rmtrain.engine.loop:train_step",
    "backward": "accelerate:Accelerator.backward",
    "record": "rmtrain.engine.run_log:RunLog._append",
    "evaluate": "rmtrain.evaluation.scoring:lay_out",
    "save": "rmtrain.engine.checkpoint:Checkpoints.save",
    "tensors": "rmtrain.engine.checkpoint:_write_tensors",
    "json": "rmtrain.engine.checkpoint:write_text",
    "sync": "rmtrain.engine.checkpoint:sync",
    "rename": "pathlib:Path.rename",
    "rotate": "rmtrain.engine.checkpoint:Checkpoints.rotate",
    "unlink": "pathlib:Path.unlink",
    "rmdir": "pathlib:Path.rmdir",
    "scores": "rmtrain.commands.train:write_scores",
    "export": "rmtrain.commands.export:export_model",
    "replace": "os:replace",
    "reload": "rmtrain.model.export_dir:check_reload",
    "report": "rmtrain.commands.train:write_report",
    "push": "rmtrain.commands.train:push",
    "finish": "rmtrain.engine.run_dir:RunDirectory.finish",
    "tracker-start": "accelerate.tracking:TensorBoardTracker.start",
    "tracker-log": "accelerate.tracking:TensorBoardTracker.log",
}


def install(faults: Sequence[Fault]) -> None:
    """Inject faults into this process."""
    rank = os.environ.get("RANK", "0")
    faults = [(point, when, what.partition("@")[0]) for point, when, what in faults if what.partition("@")[2] in ("", rank)]
    for point in dict.fromkeys(point for point, _, _ in faults):
        module, _, path = POINTS[point].partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        own = {when: what for other, when, what in faults if other == point}
        setattr(owner, name, faulty(getattr(owner, name), own))


def faulty(original: Callable[..., Any], faults: dict[int, str]) -> Callable[..., Any]:
    """Wrap a function with the actions of its calls, which are counted from 1."""
    calls = 0

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        action = faults.get(calls, faults.get(ALWAYS, ""))
        if action == "skip":
            return None
        if action == "nan":
            accelerator, loss = args
            args = (accelerator, loss * float("nan"))
        act(action)
        return original(*args, **kwargs)

    return call


def act(action: str) -> None:
    """Do the action of a fault to this process."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action.startswith("SIG"):
        for name in action.split():
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(1.2 if " " in action else 0)
    elif action in errno.errorcode.values():
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))
    elif action == "hang":
        time.sleep(3600)
    elif action == "raise":
        raise RuntimeError("the network is away; hf_abcdefghijklmnopqrstuvwxyz0123456789")


def main(faults: Sequence[Fault], arguments: Sequence[str]) -> None:
    """Run the command line with faults."""
    from rmtrain import cli

    install(faults)
    sys.argv = ["rmtrain", *arguments]
    cli.main()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
