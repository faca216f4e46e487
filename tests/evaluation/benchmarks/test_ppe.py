"""PPE: shares of pairs and best-of-K curves, against formulas worked out by enumeration, ties included."""

import json
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.ppe import PPE_CORRECTNESS, PPE_PREFERENCE, auc, best_of
from rmtrain.evaluation.benchmarks.published import read_items, read_output
from rmtrain.evaluation.scores_file import ScoredComparison
from tests.evaluation.benchmarks.rows import weighted_total
from tests.helpers import write_jsonl

FOLDERS = {
    "MMLU-Pro": "mmlu_pro_best_of_k",
    "MATH": "math_best_of_k",
    "GPQA": "gpqa_best_of_k",
    "IFEval": "ifeval_best_of_k",
    "MBPP-Plus": "mbpp_plus_best_of_k",
}


def answers(generator: np.random.Generator, number: int, count: int = 6) -> dict[str, Any]:
    """Make a row of the shape of PPE correctness with scores, many of which are equal."""
    right = [True, False, *(generator.random(count - 2) < 0.5).tolist()]
    pairs = [
        [one, other] for one in range(count) for other in range(count) if right[one] != right[other] and generator.random() < 0.4
    ]
    rewards = (generator.integers(0, 4, count) / 4).tolist()
    return {
        "question_id": f"q{number}",
        "model_name": f"model-{number % 2}",
        "prompt": f"question {number // 2}",
        "scores": right,
        "sampled_conflict_pairs": pairs or [[0, 1]],
        **{f"response_{place + 1}": f"answer {place} to {number}" for place in range(count)},
        **{f"score_{place + 1}": [reward] if place % 2 else reward for place, reward in enumerate(rewards)},
    }


def value(row: dict[str, Any], place: int) -> float:
    score = row[f"score_{place + 1}"]
    return float(score[0] if isinstance(score, list) else score)


def enumerated(row: dict[str, Any], size: int) -> Fraction:
    """Compute best of K over all draws of K responses; of several best ones each is taken equally often."""
    count = len(row["scores"])
    total = Fraction(0)
    draws = list(combinations(range(count), size))
    for draw in draws:
        best = max(value(row, place) for place in draw)
        winners = [place for place in draw if value(row, place) == best]
        total += Fraction(sum(row["scores"][place] for place in winners), len(winners))
    return total / len(draws)


def test_correctness_equals_enumeration(tmp_path: Path) -> None:
    """Result files of PPE's shape, five datasets: pairs by all three rules, the AUC, and best of 1, 2 and 4."""
    generator = np.random.default_rng(5)
    rows = {name: [answers(generator, number) for number in range(9)] for name in FOLDERS}
    for name, folder in FOLDERS.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.json").write_text(json.dumps(rows[name]))
    scored = read_output(PPE_CORRECTNESS, tmp_path)
    assert isinstance(scored, list)
    numbers = measure(PPE_CORRECTNESS, scored)
    ties = 0
    for rule, half in (("score", 0), ("strict", 0), ("half_credit", Fraction(1, 2))):
        shares = []
        for name, of_dataset in rows.items():
            credits = []
            for row in of_dataset:
                for one, other in row["sampled_conflict_pairs"]:
                    right, wrong = (one, other) if row["scores"][one] else (other, one)
                    gap = value(row, right) - value(row, wrong)
                    credits.append(Fraction(1) if gap > 0 else half if gap == 0 else Fraction(0))
                    ties += gap == 0
            shares.append(sum(credits) / len(credits))
            assert numbers["sections"][name][rule] == float(shares[-1])
        assert numbers[rule] == pytest.approx(float(sum(shares) / 5), abs=1e-15)
    for size in (1, 2, 4):
        means = [sum(enumerated(row, size) for row in of_dataset) / 9 for of_dataset in rows.values()]
        assert numbers["others"][f"best of {size}"] == pytest.approx(float(sum(means) / 5), abs=1e-15)
        for name, mean in zip(rows, means, strict=True):
            assert numbers["others"][f"{name} best of {size}"] == pytest.approx(float(mean), abs=1e-15)
    for name, of_dataset in rows.items():
        of_rows = []
        for row in of_dataset:
            pairs = [
                (value(row, i), value(row, j)) for i, a in enumerate(row["scores"]) for j, b in enumerate(row["scores"]) if a > b
            ]
            of_rows.append(sum(Fraction(1) if a > b else Fraction(int(a == b), 2) for a, b in pairs) / len(pairs))
        assert numbers["others"][f"{name} auc"] == pytest.approx(float(sum(of_rows) / len(of_rows)), abs=1e-15)
    assert weighted_total(PPE_CORRECTNESS.units(scored), "official") == pytest.approx(numbers["score"], abs=1e-12)
    assert numbers["ours"] == "all numbers"
    assert ties // 3 == numbers["ties"] > 20, "guard: many ties"
    assert "best of 8" not in numbers["others"], "guard: rows have six responses"


def test_best_of_k_of_extreme_rewards() -> None:
    """Perfect and reversed rewards, all equal ones, and all 32 responses drawn."""
    generator = np.random.default_rng(0)
    row = answers(generator, 0, 32)
    made = PPE_CORRECTNESS.output(row, Path("math_best_of_k/m.json"), 0)
    right = [float(target.value) for target in made.targets]
    share = sum(right) / 32
    perfect, flat = (ScoredComparison("", made.source, rewards, (), (), made.targets) for rewards in (tuple(right), (0.5,) * 32))
    assert (best_of(perfect, 32), auc(perfect)) == (1.0, 1.0)
    assert [best_of(flat, size) for size in (1, 2, 32)] == pytest.approx([share] * 3, abs=1e-15)
    reversed_row = ScoredComparison("", made.source, tuple(-one for one in right), (), (), made.targets)
    curve = [best_of(reversed_row, size) for size in (1, 2, 4, 8)]
    assert curve == sorted(curve, reverse=True)
    assert (curve[0], auc(reversed_row)) == (pytest.approx(share), 0.0)
    assert 0 < share < 1, "guard"


def votes() -> list[dict[str, Any]]:
    row = {"language": "English", "hard_prompt": False, "is_code": False, "prompt": "p", "response_1": "one", "response_2": "two"}
    outcomes = [("model_a", 1.0, 0.0), ("model_b", 1.0, 0.0), ("model_b", 0.0, 0.5), ("model_a", 0.5, 0.5), ("tie", 1.0, 0.0)]
    return [
        {**row, "question_id": f"q{number}", "winner": winner, "score_1": one, "score_2": other, "hard_prompt": number < 2}
        | ({"language": "Polish"} if number == 3 else {})
        for number, (winner, one, other) in enumerate(outcomes)
    ] + [{**row, "question_id": "both", "winner": "tie (bothbad)", "score_1": 0.0, "score_2": 1.0}]


def test_preference_leaves_out_tied_votes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "model.jsonl", votes())
    scored = read_output(PPE_PREFERENCE, tmp_path / "model.jsonl")
    assert isinstance(scored, list)
    numbers = measure(PPE_PREFERENCE, scored)
    assert (numbers["rows"], numbers["score"], numbers["strict"], numbers["half_credit"]) == (4, 2 / 4, 2 / 4, 2.5 / 4)
    assert {name: section["score"] for name, section in numbers["sections"].items()} == {"English": 2 / 3, "Other languages": 0.0}
    assert numbers["others"] == {"hard_prompt": 1 / 2}
    assert numbers["subsets"]["Polish"]["section"] == "Other languages"
    assert (numbers["ties"], numbers["ours"]) == (1, "all numbers")
    assert weighted_total(PPE_PREFERENCE.units(scored), "official") == numbers["score"]


def test_rows_of_the_datasets(tmp_path: Path) -> None:
    """Rows to score, with the better response first, or all 32 with what is right."""
    write_jsonl(tmp_path / "votes.jsonl", votes())
    items = read_items(PPE_PREFERENCE, tmp_path / "votes.jsonl")
    assert [item.responses[0] for item in items] == ["one", "two", "two", "one"]
    assert items[0].source == "English/hard_prompt"
    row = answers(np.random.default_rng(1), 3)
    (tmp_path / "PPE-GPQA-Best-of-K" / "data").mkdir(parents=True)
    write_jsonl(tmp_path / "PPE-GPQA-Best-of-K" / "data" / "train-0.jsonl", [row])
    (item,) = read_items(PPE_CORRECTNESS, tmp_path)
    assert (item.source, item.id, len(item.responses)) == ("GPQA/model-1", "q3", 6)
    assert [target.value for target in item.targets] == [float(right) for right in row["scores"]]
    assert all(row["scores"][edge.winner] and not row["scores"][edge.loser] for edge in item.preferences)
    assert len(item.preferences) == len(row["sampled_conflict_pairs"]) > 1, "guard"


def test_wrong_rows_are_named(tmp_path: Path) -> None:
    row = answers(np.random.default_rng(1), 3)
    same = row["scores"].index(True), 5 if row["scores"][5] else row["scores"].index(True)
    for change in ({"sampled_conflict_pairs": [[0, 99]]}, {"sampled_conflict_pairs": [list(same)]}, {"scores": [2.5]}):
        with pytest.raises(ValueError, match=rf"^{next(iter(change))}: "):
            PPE_CORRECTNESS.item(row | change, Path("math_best_of_k/x"), 0)
    with pytest.raises(ValueError, match="names no dataset"):
        PPE_CORRECTNESS.item(row, Path("x.json"), 0)
    write_jsonl(tmp_path / "x.jsonl", [votes()[0] | {"winner": "nobody"}])
    with pytest.raises(DataError, match=r"x\.jsonl:0: winner: "):
        read_items(PPE_PREFERENCE, tmp_path / "x.jsonl")
