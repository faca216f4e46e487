"""The one render-and-encode function: what is trained on, evaluated and scored goes through here."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import BatchEncoding, PreTrainedTokenizerBase

from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison
from rmtrain.data.lengths import fit
from rmtrain.data.messages import BadRow
from rmtrain.data.prefix import common_prefix_length
from rmtrain.data.render import Conversation, render_all
from rmtrain.data.special_tokens import EdgeTokens, edge_tokens
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

NAMED_ROWS = 5


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
    return list(_encode(texts, tokenizer, edge_tokens(tokenizer))["input_ids"]) if texts else []


def encode_comparisons(
    comparisons: Sequence[Comparison], tokenizer: PreTrainedTokenizerBase, data: Data
) -> list[TokenizedComparison | Dropped]:
    """The tokens of each comparison, or why it is dropped, in the order given. A pure function of its arguments.

    `prompt_length` counts the tokens before the first token of the response's text: the rendered prompt and what announces a reply.

    Args:
        comparisons: a batch, some hundreds to thousands: its texts are encoded in one call.
        tokenizer: one that `load_tokenizer` gave.
        data: length policy, and whether a template may rewrite responses.

    Raises:
        DataError: the template fails on a row, or `overlong: error` and rows are too long.
    """
    if not comparisons:
        return []
    edges = edge_tokens(tokenizer)
    rendered = _render_comparisons(comparisons, tokenizer)
    encoding = _encode([text for texts in rendered for text in texts.whole], tokenizer, edges)
    first, encoded = 0, []
    for comparison, texts in zip(comparisons, rendered, strict=True):
        encoded.append(_comparison(comparison, texts, encoding, first, data))
        first += len(texts.whole)
    return check_tokens(encoded, tokenizer, data)


def check_tokens(
    rows: Sequence[TokenizedComparison | Dropped], tokenizer: PreTrainedTokenizerBase, data: Data
) -> list[TokenizedComparison | Dropped]:
    """Hold tokenized comparisons to the end token, to different responses and to the length policy.

    Raises:
        DataError: `overlong: error` and rows are too long.
    """
    edges, vocabulary = edge_tokens(tokenizer), len(tokenizer)
    checked: list[TokenizedComparison | Dropped] = []
    for row in rows:
        try:
            checked.append(row if isinstance(row, Dropped) else _checked(row, edges, vocabulary, data))
        except BadRow as problem:
            checked.append(Dropped(row.id, row.source, problem.reason, problem.detail))
    if data.overlong == "error":
        _refuse_overlong(checked)
    return checked


@dataclass(frozen=True, slots=True)
class _Texts:
    """A comparison as text. `begin` is where the first response's own text begins, None where the template rewrote a response."""

    whole: list[str]
    begin: int | None


def _render_comparisons(comparisons: Sequence[Comparison], tokenizer: PreTrainedTokenizerBase) -> list[_Texts]:
    conversations = [(*row.prompt, *response) for row in comparisons for response in row.responses]
    texts = iter(render_all(conversations, tokenizer, [row.id for row in comparisons for _ in row.responses]))
    prompted = [row for row in comparisons if row.prompt]
    prompts = iter(render_all([row.prompt for row in prompted], tokenizer, [row.id for row in prompted], True))
    rendered = []
    for row in comparisons:
        whole = [next(texts) for _ in row.responses]
        prompt = next(prompts) if row.prompt else ""
        begins = [_begin_of(response, text, _shared(prompt, text)) for response, text in zip(row.responses, whole, strict=True)]
        rendered.append(_Texts(whole, begins[0] if None not in begins else None))
    return rendered


def _shared(prompt: str, text: str) -> int:
    """Characters that both begin with."""
    if text.startswith(prompt):
        return len(prompt)
    low, high = 0, min(len(prompt), len(text))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prompt[:middle] == text[:middle] else (low, middle - 1)
    return low


def _begin_of(response: Conversation, text: str, position: int) -> int | None:
    """Where the response begins in the text after `position`; None if a message is not there as it was, save the space around it."""
    begin: int | None = None
    for message in response:
        content = message["content"].strip()
        position = text.find(content, position)
        if position < 0:
            return None
        begin = position if begin is None else begin
        position += len(content)
    return begin


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> BatchEncoding:
    return tokenizer(
        list(texts),
        add_special_tokens=not edges.in_template,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


def _comparison(row: Comparison, texts: _Texts, encoding: BatchEncoding, first: int, data: Data) -> TokenizedComparison | Dropped:
    if texts.begin is None and not data.allow_rewritten:
        return Dropped(row.id, row.source, "rewritten_by_template", "the chat template changes the text of a response")
    sequences = tuple(encoding["input_ids"][first : first + len(texts.whole)])
    prefix = common_prefix_length(sequences)
    begin = encoding.char_to_token(first, texts.begin) if texts.begin is not None else None
    prompt = prefix if begin is None else min(begin, prefix)
    return TokenizedComparison(row.id, row.source, sequences, prefix, prompt, row.preferences)


def _checked(row: TokenizedComparison, edges: EdgeTokens, vocabulary: int, data: Data) -> TokenizedComparison:
    for sequence in row.sequences:
        if max(sequence) >= vocabulary:
            raise BadRow("unknown_token", f"token {max(sequence)} is not among the {vocabulary} of the tokenizer")
        if sequence[-1] != edges.end:
            raise BadRow("missing_end_token", f"the last token is {sequence[-1]}, not the end token {edges.end}")
        if len(sequence) > 1 and sequence[-2] == edges.end:
            raise BadRow("double_end_token", "a response ends in two end tokens")
    if any(sequence == row.sequences[0] for sequence in row.sequences[1:]):
        raise BadRow("identical", "the responses have the same tokens")
    leading = len(edges.leading) if list(row.sequences[0][: len(edges.leading)]) == list(edges.leading) else 0
    return fit(row, data, leading)


def _refuse_overlong(rows: Sequence[TokenizedComparison | Dropped]) -> None:
    overlong = [row for row in rows if isinstance(row, Dropped) and row.reason in ("too_long", "prompt_too_long")]
    if overlong:
        named = "; ".join(f"{row.id}: {row.detail}" for row in overlong[:NAMED_ROWS])
        more = f" and {len(overlong) - NAMED_ROWS} more" if len(overlong) > NAMED_ROWS else ""
        raise DataError(f"data.overlong is error, and rows are too long: {named}{more}")
