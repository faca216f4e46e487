"""The plan: each comparison once, the same micro-batch count on every rank, every micro-batch within the budget."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs, Plan, check_budget, order, split_step
from rmtrain.errors import RecipeError

LAYOUTS: tuple[Layout, ...] = ("shared_prefix", "packed", "padded")


def make_costs(n: int, layout: Layout) -> Costs:
    rng = np.random.default_rng(7)
    responses = rng.integers(2, 5, n).astype(np.int32)
    longest = rng.integers(20, 200, n).astype(np.int32)
    prefix = rng.integers(0, 20, n)
    total = longest + (responses - 1) * 20
    lengths = SimpleNamespace(
        response_counts=responses,
        longest=longest,
        total_tokens=total.astype(np.int64),
        unique_tokens=(total - (responses - 1) * prefix).astype(np.int64),
    )
    return Costs.of(lengths, layout)


def make_plan(layout: Layout = "padded", **changes: Any) -> Plan:
    settings = {"batch_size": 16, "max_tokens": 900, "epochs": 2, "seed": 3, **changes}
    return Plan(make_costs(103, layout), **settings)


def test_order_is_pure() -> None:
    """The order of an epoch depends on seed, epoch and size alone."""
    first = order(1, 0, 50).copy()
    order(2, 0, 50), order(1, 1, 50), order(1, 0, 51)
    np.random.default_rng(0).random(100)
    assert (order(1, 0, 50) == first).all()
    assert sorted(first) == list(range(50))
    assert not (order(2, 0, 50) == first).all()
    assert not (order(1, 1, 50) == first).all()


def test_each_epoch_sees_every_comparison_once() -> None:
    """Every comparison appears once in each epoch; the last step of an epoch is shorter."""
    plan = make_plan()
    for epoch in range(2):
        steps = [plan.step(epoch * plan.steps_per_epoch + s) for s in range(plan.steps_per_epoch)]
        assert {step.epoch for step in steps} == {epoch}
        assert sorted(np.concatenate([step.indices for step in steps])) == list(range(103))
    assert len(steps[-1].indices) == 103 % 16 != 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [800, 3000, 10**6])
def test_micro_batches_partition_each_step(layout: Layout, world: int, max_tokens: int) -> None:
    """The micro-batches of a step hold its comparisons once, stay within the budget, and are equally many on every rank."""
    plan = make_plan(layout, world=world, max_tokens=max_tokens)
    several = filled_up = 0
    for number in range(plan.total_steps):
        step = plan.step(number)
        assert len({len(rank) for rank in step.micro_batches}) == 1
        pieces = [piece for rank in step.micro_batches for piece in rank]
        assert sorted(np.concatenate(pieces)) == sorted(step.indices)
        costs = [plan.costs.of_micro_batch(piece) for piece in pieces if len(piece)]
        assert max(costs) <= max_tokens
        assert any(len(piece) for rank in step.micro_batches for piece in rank[-1:]), (
            "no round of micro-batches is empty everywhere"
        )
        several += len(step.micro_batches[0]) > 1
        filled_up += any(len(piece) == 0 for piece in pieces)
    assert several or max_tokens > 800 or world > 2, "guard: some step was really cut"
    assert filled_up or world < 8, "guard: some rank was really filled up"


def test_rows_of_a_step_are_fixed() -> None:
    """The comparisons of a step do not depend on the number of processes, the token budget or the layout."""
    reference = make_plan()
    for other in (make_plan(world=4), make_plan(max_tokens=5000), make_plan("shared_prefix")):
        for number in range(reference.total_steps):
            assert (other.step(number).indices == reference.step(number).indices).all()


def test_micro_batches_are_few_and_balanced() -> None:
    """A step is split into as few micro-batches as the budget allows, of similar size."""
    costs = Costs(np.full(12, 20, np.int64), np.full(12, 10, np.int32), np.full(12, 2, np.int32))
    ((*pieces,),) = split_step(np.arange(12), costs, max_tokens=100, world=1)
    assert [len(piece) for piece in pieces] == [4, 4, 4], "three are needed; five, five and two would fit too, but not balance"
    single_rows = Costs(np.array([90, 60, 50, 40, 30, 30], np.int64), costs.longest[:6], costs.responses[:6])
    ((*pieces,),) = split_step(np.arange(6), single_rows, max_tokens=100, world=1)
    assert sorted(int(single_rows.tokens[piece].sum()) for piece in pieces) == [60, 70, 80, 90]


def test_epoch_token_counts() -> None:
    """The token counts of an epoch equal sums over its steps."""
    plan = make_plan("shared_prefix")
    assert plan.computed_epoch() == int(plan.costs.tokens.sum())
    by_hand = 0
    for number in range(plan.steps_per_epoch):
        indices = plan.step(number).indices
        by_hand += int(plan.costs.longest[indices].max()) * int(plan.costs.responses[indices].sum())
    assert plan.padded_epoch() == by_hand > plan.computed_epoch()
    assert make_plan("padded").computed_epoch() < by_hand, "blocks of similar length pad less"


def test_max_steps_limits_the_plan() -> None:
    """`max_steps` shortens a run and never lengthens it."""
    assert make_plan(max_steps=5).total_steps == 5
    assert make_plan(max_steps=10**6).total_steps == make_plan().total_steps == 14


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (0.5, 4), (1, 7), (1.0, 7), (1.5, 11), (1.1, 8), (2.0, 14), (2.3, 17)])
def test_a_part_of_an_epoch_is_a_part_of_its_steps(epochs: float, steps: int) -> None:
    """Whole epochs have every comparison once; the last part has the first steps, rounded up, of the order of its epoch."""
    plan, whole = make_plan(epochs=epochs), make_plan(epochs=3)
    assert plan.total_steps == steps
    rows = np.concatenate([plan.step(number).indices for number in range(steps)])
    full, rest = divmod(steps, 7)
    assert len(rows) == 103 * full + 16 * rest
    assert (np.bincount(rows, minlength=103) >= full).all()
    assert all((plan.step(number).indices == whole.step(number).indices).all() for number in range(steps))
    assert make_plan(epochs=1.1, batch_size=11).total_steps == 11, "guard: not 12, as 1.1 * 10 in binary gives"


def test_comparison_above_budget_is_refused() -> None:
    """The error names the recipe key, the row and its size."""
    costs = Costs(np.array([23, 2300], np.int64), np.array([10, 700], np.int32), np.array([2, 3], np.int32))
    check_budget(costs, ["a:0", "a:1"], 2100)
    (pieces,) = split_step(np.arange(2), costs, 2100, world=1)
    assert [piece.tolist() for piece in pieces] == [[1], [0]], "the larger one is alone, where it has no more padding"
    with pytest.raises(RecipeError, match=r"^batching\.max_tokens: ") as refused:
        check_budget(costs, ["a:0", "a:1"], 2000)
    assert all(part in str(refused.value) for part in ("a:1", "2100", "2000", "data.max_length"))
