"""M-RewardBench: languages, their categories by the weights of its script, and files of results."""

import json
from pathlib import Path

import numpy as np
import pytest

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.base import Scores
from rmtrain.evaluation.benchmarks.m_rewardbench import CATEGORIES, LANGUAGES, M_REWARDBENCH
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_items, read_output
from rmtrain.evaluation.scores_file import ScoredComparison
from tests.evaluation.benchmarks.rows import pair, weighted_total
from tests.helpers import write_jsonl

SUBSETS = {
    "Chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "Chat Hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut llmbar-adver-manual",
    "Safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "Reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}
COUNTS = dict(
    zip(
        " ".join(SUBSETS.values()).split(),
        [79, 79, 76, 24, 38, 35, 76, 124, 87, 42, 43, 100, 100, 154, 247, 135, 983, 164, 164, 164, 164, 163, 164],
        strict=True,
    )
)
"""Constants of `analysis/plot_utils.py`, typed in again."""


def by_its_formula(accuracies: dict[str, float]) -> float:
    """Compute the score of a language as `get_scores` does."""
    categories = []
    for names in SUBSETS.values():
        subsets = names.split()
        weighted = sum(accuracies[name] * COUNTS[name] for name in subsets)
        categories.append(weighted / sum(COUNTS[name] for name in subsets))
    return sum(categories) / len(categories)


def scored_rows(languages: tuple[str, ...]) -> list[ScoredComparison]:
    generator = np.random.default_rng(3)
    return [
        pair(f"{language}/{subset}", *(generator.integers(0, 3, 2) / 2).tolist(), name=str(number))
        for language in languages
        for subset in COUNTS
        for number in range(4)
    ]


def test_score_equals_its_script() -> None:
    rows = scored_rows(LANGUAGES)
    numbers = measure(M_REWARDBENCH, rows)
    assert sum(map(len, CATEGORIES.values())) == 23 == len(LANGUAGES) == len(COUNTS)
    for rule, tie in (("score", 0.0), ("strict", 0.0), ("half_credit", 0.5)):
        expected = []
        for language in LANGUAGES:
            accuracies = {}
            for subset in COUNTS:
                gaps = [row.rewards[0] - row.rewards[1] for row in rows if row.source == f"{language}/{subset}"]
                accuracies[subset] = sum(1.0 if gap > 0 else tie if gap == 0 else 0.0 for gap in gaps) / len(gaps)
            expected.append(by_its_formula(accuracies))
        assert [numbers["sections"][language][rule] for language in LANGUAGES] == expected
        assert numbers[rule] == pytest.approx(sum(expected) / 23, abs=1e-15)
    assert weighted_total(M_REWARDBENCH.units(rows), "official") == pytest.approx(numbers["score"], abs=1e-12)
    assert set(numbers["others"]) == set(SUBSETS)
    assert np.mean(list(numbers["others"].values())) == pytest.approx(numbers["score"])
    assert numbers["ties"] > 100, "guard"
    assert numbers["ours"] is None


def test_translations_are_not_independent() -> None:
    """The same decisions in all languages give the interval of one language."""
    one = scored_rows(LANGUAGES[:1])
    all_languages = [
        pair(f"{language}/{row.source.split('/')[1]}", *row.rewards, name=row.id) for language in LANGUAGES for row in one
    ]
    alone, together = measure(M_REWARDBENCH, one), measure(M_REWARDBENCH, all_languages)
    assert alone["score"] == pytest.approx(together["score"])
    assert together["high"] - together["low"] > 0.9 * (alone["high"] - alone["low"])
    assert alone["missing"] == list(LANGUAGES[1:]), "guard"


def test_results_by_language(tmp_path: Path) -> None:
    """The files that its script writes for each language: accuracies by subset."""
    generator = np.random.default_rng(0)
    expected = []
    for language in LANGUAGES:
        shares = {subset: float(share) for subset, share in zip(COUNTS, generator.random(23).tolist(), strict=True)}
        document = {"accuracy": 0.5, "model": "org/model", "extra_results": shares, "subset_results": shares}
        (tmp_path / f"model-{language}.json").write_text(json.dumps(document))
        expected.append(by_its_formula(shares))
    output = read_output(M_REWARDBENCH, tmp_path)
    assert isinstance(output, Scores)
    assert list(output.sections.values()) == expected
    assert measure(M_REWARDBENCH, output)["score"] == pytest.approx(sum(expected) / 23, abs=1e-15)
    (tmp_path / f"other-{LANGUAGES[0]}.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="one model"):
        read_output(M_REWARDBENCH, tmp_path)


def test_rows_name_their_language(tmp_path: Path) -> None:
    row = {"id": 7, "prompt": "Sag etwas", "chosen": "Ja", "rejected": "Nein", "source": "hep-go", "category": "Reasoning"}
    (tmp_path / "deu_Latn").mkdir()
    write_jsonl(tmp_path / "deu_Latn" / "test.jsonl", [row, row | {"language": "ces_Latn"}])
    items = read_items(M_REWARDBENCH, tmp_path)
    assert [item.source for item in items] == ["deu_Latn/hep-go", "ces_Latn/hep-go"]
    with pytest.raises(ValueError, match=r"^language: "):
        M_REWARDBENCH.item(row, Path("test.jsonl"), 0)
    with pytest.raises(ValueError, match=r"^source: "):
        M_REWARDBENCH.item(row | {"source": "shp"}, Path("deu_Latn/x"), 0)
