"""RM-Bench: the matrix of styles, by hand; and the real rows of its chat domain."""

import json
from pathlib import Path

import numpy as np
import pytest

from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_items, read_output
from rmtrain.evaluation.benchmarks.rm_bench import RM_BENCH
from rmtrain.evaluation.scores_file import ScoredComparison
from tests.evaluation.benchmarks.rows import best_of, weighted_total


def row(domain: str, *rewards: float, name: str = "0") -> ScoredComparison:
    return best_of(domain, *rewards, name=name, right=3)


def test_matrix_by_hand() -> None:
    rows = [
        row("chat", 1.0, 2.0, 3.0, 0.0, 2.0, 4.0),  # beats: [1 0 0], [1 tie 0], [1 1 0]
        row("chat", 5.0, 5.0, 5.0, 0.0, 0.0, 5.0, name="1"),  # beats: [1 1 tie] three times
    ]
    numbers = measure(RM_BENCH, rows)
    shares = np.array([[2, 1, 0], [2, 1, 0], [2, 2, 0]]) / 2
    hard = (shares[0, 1] + shares[0, 2] + shares[1, 2]) / 3
    normal = (shares[0, 0] + shares[1, 1] + shares[2, 2]) / 3
    easy = (shares[1, 0] + shares[2, 0] + shares[2, 1]) / 3
    assert numbers["others"] == {
        "hard": hard,
        "normal": normal,
        "easy": easy,
        "chat hard": hard,
        "chat normal": normal,
        "chat easy": easy,
    }
    assert numbers["score"] == pytest.approx((hard + normal + easy) / 3, abs=1e-15)
    assert (numbers["ties"], numbers["decisions"], numbers["n"]) == (4, 18, 2)
    assert numbers["half_credit"] == pytest.approx(numbers["score"] + 4 * 0.5 / 18, abs=1e-15)


def test_both_kinds_of_safety_are_one_domain() -> None:
    wins, losses = (3.0, 3.0, 3.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 3.0, 3.0, 3.0)
    rows = [row("safety-refuse", *wins), row("safety-response", *losses), row("safety-response", *losses, name="1")]
    numbers = measure(RM_BENCH, [*rows, row("math", *wins)])
    assert numbers["sections"]["safety"]["score"] == pytest.approx(1 / 3)
    assert numbers["score"] == pytest.approx((1 + 1 / 3) / 2)
    assert list(numbers["subsets"]) == ["safety-refuse", "safety-response", "math"]


def test_total_is_the_weighted_sum_of_rows() -> None:
    generator = np.random.default_rng(1)
    domains = ["chat", "math", "code", "safety-refuse", "safety-response"]
    rows = [row(domains[n % 5], *np.round(generator.normal(size=6), 1).tolist(), name=str(n)) for n in range(200)]
    for rule in ("official", "strict", "half_credit"):
        assert weighted_total(RM_BENCH.units(rows), rule) == pytest.approx(RM_BENCH.scores(rows, rule).total, abs=1e-12)
    assert RM_BENCH.units(rows).ties_U.sum() > 20, "guard: there are ties"


def test_real_rows_of_the_chat_domain(shared_data: Path, tmp_path: Path) -> None:
    items = read_items(RM_BENCH, shared_data)
    raw = json.loads((shared_data / "rmbench_chat.json").read_text())
    assert len(items) == 129
    for item, of_file in zip(items, raw, strict=True):
        assert item.responses == (*of_file["chosen"], *of_file["rejected"])
        assert (item.source, item.id, len(item.preferences)) == ("chat", str(of_file["id"]), 9)
    longer = [ScoredComparison(i.id, i.source, tuple([float(len(t)) for t in i.responses]), (), i.preferences) for i in items]
    numbers = measure(RM_BENCH, longer)
    assert numbers["others"]["hard"] < 0.2 < 0.8 < numbers["others"]["easy"], "styles differ in length: longer wins the easy ones"
    outputs = [
        {"id": of_file["id"], "score_chosen": list(r.rewards[:3]), "score_rejected": [[value] for value in r.rewards[3:]]}
        for of_file, r in zip(raw, longer, strict=True)
    ]
    (tmp_path / "chat_filtered_model_REWORD_MODEL_20250101.json").write_text(json.dumps(outputs))
    assert measure(RM_BENCH, read_output(RM_BENCH, tmp_path)) == numbers


def test_whole_dataset_is_preferred() -> None:
    assert RM_BENCH.files([Path("total_dataset.json"), Path("chat_filtered.json")]) == [Path("total_dataset.json")]
    assert RM_BENCH.files([Path("math_filtered.json"), Path("other.json")]) == [Path("math_filtered.json")]
