"""Candidates for the entry of some rows in a recipe, from the names and cells of their columns, the likeliest first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rmtrain.data.rows.columns import (
    LABELS,
    NO_SCORES,
    PROMPTS,
    RESPONSES,
    SCORES,
    ColumnCells,
    Sides,
    by_words,
    candidates,
    chosen_and_rejected,
    columns_of,
    is_message,
    outcome_of,
    rates,
    sides_of,
    words,
)
from rmtrain.recipe.datasets import Entry

RANKS = {"rank", "ranks", "ranking", "position", "place"}
VOTES = {"votes", "vote", "upvotes", "likes", "wins"}
CLEAR_SCORES = {"score", "rating", "reward", "rank", "label", "overall_score"}
"""Names that leave no doubt which of several numbers is the score."""
RIGHT = {
    *("correct", "passed", "pass", "good", "valid", "accepted", "verified", "helpful"),
    *("like", "liked", "thumbs", "safe", "right", "won"),
}
"""Words of columns in which 1 or true means a good response."""
GOOD_VALUES = {*RIGHT, "yes", "positive", "pos", "up", "chosen", "true", "👍", "best", "better", "desirable"}
BAD_VALUES = {
    *("bad", "wrong", "incorrect", "no", "negative", "neg", "down", "rejected", "false", "👎", "worst", "worse", "undesirable"),
    *("failed", "fail", "invalid", "unsafe", "unhelpful", "dislike"),
}
LOWER: tuple[str, Entry] = ("add lower_is_better: true", {"lower_is_better": True})
REPEATED = 0.7
"""Prompts repeat where there are at most this many different ones for each row."""
MOST_CHOICES = 5


@dataclass(frozen=True, slots=True)
class Question:
    """What the rows do not answer.

    key: the key of the entry that it is about. fix: what to change in the recipe where the guess is wrong.
    choices: each answer with the keys that it sets; the first is the guess.
    """

    key: str
    text: str
    fix: str
    choices: tuple[tuple[str, Entry], ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """An entry without prompt and place, its questions, and the columns that hold its responses."""

    entry: Entry
    responses: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


def proposals(columns: Mapping[str, ColumnCells], problems: list[str]) -> Iterator[Proposal]:
    """Yield the entries that the columns may mean. Adds to `problems` what is missing in columns that are nearly enough."""
    for sides in chosen_and_rejected(dict(columns)):
        names = {key: name for key, name in (("chosen", sides.a), ("rejected", sides.b)) if name != key}
        yield Proposal(names, (sides.a, sides.b))
    for sides in candidates(dict(columns))[:2]:
        yield from _labelled(sides, columns, problems)
    yield from _lists(columns)
    yield from _single(columns)


def yes_or_no(key: str, text: str, fix: str, no: Entry) -> Question:
    """Return a question whose guess is yes."""
    return Question(key, text, fix, (("yes", {}), ("no", no)))


def _labelled(sides: Sides, columns: Mapping[str, ColumnCells], problems: list[str]) -> Iterator[Proposal]:
    """Yield an entry for each label of two candidates."""
    found = False
    for label, questions in chain(_two_numbers(sides, columns), _annotators(sides, columns), _one_label(sides, columns)):
        found = True
        yield Proposal({"format": "ab", "a": sides.a, "b": sides.b, "label": label}, (sides.a, sides.b), questions)
    if not found:
        unclear = [column for column in by_words(columns.values(), LABELS) if column.labels and column.name not in sides]
        seen = "".join(f"; {column.name} has the values {', '.join(column.labels)}" for column in unclear[:2])
        expected = f"expected a label with the values a, b and tie, names such as {sides.a} and {sides.b}, or two scores"
        problems.append(f"{sides.a} and {sides.b} are two candidates, and no column says which is better{seen}; {expected}")


Labels = Iterator[tuple[Entry, tuple[Question, ...]]]


def _two_numbers(sides: Sides, columns: Mapping[str, ColumnCells]) -> Labels:
    """Yield labels of two columns of numbers, one for each candidate."""
    numeric = [name for name, column in columns.items() if column.numbers is not None]
    for a, b, marks in sides_of(numeric):
        if marks != sides.words or {*words(a)} & NO_SCORES:
            continue
        tie = next((name for name in numeric if "tie" in words(name) and {*words(name)} & {*words(a)}), None)
        more = {} if tie is None else {"tie": tie}
        first, second = columns[a].numbers or {}, columns[b].numbers or {}
        values = {*first.values(), *second.values()}
        if values == {0.0, 1.0} and all(first[row] + second.get(row, 0.0) < 2 for row in first):
            yield {"by": "one_hot", "a": a, "b": b, **more}, ()
        elif {*words(a)} & VOTES:
            yield {"by": "votes", "a": a, "b": b, **more}, ()
        elif {*words(a)} & RANKS:
            yield {"by": "scores", "a": a, "b": b, "lower_is_better": True}, ()
        else:
            label = {"by": "scores", "a": a, "b": b}
            text = f"is the higher of {a} and {b} the better one?"
            fix = "add lower_is_better: true to the label"
            yield label, (yes_or_no("label", text, fix, {"label": label | {"lower_is_better": True}}),)


def _annotators(sides: Sides, columns: Mapping[str, ColumnCells]) -> Labels:
    """Yield the label of several annotators: columns whose names differ in a number only."""
    groups: dict[tuple[str, ...], list[ColumnCells]] = {}
    for column in by_words(columns.values(), LABELS):
        stem = tuple(word for word in words(column.name) if not word.isdecimal())
        if column.labels and stem != words(column.name) and column.name not in sides:
            groups.setdefault(stem, []).append(column)
    for group in groups.values():
        merged = ColumnCells("", dict(enumerate(cell for column in group for cell in column.values)))
        if len(group) > 1 and merged.labels:
            names = sorted((column.name for column in group), key=lambda name: (len(name), name))
            for label, questions in _readings(merged, sides):
                if label["by"] == "value" and not questions:
                    yield {"by": "value", "column": names, "values": label["values"]}, ()


def _one_label(sides: Sides, columns: Mapping[str, ColumnCells]) -> Labels:
    others = [column for name, column in columns.items() if name not in sides]
    named = by_words(others, LABELS)
    for column in [*named, *(column for column in others if column not in named and column.labels)]:
        # without a telling name, only values that name the candidates are a label
        yield from (reading for reading in _readings(column, sides) if column in named or not reading[1])


def _readings(column: ColumnCells, sides: Sides) -> Labels:
    """Yield what the values of a column may mean for two candidates."""
    outcomes = {value: outcome for value in column.labels if (outcome := outcome_of(value, sides)) is not None}
    if {"a", "b"} <= {*outcomes.values()}:
        if {*column.labels} - {*outcomes} == {"0"} and "1" in outcomes:
            outcomes["0"] = "tie"  # next to 1 and 2, which name the sides
        yield {"by": "value", "column": column.name, "values": outcomes}, ()
        return
    if {*column.labels} == {"true", "false"}:
        yield _boolean(column, sides)
        return
    if column.numbers is None:
        return
    numbers = {*column.numbers.values()}
    if numbers in ({0.0, 1.0}, {1.0, 2.0}):
        first = int(min(numbers))
        label: Entry = {"by": "index", "column": column.name} | ({"first": 1} if first else {})
        swapped = {"by": "value", "column": column.name, "values": {str(first): "b", str(first + 1): "a"}}
        text = f"is {sides.a} the better one where {column.name} is {first}?"
        fix = f"set label: {{by: value, column: {column.name}, values: {{{first}: b, {first + 1}: a}}}}"
        yield label, (yes_or_no("label", text, fix, {"label": swapped}),)
    elif numbers == {*map(float, range(1, len(numbers) + 1))} and len(numbers) > 2:
        yield _scale(column, sides, len(numbers))
    elif min(numbers) < 0 < max(numbers):
        label = {"by": "sign", "column": column.name, "positive": "b"}
        text = f"is {sides.b} the better one where {column.name} is above 0?"
        yield label, (yes_or_no("label", text, "set positive: a", {"label": label | {"positive": "a"}}),)
    elif min(numbers) >= 0 and max(numbers) <= 1 and len(numbers) > 2:
        label = {"by": "probability", "column": column.name}
        text = f"is {column.name} the probability that {sides.a} is better?"
        yield label, (yes_or_no("label", text, f"set a: {sides.b} and b: {sides.a}", {"a": sides.b, "b": sides.a}),)


def _scale(column: ColumnCells, sides: Sides, last: int) -> tuple[Entry, tuple[Question, ...]]:
    """Return the reading of a scale from 1 to `last`, with a tie in its middle if it has one."""
    outcomes = {
        str(value): "a" if 2 * value < last + 1 else "b" if 2 * value > last + 1 else "tie" for value in range(1, last + 1)
    }
    turned = {value: {"a": "b", "b": "a"}.get(outcome, outcome) for value, outcome in outcomes.items()}
    label: Entry = {"by": "value", "column": column.name, "values": outcomes}
    fix = "set values: {" + ", ".join(f"{value}: {outcome}" for value, outcome in turned.items()) + "}"
    text = f"is {sides.a} the better one where {column.name} is 1?"
    return label, (yes_or_no("label", text, fix, {"label": label | {"values": turned}}),)


def _boolean(column: ColumnCells, sides: Sides) -> tuple[Entry, tuple[Question, ...]]:
    """Return the reading of a column of true and false, whose name may contain the side that true favours."""
    named = [side for side, word in zip("ab", sides.words, strict=True) if word in words(column.name)]
    winner = named[0] if len(named) == 1 else "a"
    values = {"true": winner, "false": "ab".replace(winner, "")}
    label: Entry = {"by": "value", "column": column.name, "values": values}
    if len(named) == 1:
        return label, ()
    swapped = label | {"values": {"true": "b", "false": "a"}}
    fix = "set values: {true: b, false: a}"
    return label, (yes_or_no("label", f"is {sides.a} the better one where {column.name} is true?", fix, {"label": swapped}),)


def _lists(columns: Mapping[str, ColumnCells]) -> Iterator[Proposal]:
    """Yield entries for lists of responses with scores: in their items, or in lists next to them."""
    lists = [column for column in columns.values() if column.is_list]
    for column in sorted(lists, key=lambda column: -column.size):
        items = [item for cell in column.values for item in cell]
        if all(isinstance(item, dict) for item in items) and not all(map(is_message, items)):
            inner = columns_of(items)
            texts = [text for text in inner.values() if text.is_text]
            for text in [*by_words(texts, RESPONSES), *texts][:1]:
                numbers = _scores(inner.values())
                shared = {"responses": column.name, "response": text.name}
                per_row = _by_list(column, numbers[0].name) if numbers else []
                yield from _scored(shared, numbers, per_row, (column.name,))
        elif all(isinstance(item, str | list) for item in items):
            beside = [other for other in lists if other is not column and _is_parallel(column, other)]
            numbers = _scores([ColumnCells(other.name, dict(enumerate(chain.from_iterable(other.values)))) for other in beside])
            per_row = [list(cell) for cell in columns[numbers[0].name].values] if numbers else []
            yield from _scored({"responses": column.name}, numbers, per_row, (column.name,))


def _by_list(column: ColumnCells, path: str) -> list[list[Any]]:
    return [list(found[path].values) for cell in column.values if path in (found := columns_of(cell))]


def _is_parallel(column: ColumnCells, other: ColumnCells) -> bool:
    same = sum(row in other.cells and len(other.cells[row]) == len(cell) for row, cell in column.cells.items())
    flat = [item for cell in other.values for item in cell]
    return same >= 0.9 * len(column.cells) and all(isinstance(item, bool | int | float | None) for item in flat)


def _single(columns: Mapping[str, ColumnCells]) -> Iterator[Proposal]:
    """Yield entries for rows of one response with a score, or with a word for good or bad."""
    texts = [column for column in columns.values() if column.is_text and not column.is_category]
    prompt = next(iter(by_words(texts, PROMPTS)), None) if len(texts) > 1 else None
    others = sorted((column for column in texts if column is not prompt), key=lambda column: -column.size)
    named = by_words(others, RESPONSES)
    for response in [] if len(named) > 1 else [*named, *others][:1]:
        repeats = prompt is not None and len({str(cell) for cell in prompt.values}) <= REPEATED * len(prompt.cells)
        numbers = _scores(column for column in columns.values() if column is not response)
        shared: Entry = {"response": response.name}
        if repeats and prompt is not None and numbers and not _is_binary(numbers[0]):
            entry = {"format": "ranked", "group_by": prompt.name, **shared, "score": numbers[0].name}
            questions = _about_scores(numbers, "score", *LOWER)
            yield Proposal(entry, (response.name,), questions)
        grouped = {"group_by_prompt": True} if repeats else {}
        yield from _scored(shared | grouped, numbers, [], (response.name,), always_targets=True)
        for column in columns.values():
            if column.numbers is None and len(column.labels) == 2 and column is not response:
                yield from _words(shared | grouped, column, response.name)


def _words(shared: Entry, column: ColumnCells, response: str) -> Iterator[Proposal]:
    """Yield the entry of a column with one word for a good response and one for a bad one."""
    good = [value for value in column.labels if value.lower() in GOOD_VALUES]
    bad = [value for value in column.labels if value.lower() in BAD_VALUES]
    if len(good) == 1 and len(bad) == 1:
        values = {good[0]: 1, bad[0]: 0}
        yield Proposal({"format": "scored", **shared, "target": column.name, "values": values}, (response,))


def _scores(columns: Any) -> list[ColumnCells]:
    """Return the columns of numbers that may be scores, the likeliest first."""
    return by_words([column for column in columns if rates(column)], SCORES)


def _is_binary(column: ColumnCells) -> bool:
    return {*(column.numbers or {}).values()} == {0.0, 1.0}


def _scored(
    shared: Entry,
    numbers: Sequence[ColumnCells],
    per_row: Sequence[Sequence[Any]],
    responses: tuple[str, ...],
    always_targets: bool = False,
) -> Iterator[Proposal]:
    """Yield the entry of responses with numbers: right or wrong, ratings, or a ranking of each list."""
    if not numbers:
        return
    score = numbers[0]
    if _is_binary(score):
        entry = {"format": "scored", **shared, "target": score.name}
        is_clear = bool({*words(score.name)} & RIGHT)
        text = f"is a response good where {score.name} is {'true' if score.labels[-1:] == ('true',) else 1}?"
        fix = "add values: {1: 0, 0: 1}"
        question = yes_or_no("target", text, fix, {"values": {"1": 0, "0": 1, "true": 0, "false": 1}})
        yield Proposal(entry, responses, () if is_clear else (question,))
    elif always_targets:
        entry = {"format": "scored", **shared, "target": score.name}
        yield Proposal(entry, responses, _about_scores(numbers, "target", "add scale: -1.0", {"scale": -1.0}))
    else:
        entry = {"format": "ranked", **shared, "score": score.name}
        if {*words(score.name)} & RANKS and _are_ranks(per_row):
            yield Proposal(entry | {"lower_is_better": True}, responses, _which(numbers, "score"))
        else:
            yield Proposal(entry, responses, _about_scores(numbers, "score", *LOWER))


def _which(numbers: Sequence[ColumnCells], key: str) -> tuple[Question, ...]:
    """Ask which of several numbers is the score, unless the first is named so."""
    names = [column.name for column in numbers[:MOST_CHOICES]]
    if len(names) < 2 or names[0].lower() in CLEAR_SCORES:
        return ()
    fix = f"set {key} to {' or '.join(names[1:])}"
    return (Question(key, f"is {names[0]} the score to learn?", fix, tuple((name, {key: name}) for name in names)),)


def _about_scores(numbers: Sequence[ColumnCells], key: str, fix: str, no: Entry) -> tuple[Question, ...]:
    """Ask which number is the score, and whether a higher one is better, unless their names say so."""
    asked, name = _which(numbers, key), numbers[0].name
    if {*words(name)} & VOTES and not asked:
        return ()
    return (*asked, yes_or_no(key, f"is a higher {'score' if asked else name} better?", fix, no))


def _are_ranks(per_row: Sequence[Sequence[Any]]) -> bool:
    """Return whether most lists hold the numbers from 1, or from 0, up to their length."""
    good = 0
    for cell in per_row:
        ranks = sorted(cell) if all(isinstance(rank, int | float) for rank in cell) else []
        good += bool(ranks) and ranks[0] in (0, 1) and ranks == [ranks[0] + place for place in range(len(ranks))]
    return bool(per_row) and good >= 0.8 * len(per_row)
