"""Comparisons to text: each response with its prompt, and where in the text the response begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Comparison, Message
from rmtrain.data.rows.messages import THOUGHTS
from rmtrain.data.rows.tool_calls import CALL
from rmtrain.data.text.encoders import Texts
from rmtrain.data.text.render import check_size, render, render_all
from rmtrain.data.text.verbatim import Form, form_of, marked, writes_contents_as_they_are
from rmtrain.errors import DataError

PROBE = "tool-call-probe"
PROBE_CALL = {"type": "function", "id": "callprobe", "function": {"name": PROBE, "arguments": {PROBE: PROBE}}}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A comparison as text.

    rewritten: responses that the template rewrote: they are not in their text as they were.
    hidden: for responses that lack something the template does not show, what it is: a key of a message, such as `tool_calls`.
    """

    texts: Texts
    rewritten: tuple[int, ...] = ()
    hidden: Mapping[int, str] = field(default_factory=dict)


class Renderer:
    """Renders comparisons under a tokenizer's chat template.

    A template that writes contents as they are is run once for each sequence of roles that occurs, any other for each conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.is_verbatim = writes_contents_as_they_are(str(tokenizer.chat_template))
        self._forms: dict[tuple[str, ...], Form | None] = {}

    def render(self, comparisons: Sequence[Comparison]) -> list[Rendered]:
        """The texts of each comparison; raises DataError as `render_all` does."""
        filled = [self._fill(row) for row in comparisons]
        run = iter(self._run([row for row, rendered in zip(comparisons, filled, strict=True) if rendered is None]))
        return [next(run) if rendered is None else rendered for rendered in filled]

    def _fill(self, row: Comparison) -> Rendered | None:
        """The forms of the row with its contents; None where it has none."""
        if not self.is_verbatim:
            return None
        texts, begins = [], []
        roles, contents = ([message[key] for message in row.prompt] for key in ("role", "content"))
        for response in row.responses:
            form = self._form((*roles, *[message["role"] for message in response]), row.id)
            if form is None:
                return None
            own = [message["content"] for message in response]
            text = form.text([*contents, *own])
            check_size(text, row.id)
            texts.append(text)
            begins.append(form.position(contents) + len(own[0]) - len(own[0].lstrip()))
        return Rendered(Texts(texts, (0, begins[0])), hidden=self._hidden(row, texts))

    def _form(self, roles: tuple[str, ...], row_id: str) -> Form | None:
        if roles not in self._forms:
            messages = [{"role": role, "content": marked(number)} for number, role in enumerate(roles)]
            (text,) = render_all([messages], self.tokenizer, [row_id])
            self._forms[roles] = form_of(text, len(roles))
        return self._forms[roles]

    def _run(self, comparisons: Sequence[Comparison]) -> list[Rendered]:
        conversations = [(*row.prompt, *response) for row in comparisons for response in row.responses]
        texts = iter(render_all(conversations, self.tokenizer, [row.id for row in comparisons for _ in row.responses]))
        prompted = [row for row in comparisons if row.prompt]
        prompts = iter(render_all([row.prompt for row in prompted], self.tokenizer, [row.id for row in prompted], True))
        rendered = []
        for row in comparisons:
            whole = [next(texts) for _ in row.responses]
            prompt = next(prompts) if row.prompt else ""
            begins = [
                _begin_of(response, text, _shared(prompt, text)) for response, text in zip(row.responses, whole, strict=True)
            ]
            found = [(number, begin) for number, begin in enumerate(begins) if begin is not None]
            rewritten = tuple(number for number, begin in enumerate(begins) if begin is None)
            rendered.append(Rendered(Texts(whole, found[0] if found else None), rewritten, self._hidden(row, whole)))
        return rendered

    def _hidden(self, row: Comparison, texts: Sequence[str]) -> dict[int, str]:
        """Responses of which the template does not show all, and what. The thoughts of earlier turns, which templates leave out when they
        serve too, may be missing."""
        if all(len(message) == 2 for messages in (row.prompt, *row.responses) for message in messages):
            return {}
        hidden = {}
        for number, (response, text) in enumerate(zip(row.responses, texts, strict=True)):
            if any(CALL in message for message in (*row.prompt, *response)) and not self.shows_calls:
                hidden[number] = CALL
            for key in THOUGHTS:
                if any(message.get(key, "").strip() not in text for message in response):
                    hidden[number] = key
        return hidden

    @cached_property
    def shows_calls(self) -> bool:
        """Whether the template writes the name and the arguments of a call of a tool."""
        if self.is_verbatim:
            return False
        calling = {"role": "assistant", "content": "", CALL: [PROBE_CALL]}
        try:
            text = render([{"role": "user", "content": "call it"}, calling], self.tokenizer)
        except DataError:
            return False
        return text.count(PROBE) >= 3


def _shared(prompt: str, text: str) -> int:
    """Characters that both begin with."""
    if text.startswith(prompt):
        return len(prompt)
    low, high = 0, min(len(prompt), len(text))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prompt[:middle] == text[:middle] else (low, middle - 1)
    return low


def _begin_of(response: Sequence[Message], text: str, position: int) -> int | None:
    """Where the response begins in the text after `position`; None if a message is not there as it was, save the space around it."""
    begin: int | None = None
    for message in response:
        content = message["content"].strip()
        at = text.find(content, position)
        if at < 0:
            return None
        if begin is None:
            begin = min([at, *(place for place in _thoughts(message, text, position) if place >= 0)])
        position = at + len(content)
    return begin


def _thoughts(message: Message, text: str, position: int) -> list[int]:
    """Where thoughts of a message stand in the text after `position`; -1: nowhere."""
    return [text.find(message[key].strip(), position) for key in THOUGHTS if key in message]
