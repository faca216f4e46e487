"""`rmtrain inspect --dropped`: rows that are not used, why, and what they hold."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from rmtrain.commands.choice import FEW, check_source, new_seed
from rmtrain.commands.outcome import Outcome
from rmtrain.commands.query import Query
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.cells import cells
from rmtrain.data.comparison import Dropped
from rmtrain.data.dropped import Content, dropped_rows, read_again
from rmtrain.data.prepare import PreparedData
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Data
from rmtrain.report.raw_row import dropped_view
from rmtrain.report.surroundings import Flowing

ANY = "all"
T = TypeVar("T")


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
    rows = [row for row in dropped_rows(prepared.directory, query.split) if _is_wanted(row, query.source, reason)]
    if query.find is not None:
        document["find"] = query.find
    document["rows"] = [
        {"id": row.id, "source": row.source, "reason": row.reason, "detail": row.detail, "row": _plain(content)}
        for row, content in _with_content(data, query, rows, limit, document.get("seed"))
    ]
    return Outcome(_report(document, whose, listed=len(rows)), document)


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
    data: Data, query: Query, rows: list[Dropped], limit: int, seed: int | None
) -> list[tuple[Dropped, Content | None]]:
    """The rows that are shown; where a text is searched for, rows are read again until enough have it."""
    if query.find is None:
        shown = _shuffled(rows, seed)[:limit]
        contents = dict(read_again(data, query.split, shown))
        return [(row, contents.get(row)) for row in shown]
    found = _containing(data, query.split, rows, query.find)
    return [*islice(found, limit)] if seed is None else [*_shuffled(list(found), seed)[:limit]]


def _shuffled(items: list[T], seed: int | None) -> list[T]:
    if seed is None:
        return items
    return [items[int(place)] for place in np.random.default_rng(seed).permutation(len(items))]


def _containing(data: Data, split: str, rows: list[Dropped], text: str) -> Iterator[tuple[Dropped, Content]]:
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


def _report(document: Mapping[str, Any], whose: str, listed: int) -> RenderableType:
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
    if listed < document["count"]:
        parts.append(Text(f"{document['count'] - listed:,} of them are counted only, not listed", style="yellow"))
    for place, row in enumerate(rows, start=1):
        parts += [Text(), Rule(Text(f"{place} of {len(rows)}"), style="dim"), Text(), dropped_view(row)]
    return Group(*parts)
