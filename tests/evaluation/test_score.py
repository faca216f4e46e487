"""Trap 5: every row is scored exactly once, however many processes share the work, and the numbers come from all rows at once."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rmtrain.data.comparison import PAIR, Comparison
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.score import Rows, score, scoring_micro_batches
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.scores_file import ScoredComparison
from tests.exports import tiny_export
from tests.helpers import pairs
from tests.runs import ROOT, environment_of_process, torchrun

SCRIPT = """
import json, sys
from accelerate import Accelerator
from tests.evaluation.test_score import score_all

accelerator = Accelerator(cpu=True)
found = score_all(sys.argv[1], accelerator)
if accelerator.is_main_process:
    with open(sys.argv[2], "w") as file:
        json.dump({"processes": accelerator.num_processes, "found": found}, file)
accelerator.wait_for_everyone()
accelerator.state.destroy_process_group()
"""
SIZES, BUDGETS = (7, 8, 9), (60, 120, 4096)


def score_all(model: str, accelerator: Accelerator) -> list[dict[str, Any]]:
    """For each number of pairs and each budget the ids, rewards and numbers."""
    scorer = RewardScorer(model, device="cpu")
    found = []
    for size in SIZES:
        rows = [
            Comparison(
                str(n),
                "",
                message("user", row["prompt"]),
                tuple(message("assistant", row[side]) for side in ("chosen", "rejected")),
                (),
            )
            for n, row in enumerate(pairs(size))
        ]
        data = Rows(scorer.encode(rows)[0])
        layout = scorer.choose_layout([data[n] for n in range(size)])
        for budget in BUDGETS:
            micro_batches = scoring_micro_batches(data, layout, budget)
            scored = score(scorer.model, data, micro_batches, layout, accelerator, scorer.pad_token_id)
            found.append(
                {
                    "micro_batches": len(micro_batches),
                    "ids": [row.id for row in scored],
                    "rewards": [row.rewards for row in scored],
                    "numbers": numbers(scored),
                }
            )
    return found


def message(role: str, text: str) -> tuple[dict[str, str], ...]:
    return ({"role": role, "content": text},)


def numbers(scored: list[ScoredComparison]) -> dict[str, Any]:
    summary = summarize([replace(row, source="pairs", preferences=PAIR) for row in scored])
    return {key: summary[key] for key in ("n", "accuracy", "ties", "wins", "losses", "loss")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_export(tmp_path_factory.mktemp("ranks") / "model"))


@pytest.mark.parametrize("world", [2, 3])
def test_trap_5_numbers_do_not_depend_on_the_number_of_processes(model: str, tmp_path: Path, world: int) -> None:
    alone = score_all(model, Accelerator(cpu=True))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [*torchrun(world), str(tmp_path / "script.py"), model, str(tmp_path / "out.json")]
    environment = environment_of_process(ACCELERATE_USE_CPU="true")
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["processes"] == world, "guard: several processes shared the work"
    assert any(case["micro_batches"] % world for case in alone), "guard: some rounds are not full, and repeat a micro-batch"
    for case, together in zip(alone, document["found"], strict=True):
        assert together["ids"] == case["ids"] == [str(n) for n in range(case["numbers"]["n"])]
        assert [tuple(rewards) for rewards in together["rewards"]] == case["rewards"], "the same micro-batches, the same bits"
        assert together["numbers"] == case["numbers"]
    assert {case["numbers"]["accuracy"] for case in alone} - {0.0, 1.0}, "guard: neither all right nor all wrong"
