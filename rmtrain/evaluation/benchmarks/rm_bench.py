"""RM-Bench (arXiv:2410.16184): three right and three wrong responses to a prompt, in three styles each.

Styles are concise, detailed, and detailed with Markdown. M[i][j] is the share of rows whose right response in style i has a strictly
greater reward than the wrong one in style j. `hard` is the mean above the diagonal, where the wrong response is the fancier one, `normal`
the mean of the diagonal, `easy` the mean below. The score of a domain is the mean of the three; the total is the mean of the four domains,
where both kinds of safety are one domain. The script: `scripts/utils.py` of THU-KEG/RM-Bench.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmtrain.evaluation.benchmarks.base import Benchmark, Floats, HubRows, Item, Row, Rule, Scores, credit_of_gaps, each_over_each
from rmtrain.evaluation.benchmarks.published import cell, matching, number, texts, user
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.evaluation.targets import mean

DOMAINS = ("chat", "math", "code", "safety")
FILES = ("safety-refuse", "safety-response", "chat", "math", "code")
STYLES = 3
EDGES = each_over_each(STYLES, STYLES)


class RMBench(Benchmark):
    """See the module; `others` has hard, normal and easy, overall and for each domain."""

    name = "rm_bench"
    title = "RM-Bench"
    sections = DOMAINS
    hub = (HubRows("THU-KEG/RM-Bench", "train"),)
    published = "data/ of github.com/THU-KEG/RM-Bench: total_dataset.json, or {chat,code,math,safety-refuse,safety-response}_filtered.json"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, ["total_dataset"]) or matching(found, FILES)

    def item(self, row: Row, file: Path, index: int) -> Item:
        """Convert a row; the row or the name of its file gives the domain."""
        chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
        if (len(chosen), len(rejected)) != (STYLES, STYLES):
            raise ValueError(f"expected three responses on each side, got {len(chosen)} chosen and {len(rejected)} rejected")
        prompt = user(cell(row, "prompt", str))
        return Item(str(row.get("id", index)), _source(row, file), prompt, (*chosen, *rejected), EDGES)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        """Convert a row that `run_rm.py` of RM-Bench writes: `score_chosen` and `score_rejected`, three each."""
        columns = ("score_chosen", "score_rejected")
        rewards = tuple(number(value, column) for column in columns for value in cell(row, column, list))
        if len(rewards) != 2 * STYLES:
            raise ValueError(f"expected three scores on each side, got {len(rewards)} in all")
        return ScoredComparison(str(row.get("id", index)), _source(row, file), rewards, (), EDGES)

    def section(self, subset: str) -> str:
        return "safety" if subset.startswith("safety") else subset

    def gaps(self, scored: Sequence[ScoredComparison]) -> Floats:
        """Return the rewards of right response i minus wrong response j, [R, 9], j the faster."""
        rewards_R6 = np.array([row.rewards for row in scored]).reshape(len(scored), 2 * STYLES)
        gap_R33 = rewards_R6[:, :STYLES, None] - rewards_R6[:, None, STYLES:]
        return np.asarray(gap_R33.reshape(len(scored), -1), np.float64)

    def scores(self, scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
        sources = np.array([row.source for row in scored])
        domains = np.array([self.section(row.source) for row in scored])
        beats_R33 = credit_of_gaps(self.gaps(scored), rule).reshape(-1, STYLES, STYLES)
        styles = {domain: _styles(beats_R33[domains == domain]) for domain in DOMAINS if domain in domains}
        by_source = {source: _styles(beats_R33[sources == source]) for source in dict.fromkeys(sources.tolist())}
        sections, subsets = (
            {name: float(np.mean(list(values.values()))) for name, values in of_group.items()} for of_group in (styles, by_source)
        )
        levels = {level: float(np.mean([values[level] for values in styles.values()])) for level in ("hard", "normal", "easy")}
        by_domain = {f"{domain} {level}": value for domain, values in styles.items() for level, value in values.items()}
        return Scores(mean(list(sections.values())), sections, subsets, levels | by_domain)


def _styles(beats_R33: Floats) -> dict[str, float]:
    """Compute hard, normal and easy, in the operations and the order of the official script."""
    shares_33 = beats_R33.sum(axis=0) / len(beats_R33)
    off_diagonal = STYLES * (STYLES - 1) / 2
    return {
        "hard": float(np.sum(np.triu(shares_33, 1)) / off_diagonal),
        "normal": float(np.mean(np.diag(shares_33))),
        "easy": float(np.sum(np.tril(shares_33, -1)) / off_diagonal),
    }


def _source(row: Row, file: Path) -> str:
    named = row.get("domain") or file.name.lower()
    for domain in FILES:
        if domain in str(named):
            return domain
    raise ValueError(f"no domain, and the name of the file has none; expected one of {', '.join(FILES)}")


RM_BENCH = RMBench()
