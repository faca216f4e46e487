"""One dataset of a recipe: where its rows come from, which rows are used, and the meaning of their columns."""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, PositiveFloat, PositiveInt

from rmtrain.recipe.preference_labels import Label, label_text, with_text_keys
from rmtrain.recipe.section import Column, Conflict, Hooked, Section, Share, kind, kind_by

DATA_SUFFIXES = (".gz", ".json", ".jsonl", ".csv", ".tsv", ".parquet")
IMPLICIT = ("auto", "implicit")
"""Values of `prompt` that are not columns."""
RESERVED_VARIABLES = (
    *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)
"""Names that `apply_chat_template` takes for itself."""
RESAMPLING = ("balance", "augment", "repeat")
"""Keys of a source that change its training comparisons only, in the order in which they act."""
TESTS = ("equals", "is_not", "one_of", "at_least", "at_most")
"""Keys of a condition that compare its cell."""

Value = str | bool | int | float
Bound = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Condition(Section):
    """A test of one column. A row without the column is dropped as faulty; a null cell passes `is_not` only."""

    column: Column
    """Column to test; dots reach into nested cells."""
    equals: Value | None = None
    """The cell equals this. Text that spells a number, as in CSV, equals the number."""
    is_not: Value | None = None
    """The cell is anything but this."""
    one_of: Annotated[tuple[Value, ...], Field(strict=False, min_length=1)] | None = None
    """The cell is one of these."""
    at_least: Bound | None = None
    """The cell is a number, or text that spells one, not below this."""
    at_most: Bound | None = None
    """The cell is a number, or text that spells one, not above this."""

    @property
    def criteria(self) -> dict[str, Value | tuple[Value, ...]]:
        """The tests that are set, with the values that the cell is compared with: exactly one in a valid recipe."""
        return {name: getattr(self, name) for name in TESTS if getattr(self, name) is not None}

    def conflicts(self) -> Iterator[Conflict]:
        """A condition is one test."""
        names = list(self.criteria)
        if len(names) != 1:
            message = f"expected exactly one of {', '.join(TESTS)}, got {' and '.join(names) or 'none'}; for a range write two conditions"
            yield Conflict(tuple(names[1:2]), message)


class Cap(Section):
    """Maximum number of rows for each value of a column."""

    by: Column
    """The column, such as the id of a post or of a prompt; dots reach into nested cells."""
    rows: PositiveInt
    """Maximum number of rows with the same value; the first ones are kept."""


class Fold(Section):
    """One of several equal parts of the prompts, for cross-validation: each prompt is in exactly one of them."""

    number: PositiveInt
    """Number of the part that is held out, from 1."""
    of: Annotated[int, Field(ge=2, le=1000)]
    """Number of parts."""

    def conflicts(self) -> Iterator[Conflict]:
        """There is such a part."""
        if self.number > self.of:
            yield Conflict(("number",), f"expected at most {self.of}, the number of parts, got {self.number}")


class Suspects(Section):
    """Rows whose labels are probably wrong, as `rmtrain audit` lists them, and what becomes of them."""

    file: Annotated[str, Field(min_length=1)]
    """JSON Lines of an audit, `suspects.jsonl`. Lines of other sources are ignored; remove those of labels that you find right."""
    labels: Literal["drop", "flip"] = "drop"
    """Leave these rows out, or turn their preferences around."""


class Augment(Section):
    """Comparisons that are made of the rows of a source, to train on in addition to them."""

    other_prompts: Annotated[float, Field(gt=0, le=1)]
    """Share of the training comparisons, chosen by hash, of which another one is made: their chosen response is better than the chosen
    response to another prompt of the source (RRM, arXiv:2409.13156). Both are good answers, so that length and style do not decide, and
    only the prompt does. It has no margin."""


class Messages(Section):
    """How cells of a source become messages. `role`/`content` and `from`/`value` are understood without it."""

    role_key: str = "role"
    """Key of a message's role."""
    content_key: str = "content"
    """Key of a message's text."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default={})
    """Further role names, such as `{questioner: user}`, in addition to the common aliases (human, gpt, bot, ...)."""
    transcript: Literal["hh"] | None = None
    """`hh`: strings are Anthropic transcripts, `\\n\\nHuman: ... \\n\\nAssistant: ...`, split into messages."""
    decode_json: bool = False
    """Text cells are JSON, such as messages in a CSV file. A list of texts, with or without this key, is a list of turns: the turns of the
    prompt and those of a response alternate."""


class SourceBase(Hooked):
    """One dataset: where its rows come from, and which of them are used.

    The order is: the first `limit` rows are read, `prepare` changes them, `filter` tests them, and their format makes comparisons of them,
    whose labels `suspects` corrects; `fraction`, `holdout` and `fold` choose by prompt, unusable comparisons are dropped, and then `dedup`
    and `cap` keep the first ones. What is left to train on is changed by `balance`, `augment` and `repeat`, in this order; what is held
    out is not.
    """

    path: Annotated[str, Field(min_length=1)]
    """Hub dataset id, local file (json, jsonl, csv, tsv, parquet; also .gz) or local directory. Patterns belong into `data_files`."""
    name: str | None = None
    """Configuration of a Hub dataset."""
    split: str | None = None
    """Split to read. Can be omitted when there is only one."""
    revision: str | None = None
    """Commit, tag or branch of a Hub dataset."""
    data_dir: str | None = None
    """Subdirectory of the dataset to read."""
    data_files: Annotated[tuple[str, ...], Field(strict=False)] | str | None = None
    """File names or patterns within the dataset or directory."""
    tag: Annotated[str, Field(min_length=1)] | None = None
    """Name of this source in row ids and per-source numbers; `null`: the last part of `path`."""
    limit: PositiveInt | None = None
    """Number of rows to read; `null`: all."""
    streaming: bool = False
    """Read a Hub dataset over the network instead of downloading it, for datasets larger than the disk. Needs `limit`."""
    prepare: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*:[A-Za-z_]\w*$")] | None = None
    """`module:function`: your own function, from the file `module.py` next to the recipe, that takes a row and returns a row, a list of
    rows, or None to skip the row. Rows of a list have the ids `tag:12.0`, `tag:12.1`, and each counts as one row."""
    filter: Annotated[tuple[Condition, ...], Field(strict=False)] = ()
    """Keep only rows that pass all conditions, such as `[{column: score_ratio, at_least: 2.0}, {column: status, is_not: tie}]`."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the prompts to keep, chosen by hash: the same prompts in any order of the rows."""
    cap: Cap | None = None
    """Maximum number of rows for each value of a column, such as `{by: post_id, rows: 5}`."""
    dedup: bool = False
    """Keep only the first of several comparisons with the same prompt, responses and preferences; case and spacing do not count."""
    holdout: Share | None = None
    """Share of this source's prompts, chosen by hash, that is used for evaluation instead of training."""
    fold: Fold | None = None
    """Also hold out one of several equal parts of the other prompts, such as `{number: 1, of: 5}`, for cross-validation."""
    weight: Column | None = None
    """Column of the weight of each row in the loss, 0 or more; rows of weight 0 are left out. Weights are divided by their mean, so that
    a source counts as much as without them. Accuracies and intervals do not depend on weights, losses do."""
    raw_weights: bool = False
    """Use weights as they are, without dividing them by their mean."""
    balance: Literal["longer"] | None = None
    """`longer`: leave out training comparisons, chosen by hash, until the longer response, in tokens, wins exactly half of those that
    differ in length. Of more than two responses the best is compared with the worst."""
    repeat: Annotated[float, Field(ge=1, le=100)] = 1.0
    """Number of times that each training comparison is used in an epoch. Of 2.5, each is used twice, and half of them, chosen by hash, a
    third time. Copies have the ids `tag:12+2`, `tag:12+3`. Below 1, use `fraction`."""

    @property
    def title(self) -> str:
        """`tag`, or the last part of `path` without the suffixes of data files."""
        if self.tag is not None:
            return self.tag
        name = self.path.rstrip("/").rpartition("/")[2] or self.path
        while name.endswith(DATA_SUFFIXES):  # `rows.jsonl.gz` has two; `pairs.v2` keeps its version
            name = name.rpartition(".")[0]
        return name or self.path

    @property
    def holds_out(self) -> bool:
        """Whether some of the prompts are used for evaluation instead of training."""
        return bool(self.holdout) or self.fold is not None

    @property
    def resampling_keys(self) -> tuple[str, ...]:
        """The keys that change which comparisons are trained on and have no meaning for evaluation, as far as they are set."""
        return tuple(name for name in RESAMPLING if getattr(self, name, None) not in (None, 1))

    @property
    def place(self) -> str:
        """The source in messages about its files: `path`, after `tag` where it has one."""
        return self.path if self.tag is None else f"{self.tag}: {self.path}"

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Columns whose cells must be numbers: those of the margin. Scores may be text."""
        margin = getattr(self, "margin", None)
        return margin if isinstance(margin, tuple) else () if margin is None else (margin,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return (*self.number_columns, *(() if self.weight is None else (self.weight,)))

    def conflicts(self) -> Iterator[Conflict]:
        """A stream has an end, and only weights can be raw."""
        if self.streaming and self.limit is None:
            yield Conflict(("streaming",), "missing `limit`; set the number of rows to read from the stream")
        if self.raw_weights and self.weight is None:
            yield Conflict(("raw_weights",), "there are no weights; set weight to their column, or remove this key")


def variable_problem(name: str) -> str | None:
    """Return why a template variable cannot have this name, if it cannot."""
    if not (name.isidentifier() and name.isascii()):
        return "expected the name of a template variable: letters, digits and _"
    if name in RESERVED_VARIABLES or name.endswith("_token"):
        return "the chat template has a value of its own for this variable; name another one"
    return None


class TextSource(SourceBase):
    """Keys that all formats with text share."""

    prompt: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)] | Column = "auto"
    """Column of the prompt, or several columns of text that become its lines; dots reach into nested cells. `implicit`: the common
    beginning of the responses; `auto`: column `prompt` if there is one, otherwise `implicit`."""
    system: str | None = None
    """Column of a system message; an empty cell means no system turn."""
    tools: Column | None = None
    """Column of the tools that the model may call, for the variable `tools` of the chat template: a list of definitions, or JSON text of
    one. Null or an empty list means no tools."""
    template_columns: dict[str, Column] = Field(default={})
    """Column of each further variable of the chat template, such as `{documents: docs}`. A null cell leaves the variable unset."""
    messages: Messages = Messages()
    """How cells become messages."""
    group_by_prompt: bool = False
    """Combine the rows with the same prompt into one comparison with all their preferences, so that each different response is computed
    once (arXiv:2203.02155, section 3.5). It then counts as one comparison. The whole source is held in memory for it."""

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns of an explicit prompt."""
        if isinstance(self.prompt, tuple):
            return self.prompt
        return () if self.prompt in IMPLICIT else (self.prompt,)

    @property
    def variables(self) -> dict[str, str]:
        """Column of each variable of the chat template."""
        return self.template_columns if self.tools is None else {"tools": self.tools, **self.template_columns}

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns of the prompt, of the system message and of template variables."""
        system = () if self.system is None else (self.system,)
        return (*self.prompt_columns, *system, *self.variables.values())

    def conflicts(self) -> Iterator[Conflict]:
        """`auto` and `implicit` are not columns of a list; template variables have names of their own."""
        yield from super().conflicts()
        if "tools" in self.template_columns:
            yield Conflict(("template_columns", "tools"), "this variable has a key of its own; set tools: COLUMN")
        for name in self.template_columns:
            if problem := variable_problem(name):
                yield Conflict(("template_columns", name), problem)
        for word in IMPLICIT:
            if isinstance(self.prompt, tuple) and word in self.prompt:
                yield Conflict(("prompt",), f'"{word}" cannot be combined with columns; write prompt: {word}')


class ComparedSource(TextSource):
    """Keys of the formats with text whose rows have a better response."""

    augment: Augment | None = None
    """Comparisons to make in addition to those of the rows; `null`: none. They have ids such as `tag:12+other`."""
    suspects: Suspects | None = None
    """Rows whose labels are probably wrong, such as `{file: runs/hh-audit/suspects.jsonl, labels: flip}`; `null`: none."""


class SidesSource(ComparedSource):
    """Keys of the formats whose rows have two sides."""

    margin: Annotated[tuple[str, str], Field(strict=False)] | str | None = None
    """Column of the margin, or the score columns of the two sides, `[chosen_score, rejected_score]` or `[a_score, b_score]`: the margin is
    the score of the better side minus that of the other. A tie has no margin."""
    margin_default: NonNegative | None = None
    """Margin of rows without one; `null`: such a row is an error."""


class PairSource(SidesSource):
    """Rows with a chosen and a rejected side: strings, single messages, or message lists."""

    format: Literal["pair"] = "pair"
    """Shape of the rows."""
    chosen: str = "chosen"
    """Column of the preferred side; dots reach into nested cells."""
    rejected: str = "rejected"
    """Column of the other side."""
    lists: bool = False
    """A side is a list of responses: each chosen one is better than each rejected one, all in one comparison. A cell that is not a list is
    one response."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return (self.chosen, self.rejected, *self.text_columns, *super().columns)

    def conflicts(self) -> Iterator[Conflict]:
        """The sides have different columns."""
        yield from super().conflicts()
        if self.chosen == self.rejected:
            yield Conflict(("rejected",), f'"{self.chosen}" is also the column of the chosen side; name another one')


class AbSource(SidesSource):
    """Rows with two candidates and a label for the better one."""

    format: Literal["ab"]
    """Shape of the rows."""
    a: Column
    """Column of one candidate: a string, a message or a message list; dots reach into nested cells, `answers.0.text` into lists."""
    b: Column
    """Column of the other candidate."""
    label: Label
    """The better candidate. A row without a usable label is dropped, as `no_label` or `unknown_label`."""
    tie: Literal["drop", "half", "error"] = "drop"
    """Treatment of ties. `half`: one preference with probability 0.5, which pulls the two rewards together; `error`: refuse the data. Soft
    labels have no ties: a probability of 0.5 is kept."""
    margin_from_label: bool = False
    """The margin is the label's own strength: the size of a signed number, or the difference of the scores."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return (self.a, self.b, *self.text_columns, *self.label.columns, *super().columns)

    def conflicts(self) -> Iterator[Conflict]:
        """The candidates have different columns, and the margin has one origin."""
        yield from super().conflicts()
        if self.a == self.b:
            yield Conflict(("b",), f'"{self.a}" is also the column of the other candidate; name another one')
        if self.label.is_soft and self.tie == "error":
            yield Conflict(("tie",), "a soft label has no ties: 0.5 is a probability as any other; remove this key")
        if self.margin_from_label and self.margin is not None:
            yield Conflict(("margin_from_label",), "cannot be combined with margin; remove one of them")
        if self.margin_from_label and self.label.by not in ("sign", "scores"):
            message = f"a label by {self.label.by} has no strength, only labels by sign or scores; set margin, or remove this key"
            yield Conflict(("margin_from_label",), message)


class RankedSource(ComparedSource):
    """Several responses to a prompt, each with a score or rank: a list in each row, or one row for each response."""

    format: Literal["ranked"]
    """Shape of the rows."""
    responses: Column | None = None
    """Column of the list of responses: strings, messages, conversations, or objects that contain them."""
    group_by: Column | None = None
    """Set this where each row is one response: rows with equal cells in this column form one comparison, in whatever order they come.
    The whole source is held in memory for it."""
    response: Column | None = None
    """Path of the response within an item of the list, or its column with `group_by`; `null`: the item itself."""
    score: Annotated[dict[str, FiniteFloat], Field(min_length=1)] | Column
    """Path of the score, or paths with their weights, such as `{helpfulness: 0.65, correctness: 0.8}`: within an item, or a column with a
    number for each response of the list. Numbers may be text, and true is 1. A response without a
    score is left out."""
    lower_is_better: bool = False
    """Scores are ranks: the lowest is best."""
    policy: Literal["all", "best_vs_rest", "best_worst", "adjacent"] = "all"
    """Pairs that become preferences. `all`: every pair of different scores, as `plackett_luce` needs; each response is still computed
    only once. `best_vs_rest`; `best_worst`: one pair; `adjacent`: each score over the next lower one."""
    min_gap: PositiveFloat | None = None
    """Smallest difference of scores that makes a preference. Equal scores never do."""
    max_pairs: PositiveInt | None = None
    """Maximum number of preferences in one comparison; they are drawn by a hash of its row id."""
    margin_from_score: bool = False
    """The margin is the difference of the scores."""

    @property
    def score_paths(self) -> tuple[str, ...]:
        """Paths that make up the score."""
        return (self.score,) if isinstance(self.score, str) else tuple(self.score)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        named = (self.responses,) if self.group_by is None else (self.group_by, self.response, *self.score_paths)
        return (*(column for column in named if column is not None), *self.text_columns, *super().columns)

    def conflicts(self) -> Iterator[Conflict]:
        """The responses of a prompt are in one row or in several."""
        yield from super().conflicts()
        if self.responses is None and self.group_by is None:
            message = "missing; name the column of the list of responses, or set group_by where each row is one response"
            yield Conflict(("responses",), message)
        if self.responses is not None and self.group_by is not None:
            yield Conflict(("group_by",), "cannot be combined with responses; remove one of them")
        if self.group_by is not None and self.response is None:
            yield Conflict(("response",), "missing; with group_by it names the column of the response", ("group_by",))
        if self.max_pairs is not None and self.policy == "best_worst":
            yield Conflict(("max_pairs",), "no effect: policy best_worst gives one pair; remove it, or set policy to all")
        if self.group_by is not None and self.weight is not None:
            yield Conflict(("weight",), "with group_by a row is one response, and weights are those of comparisons; remove it")
        if self.group_by is not None and self.suspects is not None:
            message = "with group_by a row is one response, and labels are those of comparisons; remove it"
            yield Conflict(("suspects",), message)


class ScoredSource(TextSource):
    """Responses with targets: what their rewards should be, such as a rating, or whether they are right. One response or a list in a row.

    `objective.type: regression` or `binary` learns them.
    """

    format: Literal["scored"]
    """Shape of the rows."""
    responses: Column | None = None
    """Column of a list of responses: strings, messages, conversations, or objects that contain them."""
    response: Column | None = None
    """Column of the response, where each row has one; with `responses`, the path of the response within an item of the list."""
    target: Column
    """Column of the target; with `responses`, its path within an item, or a column with a target for each response of the list."""
    values: Annotated[dict[str, FiniteFloat], BeforeValidator(with_text_keys)] = Field(default={})
    """Number of each value of the column, such as `{good: 1, bad: 0}` or `{👍: 1, 👎: 0}`; any other value is then a fault. Without it,
    cells are numbers, and true is 1."""
    scale: FiniteFloat = 1.0
    """Factor of the targets: a target is `scale * number + offset`."""
    offset: FiniteFloat = 0.0
    """Added to the targets."""

    @cached_property
    def numbers(self) -> dict[str, float]:
        """`values` by their `label_text`."""
        return {label_text(value): number for value, number in self.values.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        named = (self.response, self.target) if self.responses is None else (self.responses,)
        return (*(column for column in named if column is not None), *self.text_columns, *super().columns)

    def conflicts(self) -> Iterator[Conflict]:
        """A row has responses, and targets differ."""
        yield from super().conflicts()
        if self.responses is None and self.response is None:
            yield Conflict(("response",), "missing; name the column of the response, or responses for a list of them")
        if not self.scale:
            yield Conflict(("scale",), "expected a number other than 0, which would make all targets equal")
        if self.balance is not None:
            yield Conflict(("balance",), "rows with targets have no better response; remove it")


class TokenizedSource(SourceBase):
    """Rows of tokens: `input_ids_chosen` and `input_ids_rejected`, or TRL's `chosen_ids` and `rejected_ids`."""

    format: Literal["tokenized"]
    """Shape of the rows."""
    margin: str | None = None
    """Column of the margin."""
    margin_default: NonNegative | None = None
    """Margin of rows without one; `null`: such a row is an error."""


Source = Annotated[
    Annotated[PairSource, kind("pair")]
    | Annotated[AbSource, kind("ab")]
    | Annotated[RankedSource, kind("ranked")]
    | Annotated[ScoredSource, kind("scored")]
    | Annotated[TokenizedSource, kind("tokenized")],
    kind_by("format", default="pair"),
]
"""An entry of `data.train` or `data.eval`."""
