"""The plan: each comparison once, the same micro-batch count on every rank, every micro-batch within the budget."""

import numpy as np
import pytest

from rmtrain.batching.plan import Plan, check_budget, cut, order
from rmtrain.errors import RecipeError


def make_plan(
    n: int = 103, *, batch_size: int = 16, max_tokens: int = 900, world: int = 1, epochs: int = 2, **changes: int
) -> Plan:
    rng = np.random.default_rng(7)
    longest = rng.integers(5, 200, n).astype(np.int32)
    responses = rng.integers(2, 5, n).astype(np.int32)
    return Plan(longest, responses, batch_size, max_tokens, epochs, seed=3, world=world, **changes)


def test_order_is_a_pure_function_of_seed_epoch_and_size() -> None:
    first = order(1, 0, 50).copy()
    order(2, 0, 50), order(1, 1, 50), order(1, 0, 51)
    np.random.default_rng(0).random(100)
    assert (order(1, 0, 50) == first).all()
    assert sorted(first) == list(range(50))
    assert not (order(2, 0, 50) == first).all()
    assert not (order(1, 1, 50) == first).all()


def test_every_comparison_is_seen_once_per_epoch_and_the_last_step_is_shorter() -> None:
    plan = make_plan()
    for epoch in range(2):
        steps = [plan.step(epoch * plan.steps_per_epoch + s) for s in range(plan.steps_per_epoch)]
        assert {step.epoch for step in steps} == {epoch}
        assert sorted(np.concatenate([step.indices for step in steps])) == list(range(103))
    assert len(steps[-1].indices) == 103 % 16 != 0


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [800, 3000, 10**6])
def test_micro_batches_partition_the_step_equally_often_on_every_rank_within_the_budget(world: int, max_tokens: int) -> None:
    plan = make_plan(world=world, max_tokens=max_tokens)
    several = filled_up = 0
    for number in range(plan.total_steps):
        step = plan.step(number)
        assert len({len(rank) for rank in step.micro_batches}) == 1
        pieces = [piece for rank in step.micro_batches for piece in rank]
        assert sorted(np.concatenate(pieces)) == sorted(step.indices)
        for piece in filter(len, pieces):
            assert plan.longest[piece].max() * plan.responses[piece].sum() <= max_tokens
        several += len(step.micro_batches[0]) > 1
        filled_up += any(len(piece) == 0 for piece in pieces)
    assert several or max_tokens > 800, "guard: some step was really cut"
    assert filled_up or world < 8, "guard: some rank was really filled up"


def test_the_rows_of_a_step_do_not_depend_on_world_budget_or_who_asks() -> None:
    reference = make_plan()
    for other in (make_plan(world=4), make_plan(max_tokens=5000)):
        for number in range(reference.total_steps):
            assert (other.step(number).indices == reference.step(number).indices).all()


def test_micro_batches_are_as_few_as_the_sorted_greedy_cut_and_balanced() -> None:
    longest, responses = np.full(12, 10, dtype=np.int32), np.full(12, 2, dtype=np.int32)
    ((*pieces,),) = cut(np.arange(12), longest, responses, max_tokens=100, world=1)
    assert [len(piece) for piece in pieces] == [4, 4, 4], "three are needed; five, five and two would fit too, but not balance"


def test_max_steps_ends_the_plan() -> None:
    assert make_plan(max_steps=5).total_steps == 5
    assert make_plan(max_steps=10**6).total_steps == make_plan().total_steps == 14


def test_a_comparison_above_the_budget_is_an_error_that_names_row_and_key() -> None:
    longest, responses = np.array([10, 700], dtype=np.int32), np.array([2, 3], dtype=np.int32)
    check_budget(longest, responses, ["a:0", "a:1"], 2100)
    with pytest.raises(
        RecipeError, match=r"batching.max_tokens: 2000 .* 2100 tokens of comparison a:1 \(3 responses of up to 700"
    ):
        check_budget(longest, responses, ["a:0", "a:1"], 2000)
