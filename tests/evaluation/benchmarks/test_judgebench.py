"""JudgeBench: a tie is an answer, B. The counts of a published reward model give its published numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.scores_file import ScoredComparison, read_scores, write_scores
from tests.evaluation.benchmarks.rows import pair, weighted_total

A_IS_BETTER, B_IS_BETTER = (0, 1), (1, 0)
MODEL = "gpt-4o"


def row(origin: str, better: float, worse: float, shown: tuple[int, int], name: str) -> ScoredComparison:
    return pair(f"{MODEL}/{origin}", better, worse, name, shown)


def test_tie_is_answered_with_b() -> None:
    rows = [
        row("mmlu-pro-law", 1.0, 0.0, A_IS_BETTER, "1"),
        row("mmlu-pro-math", 0.5, 0.5, A_IS_BETTER, "2"),  # B, wrong
        row("livebench-math", 0.5, 0.5, B_IS_BETTER, "3"),  # B, right
        row("livecodebench", 0.0, 1.0, B_IS_BETTER, "4"),
    ]
    numbers = measure(JUDGEBENCH, rows)
    assert (numbers["score"], numbers["strict"], numbers["half_credit"], numbers["ties"]) == (2 / 4, 1 / 4, 2 / 4, 2)
    assert numbers["sections"]["mmlu-pro"]["score"] == 1 / 2
    assert numbers["sections"]["livebench-math"]["score"] == 1.0
    assert numbers["sections"]["livebench-math"]["strict"] == 0.0
    assert numbers["missing"] == ["livebench-reasoning"]
    assert list(numbers["subsets"]) == [f"{MODEL}/{origin}" for origin in ("mmlu-pro", "livebench-math", "livecodebench")]
    assert weighted_total(JUDGEBENCH.units(rows), "official") == JUDGEBENCH.scores(rows, "official").total


def test_total_is_over_rows() -> None:
    counts = {"mmlu-pro": (91, 154), "livebench-reasoning": (63, 98), "livebench-math": (43, 56), "livecodebench": (21, 42)}
    rows = [
        row(origin, *((1.0, 0.0) if number < right else (0.0, 1.0)), A_IS_BETTER, f"{origin}{number}")
        for origin, (right, n) in counts.items()
        for number in range(n)
    ]
    numbers = measure(JUDGEBENCH, rows)
    percent = {name: round(100 * section["score"], 2) for name, section in numbers["sections"].items()}
    assert percent == {"mmlu-pro": 59.09, "livebench-reasoning": 64.29, "livebench-math": 76.79, "livecodebench": 50.0}
    assert round(100 * numbers["score"], 2) == 62.29, "what its script prints for Skywork-Reward-Llama-3.1-8B"


def test_answering_models_are_separate() -> None:
    rows = [row("livecodebench", 1.0, 0.0, A_IS_BETTER, "1"), pair("claude/livecodebench", 0.0, 1.0, "1", A_IS_BETTER)]
    numbers = measure(JUDGEBENCH, rows)
    assert (numbers["score"], numbers["others"]) == (0.5, {MODEL: 1.0, "claude": 0.0})
    assert measure(JUDGEBENCH, rows[:1])["others"] == {}


def test_rows_and_output_of_its_script(tmp_path: Path) -> None:
    raw = {
        "pair_id": "p",
        "source": "livebench-math",
        "question": "?",
        "response_model": MODEL,
        "response_A": "a",
        "response_B": "b",
        "label": "B>A",
    }
    read = JUDGEBENCH.item(raw, Path("x"), 0)
    assert (read.responses, read.shown, read.source) == (("b", "a"), B_IS_BETTER, f"{MODEL}/livebench-math")
    game = {"judgment": {"scores": [0.5, 0.75]}, "decision": "B>A"}
    (tmp_path / "out.jsonl").write_text(json.dumps(raw | {"judgments": [game, game]}) + "\n")
    scored = read_output(JUDGEBENCH, tmp_path / "out.jsonl")
    assert scored == [replace(row("livebench-math", 0.75, 0.5, B_IS_BETTER, "p"), prompt="?")]
    (tmp_path / "other.jsonl").write_text(json.dumps(raw | {"judgments": [None]}) + "\n")
    with pytest.raises(DataError, match="judgments: "):
        read_output(JUDGEBENCH, tmp_path / "other.jsonl")
    write_scores(tmp_path / "scores.jsonl", scored)
    assert read_scores(tmp_path / "scores.jsonl") == scored, "where responses are shown is kept"
    with pytest.raises(ValueError, match=r"^source: .*poetry"):
        JUDGEBENCH.item(raw | {"source": "poetry"}, Path("x"), 0)
