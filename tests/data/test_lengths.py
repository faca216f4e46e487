import random

import pytest

from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.lengths import fit
from rmtrain.data.messages import BadRow
from rmtrain.data.prefix import common_prefix_length
from rmtrain.recipe.schema import Data

PROMPT, END = [1, 10, 11, 12, 13], 2
ROW = TokenizedComparison("s:0", "s", ([*PROMPT, 20, END], [*PROMPT, 20, 21, 22, END]), 6, 5)


def data(overlong: str, **limits: int) -> Data:
    return Data(train=[{"path": "x"}], overlong=overlong, **limits)


def test_a_row_within_the_limits_is_left_alone() -> None:
    for overlong in ("drop", "truncate_prompt_left", "error"):
        assert fit(ROW, data(overlong, max_length=9, max_prompt_length=5), leading=1) is ROW


@pytest.mark.parametrize("overlong", ["drop", "error"])
@pytest.mark.parametrize(
    ("limits", "reason", "detail"),
    [
        ({"max_length": 8}, "too_long", "9 tokens, over max_length 8"),
        ({"max_length": 8, "max_prompt_length": 2}, "too_long", "9 tokens, over max_length 8"),
        ({"max_length": 9, "max_prompt_length": 4}, "prompt_too_long", "prompt of 5 tokens, over max_prompt_length 4"),
    ],
)
def test_a_row_over_a_limit_is_told_by_which(overlong: str, limits: dict[str, int], reason: str, detail: str) -> None:
    with pytest.raises(BadRow) as problem:
        fit(ROW, data(overlong, **limits), leading=1)
    assert (problem.value.reason, problem.value.detail) == (reason, detail)


def test_the_prompt_is_cut_from_the_left_after_its_beginning_and_for_all_alike() -> None:
    cut = fit(ROW, data("truncate_prompt_left", max_length=7), leading=1)
    assert cut.sequences == ([1, 12, 13, 20, END], [1, 12, 13, 20, 21, 22, END])
    assert (cut.prefix_length, cut.prompt_length) == (4, 3)
    assert fit(ROW, data("truncate_prompt_left", max_length=7), leading=0).sequences[0] == [11, 12, 13, 20, END]
    short = fit(ROW, data("truncate_prompt_left", max_length=9, max_prompt_length=2), leading=1)
    assert short.sequences == ([1, 13, 20, END], [1, 13, 20, 21, 22, END])


def test_a_response_is_never_cut() -> None:
    policy = data("truncate_prompt_left", max_length=5)
    assert fit(ROW, policy, leading=1).sequences == ([1, 20, END], [1, 20, 21, 22, END])
    with pytest.raises(BadRow, match=r"response_too_long: response of 4 tokens alone is over max_length 4"):
        fit(ROW, data("truncate_prompt_left", max_length=4), leading=1)


def test_trap_03_cutting_never_erases_the_difference_the_end_or_the_response() -> None:
    rng, cut_rows = random.Random(0), 0
    policy = data("truncate_prompt_left", max_length=10, max_prompt_length=6)
    for number in range(500):
        prompt = [1, *(rng.randrange(10, 20) for _ in range(rng.randrange(12)))]
        responses = [[*(rng.randrange(20, 23) for _ in range(rng.randrange(1, 8))), END] for _ in range(2)]
        if responses[0] == responses[1]:
            continue
        sequences = tuple(prompt + response for response in responses)
        row = TokenizedComparison(f"s:{number}", "s", sequences, common_prefix_length(sequences), len(prompt))
        if max(map(len, sequences)) - row.prompt_length + 1 > 10:
            with pytest.raises(BadRow, match="response_too_long"):
                fit(row, policy, leading=1)
            continue
        cut = fit(row, policy, leading=1)
        cut_rows += cut is not row
        assert cut.sequences[0] != cut.sequences[1]
        assert all(sequence[0] == 1 and len(sequence) <= 10 for sequence in cut.sequences)
        assert all(list(cut_to[-len(own) :]) == own for cut_to, own in zip(cut.sequences, responses, strict=True))
        assert cut.prefix_length == common_prefix_length(cut.sequences)
        assert cut.prompt_length <= 6
    assert cut_rows > 100, "guard: rows were cut"
