"""A sentence is said where a difference is beyond its interval, and names what to try; nothing is said of noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.page import page
from rmtrain.report.words import FEW, FEW_LINES, MOST, OVERFIT, ROSE, WIDE, sentences

KEYS = {
    "length": "balance: longer",
    "reversed": "that chosen is the better",
    "chance": "could be chance",
    "overfit": "training.epochs, a lower",
    "turn": "evaluation.early_stopping",
    "source": "rmtrain inspect --source",
    "too sure": "objective.label_smoothing",
    "not sure": "longer training",
    "small": "evaluate on more rows",
    "nothing": "--benchmark",
}


def pairs(count: int, right: float, longer: bool = True, source: str = "a", margin: float = 1.0) -> list[ScoredComparison]:
    """Pairs of which a share is right, with a better response that is longer or shorter."""
    lengths = (9, 4) if longer else (4, 9)
    return [
        ScoredComparison(
            id=f"{source}:{longer}:{n}",
            source=source,
            rewards=(margin if n < right * count else -margin, 0.0),
            lengths=lengths,
            preferences=PAIR,
        )
        for n in range(count)
    ]


def said(scored: Sequence[ScoredComparison], metrics: Sequence[Mapping[str, Any]] = ()) -> set[str]:
    """The kinds of sentences, by the remedy that each names."""
    found = sentences(summarize(scored), diagnose(scored)["calibration"], metrics)
    assert len(found) <= MOST
    kinds = [kind for sentence in found for kind, key in KEYS.items() if key in sentence]
    assert len(kinds) == len(found), "each sentence names one thing to try"
    return set(kinds)


@pytest.mark.parametrize(
    ("longer", "shorter", "expected"),
    [(0.95, 0.25, {"length"}), (0.25, 0.95, {"length"}), (0.75, 0.70, {"nothing"})],
)
def test_length_bias_is_said_both_ways(longer: float, shorter: float, expected: set[str]) -> None:
    """Not where the accuracies of longer and shorter better responses could be equal."""
    scored = [*pairs(400, longer), *pairs(400, shorter, longer=False)]
    assert said(scored) - {"too sure", "not sure"} == expected
    text = " ".join(sentences(summarize(scored)))
    assert ("prefers long" in text, "prefers short" in text) == (longer - shorter > 0.2, shorter - longer > 0.2)


def test_few_rows_are_called_few() -> None:
    """Nothing but the width of the interval is said of thirty rows."""
    assert said([*pairs(15, 0.9), *pairs(15, 0.6, longer=False)]) - {"too sure", "not sure"} == {"small"}


def test_weak_source_is_named() -> None:
    scored = [*pairs(600, 0.9), *pairs(200, 0.6, source="weak")]
    assert "source" in said(scored)
    assert any(sentence.startswith("Weakest on weak:") for sentence in sentences(summarize(scored)))
    assert "source" not in said([*pairs(600, 0.9), *pairs(200, 0.89, source="b")])


@pytest.mark.parametrize(("margin", "kind"), [(6.0, "too sure"), (0.1, "not sure"), (1.386, None)])
def test_confidence_is_compared_with_accuracy(margin: float, kind: str | None) -> None:
    """A margin of ln 4 stands for 80 %, which is the accuracy."""
    assert said(pairs(500, 0.8, margin=margin)) & {"too sure", "not sure"} == ({kind} if kind else set())


@pytest.mark.parametrize(
    ("share", "kind"), [(0.30, "reversed"), (0.42, "reversed"), (0.47, "chance"), (0.53, "chance"), (0.58, None)]
)
def test_accuracy_is_compared_with_chance(share: float, kind: str | None) -> None:
    """The interval of 500 pairs is about 0.044 to either side."""
    assert said(pairs(500, share)) & {"reversed", "chance"} == ({kind} if kind else set())


def test_ties_are_not_overconfidence() -> None:
    """With 30 % of ties and 80 % right elsewhere, margins of ln 4 are calibrated, although the accuracy is only 56 %."""
    scored = [*pairs(300, 1.0, margin=0.0, source="ties"), *pairs(700, 0.8, margin=1.3863)]
    summary, calibration = summarize(scored), diagnose(scored)["calibration"]
    assert not any("sure" in sentence for sentence in sentences(summary, calibration))
    assert calibration["error"] < 0.001
    assert summary["accuracy_high"] < 0.6, "guard: ties lower the accuracy far below the mean confidence of 0.71"


def test_chance_among_prompts_is_no_length_bias() -> None:
    """Prompts that are right or wrong as a whole, whatever the length, look like a bias if their preferences count as independent."""
    generator, found, apart = np.random.default_rng(0), 0, 0
    edges = tuple(Preference(0, loser) for loser in range(1, 21))
    for _ in range(60):
        scored = [
            ScoredComparison(f"p{n}", "a", (float(right), *[0.5] * 20), (9, *[4] * 20) if n % 2 else (4, *[9] * 20), edges)
            for n, right in enumerate(generator.random(30) < 0.7)
        ]
        summary = summarize(scored)
        found += any("the model prefers" in sentence for sentence in sentences(summary))
        longer, shorter = (summary["accuracy_by_length"][part] for part in ("winner_longer", "winner_shorter"))
        apart += abs(longer["accuracy"] - shorter["accuracy"]) > 0.1
    assert found <= 3
    assert apart > 20, "guard: the accuracies do differ, by more than 300 independent preferences each would explain"


def test_planted_bias_in_clusters_is_said() -> None:
    """A model that always prefers the longer response is found although its preferences are not independent."""
    edges = tuple(Preference(0, loser) for loser in range(1, 5))
    scored = [
        ScoredComparison(
            f"p{n}", "a", (9.0, *[4.0] * 4) if n % 2 else (4.0, *[9.0] * 4), (9, *[4] * 4) if n % 2 else (4, *[9] * 4), edges
        )
        for n in range(60)
    ]
    assert any("prefers long" in sentence for sentence in sentences(summarize(scored)))


def numbers(**changes: Any) -> dict[str, Any]:
    """A summary of which nothing stands out, with changes."""
    plain = {"preferences": 900, "accuracy": 0.8, "accuracy_low": 0.77, "accuracy_high": 0.83, "half_credit_accuracy": 0.8}
    return {**plain, "accuracy_by_length": None, "sources": {}, "warnings": [], **changes}


def lengths(count: int, low_longer: float, high_shorter: float) -> dict[str, Any]:
    longer = {"preferences": count, "accuracy": 0.9, "accuracy_low": low_longer, "accuracy_high": 0.99}
    shorter = {"preferences": 900, "accuracy": 0.4, "accuracy_low": 0.3, "accuracy_high": high_shorter}
    return numbers(accuracy_by_length={"winner_longer": longer, "winner_shorter": shorter})


def source(count: int, high: float) -> dict[str, Any]:
    weak = {"preferences": count, "accuracy": 0.6, "accuracy_high": high}
    return numbers(sources={"strong": {"preferences": 900, "accuracy": 0.9, "accuracy_high": 0.92}, "weak": weak})


def confidence(count: int, sure: float) -> dict[str, Any]:
    return {"bins": [{"preferences": count, "confidence": sure}]}


def epochs(shares: Sequence[float], end: float = 2.0) -> list[dict[str, float]]:
    return [{"train/epoch": end - n / 100, "train/accuracy": share} for n, share in enumerate(shares)]


def losses(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "eval/loss": value} for step, value in enumerate(values, start=1)]


TOP = 0.83 + OVERFIT
CASES: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...]]] = {
    "length beyond": ("length", (lengths(FEW, 0.61, 0.60),), (lengths(FEW, 0.60, 0.60),)),
    "length of few": ("length", (lengths(FEW, 0.61, 0.60),), (lengths(FEW - 1, 0.61, 0.60),)),
    "source beyond": ("source", (source(FEW, 0.76),), (source(FEW, 0.77),)),
    "source of few": ("source", (source(FEW, 0.76),), (source(FEW - 1, 0.76),)),
    "too sure": ("too sure", (numbers(), confidence(FEW, 0.831)), (numbers(), confidence(FEW, 0.829))),
    "not sure": ("not sure", (numbers(), confidence(FEW, 0.769)), (numbers(), confidence(FEW, 0.771))),
    "sure of few": ("too sure", (numbers(), confidence(FEW, 0.9)), (numbers(), confidence(FEW - 1, 0.9))),
    "wide": ("small", (numbers(accuracy_low=0.83 - WIDE - 0.001),), (numbers(accuracy_low=0.83 - WIDE + 0.001),)),
    "overfit": (
        "overfit",
        (numbers(), None, epochs([TOP + 0.01] * FEW_LINES)),
        (numbers(), None, epochs([TOP - 0.01] * FEW_LINES)),
    ),
    "overfit of few": (
        "overfit",
        (numbers(), None, epochs([1.0] * FEW_LINES)),
        (numbers(), None, epochs([1.0] * (FEW_LINES - 1))),
    ),
    "first epoch": ("overfit", (numbers(), None, epochs([1.0] * 9)), (numbers(), None, epochs([1.0] * 9, end=1.0))),
    "noisy lines": ("overfit", (numbers(), None, epochs([0.94, 0.96] * 4)), (numbers(), None, epochs([0.8, 1.0, 1.0, 1.0] * 2))),
    "turn": (
        "turn",
        (numbers(), None, losses(1, 0.5, 0.501 * (1 + ROSE))),
        (numbers(), None, losses(1, 0.5, 0.499 * (1 + ROSE))),
    ),
    "turn of two": ("turn", (numbers(), None, losses(1, 0.5, 0.9)), (numbers(), None, losses(0.5, 0.9))),
}


@pytest.mark.parametrize("case", CASES)
def test_thresholds_have_two_sides(case: str) -> None:
    """Each sentence is the only one just beyond its threshold, and is not said just inside, where nothing stands out."""
    kind, beyond, inside = CASES[case]
    (sentence,) = sentences(*beyond)
    assert KEYS[kind] in sentence
    (nothing,) = sentences(*inside)
    assert KEYS["nothing"] in nothing


def test_warned_evaluation_has_something_that_stands_out() -> None:
    """The page lists warnings below the sentences, which do not say the opposite."""
    assert sentences(numbers(warnings=["not better than length"])) == []
    assert len(sentences(numbers())) == 1, "guard"


def test_sentences_are_at_most_five() -> None:
    everything = lengths(FEW, 0.61, 0.60) | {"sources": source(FEW, 0.5)["sources"], "accuracy_low": 0.6}
    run = [*epochs([1.0] * FEW_LINES), *losses(1, 0.5, 0.9)]
    found = sentences(everything, confidence(FEW, 0.99), run)
    assert len(found) == MOST == 5
    assert not any(KEYS["small"] in sentence for sentence in found), "guard: a sixth one is left out"


def test_page_shows_them_as_text() -> None:
    """A source named like markup stays text."""
    scored = [*pairs(600, 0.9), *pairs(200, 0.5, source="<b>weak</b>")]
    html = page("x", summary=summarize(scored), diagnosis=diagnose(scored))
    assert "Weakest on &lt;b&gt;weak&lt;/b&gt;" in html
    assert "<b>weak</b>" not in html


def test_targets_alone_have_no_sentences() -> None:
    empty = {"preferences": 0, "accuracy": None}
    assert sentences(empty) == []
