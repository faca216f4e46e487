"""A row of a source to a comparison, as the source's format says."""

from rmtrain.data.comparison import Adapted, Comparison, Dropped
from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.ab import ab
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.pair import pair
from rmtrain.data.rows.ranked import candidate, ranked
from rmtrain.data.rows.tokens import tokenized
from rmtrain.recipe.schema import AbSource, PairSource, RankedSource, Source, TokenizedSource


def adapt(row: Row, row_id: str, source: Source) -> Adapted:
    """The comparison of a row, or why it is dropped; of a row that is one response to be grouped with others, a `Candidate`.

    Args:
        row: its columns.
        row_id: its title and number in the source, `tag:12`.
        source: which columns hold what.
    """
    try:
        match source:
            case PairSource():
                return Comparison(row_id, source.title, *pair(row, source))
            case AbSource():
                return Comparison(row_id, source.title, *ab(row, source))
            case RankedSource() if source.group_by is not None:
                return candidate(row, source, row_id)
            case RankedSource():
                return Comparison(row_id, source.title, *ranked(row, source, row_id))
            case TokenizedSource():
                return tokenized(row, source, row_id)
    except BadRow as problem:
        return Dropped(row_id, source.title, problem.reason, problem.detail)
