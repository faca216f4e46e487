"""Some rows of a dataset to a guess at its entry in a recipe: which columns are compared, and how.

Names and cells give a few candidates, each a source as a recipe has it. Every candidate reads the rows as a run would, and the one that
makes comparisons of nearly all of them is taken. What no row can tell, such as which side a positive number favours, becomes a question.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rmtrain.data.comparison import Adapted, Comparison, Dropped, rows_of
from rmtrain.data.rows.columns import PROMPTS, SYSTEMS, ColumnCells, by_words, columns_of
from rmtrain.data.rows.dataset import is_on_hub, read_rows
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.rows.messages import ROLES
from rmtrain.data.rows.proposals import Proposal, Question, proposals
from rmtrain.data.rows.readers import Malformed, ReadMeter, Row, parse
from rmtrain.data.rows.select import RawBatch, select
from rmtrain.data.waterfall import INTENTIONAL_DROPS, SourceCount
from rmtrain.errors import DataError
from rmtrain.recipe.datasets import Entry, as_source, entries
from rmtrain.recipe.schema import RankedSource, Source
from rmtrain.recipe.yaml import shorten, write_value

SAMPLE_ROWS = 400
GOOD, USABLE = 0.9, 0.5
"""Shares of rows without a fault: with the first a candidate is taken at once, and with less than the second it is not taken."""
MOST_REPAIRS = 4
SHOWN_COLUMNS = 30


@dataclass(frozen=True, slots=True)
class RowSample:
    """The first rows of a dataset.

    keys: the keys of a source that reads them from a file of this machine.
    total: an estimate of the number of all rows; None: unknown. is_whole: there are no more.
    """

    rows: Sequence[Row]
    keys: Entry
    total: int | None
    is_whole: bool


def take_sample(source: Source, folder: Path) -> RowSample:
    """Read the first rows of a source. Those of a Hub dataset are stored in `folder`, so that they are read over the network once.

    Raises DataError as `read_rows`, or where no row can be read.
    """
    meter = ReadMeter()
    reader = read_rows(source, meter)
    raw = [row for _, row in islice(reader, SAMPLE_ROWS + 1)]
    share = meter.share  # while the reader is open
    parsed = [parse(row) for row in raw[:SAMPLE_ROWS]]
    rows = [row for row in parsed if not isinstance(row, Malformed)]
    if not rows:
        first = next((row.detail for row in parsed if isinstance(row, Malformed)), "the file is empty")
        raise DataError(f"{source.place}: no row can be read: {first}")
    is_whole = len(raw) <= SAMPLE_ROWS
    total = len(raw) if is_whole else None if not share else round(len(raw) / share)
    if not is_on_hub(source):
        keys = {key: value for key, value in source.model_dump(exclude_unset=True).items() if key in PLACE_KEYS}
        return RowSample(rows, keys | {"limit": SAMPLE_ROWS}, total, is_whole)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    return RowSample(rows, {"path": str(file), "tag": source.title}, total, is_whole)


PLACE_KEYS = ("path", "name", "split", "revision", "data_dir", "data_files", "tag", "limit", "streaming")
"""Keys of a source that say where its rows are."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The result of reading a sample as an entry says.

    problem: why all of it is refused; empty: it is not.
    """

    entry: Entry
    count: SourceCount
    comparisons: Sequence[Comparison] = ()
    problem: str = ""

    @property
    def faults(self) -> Counter[str]:
        """Number of rows with a fault, by reason."""
        return Counter({reason: count for reason, count in self.count.dropped.items() if reason not in INTENTIONAL_DROPS})

    @property
    def share(self) -> float:
        """Share of the wanted rows without a fault; 0 where no comparison is made."""
        lost = self.faults.total()
        wanted = self.count.read - sum(self.count.dropped.values()) + lost
        return 1 - lost / wanted if self.comparisons else 0.0

    @property
    def reason(self) -> str:
        """The most frequent fault, with its first row."""
        for reason, _ in self.faults.most_common(1):
            return f"{reason} ({self.count.examples[reason][0]})"
        return self.problem or "no two responses differ"


def fit(entry: Entry, sample: RowSample) -> Fit:
    """Read a sample as an entry says: with the adapters of a run."""
    source = as_source({key: value for key, value in entry.items() if key not in PLACE_KEYS} | sample.keys)
    count, comparisons = SourceCount(), list[Comparison]()
    try:
        for row in _adapted(source):
            if isinstance(row, Dropped):
                count.add(0, dropped=[row])
            elif isinstance(row, Comparison):
                count.add(1, gathered=len(rows_of(row)) - 1)
                comparisons.append(row)
    except DataError as error:
        return Fit(entry, count, (), error.problems[0])
    return Fit(entry, count, comparisons)


def _adapted(source: Source) -> Iterable[Adapted]:
    if isinstance(source, RankedSource) and source.group_by is not None:
        return chain.from_iterable(load_comparisons(source))
    # not as the first batch, of which one fault in all rows would end the reading
    return select(RawBatch(source, list(read_rows(source)), is_first=False)).rows


@dataclass(frozen=True, slots=True)
class Guess:
    """An entry that fits, the questions that the rows do not answer, and the dataset whose documented entry it is."""

    fit: Fit
    questions: tuple[Question, ...] = ()
    alike: str = ""

    def answered(self, question: Question, choice: int, sample: RowSample) -> "Guess":
        """Return the guess with an answer to one of its questions."""
        left = tuple(other for other in self.questions if other is not question)
        changed = self.fit.entry | question.choices[choice][1]
        return replace(self, fit=fit(changed, sample) if choice else self.fit, questions=left)


def examine(sample: RowSample, place: str) -> Guess:
    """Return the best guess at the entry of a sample, without the keys of its place.

    Raises:
        DataError: no format makes comparisons of the rows: a line for the problem, and one for each column.
    """
    columns = columns_of(sample.rows)
    for entry in _alike(columns):
        found = fit(entry, sample)
        if found.share >= GOOD:
            entry = {key: value for key, value in entry.items() if key not in PLACE_KEYS}
            return Guess(replace(found, entry=entry), (), str(found.entry["path"]))
    problems: list[str] = []
    best: Guess | None = None
    for proposal in proposals(columns, problems):
        found = _best_prompt(proposal, columns, sample)
        if best is None or found.share > best.fit.share:
            best = Guess(found, proposal.questions)
        if found.share >= GOOD:
            return best
    if best is not None and best.fit.share >= USABLE:
        return best
    if best is not None:
        keys = write_value({"format": "pair"} | best.fit.entry)
        problems.append(f"read as {keys}, too many rows are refused: {best.fit.reason}")
    raise DataError(*_refusal(columns, problems, place))


def _alike(columns: Mapping[str, ColumnCells]) -> Iterator[Entry]:
    """Yield the documented entries, other than plain pairs, whose columns these rows have."""
    for entry in entries():
        source = as_source(entry)
        if source.format in ("ab", "ranked") and all(_has(columns, column) for column in source.columns):
            yield entry


def _has(columns: Mapping[str, ColumnCells], path: str) -> bool:
    return path in columns or any(path.startswith(f"{name}.") for name in columns)


def _best_prompt(proposal: Proposal, columns: Mapping[str, ColumnCells], sample: RowSample) -> Fit:
    """Return the fit of a proposal with the prompt, and the form of messages, that keep the most rows."""
    fits = [_repaired(proposal.entry | keys, columns, sample) for keys in _prompts(proposal, columns)]
    return max(fits, key=lambda found: found.share)


def _prompts(proposal: Proposal, columns: Mapping[str, ColumnCells]) -> Iterator[Entry]:
    """Yield the keys for each prompt that the columns offer."""
    used = {*as_source(proposal.entry | {"path": "rows"}).columns, *proposal.responses}
    texts = [column for name, column in columns.items() if column.is_text and name not in used]
    system = next(({"system": column.name} for column in texts if column.name.lower() in SYSTEMS), {})
    prompts = [column for column in texts if column.name not in system.values() and not column.is_category]
    names = [column.name for column in by_words(prompts, PROMPTS)]
    options: list[Entry] = []
    if "prompt" in names:
        options.append({})
    elif {"instruction", "input"} <= {*names}:
        options.append({"prompt": ["instruction", "input"]})
    options += [{"prompt": name} for name in names if name != "prompt"][:2]
    is_whole = all(columns[name].is_conversation for name in proposal.responses if name in columns)
    if not options or (proposal.responses and is_whole):
        options.append({"prompt": "implicit"} if "prompt" in names else {})
    for keys in options:
        chosen = keys.get("prompt", "prompt")
        read = {*used, *(chosen if isinstance(chosen, list) else (chosen,))}
        decoded = any(columns[name].decoded for name in read if name in columns)
        yield keys | system | ({"messages": {"decode_json": True}} if decoded else {})


def _repaired(entry: Entry, columns: Mapping[str, ColumnCells], sample: RowSample) -> Fit:
    """Return the fit of an entry, after the keys are set that the reasons of its drops ask for."""
    found = fit(entry, sample)
    for _ in range(MOST_REPAIRS):
        repaired = [fit(found.entry | change, sample) for change in _repairs(found, columns)]
        better = [one for one in repaired if one.share > found.share or (one.share == found.share and one.reason != found.reason)]
        if not better:
            break
        found = max(better, key=lambda one: one.share)
    return found


def _repairs(found: Fit, columns: Mapping[str, ColumnCells]) -> Iterator[Entry]:
    """Yield the keys that the most frequent fault may ask for."""
    reason = next((reason for reason, _ in found.faults.most_common(1)), "")
    form: dict[str, Any] = dict(found.entry.get("messages", {}))
    match reason:
        case "transcript":
            yield {"messages": form | {"transcript": "hh"}}
        case "messages_as_text":
            yield {"messages": form | {"decode_json": True}}
        case "response_repeats_prompt":
            yield {"prompt": "implicit"}
        case "role_order" | "unknown_role" | "not_messages":
            if found.entry.get("format", "pair") == "pair" and _has_lists(found, columns):
                yield {"lists": True}
            if keys := _message_keys(found, columns):
                yield {"messages": form | keys}


def _has_lists(found: Fit, columns: Mapping[str, ColumnCells]) -> bool:
    names = (found.entry.get("chosen", "chosen"), found.entry.get("rejected", "rejected"))
    return not found.entry.get("lists") and any(columns[name].is_list for name in names if name in columns)


def _message_keys(found: Fit, columns: Mapping[str, ColumnCells]) -> Entry:
    """Return the keys of `messages` for objects with other names than role and content; empty where their roles cannot be told.

    Whoever speaks first is the user, and who speaks last the assistant.
    """
    source = as_source(found.entry | {"path": "rows"})
    names = [*source.columns, "prompt"]
    conversations = [
        cell if isinstance(cell, list) else [cell] for name in names if name in columns for cell in columns[name].values
    ]
    talks = [talk for talk in conversations if talk and all(isinstance(item, dict) for item in talk)]
    items = columns_of(chain.from_iterable(talks))
    texts = sorted((column for column in items.values() if column.is_text), key=lambda column: -column.size)
    speakers = [column for column in texts if column.labels]
    if not texts or not speakers:
        return {}
    content, speaker = texts[0].name, min(speakers, key=lambda column: len(column.labels)).name
    first, last = Counter[str](), Counter[str]()
    for talk in talks:
        first[str(talk[0].get(speaker))] += len(talk) > 1
        last[str(talk[-1].get(speaker))] += 1
    strange = [name for name in items[speaker].labels if name.lower() not in ROLES]
    roles = {name: "user" if first[name] > last[name] else "assistant" for name in strange}
    keys: Entry = {} if speaker in ("role", "from") else {"role_key": speaker}
    keys |= {} if content in ("content", "value") else {"content_key": content}
    return keys | ({"roles": roles} if roles else {})


def _refusal(columns: Mapping[str, ColumnCells], problems: Sequence[str], place: str) -> list[str]:
    """Return the lines of an error: what is missing, and what each column has."""
    if not problems:
        problems = [
            "no columns that make comparisons: a pair needs chosen and rejected; two candidates, such as answer_a and answer_b, need a "
            "label; a list of responses, or one response, needs a score"
        ]
    lines = [f"{place}: {problem}" for problem in problems]
    lines += [f"{place}: column {shorten(name)}: {column.describe()}" for name, column in islice(columns.items(), SHOWN_COLUMNS)]
    return lines
