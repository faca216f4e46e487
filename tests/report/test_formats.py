"""Numbers and texts as people read them."""

import json

import pytest

from rmtrain.report.console import compact, decimal, duration, escape_invisible, json_text, percent


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7.4, "7"),
        (999, "999"),
        (1000, "1.00k"),
        (12_345, "12.3k"),
        (999_999, "1.00M"),
        (1_010_000_000, "1.01B"),
        (3e15, "3000T"),
    ],
)
def test_compact_counts(number: float, text: str) -> None:
    assert compact(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (250, "4m10s"), (3_840, "1h04m"), (183_600, "2d03h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_decimals_have_a_true_minus_and_a_dash_where_there_is_no_number() -> None:
    assert [decimal(-0.5, 2), decimal(0.5, 2, sign=True), decimal(None)] == ["−0.50", "+0.50", "–"]


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    assert [percent(part, 100_000) for part in (0, 1, 500, 99_999, 100_000)] == ["0 %", "<0.1 %", "0.5 %", ">99.9 %", "100 %"]
    assert percent(0, 0) == "–"


def test_what_cannot_be_seen_or_moves_the_cursor_is_escaped() -> None:
    assert escape_invisible("a\x1b[31mb\r\x07\x9b") == "a\\x1b[31mb\\r\\x07\\x9b"
    assert escape_invisible("zero\u200bwidth \u202eright\u202c \ufeff \u00a0 \u3000 \U000e0041") == (
        "zero\\u200bwidth \\u202eright\\u202c \\ufeff \\xa0 \\u3000 \\U000e0041"
    )
    plain = "naïve 日本 😀 ’ – tab\tline\n"
    assert escape_invisible(plain) == plain


def test_json_is_the_same_data_with_nothing_a_terminal_would_act_on() -> None:
    document = {"text": "\x1b[31m \x7f \x9b \u202e \u00a0 \U000e0041 日本 🦊\n", "n": 1.5}
    text = json_text(document)
    assert json.loads(text) == document
    assert text.isprintable()
    assert "日本 🦊" in text
    assert "\\udb40\\udc41" in text, "guard: beyond the basic plane, too"
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"n": float("nan")})
