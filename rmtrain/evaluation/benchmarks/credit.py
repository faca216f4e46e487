"""What a row earns: by pairs of rewards, or by the best of several. Pure numpy.

Array legend: R rows, K responses of a row.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rmtrain.evaluation.benchmarks.benchmark import RULES, Floats, Rule, Units
from rmtrain.evaluation.scores import ScoredComparison


def of_gap(gap: NDArray[np.float64], rule: Rule) -> Floats:
    """1 where better minus worse is above 0, and, by `half_credit`, 0.5 where it is 0."""
    earned = np.asarray(gap > 0, np.float64)
    return np.where(gap == 0, 0.5, earned) if rule == "half_credit" else earned


def gaps(scored: Sequence[ScoredComparison]) -> Floats:
    """First reward minus the best of the others, [R]."""
    return np.array([row.rewards[0] - max(row.rewards[1:]) for row in scored])


def shared_first(scored: Sequence[ScoredComparison]) -> Floats:
    """1 over the number of best responses where the first is one of them, else 0, [R]."""
    return np.array([_share(row.rewards) for row in scored])


def _share(rewards: Sequence[float]) -> float:
    best = max(rewards)
    return 1 / sum(reward == best for reward in rewards) if rewards[0] == best else 0.0


def means(values: Floats, groups: Sequence[str]) -> dict[str, float]:
    """The mean of each group, in the order in which the groups come; summed one by one, as the official scripts do."""
    members: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values.tolist(), groups, strict=True):
        members[group].append(value)
    return {group: sum(of_group) / len(of_group) for group, of_group in members.items()}


def mean(values: Sequence[float]) -> float | None:
    """The plain mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None


def row_units(
    scored: Sequence[ScoredComparison],
    sections: Sequence[str],
    subsets: Sequence[str],
    weights: Floats,
    credits: dict[Rule, Floats],
    ties: NDArray[np.int64],
    decisions: int = 1,
) -> Units:
    """Units that are a row each, with as many decisions each; `weights` are scaled to sum to 1."""
    return Units(
        ids=tuple(f"{row.source}/{row.id}" for row in scored),
        subsets=tuple(subsets),
        sections=tuple(sections),
        weights_U=weights / weights.sum(),
        credits={rule: credits[rule] for rule in RULES},
        ties_U=ties,
        decisions_U=np.full(len(scored), decisions),
        rows_U=np.ones(len(scored), np.int64),
    )


def section_weights(sections: Sequence[str], subsets: Sequence[str], counts: dict[str, float] | None = None) -> Floats:
    """What each row weighs where the total is the mean of sections.

    Args:
        sections, subsets: of each row.
        counts: what a subset weighs in its section, however many rows it has; None: each row of a section weighs the same.
    """
    rows: dict[str, int] = defaultdict(int)
    for subset in subsets:
        rows[subset] += 1
    each = np.array([1.0 if counts is None else counts[subset] / rows[subset] for subset in subsets])
    total: dict[str, float] = defaultdict(float)
    for section, weight in zip(sections, each.tolist(), strict=True):
        total[section] += weight
    return np.asarray(each / np.array([total[section] for section in sections]), np.float64)
