"""The table of docs/PERFORMANCE.md, from the JSON files of a run: `python benchmarks/report.py` writes it between its marks."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "runs" / "bench", ROOT / "docs" / "PERFORMANCE.md"
MARKS = "<!-- figures -->", "<!-- end of figures -->"


def described(machine: dict[str, Any]) -> str:
    """A machine and its software in one line."""
    device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"{device}; torch {machine['torch']}, transformers {machine['transformers']}, TRL {machine['trl']}"


def table(documents: dict[str, dict[str, Any]]) -> str:
    """Figures by machine, as Markdown."""
    machines: dict[str, list[str]] = {}
    for name, document in documents.items():
        lines = machines.setdefault(described(document["machine"]), [])
        lines += [f"| {line['what']} | {line['value']} | {line['promise']} | `{name}` |" for line in document["figures"]]
    head = "| what | measured | promised | benchmark |\n|---|---|---|---|\n"
    return "\n\n".join(f"{machine}:\n\n{head}" + "\n".join(lines) for machine, lines in machines.items())


def main() -> None:
    """Read every result, and replace what stands between the marks."""
    documents = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}
    begin, end = MARKS
    page = PAGE.read_text(encoding="utf-8")
    filled = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table(documents)}\n{end}", page, flags=re.DOTALL)
    PAGE.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
