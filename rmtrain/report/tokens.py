"""Token ids as text: where tokens begin and end, what responses share, and where the reward is read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from rmtrain.report.console import WrapText, escape_invisible, has_colours

RESPONSE_STYLES = ("color(16) on color(117)", "color(16) on color(223)", "color(16) on color(157)", "color(16) on color(219)")
PREFIX_STYLES = ("dim", "dim underline")
REWARD_STYLE = "bold color(231) on color(161)"
MARK_STYLE = "bold"
ID_STYLE = "dim"
BOUNDARY = "╎"
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
WHITESPACE = str.maketrans(" \t\n", "·⇥⏎")


def visualize_tokens(ids: Sequence[int], tokenizer: Any, console: Console | None = None) -> None:
    """Print token ids as text in alternating colours, on stdout by default; without colours, a thin line separates the tokens."""
    (console or Console()).print(TokenStrip(ids, tokenizer), crop=False)


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
        is_word_piece = _uses(self.tokenizer, "WordPiece")
        text = Text(overflow="fold")
        for index, (token_id, string) in enumerate(zip(self.ids, token_strings(self.ids, self.tokenizer), strict=True)):
            in_prefix = index < self.prefix_length
            if index == self.prefix_length > 0:
                text.append("│", MARK_STYLE)
            elif boundaries and index and not text.plain.endswith("\n"):
                text.append(BOUNDARY, ID_STYLE)
            if is_word_piece and index and not string.startswith("##"):
                text.append(" ")

            drawn = escape_invisible(string).translate(WHITESPACE)
            if index == self.reward_index:
                text.append(f"⟦{drawn}⟧", REWARD_STYLE)
            elif token_id in special:
                text.append(drawn, "dim reverse" if in_prefix else "bold reverse")
            else:
                styles = PREFIX_STYLES if in_prefix else RESPONSE_STYLES
                text.append(drawn, styles[(index - self.prefix_length) % len(styles)])
            if self.show_ids:
                text.append(str(token_id).translate(SUBSCRIPTS), ID_STYLE)
            text.append("\n" * string.count("\n"))
        return text


BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# GPT-2's `bytes_to_unicode`, inverted: printable Latin-1 bytes represent themselves, all others follow from U+0100.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTE_OF = {chr(byte): byte for byte in PRINTABLE}
BYTE_OF |= {chr(0x100 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}


def token_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token.

    A token with only a part of a character's UTF-8 bytes gives escapes: an emoji that is split in two may give `\\xf0\\x9f` and
    `\\x98\\x80`. WordPiece tokens keep their `##`. Added and special tokens give their own content.
    """
    # `tokenizer.decode` of a single token would replace incomplete characters and drop leading spaces.
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    is_byte_level = _uses(tokenizer, "ByteLevel")
    strings = []
    for token_id in map(int, ids):
        token = tokenizer.convert_ids_to_tokens(token_id)
        if token_id in added:
            strings.append(added[token_id])
            continue
        if token is None:
            raw = f"<no token {token_id}>".encode()
        elif isinstance(token, bytes):
            raw = token
        elif is_byte_level:
            raw = bytes(BYTE_OF[char] for char in token) if all(char in BYTE_OF for char in token) else token.encode()
        elif byte := BYTE_TOKEN.fullmatch(token):
            raw = bytes.fromhex(byte[1])
        else:
            raw = token.replace("▁", " ").encode()
        strings.append(raw.decode(errors="backslashreplace"))
    return strings


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
