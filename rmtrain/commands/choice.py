"""Which kept rows `rmtrain inspect` shows: one by number or id, or some, in order, longest first, at random, or with a text."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from rmtrain.commands.query import Query
from rmtrain.data.checks.search import Match, search
from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.data.stored.prepare import PreparedData, fate
from rmtrain.errors import DataError, RecipeError

FEW = 3


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows by their numbers, how they were chosen as a sentence and as data, and where a text was searched for, its first place in each."""

    numbers: Sequence[int]
    sentence: str
    facts: dict[str, Any]
    matches: Sequence[Match] = ()


def find_row(prepared: PreparedData, data: TokenizedData, query: Query) -> int:
    """The number of the row that is given by its number among those of a source, or by its id.

    Raises:
        RecipeError: no such source.
        DataError: no such row among the kept ones; with what became of it.
    """
    row, numbers, split = query.row or "0", _of_source(data, query), query.split
    whose = split if query.source is None else f"{query.source} in {split}"
    if row.lstrip("-").isdigit():
        if 0 <= int(row) < len(numbers):
            return numbers[int(row)]
        kept = f"0 to {len(numbers) - 1}" if len(numbers) else "none"
        raise DataError(f"--row {row}: {whose} has {len(numbers)} kept rows, {kept}")
    if row in data.ids and data.ids.index(row) in numbers:
        return data.ids.index(row)
    hint = fate(prepared.directory, split, row) or (f"ids look like {data.ids[numbers[0]]}" if len(numbers) else "none is kept")
    raise DataError(f"--row {row}: no kept row of {whose} has this id; {hint}")


def choose(data: TokenizedData, tokenizer: PreTrainedTokenizerBase, query: Query, console: Console) -> Chosen:
    """The rows of a query in the order it asks for, those that contain its text, and no more than its limit.

    Raises:
        RecipeError: no such source.
    """
    numbers = _of_source(data, query)
    limit = query.limit or (FEW if query.find is not None else 1)
    facts: dict[str, Any] = {"source": query.source, "kept": len(numbers), "limit": limit}
    if query.random:
        facts["seed"] = new_seed(query)
    ordered = _in_order(data, numbers, query.longest, facts.get("seed"))
    rows = f"{len(numbers):,} kept rows of {query.source or query.split}{_how(query, facts)}"
    if query.find is None:
        shown = ordered[:limit]
        return Chosen(shown, f"{len(shown):,} of {rows}", facts)
    with _searching(console, len(numbers)) as progress:
        found = search(data, ordered, tokenizer, query.find, limit, progress)
    facts |= {"find": query.find, "searched": found.searched}
    count = f"{len(found.matches):,} row{'' if len(found.matches) == 1 else 's'} with {query.find!r}"
    end = f"stopped at the limit of {limit:,}" if found.searched < len(numbers) else "that is all of them"
    sentence = f"{count}; searched {found.searched:,} of {rows}: {end}"
    return Chosen([match.row for match in found.matches], sentence, facts, found.matches)


def check_source(data: TokenizedData, query: Query) -> None:
    """Raise RecipeError when a split has no source of the tag that is asked for."""
    tags = list(data.waterfall.sources)
    if query.source is not None and query.source not in tags:
        raise RecipeError(f"--source {query.source}: {query.split} has no such source; it has: {', '.join(tags) or 'none'}")


def new_seed(query: Query) -> int:
    """The seed of a random choice: the one that is given, or a new one."""
    return query.seed if query.seed is not None else secrets.randbelow(2**32)


def _of_source(data: TokenizedData, query: Query) -> Sequence[int]:
    check_source(data, query)
    if query.source is None:
        return range(len(data))
    return [number for number, tag in enumerate(data.sources) if tag == query.source]


def _in_order(data: TokenizedData, numbers: Sequence[int], longest: bool, seed: int | None) -> Sequence[int]:
    if longest:
        members = np.asarray(numbers, np.int64)
        return [int(number) for number in members[np.argsort(-data.longest[members], kind="stable")]]
    if seed is not None:
        return [numbers[int(place)] for place in np.random.default_rng(seed).permutation(len(numbers))]
    return numbers


def _how(query: Query, facts: dict[str, Any]) -> str:
    if query.longest:
        return ", longest first"
    return f" in random order (again with --seed {facts['seed']})" if query.random else ""


@contextmanager
def _searching(console: Console, rows: int) -> Iterator[Callable[[int], None]]:
    """Says in a terminal how far a search has come."""
    if not (console.is_terminal and console.is_interactive):
        yield lambda searched: None
        return
    with console.status("searching") as status:
        yield lambda searched: status.update(f"searched {searched:,} of {rows:,} rows") if searched % 100 == 0 else None
