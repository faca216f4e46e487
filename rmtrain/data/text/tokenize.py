"""The one render-and-encode function: what is trained on, evaluated and scored goes through here."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison, Tokens, rows_of
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.prefix import common_prefix_length
from rmtrain.data.rows.responses import Checked, dropped, without
from rmtrain.data.text.encoders import Encoded, encode_texts, text_encoder
from rmtrain.data.text.lengths import fit_prompt, overlong
from rmtrain.data.text.render import Conversation, render_all
from rmtrain.data.text.renderer import Rendered, Renderer
from rmtrain.data.text.special_tokens import EdgeTokens, edge_tokens
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

NAMED_ROWS = 5
REWRITTEN = "the chat template changes the text of a response"
HIDDEN = "the chat template does not write what a message has in"


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, ids: Sequence[str] | None = None
) -> list[list[int]]:
    """The tokens of whole conversations, each ending in its end token; no length limit.

    Args:
        conversations: messages, ending with a reply.
        tokenizer: one that `load_tokenizer` gave.
        ids: row ids for errors; None: their numbers.
    """
    texts = render_all(conversations, tokenizer, ids or [f"conversation {number}" for number in range(len(conversations))])
    return list(encode_texts(texts, tokenizer, edge_tokens(tokenizer))["input_ids"]) if texts else []


def encode_comparisons(
    comparisons: Sequence[Comparison], tokenizer: PreTrainedTokenizerBase, data: Data
) -> list[TokenizedComparison | Dropped]:
    """The tokens of each comparison, or why it is dropped; see `Encoder`. Rows that a comparison lost follow it."""
    checked = Encoder(tokenizer, data).encode(comparisons)
    return [item for row in checked for item in (row.row, *row.lost) if item is not None]


class Encoder:
    """Comparisons to tokens. What it has seen makes it faster and never changes what it gives.

    Args:
        tokenizer: one that `load_tokenizer` gave.
        data: length policy, and whether a template may rewrite responses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        self.tokenizer, self.data = tokenizer, data
        self.renderer, self.texts, self.edges = Renderer(tokenizer), text_encoder(tokenizer), edge_tokens(tokenizer)

    def encode(self, comparisons: Sequence[Comparison]) -> list[Checked]:
        """The tokens of each comparison with the responses that stay, in the order given.

        `prompt_length` counts the tokens before the first token of a response's own text: the rendered prompt and what announces a
        reply.

        Args:
            comparisons: a batch, some hundreds to thousands: its texts are encoded in one call.

        Raises:
            DataError: the template fails on a row, or `overlong: error` and rows are too long.
        """
        rendered = self.renderer.render(comparisons)
        encoded = self.texts.encode([row.texts for row in rendered])
        rows = [self._row(*parts) for parts in zip(comparisons, rendered, encoded, strict=True)]
        return self._checked(rows, self.data)

    def check(self, rows: Sequence[TokenizedComparison]) -> list[Checked]:
        """Hold rows that came as tokens to the end token, to different responses and to the length policy.

        Raises:
            DataError: `overlong: error` and rows are too long.
        """
        as_they_are = {"max_prompt_length": None, "overlong": "error" if self.data.overlong == "error" else "drop"}
        vocabulary = len(self.tokenizer)
        unknown = [_unknown(row.sequences, vocabulary) for row in rows]
        return self._checked(list(zip(rows, unknown, strict=True)), self.data.model_copy(update=as_they_are))

    def _row(self, row: Comparison, rendered: Rendered, encoded: Encoded) -> tuple[TokenizedComparison, dict[int, BadRow]]:
        sequences = tuple(encoded.sequences)
        prefix = common_prefix_length(sequences)
        prompt = prefix if encoded.begin is None else min(encoded.begin, prefix)
        faults = {} if self.data.allow_rewritten else {k: BadRow("rewritten_by_template", REWRITTEN) for k in rendered.rewritten}
        faults |= {k: BadRow("hidden_by_template", f"{HIDDEN} {key}") for k, key in rendered.hidden.items()}
        return TokenizedComparison(row.id, row.source, sequences, prefix, prompt, row.preferences), faults

    def _checked(self, rows: Sequence[tuple[TokenizedComparison, dict[int, BadRow]]], data: Data) -> list[Checked]:
        checked = [_checked(row, faults, self.edges, data) for row, faults in rows]
        if data.overlong == "error":
            _refuse_overlong([lost for row in checked for lost in row.lost])
        return checked


def _unknown(sequences: Sequence[Tokens], vocabulary: int) -> dict[int, BadRow]:
    highest = {number: max(sequence) for number, sequence in enumerate(sequences)}
    return {
        number: BadRow("unknown_token", f"token {token} is not among the {vocabulary} of the tokenizer")
        for number, token in highest.items()
        if token >= vocabulary
    }


def _checked(row: TokenizedComparison, faults: dict[int, BadRow], edges: EdgeTokens, data: Data) -> Checked:
    first = row.sequences[0]
    leading = len(edges.leading) if tuple(first[: len(edges.leading)]) == edges.leading else 0
    checked = without(row, {**overlong(row, data, leading), **_without_one_end(row.sequences, edges.end), **faults})
    if checked.row is None:
        return checked
    try:
        fitting = fit_prompt(checked.row, data, leading)
    except BadRow as problem:
        return Checked(None, lost=tuple(dropped(row_id, row.source, problem) for row_id in rows_of(row)))
    return checked if fitting is checked.row else replace(checked, row=fitting)


def _without_one_end(sequences: Sequence[Tokens], end: int) -> dict[int, BadRow]:
    faults = {}
    for number, sequence in enumerate(sequences):
        if sequence[-1] != end:
            faults[number] = BadRow("missing_end_token", f"the last token is {sequence[-1]}, not the end token {end}")
        elif len(sequence) > 1 and sequence[-2] == end:
            faults[number] = BadRow("double_end_token", "a response ends in two end tokens")
    return faults


def _refuse_overlong(rows: Sequence[Dropped]) -> None:
    refused = [row for row in rows if row.reason in ("too_long", "prompt_too_long")]
    if refused:
        named = "; ".join(f"{row.id}: {row.detail}" for row in refused[:NAMED_ROWS])
        more = f" and {len(refused) - NAMED_ROWS} more" if len(refused) > NAMED_ROWS else ""
        raise DataError(f"data.overlong is error, and rows are too long: {named}{more}")
