"""What a view takes from where it is printed: whether there are colours, and whether lines are to be wrapped."""

from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

WIDEST = 10_000


def has_colours(console: Console) -> bool:
    """Whether colours can be seen; without them, characters have to say what colours would."""
    return not console.no_color and console.color_system is not None


class Flowing:
    """A text that is wrapped in a terminal and keeps its own lines elsewhere, so that `grep` finds what stands on one line.

    Args:
        text: what is printed; words that are wider than the terminal are cut.
    """

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.overflow = "fold" if console.is_terminal else "ignore"
        yield text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.text)


class Facts:
    """Names and values, one below the other; a long value goes on under its beginning in a terminal, and on its line elsewhere.

    Args:
        facts: values by name, as text or styled.
    """

    def __init__(self, facts: Mapping[str, str | Text]) -> None:
        self.facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            width = max(map(len, self.facts))
            for name, value in self.facts.items():
                yield Flowing(Text.assemble((f"{name:<{width}}  ", "cyan"), value))
            return
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in self.facts.items():
            grid.add_row(Text(name), value if isinstance(value, Text) else Text(value))
        yield grid


class Unfolded:
    """A view as wide as it needs to be where it is not in a terminal, so that no cell of a table is folded there or padded at its end.

    Args:
        view: what is printed.
    """

    def __init__(self, view: RenderableType) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if console.is_terminal:
            yield self.view
            return
        for line in console.render_lines(self.view, options.update(max_width=WIDEST), pad=False):
            yield Segment("".join(segment.text for segment in line).rstrip() + "\n")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.view)
