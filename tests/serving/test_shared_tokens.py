"""Sequences that begin alike are grouped so that few tokens are computed, within the budget."""

import itertools
import random

import numpy as np
import pytest

from rmtrain.data.comparison import Tokens, common_prefix_length
from rmtrain.serving.shared_tokens import FEWEST, MOST_SENT, WIDEST, BatchTokens, group_by_prefix


def sequences(counts: list[int], prompt: int, own: int, seed: int = 0) -> list[Tokens]:
    """Sequences of several prompts, as many of each as `counts` says, in random order."""
    generator = random.Random(seed)
    made: list[Tokens] = []
    for count in counts:
        begin = [generator.randrange(500) for _ in range(prompt)]
        made += [np.array(begin + [generator.randrange(500) for _ in range(own)], np.int32) for _ in range(count)]
    generator.shuffle(made)
    return made


def computed(rows: list[Tokens], groups: list[list[int]]) -> int:
    """Tokens of groups whose prefix is computed once."""
    total = 0
    for group in groups:
        prefix = common_prefix_length([rows[number] for number in group]) if len(group) > 1 else 0
        total += sum(len(rows[number]) for number in group) - (len(group) - 1) * prefix
    return total


def test_responses_of_a_prompt_form_a_group() -> None:
    rows = sequences([5, 1, 7, 2], prompt=40, own=6)
    groups = group_by_prefix(rows, 10_000)
    assert sorted(map(len, groups)) == [1, 2, 5, 7]
    assert sorted(itertools.chain(*groups)) == list(range(15)), "each sequence once"
    assert groups == sorted(groups)
    assert computed(rows, groups) == 4 * 40 + 15 * 6


@pytest.mark.parametrize("seed", range(20))
def test_groups_compute_fewest_tokens(seed: int) -> None:
    """Of all ways to group neighbours in sorted order, none computes fewer tokens, also where prompts begin alike themselves."""
    generator = random.Random(seed)
    begin = [generator.randrange(9) for _ in range(90)]
    rows: list[Tokens] = [begin[: generator.randint(20, 90)] + [generator.randrange(9) for _ in range(5)] for _ in range(8)]
    order = sorted(range(8), key=lambda number: list(rows[number]))
    ways = []
    for cuts in itertools.product((False, True), repeat=7):
        groups = [[order[0]]]
        for number, cut in zip(order[1:], cuts, strict=True):
            if cut:
                groups.append([number])
            else:
                groups[-1].append(number)
        ways.append(computed(rows, groups))
    assert computed(rows, group_by_prefix(rows, 10_000)) == min(ways)
    assert min(ways) < sum(map(len, rows)), "guard: sharing pays"


def test_groups_stay_within_budget_and_width() -> None:
    rows = sequences([100], prompt=50, own=10)
    groups = group_by_prefix(rows, 250)
    assert all(computed([rows[number] for number in group], [list(range(len(group)))]) <= 250 for group in groups)
    assert max(map(len, groups)) == 20
    assert max(map(len, group_by_prefix(sequences([WIDEST + 50], 20, 1), 10**6))) == WIDEST


def test_few_common_tokens_are_not_shared() -> None:
    assert len(group_by_prefix(sequences([6], prompt=FEWEST - 1, own=30), 10_000)) == 6
    assert len(group_by_prefix(sequences([6], prompt=FEWEST + 1, own=30), 10_000)) == 1


def test_equal_sequences_are_one_group() -> None:
    rows: list[Tokens] = [list(range(30))] * 4 + [[7]]
    assert group_by_prefix(rows, 1000) == [[0, 1, 2, 3], [4]]


def test_batch_counts_shared_tokens_once() -> None:
    rows = sequences([4, 4], prompt=40, own=10)
    for shares, most in ((True, 2 * 40 + 8 * 10), (False, 8 * 50)):
        batch = BatchTokens(most, shares)
        assert all(batch.add(row) for row in rows)
        assert (batch.computed, batch.sent) == (most, 8 * 50)
        assert not batch.add([600]), "it is full"
    alone = BatchTokens(10, True)
    assert alone.add(rows[0]), "the first one always fits"
    assert not alone.add([1])


def test_batch_of_equal_sequences_is_bounded() -> None:
    batch, row = BatchTokens(100, True), list(range(50))
    added = sum(batch.add(row) for _ in range(1000))
    assert 2 < added <= MOST_SENT * 100 // 50
