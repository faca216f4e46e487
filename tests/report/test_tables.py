"""Tables in a terminal, in Markdown and for the page: every number is there, at any width, and no text is markup."""

import pytest
from rich.cells import cell_len
from rich.text import Text

from rmtrain.data.checks.findings import KINDS as FAULT_KINDS
from rmtrain.data.checks.preferences import RULES as RULE_KINDS
from rmtrain.report.run_view import adapters_line, next_steps, run_header
from rmtrain.report.tables import (
    ADVICE,
    RULES,
    Bar,
    Column,
    Excerpt,
    Row,
    Table,
    baselines_table,
    findings_notes,
    findings_report,
    findings_table,
    waterfall_table,
    with_total,
)
from tests.report.render import render
from tests.runs import ROOT

TABLE = Table(
    "numbers",
    (Column("name", "text"), Column("count"), Column("share"), Column("", "bar")),
    [
        Row(("a [b] " * 6, "1,234,567", "99.5 %", Bar(0.5, 1.0)), "kept", first=True),
        Row(("c|d\x1b[31m", Text("7", "bold"), "0.5 %", Bar(0.0, 0.25)), first=True),
    ],
)


@pytest.mark.parametrize("width", [34, 60, 80, 200])
def test_no_number_is_cut_at_any_width(width: int) -> None:
    lines = render(TABLE, width=width).splitlines()
    assert max(map(cell_len, lines)) <= width
    for number in ("1,234,567", "99.5 %", "7", "0.5 %"):
        assert any(number in line for line in lines)
    assert any("━" in line for line in lines) == (width >= 60), "a bar is left out before a number"
    assert "" in [line.strip() for line in lines], "guard: groups are apart"


def test_texts_of_a_table_are_no_markup() -> None:
    text = render(TABLE, width=100, color=True)
    assert "a [b] a" in text
    assert "c|d\\x1b[31m" in text


def test_markdown_has_numbers_and_no_bars() -> None:
    assert TABLE.markdown() == (
        "| name | count | share |\n"
        "| --- | ---: | ---: |\n"
        "| a [b] a [b] a [b] a [b] a [b] a [b] | 1,234,567 | 99.5 % |\n"
        "| c\\|d\\\\x1b[31m | 7 | 0.5 % |"
    )


@pytest.mark.parametrize(
    ("bar", "drawn"),
    [
        (Bar(0.0, 1.0), "━" * 24),
        (Bar(0.5, 0.5001), " " * 12 + "━"),
        (Bar(0.5, 0.5), " " * 12),
        (Bar(0.0, 0.999), "━" * 23),
        (Bar(0.25, 0.75, 0.5), " " * 6 + "─" * 6 + "●" + "─" * 6),
        (Bar(0.0, 0.25, 0.125), "───●───     ┃"),
    ],
)
def test_bars_are_drawn_to_scale(bar: Bar, drawn: str) -> None:
    """A part that is not empty shows, only the whole fills the bar, and an interval has its dot and the middle marked."""
    assert bar.text("").plain == drawn


WATERFALL = {
    "hh": {"read": 1800, "dropped": {"empty_response": 4, "too_long": 231}, "gathered": 0, "kept": 1565},
    "uf [x]": {"read": 61135, "dropped": {}, "gathered": 0, "kept": 61135},
}


def test_waterfall_of_one_source() -> None:
    assert render(waterfall_table({"hh": WATERFALL["hh"]})) == (
        "data                 rows   share\n"
        "hh                  1,800          ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  − too long          231  12.8 %                      ━━━━\n"
        "  − empty response      4   0.2 %                      ━\n"
        "  = kept            1,565  86.9 %  ━━━━━━━━━━━━━━━━━━━━\n"
    )


def test_waterfall_bars_add_up() -> None:
    (bars,) = [[row.cells[3] for row in waterfall_table({"hh": counts}).rows] for counts in [WATERFALL["hh"]]]
    assert bars[0] == Bar(0.0, 1.0)
    assert [bar.start for bar in bars[1:-1]] == [bar.end for bar in bars[2:-1]] + [bars[-1].end]
    assert bars[1].end == 1.0


def test_several_sources_are_added_up() -> None:
    text = render(waterfall_table(WATERFALL))
    assert with_total(WATERFALL)["all sources"] == {
        "read": 62935,
        "dropped": {"empty_response": 4, "too_long": 231},
        "gathered": 0,
        "kept": 62700,
    }
    assert "62,700  99.6 %" in text
    assert "uf [x]" in text, "a tag is not markup"


def test_gathered_rows_stand_between_dropped_and_kept() -> None:
    counts = {"read": 1000, "dropped": {"too_long": 100}, "gathered": 500, "kept": 400}
    assert render(waterfall_table({"hh": counts})) == (
        "data           rows   share\n"
        "hh            1,000          ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  − too long    100  10.0 %                       ━━━\n"
        "  ∪ gathered    500  50.0 %           ━━━━━━━━━━━━\n"
        "  = kept        400  40.0 %  ━━━━━━━━━\n"
    )


def test_added_comparisons_are_lines_that_add_up() -> None:
    counts = {
        "read": 1000,
        "dropped": {"unbalanced": 500},
        "gathered": 0,
        "kept": 1300,
        "added": {"repeated": 650, "other_prompts": 150},
    }
    text = render(waterfall_table({"hh": counts, "uf": {**counts, "added": {"repeated": 800}}}))
    assert text.startswith(
        "data                          rows   share\n"
        "hh                           1,000          ━━━━━━━━━━━━━\n"
        "  − unbalanced, as asked       500  50.0 %        ━━━━━━━\n"
        "  + other prompts, as asked    150  15.0 %        ━━\n"
        "  + repeated, as asked         650  65.0 %          ━━━━━━━━━\n"
        "  = kept                     1,300   130 %  ━━━━━━━━━━━━━━━━━\n"
    )
    assert with_total({"hh": counts, "uf": counts})["all sources"]["added"] == {"other_prompts": 300, "repeated": 1300}


def test_intended_drops_come_before_faults() -> None:
    counts = {"read": 1000, "dropped": {"too_long": 300, "filtered": 100, "capped": 200}, "gathered": 0, "kept": 400}
    table = waterfall_table({"hh": counts})
    assert render(table) == (
        "data                     rows   share\n"
        "hh                      1,000          ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  − capped, as asked      200  20.0 %                     ━━━━━\n"
        "  − filtered, as asked    100  10.0 %                  ━━━\n"
        "  − too long              300  30.0 %           ━━━━━━━\n"
        "  = kept                  400  40.0 %  ━━━━━━━━━\n"
    )
    assert [row.kind for row in table.rows] == ["source", "asked", "asked", "dropped", "kept"]
    coloured = render(table, color=True).splitlines()
    assert "\x1b[33m" in coloured[3]
    assert "\x1b[31m" in coloured[4]


def test_waterfall_of_nothing_kept_and_nothing_read() -> None:
    text = render(
        waterfall_table(
            {
                "gone": {"read": 3, "dropped": {"empty": 3}, "gathered": 0, "kept": 0},
                "none": {"read": 0, "dropped": {}, "gathered": 0, "kept": 0},
            }
        )
    )
    assert "= kept        0    0 %" in text
    assert "–" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_waterfall_fits_any_width(width: int) -> None:
    text = render(waterfall_table(WATERFALL), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "61,135" in text
    assert "\x1b" not in text
    assert "\x1b[32m" in render(waterfall_table(WATERFALL), width=width, color=True)


def test_left_out_responses_are_counted_apart() -> None:
    counts = {"read": 1000, "dropped": {}, "gathered": 0, "kept": 1000, "left_out": {"too_long": 3, "no_score": 1200}}
    assert render(waterfall_table({"uf": counts})) == (
        "data                              rows  share\n"
        "uf                               1,000         ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  = kept                         1,000  100 %  ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "    without responses: no score  1,200\n"
        "    without responses: too long      3\n"
    )


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


def test_every_kind_and_rule_is_described() -> None:
    assert set(ADVICE) == set(FAULT_KINDS)
    assert set(RULES) == set(RULE_KINDS)
    guide = (ROOT / "docs/DATA.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in guide for kind in FAULT_KINDS), "the guide explains each"


def test_findings_have_counts_rows_and_remedy() -> None:
    lines = render(findings_table(FOUND), width=120).splitlines()
    assert lines[1].split() == ["contradictory", "4", "1.8", "%", "hh:12,", "hh:90;", "hh:3;", "a,", "b;", "1", "more"]
    assert lines[2].strip() == ADVICE["contradictory"]
    assert lines[3].split() == ["duplicate", "1", "<0.1", "%", "hh:1,", "hh:2,", "hh:5,", "…"]
    assert lines[4].strip() == ADVICE["duplicate"]


def test_baselines_have_share_interval_and_bar() -> None:
    header, longer, lines, markdown, refuses = render(baselines_table(BASELINES), width=100).splitlines()
    assert longer.split()[:7] == ["is", "longer", "75.0", "%", "[72.2,", "77.6]", "1,000"]
    middle = longer.index("┃")
    assert header[middle - 1 : middle + 1] == "50"
    assert lines[middle] == "●"
    assert longer.index("●") > middle > refuses.index("●")
    assert markdown.split() == ["has", "more", "markdown", "–", "–", "0"], "without a difference there is no share"


@pytest.mark.parametrize("width", [50, 60, 80, 200])
def test_findings_fit_any_width(width: int) -> None:
    lines = render(findings_report(SPLIT), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("[72.2, 77.6]" in line for line in lines) == 1, "no number is cut"


def test_row_ids_are_never_markup() -> None:
    found = {"duplicate": {"found": 1, "rows": 1, "share": 1.0, "examples": [{"ids": ["uf[/red]:1"], "detail": "d"}]}}
    assert "uf[/red]:1" in render(findings_table(found), color=True)


def test_split_without_faults_has_no_findings_table() -> None:
    text = render(findings_report({**SPLIT, "found": {}}))
    assert "contradictory" not in text
    assert len(text.splitlines()) == 1 + 1 + 1 + len(BASELINES)


def test_notes_name_faults_and_extreme_rules() -> None:
    clean = {**SPLIT, "found": {}, "baselines": {"longer": BASELINES["longer"]}}
    assert findings_notes({"train": clean}) == []
    faults, extreme = findings_notes({"train": SPLIT, "eval": {**clean, "found": {"overlap": FOUND["duplicate"]}}})
    assert faults.startswith("data: 4 contradictory, 1 duplicate, 1 overlap (eval)")
    assert extreme.startswith("train: ")
    assert RULES["refuses"] in extreme
    assert "1.0 % of 100" in extreme


FACTS = {
    "name": "rm_sentiment_1b",
    "directory": "models/rm",
    "device": "1 × NVIDIA H100",
    "model": "EleutherAI/pythia-1b-deduped",
    "parameters": 1_010_000_000,
    "trainable": 12_300_000,
    "comparisons": 61_135,
    "tokens": 32_123_456,
    "steps": 1911,
    "batch_size": 32,
}


def test_header_has_model_data_and_steps() -> None:
    facts = {line.split()[0]: line for line in render(run_header(**FACTS, notes={"precision": "bfloat16 autocast"})).splitlines()}
    assert list(facts) == ["rmtrain", "model", "data", "steps", "device", "precision", "writes"]
    for name, numbers in {
        "model": ("EleutherAI/pythia-1b-deduped", "1.01B", "12.3M", "1.2 %"),
        "data": ("61,135", "32.1M"),
        "steps": ("1,911", "32"),
        "device": ("1 × NVIDIA H100",),
        "writes": ("models/rm",),
    }.items():
        assert all(number in facts[name] for number in numbers)
    assert "12.3M" not in render(run_header(**{**FACTS, "trainable": FACTS["parameters"]}))


def test_adapted_layers_and_experts_are_counted() -> None:
    assert {"48", "16", "94"} <= set(adapters_line(48, 16, 0.9412).split())
    assert "expert" not in adapters_line(1200, 0, 0.876)
    assert "linear" not in adapters_line(0, 2, 0.876)


def test_command_stays_one_line_to_copy() -> None:
    command = "rmtrain eval " + "runs/a_long_directory/" * 8 + "model"
    text = render(next_steps([("accuracy on other comparisons", command)]), width=40, soft_wrap=True)
    assert text == f"next\n  # accuracy on other comparisons\n  {command}\n"


@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("text", ["word " * 100, "日本語" * 100, "a" * 500, "short", "", "🦊 " * 60])
@pytest.mark.parametrize("width", [5, 20, 33])
def test_excerpt_keeps_to_its_lines_and_width(text: str, keep: str, width: int) -> None:
    lines = render(Excerpt(text, keep=keep), width=width).splitlines()  # type: ignore[arg-type]
    assert len(lines) <= 2
    assert all(cell_len(line) <= width for line in lines)
    is_cut = cell_len(text.strip()) > 2 * width
    assert ("…" in "".join(lines)) == is_cut
