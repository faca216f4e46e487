"""A sentence is said where a difference is beyond its interval, and names what to try; nothing is said of noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.page import page
from rmtrain.report.words import MOST, sentences

KEYS = {
    "length": "balance: longer",
    "memorized": "training.epochs, a lower",
    "turn": "evaluation.early_stopping",
    "source": "rmtrain inspect --source",
    "too sure": "objective.label_smoothing",
    "not sure": "longer training",
    "small": "more rows",
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
    assert said([*pairs(15, 0.9), *pairs(15, 0.4, longer=False)]) - {"too sure", "not sure"} == {"small"}


def test_weak_source_is_named() -> None:
    scored = [*pairs(600, 0.9), *pairs(200, 0.6, source="weak")]
    assert "source" in said(scored)
    assert any(sentence.startswith("Weakest on weak:") for sentence in sentences(summarize(scored)))
    assert "source" not in said([*pairs(600, 0.9), *pairs(200, 0.89, source="b")])


@pytest.mark.parametrize(("margin", "kind"), [(6.0, "too sure"), (0.1, "not sure"), (1.386, None)])
def test_confidence_is_compared_with_accuracy(margin: float, kind: str | None) -> None:
    """A margin of ln 4 stands for 80 %, which is the accuracy."""
    assert said(pairs(500, 0.8, margin=margin)) & {"too sure", "not sure"} == ({kind} if kind else set())


def test_training_is_compared_with_evaluation() -> None:
    """Rows learned by heart, and a loss of evaluation that rose, are said for a run and not without its records."""
    scored = pairs(500, 0.7, margin=0.85)
    steps = [{"step": n, "train/accuracy": 0.5 + n / 120} for n in range(1, 60)]
    losses = [{"step": n, "eval/loss": loss} for n, loss in ((20, 0.6), (40, 0.5), (60, 0.55))]
    assert said(scored, [*steps, *losses]) >= {"memorized", "turn"}
    falling = [{"step": n, "eval/loss": 1 / n} for n in (20, 40, 60)]
    learning = [{"step": n, "train/accuracy": 0.7} for n in range(1, 60)]
    assert not said(scored, [*learning, *falling]) & {"memorized", "turn"}
    assert not said(scored) & {"memorized", "turn"}


def test_page_shows_them_as_text() -> None:
    """A source named like markup stays text."""
    scored = [*pairs(600, 0.9), *pairs(200, 0.5, source="<b>weak</b>")]
    html = page("x", summary=summarize(scored), diagnosis=diagnose(scored))
    assert "Weakest on &lt;b&gt;weak&lt;/b&gt;" in html
    assert "<b>weak</b>" not in html


def test_targets_alone_have_no_sentences() -> None:
    empty = {"preferences": 0, "accuracy": None}
    assert sentences(empty) == []
