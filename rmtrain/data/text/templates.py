"""Chat templates: the built-in ones, where others come from, and what makes a template safe to train on and to export.

A template is used only in its completed form, which is also what is exported with the model:
1. dates are frozen, so that a text is the same tomorrow;
2. each conversation begins with what the tokenizer would put there and ends in exactly one end token, with nothing after it.
So `apply_chat_template(conversation, tokenize=True)` of any consumer gives a decoder model the very tokens it was trained on.
"""

import difflib
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Message
from rmtrain.errors import DataError, RecipeError

NEW_PAD_TOKEN = "<|pad|>"
PAD_NAME = re.compile(r"pad", re.IGNORECASE)
SPARE_NAME = re.compile(r"reserved|unused", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EdgeTokens:
    """The special tokens around a text.

    leading, trailing: ids that `tokenizer(text)` puts before and after the text by itself.
    end: id of the token that ends every response and where the reward is read.
    in_template: whether the chat template writes them, as decoder models have it (`<s>` or nothing, then `</s>`); otherwise the
        tokenizer adds them to the rendered text, as encoder models have it (`[CLS]` and `[SEP]`).
    """

    leading: tuple[int, ...]
    trailing: tuple[int, ...]
    end: int
    in_template: bool


def edge_tokens(tokenizer: PreTrainedTokenizerBase) -> EdgeTokens:
    """The edge tokens of a tokenizer, found by encoding a word with and without special tokens.

    Raises:
        RecipeError: the tokenizer has no token that could end a response.
    """
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    begin = next(start for start in range(len(whole) + 1) if whole[start : start + len(bare)] == bare)
    leading, trailing = tuple(whole[:begin]), tuple(whole[begin + len(bare) :])
    end = trailing[-1] if trailing else tokenizer.eos_token_id
    if end is None:
        raise RecipeError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no end token; set eos_token in its tokenizer_config.json, "
            "or take another tokenizer"
        )
    return EdgeTokens(leading, trailing, end, in_template=not trailing and leading in ((), (tokenizer.bos_token_id,)))


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, end: int) -> Any:
    """The token to pad with, never one that ends a response: transformers reads the reward at the last token that is not padding.

    The tokenizer's own where it is another token; else an existing special token made for padding, a reserved or unused one, or the
    unknown token; else a new `<|pad|>`, for which the model's embeddings must grow.
    """
    ends = {end, tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in ends:
        return tokenizer.pad_token
    spare = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special and index not in ends}
    for pattern in (PAD_NAME, SPARE_NAME):
        for name in spare:
            if pattern.search(name):
                return name
    if tokenizer.unk_token is not None and tokenizer.unk_token_id not in ends:
        return tokenizer.unk_token
    return NEW_PAD_TOKEN


Conversation = Sequence[Message]
MAX_TEXT_CHARACTERS = 16 * 2**20
MAX_SECONDS = 60.0
TEMPLATE_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """The text of one conversation; see `render_all`."""
    return render_all([conversation], tokenizer, ["conversation"], add_generation_prompt)[0]


def render_all(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[str],
    add_generation_prompt: bool = False,
    seconds: float = MAX_SECONDS,
) -> list[str]:
    """The text of each conversation under the tokenizer's chat template.

    Args:
        conversations: messages, none empty.
        tokenizer: one whose `chat_template` is set.
        ids: a row id for each conversation, for errors.
        add_generation_prompt: end with what announces a reply.
        seconds: longest time for all of them together; kept in the main thread only, which is where Python delivers alarms.

    Raises:
        DataError: the template fails on a row, runs for too long or writes too much.
    """
    if not conversations:
        return []
    with _time_limit(seconds):
        try:
            texts = _apply(conversations, tokenizer, add_generation_prompt)
        except TEMPLATE_FAILURES:
            texts = [_render_one(*item, tokenizer, add_generation_prompt) for item in zip(conversations, ids, strict=True)]
    for text, row_id in zip(texts, ids, strict=True):
        check_size(text, row_id)
    return texts


def check_size(text: str, row_id: str) -> None:
    """Raise DataError, naming the row, when a template wrote too much."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise DataError(f"{row_id}: the chat template wrote {len(text)} characters, more than {MAX_TEXT_CHARACTERS}")


def _apply(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool) -> list[str]:
    listed = [list(conversation) for conversation in conversations]
    texts: list[str] = tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=add_generation_prompt)
    return texts


def _render_one(conversation: Conversation, row_id: str, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool) -> str:
    try:
        return _apply([conversation], tokenizer, add_generation_prompt)[0]
    except TEMPLATE_FAILURES as error:
        message = " ".join(str(error).split())[:300]
        raise DataError(f"{row_id}: the chat template failed: {type(error).__name__}: {message}") from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise DataError(f"the chat template ran for more than {seconds:g} seconds; does it loop?")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


MAX_TEMPLATE_CHARACTERS = 256 * 1024
PROBE_SECONDS = 2.0
TODAY = datetime(2024, 7, 26)
"""The day it always is inside a template; Llama 3's own choice where no clock is at hand."""
CLOCK_CALL = re.compile(r"strftime_now\s*\(\s*(?P<quote>['\"])(?P<format>[^'\"]*)(?P=quote)\s*\)")
PROBE: tuple[Message, ...] = ({"role": "user", "content": "first"}, {"role": "assistant", "content": "second"})

CHAT_TEMPLATES = {
    # messages joined by a space (TRL's dataset_processor)
    "simple_concat": (
        "{% for message in messages %}"
        "{{ ' ' if not loop.first else '' }}{{ message['content'] }}"
        "{% endfor %}"
        "{{ '' if add_generation_prompt else eos_token }}"
    ),
    # "User: ...", blank line, "Assistant: ..." (TRL's dataset_processor)
    "simple_chat": (
        "{% for message in messages %}"
        "{{ '\n\n' if not loop.first else '' }}{{ message['role'] | capitalize + ': ' + message['content'] }}"
        "{% endfor %}"
        "{{ '\n\nAssistant:' if add_generation_prompt else eos_token }}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
        "{{ '' if loop.last and not add_generation_prompt else '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% elif eos_token != '<|im_end|>' %}{{ eos_token }}{% endif %}"
    ),
    # an end token after every message
    "zephyr": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] }}{{ eos_token }}"
        "{{ '' if loop.last and not add_generation_prompt else '\n' }}"
        "{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"
    ),
    # an end token after every reply (open-instruct)
    "tulu": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{{ '' if loop.last and not add_generation_prompt else '\n' }}"
        "{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"
    ),
}


def resolve_template(chat_template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of `data.chat_template`, completed for this tokenizer.

    Args:
        chat_template: a built-in name, `tokenizer`, a path that ends in `.jinja`, or the template itself.
        tokenizer: gives its own template, and what stands at the edges of a text. Its `chat_template` is set to the result.

    Raises:
        RecipeError: there is no such template, or it is too long.
        DataError: it fails on a plain question and answer, loops, or does not end in one end token.
    """
    template = _find(chat_template, tokenizer)
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise RecipeError(f"data.chat_template: expected at most {MAX_TEMPLATE_CHARACTERS} characters, got {len(template)}")
    tokenizer.chat_template = freeze_dates(template)
    edges = edge_tokens(tokenizer)
    tokenizer.chat_template = _completed(tokenizer, edges) if edges.in_template else _stripped(tokenizer, edges)
    _check_edges(tokenizer, edges)
    return str(tokenizer.chat_template)


def _find(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    if name == "tokenizer":
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        if own is None:
            raise RecipeError(f"data.chat_template: the tokenizer has no chat template; name one: {_choices()}")
        return str(own)
    if name.endswith(".jinja"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"data.chat_template: {name} is not there")
        return path.read_text(encoding="utf-8")
    if "{{" in name or "{%" in name:
        return name
    near = difflib.get_close_matches(name, [*CHAT_TEMPLATES, "tokenizer"], n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of: {_choices()}"
    raise RecipeError(f'data.chat_template: "{name[:80]}" is no template; {hint}')


def _choices() -> str:
    return ", ".join([*CHAT_TEMPLATES, "a .jinja file", "the template itself"])


def freeze_dates(template: str) -> str:
    """The template with every `strftime_now("...")` replaced by a fixed day's text.

    Raises:
        RecipeError: it computes the format of a date.
    """
    frozen = CLOCK_CALL.sub(lambda call: repr(TODAY.strftime(call["format"])), template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise RecipeError("data.chat_template: it computes a date format, so texts would change from day to day; write it out")
    return frozen


def _probe(tokenizer: PreTrainedTokenizerBase) -> str:
    return render_all([PROBE], tokenizer, ["data.chat_template"], seconds=PROBE_SECONDS)[0]


def _completed(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """The template, writing what stands at the edges of a text where it does not yet."""
    text, template = _probe(tokenizer), str(tokenizer.chat_template)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    if text.rstrip() != text and text.rstrip().endswith(end):
        template = _wrapped(template, "rendered.rstrip()")
    elif not text.endswith(end):
        template = template.removesuffix("\n") + "{{ '' if add_generation_prompt else eos_token }}"
    if edges.leading and not text.startswith(str(tokenizer.bos_token)):
        template = "{{ bos_token }}" + template
    return template


def _stripped(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """The template, without the tokens at the edges of a text that the tokenizer adds itself."""
    text, template = _probe(tokenizer), str(tokenizer.chat_template)
    start, end = (_text_of(tokenizer, ids) for ids in (edges.leading, edges.trailing))
    if end and text.rstrip().endswith(end):
        template = _wrapped(template, f"rendered.rstrip()[:-{len(end)}]")
    if start and text.startswith(start):
        template = "{% set whole %}" + template + "{% endset %}{{ whole[" + str(len(start)) + ":] }}"
    return template


def _text_of(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def _wrapped(template: str, result: str) -> str:
    return "{% set rendered %}" + template + "{% endset %}{{ rendered if add_generation_prompt else " + result + " }}"


def _check_edges(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> None:
    text = _probe(tokenizer)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    body = text.removesuffix(end) if edges.in_template else text
    if (edges.in_template and body == text) or body.rstrip().endswith(end):
        raise DataError(f"data.chat_template: a conversation must end in {end} once, but it ends in {text[-40:]!r}")
    bos = tokenizer.bos_token
    if bos is not None and text.startswith(bos * 2):
        raise DataError(f"data.chat_template: it writes {bos} twice at the beginning")
