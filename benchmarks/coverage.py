"""How often the 95 % intervals of an evaluation contain the truth, on simulated scores of two models, and how often naive ones would.

The naive interval of a share is Wilson's with every comparison as a trial (of a benchmark: with Kish's effective number of rows); that of
a difference draws comparisons instead of prompts. A prompt has an effect on the margins of all its pairs. The truth is the mean over all
draws; with 1,000 of them a coverage of 95 % has a standard error of 0.7 %.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import console, figure, finish, machine, parser
from rmtrain import intervals
from rmtrain.data.comparison import PAIR, Preference
from rmtrain.evaluation.benchmarks.base import Benchmark
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH, SECTIONS
from rmtrain.evaluation.benchmarks.rm_bench import EDGES, RM_BENCH
from rmtrain.evaluation.benchmarks.rmb import RMB
from rmtrain.evaluation.compare import paired_units
from rmtrain.evaluation.metrics import scored_edges, share_with_interval
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.intervals import Floats, Integers, Sample, paired_bootstrap, wilson_interval

OF_PROMPT = 0.2
"""Share of the variance of margins that is of the prompt: naive intervals then have the coverage that they have on RMB."""
SIZES, COMMON = np.arange(1, 11), np.array([4, 8, 13, 17, 12, 11, 9, 10, 8, 8]) / 100
"""Pairs of a prompt, and how common they are: 5.5 on average, as in RMB."""
AGREE = 0.8
"""Correlation of what two models find, as of two checkpoints of a run."""

Rows = list[ScoredComparison]
Draw = Callable[[Generator], tuple[Rows, Rows]]
Interval = tuple[float, float, float]
"""An estimate, and the ends of its interval."""


def pairs(
    generator: Generator, prompts: Integers, sources: Sequence[str], shift: Floats | float, of_prompt: float
) -> tuple[Rows, Rows]:
    """Return pairs of prompts under two models that agree about as often as two checkpoints do."""

    def two(count: int) -> tuple[Floats, Floats]:
        first, second = generator.normal(size=(2, count))
        return first, AGREE * first + np.sqrt(1 - AGREE**2) * second

    one, other = (
        [
            ScoredComparison(str(number), source, (margin, 0.0), (), PAIR, prompt=str(prompt))
            for number, (margin, prompt, source) in enumerate(zip(margins.tolist(), prompts.tolist(), sources, strict=True))
        ]
        for margins in (
            shift + np.sqrt(of_prompt) * effect[prompts] + np.sqrt(1 - of_prompt) * noise + better
            for effect, noise, better in zip(two(int(prompts.max()) + 1), two(len(prompts)), (0.0, 0.1), strict=True)
        )
    )
    return one, other


def single(count: int, shift: float, sources: int = 1) -> Draw:
    """Draw one pair of each prompt, from sources of which each is easier than the one before."""

    def draw(generator: Generator) -> tuple[Rows, Rows]:
        source = np.arange(count) % sources
        return pairs(generator, np.arange(count), [f"source {n}" for n in source], shift + 0.6 * source, 0.0)

    return draw


def clustered(prompts: int, shift: float, of_prompt: float = OF_PROMPT) -> Draw:
    """Draw 5.5 pairs of each prompt."""

    def draw(generator: Generator) -> tuple[Rows, Rows]:
        prompt = np.repeat(np.arange(prompts), generator.choice(SIZES, prompts, p=COMMON))
        return pairs(generator, prompt, ["source"] * len(prompt), shift, of_prompt)

    return draw


def rankings(comparisons: int) -> Draw:
    """Draw rankings of two to six responses with all their preferences, which share responses."""

    def draw(generator: Generator) -> tuple[Rows, Rows]:
        rows: tuple[Rows, Rows] = ([], [])
        for number, count in enumerate(generator.integers(2, 7, comparisons).tolist()):
            edges = tuple(Preference(i, j) for i in range(count) for j in range(i + 1, count))
            add(rows, generator, -np.sort(-generator.normal(size=count)), "source", edges, number)
        return rows

    return draw


def best_of(comparisons: int) -> Draw:
    """Draw lists of two to nine responses of which the first is preferred to each other one, so that they are right together."""

    def draw(generator: Generator) -> tuple[Rows, Rows]:
        rows: tuple[Rows, Rows] = ([], [])
        for number, count in enumerate(generator.choice([2, 3, 4, 9], comparisons).tolist()):
            edges = tuple(Preference(0, other) for other in range(1, count))
            quality = np.concatenate([generator.normal(4.0, 6.0, 1), np.zeros(count - 1)])
            add(rows, generator, quality, "source", edges, number)
        return rows

    return draw


def add(
    rows: tuple[Rows, Rows], generator: Generator, quality: Floats, source: str, edges: tuple[Preference, ...], number: int
) -> None:
    """Append a comparison whose rewards are its responses' quality and what each model errs."""
    error, second = generator.normal(size=(2, len(quality)))
    for of_model, errors in zip(rows, (error, AGREE * error + 0.5 * second), strict=True):
        of_model.append(ScoredComparison(str(number), source, tuple((quality + errors).tolist()), (), edges, prompt=str(number)))


def rewardbench(generator: Generator) -> tuple[Rows, Rows]:
    """Draw a fifth of RewardBench: 23 subsets of unequal weight and difficulty, one pair of each prompt."""
    subsets = [subset for counts in SECTIONS.values() for subset, count in counts.items() for _ in range(count // 5)]
    shift = np.array([0.2 + len(subset) % 5 / 3 for subset in subsets])
    return pairs(generator, np.arange(len(subsets)), subsets, shift, 0.0)


def rm_bench(generator: Generator) -> tuple[Rows, Rows]:
    """Draw a third of RM-Bench: nine decisions a row, in styles that add to the reward whatever is right."""
    rows: tuple[Rows, Rows] = ([], [])
    for number in range(440):
        quality = (
            generator.normal(size=6) / 2 + np.tile((0.0, 1.0, 1.6), 2) + (0.5 + generator.normal()) * np.repeat((1.0, 0.0), 3)
        )
        add(rows, generator, quality, ("chat", "math", "code", "safety-refuse", "safety-response")[number % 5], EDGES, number)
    return rows


def rmb(generator: Generator) -> tuple[Rows, Rows]:
    """Draw a sixteenth of RMB: 5.5 pairs of a prompt, and in sections of their own best-of-n rows of most of the same prompts."""
    prompts, sources = [], []
    for kind, of_prompt in (
        ("Pairwise_set", generator.choice(SIZES, 165, p=COMMON)),
        ("BoN_set", generator.integers(0, 4, 165)),
    ):
        prompts.append(np.repeat(np.arange(165), of_prompt))
        sources += [f"{kind}/{'Harmlessness' if prompt < 53 else 'Helpfulness'}/S{prompt % 6}" for prompt in prompts[-1].tolist()]
    shift = np.where([source.startswith("BoN") for source in sources], 0.1, 0.6)
    return pairs(generator, np.concatenate(prompts), sources, shift, OF_PROMPT)


@dataclass(frozen=True, slots=True)
class Case:
    """Scores of two models, of a benchmark or of pairs."""

    draw: Draw
    benchmark: Benchmark | None = None


CASES: Mapping[str, Case] = {
    "500 pairs, accuracy .76": Case(single(500, 0.7)),
    "200 pairs, accuracy .98": Case(single(200, 2.05)),
    "600 pairs of 3 sources": Case(single(600, 0.2, sources=3)),
    "100 prompts of 5.5 pairs": Case(clustered(100, 0.7)),
    "400 prompts of 5.5 pairs": Case(clustered(400, 0.7)),
    "400 prompts, twice the effect": Case(clustered(400, 0.7, 2 * OF_PROMPT)),
    "20 prompts of 5.5 pairs": Case(clustered(20, 0.7)),
    "200 prompts of 5.5 pairs, accuracy .96": Case(clustered(200, 1.75)),
    "300 rankings of 2 to 6": Case(rankings(300)),
    "60 rankings of 2 to 6": Case(rankings(60)),
    "300 lists, the best of 2 to 9": Case(best_of(300)),
    "RewardBench": Case(rewardbench, REWARDBENCH),
    "RM-Bench": Case(rm_bench, RM_BENCH),
    "RMB": Case(rmb, RMB),
}


def share_intervals(case: Case, rows: Rows) -> dict[str, tuple[Interval, Interval]]:
    """Return each reported interval of one model, and the naive one: of the total, and of the parts by kind of part."""
    if case.benchmark is not None:
        return benchmark_intervals(case.benchmark, rows)
    edges, found = scored_edges(rows), {}
    names = list(dict.fromkeys(row.source for row in rows))
    parts = {"accuracy": np.ones(len(edges), bool)}
    if len(names) > 1:
        parts |= {f"source:{name}": edges.source_E == number for number, name in enumerate(names)}
    for name, inside in parts.items():
        numbers = share_with_interval(edges, edges.margin_E > 0, inside)
        naive = wilson_interval(numbers["accuracy"], len(np.unique(edges.comparison_E[inside])))
        found[name] = (numbers["accuracy"], numbers["accuracy_low"], numbers["accuracy_high"]), (numbers["accuracy"], *naive)
    return found


def benchmark_intervals(benchmark: Benchmark, rows: Rows) -> dict[str, tuple[Interval, Interval]]:
    """Return the intervals of a benchmark, of its sections and of its subsets."""
    numbers, units = measure(benchmark, rows), benchmark.units(rows)
    parts: dict[str, tuple[Mapping[str, Any], NDArray[np.bool_]]] = {"total": (numbers, np.ones(len(units.subsets), bool))}
    for kind, labels in (("section", units.sections), ("subset", units.subsets)):
        parts |= {f"{kind}:{name}": (part, np.array(labels) == name) for name, part in numbers[f"{kind}s"].items()}
    found = {}
    for name, (part, members) in parts.items():
        weights = units.weights_U[members]
        naive = wilson_interval(part["score"], round(weights.sum() ** 2 / np.sum(weights**2)))
        found[name] = (part["score"], part["low"], part["high"]), (part["score"], *naive)
    return found


def differences(case: Case, one: Rows, other: Rows, seed: int) -> tuple[Interval, Interval]:
    """Return the interval of the difference of two models, and the naive one."""
    values, sample, row_U = paired_units(one, other, case.benchmark)
    found = (paired_bootstrap(*values, drawn, seed) for drawn in (sample, Sample.of(sample.weights_U, sample.strata_U, row_U)))
    ours, naive = ((each.value, each.low, each.high) for each in found)
    return ours, naive


def coverage(case: Case, draws: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Return the coverage of the intervals by kind, the coverage of the naive ones, and the mean width of ours."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[tuple[Interval, Interval]]] = defaultdict(list)
    for number in range(draws):
        one, other = case.draw(generator)
        for name, of_share in share_intervals(case, one).items():
            found[name].append(of_share)
        found["difference"].append(differences(case, one, other, number))
    by_kind: dict[str, list[Floats]] = defaultdict(list)
    for name, of_draws in found.items():
        values_D23 = np.array(of_draws)
        truth = values_D23[:, :, 0].mean(axis=0)
        covered_D2 = (values_D23[:, :, 1] <= truth) & (truth <= values_D23[:, :, 2])
        width = np.mean(values_D23[:, 0, 2] - values_D23[:, 0, 1])
        by_kind[name.partition(":")[0]].append(np.array([*covered_D2.mean(axis=0), width]))
    return {kind: tuple(np.mean(values, axis=0).tolist()) for kind, values in by_kind.items()}


def main() -> None:
    """Print the coverage of every interval of all cases."""
    made = parser(__doc__)
    made.add_argument("--draws", type=int, default=1_000)
    arguments = made.parse_args()
    draws = 20 if arguments.quick else arguments.draws
    intervals.RESAMPLES = 2_000  # of 10,000: the ends of an interval are a little less exact
    figures = []
    for name, case in CASES.items():
        for kind, (ours, naive, width) in coverage(case, draws).items():
            measured = f"{100 * ours:.1f} % (naive {100 * naive:.1f} %), width {width:.3f}"
            figures.append(figure(f"{name}: {kind}", measured, "93 to 97 %"))
        console.print(figures[-1]["what"], style="dim")
    finish(arguments, {"machine": machine(), "draws": draws}, figures)


if __name__ == "__main__":
    main()
