"""Preferences in a circle, against reachability worked out the slow way."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rmtrain.data.checks.duplicates import ROUNDS, find_cycles
from tests.edges import edges_from


def circles(*edges: tuple[float, ...], without: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], int]]:
    return [(cycle.edges, cycle.responses) for cycle in find_cycles(edges_from(*edges), without)]


def test_trap_20_a_circle_across_rows_is_found_by_its_edges_in_order() -> None:
    rows = [(0, 1, 1, 2), (1, 1, 4, 1), (2, 1, 3, 1), (3, 1, 2, 3), (4, 1, 3, 5)]
    assert circles(*rows) == [((0, 3, 2), 3)], "1 over 2 over 3 over 1; neither 4 nor 5 is part of it"
    assert circles(*rows[:3]) == []


def test_the_same_responses_of_another_prompt_close_no_circle() -> None:
    assert circles((0, 1, 1, 2), (1, 1, 2, 3), (2, 2, 3, 1)) == []


def test_edges_of_a_ranking_close_a_circle_with_a_pair() -> None:
    rows = [(0, 1, 1, 2), (0, 1, 1, 3), (0, 1, 2, 3), (1, 1, 3, 1)]
    assert circles(*rows) == [((0, 2, 3), 3)]
    assert circles(*rows, without=(1, 3)) == [], "without the two that contradict each other the rest is a ranking"


def test_ties_and_equal_texts_say_no_order() -> None:
    assert circles((0, 1, 1, 2), (1, 1, 2, 3), (2, 1, 3, 1, 0.5)) == []
    assert circles((0, 1, 1, 1)) == []


def test_a_knot_is_one_finding_with_a_shortest_circle_through_its_first_edge() -> None:
    knot = [(0, 1, 1, 2), (1, 1, 2, 3), (2, 1, 3, 4), (3, 1, 4, 1), (4, 1, 3, 1), (5, 1, 4, 5), (6, 1, 5, 2)]
    assert circles(*knot) == [((0, 1, 4), 5)]


def test_circles_of_several_prompts_come_in_order() -> None:
    rows = [(0, 2, 1, 2), (1, 1, 1, 2), (2, 1, 2, 3), (3, 1, 3, 1), (4, 2, 2, 3), (5, 2, 3, 1)]
    assert circles(*rows) == [((0, 4, 5), 3), ((1, 2, 3), 3)]


def test_long_chains_and_long_circles_need_no_recursion() -> None:
    length = max(50 * ROUNDS, 2000)
    chain = [(number, 1, number, number + 1) for number in range(length)]
    assert circles(*chain) == []
    assert circles(*chain, (length, 1, length, 0)) == [(tuple(range(length + 1)), length + 1)]


EDGES = st.lists(
    st.tuples(st.just(0), st.integers(0, 1), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.5, 1.0])), max_size=14
)


@given(EDGES)
def test_a_circle_is_found_for_each_set_of_responses_that_reach_one_another(
    edges: list[tuple[int, int, int, int, float]],
) -> None:
    reach = {((prompt, a), (prompt, b)) for _, prompt, a, b, probability in edges if probability > 0.5 and a != b}
    while more := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
        reach |= more
    knots = {
        frozenset(b for b in {node for edge in reach for node in edge} if (a, b) in reach and (b, a) in reach) for a, _ in reach
    }
    cycles = find_cycles(edges_from(*edges))
    assert sorted(cycle.responses for cycle in cycles) == sorted(len(knot) for knot in knots if knot)
    for cycle in cycles:
        turns = [edges[number] for number in (*cycle.edges, cycle.edges[0])]
        assert all(one[1] == other[1] and one[3] == other[2] for one, other in pairwise(turns)), (
            "each begins where the last ended"
        )
