"""The hardest errors of an evaluation as text, and with the reward after each token, for the report."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import PAIR, TokenizedComparison, common_prefix_length
from rmtrain.evaluation.diagnosis import describe_edge, hardest_errors
from rmtrain.evaluation.metrics import EvaluationResult
from rmtrain.evaluation.token_rewards import Parting, TokenReader, TokenRewards, parting, with_scores
from rmtrain.report.token_strip import LEVELS, RewardScale, parting_marks, token_bytes

HARDEST = 12
"""Errors that a report lists."""
MAX_SHOWN = 400
"""Tokens of a response that are shown, from CONTEXT tokens before the first difference."""
CONTEXT = 40


class TokenSpan(NamedTuple):
    """A token, or several that together are one character, as text.

    level: step of the scale, `LEVELS` in all; None for a note on tokens that are left out.
    reward: after the last of these tokens.
    mark: signs before it, see `parting_marks`.
    """

    text: str
    level: int | None
    reward: str
    mark: str


class TokenSpans(NamedTuple):
    """The tokens of the chosen and the rejected response, the rewards of the levels, and where the responses part, from token 1."""

    sides: tuple[list[TokenSpan], list[TokenSpan]]
    levels: list[str]
    tokens: int
    rewards: int


def with_errors(evaluation: EvaluationResult, data: TokenizedData, tokenizer: Any, reader: TokenReader) -> EvaluationResult:
    """Return an evaluation with its hardest errors, worst first, as `describe_edge` does; `data` are the comparisons that were evaluated.

    Of a causal model, each also has `tokens`, a TokenSpans; an encoder would take a forward for each token. All ranks of a sharded model
    have to call this.
    """
    rows = []
    for number, edge in hardest_errors(evaluation.scored, HARDEST):
        comparison = data[number]
        row = describe_edge(comparison, edge, evaluation.scored[number].rewards, tokenizer)
        if reader.reads_in_one_pass:
            two = (comparison.sequences[edge.winner], comparison.sequences[edge.loser])
            prefix = common_prefix_length(two)
            pair = replace(comparison, sequences=two, prefix_length=prefix, preferences=PAIR, targets=(), cut=())
            row["tokens"] = token_spans(pair, with_scores(reader.read(pair), row["rewards"]), tokenizer)
        rows.append(row)
    return replace(evaluation, hardest=rows)


def token_spans(pair: TokenizedComparison, rewards: Sequence[TokenRewards], tokenizer: Any) -> TokenSpans | None:
    """Return the tokens of both responses with the rewards after them; None if a reward is missing or not finite, or both end equal."""
    first = min(pair.prompt_length, pair.prefix_length)
    own = [[float("nan") if reward is None else reward for reward in of_response[first:]] for of_response in rewards]
    parts = parting(pair.sequences, rewards)
    if parts.rewards is None or not all(math.isfinite(reward) for of_response in own for reward in of_response):
        return None
    scale = RewardScale.of(reward for of_response in own for reward in of_response)
    chosen, rejected = (
        _spans([int(token) for token in sequence[first:]], of_response, scale, parts, first, tokenizer)
        for sequence, of_response in zip(pair.sequences, own, strict=True)
    )
    levels = [scale.format(scale.middle(level)) for level in range(LEVELS)]
    return TokenSpans((chosen, rejected), levels, parts.tokens - first + 1, parts.rewards - first + 1)


def _spans(
    ids: Sequence[int], rewards: Sequence[float], scale: RewardScale, parts: Parting, first: int, tokenizer: Any
) -> list[TokenSpan]:
    marks = parting_marks(parts.tokens, parts.rewards)
    difference = parts.tokens - first
    start = difference - CONTEXT if difference > 2 * CONTEXT else 0
    end = min(len(ids), start + MAX_SHOWN)
    spans = [_cut(start)] if start else []
    whole, mark = b"", ""
    for place, raw in enumerate(token_bytes(ids[start:end], tokenizer), start=start):
        whole, mark = whole + raw, mark + marks.get(first + place, "")
        if place + 1 < end and _is_incomplete(whole):
            continue
        text = whole.decode(errors="backslashreplace")
        spans.append(TokenSpan(text, scale.level(rewards[place]), scale.format(rewards[place]), mark))
        whole, mark = b"", ""
    return [*spans, *([_cut(len(ids) - end)] if end < len(ids) else [])]


def _is_incomplete(raw: bytes) -> bool:
    """Return True if bytes end within a character of UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _cut(tokens: int) -> TokenSpan:
    return TokenSpan(f" [{tokens:,} tokens left out] ", None, "", "")
