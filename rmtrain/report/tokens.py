"""Token ids as coloured text: where tokens begin and end, what is shared, and where the reward is read."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from rmtrain.report.formats import revealed
from rmtrain.report.pieces import is_word_piece, special_ids, token_strings
from rmtrain.report.surroundings import Flowing, has_colours

RESPONSE_STYLES = ("color(16) on color(117)", "color(16) on color(223)", "color(16) on color(157)", "color(16) on color(219)")
PREFIX_STYLES = ("dim", "dim underline")
REWARD_STYLE = "bold color(231) on color(161)"
MARK_STYLE = "bold"
ID_STYLE = "dim"
BOUNDARY = "╎"
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
WHITESPACE = str.maketrans(" \t\n", "·⇥⏎")


def visualize_tokens(ids: Sequence[int], tokenizer: Any, console: Console | None = None) -> None:
    """Print token ids as text in alternating colours; where the console has no colour, a thin line parts the tokens."""
    (console or Console()).print(TokenStrip(ids, tokenizer), crop=False)


class TokenStrip:
    """Token ids as `token_text` draws them, parted by lines where the console has no colours.

    Args:
        ids, tokenizer, prefix_length, reward_index, show_ids: as in `token_text`.
    """

    def __init__(
        self,
        ids: Sequence[int],
        tokenizer: Any,
        *,
        prefix_length: int = 0,
        reward_index: int | None = None,
        show_ids: bool = False,
    ) -> None:
        self.ids, self.tokenizer = ids, tokenizer
        self.prefix_length, self.reward_index, self.show_ids = prefix_length, reward_index, show_ids

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = token_text(
            self.ids,
            self.tokenizer,
            prefix_length=self.prefix_length,
            reward_index=self.reward_index,
            show_ids=self.show_ids,
            boundaries=not has_colours(console),
        )
        yield Flowing(text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)


def token_text(
    ids: Sequence[int],
    tokenizer: Any,
    *,
    prefix_length: int = 0,
    reward_index: int | None = None,
    show_ids: bool = False,
    boundaries: bool = False,
) -> Text:
    """Token ids as one text.

    Response tokens alternate between four background colours; tokens of the prefix are dimmed, every other one underlined; special
    tokens are reversed. Whitespace is drawn: `·` a space, `⇥` a tab, `⏎` a line feed, after which a new line begins. Bytes that are
    only part of a character, and characters that cannot be seen, stand as escapes such as `\\xe2`.

    Args:
        ids: the tokens.
        tokenizer: a transformers tokenizer.
        prefix_length: how many leading tokens all responses share; a `│` follows them.
        reward_index: the token whose logit is the reward, marked `⟦...⟧`.
        show_ids: write each token's id behind it, in subscript digits.
        boundaries: part the tokens with a thin line, for where colours cannot be seen.
    """
    special = special_ids(tokenizer)
    spaced = is_word_piece(tokenizer)
    text = Text(overflow="fold")
    for index, (token_id, string) in enumerate(zip(ids, token_strings(ids, tokenizer), strict=True)):
        if index == prefix_length > 0:
            text.append("│", MARK_STYLE)
        elif boundaries and index and not text.plain.endswith("\n"):
            text.append(BOUNDARY, ID_STYLE)
        if spaced and index and not string.startswith("##"):
            text.append(" ")
        if index == reward_index:
            text.append(f"⟦{_drawn(string)}⟧", REWARD_STYLE)
        else:
            text.append(_drawn(string), _style(index, prefix_length, token_id in special))
        if show_ids:
            text.append(str(token_id).translate(SUBSCRIPTS), ID_STYLE)
        text.append("\n" * string.count("\n"))
    return text


def _style(index: int, prefix_length: int, special: bool) -> str:
    shared = index < prefix_length
    if special:
        return "dim reverse" if shared else "bold reverse"
    styles = PREFIX_STYLES if shared else RESPONSE_STYLES
    return styles[(index - prefix_length) % len(styles)]


def _drawn(string: str) -> str:
    return revealed(string).translate(WHITESPACE)
