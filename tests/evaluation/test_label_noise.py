"""`LabelAudit`: the planted share of wrong labels is estimated, the rows are found, and nothing is disputed without a reason."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rmtrain.data.comparison import Preference, hash_text
from rmtrain.errors import DataError
from rmtrain.evaluation.label_noise import LabelAudit
from rmtrain.evaluation.scores_file import ScoredComparison

FOLDS = 5


def row(number: int, margin: float, source: str = "a", lengths: Sequence[int] = (9, 5), prompt: int = -1) -> ScoredComparison:
    """A pair whose chosen response has this reward, and the rejected one none."""
    prompt = number if prompt < 0 else prompt
    return ScoredComparison(
        f"{source}:{number}", source, (margin, 0.0), tuple(lengths), (Preference(0, 1),), prompt=hash_text(prompt)
    )


def planted(
    rate: float, count: int, seed: int, error: float = 0.4, soft: bool = False
) -> tuple[list[list[ScoredComparison]], set[str]]:
    """Folds of rows, and the ids of those with a wrong label.

    The model has learned from noisy labels: it predicts the noisy label by how clear a row is, and errs on rows that are not; `soft`: an
    unclear row is a matter of taste as well. Each fold has margins of a scale of its own.
    """
    rng = np.random.default_rng(seed)
    clarity = np.abs(rng.normal(0, 3, count))
    seen = clarity + rng.normal(0, error, count)
    predicted = rate + (1 - 2 * rate) / (1 + np.exp(-seen))
    is_wrong = rng.random(count) < rate
    is_odd = rng.random(count) < (1 / (1 + np.exp(clarity)) if soft else 0.0)
    margins = np.log(predicted / (1 - predicted)) * np.where(is_wrong != is_odd, -1, 1) + rng.normal(0, 0.1, count)
    folds: list[list[ScoredComparison]] = [[] for _ in range(FOLDS)]
    for number, margin in enumerate(margins):
        fold = number % FOLDS
        folds[fold].append(row(number, float(margin) * (0.2 + fold)))
    return folds, {f"a:{number}" for number in np.flatnonzero(is_wrong)}


def found(audit: LabelAudit) -> set[str]:
    """The ids of the suspects."""
    return {audit.rows[number].id for number in audit.suspects()}


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.35])
def test_planted_noise_is_estimated_and_found(rate: float) -> None:
    """The interval holds the true share for nearly all draws, and suspects are wrong labels, whatever the scales of the folds."""
    held, rates, precisions, recalls = 0, [], [], []
    for seed in range(20):
        folds, wrong = planted(rate, 2000, seed)
        audit = LabelAudit.of(folds)
        noise = audit.estimate(np.ones(len(audit.rows), bool))
        assert noise is not None
        rates.append(noise.rate)
        held += noise.low <= rate <= noise.high
        suspects = found(audit)
        precisions.append(len(suspects & wrong) / len(suspects))
        recalls.append(len(suspects & wrong) / len(wrong))
    assert abs(np.mean(rates) - rate) < 0.01, "no bias, although each fold has its own scale"
    assert np.max(np.abs(np.array(rates) - rate)) < 0.08
    assert held >= 16
    assert np.mean(precisions) > 0.95
    assert np.mean(recalls) > 0.5


def test_matters_of_taste_are_no_noise() -> None:
    """Where unclear rows are labelled by taste, the estimate stays near the planted rate; confident learning counts taste as noise."""
    rates, confident = [], []
    for seed in range(20):
        folds, _ = planted(0.05, 2000, seed, soft=True)
        audit = LabelAudit.of(folds)
        noise = audit.estimate(np.ones(len(audit.rows), bool))
        assert noise is not None
        rates.append(noise.rate)
        confidence_R = np.maximum(audit.agreement_R, 1 - audit.agreement_R)
        confident.append(np.mean(audit.margin_R[confidence_R >= audit.agreement_R.mean()] < 0))  # arXiv:1911.00068, equation 2
    assert 0.05 < np.mean(rates) < 0.07
    assert 0.12 < np.mean(confident) < 0.14


def noise_of(folds: list[list[ScoredComparison]]) -> dict[str, float] | None:
    """The estimate for all rows."""
    noise: dict[str, float] | None = LabelAudit.of(folds).summary()["noise"]
    return noise


def test_chance_disputes_nothing() -> None:
    """A model that knows nothing, or the opposite, has no suspects and no estimate."""
    rng = np.random.default_rng(3)
    folds = [[row(number * FOLDS + fold, float(rng.normal())) for number in range(200)] for fold in range(FOLDS)]
    for each in (folds, [[row(number, -1.0 - number / 100) for number in range(100)]]):
        assert noise_of(each) is None
        assert LabelAudit.of(each).suspects() == []


def test_preference_for_a_length_disputes_nothing() -> None:
    """A model that prefers the shorter response is sure about labels that prefer the longer one, and yet none of them is suspect."""
    folds, wrong = planted(0.1, 2000, 4)
    biased = [
        [replace(each, lengths=(5, 9), id=f"a:{each.id[2:]}") for each in fold]
        + [row(10_000 + number, -3.0 if number % 2 else 0.5) for number in range(100)]
        for fold in folds
    ]
    audit = LabelAudit.of(biased)
    suspects = {audit.rows[number] for number in audit.suspects()}
    assert {each.lengths for each in suspects} == {(5, 9)}
    assert len({each.id for each in suspects} & wrong) > 0.9 * len(suspects) > 50
    assert np.sum((audit.margin_R < -1) & (audit.kind_R == 1)) > 50, "guard: the model disputes longer responses with confidence"


def test_clean_labels_have_no_suspects() -> None:
    folds = [[row(number, 1.0 + number / 100) for number in range(200)]]
    noise = noise_of(folds)
    assert noise is not None
    assert noise["rate"] == 0
    assert 0 < noise["high"] < 0.15
    assert LabelAudit.of(folds).suspects() == []


def test_interval_allows_for_prompts_of_several_rows() -> None:
    folds, _ = planted(0.2, 2000, 5)
    shared = [[replace(each, prompt=hash_text(int(each.id[2:]) // 50)) for each in fold] for fold in folds]
    alone, together = noise_of(folds), noise_of(shared)
    assert alone is not None
    assert together is not None
    assert together["rate"] == alone["rate"]
    assert together["high"] - together["low"] > alone["high"] - alone["low"]


def test_kinds_and_sources_add_up() -> None:
    """Rows are counted by the lengths of the responses; a ranking by the mean over its preferences; ties are left out."""
    ranking = ScoredComparison(
        "b:1", "b", (3.0, 1.0, 2.0), (5, 9, 9), (Preference(0, 1), Preference(1, 2), Preference(0, 2)), prompt=hash_text(10**6)
    )
    tie = ScoredComparison("b:2", "b", (3.0, 1.0), (5, 5), (Preference(0, 1, probability=0.5),), prompt=hash_text(10**6 + 1))
    rows = [row(number, 1.0, lengths=((9, 5), (5, 9), (7, 7))[number % 3]) for number in range(30)]
    audit = LabelAudit.of([[*rows, ranking, tie]])
    summary = audit.summary()
    assert summary["rows"] == 31
    assert {tag: numbers["rows"] for tag, numbers in summary["sources"].items()} == {"a": 30, "b": 1}
    assert {kind: numbers["rows"] for kind, numbers in summary["sources"]["a"]["kinds"].items()} == dict.fromkeys(
        ("winner_longer", "winner_shorter", "equal"), 10
    )
    assert audit.margin_R[-1] == pytest.approx((2 - 1 + 1) / 3)
    assert audit.kind_R[-1] == -1


def test_labels_that_are_all_ties_are_refused() -> None:
    tie = ScoredComparison("a:0", "a", (1.0, 0.0), (5, 5), (Preference(0, 1, probability=0.5),))
    with pytest.raises(DataError):
        LabelAudit.of([[tie], []])
    kept = LabelAudit.of([[tie, row(1, 1.0)], []])
    assert [each.id for each in kept.rows] == ["a:1"]
