"""Coloured tokens: every mark is there without colour, too."""

from itertools import pairwise

import pytest
from rich.text import Text

from rmtrain.report.tokens import token_text, visualize_tokens
from tests.report.render import console, render, written
from tests.report.tokenizers import byte_level, word_piece

PROMPT, RESPONSE = "<|user|>How can I\nstore food?", " You could\tstore 日\x1b[31m<eos>"


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return byte_level()


def encode(tokenizer: object) -> tuple[list[int], int]:
    ids = tokenizer(PROMPT + RESPONSE)["input_ids"]  # type: ignore[operator]
    return ids, len(tokenizer(PROMPT)["input_ids"])  # type: ignore[operator]


def test_without_colour_whitespace_prefix_and_reward_are_marked(tokenizer: object) -> None:
    ids, prefix = encode(tokenizer)
    text = token_text(ids, tokenizer, prefix_length=prefix, reward_index=len(ids) - 1)
    assert render(text) == "<|user|>How·can·I⏎\nstore·food?│·You·could⇥store·\\xe6\\x97\\xa5\\x1b[31m⟦<eos>⟧\n"


def test_no_escape_sequence_of_the_data_reaches_the_terminal(tokenizer: object) -> None:
    ids, prefix = encode(tokenizer)
    assert "\x1b" not in render(token_text(ids, tokenizer, prefix_length=prefix))
    assert "\x1b[31m" not in render(token_text(ids, tokenizer, prefix_length=prefix), color=True)


def test_neighbouring_tokens_of_a_response_differ_in_style_and_the_prefix_is_dim(tokenizer: object) -> None:
    ids, prefix = encode(tokenizer)
    text = token_text(ids, tokenizer, prefix_length=prefix, reward_index=len(ids) - 1)
    styles = [str(span.style) for span in text.spans]
    divider = styles.index("bold")
    shared, response = styles[:divider], styles[divider + 1 :]
    assert len(shared) == prefix
    assert len(response) == len(ids) - prefix
    assert all("dim" in style for style in shared)
    assert not any("dim" in style for style in response)
    assert all(left != right for left, right in pairwise(response))
    assert all(left != right for left, right in pairwise(shared))
    assert "reverse" in shared[0], "special tokens are reversed"


def test_ids_stand_behind_their_tokens_in_subscript_digits(tokenizer: object) -> None:
    ids = tokenizer("a 3<eos>")["input_ids"]  # type: ignore[operator]
    shown = token_text(ids, tokenizer, show_ids=True).plain
    subscripts = [str(token_id).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")) for token_id in ids]
    assert shown == "".join(token + number for token, number in zip(["a", "·", "3", "<eos>"], subscripts, strict=True))


def test_boundaries_part_tokens_but_do_not_begin_a_line(tokenizer: object) -> None:
    ids = tokenizer("How can\nI")["input_ids"]  # type: ignore[operator]
    shown = token_text(ids, tokenizer, boundaries=True).plain
    assert shown.count("╎") == len(ids) - 2
    assert "⏎\nI" in shown


def test_the_whole_text_is_shown_however_narrow(tokenizer: object) -> None:
    ids, _ = encode(tokenizer)
    text = token_text(ids, tokenizer)
    wrapped = render(text, width=7)
    assert wrapped.replace("\n", "") == text.plain.replace("\n", "")
    assert max(map(len, wrapped.splitlines())) <= 7


def test_word_pieces_are_parted_by_plain_spaces() -> None:
    tokenizer = word_piece()
    ids = tokenizer("store the food")["input_ids"]
    assert token_text(ids, tokenizer).plain.replace("##", "") == "store the food"


def test_visualize_tokens_prints_in_colour_and_draws_boundaries_without(tokenizer: object) -> None:
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


def test_no_tokens_are_an_empty_text(tokenizer: object) -> None:
    assert token_text([], tokenizer) == Text()
