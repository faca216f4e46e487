"""The rows of a source that an audit disputes: their list, and what becomes of their labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from rmtrain.data.comparison import Adapted, BadRow, Comparison, dropped, hash_text, prompt_hash
from rmtrain.data.rows.readers import Line, open_bytes, read_lines
from rmtrain.errors import DataError, missing
from rmtrain.files import expanded
from rmtrain.recipe.schema import ComparedSource, Source

EXPECTED = 'expected an object with the texts "id", "source" and "prompt", as `rmtrain audit` writes it'


def read_suspects(source: Source) -> Mapping[str, str]:
    """Return the hash of the prompt of each row that the list of a source names, by row id; nothing without a list.

    Raises:
        DataError: the list is missing or malformed, or names no row of the source.
    """
    if not isinstance(source, ComparedSource) or source.suspects is None:
        return {}
    path = expanded(source.suspects.file)
    if not path.is_file():
        raise DataError(f"{source.title}: suspects: {missing(path)}")
    state = path.stat()
    listed = _read(path, (state.st_ino, state.st_size, state.st_mtime_ns))
    if source.title not in listed:
        named = ", ".join(listed) or "no source"
        raise DataError(
            f"{source.title}: suspects: {path} names no row of this source, but of: {named}; set tag, or remove suspects"
        )
    return listed[source.title]


@cache
def _read(path: Path, _state: tuple[int, ...]) -> dict[str, dict[str, str]]:
    """Return the rows of a list by source; a file that has changed has another state."""
    listed: dict[str, dict[str, str]] = {}
    with open_bytes(path) as stream:
        for number, line in read_lines(path.name, stream):
            try:
                fields = json.loads(line.content.decode()) if isinstance(line, Line) else {}
                texts = [fields[name] for name in ("id", "source", "prompt")]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: {EXPECTED}") from error
            if not all(isinstance(text, str) for text in texts):
                raise DataError(f"{path}:{number}: {EXPECTED}")
            row_id, source, prompt = texts
            listed.setdefault(source, {})[row_id] = prompt
    return listed


def treat_suspects(rows: Sequence[Adapted], source: Source) -> list[Adapted]:
    """Return the rows, suspects among them as dropped (`suspect`) or with their preferences turned around.

    Raises:
        DataError: see `read_suspects`; or a row has another prompt than the one that was audited: the rows have changed.
    """
    listed = read_suspects(source)
    if not listed:
        return list(rows)
    assert isinstance(source, ComparedSource)
    assert source.suspects is not None
    treated: list[Adapted] = []
    for row in rows:
        if not isinstance(row, Comparison) or row.id not in listed:
            treated.append(row)
            continue
        if hash_text(prompt_hash(row)) != listed[row.id]:
            path = source.suspects.file
            raise DataError(f"{row.id}: has another prompt than the row of this id in {path}; audit the changed rows again")
        if source.suspects.labels == "drop":
            treated.append(dropped(row.id, row.source, BadRow("suspect", "its label is disputed, see `suspects`")))
        else:
            treated.append(flipped(row))
    return treated


def flipped(row: Comparison) -> Comparison:
    """Return a comparison whose preferences are turned around: a pair is that of the exchanged sides. Margins keep their size."""
    if len(row.responses) == 2:
        return replace(row, responses=row.responses[::-1])
    return replace(row, preferences=tuple(replace(edge, winner=edge.loser, loser=edge.winner) for edge in row.preferences))
