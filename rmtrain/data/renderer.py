"""Comparisons to text: each response with its prompt, and where in the text the response begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Comparison, Message
from rmtrain.data.encoders import Texts
from rmtrain.data.render import check_size, render_all
from rmtrain.data.verbatim import Form, form_of, marked, writes_contents_as_they_are


@dataclass(frozen=True, slots=True)
class Rendered:
    """A comparison as text, and which of its responses the template rewrote: those are not in their text as they were."""

    texts: Texts
    rewritten: tuple[int, ...] = ()


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
        return Rendered(Texts(texts, (0, begins[0])))

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
            rendered.append(Rendered(Texts(whole, found[0] if found else None), rewritten))
        return rendered


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
        position = text.find(content, position)
        if position < 0:
            return None
        begin = position if begin is None else begin
        position += len(content)
    return begin
