"""Scoring plans: each row is scored exactly once, however many processes share the work, and both sides of a pair alike."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from accelerate import Accelerator

from rmtrain.batching.plan import Costs
from rmtrain.data.comparison import PAIR, Comparison
from rmtrain.errors import RecipeError
from rmtrain.evaluation.metrics import EvaluationResult, summarize
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.scoring import ScoringPlan, TokenizedRows, evaluate, score
from rmtrain.recipe.schema import OF_PREFERENCES, BradleyTerry, Gate
from tests.evaluation.test_metrics import random_pairs
from tests.exports import tiny_export
from tests.forks import ON_CPU, fork_server
from tests.helpers import pairs

SCRIPT = """
import json, sys
from accelerate import Accelerator
from tests.evaluation.test_scoring import score_all

accelerator = Accelerator(cpu=True)
cases = score_all(sys.argv[1], accelerator)
if accelerator.is_main_process:
    with open(sys.argv[2], "w") as file:
        json.dump({"processes": accelerator.num_processes, "cases": cases}, file)
accelerator.wait_for_everyone()
accelerator.state.destroy_process_group()
"""
SIZES, BUDGETS = (7, 8, 9), (60, 120, 4096)


def requests_of(rows: Sequence[dict[str, str]]) -> list[Comparison]:
    return [
        Comparison(
            f"row {number}",
            "pairs",
            message("user", row["prompt"]),
            tuple(message("assistant", row[side]) for side in ("chosen", "rejected")),
            PAIR,
        )
        for number, row in enumerate(rows)
    ]


def message(role: str, text: str) -> tuple[dict[str, str], ...]:
    return ({"role": role, "content": text},)


def plan_of(scorer: RewardScorer, rows: Sequence[dict[str, str]], budget: int) -> ScoringPlan:
    comparisons, _ = scorer.encoder.encode_for_scoring(requests_of(rows))
    data, layout = TokenizedRows(comparisons), scorer.choose_layout(comparisons)
    return ScoringPlan.of(data, layout, Costs.of(data, layout), budget, scorer.pad_token_id)


def score_all(model: str, accelerator: Accelerator) -> list[dict[str, Any]]:
    """Return ids, rewards and numbers for each number of pairs and each budget."""
    scorer = RewardScorer(model, device="cpu")
    cases = []
    for size in SIZES:
        for budget in BUDGETS:
            plan = plan_of(scorer, pairs(size), budget)
            scored = score(scorer.model, plan, accelerator)
            summary = summarize(scored)
            cases.append(
                {
                    "micro_batches": len(plan.micro_batches),
                    "ids": [row.id for row in scored],
                    "rewards": [row.rewards for row in scored],
                    "numbers": {key: summary[key] for key in ("n", "accuracy", "ties", "wins", "losses", "loss")},
                }
            )
    return cases


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_export(tmp_path_factory.mktemp("scoring") / "model"))


def test_trap_05_processes_do_not_change_numbers(model: str, tmp_path: Path) -> None:
    """Two processes score each row once, and get the rewards of one process to the bit."""
    world = 2
    alone = score_all(model, Accelerator(cpu=True))
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = fork_server().run(model, tmp_path / "out.json", program=str(tmp_path / "script.py"), processes=world, **ON_CPU)
    assert ended.code == 0, ended.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["processes"] == world, "guard: several processes shared the work"
    assert any(case["micro_batches"] % world for case in alone), "guard: some rounds are not full, and repeat a micro-batch"
    for case, together in zip(alone, document["cases"], strict=True):
        assert together["ids"] == case["ids"] == [f"row {n}" for n in range(case["numbers"]["n"])]
        assert [tuple(rewards) for rewards in together["rewards"]] == case["rewards"], "the same micro-batches, the same bits"
        assert together["numbers"] == case["numbers"]
    assert {case["numbers"]["accuracy"] for case in alone} - {0.0, 1.0}, "guard: neither all right nor all wrong"


def test_trap_20_swapped_pairs_swap_their_rewards(model: str) -> None:
    """Scoring pairs with their sides swapped swaps rewards, lengths, wins and losses; for exact ties see test_metrics."""
    scorer = RewardScorer(model, device="cpu")
    generator = np.random.default_rng(5)
    rows = [
        {"prompt": f"p {n}", "chosen": f"{a} is so", "rejected": f"{b} or not"}
        for n, (a, b) in enumerate(generator.random((33, 2)))
    ]
    turned = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    straight, swapped = (
        evaluate(scorer.model, plan_of(scorer, sides, 1024), Accelerator(cpu=True), BradleyTerry()) for sides in (rows, turned)
    )
    for one, other in zip(straight.scored, swapped.scored, strict=True):
        assert one.rewards == pytest.approx(other.rewards[::-1], abs=1e-5)
        assert one.lengths == other.lengths[::-1]
        assert abs(one.rewards[0] - one.rewards[1]) > 1e-3, "guard: no near tie, which rounding could turn"
    assert (swapped.summary["wins"], swapped.summary["losses"]) == (straight.summary["losses"], straight.summary["wins"])
    assert min(straight.summary["wins"], straight.summary["losses"]) > 0, "guard: both outcomes occur"


def test_plan_has_each_row_once_within_budget(model: str) -> None:
    scorer = RewardScorer(model, device="cpu")
    for budget in BUDGETS:
        plan = plan_of(scorer, pairs(9), budget)
        assert sorted(index for indices in plan.micro_batches for index in indices.tolist()) == list(range(9))
        assert max(plan.costs.of_micro_batch(indices) for indices in plan.micro_batches) <= budget
    with pytest.raises(RecipeError, match="row 3"):
        plan_of(scorer, [*pairs(3), {"prompt": "p", "chosen": "word " * 40, "rejected": "x"}], 60)


def test_metrics_name_sources_where_several() -> None:
    """The log line of an evaluation has the accuracy of each source where there are several."""
    rows = random_pairs(30)
    result = EvaluationResult(rows, summarize(rows), seconds=2.0, micro_batches=5)
    metrics = result.metrics()
    assert metrics["eval/loss"] == result.summary["loss"]
    of_targets = set(get_args(Gate)) - OF_PREFERENCES - {"loss"}
    assert {f"eval/{gate}" for gate in get_args(Gate)} - {f"eval/{gate}" for gate in of_targets} <= set(metrics), (
        "what decides the best checkpoint can be watched"
    )
    assert len(of_targets) == 7, "guard"
    assert not {"eval/n", "eval/wins"} & set(metrics)
    assert {name for name in metrics if name.endswith("/accuracy")} == {"eval/accuracy", "eval/a/accuracy", "eval/b/accuracy"}
    assert (metrics["eval/samples_per_second"], metrics["eval/steps_per_second"]) == (15.0, 2.5)
    alone = [row for row in rows if row.source == "a"]
    assert "eval/a/accuracy" not in EvaluationResult(alone, summarize(alone), 1.0, 1).metrics()
