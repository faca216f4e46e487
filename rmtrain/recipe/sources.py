"""The vocabulary of one dataset entry: where rows come from, and what their columns mean."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, PositiveFloat, PositiveInt, PrivateAttr, Tag

from rmtrain.recipe.hook import Hook
from rmtrain.recipe.labels import Column, Label
from rmtrain.recipe.section import Section, Share
from rmtrain.recipe.selection import Cap, Condition

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
