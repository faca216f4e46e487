"""`rmtrain` with faults, put in from outside: `python -m tests.faults.driver FAULTS ARGUMENTS ...`.

FAULTS are JSON: `[[point, when, what], ...]`. The `when`-th call (0: every call) of what stands at the point in `POINTS` does `what` first:
`kill` (what kill -9 and the out-of-memory killer do), a signal by name (`SIGTERM`; twice: `SIGTERM SIGTERM`), an error of the disk by name
(`ENOSPC`: it is full), `nan` (a loss that is no number), `hang`, `raise`, or nothing at all in place of the call: `skip`. `kill@1`: only in
the process of rank 1.
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
    "write": "rmtrain.engine.run_dir:RunDirectory._write",
    "resume": "rmtrain.engine.checkpoint_manager:CheckpointManager.resume",
    "rewind": "rmtrain.engine.run_dir:RunDirectory.rewind",
    "rehearse": "rmtrain.engine.loop:rehearse",
    "step": "rmtrain.engine.loop:train_step",
    "backward": "accelerate:Accelerator.backward",
    "record": "rmtrain.engine.run_log:RunLog._append",
    "evaluate": "rmtrain.evaluation.score:lay_out",
    "save": "rmtrain.engine.checkpoint:Checkpoints.save",
    "tensors": "rmtrain.engine.checkpoint:_write_tensors",
    "json": "rmtrain.engine.checkpoint:_write_json",
    "sync": "rmtrain.engine.checkpoint:_sync",
    "rename": "pathlib:Path.rename",
    "rotate": "rmtrain.engine.checkpoint:Checkpoints.rotate",
    "unlink": "pathlib:Path.unlink",
    "rmdir": "pathlib:Path.rmdir",
    "scores": "rmtrain.commands.train:write_scores",
    "export": "rmtrain.commands.train:export_model",
    "replace": "os:replace",
    "reload": "rmtrain.model.export_dir:check_reload",
    "push": "rmtrain.commands.train:push",
    "finish": "rmtrain.engine.run_dir:RunDirectory.finish",
    "tracker-start": "accelerate.tracking:TensorBoardTracker.start",
    "tracker-log": "accelerate.tracking:TensorBoardTracker.log",
}


def install(faults: Sequence[Fault]) -> None:
    """Put faults into this process."""
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
    """A function that does what its faults say at the calls of these numbers, counted from 1."""
    calls = 0

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        what = faults.get(calls, faults.get(ALWAYS, ""))
        if what == "skip":
            return None
        if what == "nan":
            accelerator, loss = args
            args = (accelerator, loss * float("nan"))
        happen(what)
        return original(*args, **kwargs)

    return call


def happen(what: str) -> None:
    """Do to this process what a fault says."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what.startswith("SIG"):
        for name in what.split():
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(1.2 if " " in what else 0)
    elif what in errno.errorcode.values():
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number))
    elif what == "hang":
        time.sleep(3600)
    elif what == "raise":
        raise RuntimeError("the network is away; hf_abcdefghijklmnopqrstuvwxyz0123456789")


def main(faults: Sequence[Fault], arguments: Sequence[str]) -> None:
    """Run the command line with faults."""
    from rmtrain import cli

    install(faults)
    sys.argv = ["rmtrain", *arguments]
    cli.main()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
