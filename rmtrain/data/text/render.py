"""Conversations as text: rendered through transformers' sandbox, bounded in time and size, with every failure traced to its row."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Comparison, Message
from rmtrain.data.rows.messages import CALL, THOUGHTS
from rmtrain.errors import DataError

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

PROBE = "tool-call-probe"
PROBE_CALL = {"type": "function", "id": "callprobe", "function": {"name": PROBE, "arguments": {PROBE: PROBE}}}


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """Return the text of one conversation; see `render_all`."""
    return render_all([conversation], tokenizer, ["conversation"], add_generation_prompt)[0]


def render_all(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[str],
    add_generation_prompt: bool = False,
    seconds: float = MAX_SECONDS,
) -> list[str]:
    """Return the text of each conversation under the tokenizer's chat template.

    Args:
        conversations: messages, none empty.
        tokenizer: one whose `chat_template` is set.
        ids: a row id for each conversation, for errors.
        add_generation_prompt: end with the text that announces a reply.
        seconds: time limit for all of them together. It applies in the main thread only, where Python delivers alarms.

    Raises:
        DataError: the template fails on a row, takes too long or writes too much.
    """
    if not conversations:
        return []
    with _time_limit(seconds):
        try:
            texts = _apply(conversations, tokenizer, add_generation_prompt)
        except TEMPLATE_FAILURES:  # one at a time, to find the row
            texts = [_apply_to_row(*item, tokenizer, add_generation_prompt) for item in zip(conversations, ids, strict=True)]
    for text, row_id in zip(texts, ids, strict=True):
        if len(text) > MAX_TEXT_CHARACTERS:
            raise DataError(
                f"{row_id}: the chat template wrote {len(text)} characters, at most {MAX_TEXT_CHARACTERS} are allowed"
            )
    return texts


def _apply(conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool) -> list[str]:
    listed = [list(conversation) for conversation in conversations]
    texts: list[str] = tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=add_generation_prompt)
    return texts


def _apply_to_row(
    conversation: Conversation, row_id: str, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> str:
    try:
        return _apply([conversation], tokenizer, add_generation_prompt)[0]
    except TEMPLATE_FAILURES as error:
        message = " ".join(str(error).split())[:300]
        raise DataError(f"{row_id}: the chat template failed: {type(error).__name__}: {message}") from error


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
    """A comparison as text.

    texts: the whole conversation of each response.
    begin: (number, position): where the text of that response begins in its conversation; None if no response was found.
    rewritten: numbers of the responses that do not appear unchanged in their conversation.
    hidden: by number of a response, the key of a message that the template does not write, such as `tool_calls`.
    """

    texts: Sequence[str]
    begin: tuple[int, int] | None = None
    rewritten: tuple[int, ...] = ()
    hidden: Mapping[int, str] = field(default_factory=dict)


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
            unchanged = [(number, begin) for number, begin in enumerate(begins) if begin is not None]
            rewritten = tuple(number for number, begin in enumerate(begins) if begin is None)
            rendered.append(Rendered(whole, unchanged[0] if unchanged else None, rewritten, self._hidden(row, whole)))
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
        calling = {"role": "assistant", "content": "", CALL: [PROBE_CALL]}
        try:
            text = render([{"role": "user", "content": "call it"}, calling], self.tokenizer)
        except DataError:
            return False
        return text.count(PROBE) >= 3


def _find_response(response: Conversation, text: str, prompt: str) -> int | None:
    """Return where a response begins in the text, thoughts included; None if one of its messages is not there unchanged.

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
