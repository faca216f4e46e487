"""The parity probe: whether a model computes in a layout what it computes in its own padded forward.

Not every architecture can share prefixes: encoders look both ways, ALiBi and linear attention have masks of their own, and some models do
not hand segments down. Rather than keep a list, a run asks its model, on its own comparisons, before the first step.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import RecipeError
from rmtrain.model.attention import SegmentsNotSeen
from rmtrain.model.reward_model import RewardModel, evaluating

logger = logging.getLogger("rmtrain")

FALLBACKS: tuple[Layout, ...] = ("shared_prefix", "packed", "padded")
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.2}
"""Largest error, as a share of what it does to a hidden state to change the tokens before it."""
NOT_TAKEN = (SegmentsNotSeen, TypeError, ValueError)
"""What a model raises that does not hand segments down, or checks its arguments."""
NOT_NARROWED = (*NOT_TAKEN, RuntimeError, IndexError)
"""What a last layer may raise, having been shown to take the layout, when its tensors are not of the tokens that are read."""


def choose_layout(model: RewardModel, wanted: str, comparisons: Sequence[TokenizedComparison], pad_token_id: int) -> Layout:
    """The layout to train and score in, with the model's attention set for it.

    Args:
        model: on its device, not wrapped.
        wanted: a layout, or `auto`: the first of shared_prefix, packed and padded in which the model is right.
        comparisons: real ones to probe with.
        pad_token_id: for the padded reference.

    Raises:
        RecipeError: an explicit layout in which the model is wrong, or cannot compute.
    """
    candidates = FALLBACKS if wanted == "auto" else (wanted,)
    for layout in FALLBACKS:
        if layout not in candidates:
            continue
        problem = probe(model, layout, comparisons, pad_token_id, narrow=False)
        if problem is None:
            whole = probe(model, layout, comparisons, pad_token_id)
            if whole is not None:
                logger.info("the last layer is computed for all tokens: %s", whole)
            model.use_layout(layout, narrow=whole is None)
            return layout
        if wanted != "auto":
            raise RecipeError(f"batching.layout: {layout} is not for this model: {problem}; set auto, or padded")
        logger.info("layout %s is not for this model: %s", layout, problem)
    raise AssertionError("padded needs no probe")


def probe(
    model: RewardModel, layout: Layout, comparisons: Sequence[TokenizedComparison], pad_token_id: int, narrow: bool = True
) -> str | None:
    """What is wrong with a layout; None when hidden states at the reward positions agree with the padded ones.

    An error counts in proportion to the effect of replacing the tokens before: a fresh model hardly looks at its context, and an
    absolute tolerance would let any mask pass. The model is left in the padded layout.
    """
    if layout == "padded":
        return None
    if not model.pools_last_token:
        return "an encoder looks both ways"
    refusals = NOT_NARROWED if narrow else NOT_TAKEN
    with evaluating(model):
        model.use_layout("padded")
        expected_NH = model.hidden(lay_out(comparisons, pad_token_id).to(model.device))
        other_NH = model.hidden(lay_out([_reversed(row) for row in comparisons], pad_token_id).to(model.device))
        try:
            model.use_layout(layout, narrow)
            got_NH = model.hidden(lay_out(comparisons, pad_token_id, layout).to(model.device))
        except refusals as error:
            return f"it does not take the layout ({type(error).__name__})"
        finally:
            model.use_layout("padded")
    difference, effect = _largest(got_NH - expected_NH), _largest(other_NH - expected_NH)
    if difference <= TOLERANCE[model.dtype] * effect:
        return None
    return f"hidden states differ by {difference:.2g} from the padded ones, where another context changes them by {effect:.2g}"


def probing_comparisons(data: TokenizedData) -> list[TokenizedComparison]:
    """The shortest, middle and longest comparison: windows and long-range scaling show only in long ones."""
    by_length = np.argsort(data.longest, kind="stable")
    numbers = {int(by_length[place]) for place in (0, len(by_length) // 2, -1)}
    return [data[number] for number in sorted(numbers)]


def _reversed(row: TokenizedComparison) -> TokenizedComparison:
    """The same comparison with all tokens but the last of each sequence in reverse order."""
    sequences = tuple([*reversed(sequence[:-1]), sequence[-1]] for sequence in row.sequences)
    return TokenizedComparison(row.id, row.source, sequences, 0, 0, row.preferences)


def _largest(difference_NH: Tensor) -> float:
    return float(difference_NH.float().norm(dim=-1).max())
