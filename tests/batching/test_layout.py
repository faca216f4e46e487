"""Memory layouts: every token appears, rewards are read at last real tokens, edges index the right responses."""

import pytest

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.batching.plan import Plan, StepLoader
from rmtrain.data.comparison import PAIR, Preference, TokenizedComparison
from tests.comparisons import costs_of, tokenized

PAD = 99


def comparison(name: str, *sequences: list[int], preferences: tuple[Preference, ...] = PAIR) -> TokenizedComparison:
    return TokenizedComparison(name, "s", tuple(sequences), prefix_length=1, prompt_length=1, preferences=preferences)


PAIR_ROW = comparison("s:0", [1, 2, 3, 4], [1, 5], preferences=(Preference(0, 1, margin=0.5),))
TRIPLE = comparison(
    "s:1", [7, 8], [7, 9, 10], [7, 11, 12, 13, 14], preferences=(Preference(2, 0), Preference(0, 1, weight=3.0, probability=0.5))
)


def test_padded_rows_hold_every_sequence() -> None:
    """Reading each row of each block by its mask gives the sequences back, the longest first; at most a tenth of a block is padding."""
    batch = lay_out([PAIR_ROW, TRIPLE], PAD)
    parts = batch.rectangles()
    rows = [
        ids[mask.bool()].tolist() for part in parts for ids, mask in zip(part.input_ids_RT, part.attention_mask_RT, strict=True)
    ]
    assert [rows[number] for number in batch.sequence_N] == [list(s) for row in (PAIR_ROW, TRIPLE) for s in row.sequences]
    assert [part.input_ids_RT.shape for part in parts] == [(2, 5), (1, 3), (2, 2)]
    assert all(part.attention_mask_RT.float().mean() >= 0.9 for part in parts)
    assert (batch.input_ids_RT[batch.attention_mask_RT == 0] == PAD).all()
    assert (batch.attention_mask_RT == 0).any(), "guard: something was padded"
    assert batch.tokens == 16
    assert batch.ids == ("s:0", "s:1")
    assert batch.response_counts == (2, 3)


def test_reward_position_ignores_pad_id() -> None:
    """The reward is read at the last real token, even if that token has the id of the padding."""
    batch = lay_out([comparison("s:0", [1, 2, PAD], [1, PAD])], PAD)
    read = batch.input_ids_RT[batch.reward_row_S, batch.reward_column_S]
    assert read.tolist() == [PAD, PAD]
    assert batch.reward_column_S.tolist() == [2, 1]


def test_edges_index_responses_and_weights_sum_to_one() -> None:
    """Edges index the flat responses of the micro-batch; the weights of each comparison sum to 1."""
    batch = lay_out([PAIR_ROW, TRIPLE], PAD)
    assert batch.winner_E.tolist() == [0, 4, 2]
    assert batch.loser_E.tolist() == [1, 2, 3]
    assert batch.margin_E.tolist() == [0.5, 0.0, 0.0]
    assert batch.probability_E.tolist() == [1.0, 1.0, 0.5]
    assert batch.weight_E.tolist() == [1.0, 0.25, 0.75]


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_loader_partitions_a_step_over_ranks(layout: Layout) -> None:
    """Each comparison is on exactly one rank; a rank that has fewer micro-batches computes fillers of weight zero."""
    data = [comparison(f"s:{i}", [1] * (3 + i), [2] * (2 + i)) for i in range(5)]
    plan = Plan(costs_of(data, layout), batch_size=5, max_tokens=14, epochs=1, seed=0, world=3)
    steps = [StepLoader(data, plan, layout, PAD, rank).step(0) for rank in range(3)]
    assert {step.ids for step in steps} == {tuple(f"s:{index}" for index in plan.step(0).indices)}
    batches = [batch for step in steps for batch in step.micro_batches]
    assert sorted(name for batch in batches for name in batch.ids) == [f"s:{i}" for i in range(5)]
    assert sum(batch.weight_E.sum().item() for batch in batches) == pytest.approx(5)
    fillers = [batch for batch in batches if not batch.ids]
    assert fillers or layout != "padded", "guard: five micro-batches do not fill three ranks"
    assert all(batch.weight_E.sum() == 0 and batch.tokens == 0 for batch in fillers)


def test_shared_prefix_is_laid_out_once() -> None:
    """The example of the module docstring: the prefix appears once, and positions continue after it."""
    a, b, c, d, e, f, x, g, h, i = range(10, 20)
    rows = [tokenized("s:0", [a, b, c, d], [a, b, e, f]), tokenized("s:1", [x, g], [x, h, i])]
    batch = lay_out(rows, PAD, "shared_prefix")
    assert batch.input_ids_RT.tolist() == [[a, b, c, d, e, f, x, g, h, i]]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 3, 2, 3, 0, 1, 1, 2]]
    assert batch.reward_column_S.tolist() == [3, 5, 7, 9]
    assert batch.attention_mask_RT is None
    assert batch.segments is not None
    assert batch.segments.prefixes == (2, 1)
    assert batch.segments.responses == ((2, 2), (1, 2))
    assert batch.comparison_N.tolist() == [0, 0, 1, 1]
    assert batch.tokens == 10


def test_packed_repeats_prefix_without_padding() -> None:
    """Whole sequences are concatenated, each with positions from 0."""
    rows = [tokenized("s:0", [1, 2, 3], [1, 2, 4, 5]), TRIPLE]
    batch = lay_out(rows, PAD, "packed")
    assert batch.input_ids_RT.tolist() == [[token for row in rows for sequence in row.sequences for token in sequence]]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2, 3, 4]]
    last = [batch.input_ids_RT[0, column].item() for column in batch.reward_column_S]
    assert last == [sequence[-1] for row in rows for sequence in row.sequences]
    assert batch.segments is not None
    assert set(batch.segments.prefixes) == {0}
    assert rows[0].prefix_length > 0, "guard: something could have been shared"


@pytest.mark.parametrize(("layout", "tokens"), [("padded", 9), ("packed", 9), ("shared_prefix", 7)])
def test_equal_sequences_are_laid_out_once(layout: Layout, tokens: int) -> None:
    """Within a comparison, not across comparisons; responses and preferences keep their numbers."""
    edges = (Preference(1, 0), Preference(2, 1))
    rows = [tokenized("s:0", [1, 2, 3], [1, 2, 4], [1, 2, 3], preferences=edges), tokenized("s:1", [1, 2, 3], [1, 2, 3])]
    batch = lay_out(rows, PAD, layout)
    assert batch.sequence_N.tolist() == [0, 1, 0, 2, 2]
    assert len(batch.reward_row_S) == len(batch.reward_column_S) == 3
    assert (batch.tokens, batch.response_counts) == (tokens, (3, 2))
    assert (batch.winner_E.tolist(), batch.loser_E.tolist()) == ([1, 2, 3], [0, 1, 4])
    read = batch.input_ids_RT[batch.reward_row_S, batch.reward_column_S][batch.sequence_N]
    assert read.tolist() == [sequence[-1] for row in rows for sequence in row.sequences]
