"""A few comparisons with their rewards, as text: what the model makes of them at this point of the training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.evaluation.scores_file import ScoredComparison


def sample_rows(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, Any]]:
    """`count` comparisons spread evenly over the data, the same ones each time.

    Returns:
        For each `id`, `source`, `prompt`, `chosen` and `rejected` as text (the sides of its first preference), and their `rewards`.
    """
    numbers = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return [_sample(data, scored, tokenizer, int(number)) for number in numbers]


def _sample(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: PreTrainedTokenizerBase, number: int
) -> dict[str, Any]:
    row = data[number]
    return describe_edge(row, row.preferences[0], scored[number].rewards, tokenizer)


def describe_edge(
    row: TokenizedComparison, edge: Preference, rewards: Sequence[float], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """A preference of a comparison as `sample_rows` has it.

    Args:
        rewards: of each of the comparison's responses.
    """
    chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
    prompt, *responses = (
        tokenizer.decode(ids, skip_special_tokens=True)
        for ids in (chosen[: row.prompt_length], chosen[row.prompt_length :], rejected[row.prompt_length :])
    )
    return {
        "id": row.id,
        "source": row.source,
        "prompt": prompt,
        "chosen": responses[0],
        "rejected": responses[1],
        "rewards": [rewards[edge.winner], rewards[edge.loser]],
    }


def hardest_errors(scored: Sequence[ScoredComparison], count: int) -> list[tuple[int, Preference]]:
    """The `count` comparisons with the largest wrong margin, the worst first, each with that preference.

    Returns:
        The number of each in `scored`, and the preference whose loser has the greatest lead. Ties are no errors here.
    """
    worst = [(*_worst(row), number) for number, row in enumerate(scored)]
    wrong = sorted((lead, number, edge) for lead, edge, number in worst if edge is not None and lead < 0)
    return [(number, edge) for _, number, edge in wrong[:count]]


def _worst(row: ScoredComparison) -> tuple[float, Preference | None]:
    margins = [(row.rewards[edge.winner] - row.rewards[edge.loser], edge) for edge in row.preferences if edge.probability > 0.5]
    return min(margins, key=lambda pair: pair[0], default=(0.0, None))


def hardest_rows(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, Any]]:
    """The hardest errors as text: rows of the same keys as `sample_rows` gives.

    Args:
        data: the comparisons, in the order of `scored`.
    """
    return [
        describe_edge(data[number], edge, scored[number].rewards, tokenizer) for number, edge in hardest_errors(scored, count)
    ]


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
