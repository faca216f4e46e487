"""Prompts of benchmarks that are edited, or inside longer prompts.

open-instruct's `decontamination/search.py` takes the share of the words of a test prompt that are in an n-gram which one training prompt
has as well. Most prompts of benchmarks are short: three edited words in fifteen leave no n-gram of the usual 8 or 13 words. Here an n-gram
of few words only says where to look, and the share is that of the words which are there in the same order. n-grams of more than
`MAX_PROMPTS` prompts, such as an instruction that a whole benchmark repeats, are not looked at.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_PROMPTS = 10
"""Prompts of benchmarks that may have an n-gram in common; six of RewardBench differ in the programming language only."""
FEWEST = 8
"""Words from which a prompt can be found by a part of it; a shorter one, such as a question after a capital, is like too many others."""
MAX_PLACES = 4
"""Places of a text at which a prompt is looked for, those with the most n-grams first: a text that repeats itself takes no longer."""
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts without spaces between words, such as Thai, Japanese and Chinese: each character counts as a word."""
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+")
BASE = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """Return the words of a text, regardless of case, punctuation and Unicode form."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Resemblance(NamedTuple):
    """A prompt of a benchmark, and the share of its words that a text has in the same order, close together."""

    where: str
    share: float


class PromptIndex:
    """The n-grams of prompts. Building it and looking up a text are linear in the number of words.

    Args:
        prompts: where each is from, and its text. Of equal ones the first counts.
        size: words of an n-gram, n; prompts with fewer, or with fewer than `FEWEST`, are left out.
    """

    def __init__(self, prompts: Sequence[tuple[str, str]], size: int) -> None:
        distinct: dict[tuple[str, ...], str] = {}
        for where, text in prompts:
            words = tuple(words_of(text))
            if len(words) >= max(size, FEWEST):
                distinct.setdefault(words, where)
        self.size, self.prompts = size, list(distinct.items())
        vocabulary = dict.fromkeys(word for words in distinct for word in words)
        # Random codes, so that equal sums of different n-grams, and of words that are in no prompt and have the code 0, are chance in 2^64.
        codes = np.random.default_rng(0).integers(1, 2**64, len(vocabulary), np.uint64)
        self.codes = dict(zip(vocabulary, codes.tolist(), strict=True))
        found: dict[int, dict[int, int]] = defaultdict(dict)
        for prompt, words in enumerate(distinct):
            for start, value in enumerate(self._hashes(words).tolist()):
                found[value].setdefault(prompt, start)
        self.places = {value: places for value, places in found.items() if len(places) <= MAX_PROMPTS}
        self.keys = np.array(sorted(self.places), np.uint64)

    def find(self, text: str, share: float) -> Resemblance | None:
        """Return the prompt of which a text has the largest share of words, if that is at least `share`."""
        words = words_of(text)
        hashes = self._hashes(words)
        if not len(hashes) or not len(self.keys):
            return None
        nearest = self.keys[np.minimum(np.searchsorted(self.keys, hashes), len(self.keys) - 1)]
        begins: dict[int, Counter[int]] = defaultdict(Counter)
        for at in np.flatnonzero(nearest == hashes).tolist():
            for prompt, start in self.places[int(hashes[at])].items():
                begins[prompt][at - start] += 1
        best = None
        for prompt, places in begins.items():
            wanted, where = self.prompts[prompt]
            slack = len(wanted) // 4 + 1
            looked_at: list[int] = []
            for begin, _ in places.most_common():
                if any(abs(begin - other) < slack for other in looked_at):
                    continue
                looked_at.append(begin)
                window = words[max(begin - slack, 0) : max(begin + len(wanted) + slack, 0)]
                found = words_in_order(wanted, window) / len(wanted)
                if found >= share and (best is None or found > best.share):
                    best = Resemblance(where, found)
                if len(looked_at) == MAX_PLACES:
                    break
        return best

    def _hashes(self, words: Sequence[str]) -> NDArray[np.uint64]:
        """Return a number for each n-gram of a text, in order; none for a text with fewer words."""
        codes = np.fromiter((self.codes.get(word, 0) for word in words), np.uint64, len(words))
        count = len(words) - self.size + 1
        hashes = np.zeros(max(count, 0), np.uint64)
        for place in range(self.size if count > 0 else 0):
            hashes = hashes * BASE + codes[place : place + count]  # modulo 2^64
        return hashes


def words_in_order(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by bits of integers (Hyyrö 2004)."""
    masks: dict[str, int] = defaultdict(int)
    for place, word in enumerate(one):
        masks[word] |= 1 << place
    full = (1 << len(one)) - 1
    state = full
    for word in other:
        shared = state & masks.get(word, 0)
        state = ((state + shared) | (state - shared)) & full
    return len(one) - state.bit_count()
