"""The hardest errors in a report: tokens in the colours of the rewards after them, as text of the data, whole and without secrets."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from rmtrain.evaluation.token_rewards import TokenRewards
from rmtrain.report.hardest_errors import MAX_SHOWN, TokenSpans, token_spans
from rmtrain.report.page import page
from rmtrain.report.token_strip import LEVELS
from tests.chromium import Browser
from tests.comparisons import tokenized
from tests.report.test_page import MEASURE, NASTY, SECRET, Reader, evidence, row
from tests.report.tokenizers import byte_level

PROMPT = "<|user|>How can I\nstore food?"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level()


def spans_of(tokenizer: Any, chosen: str, rejected: str, *, wins: int = 1) -> TokenSpans | None:
    """The spans of two responses whose rewards rise with each token; response `wins` ends with the higher reward."""
    sequences = [tokenizer(f"{PROMPT}{text}<eos>")["input_ids"] for text in (chosen, rejected)]
    rewards: list[TokenRewards] = [
        tuple((place / 10 - 50 * (side != wins)) for place in range(len(ids))) for side, ids in enumerate(sequences)
    ]
    pair = replace(tokenized("s:0", *sequences), prompt_length=len(tokenizer(PROMPT)["input_ids"]))
    return token_spans(pair, rewards, tokenizer)


def test_spans_are_the_text_of_the_responses(tokenizer: Any) -> None:
    """Tokens that together are one character are one span; an invalid byte is an escape."""
    spans = spans_of(tokenizer, " in 日本 the 🦊\n\nnaïve", " in a pan <b>")
    assert spans is not None
    chosen, rejected = ("".join(span.text for span in side) for side in spans.sides)
    assert (chosen, rejected) == (" in 日本 the 🦊\n\nnaïve<eos>", " in a pan <b><eos>")
    assert {"日", "本"} <= {span.text.strip() for span in spans.sides[0]}
    assert len(spans.levels) == LEVELS
    assert [[span.mark for span in side if span.mark] for side in spans.sides] == [["│»"], ["│»"]]
    assert spans.tokens == spans.rewards == 1 + len(tokenizer(" in")["input_ids"])


def test_long_responses_are_cut_around_their_difference(tokenizer: Any) -> None:
    spans = spans_of(tokenizer, " x" * 1000 + " same" * 999, " x" * 1000 + " other" * 999)
    assert spans is not None
    for side in spans.sides:
        assert side[0].level is side[-1].level is None
        assert len(side) == MAX_SHOWN + 2
        assert sum("│" in span.mark for span in side) == 1


def test_equal_or_missing_rewards_have_no_spans(tokenizer: Any) -> None:
    pair = tokenized("s:0", [5, 6, 0], [5, 7, 0])
    for last in (0.0, math.nan, None):
        assert token_spans(pair, [(0.0, 1.0, 0.0), (0.0, 1.0, last)], tokenizer) is None


@pytest.fixture(scope="module")
def written(tokenizer: Any) -> str:
    tokens = spans_of(
        tokenizer, f" in {NASTY} and 日本 🦊 " + "a long word in a pantry, " * 30, " in the ground, \x1b[31m or a fridge."
    )
    secret = spans_of(tokenizer, f" in {SECRET}", " in the ground")
    assert tokens is not None
    assert secret is not None
    hardest = [{**row(number, f"a:{number}"), "tokens": each} for number, each in enumerate((tokens, tokens, secret, None))]
    return page(**{**evidence(), "hardest": hardest})


def test_tokens_are_text_and_hold_no_secret(written: str) -> None:
    """Of tokens that together are a secret, none is shown."""
    assert not Reader(written).open
    assert written.count('<details class="tokens"') == 2
    assert written.count('<details class="tokens" open>') == 1
    assert "<script" not in written
    assert "\x1b" not in written
    spans = re.findall(r'<span class="r\d" title="([+−]\d+\.\d\d)">', written)
    assert len(spans) > 400
    assert len(set(re.findall(r'class="(r\d)" title', written))) == LEVELS
    for part in ("hf_", "bbbb"):
        assert part not in written


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_coloured_tokens(browser: Browser, written: str, width: int, scheme: str, tmp_path: Any) -> None:
    (tmp_path / "report.html").write_text(written, encoding="utf-8")
    contrast = """Math.min(...[0, 1, 2, 3, 4, 5, 6].map(n => { const light = e => { const c = getComputedStyle(e)
        const value = s => s.match(/\\d+/g).slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
        const [a, b] = [value(c.color), value(c.backgroundColor)].sort((a, b) => b - a)
        return (a + 0.05) / (b + 0.05) }
        return light(document.querySelector('.tokens .text .r' + n)) }))"""
    seen = browser.visit(tmp_path / "report.html", width, scheme, measure={**MEASURE, "contrast": contrast})
    assert seen.complaints == []
    assert seen.values["wide"] <= width
    assert seen.values["clipped"] == []
    assert seen.values["contrast"] >= 4.5, "WCAG 2.2, 1.4.3"
