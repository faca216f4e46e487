"""Counts of the rows of each source: read, kept, gathered, dropped by reason; and the check that enough of them are left."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rmtrain.data.comparison import Dropped

EXAMPLES = 5
NOTHING: Mapping[str, int] = {}
UNFIT = "other_prompt_unfit"
"""Reason of a comparison with the answer to another prompt that cannot be made: the source has no such row."""
INTENTIONAL_DROPS = {
    "prepared_away": "check what `prepare` returns",
    "filtered": "loosen `filter`",
    "not_drawn": "raise `fraction`",
    "suspect": "remove its line from the file of `suspects`",
    "capped": "raise cap.rows",
    "duplicate": "remove `dedup`",
    "tie": "set tie: half (format: ab), or use finer scores",
    "below_min_gap": "lower `min_gap`",
    "not_paired": "set another `policy`",
    "zero_weight": "raise the row's weight",
    "unbalanced": "remove `balance`",
    UNFIT: "raise data.max_length, or remove `augment`",
}
"""Reasons of rows that the recipe itself leaves out, with what keeps such rows: they are not faults, and `max_drop_fraction` does not count
them."""
NO_PREFERENCE = "remove these rows, or raise data.max_drop_fraction: they hold no preference"
FILL_IN = "fill in or remove these rows"
ANOTHER_TEMPLATE = "set another data.chat_template"
REMEDIES = INTENTIONAL_DROPS | {
    "identical": NO_PREFERENCE,
    "one_response": "set `group_by` if each row is one response; otherwise remove these rows",
    "empty_response": FILL_IN,
    "empty_prompt": FILL_IN,
    "empty_cell": FILL_IN,
    "empty_message": FILL_IN,
    "different_prompts": "check that `prompt` names the right column",
    "response_repeats_prompt": "remove it from them, or set prompt: implicit",
    "role_order": "repair these conversations: user and assistant take turns, and the assistant is last",
    "unknown_role": "name the roles in messages.roles",
    "not_messages": "describe the cells in `messages`, or name other columns",
    "not_text": "remove these rows: only text can be trained on",
    "unsupported_message": "remove these rows: only text and tool calls can be trained on",
    "images": "remove these rows: only text can be trained on",
    "transcript": "set messages.transcript: hh",
    "not_a_transcript": "remove messages.transcript, or these rows",
    "messages_as_text": "or store these messages as lists",
    "bad_tools": "repair the tool definitions of these rows",
    "template_refused": f"{ANOTHER_TEMPLATE}, or remove these rows",
    "text_after_reply": ANOTHER_TEMPLATE,
    "rewritten_by_template": f"{ANOTHER_TEMPLATE}, or allow it with data.allow_rewritten",
    "hidden_by_template": f"{ANOTHER_TEMPLATE} that writes it, or remove it from these rows",
    "missing_end_token": ANOTHER_TEMPLATE,
    "double_end_token": "remove the end tokens from the text, or set another data.chat_template",
    "too_long": "raise data.max_length, or set data.overlong: truncate_prompt_left",
    "prompt_too_long": "raise data.max_prompt_length, or set data.overlong: truncate_prompt_left",
    "response_too_long": "raise data.max_length: responses are never truncated",
    "malformed_row": "repair the file and save it as UTF-8",
    "missing_column": "name a column that every row has, or remove these rows",
    "not_json": "set messages.decode_json: false, or repair these cells",
    "not_a_list": "name a column of lists in `responses`",
    "no_label": "label these rows, or remove them",
    "unknown_label": "name all values of the column in `label`",
    "no_score": "name the column of the score in `score`, or remove these rows",
    "not_a_number": "filter by a column of numbers, or repair these cells",
    "bad_margin": "repair these margins, or set margin_default",
    "bad_weight": "repair these weights",
    "bad_probability": "repair these probabilities",
    "no_target": "name the column of the score in `target`, or remove these rows",
    "unknown_target": "name all values of the column in `values`",
    "not_tokens": "name a source of token ids, or use another `format`",
    "unknown_token": "use the tokenizer that the tokens were made with",
}
"""What to change, for every reason of a drop."""


def with_remedy(reason: str, problem: str) -> str:
    """Return the problem of a dropped row with what to change, unless it says so itself."""
    remedy = REMEDIES[reason]
    return problem if remedy in problem else f"{problem}; {remedy}"


@dataclass
class SourceCount:
    """Rows of one source, as `prepare` returns them: `read` + all of `added` = `kept` + `gathered` + all of `dropped`.

    `kept` counts comparisons, each under the row whose id it has; `gathered` counts rows that are part of another row's comparison.
    `added` counts comparisons that are no rows of the source, by kind: `other_prompts`, which `augment` makes, and `repeated`, which are
    copies.
    `examples` has the first rows dropped for each reason. `left_out` counts responses, not rows, left out of kept comparisons, by reason.
    `winners` counts the labels of a source of two candidates, by the side that they call better.
    `unset` counts rows with a column that has the name of a variable of the chat template, where nothing sets that variable, by name.
    `weights` is the sum of the weights of kept comparisons, 0 where they are not normalised.
    """

    read: int = 0
    kept: int = 0
    gathered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    winners: dict[str, int] = field(default_factory=dict)
    unset: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    weights: float = 0.0

    def add(
        self,
        kept: int,
        gathered: int = 0,
        dropped: Iterable[Dropped] = (),
        left_out: Mapping[str, int] = NOTHING,
        winners: Mapping[str, int] = NOTHING,
        unset: Mapping[str, int] = NOTHING,
        added: Mapping[str, int] = NOTHING,
        weights: float = 0.0,
    ) -> None:
        """Add numbers of rows, of responses left out of them by reason, of labels by the side that won, of unset variables; and weights.

        `added` are those of the rows, kept or dropped, that the source does not have.
        """
        self.weights += weights
        self.read += kept + gathered - sum(added.values())
        self.kept += kept
        self.gathered += gathered
        for counts, more in ((self.left_out, left_out), (self.winners, winners), (self.unset, unset), (self.added, added)):
            for key, number in more.items():
                counts[key] = counts.get(key, 0) + number
        for row in dropped:
            self.read += 1
            self.dropped[row.reason] = self.dropped.get(row.reason, 0) + 1
            examples = self.examples.setdefault(row.reason, [])
            if len(examples) < EXAMPLES:
                examples.append(f"{row.id}: {row.detail}")

    def problem(self, allowed: float) -> str | None:
        """Return why the source is refused: no rows, no row kept, or a larger share than `allowed` of the wanted rows lost."""
        faults = {reason: number for reason, number in self.dropped.items() if reason not in INTENTIONAL_DROPS}
        lost = sum(faults.values())
        intended = sum(self.dropped.values()) - lost - self.dropped.get(UNFIT, 0)
        wanted = self.read - intended
        if not self.read:
            return "the source has no rows"
        if not self.kept:
            return f"all {self.read} rows were dropped: {self._reasons(self.dropped)}"
        if lost > allowed * wanted:
            excluded = f", not counting {intended} that the recipe leaves out" if intended else ""
            return (
                f"{lost} of {wanted} rows dropped ({100 * lost / wanted:.1f} %){excluded}, allowed {100 * allowed:g} %: "
                f"{self._reasons(faults)}"
            )
        return None

    def _reasons(self, dropped: Mapping[str, int]) -> str:
        ordered = sorted(dropped.items(), key=lambda item: -item[1])
        return ", ".join(f"{reason} {number} ({with_remedy(reason, self.examples[reason][0])})" for reason, number in ordered)


class Waterfall:
    """Counts of each source of a split. Held-out rows of a training source count in the evaluation split."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceCount] = {}

    def of(self, source: str) -> SourceCount:
        """Return the counts of a source, by its tag."""
        return self.sources.setdefault(source, SourceCount())

    def problems(self, max_drop_fraction: float) -> list[str]:
        """Return one line for each source that is refused, see `SourceCount.problem`."""
        checked = ((source, count.problem(max_drop_fraction)) for source, count in self.sources.items())
        return [f"{source}: {problem}" for source, problem in checked if problem is not None]

    def unset_variables(self) -> Iterator[tuple[str, str]]:
        """Yield the source and the problem for each template variable that nothing sets, although a column has its name."""
        for source, count in self.sources.items():
            for name, rows in count.unset.items():
                key = "tools: tools" if name == "tools" else f"template_columns: {{{name}: {name}}}"
                problem = f"the chat template reads {name}, a column of {rows:,} rows, and nothing passes it on; set {key}"
                yield source, problem

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values, by source; `added` only where it counts something."""
        # an artifact without added comparisons has the same bytes as one that was made before there were any
        return {
            source: {name: value for name, value in vars(count).items() if name != "added" or value}
            for source, count in self.sources.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the waterfall that `to_json` wrote."""
        waterfall = cls()
        waterfall.sources = {source: SourceCount(**count) for source, count in values.items()}
        return waterfall
