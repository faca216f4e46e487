"""RewardBench: the published example of its README, and cases worked out by its formula."""

import json
from pathlib import Path

import pytest

from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH, SECTIONS
from rmtrain.intervals import wilson_interval
from tests.evaluation.benchmarks.rows import many, pair, weighted_total

BEAVER = {
    "alpacaeval-easy": 0.5,
    "alpacaeval-hard": 0.7052631578947368,
    "alpacaeval-length": 0.5894736842105263,
    "chat_template": "tokenizer",
    "donotanswer": 0.8235294117647058,
    "hep-cpp": 0.6280487804878049,
    "hep-go": 0.6341463414634146,
    "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634,
    "hep-python": 0.5487804878048781,
    "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087,
    "llmbar-adver-GPTOut": 0.46808510638297873,
    "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236,
    "llmbar-natural": 0.52,
    "math-prm": 0.2953020134228188,
    "model": "PKU-Alignment/beaver-7b-v1.0-cost",
    "mt-bench-easy": 0.5714285714285714,
    "mt-bench-hard": 0.5405405405405406,
    "mt-bench-med": 0.725,
    "refusals-dangerous": 0.97,
    "refusals-offensive": 1,
    "xstest-should-refuse": 1,
    "xstest-should-respond": 0.284,
}
"""Accuracies by subset of a public model, from the README of the benchmark."""
KNOWN = {"Chat": 0.608938547486, "Chat Hard": 0.449561403509, "Safety": 0.721621621622, "Reasoning": 0.466756697768}
MATH_ROWS = 447


def test_readme_example_gives_the_known_sections(tmp_path: Path) -> None:
    (tmp_path / "beaver.json").write_text(json.dumps(BEAVER))
    found = read_output(REWARDBENCH, tmp_path / "beaver.json")
    numbers = measure(REWARDBENCH, found)
    assert {name: round(section["score"], 12) for name, section in numbers["sections"].items()} == KNOWN
    assert round(numbers["score"], 12) == 0.561719567596
    assert numbers["missing"] == []
    assert numbers["ties"] is None, "accuracies alone do not tell"


def test_readme_example_from_its_rows(tmp_path: Path) -> None:
    counts = {subset: count for of_section in SECTIONS.values() for subset, count in of_section.items()} | {"math-prm": MATH_ROWS}
    rows = []
    for subset, count in counts.items():
        wins = round(BEAVER[subset] * count)  # type: ignore[operator]
        assert wins / count == pytest.approx(BEAVER[subset], abs=1e-12), "guard: the counts are the benchmark's"
        rows += many(subset, wins, count - wins)
    assert len(rows) == 2985
    assert REWARDBENCH.scores(rows, "official").sections == REWARDBENCH.scores_of(BEAVER).sections  # type: ignore[arg-type]
    assert REWARDBENCH.scores(rows, "official").total == REWARDBENCH.scores_of(BEAVER).total  # type: ignore[arg-type]
    assert weighted_total(REWARDBENCH.units(rows), "official") == pytest.approx(
        REWARDBENCH.scores(rows, "official").total, abs=1e-12
    )


def test_sections_weigh_subsets_by_constants() -> None:
    """A tie is wrong."""
    rows = [
        *many("math-prm", wins=1, losses=1),
        *many("hep-cpp", wins=0, losses=1, ties=1),
        *many("alpacaeval-easy", wins=2, losses=0, ties=2),
    ]
    numbers = measure(REWARDBENCH, rows)
    reasoning = numbers["sections"]["Reasoning"]
    assert reasoning["score"] == (0.5 * 984 + 0 * 164) / (984 + 164)
    assert reasoning["half_credit"] == (0.5 * 984 + 0.25 * 164) / (984 + 164)
    assert (reasoning["ties"], reasoning["n"], reasoning["strict"]) == (1, 4, reasoning["score"])
    assert numbers["sections"]["Chat"]["score"] == 0.5
    assert numbers["score"] == (0.5 + reasoning["score"]) / 2
    assert numbers["missing"] == ["Chat Hard", "Safety"]
    assert any("Chat Hard, Safety" in line for line in numbers["warnings"])
    chat = numbers["sections"]["Chat"]
    assert (chat["low"], chat["high"]) == pytest.approx(wilson_interval(0.5, 4))


def test_unequal_weights_count_as_fewer_rows() -> None:
    reasoning = measure(REWARDBENCH, [*many("math-prm", 60, 40), *many("hep-cpp", 60, 40)])["sections"]["Reasoning"]
    weights = [984 / 100] * 100 + [164 / 100] * 100
    effective = sum(weights) ** 2 / sum(weight**2 for weight in weights)
    assert effective < 150, "guard: fewer than 200"
    assert (reasoning["low"], reasoning["high"]) == pytest.approx(wilson_interval(0.6, effective), abs=0.001)


@pytest.mark.parametrize("nested", [False, True])
def test_script_output_by_rows_and_columns(tmp_path: Path, nested: bool) -> None:
    rows = [*many("hep-go", 3, 1, 1), pair("donotanswer", 0.25, -0.5, "9")]
    columns = {
        "id": [int(row.id) for row in rows],
        "subset": [row.source for row in rows],
        "scores_chosen": [[row.rewards[0]] if nested else row.rewards[0] for row in rows],
        "scores_rejected": [[row.rewards[1]] if nested else row.rewards[1] for row in rows],
        "text_chosen": ["x"] * len(rows),
    }
    (tmp_path / "columns.json").write_text(json.dumps({**columns, "model": "m", "chat_template": "tulu"}))
    lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (tmp_path / "m_outputs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("columns.json", "m_outputs.jsonl"):
        assert read_output(REWARDBENCH, tmp_path / name) == rows
    with pytest.raises(ValueError, match=r"^subset 'shp'"):
        REWARDBENCH.output({"id": 1, "subset": "shp", "scores_chosen": 1.0, "scores_rejected": 0.0}, tmp_path, 0)
