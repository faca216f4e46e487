"""M-RewardBench (arXiv:2410.15522): the pairs of RewardBench, translated into 23 languages.

The score of a subset of a language is the share of its pairs whose chosen response has the strictly greater reward. A category (chat, hard
chat, safety, reasoning) is the mean of its subsets, weighted by constants, which differ from those of RewardBench; a language is the mean
of its four categories, and the total the mean over languages. The scripts, of Cohere-Labs-Community/m-rewardbench:
`scripts/run_rewardbench.py` for a language, `analysis/plot_utils.py` for the constants and the score of a language,
`analysis/_plot_leaderboard.py` for the total.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import (
    Benchmark,
    Floats,
    HubRows,
    Item,
    Row,
    Rule,
    Scores,
    Units,
    means,
    weighted_means,
)
from rmtrain.evaluation.benchmarks.published import accuracy, cell, first_in, matching, number, user
from rmtrain.evaluation.scores_file import ScoredComparison, prompt_numbers
from rmtrain.evaluation.targets import mean

LANGUAGES = (
    *("arb_Arab", "zho_Hans", "zho_Hant", "ces_Latn", "nld_Latn", "fra_Latn", "deu_Latn", "ell_Grek", "heb_Hebr", "hin_Deva"),
    *("ind_Latn", "ita_Latn", "jpn_Jpan", "kor_Hang", "pes_Arab", "pol_Latn", "por_Latn", "ron_Latn", "rus_Cyrl", "spa_Latn"),
    *("tur_Latn", "ukr_Cyrl", "vie_Latn"),
)
CATEGORIES: Mapping[str, Mapping[str, float]] = {
    "Chat": {"alpacaeval-easy": 79, "alpacaeval-length": 79, "alpacaeval-hard": 76, "mt-bench-easy": 24, "mt-bench-med": 38},
    "Chat Hard": {
        "mt-bench-hard": 35,
        "llmbar-natural": 76,
        "llmbar-adver-neighbor": 124,
        "llmbar-adver-GPTInst": 87,
        "llmbar-adver-GPTOut": 42,
        "llmbar-adver-manual": 43,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 247,
        "donotanswer": 135,
    },
    "Reasoning": {
        "math-prm": 983,
        **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js"), 164),
        "hep-python": 163,
        "hep-rust": 164,
    },
}
CATEGORY_OF = {subset: category for category, counts in CATEGORIES.items() for subset in counts}
RESULTS = ("extra_results", "subset_results", "subset")
"""Keys of the file of a language under which the scripts write the accuracy of each subset."""


class MRewardBench(Benchmark):
    """See the module; a section is a language, a subset is one of RewardBench's in a language, `others` are categories over languages."""

    name = "m_rewardbench"
    title = "M-RewardBench"
    sections = LANGUAGES
    hub = tuple(HubRows("CohereLabsCommunity/multilingual-reward-bench", "test", language) for language in LANGUAGES)
    published = "a folder of each language, such as arb_Arab, of the dataset CohereLabsCommunity/multilingual-reward-bench"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, LANGUAGES, parts=0)

    def item(self, row: Row, file: Path, index: int) -> Item:
        responses = (cell(row, "chosen", str), cell(row, "rejected", str))
        return Item(str(row.get("id", index)), _source(row, file), user(cell(row, "prompt", str)), responses, PAIR)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        """Convert a line of `--save_all` to which the columns of the row are joined: `chosen` and `rejected` are the rewards."""
        rewards = tuple(number(cell(row, column, object), column) for column in ("chosen", "rejected"))
        return ScoredComparison(str(row.get("id", index)), _source(row, file), rewards, (), PAIR)

    def accuracies(self, file: Path, document: Row) -> Mapping[str, float]:
        """Return the accuracies in the file of a language that the scripts write, `MODEL-LANGUAGE.json`."""
        shares: Mapping[str, Any] = next((document[key] for key in RESULTS if isinstance(document.get(key), dict)), {})
        language = _language(file)
        if language is None:
            return {}
        known = [subset for subset in CATEGORY_OF if subset in shares]
        return {f"{language}/{subset}": accuracy(file, subset, shares[subset]) for subset in known}

    def section(self, subset: str) -> str:
        return subset.partition("/")[0]

    def weights(self, sections: Sequence[str], subsets: Sequence[str]) -> Floats:
        rows = Counter(subsets)
        counts = {subset: CATEGORIES[CATEGORY_OF[_of(subset)]][_of(subset)] for subset in rows}
        totals: dict[tuple[str, str], float] = defaultdict(float)
        for subset, count in counts.items():
            totals[self.section(subset), CATEGORY_OF[_of(subset)]] += count
        categories = Counter(language for language, _ in totals)
        each = {
            subset: count
            / rows[subset]
            / totals[self.section(subset), CATEGORY_OF[_of(subset)]]
            / categories[self.section(subset)]
            for subset, count in counts.items()
        }
        return np.array([each[subset] for subset in subsets])

    def units(self, scored: Sequence[ScoredComparison]) -> Units:
        """Return the rows, where translations of one pair have the number of one prompt: they are right or wrong together."""
        first: dict[tuple[str, str], int] = {}
        numbers = zip(scored, prompt_numbers(scored).tolist(), strict=True)
        prompts = [first.setdefault((_of(row.source), row.id), number) for row, number in numbers]
        return replace(super().units(scored), prompts_U=np.array(prompts, np.int64))

    def scores(self, scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
        return self.scores_of(means(self.credits(scored, rule), [row.source for row in scored]))

    def scores_of(self, subsets: Mapping[str, float]) -> Scores:
        sections: dict[str, float] = {}
        of_category: dict[str, list[float]] = {category: [] for category in CATEGORIES}
        for language in LANGUAGES:
            inside = {_of(name): value for name, value in subsets.items() if self.section(name) == language}
            categories = weighted_means(inside, CATEGORIES)
            if categories:
                sections[language] = sum(categories.values()) / len(categories)
            for category, value in categories.items():
                of_category[category].append(value)
        others = {category: sum(values) / len(values) for category, values in of_category.items() if values}
        return Scores(mean(list(sections.values())), sections, dict(subsets), others)


def _source(row: Row, file: Path) -> str:
    """Return the language and the subset of a row; the row, or else the path of its file, names the language."""
    subset = cell(row, "source" if "source" in row else "subset", str)
    if subset not in CATEGORY_OF:
        raise ValueError(f"source: expected a subset of RewardBench, got {subset!r:.60}")
    named = row.get("language")
    language = named if named in LANGUAGES else _language(file)
    if language is None:
        raise ValueError(
            f"language: expected one such as {LANGUAGES[0]}, in the row or in the path of its file, got {named!r:.60}"
        )
    return f"{language}/{subset}"


def _language(file: Path) -> str | None:
    return next((found for parts in (1, 2, 3) if (found := first_in(LANGUAGES, file, parts))), None)


def _of(subset: str) -> str:
    return subset.rpartition("/")[2]


M_REWARDBENCH = MRewardBench()
