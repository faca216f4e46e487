"""Comparisons to tokens: the one render-and-encode path of preprocess, train, eval and score, with its length policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import (
    BadRow,
    Comparison,
    Dropped,
    Preference,
    TokenizedComparison,
    Tokens,
    common_prefix_length,
    dropped,
    rows_of,
)
from rmtrain.data.rows.labels import pruned
from rmtrain.data.rows.select import name_rows
from rmtrain.data.text.templates import Conversation, Rendered, Renderer, render_all
from rmtrain.data.text.text_encoder import TextEncoder
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data


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
    """Return why responses are too long, by number: `too_long`, or `response_too_long` where the prompt may be truncated.

    `leading` counts the special tokens at the beginning of each sequence, such as `<s>`.
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


@dataclass(frozen=True, slots=True)
class Checked:
    """The remainder of a comparison."""

    row: TokenizedComparison | None
    """The comparison, under the id of the first of its rows that remains; None: nothing remains."""
    responses: Sequence[int] = ()
    """The responses that remain, by their previous numbers."""
    lost: tuple[Dropped, ...] = ()
    """Rows of which nothing remains."""
    left_out: tuple[str, ...] = ()
    """Reasons of responses that were removed, where no lost row counts them."""


def without(row: TokenizedComparison, faults: Mapping[int, BadRow]) -> Checked:
    """Return a comparison without its faulty responses, whose problems `faults` has by number.

    Responses with equal tokens are merged; those without a preference are left out.
    """
    numbers = range(len(row.sequences))
    same_as: Sequence[int] = numbers
    if len(set(map(len, row.sequences))) < len(row.sequences):  # responses of different lengths cannot be equal
        first: dict[bytes, int] = {}
        same_as = [first.setdefault(np.asarray(row.sequences[number], np.int32).tobytes(), number) for number in numbers]
    if not faults and list(same_as) == list(numbers):
        return Checked(row, same_as)
    edges: list[Preference] = []
    problems: dict[str, BadRow] = {}
    for edge in row.preferences:
        winner, loser = same_as[edge.winner], same_as[edge.loser]
        faulty = [number for number in (winner, loser) if number in faults]
        if faulty:
            problem = faults[max(faulty, key=lambda number: len(row.sequences[number]))]
        elif winner == loser:
            problem = BadRow("identical", "the responses have the same tokens")
        else:
            edges.append(replace(edge, winner=winner, loser=loser))
            continue
        problems.update(dict.fromkeys(edge.rows or (row.id,), problem))
    used, kept = pruned(edges)
    rows = rows_of(replace(row, preferences=kept))
    lost = tuple(dropped(row_id, row.source, problem) for row_id, problem in problems.items() if row_id not in rows)
    left_out = () if lost else tuple(problem.reason for problem in faults.values())
    if not kept:
        return Checked(None, lost=lost, left_out=left_out)
    sequences = tuple(row.sequences[number] for number in used)
    prefix = common_prefix_length(sequences)
    remaining = TokenizedComparison(rows[0], row.source, sequences, prefix, min(row.prompt_length, prefix), kept)
    return Checked(remaining, used, lost, left_out)


class Encoder:
    """Encodes comparisons, with a tokenizer that `load_tokenizer` or `prepared` returned.

    `allow_rewritten` keeps responses that the chat template changes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: LengthPolicy, allow_rewritten: bool = False) -> None:
        self.tokenizer, self.policy, self.allow_rewritten = tokenizer, policy, allow_rewritten
        self.renderer, self.texts = Renderer(tokenizer), TextEncoder(tokenizer)
        self.edges = self.texts.edges

    def encode(self, comparisons: Sequence[Comparison]) -> list[Checked]:
        """Return the tokens of each comparison with the responses that can be trained on; some hundreds at once are fastest.

        `prompt_length` counts the tokens before a response's own text: the rendered prompt and the text that announces a reply.

        Raises:
            DataError: the template fails on a row, or `overlong: error` and rows are too long.
        """
        rendered = self.renderer.render(comparisons)
        changed = BadRow("rewritten_by_template", "the chat template changes the text of a response")
        rows = []
        for row, texts, encoded in zip(comparisons, rendered, self.texts.encode(rendered), strict=True):
            sequences = tuple(encoded.sequences)
            prefix = common_prefix_length(sequences)
            prompt = prefix if encoded.begin is None else min(encoded.begin, prefix)
            faults = {} if self.allow_rewritten else dict.fromkeys(texts.rewritten, changed)
            for number, key in texts.hidden.items():
                faults[number] = BadRow("hidden_by_template", f"the chat template does not write a message's {key}")
            rows.append((TokenizedComparison(row.id, row.source, sequences, prefix, prompt, row.preferences), faults))
        return self._checked(rows, self.policy)

    def check(self, rows: Sequence[TokenizedComparison]) -> list[Checked]:
        """Check rows that came as tokens: known tokens, one end token, different responses, and the length policy without truncation.

        Raises:
            DataError: `overlong: error` and rows are too long.
        """
        vocabulary = len(self.tokenizer)
        with_faults = []
        for row in rows:
            faults = {
                number: BadRow("unknown_token", f"token {max(sequence)} is not one of the tokenizer's {vocabulary}")
                for number, sequence in enumerate(row.sequences)
                if max(sequence) >= vocabulary
            }
            with_faults.append((row, faults))
        overlong: Literal["error", "drop"] = "error" if self.policy.overlong == "error" else "drop"
        return self._checked(with_faults, LengthPolicy(self.policy.max_length, None, overlong))

    def encode_for_scoring(self, rows: Sequence[Comparison]) -> tuple[list[TokenizedComparison], list[bool]]:
        """Return the tokens of each row with all its responses, and whether some were cut. `prompt_length` is just `prefix_length`.

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
        """Return the tokens of whole conversations, whatever their length; raises DataError, with the row id, where the template fails."""
        texts = render_all(conversations, self.tokenizer, ids)
        return [row.sequences[0] for row in self.texts.encode([Rendered([text]) for text in texts])]

    def _leading(self, row: TokenizedComparison) -> int:
        first = row.sequences[0][: len(self.edges.leading)]
        return len(self.edges.leading) if tuple(first) == self.edges.leading else 0

    def _checked(self, rows: Sequence[tuple[TokenizedComparison, dict[int, BadRow]]], policy: LengthPolicy) -> list[Checked]:
        checked = [self._checked_row(row, faults, policy) for row, faults in rows]
        lost = [lost for row in checked for lost in row.lost if lost.reason in ("too_long", "prompt_too_long")]
        if lost and policy.overlong == "error":
            named = name_rows(lost)
            raise DataError(f"data.overlong is error, and rows are too long: {named}; shorten them, or raise data.max_length")
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


def encode_conversations(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of whole conversations, each ending with a reply, as lists; see `Encoder.encode_conversations`."""
    encoder = Encoder(tokenizer, LengthPolicy(None))
    ids = [f"conversation {number}" for number in range(len(conversations))]
    return [tokens.tolist() for tokens in encoder.encode_conversations(conversations, ids)]
