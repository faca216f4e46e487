"""How rewards moved from one evaluation to the next, from the records that a run keeps."""

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def reward_drift(metrics: Iterable[Row]) -> list[dict[str, float]]:
    """Mean rewards of winners and losers at each evaluation, from the lines of `metrics.jsonl`; the last of a step counts.

    Only differences of rewards are trained: a mean that wanders off says that rewards of two checkpoints are not on one scale.

    Returns:
        `step`, `chosen` and `rejected`, by step.
    """
    chosen, rejected = "eval/chosen_reward", "eval/rejected_reward"
    by_step = {row["step"]: row for row in metrics if chosen in row and rejected in row}
    return [
        {"step": step, "chosen": row[chosen], "rejected": row[rejected]}
        for step, row in sorted(by_step.items(), key=lambda item: item[0])
    ]


def sample_histories(samples: Iterable[Row]) -> list[dict[str, Any]]:
    """Each sample comparison once, with its rewards at every evaluation, from the lines of `samples.jsonl`.

    Returns:
        `id`, `source`, `prompt`, `chosen` and `rejected`, and `history`: `step` and `rewards` (chosen first), by step.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in samples:
        texts = {key: sample[key] for key in ("id", "source", "prompt", "chosen", "rejected")}
        row = rows.setdefault((sample["source"], sample["id"]), {**texts, "history": {}})
        row["history"][sample["step"]] = {"step": sample["step"], "rewards": list(sample["rewards"])}
    return [{**row, "history": [row["history"][step] for step in sorted(row["history"])]} for row in rows.values()]
