import random

import numpy as np
import pytest

from rmtrain.data.comparison import BadRow, TokenizedComparison, common_prefix_length
from rmtrain.data.text.tokenize import fit_prompt, overlong
from rmtrain.recipe.schema import Data

PROMPT, END = [1, 10, 11, 12, 13], 2
ROW = TokenizedComparison("s:0", "s", ([*PROMPT, 20, END], [*PROMPT, 20, 21, 22, END]), 6, 5)


def data(overlong: str, **limits: int) -> Data:
    return Data(train=[{"path": "x"}], overlong=overlong, **limits)


def cut(row: TokenizedComparison, leading: int, **limits: int) -> TokenizedComparison:
    policy = data("truncate_prompt_left", **limits)
    assert overlong(row, policy, leading) == {}
    return fit_prompt(row, policy, leading)


def lists(row: TokenizedComparison) -> list[list[int]]:
    return [list(map(int, sequence)) for sequence in row.sequences]


def test_a_row_within_the_limits_is_left_alone() -> None:
    for policy in ("drop", "truncate_prompt_left", "error"):
        limits = data(policy, max_length=9, max_prompt_length=5)
        assert overlong(ROW, limits, leading=1) == {}
        assert fit_prompt(ROW, limits, leading=1) is ROW


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_responses_over_the_limit_are_told_each_with_its_length(policy: str) -> None:
    faults = overlong(ROW, data(policy, max_length=8), leading=1)
    assert {number: (fault.reason, fault.detail) for number, fault in faults.items()} == {
        1: ("too_long", "9 tokens, over max_length 8")
    }
    assert list(overlong(ROW, data(policy, max_length=6), leading=1)) == [0, 1]


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_a_prompt_over_its_limit_is_told(policy: str) -> None:
    with pytest.raises(BadRow) as problem:
        fit_prompt(ROW, data(policy, max_length=9, max_prompt_length=4), leading=1)
    assert (problem.value.reason, problem.value.detail) == ("prompt_too_long", "prompt of 5 tokens, over max_prompt_length 4")


def test_the_prompt_is_cut_from_the_left_after_its_beginning_and_for_all_alike() -> None:
    row = cut(ROW, leading=1, max_length=7)
    assert lists(row) == [[1, 12, 13, 20, END], [1, 12, 13, 20, 21, 22, END]]
    assert (row.prefix_length, row.prompt_length) == (4, 3)
    assert lists(cut(ROW, leading=0, max_length=7))[0] == [11, 12, 13, 20, END]
    short = cut(ROW, leading=1, max_length=9, max_prompt_length=2)
    assert lists(short) == [[1, 13, 20, END], [1, 13, 20, 21, 22, END]]


def test_a_response_is_never_cut() -> None:
    assert lists(cut(ROW, leading=1, max_length=5)) == [[1, 20, END], [1, 20, 21, 22, END]]
    faults = overlong(ROW, data("truncate_prompt_left", max_length=4), leading=1)
    assert [(number, str(fault)) for number, fault in faults.items()] == [
        (1, "response_too_long: response of 4 tokens alone is over max_length 4")
    ]


def test_a_limit_below_the_special_tokens_at_the_beginning_leaves_those() -> None:
    row = cut(ROW, leading=2, max_length=9, max_prompt_length=1)
    assert lists(row)[0] == [1, 10, 20, END]
    assert row.prompt_length == 2


def test_trap_03_cutting_never_erases_the_difference_the_end_or_the_response() -> None:
    rng, cut_rows = random.Random(0), 0
    policy = data("truncate_prompt_left", max_length=10, max_prompt_length=6)
    for number in range(500):
        prompt = [1, *(rng.randrange(10, 20) for _ in range(rng.randrange(12)))]
        responses = [[*(rng.randrange(20, 23) for _ in range(rng.randrange(1, 8))), END] for _ in range(2)]
        if responses[0] == responses[1]:
            continue
        sequences = tuple(np.array(prompt + response, np.int32) for response in responses)
        row = TokenizedComparison(f"s:{number}", "s", sequences, common_prefix_length(sequences), len(prompt))
        if max(map(len, sequences)) - row.prompt_length + 1 > 10:
            assert overlong(row, policy, leading=1)
            continue
        assert overlong(row, policy, leading=1) == {}
        fitting = fit_prompt(row, policy, leading=1)
        cut_rows += fitting is not row
        first, second = lists(fitting)
        assert first != second
        assert all(sequence[0] == 1 and len(sequence) <= 10 for sequence in (first, second))
        assert all(cut_to[-len(own) :] == own for cut_to, own in zip((first, second), responses, strict=True))
        assert fitting.prefix_length == common_prefix_length(fitting.sequences)
        assert fitting.prompt_length <= 6
    assert cut_rows > 100, "guard: rows were cut"
