"""RM-Bench (arXiv:2410.16184): three right and three wrong responses to a prompt, in three styles each.

Styles are concise, detailed, and detailed with Markdown. M[i][j] is the share of rows whose right response in style i has a strictly
greater reward than the wrong one in style j. `hard` is the mean above the diagonal, where the wrong response is the fancier one, `normal`
the mean of the diagonal, `easy` the mean below. The score of a domain is the mean of the three; the total is the mean of the four domains,
where both kinds of safety are one domain. The script: `scripts/utils.py` of THU-KEG/RM-Bench.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmtrain.evaluation.benchmarks.base import (
    Benchmark,
    Floats,
    Item,
    Row,
    Rule,
    Scores,
    Units,
    cell,
    credit_of_gaps,
    each_over_each,
    lower_path,
    number,
    row_units,
    section_weights,
    texts,
    user,
)
from rmtrain.evaluation.metrics import mean
from rmtrain.evaluation.scores_file import ScoredComparison

DOMAINS = ("chat", "math", "code", "safety")
FILES = ("safety-refuse", "safety-response", "chat", "math", "code")
STYLES = 3
EDGES = each_over_each(STYLES, STYLES)


def scores(scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
    """Compute all scores of scored rows; `others` has hard, normal and easy, overall and for each domain."""
    sources = np.array([row.source for row in scored])
    domains = np.array([_domain(source) for source in sources])
    beats_R33 = credit_of_gaps(_gaps(scored), rule)
    styles = {domain: _styles(beats_R33[domains == domain]) for domain in DOMAINS if domain in domains}
    sections = {domain: float(np.mean(list(values.values()))) for domain, values in styles.items()}
    by_source = {source: _styles(beats_R33[sources == source]) for source in dict.fromkeys(sources.tolist())}
    subsets = {source: float(np.mean(list(values.values()))) for source, values in by_source.items()}
    levels = {level: float(np.mean([values[level] for values in styles.values()])) for level in ("hard", "normal", "easy")}
    by_domain = {f"{domain} {level}": value for domain, values in styles.items() for level, value in values.items()}
    return Scores(mean(list(sections.values())), sections, subsets, levels | by_domain)


def units(scored: Sequence[ScoredComparison]) -> Units:
    """Make each row a unit, with its nine decisions."""
    gap_R33 = _gaps(scored)
    subsets = [row.source for row in scored]
    domains = [_domain(source) for source in subsets]
    ties = np.sum(gap_R33 == 0, axis=(1, 2))

    def credit(rule: Rule) -> Floats:
        return np.asarray(credit_of_gaps(gap_R33, rule).reshape(len(scored), -1).mean(axis=1), np.float64)

    return row_units(scored, domains, subsets, section_weights(domains, subsets), credit, ties, STYLES * STYLES)


def _gaps(scored: Sequence[ScoredComparison]) -> Floats:
    """Return the rewards of right response i minus wrong response j, [R, 3, 3]."""
    rewards_R6 = np.array([row.rewards for row in scored]).reshape(len(scored), 2 * STYLES)
    return np.asarray(rewards_R6[:, :STYLES, None] - rewards_R6[:, None, STYLES:], np.float64)


def _styles(beats_R33: NDArray[np.float64]) -> dict[str, float]:
    """Compute hard, normal and easy, in the operations and the order of the official script."""
    shares_33 = beats_R33.sum(axis=0) / len(beats_R33)
    off_diagonal = STYLES * (STYLES - 1) / 2
    return {
        "hard": float(np.sum(np.triu(shares_33, 1)) / off_diagonal),
        "normal": float(np.mean(np.diag(shares_33))),
        "easy": float(np.sum(np.tril(shares_33, -1)) / off_diagonal),
    }


def _domain(source: str) -> str:
    return "safety" if source.startswith("safety") else source


def item(row: Row, file: Path | None, index: int) -> Item:
    """Convert a row; the three right responses come first. The row or the name of its file gives the domain."""
    chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
    if (len(chosen), len(rejected)) != (STYLES, STYLES):
        raise ValueError(f"expected three responses on each side, got {len(chosen)} chosen and {len(rejected)} rejected")
    prompt = user(cell(row, "prompt", str))
    return Item(str(row.get("id", index)), _source(row, file), prompt, (*chosen, *rejected), EDGES)


def output(row: Row, file: Path, index: int) -> ScoredComparison:
    """Convert a row that `run_rm.py` of RM-Bench writes: `score_chosen` and `score_rejected`, three each."""
    rewards = tuple(number(value, column) for column in ("score_chosen", "score_rejected") for value in cell(row, column, list))
    if len(rewards) != 2 * STYLES:
        raise ValueError(f"expected three scores on each side, got {len(rewards)} in all")
    return ScoredComparison(str(row.get("id", index)), _source(row, file), rewards, (), EDGES)


def _source(row: Row, file: Path | None) -> str:
    named = row.get("domain") or (lower_path(Path(file.name)) if file is not None else "")
    for domain in FILES:
        if domain in str(named):
            return domain
    raise ValueError(f"no domain, and the name of the file has none; expected one of {', '.join(FILES)}")


def files(found: Sequence[Path]) -> list[Path]:
    """Select the whole dataset where it is present, else the files with a domain in their name."""
    whole = [file for file in found if "total_dataset" in file.name]
    return whole or [file for file in found if any(domain in lower_path(Path(file.name)) for domain in FILES)]


RM_BENCH = Benchmark(
    name="rm_bench",
    title="RM-Bench",
    sections=DOMAINS,
    hub=("THU-KEG/RM-Bench", "train"),
    published="data/ of github.com/THU-KEG/RM-Bench: total_dataset.json, or {chat,code,math,safety-refuse,safety-response}_filtered.json",
    files=files,
    item=item,
    scores=scores,
    units=units,
    output=output,
)
