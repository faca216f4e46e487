"""The vocabulary of one dataset entry: where rows come from, and what their columns mean."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, FiniteFloat, PositiveFloat, PositiveInt, PrivateAttr, Tag

from rmtrain.recipe.section import CrossFieldError, KeyPath, Section, Share

MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Hook:
    """The file of a `prepare` key as it was when the recipe was loaded, so that what is hashed, run and copied is the same.

    Two are equal when their names and bytes are, wherever the file lay.
    """

    name: str
    """`module:function`."""
    code: bytes
    """Content of the file."""
    file: Path = field(compare=False)
    """Where it was read."""

    @property
    def function(self) -> str:
        """Name of the function."""
        return self.name.partition(":")[2]


def file_of(name: str) -> str:
    """The file of a `prepare` key: `module:function` is in `module.py`."""
    return f"{name.partition(':')[0]}.py"


def read_hook(name: str, directory: Path | None) -> Hook:
    """The hook of a `prepare` key, from `module.py` in the directory of the recipe and from nowhere else.

    Args:
        name: `module:function`.
        directory: where the recipe lies; None: it is no file.

    Raises:
        ValueError: there is no such file, or it cannot be read, in one line.
    """
    if directory is None:
        raise ValueError(f"{file_of(name)} must lie beside the recipe, and this recipe is no file; load it from one")
    file = directory / file_of(name)
    try:
        with file.open("rb") as stream:
            code = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"expected {file_of(name)} beside the recipe; {file}: {error.strerror}") from error
    if len(code) > MAX_BYTES:
        raise ValueError(f"{file}: expected at most {MAX_BYTES // 1024} KiB of code; import the rest")
    return Hook(name, code, file)


Outcome = Literal["a", "b", "tie"]
Column = Annotated[str, Field(min_length=1)]
WHOLE = re.compile(r"[-+]?[0-9]{1,30}")
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def label_text(value: Any) -> str:
    """What a label says, whatever its type: `1`, `1.0` and `"1"` are the same, and so are `true` and `"True"`."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    if WHOLE.fullmatch(text):
        return str(int(text))
    if NUMBER.fullmatch(text):
        number = float(text)
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return text.lower() if text.lower() in ("true", "false") else text


def _with_text_keys(values: Any) -> Any:
    """Keys that are no text, as Python may have them; YAML's are text already."""
    if not isinstance(values, dict):
        return values
    return {label_text(key) if isinstance(key, bool | int | float) else key: value for key, value in values.items()}


class ValueLabel(Section):
    """A label with a word or number for each outcome, as most datasets have it."""

    by: Literal["value"]
    """How the label is read."""
    column: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)] | Column
    """Column of the label; of several, one for each annotator, the majority counts, and where there is none it is a tie."""
    values: Annotated[dict[str, Outcome], BeforeValidator(_with_text_keys)]
    """What each value says, such as `{1: a, 0: b}` or `{model_a: a, model_b: b, both: tie}`. Numbers, true and false may be text in the
    data. A row with any other value is dropped."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,) if isinstance(self.column, str) else self.column

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """`values` by their `label_text`."""
        return {label_text(value): outcome for value, outcome in self.values.items()}


class IndexLabel(Section):
    """A label that counts: one number means a, the next one b."""

    by: Literal["index"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    first: Annotated[int, Field(ge=0, le=1)] = 0
    """The number that means a; the next one means b."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class OneHotLabel(Section):
    """A column for each outcome, of which one is 1 or true and the others are 0, false or empty."""

    by: Literal["one_hot"]
    """How the label is read."""
    a: Column
    """Column that is 1 where a is better."""
    b: Column
    """Column that is 1 where b is better."""
    tie: Column | None = None
    """Column that is 1 where neither is better."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.a, self.b) if self.tie is None else (self.a, self.b, self.tie)


class SignLabel(Section):
    """A number whose sign says who is better and whose size says by how much; 0 is a tie."""

    by: Literal["sign"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    positive: Literal["a", "b"]
    """Which one is better where the number is above 0. There is no default: a wrong one inverts the data."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class ScoresLabel(Section):
    """A score for each of the two; the higher one is better, equal ones are a tie."""

    by: Literal["scores"]
    """How the label is read."""
    a: Column
    """Column of the score of a."""
    b: Column
    """Column of the score of b."""
    lower_is_better: bool = False
    """The lower one is better, as of ranks."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.a, self.b)


def _kind(value: Any) -> str | None:
    kind = value.get("by") if isinstance(value, dict) else getattr(value, "by", None)
    return kind if isinstance(kind, str) else None


Label = Annotated[
    Annotated[ValueLabel, Tag("value")]
    | Annotated[IndexLabel, Tag("index")]
    | Annotated[OneHotLabel, Tag("one_hot")]
    | Annotated[SignLabel, Tag("sign")]
    | Annotated[ScoresLabel, Tag("scores")],
    Discriminator(_kind),
]


def label_misfits(label: Label, at: KeyPath) -> Iterator[CrossFieldError]:
    """What is wrong with a label that is at `at` in the recipe."""
    if isinstance(label, ValueLabel):
        yield from _value_misfits(label, (*at, "values"))
    elif len(set(label.columns)) < len(label.columns):
        yield CrossFieldError((*at, "b"), f'expected a column for each, got "{label.columns[0]}" twice', at)


def _value_misfits(label: ValueLabel, at: KeyPath) -> Iterator[CrossFieldError]:
    absent = [outcome for outcome in ("a", "b") if outcome not in label.values.values()]
    if absent:
        yield CrossFieldError(at, f"no value means {' or '.join(absent)}; expected one at least for each of a and b", at[:-1])
    first: dict[str, str] = {}
    for value in label.values:
        owner = first.setdefault(label_text(value), value)
        if owner != value:
            yield CrossFieldError((*at, value), f'the same value as "{owner}"; keep one', at)
    columns = label.columns
    if len(set(columns)) < len(columns):
        yield CrossFieldError((*at[:-1], "column"), "a column is there twice; each votes once", at[:-1])


Value = str | bool | int | float
Bound = Annotated[float, Field(allow_inf_nan=False)]
TESTS = ("equals", "is_not", "one_of", "at_least", "at_most")


class Criterion(NamedTuple):
    """What a condition asks of a cell: one of `TESTS`, and what it is compared with."""

    name: str
    value: Value | tuple[Value, ...]


class Condition(Section):
    """A test of one column. A row without the column is dropped as faulty; a null cell passes `is_not` only."""

    column: Column
    """Column to look at; dots reach into nested cells."""
    equals: Value | None = None
    """The cell is this. Text that spells a number, as in CSV, equals the number."""
    is_not: Value | None = None
    """The cell is anything but this."""
    one_of: Annotated[tuple[Value, ...], Field(strict=False, min_length=1)] | None = None
    """The cell is one of these."""
    at_least: Bound | None = None
    """The cell is a number, or text that spells one, not below this."""
    at_most: Bound | None = None
    """The cell is a number, or text that spells one, not above this."""

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What it asks: one criterion, in a recipe that was accepted."""
        given = {name: getattr(self, name) for name in TESTS}
        return tuple(Criterion(name, value) for name, value in given.items() if value is not None)


class Cap(Section):
    """How many rows there may be for each value of a column."""

    by: Column
    """The column, such as the id of a post or of a prompt; dots reach into nested cells."""
    rows: PositiveInt
    """Most rows kept for one value: the first ones."""


def condition_misfits(conditions: tuple[Condition, ...], at: KeyPath) -> Iterator[CrossFieldError]:
    """Conditions of the list at `at` that do not ask exactly one thing."""
    for number, condition in enumerate(conditions):
        names = [test.name for test in condition.criteria]
        if len(names) != 1:
            came = " and ".join(names) or "none"
            message = f"expected exactly one of {', '.join(TESTS)}, got {came}; for a range write two conditions"
            yield CrossFieldError((*at, number, *names[1:2]), message, (*at, number))


DATA_SUFFIXES = (".gz", ".json", ".jsonl", ".csv", ".parquet")
IMPLICIT = ("auto", "implicit")
"""Values of `prompt` that are no columns."""


class Messages(Section):
    """How cells of a source become messages. `role`/`content` and `from`/`value` are understood without it."""

    role_key: str = "role"
    """Key of a message's role."""
    content_key: str = "content"
    """Key of a message's text."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default={})
    """Further role names, such as `{questioner: user}`, beside the common aliases (human, gpt, bot, ...)."""
    transcript: Literal["hh"] | None = None
    """`hh`: strings are Anthropic transcripts, `\\n\\nHuman: ... \\n\\nAssistant: ...`, split into messages."""
    decode_json: bool = False
    """Text cells are JSON, as of messages in a CSV file. A list of texts, also without it, is turns: those of the prompt and those of a
    response follow each other."""


class SourceBase(Section):
    """One dataset: where its rows come from, and which of them are used.

    In this order: the first `limit` rows are read, `prepare` changes them, `filter` tests them, and their format makes them comparisons;
    of these, `fraction` and `holdout` go by prompt, then those that cannot be used are dropped, then `dedup` and `cap` keep the first.
    """

    path: Annotated[str, Field(min_length=1)]
    """Hub dataset id, local file (json, jsonl, csv, parquet; also .gz) or local directory."""
    name: str | None = None
    """Configuration of a Hub dataset."""
    split: str | None = None
    """Split to read. May be left out when there is only one."""
    revision: str | None = None
    """Commit, tag or branch of a Hub dataset."""
    data_dir: str | None = None
    """Subdirectory of the dataset to read."""
    data_files: Annotated[tuple[str, ...], Field(strict=False)] | str | None = None
    """File names or patterns within the dataset or directory."""
    tag: Annotated[str, Field(min_length=1)] | None = None
    """Name of this source in row ids and per-source numbers; None: the last part of `path`."""
    limit: PositiveInt | None = None
    """Read only the first rows."""
    streaming: bool = False
    """Read a Hub dataset over the network instead of downloading it first, for one that is larger than the disk. Needs `limit`."""
    prepare: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*:[A-Za-z_]\w*$")] | None = None
    """`module:function`: a function of your own, from the file `module.py` beside the recipe, that takes a row and returns a row, a list
    of rows, or None for none. The rows of a list have the ids `tag:12.0`, `tag:12.1`, and each counts as one."""
    filter: Annotated[tuple[Condition, ...], Field(strict=False)] = ()
    """Keep only rows that pass all of these, such as `[{column: score_ratio, at_least: 2.0}, {column: status, is_not: tie}]`."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep this share of the prompts, chosen by hash: the same ones in any order."""
    cap: Cap | None = None
    """Keep at most so many rows for each value of a column, such as `{by: post_id, rows: 5}`."""
    dedup: bool = False
    """Keep only the first of comparisons that have the same prompt, responses and preferences, whatever their case and spacing."""
    holdout: Share | None = None
    """Share of this source's prompts, chosen by hash, that is not trained on but evaluated."""
    _hook: Hook | None = PrivateAttr(default=None)

    @property
    def hook(self) -> Hook | None:
        """The function of `prepare` with its file; only a recipe that was loaded from a file has one."""
        return self._hook

    def take(self, hook: Hook) -> None:
        """Take the file of `prepare`, once, when the recipe is loaded."""
        self._hook = hook

    @property
    def title(self) -> str:
        """`tag`, or the last part of `path` without the suffixes of data files."""
        if self.tag is not None:
            return self.tag
        name = self.path.rstrip("/").rpartition("/")[2] or self.path
        while name.endswith(DATA_SUFFIXES):
            name = name.rpartition(".")[0]
        return name or self.path


class TextSource(SourceBase):
    """What rows of text have in common, whatever their format."""

    prompt: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)] | Column = "auto"
    """Column of the prompt, or several of text that become its lines; dots reach into nested cells. `implicit`: the common beginning of the
    responses; `auto`: column `prompt` if there is one, else implicit."""
    system: str | None = None
    """Column of a system message; an empty cell means no system turn."""
    messages: Messages = Messages()
    """How cells become messages."""
    group_by_prompt: bool = False
    """Gather the rows of one prompt into one comparison, with all their preferences, so that each different response is computed once
    (arXiv:2203.02155, section 3.5). It then counts as one comparison. The whole source is held in memory for it."""

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns of an explicit prompt."""
        if isinstance(self.prompt, tuple):
            return self.prompt
        return () if self.prompt in IMPLICIT else (self.prompt,)


class SidesSource(TextSource):
    """What rows of two sides have in common, one of which is better."""

    margin: Annotated[tuple[str, str], Field(strict=False)] | str | None = None
    """Column of the margin, or the score columns of the two sides, `[chosen_score, rejected_score]` or `[a_score, b_score]`: that of the
    better side less that of the other. A tie has none."""
    margin_default: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Margin of rows that have none; None: such a row is an error."""

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Columns whose cells must be numbers."""
        return margin_columns(self.margin)


class PairSource(SidesSource):
    """Rows with a chosen and a rejected side: strings, single messages, or message lists."""

    format: Literal["pair"] = "pair"
    """Shape of the rows."""
    chosen: str = "chosen"
    """Column of the preferred side; dots reach into nested cells."""
    rejected: str = "rejected"
    """Column of the other side."""
    lists: bool = False
    """A side is a list of responses: each chosen one is better than each rejected one, all in one comparison. A cell that is no list is
    one response."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        return (self.chosen, self.rejected, *_text_columns(self), *self.number_columns)


class AbSource(SidesSource):
    """Rows with two candidates and a label that says which of them is better."""

    format: Literal["ab"]
    """Shape of the rows."""
    a: Column
    """Column of one candidate: a string, a message or a message list; dots reach into nested cells, `answers.0.text` into lists."""
    b: Column
    """Column of the other candidate."""
    label: Label
    """Which candidate is better. A row that does not say so is dropped, as `no_label` or `unknown_label`."""
    tie: Literal["drop", "half", "error"] = "drop"
    """What becomes of ties. `half`: one preference with probability 0.5, which pulls the two rewards together; `error`: refuse the data."""
    margin_from_label: bool = False
    """The margin is the label's own strength: the size of a signed number, or the difference of the scores."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        return (self.a, self.b, *_text_columns(self), *self.label.columns, *self.number_columns)


class RankedSource(TextSource):
    """Several responses to a prompt, each with a score or rank: a list in each row, or a row for each of them."""

    format: Literal["ranked"]
    """Shape of the rows."""
    responses: Column | None = None
    """Column of the list of responses: strings, messages, conversations, or objects that hold them."""
    group_by: Column | None = None
    """Where each row is one response: the column whose equal cells make one comparison, wherever its rows stand. The whole source is held
    in memory for it."""
    response: Column | None = None
    """Path of the response within an item of the list, or its column with `group_by`; None: the item itself."""
    score: Annotated[dict[str, FiniteFloat], Field(min_length=1)] | Column
    """Path of the score, or paths with their weights, such as `{helpfulness: 0.65, correctness: 0.8}`: within an item, or a column with a
    number for each response of the list. Numbers may be text. A response without them is left out."""
    lower_is_better: bool = False
    """Scores are ranks: the lowest is best."""
    policy: Literal["all", "best_vs_rest", "best_worst", "adjacent"] = "all"
    """Which pairs become preferences. `all`: every pair of different scores, which is what `plackett_luce` needs; each response is computed
    once all the same. `best_vs_rest`; `best_worst`: one pair; `adjacent`: each score over the next lower one."""
    min_gap: PositiveFloat | None = None
    """Smallest difference of scores that makes a preference. Equal scores never do."""
    max_pairs: PositiveInt | None = None
    """Most preferences of one comparison; which ones, is drawn by a hash of its row id."""
    margin_from_score: bool = False
    """The margin is the difference of the scores."""

    @property
    def score_paths(self) -> tuple[str, ...]:
        """The paths that the score is made of."""
        return (self.score,) if isinstance(self.score, str) else tuple(self.score)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        named = (self.responses,) if self.group_by is None else (self.group_by, self.response, *self.score_paths)
        return (*(column for column in named if column is not None), *_text_columns(self))

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Columns whose cells must be numbers: none, since scores may be text."""
        return ()


class TokenizedSource(SourceBase):
    """Rows that are tokens already: `input_ids_chosen` and `input_ids_rejected`, or TRL's `chosen_ids` and `rejected_ids`."""

    format: Literal["tokenized"]
    """Shape of the rows."""
    margin: str | None = None
    """Column of the margin."""
    margin_default: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Margin of rows that have none; None: such a row is an error."""

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Columns whose cells must be numbers."""
        return margin_columns(self.margin)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have, beside those of the tokens."""
        return self.number_columns


def margin_columns(margin: tuple[str, str] | str | None) -> tuple[str, ...]:
    """The columns that `margin` names."""
    return margin if isinstance(margin, tuple) else () if margin is None else (margin,)


def _text_columns(source: TextSource) -> tuple[str, ...]:
    return source.prompt_columns if source.system is None else (*source.prompt_columns, source.system)


def _format_of(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("format", "pair") if isinstance(value.get("format", "pair"), str) else None
    return getattr(value, "format", None)


Source = Annotated[
    Annotated[PairSource, Tag("pair")]
    | Annotated[AbSource, Tag("ab")]
    | Annotated[RankedSource, Tag("ranked")]
    | Annotated[TokenizedSource, Tag("tokenized")],
    Discriminator(_format_of),
]


MARGINS = ("margin", "margin_from_label", "margin_from_score")
Placed = list[tuple[KeyPath, Source]]
"""Sources with their places in the recipe."""


def sources_misfits(train: Sequence[Source], evaluation: Sequence[Source], whole_rankings: bool) -> Iterator[CrossFieldError]:
    """What is wrong with each source of a recipe, and tags that two of them share.

    Args:
        train, evaluation: the sources.
        whole_rankings: whether the objective learns rankings, which have no margins and no halves.
    """
    placed: Placed = [(("data", "train", number), source) for number, source in enumerate(train)]
    evaluated: Placed = [(("data", "eval", number), source) for number, source in enumerate(evaluation)]
    held_out = [(key, source) for key, source in placed if source.holdout]
    yield from dict([*_repeated_tags(placed), *_repeated_tags(held_out + evaluated)]).values()
    for key, source in placed + evaluated:
        yield from _source_misfits(source, key)
        yield from _format_misfits(source, key)
    for key, source in placed if whole_rankings else ():
        yield from _ranking_misfits(source, key)


def _repeated_tags(sources: Placed) -> Iterator[tuple[KeyPath, CrossFieldError]]:
    first: dict[str, KeyPath] = {}
    for key, source in sources:
        owner = first.setdefault(source.title, key)
        if owner != key:
            message = f'"{source.title}" is also the tag of {".".join(map(str, owner))}; give each source its own'
            yield key, CrossFieldError((*key, "tag"), message, (*key, "path"))


def _source_misfits(source: Source, at: KeyPath) -> Iterator[CrossFieldError]:
    yield from condition_misfits(source.filter, (*at, "filter"))
    if source.streaming and source.limit is None:
        yield CrossFieldError((*at, "streaming"), "missing `limit`; a stream is read up to a number of rows, so set it, too", at)


def _format_misfits(source: Source, at: KeyPath) -> Iterator[CrossFieldError]:
    if isinstance(source, TextSource) and isinstance(source.prompt, tuple) and set(source.prompt) & set(IMPLICIT):
        word = next(column for column in source.prompt if column in IMPLICIT)
        yield CrossFieldError((*at, "prompt"), f'"{word}" stands alone, not in a list of columns; write prompt: {word}', at)
    match source:
        case PairSource() if source.chosen == source.rejected:
            yield CrossFieldError((*at, "rejected"), f'"{source.chosen}" is the column of the chosen side too', at)
        case AbSource():
            yield from _ab_misfits(source, at)
        case RankedSource():
            yield from _ranked_misfits(source, at)


def _ab_misfits(source: AbSource, at: KeyPath) -> Iterator[CrossFieldError]:
    yield from label_misfits(source.label, (*at, "label"))
    if source.a == source.b:
        yield CrossFieldError((*at, "b"), f'"{source.a}" is the column of the other candidate too', at)
    if source.margin_from_label and source.margin is not None:
        yield CrossFieldError((*at, "margin_from_label"), "margin says where the margin is; remove one of them", at)
    if source.margin_from_label and source.label.by not in ("sign", "scores"):
        message = f"a label by {source.label.by} has no strength, only those by sign or scores; set margin, or remove it"
        yield CrossFieldError((*at, "margin_from_label"), message, at)


def _ranked_misfits(source: RankedSource, at: KeyPath) -> Iterator[CrossFieldError]:
    if source.responses is None and source.group_by is None:
        message = "missing; name the column of the list of responses, or set group_by where each row is one response"
        yield CrossFieldError((*at, "responses"), message, at)
    if source.responses is not None and source.group_by is not None:
        message = "rows hold a list of responses, or are one response each; remove group_by or responses"
        yield CrossFieldError((*at, "group_by"), message, at)
    if source.group_by is not None and source.response is None:
        yield CrossFieldError((*at, "response"), "missing; with group_by it names the column of the response", (*at, "group_by"))
    if source.max_pairs is not None and source.policy == "best_worst":
        message = "no effect: policy best_worst gives one pair; remove it, or take policy all"
        yield CrossFieldError((*at, "max_pairs"), message, at)


def _ranking_misfits(source: Source, at: KeyPath) -> Iterator[CrossFieldError]:
    objective = ("objective", "type")
    margin = next((key for key in MARGINS if getattr(source, key, None)), None)
    if margin is not None:
        yield CrossFieldError((*at, margin), "plackett_luce has no margins; remove it, or take bradley_terry", objective)
    if isinstance(source, AbSource) and source.tie == "half":
        yield CrossFieldError((*at, "tie"), "plackett_luce has no half preferences; take drop, or bradley_terry", objective)
    if isinstance(source, RankedSource) and source.policy in ("best_vs_rest", "adjacent"):
        yield CrossFieldError((*at, "policy"), "plackett_luce learns whole rankings; take all, or bradley_terry", objective)
    if isinstance(source, RankedSource) and source.max_pairs is not None:
        yield CrossFieldError(
            (*at, "max_pairs"), "plackett_luce learns whole rankings; remove it, or take bradley_terry", objective
        )
