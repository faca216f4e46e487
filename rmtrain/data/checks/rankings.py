"""Whether comparisons rank their responses."""

from collections import Counter
from collections.abc import Iterable

from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import DataError


def check_rankings(rows: Iterable[TokenizedComparison]) -> None:
    """Refuse comparisons whose edges do not order their responses, as `plackett_luce` needs it.

    Raises:
        DataError: naming the first such row.
    """
    for row in rows:
        won = Counter(edge.winner for edge in row.preferences)
        won.subtract(edge.loser for edge in row.preferences)
        if len({won[response] for response in range(len(row.sequences))}) < len(row.sequences):
            raise DataError(
                f"{row.id}: its {len(row.preferences)} preferences do not order its {len(row.sequences)} responses; "
                "objective.type: plackett_luce needs a ranking, take bradley_terry"
            )
