"""An optimizer step as a picture: its numbers are complete, and it is readable at any width, with and without colours."""

from typing import Any

import pytest
from rich.cells import cell_len
from rich.text import Text

from rmtrain.report.step_view import CHARACTERS, FREE, BarLegend, TokenBar, TokenRun, step_view
from tests.report.render import console, render, written

NAME = "harmless-base-of-anthropic"


def comparison(number: int, margin: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{NAME}:{number}",
        "source": NAME,
        "row": number,
        "prompt_length": 101,
        "prefix_length": 111,
        "response_lengths": [60, 75],
        "tokens": 226,
        "margin": margin,
        "runs": [("prefix", 111), ("chosen", 50), ("rejected", 65)],
        **changes,
    }


def batch(rank: int, number: int, rows: list[dict[str, Any]], padding: int = 0) -> dict[str, Any]:
    tokens = sum(row["tokens"] for row in rows)
    padded = 176 * 2 * len(rows)
    return {"rank": rank, "number": number, "tokens": tokens, "padding": padding, "padded_tokens": padded, "comparisons": rows}


def step(world: int = 1, layout: str = "shared_prefix", **changes: Any) -> dict[str, Any]:
    rows = [comparison(number) for number in range(5)]
    batches = [batch(0, 0, rows[:3]), batch(0, 1, rows[3:])]
    if world == 2:
        batches = [batch(0, 0, rows[:3]), batch(0, 1, rows[3:4]), batch(1, 0, rows[4:]), batch(1, 1, [])]
    return {
        "step": 7,
        "steps": 20,
        "epoch": 1,
        "step_of_epoch": 2,
        "steps_per_epoch": 5,
        "layout": layout,
        "layout_is_auto": True,
        "max_tokens": 1024,
        "max_tokens_is_auto": True,
        "world_size": world,
        "comparisons": 5,
        "tokens": sum(each["tokens"] for each in batches),
        "padded_tokens": sum(each["padded_tokens"] for each in batches),
        "micro_batches": batches,
        **changes,
    }


def shown(document: dict[str, Any], width: int = 100, color: bool = False, limit: int | None = None) -> list[str]:
    target = console(width, color)
    target.print(step_view(document, limit), crop=False)
    return [Text.from_ansi(line).plain.rstrip() for line in written(target).splitlines()]


def test_numbers_of_step_micro_batches_and_comparisons() -> None:
    lines = shown(step())
    text = "\n".join(lines)
    assert lines[0].startswith("step 7  of 20")
    facts = dict(line.split(None, 1) for line in lines[1:6])
    assert facts["epoch"].startswith("1, step 2 of its 5")
    assert facts["holds"] == "5 comparisons in 2 micro-batches"
    assert facts["layout"].startswith("shared_prefix (`auto`")
    assert facts["budget"].startswith("1,024 tokens per micro-batch (`auto`")
    assert facts["tokens"] == "1,130, avoids 630 of 1,760 if padded (35.8 %)"
    assert "micro-batch 0  66.2 % full  678 tokens  3 comparisons  avoids 378 of 1,056 if padded (35.8 %)" in text
    assert "micro-batch 1  44.1 % full  452 tokens  2 comparisons  avoids 252 of 704 if padded (35.8 %)" in text
    header = next(line for line in lines if line.startswith("batch "))
    assert header.split() == ["batch", "row", "source", "prompt", "prefix", "chosen", "rejected", "tokens", "margin"]
    rows = lines[lines.index(header) + 1 :]
    assert [row.split() for row in rows] == [
        [str(place), f"{NAME}:{number}", NAME, "101", "111", "60", "75", "226", "0.5"] for number, place in enumerate("00011")
    ]


def test_ranks_are_named_and_may_be_empty() -> None:
    lines = shown(step(world=2))
    text = "\n".join(lines)
    assert "5 comparisons in 2 micro-batches on each of 2 ranks" in text
    assert "rank 1 micro-batch 0  22.1 % full  226 tokens  1 comparison " in text
    (empty,) = [line for line in lines if line.startswith("rank 1 micro-batch 1")]
    assert " empty" in empty
    assert "% full" not in empty
    assert f"\n1.0    {NAME}:4" in text


def test_padding_is_counted_and_drawn() -> None:
    row = comparison(0, tokens=352, runs=[("chosen", 161), ("padding", 15), ("rejected", 176)])
    document = step(layout="padded", micro_batches=[batch(0, 0, [row], padding=15)], tokens=352, padded_tokens=352)
    text = "\n".join(shown(document))
    assert "352 tokens, 4.3 % of them padding" in text
    assert "tokens  352, padding" in text
    assert "avoids" not in text
    assert "×× padding" in text
    assert "×" in text.split("comparison\n")[1].splitlines()[0]


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [60, 80, 160, 200])
def test_lines_fit_terminals_and_pipes_fold_nothing(width: int, color: bool) -> None:
    """No number, id or column name is cut at any width."""
    lines = shown(step(world=2), width, color)
    if color:
        assert max(map(cell_len, lines)) <= width
        assert ("source" in "".join(lines)) == (width >= 80)
    else:
        assert sum(f"{NAME}:" in line for line in lines) == 5
    table = "".join(lines[next(place for place, line in enumerate(lines) if line.startswith("batch")) :])
    assert all(word in table for word in ("prompt", "prefix", "chosen", "rejected", "margin", "101", "111", "60", "75", "0.5"))
    assert "…" not in "".join(lines)
    bars = [line for line in lines if set(line) & set("░▒█▌·") and not set(line) & set("abcdefg")]
    assert bars, "guard: bars are drawn"


def test_limit_ends_table_and_missing_margins_are_dashes() -> None:
    document = step(micro_batches=[batch(0, 0, [comparison(number, margin=None) for number in range(5)])])
    lines = shown(document, limit=2)
    assert "3" in lines[-1].split()
    assert lines[-2].endswith(" –")
    assert sum(f"{NAME}:" in line for line in lines) == 2


def test_more_than_two_responses_share_a_column() -> None:
    row = comparison(0, response_lengths=[60, 75, 8])
    lines = shown(step(micro_batches=[batch(0, 0, [row, comparison(1)])]))
    assert "responses" in lines[-3]
    assert "  60 75 8  " in lines[-2]


def test_ids_do_not_move_the_cursor() -> None:
    document = step(micro_batches=[batch(0, 0, [comparison(0, id="a\x1b[2J:0", source="a\u202e")])])
    text = "\n".join(shown(document))
    assert "a\\x1b[2J:0" in text
    assert "a\\u202e" in text


PAIR: list[TokenRun] = [("prefix", 40), ("chosen", 20), ("rejected", 20)]


def lines_of(bar: TokenBar, width: int = 40, color: bool = False) -> list[str]:
    return [Text.from_ansi(line).plain for line in render(bar, width, color).splitlines()]


def test_characters_are_in_proportion_to_tokens() -> None:
    (line,) = lines_of(TokenBar([PAIR], 100, max_lines=1), 50)
    assert line == "░" * 20 + "█" * 10 + "▒" * 10 + "·" * 10
    (line,) = lines_of(TokenBar([[("chosen", 30), ("padding", 10), ("rejected", 40), ("other", 20)]], 200, 1), 20)
    assert line == "█" * 3 + "×" + "▒" * 4 + "▓" * 2 + "·" * 10


def test_coloured_characters_show_two_samples() -> None:
    text = render(TokenBar([[("chosen", 5)], [("chosen", 5)]], 10, 1), 5, color=True)
    assert text == "\x1b[38;5;71m██\x1b[0m\x1b[38;5;71;48;5;114m▌\x1b[0m\x1b[38;5;114m██\x1b[0m\n"
    half = render(TokenBar([[("chosen", 5)]], 10, 1), 5, color=True)
    assert half == "\x1b[38;5;71m██▌\x1b[0m\x1b[2m··\x1b[0m\n", "the other half of a character is free"


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [20, 60, 100, 300])
def test_filled_share_is_share_of_budget(width: int, color: bool) -> None:
    lines = lines_of(TokenBar([PAIR] * 30, 8192), width, color)
    assert 1 <= len(lines) <= 6
    assert {cell_len(line) for line in lines} == {min(width, 120)}
    cells = "".join(lines)
    filled = len(cells) - cells.count(FREE)
    assert abs(filled / len(cells) - 30 * 80 / 8192) < 2 / len(cells)


def test_short_runs_take_more_lines() -> None:
    few = lines_of(TokenBar([[("chosen", 4000)]], 8000), 60)
    many = lines_of(TokenBar([PAIR] * 50, 8000), 60)
    assert len(few) < len(many) <= 6
    assert len(lines_of(TokenBar([PAIR] * 50, 8000, max_lines=2), 60)) == 2


def test_a_single_token_is_visible() -> None:
    assert lines_of(TokenBar([[("chosen", 1)]], 10**6, 1), 10) == ["█" + FREE * 9]
    assert lines_of(TokenBar([], 100), 10) == [FREE * 10]


def test_legend_has_the_kinds_of_the_bar() -> None:
    assert render(BarLegend(["rejected", "prefix", "rejected"])) == "░░ prefix   ▒▒ rejected   ·· free\n"
    target = console(color=True)
    target.print(BarLegend(["chosen"]))
    assert "\x1b[38;5;71m██" in written(target)
    assert len(set(CHARACTERS.values()) | {FREE}) == len(CHARACTERS) + 1, "guard: characters differ"
