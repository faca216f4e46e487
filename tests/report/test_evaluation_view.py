"""Evaluations on the terminal: numbers, intervals, baseline and warnings, at any width."""

import json
import re
from typing import Any

import pytest
from rich.cells import cell_len

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH, SECTIONS
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.evaluation_view import (
    benchmark_report,
    blocks,
    diagnosis_view,
    difference_report,
    evaluation_summary,
    sample_table,
    source_table,
)
from rmtrain.report.lengths import BLOCKS
from tests.evaluation.benchmarks.rows import many
from tests.evaluation.benchmarks.rows import pair as benchmark_pair
from tests.evaluation.test_metrics import pair, random_pairs
from tests.report.render import render
from tests.report.test_plots import CASES


def rows(ties: int = 0, second_source: bool = False) -> list[ScoredComparison]:
    made = [
        ScoredComparison(str(k), "hh", (1.0, 0.0 if k % 4 else 2.0), (20 + k % 2, 20 + (k + 1) % 2), PAIR) for k in range(100)
    ]
    made += [ScoredComparison(f"tie:{k}", "hh", (1.0, 1.0), (20, 20), PAIR) for k in range(ties)]
    if second_source:
        made.append(ScoredComparison("1", "ultrafeedback [prefs]", (2.0, 0.0), (30, 20), PAIR))
    return made


def numbers_of(line: str) -> list[str]:
    return re.findall(r"[+−]?\d[\d,]*\.?\d*", line)


def test_summary_of_one_source() -> None:
    lines = render(evaluation_summary(summarize(rows()), "evaluation at step 300")).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "evaluation at step 300",
        "accuracy",
        "ties",
        "longer wins",
        "loss",
        "margin",
    ]
    assert [numbers_of(line) for line in lines[1:]] == [
        ["0.7500", "95", "0.6570", "0.8245", "100"],
        ["0", "0", "75", "25", "0.7500"],
        ["0.5000", "1.000", "0.500"],
        ["0.5633", "0.6931", "0.019"],
        ["+0.5000", "+1.000", "0.000", "+0.500", "0.866"],
    ]


def test_trap_6_and_15_sources_ties_and_warnings() -> None:
    """Ties, a source with its interval, and the warnings of the summary are shown; a source's tag is not markup."""
    summary = summarize(rows(ties=5, second_source=True))
    text = render(evaluation_summary(summary), width=200)
    (source,) = [line for line in text.splitlines() if line.startswith("ultrafeedback [prefs]")]
    assert source.split()[2:] == ["1", "1.0000", "[0.207,", "1.000]", "0", "0.1269", "1.0000", "1.0000"]
    assert [f"! {warning}" for warning in summary["warnings"]] == [line for line in text.splitlines() if line.startswith("! ")]
    assert any("5 of 106" in warning for warning in summary["warnings"])
    by_length = [ScoredComparison(str(k), "hh", (1.0, 0.0), (9, 5), PAIR) for k in range(50)]
    assert "\n! " in render(evaluation_summary(summarize(by_length)))


def test_missing_numbers_are_dashes() -> None:
    soft = ScoredComparison("1", "hh", (1.0, 0.0), (), (Preference(0, 1, probability=0.5),))
    lines = render(evaluation_summary(summarize([soft])), width=120).splitlines()
    assert lines[1].split()[:5] == ["accuracy", "–", "95", "%", "in"]
    assert "[–, –]" in lines[1]
    assert lines[3].split()[:3] == ["longer", "wins", "–"]
    assert not any("None" in line for line in lines)


def test_summary_counts_preferences_of_lists() -> None:
    edges = tuple(Preference(i, j) for i in range(3) for j in range(i + 1, 3))
    ranked = [ScoredComparison(str(k), "hh", (3.0, 2.0, 1.0), (1, 2, 3), edges) for k in range(10)]
    (line,) = [
        line for line in render(evaluation_summary(summarize(ranked)), width=120).splitlines() if line.startswith("accuracy")
    ]
    assert numbers_of(line)[-2:] == ["10", "30"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_summary_fits_any_width(width: int) -> None:
    summary = summarize(rows(ties=5, second_source=True))
    text = render(evaluation_summary(summary), width=width)
    assert max(map(len, text.splitlines())) <= width
    (line,) = [line for line in text.splitlines() if line.startswith("hh")]
    for cell in source_table(summary).rows[0].cells[1:7]:
        assert cell in line, "no number is cut"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("scored", CASES.values(), ids=CASES)
def test_diagnosis_fits_any_width(scored: list[ScoredComparison], width: int) -> None:
    diagnosis = diagnose(scored)
    lines = render(diagnosis_view(diagnosis), width=width).splitlines()
    assert len(lines) >= 3
    assert max(map(len, lines)) <= width
    assert not any("nan" in line or "…" in line for line in lines)
    assert all("[" in line for line in lines if "●" in line), "no bar is folded"
    for row in [*(diagnosis["length_difference"] or []), *diagnosis["calibration"]["bins"]]:
        interval = f"[{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]"
        assert any(interval in line and f"{row['accuracy']:.3f}" in line for line in lines), "no number is cut"


def test_diagnosis_has_a_row_for_each_bin() -> None:
    scored = random_pairs(400)
    text, diagnosis = render(diagnosis_view(diagnose(scored))), diagnose(scored)
    assert text.count("●") == len(diagnosis["length_difference"]) + len(diagnosis["calibration"]["bins"])
    assert "right 6" in text


def test_wrong_margins_are_left_of_the_line() -> None:
    text = render(diagnosis_view(diagnose([pair(0.0, 3.0), pair(4.0, 0.0)])))
    (line,) = [line for line in text.splitlines() if line.startswith("margin")]
    left, right = line.split("│")
    assert any(block in left for block in BLOCKS[1:])
    assert any(block in right for block in BLOCKS[1:])
    assert "right 50.0 %, wrong 50.0 %" in line


def test_every_occupied_bin_shows() -> None:
    assert blocks([0, 1, 1000], 1000) == " ▁█"


def test_diagnosis_without_preferences_is_empty() -> None:
    assert render(diagnosis_view(diagnose([]))).strip() == ""


SAMPLES = [
    {
        "id": "a:0",
        "prompt": "How do I store food?",
        "chosen": "In a pantry.",
        "rejected": "No [b]idea[/b].",
        "rewards": [1.5, -0.25],
    },
    {
        "id": "a:1",
        "prompt": "x " * 500 + "the end",
        "chosen": "Line one.\n\nLine two.",
        "rejected": "long " * 200,
        "rewards": [0.0, 2.0],
    },
    {"id": "a:2", "prompt": "p", "chosen": "\x1b[31mred", "rejected": "same", "rewards": [1.0, 1.0]},
]


def test_one_sample_has_three_lines() -> None:
    assert render(sample_table(SAMPLES[:1], "samples at step 3")).splitlines()[1:] == [
        "✓ margin    +1.750  How do I store food?",
        "  chosen    +1.500  In a pantry.",
        "  rejected  −0.250  No [b]idea[/b].",
    ]


def test_samples_are_marked_without_colour() -> None:
    text = render(sample_table(SAMPLES))
    assert numbers_of(text.splitlines()[0]) == ["1", "3"]
    assert "✗ margin    −2.000" in text
    assert "= margin    +0.000" in text


def test_samples_keep_the_part_that_matters() -> None:
    """Of a long prompt the end is shown, of a long response the start; line breaks are marked, and control characters escaped."""
    text = render(sample_table(SAMPLES))
    assert "…" in text
    assert "the end\n" in text
    assert "Line one. ⏎ Line two." in text
    assert len(text.splitlines()) < 16
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_samples_fit_any_width(width: int) -> None:
    text = render(sample_table(SAMPLES), width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert all(number in text for number in ("+1.750", "−0.250", "−2.000", "+2.000"))


SETTINGS = {"dtype": "float32", "max_length": 2048, "rows_cut": 3, "rows_dropped": 0, "template_sha256": "ab" * 32}


def report(numbers: dict[str, Any], width: int = 80, settings: dict[str, Any] | None = None) -> list[str]:
    found = {"x": {**numbers, "settings": settings, "scores": "scores.jsonl"}}
    text = render(benchmark_report(found, {"x": {"passed": False}}), width=width)
    return [line.rstrip() for line in text.splitlines()]


def test_subsets_stand_under_their_section() -> None:
    scored = [*many("math-prm", 3, 1), *many("hep-go", 1, 1, 2), *many("alpacaeval-easy", 2, 2)]
    lines = report(measure(REWARDBENCH, scored), settings=SETTINGS)
    names = [line.split("  ")[0] if not line.startswith(" ") else line.split()[0] for line in lines[:6]]
    assert names == ["RewardBench", "total", "Chat", "alpacaeval-easy", "Reasoning", "math-prm"]
    assert "strict" not in lines[0], "a tie is wrong by its own rule"
    assert lines[0].split() == ["RewardBench", "n", "score", "95", "%", "interval", "half", "ties"]
    assert any(all(word in line for word in ("float32", "2,048", "abababab")) for line in lines)
    assert any(line.split() == ["gate", "x", "missed"] for line in lines)


def test_strict_numbers_show_where_they_differ() -> None:
    scored = [
        benchmark_pair("gpt/livecodebench", 1.0, 1.0, "1", (1, 0)),
        benchmark_pair("gpt/livebench-math", 1.0, 0.0, "2", (0, 1)),
    ]
    assert "strict" in report(measure(JUDGEBENCH, scored))[0]


def test_accuracies_alone_give_one_column() -> None:
    numbers = measure(REWARDBENCH, REWARDBENCH.scores_of({subset: 0.5 for counts in SECTIONS.values() for subset in counts}))
    lines = report(numbers, width=40)
    assert lines[0].split() == ["RewardBench", "score"]
    assert max(map(len, lines)) <= 40
    assert len([line for line in lines if "0.5000" in line]) == 1 + 4 + 23
    assert json.dumps(numbers)


def test_difference_has_interval_and_counts() -> None:
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
    assert numbers_of(text[text.index("+0.2500") :])[:8] == ["+0.2500", "95", "+0.1000", "+0.4000", "0", "40", "12", "2"]
    assert "! settings differ: x" in text
    assert text != " ".join(render(difference_report(compared | {"low": -0.1})).split()).replace("−0.1000", "+0.1000")
