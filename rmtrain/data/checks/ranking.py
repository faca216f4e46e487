"""The order that the preferences of a comparison give its responses."""

from rmtrain.data.comparison import TokenizedComparison


def ranking(row: TokenizedComparison) -> list[int]:
    """Numbers of the responses, best first: by the weight of the preferences they win less that of those they lose.

    A preference counts by how far its probability is from a tie. Responses that are even stay in the order of their numbers.
    """
    balance = _balance(row)
    return sorted(range(len(balance)), key=lambda number: -balance[number])


def ranks(row: TokenizedComparison) -> list[int]:
    """The rank of each response, 1 for the best; those that are even share the best of theirs: 1, 1, 3."""
    balance = _balance(row)
    return [1 + sum(other > own for other in balance) for own in balance]


def extremes(row: TokenizedComparison) -> tuple[int, int]:
    """The best and the worst response; among several that are even, two that a preference sets against each other where there are such."""
    balance = _balance(row)
    for edge in row.preferences:
        if balance[edge.winner] == max(balance) and balance[edge.loser] == min(balance):
            return edge.winner, edge.loser
    order = ranking(row)
    return order[0], order[-1]


def _balance(row: TokenizedComparison) -> list[float]:
    balance = [0.0] * len(row.sequences)
    for edge in row.preferences:
        worth = edge.weight * (2 * edge.probability - 1)
        balance[edge.winner] += worth
        balance[edge.loser] -= worth
    return balance
