"""Token ids as text: in alternating colours, or in colours of the reward after each token."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rmtrain.errors import DataError
from rmtrain.report.console import WrapText, decimal, escape_invisible, has_colours
from rmtrain.report.terminal import TerminalConsole

RESPONSE_STYLES = ("color(16) on color(117)", "color(16) on color(223)", "color(16) on color(157)", "color(16) on color(219)")
LEVEL_COLOURS = (208, 215, 223, 255, 195, 117, 75)
LEVELS = len(LEVEL_COLOURS)
"""Colours that rewards are shown in, from orange for low ones to blue for high ones."""
LEVEL_STYLES = tuple(f"color(16) on color({colour})" for colour in LEVEL_COLOURS)
PREFIX_STYLES = ("dim", "dim underline")
REWARD_STYLE = "bold color(231) on color(161)"
MARK_STYLE = "bold"
ID_STYLE = "dim"
BOUNDARY = "╎"
AHEAD = "»"
"""Marks the token from which one of two responses is ahead to the end."""
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
WHITESPACE = str.maketrans(" \t\n", "·⇥⏎")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}
"""Bytes by the characters of byte-level tokenizers."""


def visualize_tokens(
    ids: Sequence[int], tokenizer: Any, console: Console | None = None, *, rewards: Sequence[float | None] | None = None
) -> None:
    """Print token ids as text in alternating colours, on stdout by default; without colours, a thin line separates the tokens.

    With `rewards`, the one after each token as `RewardScorer.score_tokens` returns them, see `RewardStrip`.
    """
    if rewards is None:
        strip: RenderableType = TokenStrip(ids, tokenizer)
    else:
        if len(rewards) != len(ids):
            raise DataError(f"rewards: expected one for each of {len(ids)} tokens, got {len(rewards)}")
        scale = RewardScale.of(rewards)
        strip = Group(ScaleLegend(scale), RewardStrip(ids, tokenizer, rewards, scale))
    (console or TerminalConsole()).print(strip, crop=False)


@dataclass(frozen=True, slots=True, eq=False)
class TokenStrip:
    """Token ids as one text.

    Tokens of a response alternate between four background colours. Prefix tokens are dim, every other one underlined; special tokens
    are reversed. Whitespace is drawn: `·` is a space, `⇥` a tab and `⏎` a line feed, which also starts a new line. Invisible characters
    and parts of characters are escapes such as `\\xe2`.

    prefix_length: number of leading tokens that all responses share; `│` follows them.
    reward_index: the token whose logit is the reward, marked `⟦...⟧`.
    show_ids: print each token's id after it, in subscript digits.
    """

    ids: Sequence[int]
    tokenizer: Any
    prefix_length: int = 0
    reward_index: int | None = None
    show_ids: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield WrapText(self.text(boundaries=not has_colours(console)))

    def text(self, boundaries: bool = False) -> Text:
        """Return the styled text; with `boundaries`, a thin line separates the tokens."""
        special = special_ids(self.tokenizer)
        text = Text(overflow="fold")
        for index, (token_id, token) in enumerate(zip(self.ids, drawn_tokens(self.ids, self.tokenizer), strict=True)):
            in_prefix = index < self.prefix_length
            if index == self.prefix_length > 0:
                text.append("│", MARK_STYLE)
            elif boundaries and index and not text.plain.endswith("\n"):
                text.append(BOUNDARY, ID_STYLE)
            text.append(token.space)
            if index == self.reward_index:
                text.append(f"⟦{token.drawn}⟧", REWARD_STYLE)
            elif token_id in special:
                text.append(token.drawn, "dim reverse" if in_prefix else "bold reverse")
            else:
                styles = PREFIX_STYLES if in_prefix else RESPONSE_STYLES
                text.append(token.drawn, styles[(index - self.prefix_length) % len(styles)])
            if self.show_ids:
                text.append(str(token_id).translate(SUBSCRIPTS), ID_STYLE)
            text.append("\n" * token.line_feeds)
        return text


@dataclass(frozen=True, slots=True)
class RewardScale:
    """Colours for rewards of a comparison: equal steps from its 5 % to its 95 % quantile, so that a few extremes do not hide the rest."""

    low: float
    high: float

    @classmethod
    def of(cls, rewards: Iterable[float | None]) -> "RewardScale":
        """Return the scale of some rewards."""
        known = np.array([reward for reward in rewards if reward is not None] or [0.0])
        low, high = np.quantile(known, (0.05, 0.95)).tolist()
        return cls(low, high)

    def level(self, reward: float) -> int:
        """Return the step of a reward, from 0 for the lowest to LEVELS - 1."""
        if self.high <= self.low:
            return LEVELS // 2
        return max(0, min(LEVELS - 1, math.floor((reward - self.low) / (self.high - self.low) * LEVELS)))

    def middle(self, level: int) -> float:
        """Return the reward in the middle of a step."""
        return self.low + (level + 0.5) / LEVELS * (self.high - self.low)

    def format(self, reward: float) -> str:
        """Format a reward with as many digits as tell the steps apart, at most six."""
        step = (self.high - self.low) / LEVELS
        return decimal(reward, 2 if step <= 0 else max(2, min(6, 1 - math.floor(math.log10(step)))), sign=True)


@dataclass(frozen=True, slots=True)
class ScaleLegend:
    """An empty line and the colours of a scale with their rewards; nothing without colours, where a strip has the numbers themselves."""

    scale: RewardScale

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if has_colours(console):
            middles = [(self.scale.format(self.scale.middle(level)), style) for level, style in enumerate(LEVEL_STYLES)]
            yield Text()
            yield Text(" ").join(Text(number, style) for number, style in middles)


@dataclass(frozen=True, slots=True, eq=False)
class RewardStrip:
    """The tokens of a response with the reward after each: as the colour behind it, or without colours as a number below it.

    Whitespace is drawn as in `TokenStrip`. The last token, at which the reward is read, is marked `⟦...⟧`.

    first: number of the first token to show; those before are the prompt.
    marks: signs to draw before tokens, by number.
    """

    ids: Sequence[int]
    tokenizer: Any
    rewards: Sequence[float | None]
    scale: RewardScale
    first: int = 0
    marks: Mapping[int, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._coloured() if has_colours(console) else self._numbered(options.max_width)

    def _tokens(self) -> Iterator[tuple[str, str, str, float | None, int]]:
        """Yield the mark before each shown token, the space before it, its text, the reward after it, and its line feeds."""
        tokens = drawn_tokens(self.ids, self.tokenizer)
        for index in range(self.first, len(tokens)):
            token, is_last = tokens[index], index == len(tokens) - 1
            drawn = f"⟦{token.drawn}⟧" if is_last else token.drawn
            space = token.space if index > self.first else ""
            yield self.marks.get(index, ""), space, drawn, self.rewards[index], 0 if is_last else token.line_feeds

    def _coloured(self) -> Text:
        text = Text(overflow="fold")
        for mark, space, drawn, reward, line_feeds in self._tokens():
            text.append(mark, MARK_STYLE).append(space)
            text.append(drawn, ID_STYLE if reward is None else LEVEL_STYLES[self.scale.level(reward)])
            text.append("\n" * line_feeds)
        return text

    def _numbered(self, width: int) -> Text:
        """Return lines of tokens, each with a line of rewards below it; a token that is wider than the console is cut."""
        rows: list[list[tuple[str, str]]] = [[]]
        used = 0
        for mark, _, drawn, reward, line_feeds in self._tokens():
            number = "–" if reward is None else self.scale.format(reward)
            token = mark + drawn if cell_len(mark + drawn) <= width else set_cell_size(mark + drawn, width - 1) + "…"
            room = max(cell_len(token), len(number))
            if used + room > width:
                rows.append([])
                used = 0
            rows[-1].append((set_cell_size(token, room), number.ljust(room)))
            used += room + 1
            if line_feeds:
                rows.append([])
                used = 0
        blocks = ["\n".join(" ".join(line).rstrip() for line in zip(*row, strict=True)) for row in rows if row]
        return Text("\n\n".join(blocks), no_wrap=True, overflow="ignore")


def parting_marks(tokens: int, rewards: int | None) -> dict[int, str]:
    """Return the signs before tokens, by number: `│` where the tokens of two responses part, and AHEAD where their rewards do."""
    marks = {tokens: "│"}
    if rewards is not None:
        marks[rewards] = marks.get(rewards, "") + AHEAD
    return marks


class DrawnToken(NamedTuple):
    """A token drawn on one line.

    space: what is before it in the text, and in no token.
    line_feeds: the number of those in it.
    """

    space: str
    drawn: str
    line_feeds: int


def drawn_tokens(ids: Sequence[int], tokenizer: Any) -> list[DrawnToken]:
    """Return each token with whitespace drawn as `·`, `⇥` and `⏎`, and invisible characters as escapes."""
    is_word_piece = _uses(tokenizer, "WordPiece")
    return [
        DrawnToken(
            " " if is_word_piece and index and not string.startswith("##") else "",
            escape_invisible(string).translate(WHITESPACE),
            string.count("\n"),
        )
        for index, string in enumerate(token_strings(ids, tokenizer))
    ]


def token_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token.

    A token with only a part of a character's UTF-8 bytes gives escapes: an emoji that is split in two may give `\\xf0\\x9f` and
    `\\x98\\x80`. WordPiece tokens keep their `##`. Added and special tokens give their own content.
    """
    return [raw.decode(errors="backslashreplace") for raw in token_bytes(ids, tokenizer)]


def token_bytes(ids: Sequence[int], tokenizer: Any) -> list[bytes]:
    """Return the text of each token in UTF-8, see `token_strings`."""
    # `tokenizer.decode` of a single token would replace incomplete characters and drop leading spaces.
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    is_byte_level = _uses(tokenizer, "ByteLevel")
    texts = []
    for token_id in map(int, ids):
        token = tokenizer.convert_ids_to_tokens(token_id)
        if token_id in added:
            raw = added[token_id].encode()
        elif token is None:
            raw = f"<no token {token_id}>".encode()
        elif isinstance(token, bytes):
            raw = token
        elif is_byte_level:
            raw = bytes(BYTE_OF[char] for char in token) if all(char in BYTE_OF for char in token) else token.encode()
        elif byte := BYTE_TOKEN.fullmatch(token):
            raw = bytes.fromhex(byte[1])
        else:
            raw = token.replace("▁", " ").encode()
        texts.append(raw)
    return texts


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that structure a text, such as end, padding and turn marks."""
    return {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special} | set(
        tokenizer.all_special_ids
    )


def _uses(tokenizer: Any, kind: str) -> bool:
    """Return True if the decoder or pre-tokenizer has a part of this kind, such as `ByteLevel` or `WordPiece`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [] if backend is None else [backend.decoder, backend.pre_tokenizer]
    return any(part is not None and f'"type":"{kind}"'.encode() in part.__getstate__() for part in parts)
