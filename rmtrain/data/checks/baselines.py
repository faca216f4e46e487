"""Simple rules that a model could learn instead of quality: how often the winner is longer, has more markdown, refuses, ..."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TIE, TokenizedData, edges_of, mix
from rmtrain.data.text.tokenizer import decoded
from rmtrain.intervals import wilson_interval

SAMPLED = 2000
"""At most this number of comparisons are decoded to text."""
MARKDOWN = re.compile(
    r"^[ \t]*(?:[-*+•]|\d+[.)])\s+\S|^#{1,6}\s+\S|^[ \t]*```|\*\*[^*\n]+\*\*|__[^_\n]+__|`[^`\n]+`", re.MULTILINE
)
REFUSAL = re.compile(
    r"(?:i['’]?m|i am)\s+(?:very |so |really |truly )?(?:sorry|afraid|unable|not able)|sorry\b|apologies\b|i apologi[sz]e|my apologies"
    r"|i (?:cannot|can ?not|can['’]t|won['’]t|will not|do not|don['’]t) "
    r"(?:help|assist|provide|answer|do|comply|fulfill|create|write|give|know|think)"
    r"|unfortunately|as an ai|no comment",
    re.IGNORECASE,
)

RULES: Mapping[str, str] = {
    "longer": "the response of more tokens",
    "more_lines": "the response of more lines that are not blank",
    "more_markdown": "the response with more list items, headings, bold and code",
    "refuses": "the response that begins with an apology or a refusal, in English",
    "asks_back": "the response that ends with a question mark",
}
"""Rules that prefer one response without reading it."""
FEATURES: Mapping[str, Callable[[str], int]] = {
    "more_lines": lambda text: sum(1 for line in text.splitlines() if line.strip()),
    "more_markdown": lambda text: len(MARKDOWN.findall(text)),
    "refuses": lambda text: int(REFUSAL.match(text) is not None),
    "asks_back": lambda text: int(text.endswith(("?", "？", "؟"))),
}
"""The number that each rule on text prefers the larger of."""


def label_baselines(data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, Any]]:
    """Count how often each of `RULES` agrees with the preferences that have a winner.

    `longer` is counted over all preferences. The others need text: they are counted over the comparisons of `sample_rows`.

    Returns:
        By rule: `wins`, `losses` and `ties`, numbers of preferences; `comparisons`, the number that `share` is based on; `share` of wins
        among wins and losses, and its Wilson 95 % interval `low`, `high`. These three are None where no preference differs.
    """
    edges = edges_of(data)
    winners, losers = (lengths[edges.are_decided] for lengths in data.preference_lengths())
    agreement = {"longer": _agreement(winners.astype(np.float64) - losers, edges.comparisons[edges.are_decided])}
    texts: list[str] = []
    decided: list[tuple[int, int, int]] = []
    for number, row in enumerate(data[number] for number in sample_rows(data, SAMPLED).tolist()):
        begin = len(texts)
        decided += [(number, begin + edge.winner, begin + edge.loser) for edge in row.preferences if edge.probability > TIE]
        responses = (sequence[row.prompt_length :] for sequence in row.sequences)
        texts += [decoded(response, tokenizer, special_tokens=False).strip() for response in responses]
    comparisons, winner_texts, loser_texts = np.array(decided, np.int64).reshape(-1, 3).T
    for rule, feature in FEATURES.items():
        values = np.array([feature(text) for text in texts], np.float64)
        agreement[rule] = _agreement(values[winner_texts] - values[loser_texts], comparisons)
    return agreement


def sample_rows(data: TokenizedData, count: int) -> NDArray[np.int64]:
    """Return the numbers of at most `count` comparisons, drawn by the hashes of their texts: the same ones in any order of rows."""
    # by prompt alone, rows of a prompt would come together
    keys = mix(data.prompt_hashes, data.response_hashes[data.first_responses])
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _agreement(differences: NDArray[np.float64], comparisons: NDArray[np.int64]) -> dict[str, Any]:
    """Return the counts of a rule from its number for the winner minus that for the loser, for each edge.

    The edges of a comparison share responses, so that a comparison is one trial of the interval.
    """
    wins, losses = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    trials = len(np.unique(comparisons[differences != 0]))
    share = wins / (wins + losses) if trials else None
    low, high = wilson_interval(share, trials) if share is not None else (None, None)
    ties = len(differences) - wins - losses
    return {"wins": wins, "losses": losses, "ties": ties, "comparisons": trials, "share": share, "low": low, "high": high}
