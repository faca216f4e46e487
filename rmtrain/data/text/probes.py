"""Texts that show whether a tokenizer still gives the tokens that it gave: libraries change, and their version does not always say so."""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import product

from transformers import PreTrainedTokenizerBase

WORDS = [
    *["the", "Reward", "don't", "'s", "'LL", "naïve", "Straße", "İstanbul", "ﬁne", "é", "e\u0301", "Привет", "مرحبا", "हिन्दी"],
    *["你好，世界", "こんにちは", "👩‍👩‍👧", "🇩🇪", "\u200b", "\u00a0", "\ufeff", "…", "“quoted”", "x_1", "camelCase", "HTTP/2"],
    *["0", "007", "1234567", "3.14", "1e-5", "½", "50%", "$9.99", "2026-11-25", "12:30", "==", "->", "//", "#!", "\\n", "{{x}}"],
    *["<s>", "</s>", "[CLS]", "<|endoftext|>", "<think>", "a@b.org", "C++"],
]
FORMS = ("{}", " {}", "{}\n\n{}", "  {}\t{}", "A {}, B {}.")
PROBES = tuple(form.replace("{}", word) for word, form in product(WORDS, FORMS))


def probe(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A short hash of the tokens of each of `PROBES`."""
    encoded = tokenizer(list(PROBES), add_special_tokens=False, padding=False, truncation=False)
    return [blake2b(repr(list(ids)).encode(), digest_size=4).hexdigest() for ids in encoded["input_ids"]]


def first_change(before: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first of `PROBES` that has other tokens than when `probe` gave `before`."""
    return next((text for text, old, new in zip(PROBES, before, probe(tokenizer), strict=True) if old != new), None)
