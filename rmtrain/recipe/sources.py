"""The vocabulary of one dataset entry: where rows come from, and what their columns mean."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag

from rmtrain.recipe.section import Section, Share

DATA_SUFFIXES = (".gz", ".json", ".jsonl", ".csv", ".parquet")


class Messages(Section):
    """How cells of a source become messages. `role`/`content` and `from`/`value` are understood without it."""

    role_key: str = "role"
    """Key of a message's role."""
    content_key: str = "content"
    """Key of a message's text."""
    roles: dict[str, Literal["system", "user", "assistant"]] = Field(default={})
    """Further role names, such as `{questioner: user}`, beside the common aliases (human, gpt, bot, ...)."""
    transcript: Literal["hh"] | None = None
    """`hh`: strings are Anthropic transcripts, `\\n\\nHuman: ... \\n\\nAssistant: ...`, split into messages."""


class SourceBase(Section):
    """One dataset: where its rows come from."""

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
    holdout: Share | None = None
    """Share of this source's prompts, chosen by hash, that is not trained on but evaluated."""

    @property
    def label(self) -> str:
        """`tag`, or the last part of `path` without the suffixes of data files."""
        if self.tag is not None:
            return self.tag
        name = self.path.rstrip("/").rpartition("/")[2] or self.path
        while name.endswith(DATA_SUFFIXES):
            name = name.rpartition(".")[0]
        return name or self.path


class PairSource(SourceBase):
    """Rows with a chosen and a rejected side: strings, single messages, or message lists."""

    format: Literal["pair"] = "pair"
    """Shape of the rows."""
    chosen: str = "chosen"
    """Column of the preferred side; dots reach into nested cells."""
    rejected: str = "rejected"
    """Column of the other side."""
    prompt: str = "auto"
    """Column of the prompt; `implicit`: the common beginning of both sides; `auto`: column `prompt` if there is one, else implicit."""
    system: str | None = None
    """Column of a system message; an empty cell means no system turn."""
    margin: Annotated[tuple[str, str], Field(strict=False)] | str | None = None
    """Column of the margin, or two score columns `[chosen_score, rejected_score]` whose difference it is."""
    margin_default: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Margin of rows that have none; None: such a row is an error."""
    messages: Messages = Messages()
    """How cells become messages."""
    group_by_prompt: bool = False
    """Gather the rows of one prompt into one comparison, with all their preferences, so that each different response is computed once
    (arXiv:2203.02155, section 3.5). It then counts as one comparison. The whole source is held in memory for it."""


class TokenizedSource(SourceBase):
    """Rows that are tokens already: `input_ids_chosen` and `input_ids_rejected`, or TRL's `chosen_ids` and `rejected_ids`."""

    format: Literal["tokenized"]
    """Shape of the rows."""
    margin: str | None = None
    """Column of the margin."""
    margin_default: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Margin of rows that have none; None: such a row is an error."""


def _format_of(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("format", "pair") if isinstance(value.get("format", "pair"), str) else None
    return getattr(value, "format", None)


Source = Annotated[
    Annotated[PairSource, Tag("pair")] | Annotated[TokenizedSource, Tag("tokenized")],
    Discriminator(_format_of),
]
