"""Hashes, the common prefix and the order of the responses of a comparison."""

import random

import pytest

from rmtrain.data.comparison import (
    PAIR,
    Comparison,
    Preference,
    TokenizedComparison,
    common_prefix_length,
    extremes,
    is_held_out,
    prompt_hash,
    ranking,
    ranks,
    response_hashes,
)
from tests.comparisons import tokenized


def row(prompt: str, *responses: str) -> Comparison:
    turns = [({"role": "assistant", "content": response},) for response in responses]
    return Comparison("s:0", "s", ({"role": "user", "content": prompt},) if prompt else (), tuple(turns))


def test_prompt_hash_ignores_case_and_spacing() -> None:
    """A prompt has the same hash in any case, spacing and Unicode form."""
    assert prompt_hash(row("What is  it?\n", "a", "b")) == prompt_hash(row("WHAT is it?", "c", "d"))
    assert prompt_hash(row("caf\u00e9", "a", "b")) == prompt_hash(row("cafe\u0301", "a", "b"))
    assert prompt_hash(row("What is it", "a", "b")) != prompt_hash(row("What is it?", "a", "b"))


def test_prompt_hash_without_prompt_uses_responses() -> None:
    assert prompt_hash(row("", "a", "b")) == prompt_hash(row("", "b", "a"))
    assert prompt_hash(row("", "a", "b")) != prompt_hash(row("", "a", "c"))


def test_prompt_hash_includes_roles() -> None:
    system = Comparison("s:0", "s", ({"role": "system", "content": "q"},), row("q", "a", "b").responses)
    assert prompt_hash(system) != prompt_hash(row("q", "a", "b"))


def test_tokenized_rows_hash_prefix_and_rest() -> None:
    one = TokenizedComparison("t:0", "t", ([1, 2, 3], [1, 2, 4]), 2, 2)
    assert prompt_hash(one) == prompt_hash(TokenizedComparison("t:1", "t", ([1, 2, 5], [1, 2, 6]), 2, 2))
    assert response_hashes(one) == response_hashes(TokenizedComparison("t:1", "t", ([9, 3], [9, 4]), 1, 1))
    assert len(set(response_hashes(one))) == 2


def test_prompt_hash_is_stable() -> None:
    assert prompt_hash(row("What is it?", "a", "b")) == 10197172099385727905


def test_held_out_share_in_any_order() -> None:
    """The held-out share is about as large as asked for, the same in any order, and part of any larger one."""
    prompts = [row(f"prompt {number}", "a", "b") for number in range(4000)]
    held_out = {one.prompt[0]["content"] for one in prompts if is_held_out(prompt_hash(one), 0.2)}
    assert 0.17 < len(held_out) / len(prompts) < 0.23
    random.Random(1).shuffle(prompts)
    assert held_out == {one.prompt[0]["content"] for one in prompts if is_held_out(prompt_hash(one), 0.2)}
    fewer = [one for one in prompts if is_held_out(prompt_hash(one), 0.1)]
    assert fewer
    assert all(is_held_out(prompt_hash(one), 0.2) for one in fewer), "a larger share holds a smaller one"
    assert not any(is_held_out(prompt_hash(one), None) or is_held_out(prompt_hash(one), 0.0) for one in prompts)


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        (([1, 2, 3], [1, 2, 4]), 2),
        (([1, 2], [1, 2, 3]), 1),
        (([1, 2, 3], [1, 2, 3]), 2),
        (([1], [1, 2]), 0),
        (([5, 2], [6, 2]), 0),
        (([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 9]), 2),
    ],
)
def test_common_prefix_leaves_each_a_token(sequences: tuple[list[int], ...], length: int) -> None:
    assert common_prefix_length(sequences) == length


def test_common_prefix_equals_a_loop() -> None:
    rng, longest = random.Random(0), 0
    for _ in range(300):
        shared = [rng.randrange(3) for _ in range(rng.randrange(8))]
        sequences = [shared + [rng.randrange(3) for _ in range(rng.randrange(1, 6))] for _ in range(rng.randrange(2, 5))]
        expected = 0
        while expected < min(map(len, sequences)) - 1 and len({sequence[expected] for sequence in sequences}) == 1:
            expected += 1
        assert common_prefix_length(sequences) == expected
        longest = max(longest, expected)
    assert longest > 5, "guard: long prefixes were among them"


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
def test_ranking_is_by_wins_minus_losses(preferences: tuple[Preference, ...], order: list[int], ends: tuple[int, int]) -> None:
    count = 1 + max(max(edge.winner, edge.loser) for edge in preferences)
    row = tokenized("a:0", *SEQUENCES[:count], preferences=preferences)
    assert ranking(row) == order
    assert extremes(row) == ends


def test_equal_responses_share_a_rank() -> None:
    preferences = edges(*((best, worst) for best in (0, 1, 2) for worst in (3, 4, 5)))
    six = tokenized("a:0", *([1, number, 9] for number in range(2, 8)), preferences=preferences)
    assert ranks(six) == [1, 1, 1, 4, 4, 4]
    assert extremes(six) == (0, 3)
    assert ranks(tokenized("a:0", *SEQUENCES[:2], preferences=edges((1, 0)))) == [2, 1]
