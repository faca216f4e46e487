"""Drawing within a page: frames, lines, bars, steps and labels as SVG elements, coloured by the page's style.

Lengths are in units of the figure, which is as wide as a phone, so that its letters keep their size everywhere. Classes: `accent` and
`neutral` say what a mark stands for, `grid`, `axis`, `tick` and `label` are the frame.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from markupsafe import Markup, escape

from rmtrain.report.axis import FONT_SIZE, Scale, fitting_ticks, text_width, tick_names, ticks
from rmtrain.report.console import escape_invisible

WIDTH, HEIGHT = 360.0, 210.0
TOP, BOTTOM = 22.0, 38.0
LINE_HEIGHT = FONT_SIZE + 3

Point = tuple[float, float]
Tone = Literal["accent", "neutral"]
Anchor = Literal["start", "middle", "end"]


class Frame:
    """A plot's inside, its axes drawn: thin lines at round values, and their names.

    Args:
        x_range, y_range: values at the edges.
        right: room on the right, for labels of lines.
        x_name: what the horizontal axis counts.
        height: of the whole figure.
        top: room above, for labels.
    """

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_name: str = "",
        right: float = 10.0,
        height: float = HEIGHT,
        top: float = TOP,
    ) -> None:
        self.height, self.top = height, top
        y_ticks = ticks(*y_range, 5)
        names = tick_names(y_ticks)
        self.left = 8 + max(text_width(name) for name in names)
        self.x = Scale(*x_range, self.left, WIDTH - right)
        self.y = Scale(*y_range, height - BOTTOM, top)
        self.parts = [_grid(self, value, name) for value, name in zip(y_ticks, names, strict=True)]
        self.parts += _bottom(self, x_name)

    @property
    def inside(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge."""
        return self.x.start, self.top, self.x.end, self.y.start

    def add(self, *parts: Markup) -> None:
        """Draw over what is there."""
        self.parts += parts

    def line(self, points: Sequence[Point], tone: Tone, dots: bool = False) -> None:
        """A line through values; with a dot at each."""
        placed = [(self.x(x), self.y(y)) for x, y in points]
        self.add(path(placed, f"line {tone}"))
        if dots:
            self.add(*(circle(x, y, 2.5, tone) for x, y in placed))

    def reference(self, y: float) -> None:
        """A dashed line across at a value."""
        left, _, right, _ = self.inside
        self.add(path([(left, self.y(y)), (right, self.y(y))], "reference"))

    def steps(self, edges: Sequence[float], counts: Sequence[float], tone: Tone) -> None:
        """A histogram's outline, filled lightly."""
        corners = [(edges[0], 0.0)]
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            corners += [(low, count), (high, count)]
        placed = [(self.x(x), self.y(y)) for x, y in [*corners, (edges[-1], 0.0)]]
        self.add(path(placed, f"area {tone}"), path(placed, f"line {tone}"))


def _grid(frame: Frame, value: float, name: str) -> Markup:
    y, (left, _, right, _) = frame.y(value), frame.inside
    return path([(left, y), (right, y)], "grid") + text(left - 5, y + FONT_SIZE / 3, name, "tick", "end")


def _bottom(frame: Frame, name: str) -> list[Markup]:
    left, _, right, bottom = frame.inside
    values = fitting_ticks(frame.x.low, frame.x.high, right - left - 30)
    parts = [path([(left, bottom), (right, bottom)], "axis")]
    for value, word in zip(values, tick_names(values), strict=True):
        half = text_width(word) / 2
        middle = min(max(frame.x(value), half), WIDTH - half)
        parts += [path([(frame.x(value), bottom), (frame.x(value), bottom + 3)], "axis")]
        parts += [text(middle, bottom + LINE_HEIGHT, word, "tick", "middle")]
    return [*parts, text((left + right) / 2, bottom + 2 * LINE_HEIGHT, name, "tick", "middle")] if name else parts


def path(points: Iterable[Point], kind: str) -> Markup:
    """A line through points."""
    return Markup('<path class="{}" d="M{}"/>').format(kind, "L".join(f"{x:.1f} {y:.1f}" for x, y in points))


def circle(x: float, y: float, radius: float, kind: str) -> Markup:
    """A dot."""
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, x, y, radius)


def diamond(x: float, y: float, radius: float, kind: str) -> Markup:
    """A mark that is no dot."""
    corners = [(x - radius, y), (x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
    return path(corners, f"diamond {kind}")


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    """A bar."""
    return Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, x, y, max(0.0, width), max(0.0, height)
    )


def text(x: float, y: float, content: str, kind: str, anchor: Anchor = "start") -> Markup:
    """Words, whose foot is at `y`; invisible characters are shown as escapes."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape_invisible(content)
    )


def drawing(parts: Iterable[Markup], name: str, title: str, description: str, height: float = HEIGHT) -> Markup:
    """A whole picture that says in words what it shows.

    Args:
        name: unique within the page; letters, digits and hyphens.
        title, description: read out in its place.
    """
    return Markup(
        '<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{name}-title {name}-text">'
        '<title id="{name}-title">{title}</title><desc id="{name}-text">{description}</desc>{inside}</svg>'
    ).format(
        width=WIDTH,
        height=height,
        name=escape(name),
        title=escape_invisible(title),
        description=escape_invisible(description),
        inside=Markup("").join(parts),
    )
