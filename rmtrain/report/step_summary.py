"""The summary of a step of GitHub Actions: the tables of a result, and its gates, in Markdown."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from rmtrain.report.console import NoWrap, apart, markdown_text
from rmtrain.report.evaluation_view import evaluation_summary
from rmtrain.report.tables import Column, Row, Table

MOST_BYTES = 2**20
"""Of a step's summary; GitHub drops a larger one."""


def write_summary(report: RenderableType, document: Mapping[str, Any]) -> None:
    """Append the tables of a result to the summary of the step.

    Raises:
        OSError: the file cannot be written.
    """
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if not file:
        return
    tables = list(_tables(report))
    if document.get("evaluation"):  # of a run, whose report has no numbers
        tables = [*_tables(evaluation_summary(document["evaluation"])), *tables]
    if document.get("gates"):
        tables.append(gate_table(document["gates"]))
    text = "".join(f"### {markdown_text(table.title)}\n\n{table.markdown()}\n\n" for table in tables if table.rows)
    if len(text.encode()) <= MOST_BYTES:
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(text)


def gate_table(gates: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a row for each gate: what it requires, what came, and whether it passed."""
    rows = []
    for name, gate in gates.items():
        value = "none" if gate["value"] is None else apart(gate["value"], gate["required"])
        rows.append(Row((name, str(gate["required"]), value, "passed" if gate["passed"] else "missed")))
    return Table("Gates", (Column("gate", "text"), Column("required"), Column("got"), Column("", "text")), rows)


def _tables(report: RenderableType) -> Iterator[Table]:
    if isinstance(report, Table):
        yield report
    elif isinstance(report, Group):
        for part in report.renderables:
            yield from _tables(part)
    elif isinstance(report, NoWrap):
        yield from _tables(report.view)
