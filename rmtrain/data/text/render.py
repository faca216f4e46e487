"""Conversations to text through transformers' sandboxed chat templates, with limits on what a template may do."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Message
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
