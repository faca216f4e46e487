"""Single comparisons with their rewards, as text: samples of an evaluation, its hardest errors, and their history over a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.evaluation.scores_file import ScoredComparison

Row = Mapping[str, Any]


def sample_rows(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, Any]]:
    """Return up to `count` comparisons spread evenly over the data, the same ones each time; see `describe_edge`.

    Args:
        data: the comparisons, in the order of `scored`.
        scored: their rewards.
        tokenizer: decodes them.
        count: how many.
    """
    numbers = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)).tolist()
    rows = [(data[number], scored[number].rewards) for number in numbers]
    return [describe_edge(row, row.preferences[0], rewards, tokenizer) for row, rewards in rows]


def hardest_rows(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, Any]]:
    """Return the hardest errors as text, worst first; arguments as for `sample_rows`."""
    errors = hardest_errors(scored, count)
    return [describe_edge(data[number], edge, scored[number].rewards, tokenizer) for number, edge in errors]


def hardest_errors(scored: Sequence[ScoredComparison], count: int) -> list[tuple[int, Preference]]:
    """Return the up to `count` comparisons with the largest wrong margin, worst first.

    Returns:
        The number of each in `scored`, and the preference whose loser leads most. Ties are not errors here.
    """
    wrong = []
    for number, row in enumerate(scored):
        margins = [
            (row.rewards[edge.winner] - row.rewards[edge.loser], edge) for edge in row.preferences if edge.probability > 0.5
        ]
        margin, edge = min(margins, key=lambda pair: pair[0], default=(0.0, None))
        if edge is not None and margin < 0:
            wrong.append((margin, number, edge))
    wrong.sort(key=lambda error: error[:2])
    return [(number, edge) for _, number, edge in wrong[:count]]


def describe_edge(
    row: TokenizedComparison, edge: Preference, rewards: Sequence[float], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return a preference as text: `id`, `source`, `prompt`, `chosen`, `rejected` and the two `rewards`.

    Args:
        row: the comparison.
        edge: one of its preferences.
        rewards: of each response of the comparison.
        tokenizer: decodes it, without special tokens.
    """
    chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
    parts = {
        "prompt": chosen[: row.prompt_length],
        "chosen": chosen[row.prompt_length :],
        "rejected": rejected[row.prompt_length :],
    }
    return {
        "id": row.id,
        "source": row.source,
        **{name: tokenizer.decode(ids, skip_special_tokens=True) for name, ids in parts.items()},
        "rewards": [rewards[edge.winner], rewards[edge.loser]],
    }


def reward_drift(metrics: Iterable[Row]) -> list[dict[str, float]]:
    """Return the mean rewards of winners and losers at each evaluation, from the lines of `metrics.jsonl`.

    Only differences of rewards are trained: where the mean drifts, rewards of two checkpoints are not on one scale.

    Returns:
        `step`, `chosen` and `rejected`, by step; the last line of a step counts.
    """
    chosen, rejected = "eval/chosen_reward", "eval/rejected_reward"
    by_step = {row["step"]: row for row in metrics if chosen in row and rejected in row}
    return [{"step": step, "chosen": by_step[step][chosen], "rejected": by_step[step][rejected]} for step in sorted(by_step)]


def sample_histories(samples: Iterable[Row]) -> list[dict[str, Any]]:
    """Return each sample comparison once, with its rewards at every evaluation, from the lines of `samples.jsonl`.

    Returns:
        `id`, `source`, `prompt`, `chosen` and `rejected`, and `history`: `step` and `rewards` (chosen first), by step.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in samples:
        texts = {key: sample[key] for key in ("id", "source", "prompt", "chosen", "rejected")}
        row = rows.setdefault((sample["source"], sample["id"]), {**texts, "history": {}})
        row["history"][sample["step"]] = {"step": sample["step"], "rewards": list(sample["rewards"])}
    return [{**row, "history": [row["history"][step] for step in sorted(row["history"])]} for row in rows.values()]
