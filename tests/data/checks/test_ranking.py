"""What preferences make of the order of their responses."""

import pytest

from rmtrain.data.comparison import PAIR, Preference, extremes, ranking, ranks
from tests.comparisons import tokenized

SEQUENCES = [[1, 2, 9], [1, 3, 9], [1, 4, 9], [1, 5, 9]]


def edges(*pairs: tuple[int, int]) -> tuple[Preference, ...]:
    return tuple(Preference(winner, loser) for winner, loser in pairs)


@pytest.mark.parametrize(
    ("preferences", "order", "ends"),
    [
        (PAIR, [0, 1], (0, 1)),
        (edges((1, 0)), [1, 0], (1, 0)),
        (edges((2, 0), (2, 1), (2, 3), (0, 1), (0, 3), (3, 1)), [2, 0, 3, 1], (2, 1)),
        (edges((0, 1), (2, 3)), [0, 2, 1, 3], (0, 1)),
        (edges((0, 1), (1, 0)), [0, 1], (0, 1)),
        ((Preference(0, 1, probability=0.5), Preference(2, 0, weight=2.0), Preference(0, 2)), [2, 1, 0], (2, 0)),
    ],
)
def test_responses_are_ranked_by_what_they_win_less_what_they_lose(
    preferences: tuple[Preference, ...], order: list[int], ends: tuple[int, int]
) -> None:
    count = 1 + max(max(edge.winner, edge.loser) for edge in preferences)
    row = tokenized("a:0", *SEQUENCES[:count], preferences=preferences)
    assert ranking(row) == order
    assert extremes(row) == ends


def test_responses_that_are_even_share_a_rank() -> None:
    preferences = edges(*((best, worst) for best in (0, 1, 2) for worst in (3, 4, 5)))
    six = tokenized("a:0", *([1, number, 9] for number in range(2, 8)), preferences=preferences)
    assert ranks(six) == [1, 1, 1, 4, 4, 4]
    assert extremes(six) == (0, 3)
    assert ranks(tokenized("a:0", *SEQUENCES[:2], preferences=edges((1, 0)))) == [2, 1]
