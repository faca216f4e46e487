"""Repeated and contradictory preferences, cycles, and near-identical responses, against slow reference implementations."""

import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rmtrain.data.artifact import edges_of
from rmtrain.data.checks import preferences as near_duplicates
from rmtrain.data.checks.preferences import TRIMMING_ROUNDS, find_cycles, find_near_identical, find_repeats
from rmtrain.data.text.tokenizer import prepared
from tests.edges import edges_from, prepared_rows, row
from tests.helpers import bert_like, byte_bpe, pairs


def repeats_of(*edges: tuple[float, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(repeat.edges, repeat.ways) for repeat in find_repeats(edges_from(*edges))]


def test_trap_20_repeats_and_opposites_across_rows() -> None:
    """The same preference and its opposite are found across rows."""
    edges = [(0, 1, 10, 11), (1, 1, 12, 13), (2, 1, 10, 11), (3, 2, 10, 11), (4, 2, 11, 10), (5, 3, 10, 11), (6, 1, 10, 12)]
    assert repeats_of(*edges) == [((0, 2), (1, 1)), ((3, 4), (1, -1))]
    assert [repeat.is_contradictory for repeat in find_repeats(edges_from(*edges))] == [False, True]


def test_several_votes_are_one_repeat() -> None:
    assert repeats_of((0, 1, 10, 11), (1, 1, 11, 10), (2, 1, 10, 11), (3, 1, 11, 10)) == [((0, 1, 2, 3), (1, -1, 1, -1))]


def test_contradictions_with_larger_comparisons() -> None:
    """A pair contradicts an edge of a larger comparison, and a comparison contradicts itself."""
    ranked = [(0, 1, 10, 11), (0, 1, 10, 12), (0, 1, 11, 12)]
    assert repeats_of(*ranked, (1, 1, 12, 10)) == [((1, 3), (1, -1))]
    assert repeats_of(*ranked, (0, 1, 11, 10)) == [((0, 3), (1, -1))], "within one gathered comparison"


def test_tie_contradicts_an_order() -> None:
    (mixed,) = find_repeats(edges_from((0, 1, 10, 11, 0.5), (1, 1, 11, 10), (2, 1, 11, 10)))
    assert (mixed.ways, mixed.is_contradictory) == ((0, 1, 1), True)
    (ties,) = find_repeats(edges_from((0, 1, 10, 11, 0.5), (1, 1, 11, 10, 0.5)))
    assert (ties.ways, ties.is_contradictory) == ((0, 0), False)


def test_different_edges_are_not_repeats() -> None:
    assert repeats_of() == []
    assert repeats_of((0, 1, 10, 11)) == []
    assert repeats_of((0, 1, 10, 11), (1, 2, 11, 10), (2, 1, 10, 12), (3, 1, 11, 12)) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.5, 0.7, 1.0]))
    )
)
def test_repeats_equal_a_dictionary(edges: list[tuple[int, int, int, int, float]]) -> None:
    groups: dict[tuple[int, frozenset[int]], list[int]] = defaultdict(list)
    for number, (_, prompt, winner, loser, _) in enumerate(edges):
        groups[prompt, frozenset((winner, loser))].append(number)
    expected = sorted(tuple(numbers) for numbers in groups.values() if len(numbers) > 1)
    repeats = find_repeats(edges_from(*edges))
    assert [repeat.edges for repeat in repeats] == expected
    for repeat in repeats:
        ways = {(edges[number][2], edges[number][3]) if edges[number][4] > 0.5 else "tie" for number in repeat.edges}
        assert repeat.is_contradictory == (len(ways) > 1)


def circles(*edges: tuple[float, ...], without: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], int]]:
    return [(cycle.edges, cycle.responses) for cycle in find_cycles(edges_from(*edges), without)]


def test_trap_20_cycle_across_rows_is_found() -> None:
    """A cycle across rows is found, with its edges in order."""
    rows = [(0, 1, 1, 2), (1, 1, 4, 1), (2, 1, 3, 1), (3, 1, 2, 3), (4, 1, 3, 5)]
    assert circles(*rows) == [((0, 3, 2), 3)], "1 over 2 over 3 over 1; neither 4 nor 5 is part of it"
    assert circles(*rows[:3]) == []


def test_another_prompt_closes_no_cycle() -> None:
    assert circles((0, 1, 1, 2), (1, 1, 2, 3), (2, 2, 3, 1)) == []


def test_ranking_and_pair_make_a_cycle() -> None:
    rows = [(0, 1, 1, 2), (0, 1, 1, 3), (0, 1, 2, 3), (1, 1, 3, 1)]
    assert circles(*rows) == [((0, 2, 3), 3)]
    assert circles(*rows, without=(1, 3)) == [], "without the two that contradict each other the rest is a ranking"


def test_ties_and_equal_texts_make_no_cycle() -> None:
    assert circles((0, 1, 1, 2), (1, 1, 2, 3), (2, 1, 3, 1, 0.5)) == []
    assert circles((0, 1, 1, 1)) == []


def test_component_gives_one_shortest_cycle() -> None:
    """A set of responses that cannot be ordered is one finding, with a shortest cycle through its first edge."""
    knot = [(0, 1, 1, 2), (1, 1, 2, 3), (2, 1, 3, 4), (3, 1, 4, 1), (4, 1, 3, 1), (5, 1, 4, 5), (6, 1, 5, 2)]
    assert circles(*knot) == [((0, 1, 4), 5)]


def test_cycles_of_several_prompts_are_ordered() -> None:
    rows = [(0, 2, 1, 2), (1, 1, 1, 2), (2, 1, 2, 3), (3, 1, 3, 1), (4, 2, 2, 3), (5, 2, 3, 1)]
    assert circles(*rows) == [((0, 4, 5), 3), ((1, 2, 3), 3)]


def test_long_chains_and_cycles_need_no_recursion() -> None:
    length = max(50 * TRIMMING_ROUNDS, 2000)
    chain = [(number, 1, number, number + 1) for number in range(length)]
    assert circles(*chain) == []
    assert circles(*chain, (length, 1, length, 0)) == [(tuple(range(length + 1)), length + 1)]


EDGES = st.lists(
    st.tuples(st.just(0), st.integers(0, 1), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.5, 1.0])), max_size=14
)


@given(EDGES)
def test_cycles_equal_slow_reachability(
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


LONG = "The quick brown fox jumps over the lazy dog, and then it sleeps under the old oak tree. " * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def near_identical(folder: Path, tokenizer: PreTrainedTokenizerFast, *sides: tuple[str, str]) -> dict[int, str]:
    rows = [row(f"question {number}", chosen, rejected) for number, (chosen, rejected) in enumerate(sides)]
    data = prepared_rows(folder, tokenizer, rows)[0].train
    assert len(data) == len(sides), "guard: none is dropped"
    return dict(find_near_identical(data, edges_of(data), tokenizer))


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        ("Paris  is the CAPITAL.", "paris is the capital.", r"the same text\b.*"),
        ("Yes.", "yes", r"the same letters\b.*"),
        ("1,000 men", "1000 men", r"the same letters\b.*"),
        ("你好，世界", "你好世界！", r"the same letters\b.*"),
        (LONG + "Yes", LONG + "No", r"9\d %.*"),
    ],
)
def test_near_identical_responses_have_a_reason(
    chosen: str, rejected: str, why: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    reasons = near_identical(tmp_path, tokenizer, ("bread", "water"), (chosen, rejected))
    assert list(reasons) == [1]
    assert re.fullmatch(why, reasons[1])


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Yes", "No"),
        ("1.5", "15"),
        ("-5", "5"),
        ("5 %", "5"),
        ("It is 3.", "It is 8."),
        ("!!!", "???"),
        ("good \N{THUMBS UP SIGN}", "good \N{THUMBS DOWN SIGN}"),
        ("कि", "की"),
        ("What is the capital of France?", "How do I bake bread? Mix flour, water, salt."),
    ],
)
def test_different_meaning_is_not_near_identical(
    chosen: str, rejected: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert near_identical(tmp_path, tokenizer, (chosen, rejected)) == {}


def test_same_tokens_in_another_order(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    words = [f" {word}" for word in ["fox", "dog", "oak", "river", "bread", "flour", "salt", "water", "yeast", "joke"]]
    reasons = near_identical(tmp_path, tokenizer, ("ok" + "".join(words), "ok" + "".join(reversed(words))))
    assert list(reasons) == [0]
    assert "order" in reasons[0]


def test_text_comparison_is_limited(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [(f"Yes {number}.", f"yes {number}") for number in range(5)]
    assert len(near_identical(tmp_path / "all", tokenizer, *sides)) == 5
    monkeypatch.setattr(near_duplicates, "DECODED", 3)
    assert len(near_identical(tmp_path / "three", tokenizer, *sides)) == 3


def test_near_identical_within_larger_comparison(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row("q", "Paris!", "London"), row("q", "London", "Rome."), row("q", "Paris!", "paris")]
    data = prepared_rows(tmp_path, tokenizer, rows, group_by_prompt=True)[0].train
    assert data.response_counts.tolist() == [4], "guard: one comparison"
    ((edge, _),) = find_near_identical(data, edges_of(data), tokenizer)
    assert data[0].preferences[edge].winner == 0


def test_clean_file_has_no_near_identical(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for name, one in (("bpe", tokenizer), ("bert", prepared(bert_like(), "simple_chat"))):
        data = prepared_rows(tmp_path / name, one, pairs(50))[0].train
        assert find_near_identical(data, edges_of(data), one) == []
        assert np.all(data.response_counts == 2)
