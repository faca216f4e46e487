"""The layout probe: test that a model computes the same in a layout as in its own padded forward.

Not every architecture can share prefixes: encoders are bidirectional, ALiBi and linear attention have masks of their own, and some
models do not pass segments to their attention. Instead of keeping a list of models, a run tests its own, on its own comparisons, before
the first step.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import RecipeError
from rmtrain.model.attention import SegmentsNotSeen
from rmtrain.model.reward_model import RewardModel, evaluating

logger = logging.getLogger("rmtrain")

FALLBACKS: tuple[Layout, ...] = ("shared_prefix", "packed", "padded")
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.2}
"""Largest error, as a share of the change of a hidden state when the tokens before it change."""
LAYOUT_ERRORS = (SegmentsNotSeen, TypeError, ValueError)
"""Errors of models that do not pass segments on, or check their arguments."""
LAST_TOKEN_ERRORS = (*LAYOUT_ERRORS, RuntimeError, IndexError)
"""Errors of a last layer that supports the layout, but not the selection of tokens."""


def choose_layout(model: RewardModel, wanted: str, comparisons: Sequence[TokenizedComparison], pad_token_id: int) -> Layout:
    """Return the layout for training and scoring, and set the model's attention for it; the model is on its device, without wrappers.

    Args:
        wanted: a layout, or `auto`: the first of shared_prefix, packed and padded in which the model is right.
        comparisons: real ones for the probe.

    Raises:
        RecipeError: the model is wrong in the requested layout, or does not support it.
    """
    for layout in FALLBACKS:
        if wanted not in ("auto", layout):
            continue
        # Two probes, because the layout and the restricted last layer can fail independently: a model may support the layout but
        # have a last layer that needs all tokens, and only then must the layout be kept and the restriction dropped.
        problem = probe(model, layout, comparisons, pad_token_id, last_token_only=False)
        if problem is None:
            restriction = probe(model, layout, comparisons, pad_token_id)
            if restriction is not None:
                logger.info("the last layer is computed for all tokens: %s", restriction)
            model.use_layout(layout, last_token_only=restriction is None)
            return layout
        if wanted != "auto":
            raise RecipeError(f"batching.layout: {layout} does not work with this model: {problem}; set auto, or padded")
        logger.info("layout %s does not work with this model: %s", layout, problem)
    raise AssertionError("padded needs no probe")


def probe(
    model: RewardModel,
    layout: Layout,
    comparisons: Sequence[TokenizedComparison],
    pad_token_id: int,
    last_token_only: bool = True,
) -> str | None:
    """Return the problem with a layout, or None if the hidden states at the reward positions agree with the padded ones.

    The model is left in the padded layout.
    """
    if layout == "padded":
        return None
    if not model.pools_last_token:
        return "an encoder is bidirectional"
    refusals = LAST_TOKEN_ERRORS if last_token_only else LAYOUT_ERRORS
    with evaluating(model):
        model.use_layout("padded")
        expected_NH = model.hidden(lay_out(comparisons, pad_token_id).to(model.device))
        # Another context: the tokens of each sequence, except the last, in reverse order.
        others = [
            TokenizedComparison(row.id, row.source, tuple([*reversed(ids[:-1]), ids[-1]] for ids in row.sequences), 0, 0, ())
            for row in comparisons
        ]
        other_NH = model.hidden(lay_out(others, pad_token_id).to(model.device))
        try:
            model.use_layout(layout, last_token_only)
            actual_NH = model.hidden(lay_out(comparisons, pad_token_id, layout).to(model.device))
        except refusals as error:
            return f"it does not support the layout ({type(error).__name__})"
        finally:
            model.use_layout("padded")
    # Relative to the effect of another context: a fresh model hardly looks at its context, and any mask would pass an absolute tolerance.
    difference, effect = (float((hidden - expected_NH).float().norm(dim=-1).max()) for hidden in (actual_NH, other_NH))
    if difference <= TOLERANCE[model.dtype] * effect:
        return None
    return f"hidden states differ by {difference:.2g} from the padded ones, where another context changes them by {effect:.2g}"


def probing_comparisons(data: TokenizedData) -> list[TokenizedComparison]:
    """Return the shortest, middle and longest comparison: errors of windows and long-range scaling appear only in long ones."""
    by_length = np.argsort(data.longest, kind="stable")
    numbers = {int(by_length[place]) for place in (0, len(by_length) // 2, -1)}
    return [data[number] for number in sorted(numbers)]
