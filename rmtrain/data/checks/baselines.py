"""What a model could learn in place of quality: how often the winner is longer, has more markdown, refuses, ..."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TIE, TokenizedData, edges_of, mix
from rmtrain.data.decode import decoded_response as decoded
from rmtrain.intervals import wilson_interval

SAMPLED = 2000
"""Most comparisons whose responses are looked at as text."""
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

Numbers = dict[str, Any]


def label_baselines(data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> dict[str, Numbers]:
    """For each of `RULES`, how often it agrees with the preferences that have a winner.

    `longer` is counted over all preferences. The others need text: at most 2,000 comparisons are decoded, drawn by the hashes of their
    texts, so that they are the same ones whatever the order of rows.

    Returns:
        By rule: `wins`, `losses` and `ties`, which are preferences, `comparisons`, those that the share rests on, `share` of
        wins among wins and losses, and its Wilson 95 % interval `low`, `high`; the three are None where nothing differs.
    """
    edges = edges_of(data)
    winners, losers = (lengths[edges.are_decided] for lengths in data.preference_lengths())
    found = {"longer": _agreement(winners.astype(np.float64) - losers, edges.comparisons[edges.are_decided])}
    differences, comparisons = _text_differences(data, tokenizer)
    return found | {rule: _agreement(values, comparisons) for rule, values in differences.items()}


def drawn(data: TokenizedData, count: int) -> NDArray[np.int64]:
    """Numbers of at most so many comparisons, drawn by hash, in order."""
    begins = np.cumsum(data.response_counts, dtype=np.int64) - data.response_counts
    keys = mix(data.prompt_hashes, data.response_hashes[begins])
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _agreement(differences: NDArray[np.float64], comparisons: NDArray[np.int64]) -> Numbers:
    """The numbers of a rule from winner minus loser in what it goes by. The edges of a comparison, which share responses, are one trial."""
    wins, losses = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    trials = len(np.unique(comparisons[differences != 0]))
    share = wins / (wins + losses) if trials else None
    low, high = wilson_interval(share, trials) if share is not None else (None, None)
    ties = len(differences) - wins - losses
    return {"wins": wins, "losses": losses, "ties": ties, "comparisons": trials, "share": share, "low": low, "high": high}


def _text_differences(
    data: TokenizedData, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Winner minus loser of each feature, for the decided edges of the comparisons that are drawn, and the comparison of each."""
    rows = [data[number] for number in drawn(data, SAMPLED).tolist()]
    responses = [(row, number) for row in rows for number in range(len(row.sequences))]
    texts = [text.strip() for text in decoded(responses, tokenizer)]
    begins = np.cumsum([0, *(len(row.sequences) for row in rows)])
    decided = [
        (number, begins[number] + edge.winner, begins[number] + edge.loser)
        for number, row in enumerate(rows)
        for edge in row.preferences
        if edge.probability > TIE
    ]
    comparisons, winners, losers = np.array(decided, np.int64).reshape(-1, 3).T
    values = {rule: np.array([feature(text) for text in texts], np.float64) for rule, feature in FEATURES.items()}
    return {rule: value[winners] - value[losers] for rule, value in values.items()}, comparisons


def _lines(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.strip())


def _markdown(text: str) -> int:
    return len(MARKDOWN.findall(text))


def _refuses(text: str) -> int:
    return int(REFUSAL.match(text) is not None)


def _asks(text: str) -> int:
    return int(text.endswith(("?", "？", "؟")))


FEATURES: Mapping[str, Callable[[str], int]] = {
    "more_lines": _lines,
    "more_markdown": _markdown,
    "refuses": _refuses,
    "asks_back": _asks,
}
