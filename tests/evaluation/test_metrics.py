"""Scores to numbers: hand-made cases, with scipy, scikit-learn and the training objective as oracles."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, spearmanr
from sklearn.calibration import calibration_curve

from rmtrain.batching.layout import lay_out
from rmtrain.data.comparison import PAIR, Preference, TokenizedComparison
from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.gates import check_gates
from rmtrain.evaluation.metrics import scored_edges, summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.intervals import wilson_interval
from rmtrain.objective import compute_objective
from rmtrain.recipe.schema import BradleyTerry, Objectives, PlackettLuce


def pair(
    chosen: float, rejected: float, lengths: tuple[int, ...] = (10, 10), source: str = "a", name: str = "row"
) -> ScoredComparison:
    return ScoredComparison(name, source, (chosen, rejected), lengths, PAIR)


def random_pairs(count: int, seed: int = 0, shift: float = 0.5) -> list[ScoredComparison]:
    """Make pairs with rewards on a coarse grid, so that some tie, and lengths of which some are equal."""
    generator = np.random.default_rng(seed)
    rewards = np.round(generator.normal(loc=(shift, 0), size=(count, 2)), 1).astype(np.float32)
    lengths = generator.integers(5, 25, size=(count, 2))
    return [
        pair(*map(float, r), lengths=tuple(map(int, n)), source="ab"[k % 3 == 0], name=f"row:{k}")
        for k, (r, n) in enumerate(zip(rewards, lengths, strict=True))
    ]


def random_lists(count: int, seed: int = 0) -> list[ScoredComparison]:
    """Make comparisons of two to six responses, with margins, target probabilities and weights on their edges."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        size = int(generator.integers(2, 7))
        rewards = tuple(generator.normal(scale=2, size=size).astype(np.float32).tolist())
        edges = tuple(
            Preference(
                i,
                j,
                float(np.float32(generator.random())),
                float(generator.choice([0.5, 0.75, 1.0])),
                float(generator.integers(1, 4)),
            )
            for i in range(size)
            for j in range(i + 1, size)
        )
        rows.append(ScoredComparison(f"list:{number}", "lists", rewards, tuple(map(int, generator.integers(5, 50, size))), edges))
    return rows


def random_rankings(count: int, seed: int = 0) -> list[ScoredComparison]:
    """Make comparisons of two to six responses, each ranked in the order of its numbers."""
    rows = []
    for row in random_lists(count, seed):
        size = len(row.rewards)
        edges = tuple(Preference(i, j) for i in range(size) for j in range(i + 1, size))
        rows.append(ScoredComparison(row.id, row.source, row.rewards, row.lengths, edges))
    return rows


TIE = Preference(0, 1, probability=0.5)


def swapped(row: ScoredComparison) -> ScoredComparison:
    return ScoredComparison(row.id, row.source, row.rewards[::-1], row.lengths[::-1], row.preferences)


def test_case_counted_by_hand() -> None:
    rows = [
        pair(2.0, 1.0, (30, 20)),  # right, winner longer
        pair(0.0, 3.0, (30, 20)),  # wrong, winner longer
        pair(1.0, 0.5, (10, 20)),  # right, winner shorter
        pair(4.0, 4.0, (20, 20), source="b"),  # tie, equal lengths
    ]
    summary = summarize(rows)
    assert (summary["n"], summary["preferences"], summary["soft_ties"]) == (4, 4, 0)
    assert (summary["wins"], summary["losses"], summary["ties"]) == (2, 1, 1)
    assert summary["accuracy"] == 0.5
    assert summary["half_credit_accuracy"] == 0.625
    assert summary["margin"] == pytest.approx((1 - 3 + 0.5 + 0) / 4)
    assert summary["longer_wins"] == (1 + 1 + 0 + 0.5) / 4
    by_length = summary["accuracy_by_length"]
    assert {part: (numbers["preferences"], numbers["accuracy"]) for part, numbers in by_length.items()} == {
        "winner_longer": (2, 0.5),
        "winner_shorter": (1, 1.0),
        "equal": (1, 0.0),
    }
    assert all(
        0 <= numbers["accuracy_low"] <= numbers["accuracy"] <= numbers["accuracy_high"] <= 1 for numbers in by_length.values()
    )
    assert summary["rewards"]["winners"] == {"mean": 1.75, "std": pytest.approx(np.std([2, 0, 1, 4])), "min": 0.0, "max": 4.0}
    assert summary["rewards"]["losers"] == {"mean": 2.125, "std": pytest.approx(np.std([1, 3, 0.5, 4])), "min": 0.5, "max": 4.0}
    by_hand = [math.log1p(math.exp(-margin)) for margin in (1, -3, 0.5, 0)]
    assert summary["loss"] == pytest.approx(sum(by_hand) / 4, rel=1e-12)
    assert {source: numbers["n"] for source, numbers in summary["sources"].items()} == {"a": 3, "b": 1}
    assert summary["sources"]["b"]["half_credit_accuracy"] == 0.5


def test_summary_is_strict_json_with_contract_keys() -> None:
    for rows in (random_pairs(30), random_lists(30), [pair(1.0, 1.0, lengths=())]):
        summary = json.loads(json.dumps(summarize(rows), allow_nan=False))
        required = {"accuracy", "accuracy_low", "accuracy_high", "n", "ties", "loss", "longer_wins", "sources"}
        assert required <= set(summary)
        core = set(summary) - {"sources", "warnings", "rules"}
        assert all(set(numbers) == core for numbers in summary["sources"].values())


@pytest.mark.parametrize("right", [0, 1, 7, 50, 99, 100])
def test_interval_is_scipys_wilson_interval(right: int) -> None:
    expected = binomtest(right, 100).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(right / 100, 100) == pytest.approx((expected.low, expected.high), abs=1e-12)
    rows = [pair(1.0, 0.0)] * right + [pair(0.0, 1.0)] * (100 - right)  # rows without a prompt are independent
    summary = summarize(rows)
    assert (summary["accuracy_low"], summary["accuracy_high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_counts_comparisons_that_decide_once() -> None:
    """Of a comparison whose edges are all right or all wrong, the edges together are one trial."""
    edges = tuple(Preference(i, j) for i in range(4) for j in range(i + 1, 4))
    ordered = (4.0, 3.0, 2.0, 1.0)
    ranked = [ScoredComparison(str(k), "a", ordered if k % 4 else ordered[::-1], (1, 2, 3, 4), edges) for k in range(100)]
    summary = summarize(ranked)
    assert (summary["n"], summary["preferences"], summary["losses"]) == (100, 600, 150)
    assert (summary["accuracy_low"], summary["accuracy_high"]) == pytest.approx(wilson_interval(0.75, 100), abs=0.002)


def test_rows_of_a_prompt_widen_the_interval() -> None:
    """The same numbers with and without known prompts: five rows of a prompt that agree are one trial, in all sources together."""
    rows = [pair(1.0, 0.0 if k // 5 % 4 else 2.0, source="ab"[k % 2], name=str(k)) for k in range(500)]
    named = [replace(row, prompt=str(k // 5)) for k, row in enumerate(rows)]
    alone, together = summarize(rows), summarize(named)
    assert alone["accuracy"] == together["accuracy"] == 0.75
    assert (alone["accuracy_low"], alone["accuracy_high"]) == pytest.approx(wilson_interval(0.75, 500), abs=0.001)
    assert (together["accuracy_low"], together["accuracy_high"]) == pytest.approx(wilson_interval(0.75, 100), abs=0.002)
    for source in "ab":
        assert together["sources"][source]["accuracy_low"] < alone["sources"][source]["accuracy_low"]


@pytest.mark.parametrize(
    "objective", [BradleyTerry(), BradleyTerry(center_rewards=0.1, label_smoothing=0.2)], ids=["plain", "all"]
)
@pytest.mark.parametrize("rows", [random_pairs(1200), random_lists(600)], ids=["pairs", "lists"])
def test_loss_is_the_training_objective(rows: list[ScoredComparison], objective: BradleyTerry) -> None:
    """The loss is that of a training step over the same rows, and plain Bradley-Terry where no objective is given."""
    assert_is_training_loss(rows, objective)
    assert (summarize(rows)["loss"] == summarize(rows, objective)["loss"]) == (objective == BradleyTerry())
    assert any(len(row.rewards) > 2 for row in rows) or len(rows[0].preferences) == 1, "guard: lists have many edges"


@pytest.mark.parametrize("center", [None, 0.1])
def test_plackett_luce_loss_is_the_training_objective(center: float | None) -> None:
    rows = random_rankings(600)
    objective = PlackettLuce(type="plackett_luce", center_rewards=center)
    assert_is_training_loss(rows, objective)
    assert summarize(rows, objective)["loss"] != pytest.approx(summarize(rows)["loss"], rel=0.1), "guard: it is another loss"


def assert_is_training_loss(rows: list[ScoredComparison], objective: Objectives) -> None:
    tokenized = [
        TokenizedComparison(row.id, row.source, tuple([1, 2] for _ in row.rewards), 1, 1, row.preferences) for row in rows
    ]
    batch = lay_out(tokenized, pad_token_id=0)
    rewards_N = torch.tensor([reward for row in rows for reward in row.rewards])
    result = compute_objective(objective, rewards_N, batch)
    assert summarize(rows, objective)["loss"] == pytest.approx(float(result.loss / result.comparisons), abs=1e-5)
    exact = replace(batch, **{name: getattr(batch, name).double() for name in ("margin_E", "probability_E", "weight_E")})
    loss = compute_objective(objective, rewards_N.double(), exact).loss
    assert summarize(rows, objective)["loss"] == pytest.approx(float(loss / len(rows)), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(
    ("objective", "count", "margin", "expected"),
    [
        (BradleyTerry(center_rewards=0.1), 2, 0.0, math.log(2)),
        (BradleyTerry(), 2, 1.0, math.log1p(math.e)),
        (PlackettLuce(type="plackett_luce"), 3, 0.0, math.log(6)),
    ],
)
def test_chance_loss_is_of_equal_rewards(objective: Objectives, count: int, margin: float, expected: float) -> None:
    edges = tuple(Preference(i, j, margin) for i in range(count) for j in range(i + 1, count))
    rows = [ScoredComparison(str(k), "a", tuple(range(count, 0, -1)), (), edges) for k in range(5)]
    summary = summarize(rows, objective)
    assert summary["chance_loss"] == pytest.approx(expected, rel=1e-12)
    assert summary["loss"] != pytest.approx(expected, rel=0.1), "guard: the rewards differ"


def test_plackett_luce_needs_rankings() -> None:
    """Where a comparison is not ranked there is no likelihood of its ranking, hence no loss; all other numbers stay."""
    rows = [*random_rankings(5), ScoredComparison("soft", "other", (1.0, 0.0, 2.0), (), (Preference(0, 1), Preference(0, 2)))]
    ranked, plain = summarize(rows, PlackettLuce(type="plackett_luce")), summarize(rows)
    assert ranked["loss"] is ranked["sources"]["other"]["loss"] is None
    assert ranked["sources"]["lists"]["loss"] > 0
    assert ranked["accuracy"] == plain["accuracy"]
    assert len(ranked["warnings"]) == len(plain["warnings"]) + 1


def test_extreme_margin_does_not_overflow() -> None:
    summary = summarize([pair(1e4, -1e4), pair(-1e4, 1e4)])
    assert summary["loss"] == pytest.approx(1e4)
    assert summary["calibration_error"] == pytest.approx(0.5)


def test_soft_ties_count_only_in_the_loss() -> None:
    soft = ScoredComparison("soft", "a", (9.0, -9.0), (1, 100), (Preference(0, 1, probability=0.5),))
    hard = random_pairs(50)
    with_soft, without = summarize([*hard, soft]), summarize(hard)
    assert with_soft["soft_ties"] == 1
    assert with_soft["loss"] != without["loss"]
    unchanged = ("wins", "losses", "ties", "accuracy", "accuracy_low", "longer_wins", "margin", "rewards", "calibration_error")
    assert {key: with_soft[key] for key in unchanged} == {key: without[key] for key in unchanged}
    alone = summarize([soft])
    assert alone["accuracy"] is None
    assert alone["loss"] == pytest.approx((math.log1p(math.exp(-18)) + math.log1p(math.exp(18))) / 2)
    assert len(alone["warnings"]) == 1


def test_trap_06_identical_pairs_are_all_ties() -> None:
    summary = summarize([pair(0.3, 0.3)] * 40)
    assert (summary["ties"], summary["accuracy"], summary["half_credit_accuracy"]) == (40, 0.0, 0.5)
    assert "40 of 40" in summary["warnings"][0]


def test_trap_06_ties_warn_above_one_percent() -> None:
    """Rewards that differ by one float32 step are not a tie."""
    step = float(np.nextafter(np.float32(8), np.float32(9)))
    assert summarize([pair(step, 8.0)] * 100)["ties"] == 0
    tie_warnings = [
        [
            warning
            for warning in summarize([pair(1.0, 0.0, (1, 2))] * (100 - ties) + [pair(1.0, 1.0)] * ties)["warnings"]
            if "ties" in warning
        ]
        for ties in (1, 2)
    ]
    assert [len(warnings) for warnings in tie_warnings] == [0, 1]


def test_trap_15_length_model_is_flagged() -> None:
    """A model that learned nothing but length is flagged, also one that prefers short responses."""
    generator = np.random.default_rng(0)
    lengths = [tuple(map(int, generator.permutation([50, 20]))) for _ in range(200)]
    labelled_by_length = [pair(float(max(n)), float(min(n)), (max(n), min(n))) for n in lengths]
    summary = summarize(labelled_by_length)
    assert summary["longer_wins"] == 1.0
    assert summary["spearman_length"] == pytest.approx(1.0)
    assert summary["spearman_length_within"] == pytest.approx(1.0)
    (warning,) = summary["warnings"]
    assert all(part in warning for part in ("length", "1.0000 [0.9812, 1.0000]", "longer"))
    shorter = summarize([pair(1.0, 0.0, (5, 9))] * 50)
    assert "shorter" in shorter["warnings"][0]
    assert "1.0000" in shorter["warnings"][0]
    balanced = summarize([pair(1.0, 0.0, n) for n in lengths])
    assert 0.4 < balanced["longer_wins"] < 0.6
    assert balanced["warnings"] == []


def test_no_length_numbers_without_lengths() -> None:
    summary = summarize([pair(1.0, 0.0, lengths=()), pair(1.0, 0.0)])
    keys = ("longer_wins", "accuracy_by_length", "spearman_length", "spearman_length_within")
    assert [summary[key] for key in keys] == [None] * 4
    assert summary["accuracy"] == 1.0


@pytest.mark.parametrize("rows", [random_pairs(300), random_lists(300)], ids=["pairs", "lists"])
def test_length_correlations_are_scipys(rows: list[ScoredComparison]) -> None:
    summary = summarize(rows)
    rewards = [reward for row in rows for reward in row.rewards]
    lengths = [length for row in rows for length in row.lengths]
    assert summary["spearman_length"] == pytest.approx(spearmanr(rewards, lengths).statistic, abs=1e-12)
    defined = [row for row in rows if len(set(row.rewards)) > 1 and len(set(row.lengths)) > 1]
    within = [spearmanr(row.rewards, row.lengths).statistic for row in defined]
    assert summary["spearman_length_within"] == pytest.approx(np.mean(within), abs=1e-12)
    if rows[0].id == "row:0":
        assert 0 < len(defined) < len(rows), "guard: some comparison has equal rewards or lengths"


def test_calibration_error_is_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    rows = [pair(*map(float, rewards)) for rewards in generator.normal(loc=(1, 0), size=(500, 2)).astype(np.float32)]
    margins = np.array([row.rewards[0] - row.rewards[1] for row in rows])
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    stretched = 2 * confidence - 1  # the curve bins [0, 1]; ours are the same bins over [0.5, 1]
    observed, predicted = calibration_curve(margins > 0, stretched, n_bins=10)
    counts = np.histogram(stretched, bins=np.linspace(0, 1, 11))[0]
    expected = np.sum(np.abs(observed - (predicted + 1) / 2) * counts[counts > 0]) / len(rows)
    assert summarize(rows)["calibration_error"] == pytest.approx(expected, abs=1e-12)
    assert np.all(counts > 0), "guard: every bin is used"


def test_trap_19_21_non_finite_rewards_are_refused() -> None:
    """The error names up to ten of the rows."""
    rows = random_pairs(50)
    broken = [*rows, pair(math.nan, 0.0, name="bad:1"), pair(1.0, math.inf, name="bad:2")]
    with pytest.raises(NumericError, match=r"^2 of 52 .* bad:1, bad:2; ") as caught:
        summarize(broken)
    assert caught.value.exit_code == 5
    many = [pair(math.nan, 0.0, name=f"bad:{k}") for k in range(500)]
    with pytest.raises(NumericError, match=r"bad:9, \.\.\.;"):
        summarize(many)


def test_trap_20_swapped_sides_swap_wins_and_losses() -> None:
    rows = random_pairs(400)
    straight, turned = summarize(rows), summarize([swapped(row) for row in rows])
    assert (turned["wins"], turned["losses"], turned["ties"]) == (straight["losses"], straight["wins"], straight["ties"])
    assert turned["accuracy"] == pytest.approx(1 - straight["accuracy"] - straight["ties"] / 400, abs=1e-15)
    assert turned["half_credit_accuracy"] == pytest.approx(1 - straight["half_credit_accuracy"], abs=1e-15)
    assert turned["longer_wins"] == pytest.approx(1 - straight["longer_wins"], abs=1e-15)
    assert turned["margin"] == pytest.approx(-straight["margin"], abs=1e-12)
    assert turned["rewards"]["winners"] == straight["rewards"]["losers"]
    assert min(straight["wins"], straight["losses"], straight["ties"]) > 0, "guard: all three outcomes occur"


def test_row_order_changes_nothing() -> None:
    rows = random_lists(100)
    shuffled = [rows[k] for k in np.random.default_rng(0).permutation(len(rows))]

    def flat(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in flat(item)]
        return [] if value is None else [value]

    first, second = (summarize(order)["sources"]["lists"] for order in (rows, shuffled))
    assert flat(first) == pytest.approx(flat(second), rel=1e-12)


def test_sources_add_up_to_the_whole() -> None:
    summary = summarize(random_pairs(100))
    sources = summary["sources"].values()
    assert len(sources) == 2
    for key in ("n", "preferences", "wins", "losses", "ties"):
        assert sum(numbers[key] for numbers in sources) == summary[key]
    assert sum(numbers["loss"] * numbers["n"] for numbers in sources) / 100 == pytest.approx(summary["loss"])


def test_empty_scores_are_refused() -> None:
    with pytest.raises(DataError):
        summarize([])


def test_only_decided_edges_are_collected() -> None:
    rows = [
        ScoredComparison("a", "s", (1.0, 2.0), (3, 4), (TIE,)),
        ScoredComparison("b", "s", (1.0, 3.0, 1.0), (5, 6, 7), (Preference(2, 1), Preference(0, 2))),
    ]
    edges = scored_edges(rows)
    assert len(edges) == 2
    assert (edges.comparison_E.tolist(), edges.prompt_E.tolist(), edges.source_E.tolist()) == ([1, 1], [1, 1], [0, 0])
    assert edges.margin_E.tolist() == [-2.0, 0.0]
    assert edges.credit_E.tolist() == [0.0, 0.5]
    assert edges.winner_length_E is not None
    assert edges.loser_length_E is not None
    assert (edges.winner_length_E - edges.loser_length_E).tolist() == [1, -2]


def test_lengths_are_known_for_all_or_none() -> None:
    rows = [
        ScoredComparison("a", "s", (1.0, 2.0), (3, 4), (Preference(0, 1),)),
        ScoredComparison("b", "s", (1.0, 2.0), (), (TIE,)),
    ]
    assert scored_edges(rows).winner_length_E is None
    assert len(scored_edges(rows[1:])) == 0


def test_gates_compare_upwards_but_losses_downwards() -> None:
    """A value without anything to compute it from misses its gate."""
    values = {"accuracy": 0.7, "loss": 0.5, "half_credit_accuracy": None}
    for required, passed in (({"accuracy": 0.7, "loss": 0.5}, True), ({"accuracy": 0.71, "loss": 0.49}, False)):
        results = check_gates(values, required)
        assert {name: gate["passed"] for name, gate in results.items()} == dict.fromkeys(required, passed)
        assert all(gate["required"] == required[name] and gate["value"] == values[name] for name, gate in results.items())
    assert not check_gates(values, {"half_credit_accuracy": 0.0})["half_credit_accuracy"]["passed"]
