"""Token ids as coloured text: where tokens begin and end, what is shared, and where the reward is read."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from rmtrain.report.console import WrapText, escape_invisible, has_colours

BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text each token stands for, alone.

    A token that holds only part of a character's UTF-8 bytes gives them as escapes: an emoji split in two may give `\\xf0\\x9f` and
    `\\x98\\x80`. WordPiece tokens keep their `##`. Added and special tokens give their own content.

    Args:
        ids: the tokens.
        tokenizer: a transformers tokenizer.
    """
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    to_bytes = _byte_level if is_byte_level(tokenizer) else _plain
    return [added[token_id] if token_id in added else _alone(token_id, tokenizer, to_bytes) for token_id in map(int, ids)]


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that carry structure and no text: end, padding, turn marks."""
    marked = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether the vocabulary is written in GPT-2's alphabet of 256 printable characters, one for each byte."""
    return _has_part(tokenizer, "ByteLevel")


def is_word_piece(tokenizer: Any) -> bool:
    """Whether words begin without a mark and go on with `##`, as in BERT's vocabulary."""
    return _has_part(tokenizer, "WordPiece")


def _has_part(tokenizer: Any, kind: str) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [] if backend is None else [backend.decoder, backend.pre_tokenizer]
    return any(part is not None and f'"type":"{kind}"'.encode() in part.__getstate__() for part in parts)


def _alone(token_id: int, tokenizer: Any, to_bytes: Callable[[str], bytes]) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        return f"<no token {token_id}>"
    raw = token if isinstance(token, bytes) else to_bytes(token)
    return raw.decode("utf-8", errors="backslashreplace")


def _byte_level(token: str) -> bytes:
    if all(character in BYTE_OF for character in token):
        return bytes(BYTE_OF[character] for character in token)
    return token.encode()


def _plain(token: str) -> bytes:
    byte = BYTE_FALLBACK.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, inverted: printable Latin-1 bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


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
        yield WrapText(text)

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
    return escape_invisible(string).translate(WHITESPACE)
