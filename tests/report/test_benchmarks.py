"""Benchmarks as a person reads them: sections with their subsets, no empty column, nothing wider than the terminal."""

import json
from typing import Any

from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.measure import measure, measure_subsets
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH, SECTION_OF, scores_of
from rmtrain.report.tables import benchmark_report, difference_report
from tests.evaluation.benchmarks.rows import many, pair
from tests.report.render import render

SETTINGS = {"dtype": "float32", "max_length": 2048, "rows_cut": 3, "rows_dropped": 0, "template_sha256": "ab" * 32}


def report(numbers: dict[str, Any], width: int = 80, settings: dict[str, Any] | None = None) -> list[str]:
    found = {"x": {**numbers, "settings": settings, "scores": "scores.jsonl"}}
    text = render(benchmark_report(found, {"x": {"passed": False}}), width=width)
    return [line.rstrip() for line in text.splitlines()]


def test_subsets_stand_under_their_section() -> None:
    rows = [*many("math-prm", 3, 1), *many("hep-go", 1, 1, 2), *many("alpacaeval-easy", 2, 2)]
    lines = report(measure(REWARDBENCH, rows), settings=SETTINGS)
    names = [line.split("  ")[0] if not line.startswith(" ") else line.split()[0] for line in lines[:6]]
    assert names == ["RewardBench", "total", "Chat", "alpacaeval-easy", "Reasoning", "math-prm"]
    assert "strict" not in lines[0], "a tie is wrong by its own rule"
    assert lines[0].split() == ["RewardBench", "n", "score", "95", "%", "interval", "half", "ties"]
    assert "float32, max_length 2,048, 3 rows cut, 0 dropped, template abababab" in lines
    assert "gate          x missed" in lines


def test_strict_numbers_show_where_they_differ() -> None:
    rows = [pair("gpt/livecodebench", 1.0, 1.0, "1", (1, 0)), pair("gpt/livebench-math", 1.0, 0.0, "2", (0, 1))]
    lines = report(measure(JUDGEBENCH, rows))
    assert "strict" in lines[0]


def test_accuracies_alone_give_one_column_and_narrow_terminals_hold_it() -> None:
    numbers = measure_subsets(REWARDBENCH, scores_of(dict.fromkeys(SECTION_OF, 0.5)))
    lines = report(numbers, width=40)
    assert lines[0].split() == ["RewardBench", "score"]
    assert max(map(len, lines)) <= 40
    assert len([line for line in lines if "0.5000" in line]) == 1 + 4 + 23
    assert json.dumps(numbers)


def test_a_difference_says_whether_it_may_be_nothing() -> None:
    compared = {
        "metric": "accuracy",
        "one": {"path": "a.jsonl", "value": 0.5},
        "other": {"path": "b.jsonl", "value": 0.75},
        "difference": 0.25,
        "low": 0.1,
        "high": 0.4,
        "units": 40,
        "better": 12,
        "worse": 2,
        "equal": 26,
        "warnings": ["settings differ: x"],
    }
    text = " ".join(render(difference_report(compared)).split())
    assert "+0.2500 95 % in [+0.1000, +0.4000]: differs from 0; of 40 rows 12 better, 2 worse, 26 equal" in text
    assert "! settings differ: x" in text
    assert "may be 0" in " ".join(render(difference_report(compared | {"low": -0.1})).split())
