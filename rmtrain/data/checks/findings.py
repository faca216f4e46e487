"""Find what is wrong with tokenized data before a model is trained on it, once for each artifact."""

import errno
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData, edges_of
from rmtrain.data.checks.benchmark_prompts import PromptSource
from rmtrain.data.checks.contamination import benchmark_overlap, named
from rmtrain.data.checks.preferences import (
    Repeat,
    find_cycles,
    find_near_identical,
    find_repeats,
    label_baselines,
    margin_outliers,
    short_winners,
    zero_margins,
)
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.prepare import PreparedData
from rmtrain.data.rows.fingerprint import digest, fingerprint
from rmtrain.errors import DataError, TryAgain
from rmtrain.files import sha256_file, write_text
from rmtrain.recipe.schema import Data, EditedPrompts

FINDINGS_VERSION = 5
"""Increase it with every change of what is found or how it is summarized."""
EXAMPLES = 5
FEWEST_LABELS = 6
"""Number of labels from which it is unlikely (1 in 32) that all name the same side by chance."""
SUMMARY, LIST = "findings.json", "findings.jsonl"
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
KINDS = (
    "overlap",
    "benchmark",
    "one_sided_labels",
    "unset_variable",
    "contradictory",
    "cycle",
    "duplicate",
    "near_identical",
    "short_winner",
    "zero_margin",
    "margin_outlier",
)
"""Kinds of findings, the worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of the data: one of `KINDS`, its split, the ids of its rows, each once, and the details."""

    kind: str
    split: str
    ids: tuple[str, ...]
    detail: str


def findings_of(
    prepared: PreparedData, data: Data, tokenizer: PreTrainedTokenizerBase, benchmarks: Sequence[PromptSource]
) -> dict[str, Any]:
    """Return everything that is wrong with the data of a recipe, read from the artifact's directory if it was found before.

    The directory then has `findings.jsonl`, a line for each finding with the ids of its rows. Rows that were dropped are not among them;
    they are in `dropped.jsonl`. `benchmarks` are those of `data.benchmarks`.

    Returns:
        JSON values: `list`, the path of `findings.jsonl`, or None where it cannot be written; and `splits`, for each that has rows:
        `comparisons`, `preferences`, `found` (see `summarize_findings`), `baselines` (see `label_baselines`).

    Raises:
        DataError: a benchmark file that cannot be read; or training rows have a prompt of one, and overlap is not allowed.
        TryAgain: a benchmark file changes while it is read.
    """

    def hashes() -> list[tuple[str, list[str]]]:
        return [(benchmark.title, [fingerprint(source) for source in benchmark.sources]) for benchmark in benchmarks]

    edited = data.edited_prompts if benchmarks else None
    identity = {"audit": FINDINGS_VERSION, "artifact": prepared.train.key, "benchmarks": hashes()}
    identity |= {"edited_prompts": None if edited is None else edited.model_dump()}
    key = digest(identity)
    report = read_findings(prepared.directory, key)
    is_stored = report is not None
    if report is None:
        findings = find_all(prepared, benchmarks, tokenizer, edited)
        if hashes() != identity["benchmarks"]:
            raise TryAgain("data.benchmarks: a file changed while it was read; repeat the command when nothing writes to it")
        counts = summarize_findings(findings, {name: len(split) for name, split in prepared.splits.items()})
        report = {
            name: {
                "comparisons": len(split),
                "preferences": int(split.preference_counts.sum()),
                "found": counts[name],
                "baselines": label_baselines(split, tokenizer),
            }
            for name, split in prepared.splits.items()
        }
        is_stored = write_findings(prepared.directory, key, findings, report)
    file = prepared.directory / LIST if is_stored else None
    contaminated = report.get("train", {}).get("found", {}).get("benchmark")
    if contaminated and not data.allow_overlap:
        rows = [f"{row_id} ({example['detail']})" for example in contaminated["examples"] for row_id in example["ids"]]
        more = f" and {contaminated['rows'] - len(rows)} more" if contaminated["rows"] > len(rows) else ""
        listed = f"; see {file} for all" if file and more else ""
        raise DataError(
            f"{contaminated['rows']} of {report['train']['comparisons']} training rows have a prompt of data.benchmarks, whole or in part: "
            f"{', '.join(rows)}{more}; remove them, or set data.allow_overlap{listed}"
        )
    return {"list": str(file) if file else None, "splits": report}


def find_all(
    prepared: PreparedData, benchmarks: Sequence[PromptSource], tokenizer: PreTrainedTokenizerBase, edited: EditedPrompts | None
) -> list[Finding]:
    """Return all findings: overlap of the splits, contamination by benchmarks, unset template variables, then those within each split."""
    train, evaluation = prepared.train, prepared.eval
    findings = []
    for row in prepared.overlap:
        how = "exactly" if row.exact else "except for case and spacing"
        responses = "; its responses are also trained on" if row.responses_too else ""
        detail = f"the prompt of training row {train.ids[row.trained]}, {how}{responses}"
        findings.append(Finding("overlap", "eval", (evaluation.ids[row.evaluated],), detail))
    added = train.are_added()
    for number, detail in benchmark_overlap(train, benchmarks, tokenizer, edited).items():
        if not added[number]:
            findings.append(Finding("benchmark", "train", (train.ids[number],), detail))
    for split, data in prepared.splits.items():
        findings += _one_sided_labels(split, data)
        for tag, detail in data.waterfall.unset_variables():
            ids = tuple(row_id for row_id, source in zip(data.ids, data.sources, strict=True) if source == tag)
            findings.append(Finding("unset_variable", split, ids, detail))
        # a ranking that appears twice repeats all of its preferences: findings of one kind in the same rows become one
        same: dict[tuple[str, frozenset[str]], list[Finding]] = defaultdict(list)
        for finding in _within_split(split, data, tokenizer):
            same[finding.kind, frozenset(finding.ids)].append(finding)
        for first, *more in same.values():
            detail = f"{first.detail}; and {len(more)} more in the same rows" if more else first.detail
            findings.append(replace(first, detail=detail))
    return findings


def _one_sided_labels(split: str, data: TokenizedData) -> Iterator[Finding]:
    """Yield a finding for each source whose labels all name the same side: the column, or what its values mean, is probably wrong."""
    for source, count in data.waterfall.sources.items():
        if len(count.winners) == 1 and sum(count.winners.values()) >= FEWEST_LABELS:
            ((side, number),) = count.winners.items()
            ids = tuple(row_id for row_id, tag in zip(data.ids, data.sources, strict=True) if tag == source)
            yield Finding("one_sided_labels", split, ids, f"all {number} labels of {source} say that {side} is better")


def _within_split(split: str, data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Yield the findings of the rows of the sources. What is added to them repeats their faults, and is as the recipe asks for."""
    edges = edges_of(data)
    added = np.flatnonzero(data.are_added()[edges.comparisons])

    def place(edge: int) -> str:
        row = int(edges.comparisons[edge])
        responses = f" ({edges.winners[edge]} over {edges.losers[edge]})" if data.response_counts[row] > 2 else ""
        return data.ids[row] + responses

    def finding(kind: str, numbers: Sequence[int], detail: str, places: bool = True) -> Finding:
        """Return the finding of some edges; with `places`, the edges are listed where the ids of their rows do not identify them."""
        rows = dict.fromkeys(edges.comparisons[np.asarray(numbers)].tolist())
        if places and any(data.response_counts[row] > 2 for row in rows):
            detail += f": {named([place(edge) for edge in numbers])}"
        return Finding(kind, split, tuple(data.ids[row] for row in rows), detail)

    contradictory: list[int] = []
    for repeat in find_repeats(edges, added.tolist()):
        if repeat.is_contradictory:
            contradictory += repeat.edges
            yield finding("contradictory", repeat.edges, _ways(repeat, place), places=False)
        else:
            yield finding("duplicate", repeat.edges, f"the same preference, {len(repeat.edges)} times")
    for cycle in find_cycles(edges, [*contradictory, *added.tolist()]):
        size = len(cycle.edges)
        others = f", among {cycle.responses} that cannot be ordered" if cycle.responses > size else ""
        yield finding("cycle", cycle.edges, f"{size} responses that beat one another in a cycle{others}")
    outliers = {
        "near_identical": find_near_identical(data, edges, tokenizer),
        "short_winner": short_winners(data, edges),
        "zero_margin": zero_margins(data, edges),
        "margin_outlier": margin_outliers(data, edges),
    }
    ignored = set(added.tolist())
    for kind, members in outliers.items():
        for edge, detail in members:
            if edge not in ignored:
                yield finding(kind, (edge,), detail)


def _ways(repeat: Repeat, place: Callable[[int], str]) -> str:
    parts = []
    for way, words in ((1, "one way"), (-1, "the other way"), (0, "a tie")):
        places = [place(edge) for edge, its_way in zip(repeat.edges, repeat.ways, strict=True) if its_way == way]
        if places:
            parts.append(f"{len(places)} {words}: {named(places)}")
    return "; ".join(parts)


def summarize_findings(findings: Sequence[Finding], comparisons: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Count findings by split and kind, the worst kind first; `comparisons` is the number of comparisons of each split.

    Returns:
        JSON values: `{split: {kind: {"found": n, "rows": n, "share": s, "examples": [{"ids": [...], "detail": ...}]}}}`, where `share` is
        the share of the split that has the fault. At most five examples, each with at most five rows.
    """
    by_kind: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.split, finding.kind].append(finding)
    summary: dict[str, dict[str, Any]] = {split: {} for split in comparisons}
    for split, size in comparisons.items():
        for kind in KINDS:
            if members := by_kind.get((split, kind)):
                rows = len({row_id for finding in members for row_id in finding.ids})
                examples = [{"ids": list(finding.ids[:EXAMPLES]), "detail": finding.detail} for finding in members[:EXAMPLES]]
                summary[split][kind] = {"found": len(members), "rows": rows, "share": rows / size, "examples": examples}
    return summary


def write_findings(directory: Path, key: str, findings: Iterable[Finding], summary: Mapping[str, Any]) -> bool:
    """Write `findings.jsonl`, one object for each finding, and then `findings.json`, the summary; False if the directory is read-only.

    Raises:
        OSError: anything else, such as a full disk.
    """
    lines = "".join(json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in findings)
    try:
        write_text(directory / LIST, lines)
        document = {"key": key, "sha256": _checksum(directory, summary), "summary": summary}
        write_text(directory / SUMMARY, json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            return False
        raise
    return True


def read_findings(directory: Path, key: str) -> dict[str, Any] | None:
    """Return the summary that `write_findings` wrote under this key; None when it is missing or either file was changed."""
    try:
        document = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        summary: dict[str, Any] = document["summary"]
        is_valid = (document["key"], document["sha256"]) == (key, _checksum(directory, summary))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return summary if is_valid else None


def _checksum(directory: Path, summary: Mapping[str, Any]) -> str:
    return digest({"summary": summary, "list": sha256_file(directory / LIST)})


def check_rankings(rows: Iterable[TokenizedComparison]) -> None:
    """Refuse comparisons whose edges do not order all of their responses, which `plackett_luce` needs.

    Raises:
        DataError: naming the first such row.
    """
    for row in rows:
        won = Counter(edge.winner for edge in row.preferences)
        won.subtract(edge.loser for edge in row.preferences)
        if len({won[response] for response in range(len(row.sequences))}) < len(row.sequences):
            raise DataError(
                f"{row.id}: its {len(row.preferences)} preferences do not rank its {len(row.sequences)} responses, "
                "which objective.type: plackett_luce needs; use bradley_terry"
            )
