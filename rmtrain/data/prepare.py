"""Sources to tokenized data: read, adapted, split, encoded, checked and cached, so that nothing is tokenized twice."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData, response_nodes
from rmtrain.data.builder import DROPPED, GATHERED, MANIFEST, SPLITS, RowEncoder, build_artifact
from rmtrain.data.cache import get_or_build
from rmtrain.data.comparison import Dropped, place_of
from rmtrain.data.rows.dataset import digest, read_rows, source_identity, tokenizer_fingerprint
from rmtrain.data.rows.loading import Progress, no_progress
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.data.text.tokenizer import canary_hashes, first_change
from rmtrain.data.waterfall import Waterfall
from rmtrain.data.workers import in_order
from rmtrain.errors import DataError, RecipeError
from rmtrain.files import sha256_file
from rmtrain.recipe.schema import Data, Source, TokenizedSource

SHAPING_KEYS = {"max_length", "max_prompt_length", "overlong", "allow_rewritten"}
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """An evaluation row whose prompt is also trained on.

    evaluated: number of the row in the evaluation data.
    trained: number of a row of the training data with this prompt, one with exactly this prompt if there is one.
    exact: whether the prompts have the same tokens; otherwise they differ in case, spacing or Unicode form.
    responses_too: whether all responses of the evaluation row are trained on under this prompt, normalised as well.
    """

    evaluated: int
    trained: int
    exact: bool
    responses_too: bool


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The splits of a recipe, either of which may be empty.

    directory: their artifact. It also has `dropped.jsonl`, the rows that are not used, and `gathered.jsonl`, the rows that are part of
        another row's comparison.
    tokenizer_fingerprint: of the tokenizer they were encoded with.
    overlap: evaluation rows whose prompt is also trained on.
    """

    train: TokenizedData
    eval: TokenizedData
    directory: Path
    tokenizer_fingerprint: str
    overlap: Sequence[Overlap]


def prepare(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress) -> PreparedData:
    """Return the tokenized comparisons of a recipe, from the cache if nothing that shapes them has changed.

    Args:
        data: the data section.
        tokenizer: one that `load_tokenizer` returned.
        progress: called after each batch that is tokenized.

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


def prepare_unchecked(data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress) -> PreparedData:
    """Return the same as `prepare` without checks of how much is left and what overlaps: to look at the rows that are dropped."""
    return _prepare(data.train, data.eval, data, tokenizer, progress)


def prepare_evaluation(
    sources: Sequence[Source], data: Data, tokenizer: PreTrainedTokenizerBase, progress: Progress = no_progress
) -> TokenizedData:
    """Return the tokenized comparisons of sources for evaluation only; see `prepare`. The policies of `data` apply, not its sources."""
    prepared = _prepare((), sources, data, tokenizer, progress)
    _check(prepared, (), data.max_drop_fraction)
    return prepared.eval


def _prepare(
    train: Sequence[Source],
    evaluation: Sequence[Source],
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
) -> PreparedData:
    for source in (*train, *evaluation):
        for key in ("holdout", "fraction"):
            if isinstance(source, TokenizedSource) and getattr(source, key):
                raise RecipeError(
                    f"{source.title}: {key} selects by prompt, and rows of tokens do not say where theirs ends; remove {key}"
                )
    fingerprint = tokenizer_fingerprint(tokenizer)
    identity = {
        "tokenizer": fingerprint,
        "data": data.model_dump(mode="json", include=SHAPING_KEYS),
        "train": [source_identity(source) for source in train],
        "eval": [source_identity(source) for source in evaluation],
    }
    key = digest(identity)

    def build(directory: Path) -> None:
        with in_order(partial(RowEncoder, tokenizer, data), data.processes) as encode:
            facts = {"key": key, "canaries": canary_hashes(tokenizer)}
            build_artifact(directory, {"train": train, "eval": evaluation}, encode, facts, progress)

    directory = get_or_build(Path(data.cache_dir).expanduser() / key[:32], build)
    splits = _load(directory, key, tokenizer)
    return PreparedData(*splits, directory, fingerprint, find_overlap(*splits))


def _load(directory: Path, key: str, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenizedData, TokenizedData]:
    remedy = f"delete {directory} to rebuild it"
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        hashes = [manifest["splits"][split]["sha256"] for split in SPLITS]
        waterfalls = [Waterfall.from_json(manifest["splits"][split]["waterfall"]) for split in SPLITS]
        canaries = [str(value) for value in manifest["canaries"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / MANIFEST}: damaged; {remedy}") from error
    changed = first_change(canaries, tokenizer)
    if changed is not None:
        raise DataError(
            f"{directory}: the tokenizer's output has changed since this was cached, such as for {changed!r}; {remedy}"
        )
    files = [directory / f"{split}.arrow" for split in SPLITS]
    for file, stored_hash in zip(files, hashes, strict=True):
        if not file.exists() or sha256_file(file) != stored_hash:
            raise DataError(f"{file}: checksum mismatch; {remedy}")
    train, evaluation = (TokenizedData(file, key, waterfall) for file, waterfall in zip(files, waterfalls, strict=True))
    return train, evaluation


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


def find_overlap(train: TokenizedData, evaluation: TokenizedData) -> list[Overlap]:
    """Return the rows of the evaluation data whose prompt, normalised, is also trained on, in order."""
    shared = np.flatnonzero(np.isin(evaluation.prompt_hashes, train.prompt_hashes))
    if not len(shared):
        return []
    trained: dict[int, dict[bytes, int]] = defaultdict(dict)  # by hash, the first training row with each exact prompt
    for number in np.flatnonzero(np.isin(train.prompt_hashes, evaluation.prompt_hashes[shared])).tolist():
        trained[int(train.prompt_hashes[number])].setdefault(_prompt(train, number), number)
    begins = np.cumsum(evaluation.response_counts) - evaluation.response_counts
    are_known = np.logical_and.reduceat(np.isin(response_nodes(evaluation), response_nodes(train)), begins)
    rows = []
    for number in shared.tolist():
        by_prompt, prompt = trained[int(evaluation.prompt_hashes[number])], _prompt(evaluation, number)
        first = next(iter(by_prompt.values()))
        rows.append(Overlap(number, by_prompt.get(prompt, first), prompt in by_prompt, bool(are_known[number])))
    return rows


def _prompt(data: TokenizedData, number: int) -> bytes:
    row = data[number]
    return np.asarray(row.sequences[0][: row.prompt_length], np.int32).tobytes()


def check_overlap(rows: Sequence[Overlap], evaluation: TokenizedData) -> None:
    """Refuse evaluation data that is also trained on.

    Raises:
        DataError: naming the first rows of the evaluation data whose prompt is in the training data as well.
    """
    if rows:
        exact = sum(row.exact for row in rows)
        raise DataError(
            f"{len(rows)} of {len(evaluation)} evaluation rows have a prompt that is also trained on: "
            f"{named([evaluation.ids[row.evaluated] for row in rows])}; remove them, or set data.allow_overlap "
            f"({exact} exactly the same, {len(rows) - exact} except for case and spacing)"
        )


def named(ids: Sequence[str]) -> str:
    """Return the first row ids, and the number of the others."""
    return ", ".join(ids[:EXAMPLES]) + (f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else "")


Content = Row | str
"""The columns of a row; of a row that cannot be parsed its line, with bytes that are not UTF-8 escaped, or else the problem."""


def dropped_rows(directory: Path, split: str) -> Iterator[Dropped]:
    """Yield the rows of a split that an artifact lists as dropped, in the order in which they were dropped."""
    with (directory / DROPPED).open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["split"] == split:
                yield Dropped(row["id"], row["source"], row["reason"], row["detail"])


def drop_reason_of(directory: Path, split: str, row_id: str) -> str | None:
    """Return why a row is not a comparison of its own: dropped, with the reason, or gathered; None: it was not read."""
    for row in dropped_rows(directory, split):
        if row.id == row_id:
            return f"it was dropped ({row.reason}): {row.detail}"
    with (directory / GATHERED).open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            if (record["split"], record["id"]) == (split, row_id):
                return f"it is part of comparison {record['comparison']}, which has the same prompt"
    return None


def read_again(data: Data, split: str, rows: Iterable[Dropped]) -> Iterator[tuple[Dropped, Content]]:
    """Yield dropped rows with their content, source by source. A source is read no further than the last of its rows.

    Raises:
        DataError: a source that can no longer be read.
    """
    wanted: dict[str, dict[int, list[Dropped]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        wanted[row.source][place_of(row.id)[0]].append(row)
    for source in sources_of(data, split):
        missing = wanted.pop(source.title, {})
        for number, raw in read_rows(source) if missing else ():
            if number in missing:
                content = _content(raw)
                yield from ((row, content) for row in missing.pop(number))
            if not missing:
                break


def _content(row: Row | Line | Malformed) -> Content:
    parsed = parse(row)
    if not isinstance(parsed, Malformed):
        return parsed
    return row.content.decode(errors="backslashreplace") if isinstance(row, Line) else parsed.detail


def sources_of(data: Data, split: str) -> Sequence[Source]:
    """Return the sources of a split; for `eval` including the training sources of which a share is held out."""
    return data.train if split == "train" else (*data.eval, *(source for source in data.train if source.holdout))
