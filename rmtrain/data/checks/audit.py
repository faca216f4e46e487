"""What is wrong with tokenized data, found before a model sees it, once for each artifact."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.checks.baselines import label_baselines
from rmtrain.data.checks.benchmarks import benchmark_overlap
from rmtrain.data.checks.cycles import Cycle, find_cycles
from rmtrain.data.checks.findings import LIST, Finding, read_findings, summarize_findings, write_findings
from rmtrain.data.checks.hints import Hint, margin_outliers, short_winners, zero_margins
from rmtrain.data.checks.likeness import find_near_identical
from rmtrain.data.checks.repeats import Repeat, find_repeats
from rmtrain.data.raw.identity import digest
from rmtrain.data.stored.artifact import TokenizedData, file_hash
from rmtrain.data.stored.edges import Edges, edges_of
from rmtrain.data.stored.overlap import named, overlap
from rmtrain.data.stored.prepare import PreparedData
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

AUDIT_VERSION = 2
"""Raise it with every change of what is found or how it is summarized."""


def audit(prepared: PreparedData, data: Data, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything that is wrong with the data of a recipe, from the artifact's directory where it was found before.

    The directory then has `findings.jsonl`, a line for each fault with the ids of its rows. Rows that were dropped are not among them:
    they are in `dropped.jsonl`.

    Args:
        prepared: what `prepare` gave.
        data: its benchmarks, and whether overlap is allowed.
        tokenizer: the one the data was prepared with.

    Returns:
        JSON values: `list`, the path of `findings.jsonl`, or None where it cannot be written; and `splits`, for each that has rows:
        `comparisons`, `preferences`, `found` as `summarize_findings` has it, `baselines` as `label_baselines` has them.

    Raises:
        DataError: a benchmark file that cannot be read; or training rows have a prompt of one, and overlap is not allowed.
    """
    key = digest({"audit": AUDIT_VERSION, "artifact": prepared.train.key, "benchmarks": _contents(data.benchmarks)})
    splits = read_findings(prepared.directory, key)
    stored = splits is not None
    if splits is None:
        findings = _findings(prepared, data.benchmarks, tokenizer)
        splits = _summary(prepared, findings, tokenizer)
        stored = write_findings(prepared.directory, key, findings, splits)
    file = prepared.directory / LIST if stored else None
    contaminated = splits.get("train", {}).get("found", {}).get("benchmark")
    if contaminated and not data.allow_overlap:
        raise _contamination(contaminated, splits["train"]["comparisons"], file)
    return {"list": str(file) if file else None, "splits": splits}


def _contents(benchmarks: Sequence[str]) -> list[tuple[str, str | None]]:
    files = [Path(name).expanduser() for name in benchmarks]
    return [(file.name, file_hash(file) if file.is_file() else None) for file in files]


def _contamination(found: dict[str, Any], comparisons: int, file: Path | None) -> DataError:
    rows = [f"{row_id} ({example['detail']})" for example in found["examples"] for row_id in example["ids"]]
    more = f" and {found['rows'] - len(rows)} more" if found["rows"] > len(rows) else ""
    listed = f"; all are in {file}" if file and more else ""
    return DataError(
        f"{found['rows']} of {comparisons} training rows have a prompt of data.benchmarks: {', '.join(rows)}{more}; "
        f"remove them, or set data.allow_overlap{listed}"
    )


def _splits(prepared: PreparedData) -> dict[str, TokenizedData]:
    return {name: data for name, data in (("train", prepared.train), ("eval", prepared.eval)) if len(data)}


def _summary(prepared: PreparedData, findings: Sequence[Finding], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    splits = _splits(prepared)
    found = summarize_findings(findings, {name: len(data) for name, data in splits.items()})
    return {
        name: {
            "comparisons": len(data),
            "preferences": int(data.preference_counts.sum()),
            "found": found[name],
            "baselines": label_baselines(data, tokenizer),
        }
        for name, data in splits.items()
    }


def _findings(prepared: PreparedData, benchmarks: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    train, evaluation = prepared.train, prepared.eval
    findings = [
        Finding(
            "overlap", "eval", (evaluation.ids[row.evaluated],), _overlap(train.ids[row.trained], row.exact, row.responses_too)
        )
        for row in overlap(train, evaluation)
    ]
    findings += [
        Finding("benchmark", "train", (train.ids[row.row],), f"prompt of {row.benchmark}")
        for row in benchmark_overlap(train, benchmarks)
    ]
    return findings + [
        found for name, data in _splits(prepared).items() for found in _merged(_split_findings(name, data, tokenizer))
    ]


def _overlap(trained: str, exact: bool, responses_too: bool) -> str:
    how = "to the letter" if exact else "but for case and spacing"
    return f"the prompt of training row {trained}, {how}" + ("; its responses are trained on, too" if responses_too else "")


def _split_findings(split: str, data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """The faults within a split."""
    edges = edges_of(data)

    def finding(kind: str, numbers: Sequence[int], detail: str) -> Finding:
        rows = dict.fromkeys(edges.comparisons[np.asarray(numbers)].tolist())
        return Finding(kind, split, tuple(data.ids[row] for row in rows), detail)

    places = _Places(data, edges)
    repeats = find_repeats(edges)
    for repeat in repeats:
        kind, told = ("contradictory", _ways) if repeat.is_contradictory else ("duplicate", _times)
        yield finding(kind, repeat.edges, told(repeat, places))
    contradictory = [edge for repeat in repeats if repeat.is_contradictory for edge in repeat.edges]
    for cycle in find_cycles(edges, contradictory):
        yield finding("cycle", cycle.edges, _circle(cycle, places))
    for kind, hints in _hints(data, edges, tokenizer):
        for edge, detail in hints:
            yield finding(kind, (edge,), detail + places.beyond_ids((edge,)))


def _merged(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Faults of the same kind in the same rows as one: a ranking that is there twice says all of its preferences again."""
    same: dict[tuple[str, frozenset[str]], list[Finding]] = defaultdict(list)
    for finding in findings:
        same[finding.kind, frozenset(finding.ids)].append(finding)
    for first, *more in same.values():
        yield replace(first, detail=f"{first.detail}; and {len(more)} more in the same rows") if more else first


def _hints(data: TokenizedData, edges: Edges, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[Hint]]]:
    yield "near_identical", find_near_identical(data, edges, tokenizer)
    rules: dict[str, Callable[[TokenizedData, Edges], list[Hint]]] = {
        "short_winner": short_winners,
        "zero_margin": zero_margins,
        "margin_outlier": margin_outliers,
    }
    for kind, rule in rules.items():
        yield kind, rule(data, edges)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where edges are: the row, and its responses where they are more than a pair."""

    data: TokenizedData
    edges: Edges

    def of(self, numbers: Iterable[int]) -> str:
        """The places of edges, the first by name."""
        return named([self._place(edge) for edge in numbers])

    def beyond_ids(self, numbers: Sequence[int]) -> str:
        """The places of edges, where the ids of their rows alone do not tell them."""
        has_more = self.data.response_counts[self.edges.comparisons[list(numbers)]] > 2
        return f": {self.of(numbers)}" if has_more.any() else ""

    def _place(self, edge: int) -> str:
        row = int(self.edges.comparisons[edge])
        responses = f" ({self.edges.winners[edge]} over {self.edges.losers[edge]})" if self.data.response_counts[row] > 2 else ""
        return self.data.ids[row] + responses


def _times(repeat: Repeat, places: _Places) -> str:
    return f"the same preference, {len(repeat.edges)} times{places.beyond_ids(repeat.edges)}"


def _ways(repeat: Repeat, places: _Places) -> str:
    said = {1: "one way", -1: "the other way", 0: "a tie"}
    by_way = {way: [edge for edge, its in zip(repeat.edges, repeat.ways, strict=True) if its == way] for way in said}
    return "; ".join(f"{len(by_way[way])} {what}: {places.of(by_way[way])}" for way, what in said.items() if by_way[way])


def _circle(cycle: Cycle, places: _Places) -> str:
    beyond = f", among {cycle.responses} that cannot be ordered" if cycle.responses > len(cycle.edges) else ""
    return f"{len(cycle.edges)} responses that win over one another in a circle{beyond}{places.beyond_ids(cycle.edges)}"
