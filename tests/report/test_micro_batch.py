"""A step as a picture: its numbers are those it was given, and it is readable in any width, with colours and without."""

from typing import Any

import pytest
from rich.cells import cell_len
from rich.text import Text

from rmtrain.report.step_view import step_view
from tests.report.render import console, written


def comparison(number: int, margin: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"harmless-base-of-anthropic:{number}",
        "source": "harmless-base-of-anthropic",
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


def test_the_step_its_micro_batches_and_its_comparisons_are_told_in_numbers() -> None:
    lines = shown(step())
    text = "\n".join(lines)
    assert lines[0] == "step 7  of 20, counted from 0"
    assert "epoch   1, step 2 of its 5" in text
    assert "holds   5 comparisons in 2 micro-batches" in text
    assert "layout  shared_prefix, what `auto` takes where" in text
    assert "budget  1,024 tokens a micro-batch, what `auto` is on a CPU" in text
    assert "tokens  1,130, avoids 630 of 1,760 if padded (35.8 %)" in text
    assert "micro-batch 0  66.2 % full  678 tokens  3 comparisons  avoids 378 of 1,056 if padded (35.8 %)" in text
    assert "micro-batch 1  44.1 % full  452 tokens  2 comparisons  avoids 252 of 704 if padded (35.8 %)" in text
    header = next(line for line in lines if line.startswith("batch "))
    assert header.split() == ["batch", "row", "source", "prompt", "prefix", "chosen", "rejected", "tokens", "margin"]
    rows = lines[lines.index(header) + 1 :]
    name = "harmless-base-of-anthropic"
    assert [row.split() for row in rows] == [
        [str(place), f"{name}:{number}", name, "101", "111", "60", "75", "226", "0.5"] for number, place in enumerate("00011")
    ]


def test_ranks_are_told_apart_and_one_that_has_fewer_says_so() -> None:
    text = "\n".join(shown(step(world=2)))
    assert "5 comparisons in 2 micro-batches on each of 2 ranks" in text
    assert "rank 1 micro-batch 0  22.1 % full  226 tokens  1 comparison " in text
    assert "rank 1 micro-batch 1  empty: this rank has fewer" in text
    assert "\n1.0    harmless-base-of-anthropic:4" in text


def test_padding_is_counted_and_drawn() -> None:
    row = comparison(0, tokens=352, runs=[("chosen", 161), ("padding", 15), ("rejected", 176)])
    document = step(layout="padded", micro_batches=[batch(0, 0, [row], padding=15)], tokens=352, padded_tokens=352)
    text = "\n".join(shown(document))
    assert "352 tokens, 4.3 % of them padding" in text
    assert "tokens  352, padding included" in text
    assert "avoids" not in text
    assert "×× padding" in text
    assert "×" in text.split("comparison\n")[1].splitlines()[0]


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_terminal_is_never_overrun_and_a_pipe_never_folds_a_cell(width: int, color: bool) -> None:
    lines = shown(step(world=2), width, color)
    if color:
        assert max(map(cell_len, lines)) <= width
        assert ("source" in "".join(lines)) == (width >= 80)
    else:
        assert sum("harmless-base-of-anthropic:" in line for line in lines) == 5
    bars = [line for line in lines if set(line) & set("░▒█▌·") and not set(line) & set("abcdefg")]
    assert bars, "guard: bars are drawn"


def test_the_table_ends_at_the_limit_and_margins_that_there_are_not_are_a_dash() -> None:
    document = step(micro_batches=[batch(0, 0, [comparison(number, margin=None) for number in range(5)])])
    lines = shown(document, limit=2)
    assert lines[-1] == "and 3 more"
    assert lines[-2].endswith(" –")
    assert sum("harmless-base-of-anthropic:" in line for line in lines) == 2


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
