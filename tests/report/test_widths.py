"""No number, verdict or name is cut in a narrow terminal: text is wrapped, a column is left out, or the row is printed as lines."""

import re
from typing import Any

import pytest
from rich.cells import cell_len

from rmtrain.data.rows.loading import Reading
from rmtrain.report.evaluation_view import benchmark_report, difference_report, source_table
from rmtrain.report.progress import ReadingProgress, ScoringProgress, TrainingProgress
from rmtrain.report.run_view import PARTS, dry_run_report
from rmtrain.report.tables import Column, Row, Table
from tests.report.render import console, render

WIDTHS = (40, 60, 80, 200)


def is_whole(text: str, width: int) -> bool:
    return "…" not in text and max(map(cell_len, text.splitlines())) <= width


def dry_run(gigabytes: float, processes: int) -> dict[str, Any]:
    parts = {part: int(gigabytes * 1e9) for part in PARTS}
    shared = {"memory": 80e9, "processes": processes, "total": sum(parts.values()), "start": 0, "host": int(gigabytes * 1e9)}
    names = ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3")
    strategies = [{"name": name, "fits": name != "ddp", **parts, **shared} for name in names]
    strategies[0]["processes"] = 1
    counts = dict.fromkeys(("tokens", "tokens_per_epoch", "padded_tokens_per_epoch", "max_tokens", "largest_micro_batch"), 10**9)
    counts |= dict.fromkeys(("parameters", "trainable", "comparisons", "steps", "batch_size", "micro_batches_per_step"), 10**6)
    words = {"name": "r", "model": "m", "layout": "padded", "device": "cuda", "computing": "bfloat16", "seconds": None}
    adapters = {"linear_layers": 48, "expert_tensors": 16, "share": 0.94}
    flags = {"layout_is_auto": True, "max_tokens_is_auto": True, "adapters": adapters}
    return {**counts, **words, **flags, "strategy": "ddp", "processes": processes, "machines": 1, "strategies": strategies}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("gigabytes", "processes"), [(0.001, 1), (12.5, 8), (1234.5, 1024)])
def test_dry_run_has_whole_verdicts(width: int, gigabytes: float, processes: int) -> None:
    text = render(dry_run_report(dry_run(gigabytes, processes)), width=width)
    assert is_whole(text, width)
    rows = text.partition("GB a process")[2]
    assert len(re.findall(r" fits$", rows, re.MULTILINE)) == 5
    assert len(re.findall(r" too much$", rows, re.MULTILINE)) == 1
    digits = 3 if gigabytes < 0.01 else 1
    assert rows.count(f" {5 * gigabytes:.{digits}f} ") >= 6, "guard: the totals"


@pytest.mark.parametrize("width", WIDTHS)
def test_wide_numbers_are_printed_long(width: int) -> None:
    """Where not even the numbers fit, each is on a line of its own, with the name of its column."""
    shown = {"pairs": "123,456,789", "accuracy": "0.7222", "95 % interval": "[0.601, 0.817]", "longer wins": "0.4500"}
    columns = (Column("source", "text"), *map(Column, shown))
    rows = [
        Row((name, *shown.values())) for name in ("a_very_long_source_name_without_any_spaces", "日本語のとても長いタグ", "[/x]")
    ]
    text = render(Table("t", columns, rows), width=width)
    assert is_whole(text, width)
    assert all(text.count(value) == 3 for value in shown.values())
    assert {text.count(name) for name in shown} == {3 if width == 40 else 1}
    assert "[/x]" in text
    assert "日本語の" in text, "guard"


@pytest.mark.parametrize("width", WIDTHS)
def test_sources_and_differences_are_whole(width: int) -> None:
    bounds = {"accuracy": 0.75, "accuracy_low": 0.601, "accuracy_high": 0.817, "half_credit_accuracy": 0.7, "longer_wins": 0.45}
    targets = {"spearman": 0.91234, "mse": 123.4567, "auc": None, "brier": None}
    source = {**bounds, **targets, "n": 1_234_567, "preferences": 2_345_678, "ties": 12_345, "loss": 0.66}
    text = render(source_table({**source, "sources": {"helpful-base/train_prefs": source, "b": source}}), width=width)
    assert is_whole(text, width)
    for number in ("1,234,567", "0.7500", "[0.601, 0.817]", "12,345", "0.6600"):
        assert text.count(number) == 3
    side = {"value": 0.7222, "path": "/data/runs/" + 9 * "long_name_" + "/scores.jsonl"}
    compared = {
        "one": side,
        "other": side,
        "metric": "accuracy",
        "low": -0.0247,
        "high": 0.0247,
        "difference": 0.0,
        "warnings": [],
    }
    counts = {"units": 123_456, "better": 1_000, "worse": 2_000, "equal": 120_456}
    text = render(difference_report(compared | counts), width=width)
    assert is_whole(text, width)
    assert "/scores.jsonl" in re.sub(r"\s", "", text)
    assert "[−0.0247, +0.0247]" in " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_benchmarks_are_whole(width: int) -> None:
    one = {"n": 12_345, "score": 0.7, "low": 0.6, "high": 0.8, "strict": 0.5, "half_credit": 0.6, "ties": 1_234}
    sections = dict.fromkeys(("Instruction following", "safety"), one)
    numbers = {
        **one,
        "title": "RewardBench 2",
        "sections": sections,
        "subsets": {},
        "others": {},
        "ours": None,
        "longer_wins": None,
    }
    text = render(benchmark_report({"b": {**numbers, "settings": None, "warnings": [], "scores": "s.jsonl"}}, {}), width=width)
    assert is_whole(text, width)
    for number in ("12,345", "0.7000", "[0.600, 0.800]", "0.5000", "1,234"):
        assert text.count(number) == 3


@pytest.mark.parametrize("width", WIDTHS)
def test_live_line_drops_facts_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live line that is too narrow leaves out its last facts, and the begin of a long name; it cuts no number."""
    lines = []
    target = console(width, color=True)
    with TrainingProgress(target, 100_000, live=True) as training:
        training.step(12_345, 10**6)
        training.log(12_345, {"train/loss": 0.6842, "train/accuracy": 0.5312})
        lines.append((training, "step  12345/100000"))
    with ReadingProgress(target, live=True) as reading:
        reading(Reading("a_very_long_source_name_" * 3 + "[/x]", 1_234_567, 0.5))
        lines.append((reading, "[/x]"))
    with ScoringProgress(target, "micro-batches", 123_456, live=True) as scoring:
        scoring.step(12_345)
        lines.append((scoring, "scoring"))
    for line, end in lines:
        whole = line.facts(line.task)
        monkeypatch.setattr(line, "facts", lambda _, whole=whole: list(whole))  # the pace changes with each look
        name, facts = line._short_name(line.task), line._fitting_facts(line.task)
        assert name.endswith(end)
        assert cell_len(name) + cell_len(facts) + 3 <= max(width, 47)
        assert "  ".join(line.facts(line.task)).startswith(facts)
        assert facts, "guard"
