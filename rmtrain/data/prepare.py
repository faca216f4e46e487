"""Sources to tokenized data: read, adapted, split, encoded, checked and cached, so that nothing is tokenized twice."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData, file_hash, mix
from rmtrain.data.builder import DROPPED, GATHERED, MANIFEST, SPLITS, Builder, RowEncoder, in_order
from rmtrain.data.cache import Claim, get_or_build
from rmtrain.data.comparison import Dropped, place_of
from rmtrain.data.rows.dataset import digest, read_rows, source_identity, tokenizer_fingerprint
from rmtrain.data.rows.loading import Progress, no_progress
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.data.text.tokenizer import first_change, probe
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Data, Source, TokenizedSource

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """An evaluation row whose prompt is trained on.

    evaluated: number of the row in the evaluation data.
    trained: number of a row of the training data with this prompt; one with exactly this prompt where there is one.
    exact: whether the prompts have the same tokens; otherwise they are the same but for case, spacing and Unicode form.
    responses_too: whether all responses of the evaluation row are trained on under this prompt, normalised as well.
    """

    evaluated: int
    trained: int
    exact: bool
    responses_too: bool


def overlap(train: TokenizedData, evaluation: TokenizedData) -> list[Overlap]:
    """Rows of the evaluation data whose prompt, normalised, is also trained on, in order."""
    shared = np.flatnonzero(np.isin(evaluation.prompt_hashes, train.prompt_hashes))
    if not len(shared):
        return []
    same_prompt = _numbers_by_prompt(train, evaluation.prompt_hashes[shared])
    trained_texts = {hash_of: _first_by_text(train, numbers) for hash_of, numbers in same_prompt.items()}
    known = _known_responses(train, evaluation)
    found = []
    for number in shared.tolist():
        hash_of, text = int(evaluation.prompt_hashes[number]), _prompt(evaluation, number)
        numbers = trained_texts[hash_of]
        trained = numbers.get(text, same_prompt[hash_of][0])
        found.append(Overlap(number, trained, text in numbers, bool(known[number])))
    return found


def check_overlap(rows: Sequence[Overlap], evaluation: TokenizedData) -> None:
    """Refuse evaluation data that was trained on.

    Raises:
        DataError: naming the first of the rows of the evaluation data whose prompt is in the training data too.
    """
    if rows:
        exact = sum(row.exact for row in rows)
        raise DataError(
            f"{len(rows)} of {len(evaluation)} evaluation rows have a prompt that is also trained on: "
            f"{named([evaluation.ids[row.evaluated] for row in rows])}; remove them, or set data.allow_overlap "
            f"(to the letter {exact}, but for case and spacing {len(rows) - exact})"
        )


def named(ids: Sequence[str]) -> str:
    """The first row ids, and how many more there are."""
    return ", ".join(ids[:EXAMPLES]) + (f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else "")


def _numbers_by_prompt(data: TokenizedData, hashes: NDArray[np.uint64]) -> dict[int, list[int]]:
    numbers: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(np.isin(data.prompt_hashes, hashes)).tolist():
        numbers[int(data.prompt_hashes[number])].append(number)
    return numbers


def _first_by_text(data: TokenizedData, numbers: Sequence[int]) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    for number in numbers:
        first.setdefault(_prompt(data, number), number)
    return first


def _prompt(data: TokenizedData, number: int) -> bytes:
    row = data[number]
    return np.asarray(row.sequences[0][: row.prompt_length], np.int32).tobytes()


def _known_responses(train: TokenizedData, evaluation: TokenizedData) -> list[bool]:
    """For each evaluation row, whether all of its responses are trained on under its prompt."""
    trained, evaluated = (
        mix(np.repeat(data.prompt_hashes, data.response_counts), data.response_hashes) for data in (train, evaluation)
    )
    is_known = np.isin(evaluated, trained)
    begins = np.cumsum(evaluation.response_counts) - evaluation.response_counts
    known: list[bool] = np.logical_and.reduceat(is_known, begins).tolist()
    return known


SHAPING_KEYS = ("max_length", "max_prompt_length", "overlong", "allow_rewritten")


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Both splits of a recipe, either may be empty, and the directory of their artifact.

    It also holds `dropped.jsonl`, the rows that are not used, and `gathered.jsonl`, those that are part of another row's comparison.
    """

    train: TokenizedData
    eval: TokenizedData
    directory: Path
    overlap: Sequence[Overlap]


def prepare(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None) -> PreparedData:
    """The tokenized comparisons of a recipe, from the cache when nothing that shapes them has changed.

    Args:
        data: the data section.
        tokenizer: one that `load_tokenizer` gave.
        progress: told of every batch while something is tokenized.

    Raises:
        DataError: unreadable or malformed data, too many dropped rows, nothing left, a changed artifact, or overlap of the splits.
        RecipeError: keys that do not go together, or a cache that cannot be written.
        TryAgain: the disk is full.
    """
    prepared = prepare_unchecked(data, tokenizer, progress)
    _check(prepared, data.train, data.max_drop_fraction)
    if not data.allow_overlap:
        check_overlap(prepared.overlap, prepared.eval)
    return prepared


def prepare_unchecked(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None) -> PreparedData:
    """What `prepare` gives, however little is left and whatever overlaps: to look at the rows that are not used."""
    return _prepare(data.train, data.eval, data, tokenizer, progress)


def prepare_evaluation(
    sources: Sequence[Source], data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None
) -> TokenizedData:
    """The tokenized comparisons of sources that are only evaluated on; see `prepare`. Of `data` the policies hold, not its sources."""
    prepared = _prepare((), sources, data, tokenizer, progress)
    _check(prepared, (), data.max_drop_fraction)
    return prepared.eval


def drop_reason_of(directory: Path, split: str, row_id: str) -> str | None:
    """What became of a row that is no comparison of its own: dropped, with the reason, or gathered; None: it was not read."""
    for name in (DROPPED, GATHERED):
        with (directory / name).open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if (row["split"], row["id"]) == (split, row_id):
                    gathered = f"it is part of comparison {row.get('comparison')}, which has the same prompt"
                    return gathered if name == GATHERED else f"it is dropped ({row['reason']}): {row['detail']}"
    return None


def _prepare(
    train: Sequence[Source],
    evaluation: Sequence[Source],
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None,
) -> PreparedData:
    for source in (*train, *evaluation):
        _refuse_by_prompt(source)
    identity = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": data.model_dump(mode="json", include=set(SHAPING_KEYS)),
        "train": [source_identity(source) for source in train],
        "eval": [source_identity(source) for source in evaluation],
    }
    key, progress = digest(identity), progress or no_progress

    def build(directory: Path, held: Claim) -> None:
        with in_order(partial(RowEncoder, tokenizer, data), data.processes) as encode:
            Builder(directory, progress).build(train, evaluation, encode, {"key": key, "probes": probe(tokenizer)})

    directory = get_or_build(Path(data.cache_dir).expanduser() / key[:32], build)
    return _load(directory, key, tokenizer)


def _refuse_by_prompt(source: Source) -> None:
    for name in ("holdout", "fraction"):
        if isinstance(source, TokenizedSource) and getattr(source, name):
            raise RecipeError(
                f"{source.title}: {name} goes by prompt, and rows of tokens do not say where theirs ends; remove it"
            )


def _load(directory: Path, key: str, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    remedy = f"delete {directory} to have it made again"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        stored = {split: manifest["splits"][split] for split in SPLITS}
        probes = [str(value) for value in manifest["probes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory / MANIFEST}: damaged; {remedy}") from error
    changed = first_change(probes, tokenizer)
    if changed is not None:
        raise DataError(f"{directory}: made with other tokens than the tokenizer gives now, such as for {changed!r}; {remedy}")
    for split in SPLITS:
        file = directory / f"{split}.arrow"
        if not file.exists() or file_hash(file) != stored[split]["sha256"]:
            raise DataError(f"{file}: not as it was written; {remedy}")
    train, evaluation = (
        TokenizedData(directory / f"{split}.arrow", key, Waterfall.from_json(stored[split]["waterfall"])) for split in SPLITS
    )
    return PreparedData(train, evaluation, directory, overlap(train, evaluation))


def _check(prepared: PreparedData, train: Sequence[Source], max_drop_fraction: float) -> None:
    problems = [
        f"{source.title}: holdout {source.holdout:g} took none of its prompts; raise it"
        for source in train
        if source.holdout and source.title not in prepared.eval.waterfall.sources
    ]
    for split in (prepared.train, prepared.eval):
        problems.extend(split.waterfall.problems(max_drop_fraction))
    if problems:
        raise DataError(*problems)


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
