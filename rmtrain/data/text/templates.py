"""Chat templates: the built-in ones, the changes that make one safe to train on and to export, and conversations rendered as text.

A template is used, and exported with the model, only in its completed form:
1. dates are frozen, so that a text is the same tomorrow;
2. each conversation begins with the tokens that the tokenizer puts there and ends in exactly one end token, with nothing after it.
So `apply_chat_template(conversation, tokenize=True)` of any consumer gives a decoder model exactly the tokens it was trained on.
"""

import difflib
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Comparison, Message
from rmtrain.data.rows.messages import CALL, THOUGHTS
from rmtrain.errors import DataError, RecipeError, missing

NEW_PAD_TOKEN = "<|pad|>"
PAD_NAME = re.compile(r"pad", re.IGNORECASE)
SPARE_NAME = re.compile(r"reserved|unused", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EdgeTokens:
    """The special tokens around a text."""

    leading: tuple[int, ...]
    trailing: tuple[int, ...]
    """Ids that `tokenizer(text)` adds before and after the text."""
    end: int
    """Id of the token that ends every response; the reward is read there."""
    in_template: bool
    """The chat template writes them, as for decoder models (`<s>` or nothing, then `</s>`); otherwise the tokenizer adds them to the text,
    as for encoder models (`[CLS]` and `[SEP]`)."""


def edge_tokens(tokenizer: PreTrainedTokenizerBase) -> EdgeTokens:
    """Return the edge tokens of a tokenizer; raises RecipeError where none could end a response."""
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    begin = next(start for start in range(len(whole) + 1) if whole[start : start + len(bare)] == bare)
    leading, trailing = tuple(whole[:begin]), tuple(whole[begin + len(bare) :])
    end = trailing[-1] if trailing else tokenizer.eos_token_id
    if end is None:
        raise RecipeError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no end token; set eos_token in its tokenizer_config.json, "
            "or use another tokenizer"
        )
    return EdgeTokens(leading, trailing, end, in_template=not trailing and leading in ((), (tokenizer.bos_token_id,)))


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, end: int) -> Any:
    """Return the token to pad with, never one that ends a response: transformers reads the reward at the last token that is not padding.

    It is the first that exists of: the tokenizer's padding token, another special token for padding, a reserved or unused one, the unknown
    token, and a new `<|pad|>`, for which the model's embeddings must grow.
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


MAX_TEMPLATE_CHARACTERS = 256 * 1024
PROBE_SECONDS = 2.0
TODAY = datetime(2024, 7, 26)
"""The date inside every template; Llama 3's template uses the same one when it is given no clock."""
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
    """Complete a template for a tokenizer, and return it as well as set it as the tokenizer's `chat_template`.

    `chat_template` is a built-in name, `tokenizer` for its own, a path that ends in `.jinja`, or the template itself.

    Raises:
        RecipeError: the template does not exist or is too long.
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
    choices = ", ".join([*CHAT_TEMPLATES, "a .jinja file", "the template itself"])
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    if name == "tokenizer":
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        if own is None:
            raise RecipeError(f"data.chat_template: the tokenizer has no chat template; set one of: {choices}")
        return str(own)
    if name.endswith(".jinja"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"data.chat_template: {missing(name)}; expected a file, or one of: {choices}")
        return path.read_text(encoding="utf-8")
    if "{{" in name or "{%" in name:
        return name
    near = difflib.get_close_matches(name, [*CHAT_TEMPLATES, "tokenizer"], n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of: {choices}"
    raise RecipeError(f'data.chat_template: "{name[:80]}" is not a template; {hint}')


def freeze_dates(template: str) -> str:
    """Return the template with the text of a fixed day for `strftime_now("...")`; raises RecipeError where the format is computed."""
    frozen = CLOCK_CALL.sub(lambda call: repr(TODAY.strftime(call["format"])), template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise RecipeError(
            "data.chat_template: it computes a date format, so texts would change from day to day; write the format out"
        )
    return frozen


def _render_probe(tokenizer: PreTrainedTokenizerBase) -> str:
    return render_all([PROBE], tokenizer, ["data.chat_template"], seconds=PROBE_SECONDS)[0]


def _completed(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """Return the template, extended to write the special tokens around a text that it does not write yet."""
    text, template = _render_probe(tokenizer), str(tokenizer.chat_template)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    if text.rstrip() != text and text.rstrip().endswith(end):
        template = _wrapped(template, "rendered.rstrip()")
    elif not text.endswith(end):
        template = template.removesuffix("\n") + "{{ '' if add_generation_prompt else eos_token }}"
    if edges.leading and not text.startswith(str(tokenizer.bos_token)):
        template = "{{ bos_token }}" + template
    return template


def _stripped(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> str:
    """Return the template without the special tokens around a text, which the tokenizer adds."""
    text, template = _render_probe(tokenizer), str(tokenizer.chat_template)
    start, end = ("".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in (edges.leading, edges.trailing))
    if end and text.rstrip().endswith(end):
        template = _wrapped(template, f"rendered.rstrip()[:-{len(end)}]")
    if start and text.startswith(start):
        template = "{% set whole %}" + template + "{% endset %}{{ whole[" + str(len(start)) + ":] }}"
    return template


def _wrapped(template: str, result: str) -> str:
    return "{% set rendered %}" + template + "{% endset %}{{ rendered if add_generation_prompt else " + result + " }}"


def _check_edges(tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> None:
    text = _render_probe(tokenizer)
    end = tokenizer.convert_ids_to_tokens(edges.end)
    body = text.removesuffix(end) if edges.in_template else text
    if (edges.in_template and body == text) or body.rstrip().endswith(end):
        raise DataError(
            f"data.chat_template: a conversation must end in {end} once, but it ends in {text[-40:]!r}; correct the template"
        )
    bos = tokenizer.bos_token
    if bos is not None and text.startswith(bos * 2):
        raise DataError(f"data.chat_template: it writes {bos} twice at the beginning; remove one from the template")


Conversation = Sequence[Message]

MAX_TEXT_CHARACTERS = 16 * 2**20
MAX_SECONDS = 60.0
RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError, RecursionError)
CALL_PROBE = "tool-call-probe"


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """Return the text of a conversation; see `render_all`."""
    return render_all([conversation], tokenizer, ["conversation"], add_generation_prompt)[0]


def render_all(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[str],
    add_generation_prompt: bool = False,
    seconds: float = MAX_SECONDS,
) -> list[str]:
    """Return the text of each conversation under the tokenizer's chat template, rendered in transformers' sandbox.

    `add_generation_prompt` adds the text that announces a reply. `seconds` limits the time of all together, in the main thread only, where
    Python delivers alarms. Raises DataError, with the row id, where the template fails, takes too long or writes too much.
    """

    def apply(batch: Sequence[Conversation]) -> list[str]:
        listed = [list(conversation) for conversation in batch]
        return list(tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=add_generation_prompt))

    if not conversations:
        return []
    with _time_limit(seconds):
        try:
            texts = apply(conversations)
        except RENDER_ERRORS:
            texts = []
            for conversation, row_id in zip(conversations, ids, strict=True):  # one at a time, to find the row
                try:
                    texts += apply([conversation])
                except RENDER_ERRORS as error:
                    message = " ".join(str(error).split())[:300]
                    raise DataError(f"{row_id}: the chat template failed: {type(error).__name__}: {message}") from error
    for text, row_id in zip(texts, ids, strict=True):
        if len(text) > MAX_TEXT_CHARACTERS:
            raise DataError(
                f"{row_id}: the chat template wrote {len(text)} characters, at most {MAX_TEXT_CHARACTERS} are allowed"
            )
    return texts


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise DataError(f"the chat template ran for more than {seconds:g} seconds; check it for an endless loop")

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


@dataclass(frozen=True, slots=True)
class Rendered:
    """A comparison as text."""

    texts: Sequence[str]
    """The whole conversation of each response."""
    begin: tuple[int, int] | None = None
    """Number of a response, and the position where its own text begins; None: no response was found in its conversation."""
    rewritten: tuple[int, ...] = ()
    """Numbers of the responses that do not appear unchanged."""
    hidden: Mapping[int, str] = field(default_factory=dict)
    """By number of a response, the key of a message that the template does not write, such as `tool_calls`."""


class Renderer:
    """Renders comparisons under a tokenizer's chat template, and locates the responses in the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def render(self, comparisons: Sequence[Comparison]) -> list[Rendered]:
        """Return the texts of each comparison; raises DataError as `render_all` does."""
        conversations = [(*row.prompt, *response) for row in comparisons for response in row.responses]
        texts = iter(render_all(conversations, self.tokenizer, [row.id for row in comparisons for _ in row.responses]))
        prompted = [row for row in comparisons if row.prompt]
        prompts = iter(render_all([row.prompt for row in prompted], self.tokenizer, [row.id for row in prompted], True))
        rendered = []
        for row in comparisons:
            whole = [next(texts) for _ in row.responses]
            prompt = next(prompts) if row.prompt else ""
            begins = [_find_response(*item, prompt) for item in zip(row.responses, whole, strict=True)]
            first = next(((number, begin) for number, begin in enumerate(begins) if begin is not None), None)
            rewritten = tuple(number for number, begin in enumerate(begins) if begin is None)
            rendered.append(Rendered(whole, first, rewritten, self._hidden(row, whole)))
        return rendered

    def _hidden(self, row: Comparison, texts: Sequence[str]) -> dict[int, str]:
        if all(len(message) == 2 for messages in (row.prompt, *row.responses) for message in messages):
            return {}
        hidden = {}
        for number, (response, text) in enumerate(zip(row.responses, texts, strict=True)):
            if any(CALL in message for message in (*row.prompt, *response)) and not self._writes_calls:
                hidden[number] = CALL
            # Thoughts of the prompt may be missing: templates leave out those of earlier turns when the model is served as well.
            for key in THOUGHTS:
                if any(message.get(key, "").strip() not in text for message in response):
                    hidden[number] = key
        return hidden

    @cached_property
    def _writes_calls(self) -> bool:
        """Whether the template writes the name, the argument names and the values of a tool call."""
        call = {"type": "function", "id": "callprobe", "function": {"name": CALL_PROBE, "arguments": {CALL_PROBE: CALL_PROBE}}}
        calling = {"role": "assistant", "content": "", CALL: [call]}
        try:
            text = render([{"role": "user", "content": "call it"}, calling], self.tokenizer)
        except DataError:
            return False
        return text.count(CALL_PROBE) >= 3


def _find_response(response: Conversation, text: str, prompt: str) -> int | None:
    """Return where a response begins in the text, thoughts included; None if the text does not have all of its messages unchanged.

    The space around a message does not count: most templates trim it. The search starts after the prompt, which may contain the response.
    """
    position = len(prompt)
    if not text.startswith(prompt):
        pairs = enumerate(zip(prompt, text, strict=False))
        position = next((place for place, (one, other) in pairs if one != other), min(len(prompt), len(text)))
    begin: int | None = None
    for message in response:
        content = message["content"].strip()
        at = text.find(content, position)
        if at < 0:
            return None
        if begin is None:
            thoughts = [text.find(message[key].strip(), position) for key in THOUGHTS if key in message]
            begin = min([at, *(place for place in thoughts if place >= 0)])
        position = at + len(content)
    return begin
