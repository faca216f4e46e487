"""What is found in the data: one record for each fault, their summary, and both on disk beside the artifact."""

import errno
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmtrain.data.stored.artifact import file_hash

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
