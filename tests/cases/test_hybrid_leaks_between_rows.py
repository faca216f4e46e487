"""A model with linear attention is never packed, so that a reward does not depend on its neighbours."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtrain import RewardScorer
from tests.forks import fork_server


def test_rewards_of_a_hybrid_ignore_neighbours(case: Callable[[str], Path]) -> None:
    folder = case("hybrid_leaks_between_rows")
    lines = [json.loads(line) for line in (folder / "in.jsonl").read_text().splitlines()]
    ended = fork_server().run("score", "m", "in.jsonl", "-o", "out.jsonl", cwd=folder)
    assert ended.code == 0, ended.stderr
    together = [json.loads(line)["reward"] for line in (folder / "out.jsonl").read_text().splitlines()]
    scorer = RewardScorer(str(folder / "m"), device="cpu")
    alone = [scorer([line["prompt"]], [line["response"]])[0] for line in lines]
    assert scorer.layout == "padded"
    spread = max(alone) - min(alone)
    assert together == pytest.approx(alone, abs=1e-4 * spread)
    assert spread > 0.01, "guard"
