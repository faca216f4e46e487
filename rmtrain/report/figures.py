"""What a figure of the report is, and the shapes that several of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rmtrain.report.axis import FONT_SIZE, GAP, Scale, fitting_ticks, rounded_range, spread, text_width, tick_names
from rmtrain.report.console import decimal, escape_invisible
from rmtrain.report.svg import BOTTOM, LINE_HEIGHT, WIDTH, Frame, Point, Tone, circle, diamond, drawing, path, text

MOST_POINTS = 150
ROW_HEIGHT = 24.0
LONGEST_NAME = 110.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its words: `note` is what to see in it, `rows` under `headings` are the numbers that are drawn."""

    title: str
    picture: Markup
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Line:
    """A named line of a figure; dots mark values that were measured one by one."""

    name: str
    points: Sequence[Point]
    tone: Tone
    dots: bool = False


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points: each the mean of as many neighbours."""
    size = -(-len(points) // most)
    blocks = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]


def line_figure(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    note: str,
    reference: float | None = None,
    also: Sequence[float] = (),
    digits: int = 4,
) -> Figure:
    """Lines over a common axis, each with its name and last value at its end; a line without a name has neither.

    Args:
        name: of the picture, unique in the page.
        reference: a value that a dashed line marks, where it is within reach of the lines.
        also: values that the axis must reach.
        digits: of the values in words.
    """
    shown = [Line(line.name, thinned(line.points), line.tone, line.dots) for line in lines if line.points]
    values = [y for line in shown for _, y in line.points]
    y_range = rounded_range(values, 5, *also)
    if reference is not None and y_range[0] - (y_range[1] - y_range[0]) <= reference <= y_range[1] + (y_range[1] - y_range[0]):
        y_range = rounded_range(values, 5, *also, reference)
    xs = [x for line in shown for x, _ in line.points]
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    labels = [f"{line.name} {_short(line.points[-1][1], digits)}" if line.name else "" for line in shown]
    frame = Frame(x_range, y_range, x_name, right=14 + max(text_width(label) for label in labels))
    if reference is not None and y_range[0] <= reference <= y_range[1]:
        frame.reference(reference)
    for line in shown:
        frame.line(line.points, line.tone, line.dots or len(line.points) == 1)
    _label_ends(frame, shown, labels)
    told = "; ".join(_told(line, digits) for line in shown)
    rows = [(line.name or title, _number(x), _short(y, digits)) for line in lines for x, y in _every_few(line.points)]
    return Figure(title, drawing(frame.parts, name, title, told), note, ("line", x_name, "value"), rows)


def _label_ends(frame: Frame, lines: Sequence[Line], labels: Sequence[str]) -> None:
    _, top, right, bottom = frame.inside
    heights = [frame.y(line.points[-1][1]) for line in lines]
    for line, label, y in zip(lines, labels, spread(heights, [LINE_HEIGHT] * len(lines), top - 8, bottom), strict=True):
        frame.add(text(right + 6, y + FONT_SIZE / 3, label, f"label {line.tone}"))


def _told(line: Line, digits: int) -> str:
    ys = [y for _, y in line.points]
    begin, end = _short(ys[0], digits), _short(ys[-1], digits)
    return (
        f"{line.name or 'it'} goes from {begin} to {end}, at least {_short(min(ys), digits)}, at most {_short(max(ys), digits)}"
    )


def _every_few(points: Sequence[Point]) -> Sequence[Point]:
    """About twenty of the points, the last among them."""
    step = -(-len(points) // 20) if points else 1
    return points[::-1][::step][::-1]


def _number(value: float) -> str:
    return f"{value:,.6g}"


def _short(value: float, digits: int) -> str:
    if value and abs(value) < 10**-digits * 5:
        return tick_names([value])[0] if abs(value) < 1e-3 else f"{value:.2g}".replace("-", "−")
    return decimal(value, digits)


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its interval: one row of a figure. `mark` is what else is marked in the row."""

    name: str
    numbers: Mapping[str, Any]
    mark: float | None = None


def share_figure(name: str, title: str, shares: Sequence[Share], *, note: str, mark_name: str = "") -> Figure:
    """A row for each share: a dot, a line as long as its 95 % interval, and its value; a diamond where something else is marked."""
    names = [_cut(escape_invisible(share.name).replace("\n", " ")) for share in shares]
    left = 8 + max(text_width(word) for word in names)
    right = WIDTH - 8 - text_width("0.000")
    low, high = _share_range(shares)
    scale = Scale(low, high, left + 6, right - 6)
    bottom = 12 + ROW_HEIGHT * len(shares)
    parts = [_share_tick(scale, value, word, bottom) for value, word in _named_ticks(scale)]
    if low <= 0.5 <= high:
        parts.append(path([(scale(0.5), 6), (scale(0.5), bottom)], "reference"))
    for number, (share, word) in enumerate(zip(shares, names, strict=True)):
        parts += _share_row(share, word, scale, 12 + ROW_HEIGHT * (number + 0.5), left)
    told = "; ".join(f"{share.name} {decimal(share.numbers['accuracy'])}" for share in shares)
    headings = ("", "preferences", "accuracy", "95 % interval", *([mark_name] if mark_name else []))
    rows = [_share_words(share, bool(mark_name)) for share in shares]
    height = bottom + BOTTOM - LINE_HEIGHT
    return Figure(title, drawing(parts, name, title, told, height), note, headings, rows)


def _share_range(shares: Sequence[Share]) -> tuple[float, float]:
    values = [0.5, *(share.mark for share in shares if share.mark is not None)]
    for share in shares:
        values += [share.numbers[key] for key in ("accuracy_low", "accuracy_high") if share.numbers[key] is not None]
    low, high = rounded_range(values, 10)
    return max(0.0, low), min(1.0, high)


def _named_ticks(scale: Scale) -> list[tuple[float, str]]:
    values = fitting_ticks(scale.low, scale.high, scale.end - scale.start)
    return list(zip(values, tick_names(values), strict=True))


def _share_tick(scale: Scale, value: float, word: str, bottom: float) -> Markup:
    x = scale(value)
    return path([(x, 6), (x, bottom)], "grid") + text(x, bottom + LINE_HEIGHT, word, "tick", "middle")


def _share_row(share: Share, word: str, scale: Scale, y: float, left: float) -> list[Markup]:
    numbers, foot = share.numbers, y + FONT_SIZE / 3
    parts = [text(left - 4, foot, word, "label", "end")]
    if share.mark is not None:
        parts.append(diamond(scale(share.mark), y, 4.5, "neutral"))
    if numbers["accuracy"] is not None:
        whisker = [(scale(numbers["accuracy_low"]), y), (scale(numbers["accuracy_high"]), y)]
        parts += [path(whisker, "line accent"), circle(scale(numbers["accuracy"]), y, 4, "accent")]
    return [*parts, text(WIDTH - 2, foot, decimal(numbers["accuracy"], 3), "label accent", "end")]


def _share_words(share: Share, marked: bool) -> tuple[str, ...]:
    numbers = share.numbers
    interval = f"{decimal(numbers['accuracy_low'])} to {decimal(numbers['accuracy_high'])}"
    words = (share.name, f"{numbers['preferences']:,}", decimal(numbers["accuracy"]), interval)
    return (*words, decimal(share.mark)) if marked else words


def _cut(word: str) -> str:
    """A name that leaves room for what it names; its end stays, which tells files apart."""
    while text_width(word) > LONGEST_NAME:
        word = "…" + word[2:]
    return word


def label_beside(frame: Frame, labels: Sequence[tuple[float, str, Tone]]) -> None:
    """Words above a plot, near where they belong on the horizontal axis, never touching."""
    _, top, _, _ = frame.inside
    sizes = [text_width(word) + GAP for _, word, _ in labels]
    places = spread([frame.x(x) for x, _, _ in labels], sizes, 0, WIDTH)
    for (_, word, tone), x in zip(labels, places, strict=True):
        frame.add(text(x, top - 8, word, f"label {tone}", "middle"))
