"""Token ids as strings, as coloured text and with rewards: no text is lost, and every mark is visible without colours as well."""

import re
from itertools import pairwise
from typing import Any

import pytest
from rich.text import Text

from rmtrain.errors import DataError
from rmtrain.report.token_strip import LEVELS, RewardScale, RewardStrip, TokenStrip, special_ids, token_strings, visualize_tokens
from tests.report.render import console, render, written
from tests.report.tokenizers import byte_fallback, byte_level, word_piece

TEXT = "How can I store\n\n  the 🦊 and 日本 in a naïve refrigerator?\ttab"
PROMPT, RESPONSE = "<|user|>How can I\nstore food?", " You could\tstore 日\x1b[31m<eos>"


@pytest.mark.parametrize(
    "tokenizer", [byte_level(), byte_level(with_decoder=False), byte_fallback()], ids=["bytes", "no decoder", "fallback"]
)
def test_token_strings_together_are_the_text(tokenizer: Any) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    strings = token_strings(ids, tokenizer)
    in_bytes = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), "".join(strings).encode())
    assert in_bytes == TEXT.encode()
    assert len(strings) == len(ids)
    assert sum("\\x" in string for string in strings) > 3, "guard: characters were split between tokens"
    assert "\ufffd" not in "".join(strings)


def test_whole_characters_are_not_escaped() -> None:
    tokenizer = byte_level()
    strings = token_strings(tokenizer("🦊 naïve")["input_ids"], tokenizer)
    assert strings[0] == "🦊"
    assert "".join(strings) == "🦊 naïve"


def test_added_tokens_give_their_content() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>é"])
    ids = tokenizer("<|user|>a<think>é<eos>")["input_ids"]
    assert token_strings(ids, tokenizer) == ["<|user|>", "a", "<think>é", "<eos>"]
    assert special_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids(["<eos>", "<pad>", "<|user|>"]))


def test_word_pieces_keep_their_mark() -> None:
    tokenizer = word_piece()
    strings = token_strings(tokenizer("the storefood")["input_ids"], tokenizer)
    assert strings[0] == "the"
    assert any(string.startswith("##") for string in strings[1:])
    assert "".join(strings[1:]).replace("##", "") == "storefood"


def test_unknown_ids_are_named() -> None:
    assert "99999" in token_strings([99_999], byte_level())[0]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level()


def encode(tokenizer: Any) -> tuple[list[int], int]:
    """The tokens of PROMPT + RESPONSE, and the number of tokens of PROMPT."""
    return tokenizer(PROMPT + RESPONSE)["input_ids"], len(tokenizer(PROMPT)["input_ids"])


def test_whitespace_prefix_and_reward_are_marked(tokenizer: Any) -> None:
    ids, prefix = encode(tokenizer)
    text = TokenStrip(ids, tokenizer, prefix, len(ids) - 1).text()
    assert render(text) == "<|user|>How·can·I⏎\nstore·food?│·You·could⇥store·\\xe6\\x97\\xa5\\x1b[31m⟦<eos>⟧\n"


def test_escape_sequences_of_data_are_harmless(tokenizer: Any) -> None:
    ids, prefix = encode(tokenizer)
    text = TokenStrip(ids, tokenizer, prefix).text()
    assert "\x1b" not in render(text)
    assert "\x1b[31m" not in render(text, color=True)


def test_neighbouring_tokens_differ_in_style(tokenizer: Any) -> None:
    """Neighbours differ, also within the prefix, whose tokens are dim; special tokens are reversed."""
    ids, prefix = encode(tokenizer)
    text = TokenStrip(ids, tokenizer, prefix, len(ids) - 1).text()
    styles = [str(span.style) for span in text.spans]
    divider = styles.index("bold")
    shared, response = styles[:divider], styles[divider + 1 :]
    assert len(shared) == prefix
    assert len(response) == len(ids) - prefix
    assert all("dim" in style for style in shared)
    assert not any("dim" in style for style in response)
    assert all(left != right for left, right in pairwise(response))
    assert all(left != right for left, right in pairwise(shared))
    assert "reverse" in shared[0]


def test_ids_follow_tokens_in_subscript_digits(tokenizer: Any) -> None:
    ids = tokenizer("a 3<eos>")["input_ids"]
    text = TokenStrip(ids, tokenizer, show_ids=True).text().plain
    subscripts = [str(token_id).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")) for token_id in ids]
    assert text == "".join(token + number for token, number in zip(["a", "·", "3", "<eos>"], subscripts, strict=True))


def test_boundaries_do_not_start_a_line(tokenizer: Any) -> None:
    ids = tokenizer("How can\nI")["input_ids"]
    text = TokenStrip(ids, tokenizer).text(boundaries=True).plain
    assert text.count("╎") == len(ids) - 2
    assert "⏎\nI" in text


def test_narrow_terminals_show_the_whole_text(tokenizer: Any) -> None:
    ids, _ = encode(tokenizer)
    text = TokenStrip(ids, tokenizer).text()
    wrapped = render(text, width=7)
    assert wrapped.replace("\n", "") == text.plain.replace("\n", "")
    assert max(map(len, wrapped.splitlines())) <= 7


def test_word_pieces_are_separated_by_spaces() -> None:
    tokenizer = word_piece()
    ids = tokenizer("store the food")["input_ids"]
    assert TokenStrip(ids, tokenizer).text().plain.replace("##", "") == "store the food"


def test_boundaries_replace_missing_colours(tokenizer: Any) -> None:
    ids, _ = encode(tokenizer)
    coloured, piped, no_color = console(color=True), console(), console(color=True, no_color=True)
    for target in (coloured, piped, no_color):
        visualize_tokens(ids, tokenizer, target)
    assert "╎" not in written(coloured)
    assert "48;5;" in written(coloured)
    assert "╎" in written(piped)
    assert "\x1b" not in written(piped)
    assert "╎" in written(no_color)
    assert "48;5;" not in written(no_color)


def test_no_tokens_give_an_empty_text(tokenizer: Any) -> None:
    assert TokenStrip([], tokenizer).text() == Text()


def test_scale_has_equal_steps_without_extremes() -> None:
    scale = RewardScale.of([-1000.0, *(number / 100 for number in range(701)), None, 1000.0])
    assert (scale.low, scale.high) == pytest.approx((0.35, 6.65), abs=0.02)
    levels = [scale.level(number / 100) for number in range(701)]
    assert levels == sorted(levels)
    assert set(levels) == set(range(LEVELS))
    assert (scale.level(-1e9), scale.level(1e9)) == (0, LEVELS - 1)
    assert all(scale.level(scale.middle(level)) == level for level in range(LEVELS))
    assert RewardScale.of([1.0, 1.0]).level(1.0) == LEVELS // 2
    assert RewardScale.of([None]).level(0.0) == LEVELS // 2


@pytest.mark.parametrize(
    ("low", "high", "text"), [(0, 7, "+1.23"), (0, 0.07, "+1.235"), (0, 0.0007, "+1.23457"), (1, 1, "+1.23")]
)
def test_numbers_have_the_digits_of_a_step(low: float, high: float, text: str) -> None:
    assert RewardScale(low, high).format(1.2345678) == text


def test_rewards_are_below_their_tokens(tokenizer: Any) -> None:
    """Without colours; a line feed ends a line, and a token that is wider than the console is cut."""
    ids, prefix = encode(tokenizer)
    rewards = [None if index == 2 else index / 10 for index in range(len(ids))]
    strip = RewardStrip(ids, tokenizer, rewards, RewardScale(0, 7), marks={prefix: "│"})
    for width in (8, 30, 200):
        lines = render(strip, width).rstrip("\n").split("\n")
        assert max(map(len, lines)) <= width
        assert not any(lines[2::3])
        numbers = " ".join(lines[1::3]).split()
        assert numbers == ["–" if reward is None else f"+{reward:.2f}" for reward in rewards]
        assert sum(line.count("│") for line in lines[::3]) == 1
    wide = render(strip, 200)
    assert wide.split("\n")[0].endswith("⏎")
    assert "⟦<eos>⟧" in wide
    assert "\\x1b" in wide
    assert "\x1b" not in wide
    assert render(RewardStrip([], tokenizer, [], RewardScale(0, 0))) == "\n"


def test_visualize_tokens_takes_rewards(tokenizer: Any) -> None:
    ids, _ = encode(tokenizer)
    rewards = [float(index) for index in range(len(ids))]
    coloured, piped = console(width=200, color=True), console(width=200)
    for target in (coloured, piped):
        visualize_tokens(ids, tokenizer, target, rewards=rewards)
    assert len(set(re.findall(r"48;5;\d+", written(coloured)))) == LEVELS
    assert "+3.00" in written(piped)
    assert Text.from_ansi(written(coloured)).plain.count("⟦<eos>⟧") == 1
    with pytest.raises(DataError, match=r"^rewards: "):
        visualize_tokens(ids, tokenizer, piped, rewards=rewards[1:])
