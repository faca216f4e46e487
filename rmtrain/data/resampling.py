"""Which comparisons of a source are trained on: `balance` leaves some out, `augment` makes further ones, and `repeat` copies them.

The first two depend on the whole source. Its training comparisons are therefore first written to a file, with the texts that `augment`
needs; in memory are at most about 150 bytes of numbers for each comparison, and the texts of one batch. Rows that are held out for
evaluation are never in that file, so that neither their prompts nor their responses are used.

Every choice is made by hashes of texts, not by row numbers or random numbers: it is the same in any order of the rows and for any number
of processes. A row that is added to the source changes few of the choices for other rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rmtrain.data.artifact import SCHEMA, StoredRow, mix
from rmtrain.data.comparison import (
    ADDED,
    HASH_RANGE,
    Adapted,
    BadRow,
    Comparison,
    Dropped,
    TokenizedComparison,
    dropped,
    extremes,
    ranks,
)
from rmtrain.data.encoded_rows import EncodedRows, RowTask
from rmtrain.data.rows.loading import BATCH_ROWS, Progress, Reading
from rmtrain.data.waterfall import UNFIT
from rmtrain.errors import DataError
from rmtrain.recipe.schema import ComparedSource, Data, Source

Part = tuple[str, Source, EncodedRows]
"""Encoded rows with their split and source."""
Encode = Callable[[Iterable[RowTask]], Iterator[dict[str, EncodedRows]]]
Hashes = NDArray[np.uint64]

RESAMPLED = pa.schema(
    [
        *SCHEMA,
        pa.field("longer", pa.int8()),  # 1 where the better response is the longer one, -1 where it is the shorter one, or 0
        pa.field("answer_hash", pa.uint64()),  # of the best response
        pa.field("answer_length", pa.int32()),  # of the best response without its prompt, in tokens
        pa.field("text", pa.large_string()),  # JSON of prompt, variables, best response; empty: not for `augment`
    ]
)
STAGED = "staged.arrow"
TRIES = 16
"""Rows that are considered as the other prompt of a row, before it is given up."""


class Note(NamedTuple):
    """The columns of `RESAMPLED` that an artifact does not have, for one comparison. A tie has no better response."""

    longer: int = 0
    answer_hash: int = 0
    answer_length: int = 0
    text: str = ""


def note_of(row: Comparison | TokenizedComparison, stored: StoredRow, responses: Sequence[int], source: Source) -> Note:
    """Return the note of a comparison, which is `stored` with these of its `responses`.

    Of more than two responses, the best and the worst are compared in length (see `extremes`).
    """
    tokens = stored.comparison
    (best, worst), places = extremes(tokens), ranks(tokens)
    if places[best] == places[worst]:
        return Note()
    difference = len(tokens.sequences[best]) - len(tokens.sequences[worst])
    text = ""
    if isinstance(row, Comparison) and row.prompt and isinstance(source, ComparedSource) and source.augment is not None:
        text = _exact_json([list(row.prompt), dict(row.variables), list(row.responses[responses[best]])])
    length = len(tokens.sequences[best]) - tokens.prompt_length
    return Note((difference > 0) - (difference < 0), stored.response_hashes[best], length, text)


def _exact_json(value: Any) -> str:
    """Return a value as JSON; an empty text where JSON would change it, such as a date among the template variables."""
    try:
        text = json.dumps(value)
        return text if json.loads(text) == value else ""
    except (TypeError, ValueError, RecursionError):
        return ""


def with_notes(batch: pa.RecordBatch, notes: Sequence[Note]) -> pa.RecordBatch:
    """Return a batch of comparisons with the columns of their notes."""
    columns = zip(RESAMPLED.names[len(SCHEMA) :], zip(*notes, strict=True), strict=True)
    return pa.record_batch(
        [*batch.columns, *(pa.array(values, RESAMPLED.field(name).type) for name, values in columns)], schema=RESAMPLED
    )


def resample(parts: Iterable[Part], encode: Encode, directory: Path, data: Data, progress: Progress) -> Iterator[Part]:
    """Yield encoded rows; of each source with `balance`, `augment` or `repeat`, the training comparisons come last, resampled.

    `encode` encodes the comparisons that `augment` makes. `directory` has the file of a source while it is resampled.

    Raises:
        DataError: the source has nothing to balance with, or `augment` makes no comparison.
    """
    for source, members in groupby(parts, key=lambda part: part[1]):
        if not source.resampling_keys:
            yield from members
            continue
        file, gathered = directory / STAGED, list[list[tuple[str, str]]]()
        with pa.ipc.new_file(str(file), RESAMPLED) as staged:
            for split, _, rows in members:
                if split == "train" and rows.stored is not None:
                    staged.write_batch(rows.stored)
                    gathered.append(rows.gathered)
                    rows = replace(rows, stored=None, gathered=[])
                yield split, source, rows
        if gathered:
            for rows in _resampled(file, gathered, source, encode, data, progress):
                yield "train", source, _repeated(rows, source.repeat)
        file.unlink()


def _resampled(
    file: Path, gathered: Sequence[list[tuple[str, str]]], source: Source, encode: Encode, data: Data, progress: Progress
) -> Iterator[EncodedRows]:
    """Yield the comparisons of a staged file without those that `balance` leaves out, and then those that `augment` makes."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    table = reader.read_all()
    kept, problem = np.ones(len(table), bool), BadRow("unbalanced", "")
    if source.balance is not None:
        kept[surplus(table, source.title)], problem = False, _unbalanced(table)
    begin = 0
    for number, members in enumerate(gathered):
        batch = reader.get_batch(number)
        ids, end = batch.column("id").to_pylist(), begin + batch.num_rows
        refused = {row_id: problem for row_id, is_kept in zip(ids, kept[begin:end].tolist(), strict=True) if not is_kept}
        yield EncodedRows(batch.select(SCHEMA.names), members, []).without(refused, source.title)
        begin = end
    if isinstance(source, ComparedSource) and source.augment is not None:
        rows, partners = other_prompts(table, kept, source.augment.other_prompts, source.title, data)
        done = 0
        for encoded in encode(_made(table, rows, partners, source)):
            (made,) = encoded.values()
            lost = [row if row.reason == UNFIT else _unfit(row) for row in made.dropped]
            done += made.kept + len(lost)
            yield replace(made, dropped=lost, added={"other_prompts": made.kept + len(lost)})
            progress(Reading(source.title, done, done / len(rows), "augmenting"))


def surplus(table: pa.Table, title: str) -> NDArray[np.int64]:
    """Return the rows of a table of `RESAMPLED` to leave out, so that the longer response wins as often as the shorter one.

    Raises:
        DataError: one of the two never wins.
    """
    longer = table.column("longer").to_numpy()
    wins, losses = (np.flatnonzero(longer == sign) for sign in (1, -1))
    if len(wins) == len(losses):
        return np.zeros(0, np.int64)
    more, fewer = (wins, losses) if len(wins) > len(losses) else (losses, wins)
    if not len(fewer):
        kind, other = ("longer", "shorter") if len(wins) else ("shorter", "longer")
        raise DataError(
            f"{title}: balance: the {kind} response wins in all {len(more):,} comparisons that differ in length; "
            f"remove balance, or add comparisons in which the {other} one wins"
        )
    order = np.argsort(_hashes(_contents(table)[more], "balance"), kind="stable")
    return more[order[: len(more) - len(fewer)]]


def _unbalanced(table: pa.Table) -> BadRow:
    longer = table.column("longer").to_numpy()
    wins, losses = int(np.sum(longer > 0)), int(np.sum(longer < 0))
    kind, share = ("longer", wins) if wins >= losses else ("shorter", losses)
    return BadRow("unbalanced", f"the {kind} response wins, as in {share:,} of {wins + losses:,} comparisons")


def other_prompts(
    table: pa.Table, kept: NDArray[np.bool_], share: float, title: str, data: Data
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a table of `RESAMPLED` to make a comparison of, and the row of which each takes the answer; -1: none fits.

    This is the part of RRM's augmentation (arXiv:2409.13156) that teaches a model to read the prompt: under the prompt `x(i)`, `y_w(i)` is
    better than `y_w(j)`. Rows and keys are places on a ring, by their hashes. A row takes the answer of the first of the
    `TRIES` rows after its key that has another prompt, an answer that does not respond to this prompt, and few enough tokens.

    Raises:
        DataError: there are no two prompts, or no row is chosen.
    """
    usable = np.flatnonzero(kept & pc.not_equal(table.column("text"), "").to_numpy(zero_copy_only=False))
    prompts, answers = (table.column(name).to_numpy() for name in ("prompt_hash", "answer_hash"))
    if not len(usable) or (prompts[usable] == prompts[usable[0]]).all():
        raise DataError(f"{title}: augment.other_prompts needs training rows with at least two different prompts; remove augment")
    contents = _contents(table)
    rows = usable[is_chosen(contents[usable], "augment", share)]
    if not len(rows):
        raise DataError(f"{title}: augment.other_prompts {share:g} chose none of {len(usable):,} comparisons; raise it")
    own = table.column("answer_length").to_numpy()
    before = (
        table.column("prompt_length").to_numpy() if data.overlong != "truncate_prompt_left" else np.zeros(len(table), np.int32)
    )
    sizes = pc.list_value_length(table.column("response_hashes")).to_numpy()
    known = np.sort(mix(np.repeat(prompts, sizes), pc.list_flatten(table.column("response_hashes")).to_numpy()))
    places = _hashes(contents[usable], "place")
    order = np.argsort(places, kind="stable")
    ring, starts = usable[order], np.searchsorted(places[order], _hashes(contents[rows], "key"))
    partners = np.full(len(rows), -1, np.int64)
    for step in range(TRIES):
        open_ = np.flatnonzero(partners < 0)
        mine, other = rows[open_], ring[(starts[open_] + step) % len(ring)]
        fits = (prompts[mine] != prompts[other]) & (before[mine] + own[other] <= data.max_length)
        nodes = mix(prompts[mine], answers[other])
        fits &= known[np.searchsorted(known, nodes) % len(known)] != nodes  # np.isin would sort `known` again each time
        partners[open_[fits]] = other[fits]
    return rows, partners


def _made(table: pa.Table, rows: NDArray[np.int64], partners: NDArray[np.int64], source: Source) -> Iterator[RowTask]:
    """Yield the comparisons of `other_prompts` in batches, to be rendered and encoded."""
    ids, texts, weights = (table.column(name) for name in ("id", "text", "weight"))
    for begin in range(0, len(rows), BATCH_ROWS):
        made: list[Adapted] = []
        for row, partner in zip(*(numbers[begin : begin + BATCH_ROWS].tolist() for numbers in (rows, partners)), strict=True):
            row_id = f"{ids[row].as_py()}{ADDED}other"
            if partner < 0:
                detail = f"none of {min(TRIES, len(table))} other rows has another prompt and an answer that fits after this one"
                made.append(Dropped(row_id, source.title, UNFIT, detail))
                continue
            prompt, variables, answer = json.loads(texts[row].as_py())
            other = json.loads(texts[partner].as_py())[2]
            responses, weight = (tuple(answer), tuple(other)), weights[row].as_py()
            made.append(Comparison(row_id, source.title, tuple(prompt), responses, weight=weight, variables=variables))
        yield RowTask(made, source, "train", are_made=True)


def _unfit(row: Dropped) -> Dropped:
    return dropped(
        row.id, row.source, BadRow(UNFIT, f"the answer to another prompt does not fit here ({row.reason}): {row.detail}")
    )


def _repeated(rows: EncodedRows, times: float) -> EncodedRows:
    """Return the comparisons with their copies, each after the one that it is a copy of."""
    if times == 1 or rows.stored is None:
        return rows
    whole, part = divmod(times, 1)
    counts = int(whole) + is_chosen(_contents(rows.stored), "repeat", part)
    numbers = np.repeat(np.arange(len(counts)), counts)
    copies = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    batch = rows.stored.take(pa.array(numbers))
    named = zip(batch.column("id").to_pylist(), copies.tolist(), strict=True)
    ids = [f"{row_id}{ADDED}{copy + 1}" if copy else row_id for row_id, copy in named]
    stored = pa.record_batch([pa.array(ids, pa.string()), *batch.columns[1:]], schema=SCHEMA)
    return replace(rows, stored=stored, added={**rows.added, "repeated": len(numbers) - len(counts)})


def is_chosen(contents: Hashes, purpose: str, share: float) -> NDArray[np.bool_]:
    """Return which contents belong to a share, by hash; choices for two purposes are independent."""
    return _hashes(contents, purpose) < share * HASH_RANGE


def _contents(columns: pa.Table | pa.RecordBatch) -> Hashes:
    """Return the hash of the prompt, and of the first and the last response, of each comparison."""
    responses = columns.column("response_hashes")
    values, ends = pc.list_flatten(responses).to_numpy(), np.cumsum(pc.list_value_length(responses).to_numpy())
    starts = np.concatenate([[0], ends[:-1]])
    return mix(columns.column("prompt_hash").to_numpy(), values[starts], values[ends - 1])


def _hashes(contents: Hashes, purpose: str) -> Hashes:
    salt = int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest())
    return mix(contents, np.full(len(contents), salt, np.uint64))
