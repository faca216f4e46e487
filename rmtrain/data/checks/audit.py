"""What is wrong with tokenized data, found before a model sees it, once for each artifact."""

import errno
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import Edges, TokenizedData, edges_of, file_hash
from rmtrain.data.checks.baselines import label_baselines
from rmtrain.data.checks.contamination import benchmark_overlap
from rmtrain.data.checks.duplicates import Cycle, Repeat, find_cycles, find_near_identical, find_repeats
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.prepare import PreparedData, named, overlap
from rmtrain.data.rows.dataset import digest
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Data

EXAMPLES = 5
SUMMARY, LIST = "findings.json", "findings.jsonl"
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
KINDS = (
    "overlap",
    "benchmark",
    "contradictory",
    "cycle",
    "duplicate",
    "near_identical",
    "short_winner",
    "zero_margin",
    "margin_outlier",
)
"""Kinds of faults, the worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault: one of `KINDS`, the split and the ids of the rows it is in, each once, and what was found."""

    kind: str
    split: str
    ids: tuple[str, ...]
    detail: str


def summarize_findings(findings: Sequence[Finding], comparisons: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """By split and kind, worst kind first, how many faults there are, in how many rows, what share of the split these are, and the first.

    Args:
        findings: all of them.
        comparisons: how many each split has.

    Returns:
        JSON values: `{split: {kind: {"found": n, "rows": n, "share": s, "examples": [{"ids": [...], "detail": ...}]}}}`. An example
        names at most five rows.
    """
    by_kind: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.split, finding.kind].append(finding)
    return {
        split: {kind: _numbers(by_kind[split, kind], size) for kind in KINDS if (split, kind) in by_kind}
        for split, size in comparisons.items()
    }


def _numbers(findings: Sequence[Finding], comparisons: int) -> dict[str, Any]:
    rows = len({row_id for finding in findings for row_id in finding.ids})
    return {
        "found": len(findings),
        "rows": rows,
        "share": rows / comparisons,
        "examples": [{"ids": list(finding.ids[:EXAMPLES]), "detail": finding.detail} for finding in findings[:EXAMPLES]],
    }


def write_findings(directory: Path, key: str, findings: Iterable[Finding], summary: Mapping[str, Any]) -> bool:
    """Write `findings.jsonl`, one object for each fault, and then `findings.json`, the summary; each appears whole or not at all.

    Returns:
        False when nothing may be written there. A disk that is full is an OSError.
    """
    lines = "".join(json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in findings)
    document = {"key": key, "list_sha256": hashlib.sha256(lines.encode()).hexdigest(), "summary": summary}
    try:
        _write(directory / LIST, lines)
        _write(directory / SUMMARY, json.dumps({**document, "sha256": _digest(document)}, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            return False
        raise
    return True


def read_findings(directory: Path, key: str) -> dict[str, Any] | None:
    """The summary that `write_findings` left under this key; None when there is none, or either file is not as it was written."""
    try:
        document = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        stored = document.pop("sha256")
        if (document["key"], stored, document["list_sha256"]) != (key, _digest(document), file_hash(directory / LIST)):
            return None
        summary: dict[str, Any] = document["summary"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return summary


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def check_rankings(rows: Iterable[TokenizedComparison]) -> None:
    """Refuse comparisons whose edges do not order their responses, as `plackett_luce` needs it.

    Raises:
        DataError: naming the first such row.
    """
    for row in rows:
        won = Counter(edge.winner for edge in row.preferences)
        won.subtract(edge.loser for edge in row.preferences)
        if len({won[response] for response in range(len(row.sequences))}) < len(row.sequences):
            raise DataError(
                f"{row.id}: its {len(row.preferences)} preferences do not order its {len(row.sequences)} responses; "
                "objective.type: plackett_luce needs a ranking, take bradley_terry"
            )


FAR_OUT = 10
"""Interquartile ranges above the third quartile from which on a margin is an outlier. Tukey calls three "far out", but margins with a
long tail reach those by the hundred."""
SHORT, LONG = 3, 60
"""A winner of at most so many tokens over a loser of at least so many is suspicious; prompt and end token not counted."""

Hint = tuple[int, str]
"""The number of an edge, and what is odd about it."""


def zero_margins(data: TokenizedData, edges: Edges) -> list[Hint]:
    """Decided edges with margin 0 in a source that has other margins, too."""
    return [
        (edge, "its margin is 0")
        for numbers in _with_margins(data, edges)
        for edge in numbers[(edges.margins[numbers] == 0) & edges.are_decided[numbers]].tolist()
    ]


def margin_outliers(data: TokenizedData, edges: Edges) -> list[Hint]:
    """Edges whose margin lies far above those of their source: more than ten interquartile ranges above the third quartile."""
    found = []
    for numbers in _with_margins(data, edges):
        margins = edges.margins[numbers]
        low, high = np.percentile(margins, (25, 75))
        limit = high + FAR_OUT * (high - low)
        if high > low:
            far = numbers[margins > limit].tolist()
            found += [(edge, f"its margin is {edges.margins[edge]:g}, half of them lie in {low:g} to {high:g}") for edge in far]
    return found


def short_winners(data: TokenizedData, edges: Edges) -> list[Hint]:
    """Decided edges whose winner is next to empty and whose loser is long."""
    winners, losers = (lengths - 1 for lengths in data.preference_lengths())
    suspicious = np.flatnonzero((winners <= SHORT) & (losers >= LONG) & edges.are_decided)
    return [(edge, f"a winner of {winners[edge]} tokens over a loser of {losers[edge]}") for edge in suspicious.tolist()]


def _with_margins(data: TokenizedData, edges: Edges) -> list[NDArray[np.int64]]:
    """Numbers of the edges of each source that has margins."""
    if not edges.margins.any():
        return []
    rows: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(data.sources):
        rows[source].append(number)
    by_source = (np.flatnonzero(np.isin(edges.comparisons, np.array(numbers))) for numbers in rows.values())
    return [numbers for numbers in by_source if edges.margins[numbers].any()]


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
