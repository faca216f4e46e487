"""What `rmtrain train --dry-run` found: steps and tokens, the memory of a process under each strategy, and what follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.report.console import compact, duration, percent

GIGABYTE = 10**9
TITLES = {"single": "one process", "ddp": "DDP", "fsdp2": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
CONFIGS = {"ddp": "ddp", "fsdp2": "fsdp2", "zero1": "deepspeed_zero1", "zero2": "deepspeed_zero2", "zero3": "deepspeed_zero3"}
PARTS = ("weights", "gradients", "optimizer", "buffers", "activations")


def dry_run_report(document: Mapping[str, Any]) -> RenderableType:
    """The whole report.

    Args:
        document: what `rmtrain.commands.dry_run` gives as JSON.
    """
    return Group(
        Text.assemble(("rmtrain ", "bold cyan"), (document["name"], "bold"), "  a dry run: nothing is trained or written"),
        _facts(document),
        Text(),
        _table(document),
        Text(),
        _conclusion(document),
    )


def _facts(document: Mapping[str, Any]) -> Table:
    share = "all train"
    if document["trainable"] != document["parameters"]:
        share = f"{compact(document['trainable'])} train ({percent(document['trainable'], document['parameters'])})"
    facts = {
        "model": f"{document['model']}, {compact(document['parameters'])} parameters, {share}",
        "steps": f"{document['steps']:,} of {document['batch_size']:,} comparisons, {document['comparisons']:,} an epoch",
        "tokens": f"{compact(document['tokens'])}, {compact(document['tokens_per_epoch'])} an epoch; {_layout(document)}",
        "micro-batches": _micro_batches(document),
        "computing": f"in {document['computing']}, {_where(document)}",
        "time": _time(document),
    }
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        if value is not None:
            grid.add_row(Text(key), Text(value))
    return grid


def _layout(document: Mapping[str, Any]) -> str:
    times = document["padded_tokens_per_epoch"] / document["tokens_per_epoch"]
    assumed = " (a run checks that the model can)" if document["layout_is_auto"] and document["layout"] != "padded" else ""
    return f"{document['layout']}{assumed}, {times:.1f} times fewer than padded batches"


def _micro_batches(document: Mapping[str, Any]) -> str:
    auto = " (auto)" if document["max_tokens_is_auto"] else ""
    return (
        f"about {document['micro_batches_per_step']:.1f} a step and process, the largest of {document['largest_micro_batch']:,} tokens; "
        f"at most {document['max_tokens']:,}{auto}"
    )


def _where(document: Mapping[str, Any]) -> str:
    kind = "GPU" if document["device"] == "cuda" else "CPU"
    count = document["processes"]
    return f"in one process on a {kind}" if count == 1 else f"in {count} processes on {kind}s, {TITLES[document['strategy']]}"


def _time(document: Mapping[str, Any]) -> str | None:
    if document["seconds"] is None:
        return None
    rate = f"{compact(document['tokens_per_second'])} tokens a second, measured in one process here"
    several = "; communication comes on top" if document["processes"] > 1 else ""
    return f"about {duration(document['seconds'])} without evaluations: {rate}{several}"


def _table(document: Mapping[str, Any]) -> Table:
    strategies = document["strategies"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("GB a process", no_wrap=True)
    for part in PARTS:
        table.add_column(part, justify="right", no_wrap=True)
    table.add_column("at most", justify="right", no_wrap=True, style="bold")
    table.add_column("", no_wrap=True)
    for one in strategies:
        is_asked = one["name"] == document["strategy"]
        count = f" × {one['processes']}" if one["processes"] > 1 else ""
        verdict = Text("fits", "green") if one["fits"] else Text("too much", "red")
        cells = [gigabytes(one[part]) for part in PARTS]
        name = Text(f"{TITLES[one['name']]}{count}", "bold" if is_asked else "")
        table.add_row(name, *cells, gigabytes(one["total"]), verdict)
    return table


def _conclusion(document: Mapping[str, Any]) -> Text:
    strategies = document["strategies"]
    asked = next(one for one in strategies if one["name"] == document["strategy"])
    title = TITLES[asked["name"]] + (f" on {asked['processes']}" if asked["processes"] > 1 else "")
    numbers = f"at most {gigabytes(asked['total'])} of {gigabytes(asked['memory'])} GB"
    if asked["fits"]:
        return Text.assemble((f"{title} fits", "bold green"), f": {numbers}{_at_start(asked)}")
    others = [one for one in strategies if one["fits"]]
    return Text.assemble((f"{title} does not fit", "bold red"), f": {numbers}{_at_start(asked)}; {_instead(others)}")


def _at_start(one: Mapping[str, Any]) -> str:
    in_step = sum(one[part] for part in PARTS)
    return "" if one["total"] <= in_step else f", before the first step; {gigabytes(in_step)} in a step"


def _instead(others: Sequence[Mapping[str, Any]]) -> str:
    """What to do about a strategy that does not fit."""
    if not others:
        return "nor does any other; lower batching.max_tokens, set model.gradient_checkpointing, or train with lora"
    first = others[0]
    named = " and ".join(filter(None, [", ".join(TITLES[one["name"]] for one in others[:-1]), TITLES[others[-1]["name"]]]))
    how = f"--processes {first['processes']} --accelerate-config {CONFIGS[first['name']]}" if first["name"] != "single" else ""
    return f"{named} would{f': {how}' if how else ''}"


def gigabytes(count: int) -> str:
    """Bytes as gigabytes with about three digits."""
    value = count / GIGABYTE
    if 0 < value < 0.0995:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
