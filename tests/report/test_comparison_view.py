"""One row: pairs, longer lists, search results and dropped rows are complete, and no text of the data controls the terminal."""

from typing import Any

import pytest
from rich.cells import cell_len
from rich.text import Text

from rmtrain.report.comparison_view import comparison_view, dropped_view
from tests.report.render import console, written
from tests.report.tokenizers import byte_level

PROMPT = "How can I\nstore food?"
USUAL = {"margin": 0.0, "probability": 1.0, "weight": 1.0}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level()


def row(tokenizer: Any, *responses: str, edges: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    names = ["chosen", "rejected"] if len(responses) == 2 else [f"response {number}" for number in range(len(responses))]
    edges = edges or [{"winner": 0, "loser": 1, **USUAL}]
    prompt_length = len(tokenizer(PROMPT)["input_ids"])
    ids = [tokenizer(PROMPT + response + "<eos>")["input_ids"] for response in responses]
    return {
        "id": "rows:3",
        "source": "rows",
        "split": "train",
        "row": 2,
        "prompt": PROMPT,
        "prompt_length": prompt_length,
        "prefix_length": prompt_length,
        "preferences": edges,
        "targets": [],
        "weight": 1.0,
        "margin": edges[0]["margin"],
        "ranking": list(range(len(responses))),
        "compared": [0, len(responses) - 1],
        "responses": [
            {
                "name": name,
                "rank": (3, 1, 2, 2)[number % 4],
                "length": len(tokens),
                "reward_index": len(tokens) - 1,
                "ids": tokens,
                "text": PROMPT + response + "<eos>",
                "own_text": response + "<eos>",
            }
            for number, (name, response, tokens) in enumerate(zip(names, responses, ids, strict=True))
        ],
        **changes,
    }


def shown(document: dict[str, Any], tokenizer: Any, width: int = 120, color: bool = False, **options: Any) -> list[str]:
    target = console(width, color)
    target.print(comparison_view(document, tokenizer, **options), crop=False)
    return [Text.from_ansi(line).plain.rstrip() for line in written(target).splitlines()]


def test_pair_as_numbers_tokens_and_text(tokenizer: Any) -> None:
    document = row(tokenizer, " In a pantry.", " In the sun.", edges=[{"winner": 0, "loser": 1, **USUAL, "margin": 0.5}])
    lines = shown(document, tokenizer)
    text = "\n".join(lines)
    assert lines[0].split() == ["row", "2", "of", "train,", "id", "rows:3"]
    assert "margin  0.5" in lines
    assert "preferred" not in text
    assert text.count("⟦<eos>⟧") == 2
    assert lines.index("chosen as tokens") < lines.index("rejected as tokens") < lines.index("prompt as text")
    assert lines[lines.index("prompt as text") + 1 :][:2] == PROMPT.split("\n")
    assert " In ▸a pantry.<eos>" in lines
    assert " In ▸the sun.<eos>" in lines
    assert "others" not in text


def test_unusual_preferences_are_shown(tokenizer: Any) -> None:
    edges = [{"winner": 0, "loser": 1, "margin": 0.0, "probability": 0.5, "weight": 2.0}]
    assert "preference  probability 0.5, weight 2" in shown(row(tokenizer, " a", " b", edges=edges), tokenizer)


def test_best_and_worst_are_shown_in_full(tokenizer: Any) -> None:
    """The others are excerpts in a table, in the order of their ranking."""
    edges = [{"winner": winner, "loser": loser, **USUAL} for winner, loser in [(2, 0), (2, 1), (2, 3), (0, 1), (0, 3), (3, 1)]]
    document = row(tokenizer, " silver", " last", " gold", " bronze " * 60, edges=edges, ranking=[2, 0, 3, 1], compared=[2, 1])
    lines = shown(document, tokenizer)
    text = "\n".join(lines)
    assert "preferred  responses 2 over 0, 2 over 1, 2 over 3, 0 over 1, 0 over 3, 3 over 1" in lines
    assert [line for line in lines if line.endswith(" as tokens")] == ["response 2 as tokens", "response 1 as tokens"]
    assert " ▸gold<eos>" in text
    assert " ▸last<eos>" in text
    others = lines[next(place for place, line in enumerate(lines) if line.startswith("others")) + 2 :]
    assert [line.split()[:4] for line in others if " of 4" in line] == [["3", "of", "4", "0"], ["2", "of", "4", "3"]]
    assert text.count("bronze") < 40, "guard: the others are excerpts"


def test_long_lists_of_preferences_are_cut(tokenizer: Any) -> None:
    edges = [{"winner": 0, "loser": number, **USUAL} for number in range(1, 20)]
    text = "\n".join(shown(row(tokenizer, *(f" r{number}" for number in range(20)), edges=edges), tokenizer))
    assert "0 over 12 and 7 more" in text
    assert "0 over 13" not in text


def test_match_is_shown_with_its_context(tokenizer: Any) -> None:
    begin = len(PROMPT) - 5
    found = {"in": "prompt and rejected", "response": 1, "begin": begin, "end": begin + 8}
    lines = shown(row(tokenizer, " a", " bees", found=found), tokenizer)
    assert "found   prompt and rejected: How can I⏎store food? bees<eos>" in lines
    target = console(color=True)
    target.print(comparison_view(row(tokenizer, " a", " bees", found=found), tokenizer))
    assert "\x1b[1;7;33mfood? be\x1b[0m" in written(target)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100, 160, 200])
def test_dangerous_texts_are_escaped_and_lines_fit(tokenizer: Any, width: int, color: bool) -> None:
    evil = " \x1b[31mred\x1b]0;title\x07 \x9b2J \u202eevil\u202c \u2066x\u2069 \x00 🦊日本" * 4
    document = row(tokenizer, evil, " ok", " fine" + evil, prompt=PROMPT + evil, id="a\x1b:1", source="s\u202e")
    found = {"in": "response 0", "response": 0, "begin": len(PROMPT) + 2, "end": len(PROMPT) + 9}
    target = console(width, color)
    target.print(comparison_view({**document, "found": found}, tokenizer, show_ids=True), crop=False)
    lines = [Text.from_ansi(line).plain for line in written(target).split("\n")]
    assert all(character.isprintable() for line in lines for character in line)
    assert not color or max(map(cell_len, lines)) <= width
    assert "\\x1b[31mred" in "".join(lines), "guard: it is shown"


CELLS: dict[str, Any] = {
    "prompt": "Say it.\nIn two lines.",
    "chosen": [{"role": "user", "content": "word " * 40 + "end"}],
    "score": 0,
    "note": None,
    "empty": "",
    "[bold]markup[/]": "[red]unchanged[/]",
    "evil\x1b[2J": "\x1b[31m\u202e\x9b",
}


def shown_dropped(content: Any, width: int = 100, color: bool = False) -> list[str]:
    row = {"id": "rows:3", "source": "rows", "reason": "role_order", "detail": "a side ends\x1b with the user", "row": content}
    target = console(width, color)
    target.print(dropped_view(row), crop=False)
    return [Text.from_ansi(line).plain.rstrip() for line in written(target).split("\n")]


def test_dropped_row_has_reason_and_all_cells() -> None:
    lines = shown_dropped(CELLS)
    assert lines[:4] == ["id      rows:3", "source  rows", "reason  role_order", "detail  a side ends\\x1b with the user"]
    cells = [line.split(None, 1) for line in lines[5:] if line]
    assert cells[0] == ["prompt", "Say it."]
    assert lines[6].strip() == "In two lines."
    assert ["chosen.0.role", "user"] in cells
    assert ["chosen.0.content", "word " * 40 + "end"] in cells
    for cell in (["score", "0"], ["note", "null"], ["empty", "empty text"], ["[bold]markup[/]", "[red]unchanged[/]"]):
        assert cell in cells
    assert ["evil\\x1b[2J", "\\x1b[31m\\u202e\\x9b"] in cells


def test_malformed_and_missing_rows_are_shown() -> None:
    """A line that could not be parsed is shown unchanged; a row that its source no longer has gives a note."""
    assert '{"prompt": oops\\x9b' in shown_dropped('{"prompt": oops\x9b')
    assert len([line for line in shown_dropped(None) if line]) == 5


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_cells_fit_the_terminal(width: int) -> None:
    lines = shown_dropped(CELLS | {"a.very.long.path.to.a.cell.that.is.deep": "日本語" * 60}, width, color=True)
    assert max(map(cell_len, lines)) <= width
    assert all(character.isprintable() for line in lines for character in line)
    assert "".join(lines).count("日") == 60
