"""Pictures of what `evaluation.diagnosis` found."""

from collections.abc import Mapping, Sequence
from typing import Any

from rmtrain.report.console import decimal, percent
from rmtrain.report.figures import Figure, Line, Share, label_beside, line_figure, share_figure
from rmtrain.report.svg import Frame, Tone, circle, drawing, path, rectangle

Diagnosis = Mapping[str, Any]
LONGEST_LIST = 30
"""Sources that one figure shows."""


def diagnosis_figures(summary: Mapping[str, Any], diagnosis: Diagnosis) -> list[Figure]:
    """Those of rewards, margins, lengths and calibration that there are numbers for.

    Args:
        summary: what `summarize` returned.
        diagnosis: what `diagnose` returned of the same scores.
    """
    figures = []
    if diagnosis["rewards"] is not None:
        figures += [reward_figure(diagnosis["rewards"], summary["rewards"]), margin_figure(diagnosis["margins"])]
    if diagnosis["length_difference"]:
        figures.append(length_figure(diagnosis["length_difference"]))
        figures.append(reward_length_figure(diagnosis["reward_by_length"], summary))
    if diagnosis["calibration"] is not None:
        figures.append(calibration_figure(diagnosis["calibration"]))
    return figures


def source_figure(summary: Mapping[str, Any]) -> Figure:
    """Accuracy of each source with its interval, and what preferring the longer response would give."""
    shown = list(summary["sources"].items())[:LONGEST_LIST]
    rows = [Share(name, numbers, numbers["longer_wins"]) for name, numbers in shown]
    whole = [Share("all", summary, summary["longer_wins"])] if len(summary["sources"]) > 1 else []
    more = len(summary["sources"]) - len(shown)
    note = "Dot and line: accuracy and its 95 % interval. Diamond: preferring the longer response. Dashed: a coin." + (
        f" {more:,} more sources are not shown." if more else ""
    )
    return share_figure("sources", "Accuracy by source", [*whole, *rows], note=note, mark_name="longer wins")


def reward_figure(histograms: Diagnosis, rewards: Mapping[str, Any]) -> Figure:
    """Rewards of preferred and other responses, laid over each other."""
    edges, winners, losers = histograms["edges"], histograms["winners"], histograms["losers"]
    frame = Frame((edges[0], edges[-1]), (0, max(*winners, *losers)), "reward", right=14)
    frame.steps(edges, losers, "neutral")
    frame.steps(edges, winners, "accent")
    means = {side: rewards[side]["mean"] for side in ("losers", "winners")}
    label_beside(frame, [(means["losers"], "rejected", "neutral"), (means["winners"], "chosen", "accent")])
    told = (
        f"chosen responses have a mean reward of {decimal(means['winners'], 3)}, rejected ones of {decimal(means['losers'], 3)}"
    )
    rows = [
        (_bin(edges, number), f"{chosen:,}", f"{rejected:,}")
        for number, (chosen, rejected) in enumerate(zip(winners, losers, strict=True))
        if chosen or rejected
    ]
    note = "The further apart, the better; only differences count, not where they lie."
    title = "Rewards by side"
    return Figure(title, drawing(frame.parts, "rewards", title, told), note, ("reward", "chosen", "rejected"), rows)


def margin_figure(margins: Diagnosis) -> Figure:
    """Margins: right of zero the model agrees with the label."""
    edges, counts = margins["edges"], margins["counts"]
    frame = Frame((edges[0], edges[-1]), (0, max(counts)), "reward of chosen − reward of rejected", right=14)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, y = frame.x(low), frame.y(count)
        tone: Tone = "accent" if low >= -1e-12 else "neutral"
        frame.add(rectangle(x + 0.5, y, frame.x(high) - x - 1, frame.y(0) - y, tone))
    _, top, _, bottom = frame.inside
    frame.add(path([(frame.x(0), top), (frame.x(0), bottom)], "axis"))
    right, wrong = percent(margins["right"], 1), percent(margins["wrong"], 1)
    label_beside(frame, [(edges[0] / 2, f"wrong {wrong}", "neutral"), (edges[-1] / 2, f"right {right}", "accent")])
    told = f"{right} of preferences have a margin above 0, {wrong} below, {percent(margins['tied'], 1)} are ties"
    rows = [(_bin(edges, number), f"{count:,}") for number, count in enumerate(counts) if count]
    note = "Far left are the errors the model is sure of; they are listed below."
    return Figure("Margins", drawing(frame.parts, "margins", "Margins", told), note, ("margin", "preferences"), rows)


def length_figure(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy by how many tokens longer the preferred response is."""
    shares = [Share(difference_words(row["low"], row["high"]), row) for row in bins]
    note = (
        "Rows: tokens by which the chosen response is longer (+) or shorter (−). "
        "A slope is a taste for length: right where the chosen one is the longer, wrong where it is the shorter, or the reverse."
    )
    return share_figure("length-difference", "Accuracy by difference in length", shares, note=note)


def difference_words(low: int | None, high: int | None) -> str:
    """Tokens more, or fewer, as `+12 to +31`, `−32 or less` or `equal`."""
    if low is None:
        return f"−{-(high or 0):,} or less"
    if high is None:
        return f"+{low:,} or more"
    if low == high:
        return f"{low:+,}".replace("-", "−") if low else "equal"
    return f"{low:+,} to {high:+,}".replace("-", "−")


def reward_length_figure(bins: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Figure:
    """Mean reward by length."""
    points = [((row["low"] + row["high"]) / 2, row["reward"]) for row in bins]
    over_all, within = (decimal(summary[key], 3, sign=True) for key in ("spearman_length", "spearman_length_within"))
    note = f"Rank correlation of reward and length: {within} within a prompt, {over_all} over all responses; 0 is no taste for length."
    lines = [Line("", points, "accent", dots=True)]
    title = "Reward by length"
    figure = line_figure("reward-length", title, lines, x_name="tokens, with the prompt", note=note, digits=3)
    rows = [
        (f"{row['low']:,} to {row['high']:,}", f"{row['responses']:,}", decimal(row["reward"], 3), decimal(row["deviation"], 3))
        for row in bins
    ]
    return Figure(title, figure.picture, note, ("tokens", "responses", "mean reward", "deviation"), rows)


def calibration_figure(curve: Diagnosis) -> Figure:
    """How often the model is right where it is so sure."""
    bins = curve["bins"]
    low, most = min(0.5, *(row["accuracy_low"] for row in bins)), max(row["preferences"] for row in bins)
    frame = Frame((0.5, 1.0), (0.5 if low >= 0.5 else int(low * 10) / 10, 1.0), "confidence, σ(|margin|)", right=14)
    frame.add(path([(frame.x(0.5), frame.y(0.5)), (frame.x(1), frame.y(1))], "reference"))
    for row in bins:
        x = frame.x(row["confidence"])
        frame.add(path([(x, frame.y(row["accuracy_low"])), (x, frame.y(row["accuracy_high"]))], "whisker accent"))
        frame.add(circle(x, frame.y(row["accuracy"]), round(2 + 4 * (row["preferences"] / most) ** 0.5, 1), "accent"))
    title, error = "Calibration", decimal(curve["error"], 3)
    told = f"expected calibration error {error}; " + "; ".join(
        f"at confidence {row['confidence']:.2f} right in {row['accuracy']:.2f}" for row in bins
    )
    note = (
        "Right as often as sure would be on the dashed line; below it the model is too sure. Larger dots are more preferences. "
        f"Expected calibration error {error}."
    )
    rows = [
        (
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['preferences']:,}",
            decimal(row["confidence"], 3),
            decimal(row["accuracy"], 3),
            f"{decimal(row['accuracy_low'], 3)} to {decimal(row['accuracy_high'], 3)}",
        )
        for row in bins
    ]
    headings = ("confidence", "preferences", "mean confidence", "share right", "95 % interval")
    return Figure(title, drawing(frame.parts, "calibration", title, told), note, headings, rows)


def drift_figure(drift: Sequence[Mapping[str, float]]) -> Figure:
    """Mean rewards of both sides at each evaluation."""
    tones: dict[str, Tone] = {"chosen": "accent", "rejected": "neutral"}
    lines = [Line(side, [(row["step"], row[side]) for row in drift], tone, dots=True) for side, tone in tones.items()]
    note = "Mean rewards on the evaluation data. The distance is what is trained; where both go is not, and may drift."
    return line_figure("drift", "Reward drift", lines, x_name="step", note=note, digits=3)


def _bin(edges: Sequence[float], number: int) -> str:
    return f"{decimal(edges[number], 3)} to {decimal(edges[number + 1], 3)}"
