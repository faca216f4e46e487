"""`rmtrain inspect --dropped`: rows that are not used, why, and what they hold."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from rmtrain.commands.choice import FEW, check_source, new_seed
from rmtrain.commands.outcome import Outcome
from rmtrain.commands.query import Query
from rmtrain.data.comparison import Dropped
from rmtrain.data.rows.cells import cells
from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.data.stored.dropped import Content, dropped_rows, read_again
from rmtrain.data.stored.prepare import PreparedData
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Data
from rmtrain.report.raw_row import dropped_view
from rmtrain.report.surroundings import Flowing

ANY = "all"


def inspect_dropped(data: Data, prepared: PreparedData, query: Query, reason: str) -> Outcome:
    """Rows of a split that were dropped for a reason, each with its detail and all that its source has of it.

    Args:
        data: the section that names the sources.
        prepared: what it gave.
        query: which rows, and how many.
        reason: one that rows were dropped for, or `all`.

    Raises:
        RecipeError: no such source, or rows were dropped, but none for this reason; with those there are.
        DataError: a source that cannot be read any more.
    """
    split = prepared.train if query.split == "train" else prepared.eval
    check_source(split, query)
    counts, whose = _counts(split, query.source), query.source or query.split
    if counts and reason not in (ANY, *counts):
        raise RecipeError(f"--dropped {reason}: no row of {whose} is dropped for that; expected {ANY}, or {_listed(counts)}")
    limit, count = query.limit or FEW, counts.total() if reason == ANY else counts[reason]
    document: dict[str, Any] = {"split": query.split, "source": query.source, "dropped": reason, "count": count}
    document |= {"reasons": dict(counts), "limit": limit}
    if query.random:
        document["seed"] = new_seed(query)
    if query.find is not None:
        document["find"] = query.find
    rows = (row for row in dropped_rows(prepared.directory, query.split) if _is_wanted(row, query.source, reason))
    document["rows"] = [
        {"id": row.id, "source": row.source, "reason": row.reason, "detail": row.detail, "row": _plain(content)}
        for row, content in _with_content(data, query, rows, document)
    ]
    return Outcome(_report(document, whose), document)


def _counts(data: TokenizedData, source: str | None) -> Counter[str]:
    """Dropped rows by reason, the most frequent first."""
    counts: Counter[str] = Counter()
    for tag, count in data.waterfall.sources.items():
        if source in (None, tag):
            counts.update(count.dropped)
    return Counter(dict(counts.most_common()))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.items())


def _is_wanted(row: Dropped, source: str | None, reason: str) -> bool:
    return source in (None, row.source) and reason in (ANY, row.reason)


def _with_content(
    data: Data, query: Query, rows: Iterator[Dropped], document: Mapping[str, Any]
) -> list[tuple[Dropped, Content | None]]:
    """The rows that are shown; where a text is searched for, rows are read again until enough have it."""
    limit, seed = document["limit"], document.get("seed")
    if query.find is None:
        shown = list(islice(rows, limit)) if seed is None else _at(rows, _permutation(document["count"], seed)[:limit])
        contents = dict(read_again(data, query.split, shown))
        return [(row, contents.get(row)) for row in shown]
    found = _containing(data, query.split, rows, query.find)
    if seed is None:
        return [*islice(found, limit)]
    matching = list(found)
    return [matching[place] for place in _permutation(len(matching), seed)[:limit]]


def _permutation(count: int, seed: int) -> list[int]:
    return [int(place) for place in np.random.default_rng(seed).permutation(count)]


def _at(rows: Iterator[Dropped], places: Sequence[int]) -> list[Dropped]:
    """The rows at these places, in the order of the places."""
    wanted = set(places)
    found = {place: row for place, row in enumerate(rows) if place in wanted}
    return [found[place] for place in places]


def _containing(data: Data, split: str, rows: Iterable[Dropped], text: str) -> Iterator[tuple[Dropped, Content]]:
    pattern = re.compile(re.escape(text), re.IGNORECASE)
    for row, content in read_again(data, split, rows):
        if any(pattern.search(cell) for _, cell in cells(content) if isinstance(cell, str)):
            yield row, content


def _plain(value: Any) -> Any:
    """A cell as a JSON value: what JSON does not have, such as a date, is text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def _report(document: Mapping[str, Any], whose: str) -> RenderableType:
    if not document["reasons"]:
        return Text(f"no row of {whose} is dropped")
    rows, reason = document["rows"], document["dropped"]
    why = "" if reason == ANY else f" for {reason}"
    order = f", in random order (again with --seed {document['seed']})" if "seed" in document else ""
    having = f" with {document['find']!r}" if "find" in document else ""
    parts: list[RenderableType] = [
        Flowing(Text(f"{len(rows):,}{having} of the {document['count']:,} rows of {whose} that are dropped{why}{order}"))
    ]
    if reason == ANY:
        parts.append(Flowing(Text(_listed(document["reasons"]), style="dim")))
    for place, row in enumerate(rows, start=1):
        parts += [Text(), Rule(Text(f"{place} of {len(rows)}"), style="dim"), Text(), dropped_view(row)]
    return Group(*parts)
