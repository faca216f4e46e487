"""The padded layout: every token is there once, rewards are read at last real tokens, edges point at their responses."""

import pytest
import torch

from rmtrain.batching.layout import lay_out
from rmtrain.batching.loader import StepLoader
from rmtrain.batching.plan import Plan
from rmtrain.data.comparison import PAIR, Preference, TokenizedComparison

PAD = 99


def comparison(name: str, *sequences: list[int], preferences: tuple[Preference, ...] = PAIR) -> TokenizedComparison:
    return TokenizedComparison(name, "s", tuple(sequences), prefix_length=1, prompt_length=1, preferences=preferences)


PAIR_ROW = comparison("s:0", [1, 2, 3, 4], [1, 5], preferences=(Preference(0, 1, margin=0.5),))
TRIPLE = comparison(
    "s:1", [7, 8], [7, 9, 10], [7, 11, 12, 13, 14], preferences=(Preference(2, 0), Preference(0, 1, weight=3.0, probability=0.5))
)


def test_sequences_come_back_from_rows_and_mask_in_order() -> None:
    batch = lay_out([PAIR_ROW, TRIPLE], PAD)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids_RT, batch.attention_mask_RT, strict=True)]
    assert rows == [list(s) for row in (PAIR_ROW, TRIPLE) for s in row.sequences]
    assert (batch.input_ids_RT[batch.attention_mask_RT == 0] == PAD).all()
    assert (batch.attention_mask_RT == 0).any(), "guard: something was padded"
    assert batch.tokens == 16
    assert batch.ids == ("s:0", "s:1")
    assert batch.response_counts == (2, 3)


def test_rewards_are_read_at_the_last_real_token_even_when_it_equals_the_pad_id() -> None:
    batch = lay_out([comparison("s:0", [1, 2, PAD], [1, PAD])], PAD)
    read = batch.input_ids_RT[batch.reward_row_N, batch.reward_column_N]
    assert read.tolist() == [PAD, PAD]
    assert batch.reward_column_N.tolist() == [2, 1]


def test_edges_point_into_the_flat_responses_and_weigh_one_per_comparison() -> None:
    batch = lay_out([PAIR_ROW, TRIPLE], PAD)
    assert batch.winner_E.tolist() == [0, 4, 2]
    assert batch.loser_E.tolist() == [1, 2, 3]
    assert batch.margin_E.tolist() == [0.5, 0.0, 0.0]
    assert batch.probability_E.tolist() == [1.0, 1.0, 0.5]
    assert batch.weight_E.tolist() == [1.0, 0.25, 0.75]


def test_loader_gives_each_rank_its_micro_batches_and_fills_up_without_weight() -> None:
    data = [comparison(f"s:{i}", [1] * (3 + i), [2] * (2 + i)) for i in range(5)]
    longest, responses = torch.arange(3, 8).int().numpy(), torch.full((5,), 2).int().numpy()
    plan = Plan(longest, responses, batch_size=5, max_tokens=14, epochs=1, seed=0, world=3)
    loaders = [StepLoader(data, plan, PAD, rank) for rank in range(3)]
    steps = [next(loader.steps()) for loader in loaders]
    assert [step.comparisons for step in steps] == [5, 5, 5]
    batches = [batch for step in steps for batch in step.micro_batches]
    assert sorted(name for batch in batches for name in batch.ids) == [f"s:{i}" for i in range(5)]
    assert sum(batch.weight_E.sum().item() for batch in batches) == pytest.approx(5)
    fillers = [batch for batch in batches if not batch.ids]
    assert fillers, "guard: five micro-batches do not fill three ranks"
    assert all(batch.weight_E.sum() == 0 and batch.tokens == 0 for batch in fillers)
