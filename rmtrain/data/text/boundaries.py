"""Where a text can be cut so that the tokens of its pieces, one after the other, are the tokens of the text.

The cut is before a space that follows something other than white space. It is exact for a tokenizer when

1. no added token stands across such a place, or takes away the space after it;
2. the normalizer changes nothing across it: a space neither composes with what precedes it nor is it removed there;
3. the pre-tokenizer always parts words there, and what it does on one side depends on nothing on the other side; or there is no such
   part, and the model is a BPE without a token that stands across such a place: what no merge makes, no order of merges makes.

Where pre-tokenizers part letters from punctuation as well, a word is also cut before punctuation that follows a letter, by the same
argument. Everything else is not cut.
"""

import json
import re
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

BEFORE_WORDS = re.compile(r" (?<=\S )")
"""The space that each piece but the first begins with."""
BEFORE_PUNCTUATION = re.compile(r"(?<=[A-Za-z])(?=[.,;:!?)\"\n<])")
ACROSS = re.compile(r"[^\s▁][ ▁]")
"""A token across the beginning of a word; `▁` is how SentencePiece writes a space."""

NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer")
PRE_TOKENIZERS = ("ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "BertPreTokenizer", "Whitespace", "WhitespaceSplit")
SPACE_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
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
"""What the patterns of gpt2, llama3, qwen2, qwen3.5, gpt-oss and mistral-nemo are made of. None matches a space after something that is
no white space, or punctuation after a letter; none looks back; and with `\\s+` among them no space is left unmatched."""


def can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts can be cut before words; the special tokens around a text are not among those of its pieces."""
    backend = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder.values()
    normalizers = _parts(backend.normalizer, "normalizers")
    pre_tokenizers = _parts(backend.pre_tokenizer, "pretokenizers")
    if tokenizer.split_special_tokens or any(token.rstrip or ACROSS.search(token.content) for token in added):
        return False
    if getattr(backend.model, "dropout", None):
        return False
    if all(part["type"] in NORMALIZERS for part in normalizers) and all(map(_is_local, pre_tokenizers)):
        return any(map(_parts_words, pre_tokenizers))
    return _only_marks_spaces(normalizers, pre_tokenizers) and _merges_within_words(backend)


def can_be_cut_in_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts that can be cut before words can also be cut before punctuation."""
    added = tokenizer.added_tokens_decoder.values()
    parts = _parts(tokenizer.backend_tokenizer.pre_tokenizer, "pretokenizers")
    adds_spaces = any(part["type"] == "Metaspace" or part.get("add_prefix_space") for part in parts)
    parts_letters = any(part["type"] in ("ByteLevel", "Split", "BertPreTokenizer") and _parts_words(part) for part in parts)
    return parts_letters and not adds_spaces and not any(t.single_word or BEFORE_PUNCTUATION.search(t.content) for t in added)


def _parts(component: Any, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as JSON values, a sequence as its members."""
    if component is None:
        return []
    state: dict[str, Any] = json.loads(component.__getstate__())
    return list(state[name]) if state["type"] == "Sequence" else [state]


def _is_local(part: dict[str, Any]) -> bool:
    return part["type"] in PRE_TOKENIZERS and (part["type"] not in ("Split", "Metaspace") or _parts_words(part))


def _parts_words(part: dict[str, Any]) -> bool:
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


def _only_marks_spaces(normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]) -> bool:
    """Whether all that is done before the model is to write spaces as `▁`, as llama2 and gemma have it."""
    if normalizers == [SPACE_MARK]:  # then gemma's own part, which splits at spaces, finds none
        return all(part["type"] == "Split" and part["pattern"] == {"String": " "} for part in pre_tokenizers)
    kinds = [(part["type"], part.get("replacement")) for part in pre_tokenizers]
    return not normalizers and kinds == [("Metaspace", "▁")]


def _merges_within_words(backend: Tokenizer) -> bool:
    model, vocabulary = backend.model, backend.get_vocab(with_added_tokens=False)
    is_plain = isinstance(model, models.BPE) and not model.ignore_merges
    return is_plain and "▁" in vocabulary and not any(map(ACROSS.search, vocabulary))
