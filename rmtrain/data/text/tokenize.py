"""Comparisons to tokens: the one render-and-encode path of preprocess, train, eval and score, with its length policy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import (
    BadRow,
    Comparison,
    Dropped,
    TokenizedComparison,
    Tokens,
    common_prefix_length,
    dropped,
    rows_of,
)
from rmtrain.data.rows.responses import Checked, without
from rmtrain.data.text.render import Conversation, Rendered, Renderer, render_all
from rmtrain.data.text.text_encoder import Encoded, TextEncoder
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """The longest sequence and prompt in tokens, None for no limit, and what becomes of a longer one.

    `drop` and `error` refuse it. `truncate_prompt_left` removes tokens from the beginning of the prompt and never from a response.
    `cut` removes tokens from the beginning of each sequence on its own, as RewardBench does (`truncation_side` left). Special tokens at
    the beginning, such as `<s>`, and the end, where the reward is read, always stay.
    """

    max_length: int | None
    max_prompt_length: int | None = None
    overlong: Literal["drop", "error", "truncate_prompt_left", "cut"] = "error"

    @classmethod
    def of(cls, data: Data) -> Self:
        """Return the policy of a recipe."""
        return cls(data.max_length, data.max_prompt_length, data.overlong)


def find_overlong(row: TokenizedComparison, policy: LengthPolicy, leading: int) -> dict[int, BadRow]:
    """Return why a response is too long, by its number: `too_long`, or `response_too_long` where the prompt may be truncated.

    Args:
        row: the comparison.
        policy: the limits.
        leading: special tokens at the beginning of each sequence, such as `<s>`.
    """
    faults: dict[int, BadRow] = {}
    if policy.max_length is None or policy.overlong == "cut":
        return faults
    for number, sequence in enumerate(row.sequences):
        excess = len(sequence) - policy.max_length
        if excess > 0 and policy.overlong != "truncate_prompt_left":
            faults[number] = BadRow("too_long", f"{len(sequence)} tokens, over max_length {policy.max_length}")
        elif excess > row.prompt_length - leading:
            own = len(sequence) - row.prompt_length
            faults[number] = BadRow("response_too_long", f"response of {own} tokens alone is over max_length {policy.max_length}")
    return faults


def truncate(row: TokenizedComparison, policy: LengthPolicy, leading: int) -> TokenizedComparison:
    """Return the comparison within the limits; none of its responses is in `find_overlong`.

    `truncate_prompt_left` removes the same tokens for every response, so that the prefix stays shared and the responses stay different.
    What remains may begin in the middle of a message.

    Raises:
        BadRow: `prompt_too_long`, where the prompt may not be truncated.
    """
    excess = [max(0, len(sequence) - (policy.max_length or len(sequence))) for sequence in row.sequences]
    if policy.overlong == "cut":
        if not any(excess):
            return row
        sequences = tuple(_without_begin(*item, leading) for item in zip(row.sequences, excess, strict=True))
        prefix = common_prefix_length(sequences) if len(sequences) > 1 else 0
        return replace(row, sequences=sequences, prefix_length=prefix, prompt_length=prefix)
    prompt_excess = row.prompt_length - policy.max_prompt_length if policy.max_prompt_length is not None else 0
    removed = min(max(*excess, prompt_excess), row.prompt_length - leading)
    if removed <= 0:
        return row
    if policy.overlong != "truncate_prompt_left":
        detail = f"prompt of {row.prompt_length} tokens, over max_prompt_length {policy.max_prompt_length}"
        raise BadRow("prompt_too_long", detail)
    return replace(
        row,
        sequences=tuple(_without_begin(sequence, removed, leading) for sequence in row.sequences),
        prefix_length=row.prefix_length - removed,
        prompt_length=row.prompt_length - removed,
    )


def _without_begin(sequence: Tokens, count: int, leading: int) -> Tokens:
    return np.delete(sequence, slice(leading, leading + count)) if count else sequence


class Encoder:
    """Comparisons to tokens.

    Args:
        tokenizer: one that `load_tokenizer` or `prepared` returned.
        policy: what becomes of long sequences.
        allow_rewritten: keep responses that the chat template changes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: LengthPolicy, allow_rewritten: bool = False) -> None:
        self.tokenizer, self.policy, self.allow_rewritten = tokenizer, policy, allow_rewritten
        self.renderer, self.texts = Renderer(tokenizer), TextEncoder(tokenizer)
        self.edges = self.texts.edges

    def encode(self, comparisons: Sequence[Comparison]) -> list[Checked]:
        """Return the tokens of each comparison with the responses that can be trained on, in the order given.

        `prompt_length` counts the tokens before the first token of a response's own text: the rendered prompt and the text that
        announces a reply.

        Args:
            comparisons: a batch, some hundreds to thousands: its texts are encoded in one call.

        Raises:
            DataError: the template fails on a row, or `overlong: error` and rows are too long.
        """
        rendered = self.renderer.render(comparisons)
        encoded = self.texts.encode(rendered)
        return self._checked([self._row(*parts) for parts in zip(comparisons, rendered, encoded, strict=True)], self.policy)

    def check(self, rows: Sequence[TokenizedComparison]) -> list[Checked]:
        """Check rows that came as tokens: known tokens, one end token, different responses, and the length policy without truncation.

        Raises:
            DataError: `overlong: error` and rows are too long.
        """
        vocabulary = len(self.tokenizer)
        with_faults = []
        for row in rows:
            highest = {number: max(sequence) for number, sequence in enumerate(row.sequences)}
            unknown = {
                number: BadRow("unknown_token", f"token {token} is not one of the tokenizer's {vocabulary}")
                for number, token in highest.items()
                if token >= vocabulary
            }
            with_faults.append((row, unknown))
        overlong: Literal["error", "drop"] = "error" if self.policy.overlong == "error" else "drop"
        return self._checked(with_faults, LengthPolicy(self.policy.max_length, None, overlong))

    def encode_for_scoring(self, rows: Sequence[Comparison]) -> tuple[list[TokenizedComparison], list[bool]]:
        """Return the tokens of each row with all its responses, and whether some of them were cut.

        `prompt_length` is `prefix_length`: where a response begins does not matter to its reward.

        Raises:
            DataError: the template fails on a row, or a response is too long; the row is named.
        """
        conversations = [(*row.prompt, *response) for row in rows for response in row.responses]
        encoded = iter(self.encode_conversations(conversations, [row.id for row in rows for _ in row.responses]))
        comparisons, are_cut = [], []
        for row in rows:
            sequences = tuple(next(encoded) for _ in row.responses)
            prefix = common_prefix_length(sequences) if len(sequences) > 1 else 0
            whole = TokenizedComparison(row.id, row.source, sequences, prefix, prefix, row.preferences)
            for number, fault in find_overlong(whole, self.policy, leading=0).items():
                name = f"{row.id}, response {number + 1}" if len(sequences) > 1 else row.id
                raise DataError(f"{name}: {fault.detail}; shorten it, or set overlong to cut")
            comparisons.append(truncate(whole, self.policy, self._leading(whole)))
            are_cut.append(comparisons[-1] is not whole)
        return comparisons, are_cut

    def encode_conversations(self, conversations: Sequence[Conversation], ids: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the tokens of whole conversations, whatever their length, each ending in its end token.

        Raises:
            DataError: the template fails on one; it is named by its row id.
        """
        texts = render_all(conversations, self.tokenizer, ids)
        return [row.sequences[0] for row in self.texts.encode([Rendered([text]) for text in texts])]

    def _row(self, row: Comparison, rendered: Rendered, encoded: Encoded) -> tuple[TokenizedComparison, dict[int, BadRow]]:
        sequences = tuple(encoded.sequences)
        prefix = common_prefix_length(sequences)
        prompt = prefix if encoded.begin is None else min(encoded.begin, prefix)
        changed = BadRow("rewritten_by_template", "the chat template changes the text of a response")
        faults = {} if self.allow_rewritten else dict.fromkeys(rendered.rewritten, changed)
        for number, key in rendered.hidden.items():
            faults[number] = BadRow("hidden_by_template", f"the chat template does not write a message's {key}")
        return TokenizedComparison(row.id, row.source, sequences, prefix, prompt, row.preferences), faults

    def _leading(self, row: TokenizedComparison) -> int:
        first = row.sequences[0][: len(self.edges.leading)]
        return len(self.edges.leading) if tuple(first) == self.edges.leading else 0

    def _checked(self, rows: Sequence[tuple[TokenizedComparison, dict[int, BadRow]]], policy: LengthPolicy) -> list[Checked]:
        checked = [self._checked_row(row, faults, policy) for row, faults in rows]
        if policy.overlong == "error":
            _refuse_overlong([lost for row in checked for lost in row.lost])
        return checked

    def _checked_row(self, row: TokenizedComparison, faults: dict[int, BadRow], policy: LengthPolicy) -> Checked:
        leading, ends = self._leading(row), dict[int, BadRow]()
        for number, sequence in enumerate(row.sequences):
            if sequence[-1] != self.edges.end:
                detail = f"the last token is {sequence[-1]}, not the end token {self.edges.end}"
                ends[number] = BadRow("missing_end_token", detail)
            elif len(sequence) > 1 and sequence[-2] == self.edges.end:
                ends[number] = BadRow("double_end_token", "a response ends in two end tokens")
        checked = without(row, {**find_overlong(row, policy, leading), **ends, **faults})
        if checked.row is None:
            return checked
        try:
            fitting = truncate(checked.row, policy, leading)
        except BadRow as problem:
            return Checked(None, lost=tuple(dropped(row_id, row.source, problem) for row_id in rows_of(row)))
        return checked if fitting is checked.row else replace(checked, row=fitting)


def _refuse_overlong(rows: Sequence[Dropped]) -> None:
    refused = [row for row in rows if row.reason in ("too_long", "prompt_too_long")]
    if refused:
        named = "; ".join(f"{row.id}: {row.detail}" for row in refused[:NAMED_ROWS])
        more = f" and {len(refused) - NAMED_ROWS} more" if len(refused) > NAMED_ROWS else ""
        raise DataError(f"data.overlong is error, and rows are too long: {named}{more}; shorten them, or raise data.max_length")


def encode_conversations(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of whole conversations, each ending with a reply, as lists; see `Encoder.encode_conversations`."""
    encoder = Encoder(tokenizer, LengthPolicy(None))
    ids = [f"conversation {number}" for number in range(len(conversations))]
    return [tokens.tolist() for tokens in encoder.encode_conversations(conversations, ids)]
