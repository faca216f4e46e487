"""Repeated and contradictory preferences, against a dictionary that counts them one by one."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from rmtrain.data.checks.duplicates import find_repeats
from tests.edges import edges_from


def found(*edges: tuple[float, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(repeat.edges, repeat.ways) for repeat in find_repeats(edges_from(*edges))]


def test_trap_20_the_same_preference_and_its_opposite_are_found_across_rows() -> None:
    edges = [(0, 1, 10, 11), (1, 1, 12, 13), (2, 1, 10, 11), (3, 2, 10, 11), (4, 2, 11, 10), (5, 3, 10, 11), (6, 1, 10, 12)]
    assert found(*edges) == [((0, 2), (1, 1)), ((3, 4), (1, -1))]
    assert [repeat.is_contradictory for repeat in find_repeats(edges_from(*edges))] == [False, True]


def test_several_votes_are_one_repeat_with_each_way_counted() -> None:
    assert found((0, 1, 10, 11), (1, 1, 11, 10), (2, 1, 10, 11), (3, 1, 11, 10)) == [((0, 1, 2, 3), (1, -1, 1, -1))]


def test_a_pair_contradicts_an_edge_of_a_larger_comparison_and_a_comparison_itself() -> None:
    ranked = [(0, 1, 10, 11), (0, 1, 10, 12), (0, 1, 11, 12)]
    assert found(*ranked, (1, 1, 12, 10)) == [((1, 3), (1, -1))]
    assert found(*ranked, (0, 1, 11, 10)) == [((0, 3), (1, -1))], "within one gathered comparison"


def test_a_tie_and_an_order_are_not_the_same_and_two_ties_are() -> None:
    (mixed,) = find_repeats(edges_from((0, 1, 10, 11, 0.5), (1, 1, 11, 10), (2, 1, 11, 10)))
    assert (mixed.ways, mixed.is_contradictory) == ((0, 1, 1), True)
    (ties,) = find_repeats(edges_from((0, 1, 10, 11, 0.5), (1, 1, 11, 10, 0.5)))
    assert (ties.ways, ties.is_contradictory) == ((0, 0), False)


def test_without_edges_or_with_different_ones_nothing_is_found() -> None:
    assert found() == []
    assert found((0, 1, 10, 11)) == []
    assert found((0, 1, 10, 11), (1, 2, 11, 10), (2, 1, 10, 12), (3, 1, 11, 12)) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.5, 0.7, 1.0]))
    )
)
def test_it_finds_what_a_dictionary_finds(edges: list[tuple[int, int, int, int, float]]) -> None:
    groups: dict[tuple[int, frozenset[int]], list[int]] = defaultdict(list)
    for number, (_, prompt, winner, loser, _) in enumerate(edges):
        groups[prompt, frozenset((winner, loser))].append(number)
    expected = sorted(tuple(numbers) for numbers in groups.values() if len(numbers) > 1)
    repeats = find_repeats(edges_from(*edges))
    assert [repeat.edges for repeat in repeats] == expected
    for repeat in repeats:
        said = {(edges[number][2], edges[number][3]) if edges[number][4] > 0.5 else "tie" for number in repeat.edges}
        assert repeat.is_contradictory == (len(said) > 1)
