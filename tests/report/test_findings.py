"""The findings as a person reads them: every count, the first rows, what to do; at any width."""

import pytest

from rmtrain.data.checks.audit import KINDS as FAULT_KINDS
from rmtrain.data.checks.baselines import RULES as RULE_KINDS
from rmtrain.report.tables import ADVICE, RULES, baselines_table, findings_notes, findings_report, findings_table
from tests.report.render import render
from tests.runs import ROOT

FOUND = {
    "contradictory": {
        "found": 4,
        "rows": 9,
        "share": 0.018,
        "examples": [
            {"ids": ["hh:12", "hh:90"], "detail": "d"},
            {"ids": ["hh:3"], "detail": "d"},
            {"ids": ["a", "b"], "detail": "d"},
        ],
    },
    "duplicate": {"found": 1, "rows": 4, "share": 0.0004, "examples": [{"ids": ["hh:1", "hh:2", "hh:5", "hh:7"], "detail": "d"}]},
}


def rule(wins: int, losses: int, low: float, high: float, ties: int = 0) -> dict[str, float | None]:
    share = wins / (wins + losses) if wins + losses else None
    return {"wins": wins, "losses": losses, "ties": ties, "comparisons": wins + losses, "share": share, "low": low, "high": high}


BASELINES = {
    "longer": rule(750, 250, 0.722, 0.776),
    "more_lines": rule(100, 100, 0.431, 0.569),
    "more_markdown": rule(0, 0, 0.0, 0.0),
    "refuses": rule(1, 99, 0.002, 0.055),
}
SPLIT = {"comparisons": 500, "preferences": 1000, "found": FOUND, "baselines": BASELINES}


def test_every_kind_and_rule_has_its_words() -> None:
    assert set(ADVICE) == set(FAULT_KINDS)
    assert set(RULES) == set(RULE_KINDS)
    guide = (ROOT / "docs/DATA.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in guide for kind in FAULT_KINDS), "the guide says what each means"


def test_faults_are_counted_the_first_rows_named_and_a_remedy_given() -> None:
    text = render(findings_table(FOUND), width=100)
    assert text == (
        "look at        found  of rows  the first, and what to do\n"
        "contradictory      4    1.8 %  hh:12, hh:90; hh:3; a, b; 1 more\n"
        "                               keep the side you trust; objective.label_smoothing allows for what is\n"
        "                               left\n"
        "duplicate          1   <0.1 %  hh:1, hh:2, hh:5, …\n"
        "                               set dedup on the source, or remove the later rows; they weigh more\n"
        "                               than others\n"
    )


def test_rules_are_drawn_from_the_middle_and_without_a_difference_there_is_no_share() -> None:
    text = render(baselines_table(BASELINES), width=100)
    header, longer, lines, markdown, refuses = text.splitlines()
    assert longer.split() == ["is", "longer", "75.0", "%", "[72.2,", "77.6]", "┃━━━━━·", "1,000"]
    middle = longer.index("┃")
    assert lines[middle] == "┃"
    assert header[middle - 1 : middle + 1] == "50"
    assert markdown.split() == ["has", "more", "markdown", "–", "0"]
    assert refuses.index("━") < middle < refuses.index("100", middle)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal(width: int) -> None:
    lines = render(findings_report(SPLIT), width=width).splitlines()
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert sum("[72.2, 77.6]" in line for line in lines) == 1, "no number is cut"


def test_row_ids_are_no_markup() -> None:
    found = {"duplicate": {"found": 1, "rows": 1, "share": 1.0, "examples": [{"ids": ["uf[/red]:1"], "detail": "d"}]}}
    assert "uf[/red]:1" in render(findings_table(found), color=True)


def test_without_faults_it_says_so() -> None:
    assert render(findings_report({**SPLIT, "found": {}})).startswith("nothing is wrong with these rows\n")


def test_notes_are_one_line_of_faults_and_one_for_a_rule_that_decides_nearly_all() -> None:
    clean = {**SPLIT, "found": {}, "baselines": {"longer": BASELINES["longer"]}}
    assert findings_notes({"train": clean}) == []
    assert findings_notes({"train": SPLIT, "eval": {**clean, "found": {"overlap": FOUND["duplicate"]}}}) == [
        "data: 4 contradictory, 1 duplicate, 1 overlap (eval); `rmtrain preprocess` shows the rows",
        "train: the winner refuses or apologises in 1.0 % of 100 preferences that differ in it; a model can learn that in place of "
        "quality",
    ]
