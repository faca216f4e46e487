"""The rows that are not used: from the artifact's list of them, and as they stand in their source."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rmtrain.data.comparison import Dropped, place_of
from rmtrain.data.raw.json_reader import Line, Malformed, Row, parse
from rmtrain.data.raw.sources import read_rows
from rmtrain.data.stored.builder import DROPPED
from rmtrain.recipe.schema import Data, Source

Content = Row | str
"""A row's columns; of a row that cannot be parsed its line, in which bytes that are no UTF-8 are escapes, or what is wrong with it."""


def dropped_rows(directory: Path, split: str) -> Iterator[Dropped]:
    """The rows of a split that an artifact lists as dropped, in the order in which they were."""
    with (directory / DROPPED).open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["split"] == split:
                yield Dropped(row["id"], row["source"], row["reason"], row["detail"])


def read_again(data: Data, split: str, rows: Iterable[Dropped]) -> Iterator[tuple[Dropped, Content]]:
    """Dropped rows with what their sources hold, source by source, each read no further than the last of its rows.

    Raises:
        DataError: a source that cannot be read any more.
    """
    wanted: dict[str, dict[int, list[Dropped]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        wanted[row.source][place_of(row.id)[0]].append(row)
    for source in sources_of(data, split):
        missing = wanted.pop(source.title, {})
        for number, content in read_rows(source) if missing else ():
            if number in missing:
                yield from ((row, _content(content)) for row in missing.pop(number))
            if not missing:
                break


def sources_of(data: Data, split: str) -> Sequence[Source]:
    """The sources that give a split rows: for `eval` also those to train on that hold some of them out."""
    return data.train if split == "train" else (*data.eval, *(source for source in data.train if source.holdout))


def _content(row: Row | Line | Malformed) -> Content:
    parsed = parse(row) if isinstance(row, Line) else row
    if not isinstance(parsed, Malformed):
        return parsed
    return row.content.decode(errors="backslashreplace") if isinstance(row, Line) else parsed.detail
