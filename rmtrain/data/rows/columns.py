"""The columns of some rows by their names and cells: which two are the sides of a comparison, and what a label may mean.

Only names and kinds are looked at here. Whether a guess is right, the adapters decide on the rows themselves (`examine`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, NamedTuple

from rmtrain.data.rows.labels import to_score
from rmtrain.data.rows.messages import is_blank, is_turns
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.preference_labels import label_text

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W\d_]+")
"""The words of a name: `human_ref_A`, `humanRefA` and `human-ref-a` have the same."""
SIDES = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"), ("one", "two"))
"""Words that tell two candidates apart, the first candidate first."""
BETTER = {
    "chosen": ("rejected",),
    "preferred": ("rejected", "dispreferred", "unpreferred"),
    "better": ("worse",),
    "good": ("bad",),
    "best": ("worst",),
    "winner": ("loser",),
    "winning": ("losing",),
    "win": ("lose", "loss"),
    "positive": ("negative",),
    "pos": ("neg",),
    "accepted": ("rejected",),
    "selected": ("rejected", "unselected"),
    "correct": ("incorrect", "wrong"),
    "right": ("wrong",),
    "safe": ("unsafe",),
}
"""Words for a preferred response, with those for the other one."""
PROMPTS = (
    *("prompt", "question", "instruction", "query", "context", "history", "input", "problem", "post", "article", "document"),
    *("task", "request", "conversation", "conversations", "dialogue", "dialog", "messages", "text"),
)
RESPONSES = (
    *("response", "responses", "answer", "answers", "completion", "completions", "output", "outputs", "reply", "generation"),
    *("generations", "generated", "candidate", "candidates", "solution", "summary", "summaries", "text", "content"),
    *("conversation", "messages", "assistant"),
)
LABELS = (
    *("winner", "label", "labels", "preference", "preferred", "prefer", "better", "choice", "chosen", "verdict", "judgment"),
    *("judgement", "vote", "best", "annotator", "annotation", "overall", "human", "rater", "decision", "result", "answer"),
)
SCORES = (
    *("score", "scores", "rating", "ratings", "reward", "rewards", "rank", "ranks", "ranking", "grade", "overall", "quality"),
    *("stars", "label", "labels", "target", "correct", "correctness", "helpfulness", "votes", "upvotes", "likes", "points"),
    *("passed", "feedback", "thumbs", "verified", "value", "preference"),
)
"""Words of columns that hold prompts, responses, labels and scores, the most telling first."""
NO_SCORES = {
    *("id", "ids", "idx", "index", "uid", "uuid", "hash", "seed", "line", "row", "turn", "turns", "length", "len", "tokens"),
    *("count", "num", "n", "year", "date", "time", "timestamp", "created", "page", "version", "epoch", "step", "cost", "latency"),
}
"""Words of numbers that rate nothing."""
SYSTEMS = ("system", "system_prompt", "system_message")
TIES = {"tie", "tied", "draw", "equal", "equally", "both", "neither", "same", "similar", "bothbad"}
UNLABELED = {"n/a", "na", "none", "null", "unknown", "skip", "-", "?"}
MOST_VALUES = 12
"""Most different values of a label."""
MOST_OBJECTS, DEEPEST = 4, 20
"""Objects around a cell that has a column of its own; levels of lists and objects in a cell."""
LONGEST_VALUE = 60
"""Characters of the longest value of a label."""


def words(name: str) -> tuple[str, ...]:
    """Return the words of a name, in lower case."""
    return tuple(word.lower() for word in WORD.findall(name))


@dataclass(frozen=True)
class ColumnCells:
    """A column, or a path into a nested one: its cells by the number of their row, without empty ones.

    `decoded`: its cells are text that encodes lists or objects as JSON, and were decoded.
    """

    name: str
    cells: dict[int, Any]
    decoded: bool = False

    @property
    def values(self) -> Sequence[Any]:
        """The cells."""
        return list(self.cells.values())

    @cached_property
    def numbers(self) -> dict[int, float] | None:
        """The cells as numbers, 1 for true; None where most are not."""
        numbers = {row: number for row, cell in self.cells.items() if (number := to_score(cell)) is not None}
        return numbers if self.cells and len(numbers) >= 0.8 * len(self.cells) else None

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The different values as labels, see `label_text`, in their order; none where they are too many or too long."""
        if any(isinstance(cell, list | dict) for cell in self.values):
            return ()
        texts = sorted({label_text(cell) for cell in self.values} - {""})
        return tuple(texts) if len(texts) <= MOST_VALUES and max(map(len, texts), default=0) <= LONGEST_VALUE else ()

    @cached_property
    def is_category(self) -> bool:
        """Whether few different values repeat, as in a column of sources, unless its name is that of a prompt."""
        return bool(self.labels) and len(self.cells) > 3 * len(self.labels) and not {*words(self.name)} & {*PROMPTS[:4]}

    @cached_property
    def size(self) -> float:
        """The mean number of characters of a cell."""
        return sum(len(cell if isinstance(cell, str) else str(cell)) for cell in self.values) / max(len(self.cells), 1)

    @cached_property
    def is_text(self) -> bool:
        """Whether the cells can be turns of a conversation: texts that are no numbers, messages, or lists of them."""
        return bool(self.cells) and self.numbers is None and all(isinstance(cell, str | list | dict) for cell in self.values)

    @cached_property
    def is_list(self) -> bool:
        """Whether the cells are lists, most of at least two items."""
        lists = [cell for cell in self.values if isinstance(cell, list)]
        return bool(lists) and len(lists) == len(self.cells) and 2 * sum(len(cell) > 1 for cell in lists) >= len(lists)

    @cached_property
    def is_conversation(self) -> bool:
        """Whether the cells are whole conversations: lists of messages of which the first is not a reply, or transcripts."""
        return bool(self.cells) and all(map(_begins_conversation, self.values))

    def describe(self) -> str:
        """Return the kind of the cells in words."""
        if not self.cells:
            return "empty"
        if self.numbers is not None and not all(isinstance(cell, bool) for cell in self.values):
            low, high = min(self.numbers.values()), max(self.numbers.values())
            return f"numbers from {low:g} to {high:g}"
        if self.labels and len(self.cells) > len(self.labels):
            shown = ", ".join(text[:20] for text in self.labels[:6])
            count = "only the value" if len(self.labels) == 1 else f"{len(self.labels)} different values:"
            return f"{count} {shown}{', ...' if len(self.labels) > 6 else ''}"
        if self.is_list:
            return "lists of messages" if all(map(is_message, self.values[0])) else "lists"
        return f"text of {self.size:.0f} characters on average" if isinstance(self.values[0], str) else "nested cells"


def is_message(cell: Any) -> bool:
    """Return whether a cell may be a message: an object with a short text that may be a role, and another text."""
    return isinstance(cell, dict) and bool({"role", "from"} & cell.keys() or {"content", "value"} & cell.keys())


def _begins_conversation(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.startswith("\n\nHuman:")
    first = cell[0] if isinstance(cell, list) and cell else None
    role = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return isinstance(role, str) and role.lower() in ("system", "user", "human", "developer", "prompter")


def columns_of(rows: Iterable[Row]) -> dict[str, ColumnCells]:
    """Return the columns of rows by name, in their order; objects that are no messages have a column for each of their paths."""
    cells: dict[str, dict[int, Any]] = {}
    decoded: set[str] = set()
    for number, row in enumerate(rows):
        for name, cell in _paths(row):
            if not name:  # such as the index that pandas writes, which no key can name
                continue
            found = cells.setdefault(name, {})
            if isinstance(cell, str) and (value := _decoded(cell)) is not None:
                decoded.add(name)
                cell = value
            if not is_blank(cell) and cell not in ([], {}) and not _is_deep(cell):
                found[number] = cell
    return {name: ColumnCells(name, found, name in decoded) for name, found in cells.items()}


def _paths(row: Row, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, cell in row.items():
        name = f"{path}{key}"
        if isinstance(cell, dict) and cell and not is_message(cell) and depth < MOST_OBJECTS:
            yield from _paths(cell, f"{name}.", depth + 1)
        else:
            yield name, cell


def _is_deep(cell: Any) -> bool:
    """Return whether a cell is nested deeper than any conversation, which not even `str` can take."""
    level = [cell]
    for _ in range(DEEPEST):
        lists = [item for item in level if isinstance(item, dict | list)]
        if not lists:
            return False
        level = [inner for item in lists for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def _decoded(text: str) -> list[Any] | dict[str, Any] | None:
    """Return the list of messages or texts, or the message, that a text encodes as JSON, possibly twice; None for any other text."""
    if text.lstrip()[:1] not in ("[", "{", '"'):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, str):
        return _decoded(value)
    if is_turns(value) or is_message(value) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        return value  # type: ignore[no-any-return]
    return None


class Sides(NamedTuple):
    """Two columns whose names differ in one word, and these words."""

    a: str
    b: str
    words: tuple[str, str]


def sides_of(names: Sequence[str]) -> Iterator[Sides]:
    """Yield the pairs of names that differ in one word, in both orders, unless three names differ in that word alone."""
    split = {name: words(name) for name in names}
    for one, other in permutations(names, 2):
        if len(split[one]) != len(split[other]):
            continue
        different = [place for place, both in enumerate(zip(split[one], split[other], strict=True)) if both[0] != both[1]]
        if len(different) == 1:
            yield Sides(one, other, (split[one][different[0]], split[other][different[0]]))


def candidates(columns: dict[str, ColumnCells]) -> list[Sides]:
    """Return the pairs of columns that may hold two candidates, the longest texts first."""
    pairs = list(sides_of([name for name, column in columns.items() if column.is_text and not column.is_category]))
    marked = Counter(pair.a for pair in pairs if pair.words[1].isdecimal() or len(pair.words[1]) == 1)
    pairs = [
        pair for pair in pairs if pair.words in SIDES and marked[pair.a] < 2
    ]  # of answer_1 to answer_4, no two are the candidates
    return sorted(pairs, key=lambda pair: -(columns[pair.a].size + columns[pair.b].size))


def chosen_and_rejected(columns: dict[str, ColumnCells]) -> list[Sides]:
    """Return the pairs of columns whose names say which one is better, the longest texts first."""
    texts = [name for name, column in columns.items() if column.is_text]
    pairs = [pair for pair in sides_of(texts) if pair.words[1] in BETTER.get(pair.words[0], ())]
    if {"messages", "rejected_response"} <= set(texts):
        pairs.append(Sides("messages", "rejected_response", ("messages", "rejected")))
    return sorted(pairs, key=lambda pair: -(columns[pair.a].size + columns[pair.b].size))


def by_words(columns: Iterable[ColumnCells], telling: Sequence[str]) -> list[ColumnCells]:
    """Return the columns with one of these words in their name, those with an earlier word first, then the longest texts."""
    wanted = {word: place for place, word in enumerate(telling)}
    found = [(min(wanted[word] for word in named), column) for column in columns if (named := {*words(column.name)} & {*wanted})]
    return [column for _, column in sorted(found, key=lambda item: (item[0], len(words(item[1].name)) > 1, -item[1].size))]


def rates(column: ColumnCells) -> bool:
    """Return whether a column of numbers may rate something, rather than count or number it."""
    if column.numbers is None or {*words(column.name)} & NO_SCORES:
        return False
    return len(set(column.numbers.values())) > 1


def outcome_of(value: str, sides: Sides) -> str | None:
    """Return what a value of a label says about two columns, by its words: a, b or tie; None: it does not say.

    `A is better`, `model_a`, `answer_a` and `first` mean a; `tie (bothbad)` is a tie. Digits mean sides that are named by digits.
    """
    if value.lower() in UNLABELED:
        return None
    if value in (sides.a, sides.b):
        return "a" if value == sides.a else "b"
    found = words(value)
    if TIES & {*found}:
        return "tie"
    names = {sides.words[0]: "a", sides.words[1]: "b"}
    for first, second in SIDES:
        if not first.isdecimal() and first not in names and second not in names:
            names |= {first: "a", second: "b"}
    return next((names[word] for word in found if word in names), None)
