"""Comparisons to tokens: the one render-and-encode path of preprocess, train, eval and score, with its length policy.

Responses share their prompt, and most words occur again and again. Most tokenizers split a text into words before they look for tokens:
for those, the tokens of each different word are computed once, which encodes the HH rows in 0.24 s instead of 0.77 s. For any other
tokenizer, texts are encoded whole. The tokens are the same either way.
"""

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import (
    BadRow,
    Comparison,
    Dropped,
    Preference,
    Target,
    TokenizedComparison,
    Tokens,
    common_prefix_length,
    dropped,
    rows_of,
)
from rmtrain.data.rows.conversation import pruned
from rmtrain.data.rows.select import name_rows
from rmtrain.data.text.renderer import Rendered, Renderer, render_all
from rmtrain.data.text.template_process import Conversation
from rmtrain.data.text.templates import edge_tokens
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

WORDS = re.compile(r"[\s\S](?:[^ ]+|(?<=\s) )*")
"""Pieces, cut before each space that follows a character other than white space."""
WORDS_AND_PUNCTUATION = re.compile(r"[\s\S](?:[^ .,;:!?)\"\n<]+|(?<=\s) |(?<![A-Za-z])[.,;:!?)\"\n<])*")
"""Pieces, also cut before punctuation that follows a letter: fewer different ones, because "word", "word." and "word," share a piece."""
BEFORE_PUNCTUATION = re.compile(r"[A-Za-z][.,;:!?)\"\n<]")
BEFORE_SPACE = re.compile(r"[^\s▁][ ▁]")
"""`▁` is how SentencePiece writes a space."""

NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer")
HARMLESS = ("ByteLevel", "Digits", "Punctuation")
"""Pre-tokenizers that join no words, even where they do not split at spaces."""
ALTERNATIVE = re.compile(r"\|(?![^(]*\))")
"""A `|` outside of parentheses, in the patterns below."""
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
ALTERNATIVES = {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
    *(rf"{CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+", rf"{CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*"),
    rf"{CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    rf"{CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
}
"""The alternatives that make up the patterns of gpt2, llama3, qwen2, qwen3.5, gpt-oss and mistral-nemo. None matches a space after
something that is not white space, or punctuation after a letter; none looks back; and with `\\s+` among them no space is left unmatched."""

PROBE = "It's 12:30,  isn't it? \n\n \tDon't  ask: e=mc², “naïve” 日本語 <b>x</b>   end. "
REMEMBERED_CHARACTERS, PIECE_COST = 2**23, 32
TOKEN_BYTES = 4


def piece_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return the pattern of the pieces whose tokens, one piece after the other, are those of the text; None if there may be none."""
    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder.values()
    normalizers = _parts(backend.normalizer, "normalizers")
    pre_tokenizers = _parts(backend.pre_tokenizer, "pretokenizers")
    if tokenizer.split_special_tokens or any(token.rstrip or BEFORE_SPACE.search(token.content) for token in added):
        return None
    if getattr(backend.model, "dropout", None) or not all(part["type"] in NORMALIZERS for part in normalizers):
        return None
    splitting = [part for part in pre_tokenizers if _splits_at_spaces(part)]
    if not splitting or any(part not in splitting and part["type"] not in HARMLESS for part in pre_tokenizers):
        return None
    adds_spaces = any(part["type"] == "Metaspace" or part.get("add_prefix_space") for part in pre_tokenizers)
    splits_letters = any(part["type"] in ("ByteLevel", "Split", "BertPreTokenizer") for part in splitting)
    crosses = any(token.single_word or BEFORE_PUNCTUATION.search(token.content) for token in added)
    return WORDS_AND_PUNCTUATION if splits_letters and not adds_spaces and not crosses else WORDS


def _parts(component: Any, name: str) -> list[dict[str, Any]]:
    """Return a normalizer or pre-tokenizer as JSON values, a sequence as its members."""
    if component is None:
        return []
    state: dict[str, Any] = json.loads(component.__getstate__())
    return list(state[name]) if state["type"] == "Sequence" else [state]


def _splits_at_spaces(part: dict[str, Any]) -> bool:
    match part["type"]:
        case "ByteLevel":
            return bool(part.get("use_regex", True))
        case "Metaspace":
            return part["replacement"] == "▁" and bool(part.get("split", True))
        case "Split":
            isolates = (part["behavior"], part["invert"]) in (("Isolated", False), ("Removed", True))
            return isolates and {r"\s+"} <= set(ALTERNATIVE.split(part["pattern"].get("Regex", ""))) <= ALTERNATIVES
        case kind:
            return kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A comparison as tokens, int32, special tokens around each text included. `begin` is the index of the token at `Rendered.begin`."""

    sequences: list[NDArray[np.int32]]
    begin: int | None


class TextEncoder:
    """Encodes rendered texts with the tokens of `tokenizer(text)`, a fast tokenizer. The pieces it remembers change nothing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.backend, self.edges = tokenizer, tokenizer.backend_tokenizer, edge_tokens(tokenizer)
        outside = ((), ()) if self.edges.in_template else (self.edges.leading, self.edges.trailing)
        self.before, self.after = (array("i", ids).tobytes() for ids in outside)
        self.known: dict[str, bytes] = {}
        self.size = 0
        self.pattern = piece_pattern(tokenizer)
        probe = [Rendered([PROBE])]
        if self.pattern and not np.array_equal(self.encode(probe)[0].sequences[0], self._encode_whole(probe)[0].sequences[0]):
            self.pattern = None  # the tokenizer's class does more than its backend

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded]:
        """Return the tokens of each comparison. The tokenizer is called once, so some hundreds of rows at a time are fastest."""
        if self.pattern is None:
            return self._encode_whole(rows)
        halved = [_halves(row) for row in rows]
        pieces = {half: self.pattern.findall(half) for halves in chain.from_iterable(halved) for half in halves}
        known = self._learn(chain.from_iterable(pieces.values()))
        tokens = {half: b"".join(map(known.__getitem__, found)) for half, found in pieces.items()}
        encoded = []
        for row, texts in zip(rows, halved, strict=True):
            wholes = [b"".join((self.before, *map(tokens.__getitem__, halves), self.after)) for halves in texts]
            begin = None
            if row.begin is not None:
                number, position = row.begin
                *head, last = texts[number]  # the response begins in the first word of the last half
                word = WORDS.match(last)
                inside = self._token_at(word[0], position - sum(map(len, head))) if word else None
                before = len(self.before) + sum(len(tokens[half]) for half in head)
                begin = None if inside is None else before // TOKEN_BYTES + inside
            encoded.append(Encoded([np.frombuffer(whole, np.int32) for whole in wholes], begin))
        return encoded

    def _learn(self, pieces: Iterable[str]) -> dict[str, bytes]:
        """Return the tokens of the pieces, and of others that were seen before."""
        if self.size > REMEMBERED_CHARACTERS:
            self.known, self.size = {}, 0  # a new dictionary: another thread may still read the old one
        known = self.known
        new = [piece for piece in set(pieces) if piece not in known]
        self.backend.no_padding()
        self.backend.no_truncation()
        encodings = self.backend.encode_batch_fast(new, add_special_tokens=False)
        # Bytes, because joining them is several times faster than joining lists or arrays.
        known.update((piece, array("i", encoding.ids).tobytes()) for piece, encoding in zip(new, encodings, strict=True))
        self.size += sum(map(len, new)) + PIECE_COST * len(new)
        return known

    def _token_at(self, text: str, position: int) -> int | None:
        token: int | None = self.backend.encode(text, add_special_tokens=False).char_to_token(position)
        return token

    def _encode_whole(self, rows: Sequence[Rendered]) -> list[Encoded]:
        texts = [text for row in rows for text in row.texts]
        if not texts:
            return []
        encoding = self.tokenizer(
            texts,
            add_special_tokens=not self.edges.in_template,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        first, encoded = 0, []
        for row in rows:
            sequences = [np.array(ids, np.int32) for ids in encoding["input_ids"][first : first + len(row.texts)]]
            begin = None if row.begin is None else encoding.char_to_token(first + row.begin[0], row.begin[1])
            encoded.append(Encoded(sequences, begin))
            first += len(row.texts)
        return encoded


def _halves(row: Rendered) -> list[tuple[str, ...]]:
    """Cut each text in two before the word in which the response begins: the texts share the first half. Some texts stay whole."""
    at = 0
    if row.begin is not None:
        text, position = row.texts[row.begin[0]], row.begin[1]
        at = text.rfind(" ", 0, position + 1)
        while at > 0 and text[at - 1].isspace():
            at = text.rfind(" ", 0, at)
    if at <= 0:
        return [(text,) for text in row.texts]
    return [(text[:at], other[at:]) if other.startswith(text[: at + 1]) else (other,) for other in row.texts]


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
    What remains may begin in the middle of a message. Raises BadRow `prompt_too_long` where the prompt may not be truncated.
    """
    excess = [max(0, len(sequence) - (policy.max_length or len(sequence))) for sequence in row.sequences]
    if policy.overlong == "cut":
        if not any(excess):
            return row
        sequences = tuple(_without_begin(*item, leading) for item in zip(row.sequences, excess, strict=True))
        prefix = common_prefix_length(sequences) if len(sequences) > 1 else 0
        return replace(row, sequences=sequences, prefix_length=prefix, prompt_length=prefix, cut=tuple(excess))
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
        cut=(removed,) * len(row.sequences),
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

    Responses with equal tokens are merged; those that no label names are left out.
    """
    numbers = range(len(row.sequences))
    same_as: Sequence[int] = numbers
    if len(set(map(len, row.sequences))) < len(row.sequences):  # responses of different lengths cannot be equal
        first: dict[bytes, int] = {}
        same_as = [first.setdefault(np.asarray(row.sequences[number], np.int32).tobytes(), number) for number in numbers]
    if not faults and list(same_as) == list(numbers):
        return Checked(row, same_as)
    edges: list[Preference] = []
    targets: list[Target] = []
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
    for target in row.targets:
        if target.response in faults:
            problems.update(dict.fromkeys(target.rows or (row.id,), faults[target.response]))
        else:
            targets.append(replace(target, response=same_as[target.response]))
    used, kept, kept_targets = pruned(edges, targets)
    rows = rows_of(replace(row, preferences=kept, targets=kept_targets))
    lost = tuple(dropped(row_id, row.source, problem) for row_id, problem in problems.items() if row_id not in rows)
    left_out = () if lost else tuple(problem.reason for problem in faults.values())
    if not used:
        return Checked(None, lost=lost, left_out=left_out)
    sequences = tuple(row.sequences[number] for number in used)
    prefix = common_prefix_length(sequences)
    remaining = replace(
        row,
        id=rows[0],
        sequences=sequences,
        prefix_length=prefix,
        prompt_length=min(row.prompt_length, prefix),
        preferences=kept,
        targets=kept_targets,
    )
    return Checked(remaining, used, lost, left_out)


class Encoder:
    """Encodes comparisons, with a tokenizer that `load_tokenizer` or `prepared` returned.

    `allow_rewritten` keeps responses that the chat template changes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: LengthPolicy, allow_rewritten: bool = False) -> None:
        self.tokenizer, self.policy, self.allow_rewritten = tokenizer, policy, allow_rewritten
        self.renderer, self.texts = Renderer(tokenizer), TextEncoder(tokenizer)
        self.edges = self.texts.edges

    def encode(self, comparisons: Sequence[Comparison], drop_overlong: bool = False) -> list[Checked]:
        """Return the tokens of each comparison with the responses that can be trained on; some hundreds at once are fastest.

        `prompt_length` counts the tokens before a response's own text: the rendered prompt and the text that announces a reply. A response
        that the template refuses is dropped. Raises DataError where the template takes too long, or rows are too long under `overlong:
        error` and not `drop_overlong`.
        """
        rendered = self.renderer.render(comparisons)
        changed = BadRow("rewritten_by_template", "the chat template changes the text of a response")
        rows = []
        for row, texts, encoded in zip(comparisons, rendered, self.texts.encode(rendered), strict=True):
            sequences = tuple(encoded.sequences)
            written = [ids for number, ids in enumerate(sequences) if number not in texts.faults] or sequences
            prefix = common_prefix_length(written)
            prompt = prefix if encoded.begin is None else min(encoded.begin, prefix)
            faults = {} if self.allow_rewritten else dict.fromkeys(texts.rewritten, changed)
            for number, key in texts.hidden.items():
                faults[number] = BadRow("hidden_by_template", f"the chat template does not write a message's {key}")
            tokenized = TokenizedComparison(
                row.id, row.source, sequences, prefix, prompt, row.preferences, row.targets, row.weight
            )
            rows.append((tokenized, {**faults, **texts.faults}))
        is_lenient = drop_overlong and self.policy.overlong == "error"
        return self._checked(rows, replace(self.policy, overlong="drop") if is_lenient else self.policy)

    def check(self, rows: Sequence[TokenizedComparison]) -> list[Checked]:
        """Check rows that came as tokens: known tokens, one end token, different responses, and the length policy without truncation."""
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

        Raises DataError, with the row id, where the template fails, does not end with the response, or a response is too long.
        """
        return self._to_score(rows, self.renderer.render(rows))

    def encode_texts_for_scoring(self, texts: Sequence[str], ids: Sequence[str]) -> tuple[list[TokenizedComparison], list[bool]]:
        """Return the tokens of texts that are rendered already, each as a row with one response; see `encode_for_scoring`.

        The special tokens around a text are those of a rendered conversation, whichever of them the text has itself.
        """
        rows = [Comparison(row_id, "", (), ((),), ()) for row_id in ids]
        return self._to_score(rows, [Rendered([self._whole(text)]) for text in texts])

    def _whole(self, text: str) -> str:
        if self.edges.in_template:
            return self.renderer.complete(text)
        begin, end = ("".join(self.tokenizer.convert_ids_to_tokens(ids)) for ids in (self.edges.leading, self.edges.trailing))
        return text.removeprefix(begin).removesuffix(end)  # the tokenizer adds them

    def _to_score(self, rows: Sequence[Comparison], rendered: Sequence[Rendered]) -> tuple[list[TokenizedComparison], list[bool]]:
        comparisons, are_cut = [], []
        for row, texts, encoded in zip(rows, rendered, self.texts.encode(rendered), strict=True):
            sequences = tuple(encoded.sequences)
            prefix = common_prefix_length(sequences) if len(sequences) > 1 else 0
            whole = TokenizedComparison(row.id, row.source, sequences, prefix, prefix, row.preferences)
            too_long = find_overlong(whole, self.policy, leading=0)
            for number, fault in {**too_long, **texts.faults}.items():
                name = f"{row.id}, response {number + 1}" if len(sequences) > 1 else row.id
                remedy = "" if number in texts.faults else "; shorten it, or set overlong to cut (--cut)"
                raise DataError(f"{name}: {fault.detail}{remedy}")
            comparisons.append(truncate(whole, self.policy, self._leading(whole)))
            are_cut.append(comparisons[-1] is not whole)
        return comparisons, are_cut

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
    """Return the tokens of whole conversations, each ending with a reply, as lists; raises DataError where the template fails."""
    texts = render_all(conversations, tokenizer, [f"conversation {number}" for number in range(len(conversations))])
    return [row.sequences[0].tolist() for row in TextEncoder(tokenizer).encode([Rendered([text]) for text in texts])]
