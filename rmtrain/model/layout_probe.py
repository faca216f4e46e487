"""The layout in which a model computes the same as padded, found by trying.

Not every architecture can share prefixes: a prompt in an encoder sees its response, ALiBi and linear attention have masks of their own,
and some models do not pass segments to their attention. Instead of keeping a list of models, a run probes its own, on its own
comparisons, before the first step.

Tensor legend: N responses, H hidden size.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.attention import SegmentsNotSeen
from rmtrain.model.reward_model import RewardModel, evaluating

logger = logging.getLogger("rmtrain")

FALLBACKS: tuple[Layout, ...] = ("shared_prefix", "packed", "padded")
LARGEST_ERROR = 1e-4
"""Of a hidden state, as a share of its change when the tokens before it change."""
LARGEST_NOISE = 3.0
"""Of a hidden state, as a multiple of its change by rounding: in a lower type, or when the same tokens are padded otherwise."""
SEGMENT_AWARE = frozenset(("full_attention", "sliding_attention"))
"""Types of layers that keep to their segments."""
FORWARD_ERRORS = (ValueError, TypeError, LookupError, AttributeError)
"""Errors of a model's own forward where its configuration does not suit it."""
LAYOUT_ERRORS = (SegmentsNotSeen, TypeError, ValueError, RuntimeError, IndexError)
"""Errors of models that do not pass segments on, check their arguments, or have a mask of a fixed size."""


def choose_layout(model: RewardModel, wanted: str, comparisons: Sequence[TokenizedComparison], pad_token_id: int) -> Layout:
    """Return the layout for training and scoring, and set the model's attention for it; the model is on its device, without wrappers.

    Args:
        model: computes in the type in which it will train or score.
        wanted: a layout, or `auto`: the first of shared_prefix, packed and padded in which the model is right.
        comparisons: real ones for the probe.

    Raises:
        RecipeError: the model is wrong in the requested layout, or does not support it.
        CheckpointError: its own forward fails.
    """
    probe = LayoutProbe(model, comparisons, pad_token_id)
    for layout in FALLBACKS:
        if wanted not in ("auto", layout):
            continue
        # Two probes, because the layout and the restricted last layer can fail independently: a model may support the layout but
        # have a last layer that needs all tokens, and only then must the layout be kept and the restriction dropped.
        problem = probe.problem(layout, read_tokens_only=False)
        if problem is None:
            restriction = probe.problem(layout) if model.can_restrict else None
            if restriction is not None:
                logger.info("the last layer is computed for all tokens: %s", restriction)
            model.use_layout(layout, read_tokens_only=restriction is None)
            return layout
        if wanted != "auto":
            raise RecipeError(f"batching.layout: {layout} does not work with this model: {problem}; set auto, or padded")
        logger.info("layout %s does not work with this model: %s", layout, problem)
    raise AssertionError("padded needs no probe")


class LayoutProbe:
    """Compares what the head of a model reads in a layout with what it reads in padded rows, for a few comparisons.

    It does so in float32, where a wrong mask shows even in a new model, which hardly looks at its context; and in the type in which the
    model computes, which takes other kernels.
    """

    def __init__(self, model: RewardModel, comparisons: Sequence[TokenizedComparison], pad_token_id: int) -> None:
        self.model, self.comparisons, self.pad_token_id = model, comparisons, pad_token_id
        exact = "float32" if model.dtype == torch.float32 else model.computing  # weights of a lower type have no float32 products
        self.types = tuple(dict.fromkeys((exact, model.computing)))
        self._padded: dict[str, Tensor] = {}
        self._effect: float | None = None

    def problem(self, layout: Layout, read_tokens_only: bool = True) -> str | None:
        """Return the problem with a layout, or None if the hidden states at the reward positions agree with the padded ones.

        The model is left in the padded layout.

        Raises:
            CheckpointError: the model's own forward fails.
        """
        if layout == "padded":
            return None
        if layout == "shared_prefix" and not self.model.pools_last_token:
            return "an encoder reads a prompt together with each response"
        mixing = _other_mixing(self.model.backbone)
        if mixing:
            return f"its {' and '.join(mixing)} layers would pass a state from one response to the next"
        for computing in self.types:
            expected_NH = self._expected(computing)
            try:
                found_NH = self._hidden(self.comparisons, computing, layout, read_tokens_only)
            except torch.OutOfMemoryError:  # a RuntimeError that says nothing about the layout
                raise
            except LAYOUT_ERRORS as error:
                return f"it does not support the layout ({type(error).__name__})"
            difference, tried = _distance(found_NH, expected_NH), []
            for most, change, what in self._limits(computing):
                tried.append(f"{what} changes them by {change:.2g}")
                if difference <= most:
                    break
            else:
                return f"{computing} hidden states differ by {difference:.2g} from the padded ones; {' and '.join(tried)}"
        return None

    def _limits(self, computing: str) -> Iterator[tuple[float, float, str]]:
        """Yield what may change hidden states as much as a layout does: the largest difference, the change, and its name."""
        if computing == self.types[0]:
            # Relative to the effect of another context, since any mask would pass an absolute tolerance in a fresh model.
            effect = self._effect_of_context()
            yield LARGEST_ERROR * effect, effect, "another context"
        else:
            rounding = _distance(self._expected(computing), self._expected(self.types[0]))
            yield LARGEST_NOISE * rounding, rounding, "rounding"
        alone_NH = torch.cat([self._hidden([row], computing) for rows in self.comparisons for row in _alone(rows)])
        noise = _distance(alone_NH, self._expected(computing))
        yield LARGEST_NOISE * noise, noise, "other padding"

    def _expected(self, computing: str) -> Tensor:
        """Return the hidden states in padded rows, which are computed once."""
        if computing not in self._padded:
            try:
                self._padded[computing] = self._hidden(self.comparisons, computing)
            except FORWARD_ERRORS as error:
                raise CheckpointError(f"model: its forward fails: {' '.join(str(error).split())[:300]}") from error
        return self._padded[computing]

    def _effect_of_context(self) -> float:
        """Return the largest change of a hidden state when the tokens before it are in reverse order."""
        if self._effect is None:
            rows = [
                replace(row, sequences=tuple([*reversed(ids[:-1]), ids[-1]] for ids in row.sequences)) for row in self.comparisons
            ]
            self._effect = _distance(self._hidden(rows, self.types[0]), self._expected(self.types[0]))
        return self._effect

    def _hidden(
        self, rows: Sequence[TokenizedComparison], computing: str, layout: Layout = "padded", read_tokens_only: bool = True
    ) -> Tensor:
        """Return what the head reads of each response, float32 [N, H]."""
        model, before = self.model, self.model.computing
        batch = lay_out(rows, self.pad_token_id, layout).to(model.device)
        model.use_layout(layout, read_tokens_only)
        model.computing = computing
        try:
            with evaluating(model):
                return model.hidden(batch)[batch.sequence_N].float()
        finally:
            model.computing = before
            model.use_layout("padded")


def _distance(one_NH: Tensor, other_NH: Tensor) -> float:
    return float((one_NH - other_NH).norm(dim=-1).max())


def _alone(comparison: TokenizedComparison) -> list[TokenizedComparison]:
    """Return a comparison of one response, with nothing to pad, for each response of a comparison."""
    return [replace(comparison, sequences=(ids,), prefix_length=0, preferences=()) for ids in comparison.sequences]


def _other_mixing(backbone: Any) -> list[str]:
    """Return the kinds of a causal model's layers that mix tokens in another way than by attention, which alone gets the segments."""
    kinds = set(getattr(backbone.config.get_text_config(), "layer_types", None) or ()) - SEGMENT_AWARE
    text = getattr(backbone.base_model, "language_model", backbone.base_model)
    if not kinds and any(isinstance(module, nn.Conv1d) for module in text.modules()):  # state space models begin with one
        kinds = {"convolution"}
    return sorted(kinds)


def probing_comparisons(data: TokenizedData) -> list[TokenizedComparison]:
    """Return the shortest, middle and longest comparison: errors of windows and long-range scaling appear only in long ones."""
    by_length = np.argsort(data.longest, kind="stable")
    numbers = {int(by_length[place]) for place in (0, len(by_length) // 2, -1)}
    return [data[number] for number in sorted(numbers)]
