"""The comparisons on which a model is most surely wrong."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Preference
from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.evaluation.samples import describe_edge
from rmtrain.evaluation.scores import ScoredComparison


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
