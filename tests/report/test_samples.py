"""Sample comparisons: the end of the prompt, the beginning of the responses, and which one the model prefers."""

import pytest
from rich.cells import cell_len

from rmtrain.report.tables import Excerpt, sample_table
from tests.report.render import render

SAMPLES = [
    {
        "id": "a:0",
        "prompt": "How do I store food?",
        "chosen": "In a pantry.",
        "rejected": "No [b]idea[/b].",
        "rewards": [1.5, -0.25],
    },
    {
        "id": "a:1",
        "prompt": "x " * 500 + "the end",
        "chosen": "Line one.\n\nLine two.",
        "rejected": "long " * 200,
        "rewards": [0.0, 2.0],
    },
    {"id": "a:2", "prompt": "p", "chosen": "\x1b[31mred", "rejected": "same", "rewards": [1.0, 1.0]},
]


def test_the_whole_table_of_one_sample() -> None:
    assert render(sample_table(SAMPLES[:1], "samples at step 3")) == (
        "samples at step 3  1 of 1 right\n"
        "✓ margin    +1.750  How do I store food?\n"
        "  chosen    +1.500  In a pantry.\n"
        "  rejected  −0.250  No [b]idea[/b].\n"
    )


def test_right_wrong_and_tied_are_marked_without_colour() -> None:
    text = render(sample_table(SAMPLES))
    assert text.startswith("samples  1 of 3 right\n")
    assert "✗ margin    −2.000" in text
    assert "= margin    +0.000" in text


def test_texts_are_shortened_on_the_side_that_matters_less() -> None:
    text = render(sample_table(SAMPLES))
    assert "…" in text
    assert "the end\n" in text
    assert "Line one. ⏎ Line two." in text
    assert len(text.splitlines()) < 16
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_any_width(width: int) -> None:
    assert max(map(cell_len, render(sample_table(SAMPLES), width=width).splitlines())) <= width


@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("text", ["word " * 100, "日本語" * 100, "a" * 500, "short", "", "🦊 " * 60])
@pytest.mark.parametrize("width", [5, 20, 33])
def test_an_excerpt_keeps_to_its_lines_and_width(text: str, keep: str, width: int) -> None:
    lines = render(Excerpt(text, keep=keep), width=width).splitlines()  # type: ignore[arg-type]
    assert len(lines) <= 2
    assert all(cell_len(line) <= width for line in lines)
    cut = cell_len(text.strip()) > 2 * width
    assert ("…" in "".join(lines)) == cut
