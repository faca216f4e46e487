"""A run in a terminal: its header and the commands that follow it, and the report of `rmtrain train --dry-run`."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from rmtrain.report.console import KeyValues, compact, duration, percent
from rmtrain.report.tables import Column, Row, Table

GIGABYTE = 10**9
TITLES = {
    "single": "one process",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "fsdp2_offload": "FSDP2 offload",
    "zero1": "ZeRO-1",
    "zero1_offload": "ZeRO-1 offload",
    "zero2": "ZeRO-2",
    "zero2_offload": "ZeRO-2 offload",
    "zero3": "ZeRO-3",
    "zero3_offload_optimizer": "ZeRO-3 offload (optimizer)",
    "zero3_offload": "ZeRO-3 offload",
}
CONFIGS = {
    "ddp": "ddp",
    "fsdp2": "fsdp2",
    "fsdp2_offload": "fsdp2_offload",
    "zero1": "deepspeed_zero1",
    "zero2": "deepspeed_zero2",
    "zero3": "deepspeed_zero3",
    "zero3_offload": "deepspeed_zero3_offload",
}
PARTS = ("weights", "gradients", "optimizer", "buffers", "activations")


def run_header(
    *,
    name: str,
    directory: str,
    device: str,
    model: str,
    parameters: int,
    trainable: int,
    comparisons: int,
    tokens: int,
    steps: int,
    batch_size: int,
    notes: Mapping[str, str] | None = None,
) -> RenderableType:
    """Summarize what is about to be trained, and on what data: comparisons and tokens of an epoch, steps of the whole run.

    `trainable` is the number of parameters that are trained, `device` such as `4 × cuda`, and `notes` are further facts by name.
    """
    facts = {
        "model": f"{model}, {parameter_counts(parameters, trainable)}",
        "data": f"{comparisons:,} comparisons, {compact(tokens)} tokens an epoch",
        "steps": f"{steps:,} of {batch_size:,} comparisons",
        "device": device,
        **(notes or {}),
        "writes to": directory,
    }
    return Group(Text.assemble(("rmtrain ", "bold cyan"), (name, "bold")), KeyValues(facts))


def parameter_counts(parameters: int, trainable: int) -> str:
    """Format the number of parameters, and of those that are trained: `1.01B parameters, 12.3M train (1.2 %)`."""
    share = "all train" if trainable == parameters else f"{compact(trainable)} train ({percent(trainable, parameters)})"
    return f"{compact(parameters)} parameters, {share}"


def adapters_line(linear_layers: int, expert_tensors: int, share: float) -> str:
    """Format what adapters change: `48 linear layers and 16 expert tensors, 94 % of the weights`."""
    counts = {"linear layers": linear_layers, "expert tensors": expert_tensors}
    named = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f"{named}, {100 * share:.2g} % of the weights"


def next_steps(commands: Sequence[tuple[str, str]]) -> Text:
    """Return commands to copy, each under a line with its purpose; the pairs are purpose and command.

    Print it with `soft_wrap=True`: a command that is wider than the terminal then stays one line to copy.
    """
    text = Text.assemble(("next", "bold"))
    for purpose, command in commands:
        text.append(f"\n  # {purpose}", "dim")
        text.append(f"\n  {command}", "cyan")
    return text


def rmtrain_command(*words: str) -> str:
    """Return a command line of rmtrain that works where it is printed: in an environment that is not activated as well."""
    program = ["rmtrain"] if _is_on_path("rmtrain") else [sys.executable, "-m", "rmtrain"]
    return shlex.join([*program, *words])


def python_command(code: str) -> str:
    """Return the command line that runs a line of Python with this interpreter."""
    return shlex.join(["python" if _is_on_path("python") else sys.executable, "-c", code])


def _is_on_path(program: str) -> bool:
    """Return whether the program of this name is that of this environment."""
    found = shutil.which(program)
    return found is not None and Path(sys.executable).parent in (Path(found).parent, Path(found).resolve().parent)


def dry_run_report(document: Mapping[str, Any]) -> RenderableType:
    """Return steps and tokens, the memory of a process under each strategy, and a conclusion; see `rmtrain.commands.dry_run`."""
    return Group(
        Text.assemble(("rmtrain ", "bold cyan"), (document["name"], "bold"), "  dry run: nothing is trained or written"),
        _facts(document),
        Text(),
        _table(document),
        Text(),
        _conclusion(document),
    )


def _facts(document: Mapping[str, Any]) -> RenderableType:
    times = document["padded_tokens_per_epoch"] / document["tokens_per_epoch"]
    assumed = " (a run verifies it)" if document["layout_is_auto"] and document["layout"] != "padded" else ""
    auto = " (auto)" if document["max_tokens_is_auto"] else ""
    device = "GPU" if document["device"] == "cuda" else "CPU"
    where = f"one process on a {device}"
    if document["processes"] > 1:
        where = f"{document['processes']} processes on {device}s, {TITLES[document['strategy']]}"
    facts = {
        "model": f"{document['model']}, {parameter_counts(document['parameters'], document['trainable'])}",
        **({} if document["adapters"] is None else {"adapters": adapters_line(**document["adapters"])}),
        "steps": f"{document['steps']:,} of {document['batch_size']:,} comparisons, {document['comparisons']:,} an epoch",
        "tokens": (
            f"{compact(document['tokens'])}, {compact(document['tokens_per_epoch'])} an epoch; "
            f"{document['layout']}{assumed}, {times:.1f} times fewer than padded batches"
        ),
        "micro-batches": (
            f"about {document['micro_batches_per_step']:.1f} a step and process, the largest of "
            f"{document['largest_micro_batch']:,} tokens; at most {document['max_tokens']:,}{auto}"
        ),
        "computing": f"{document['computing']}, {where}",
    }
    if document["seconds"] is not None:
        rate = f"{compact(document['tokens_per_second'])} tokens a second, measured in one process here"
        several = "; communication comes on top" if document["processes"] > 1 else ""
        facts["time"] = f"about {duration(document['seconds'])} without evaluations: {rate}{several}"
    return KeyValues(facts).view  # lines that fit next to the table, in a pipe as well


def _table(document: Mapping[str, Any]) -> Table:
    digits = _digits(document)
    parts = [Column(part, optional=part != "activations") for part in PARTS]
    offloads = any(one["host"] for one in document["strategies"])
    rows = []
    for one in document["strategies"]:
        verdict = Text("fits", "green") if one["fits"] else Text("too much", "red")
        style = "bold" if one["name"] == document["strategy"] else ""
        host = (f"{one['host'] / GIGABYTE:.{digits}f}",) if offloads else ()
        rows.append(Row((Text(_title(one), style), *_gigabytes(one, digits), *host, verdict)))
    # the verdict is a word, but as a number it stays whole
    main_memory = (Column("on CPU", optional=True),) if offloads else ()
    columns = (Column("GB a process", "text", whole=True), *parts, Column("total", style="bold"), *main_memory, Column(""))
    return Table("memory", columns, rows, gap=1)


def _conclusion(document: Mapping[str, Any]) -> Text:
    digits, strategies = _digits(document), document["strategies"]
    one = next(row for row in strategies if row["name"] == document["strategy"])
    numbers = f"{_gigabytes(one, digits)[-1]} of {one['memory'] / GIGABYTE:.{digits}f} GB"
    if one["start"] > one["total"]:
        numbers += f", and {one['start'] / GIGABYTE:.{digits}f} at the start, to shard the model"
    numbers += _main_memory(document, one)
    if one["fits"]:
        return Text.assemble((f"{_title(one)} fits", "bold green"), f": {numbers}")
    others = [row for row in strategies if row["fits"]]
    advice = "no other strategy fits; lower batching.max_tokens, set model.gradient_checkpointing, or train with lora"
    if others:
        advice = f"{', '.join(map(_title, others))} would fit"
        if others[0]["processes"] > 1:
            advice += f": --processes {others[0]['processes']} --accelerate-config {CONFIGS[others[0]['name']]}"
            advice += _main_memory(document, others[0])
    return Text.assemble((f"{_title(one)} does not fit", "bold red"), f": {numbers}; {advice}")


def _main_memory(document: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Return what a strategy takes of the main memory of each machine, if it offloads."""
    total = one["host"] * one["processes"] / document["machines"] / GIGABYTE
    return f", with {total:,.{_digits(document)}f} GB of main memory on each machine" if total else ""


def _title(one: Mapping[str, Any]) -> str:
    return TITLES[one["name"]] + (f" × {one['processes']}" if one["processes"] > 1 else "")


def _digits(document: Mapping[str, Any]) -> int:
    """Decimals of all numbers of gigabytes: three significant digits of the largest, but at least one decimal."""
    largest = max(one["total"] for one in document["strategies"]) / GIGABYTE
    return 3 if largest < 0.0995 else 2 if largest < 9.995 else 1


def _gigabytes(one: Mapping[str, Any], digits: int) -> list[str]:
    """The parts and their total. Parts are rounded before they are added, so that a reader who adds them gets the total."""
    parts = [round(one[part] / GIGABYTE, digits) for part in PARTS]
    return [f"{value:.{digits}f}" for value in (*parts, sum(parts))]
