"""The beginning and the end of a run: what is about to happen, and what to do next."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.report.formats import compact, percent


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
    """What is about to be trained, on what, with how much.

    Args:
        name: of the run.
        directory: where the run writes.
        device: such as `cpu` or `4 × NVIDIA H100`.
        model: Hub id, directory, or architecture of a scratch model.
        parameters, trainable: how many there are, and how many of them train.
        comparisons, tokens: of one epoch.
        steps, batch_size: optimizer steps of the whole run, and comparisons of each.
        notes: further facts, by name.
    """
    share = "all train" if trainable == parameters else f"{compact(trainable)} train ({percent(trainable, parameters)})"
    facts = {
        "model": f"{model}, {compact(parameters)} parameters, {share}",
        "data": f"{comparisons:,} comparisons, {compact(tokens)} tokens an epoch",
        "steps": f"{steps:,} of {batch_size:,} comparisons",
        "device": device,
        **(notes or {}),
        "writes to": directory,
    }
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        grid.add_row(Text(key), Text(value))
    return Group(Text.assemble(("rmtrain ", "bold cyan"), (name, "bold")), grid)


def next_steps(commands: Sequence[tuple[str, str]], title: str = "next") -> Text:
    """Commands to copy, each under a line that says what it is for.

    Print it with `soft_wrap=True`: a command that is wider than the terminal then stays one line to copy.

    Args:
        commands: pairs of purpose and command.
        title: first line.
    """
    text = Text(title, style="")
    text.stylize("bold")
    for purpose, command in commands:
        text.append(f"\n  # {purpose}", "dim")
        text.append(f"\n  {command}", "cyan")
    return text
