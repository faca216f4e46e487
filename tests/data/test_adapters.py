from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.adapters import adapt, lookup
from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison
from rmtrain.data.loading import load_comparisons
from rmtrain.recipe.schema import Messages, PairSource, TokenizedSource

SYSTEM = {"role": "system", "content": "be brief"}
Q, Q2 = {"role": "user", "content": "q"}, {"role": "user", "content": "q2"}
A, B = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
SHARE_A, SHARE_B = {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
HH = Messages(transcript="hh")
HH_A, HH_B = "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b"


def pair(row: dict[str, Any], **keys: Any) -> Comparison | Dropped:
    result = adapt(row, 3, PairSource(path="hh.jsonl", **keys))
    assert isinstance(result, Comparison | Dropped)
    assert (result.id, result.source) == ("hh:3", "hh")
    return result


def comparison(row: dict[str, Any], **keys: Any) -> Comparison:
    result = pair(row, **keys)
    assert isinstance(result, Comparison), result
    return result


def dropped(row: dict[str, Any], **keys: Any) -> Dropped:
    result = pair(row, **keys)
    assert isinstance(result, Dropped), result
    return result


SHAPES: list[tuple[str, dict[str, Any], dict[str, Any], list[Any]]] = [
    ("strings", {"prompt": "q", "chosen": "a", "rejected": "b"}, {}, [Q]),
    ("strings, named prompt", {"question": "q", "chosen": "a", "rejected": "b"}, {"prompt": "question"}, [Q]),
    ("strings without prompt", {"chosen": "a", "rejected": "b"}, {}, []),
    ("null prompt", {"prompt": None, "chosen": "a", "rejected": "b"}, {}, []),
    ("whole conversations", {"chosen": [Q, A], "rejected": [Q, B]}, {}, [Q]),
    ("several turns", {"chosen": [Q, A, Q2, A], "rejected": [Q, A, Q2, B]}, {}, [Q, A, Q2]),
    ("with system", {"chosen": [SYSTEM, Q, A], "rejected": [SYSTEM, Q, B]}, {}, [SYSTEM, Q]),
    ("trl style: prompt repeated", {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]}, {}, [Q]),
    ("trl hh style: first turn", {"prompt": "q", "chosen": [Q, A, Q2, A], "rejected": [Q, A, Q2, B]}, {}, [Q, A, Q2]),
    ("prompt list repeated", {"prompt": [SYSTEM, Q], "chosen": [SYSTEM, Q, A], "rejected": [SYSTEM, Q, B]}, {}, [SYSTEM, Q]),
    ("system only in sides", {"prompt": "q", "chosen": [SYSTEM, Q, A], "rejected": [SYSTEM, Q, B]}, {}, [SYSTEM, Q]),
    ("system only in prompt", {"prompt": [SYSTEM, Q], "chosen": [Q, A], "rejected": [Q, B]}, {}, [SYSTEM, Q]),
    ("prompt list, reply lists", {"prompt": [Q], "chosen": [A], "rejected": [B]}, {}, [Q]),
    ("prompt text, single messages", {"prompt": "q", "chosen": A, "rejected": B}, {}, [Q]),
    ("prompt column not wanted", {"prompt": "other", "chosen": [Q, A], "rejected": [Q, B]}, {"prompt": "implicit"}, [Q]),
    ("system column", {"sys": "be brief", "q": "q", "chosen": "a", "rejected": "b"}, {"system": "sys", "prompt": "q"}, [SYSTEM, Q]),
    ("empty system column", {"sys": "", "q": "q", "chosen": "a", "rejected": "b"}, {"system": "sys", "prompt": "q"}, [Q]),
    ("null system column", {"sys": None, "prompt": "q", "chosen": "a", "rejected": "b"}, {"system": "sys"}, [Q]),
    ("nested", {"x": {"q": ["", "q"]}, "chosen": "a", "rejected": "b"}, {"prompt": "x.q.1"}, [Q]),
    ("names with spaces", {"the prompt": "q", "best-one": "a", "rejected": "b"}, {"prompt": "the prompt", "chosen": "best-one"}, [Q]),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}], "chosen": SHARE_A, "rejected": SHARE_B},
        {"prompt": "conversations"},
        [Q],
    ),
    ("transcripts", {"chosen": HH_A, "rejected": HH_B}, {"messages": HH}, [Q]),
    ("transcript prompt", {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}, {"messages": HH}, [Q]),
    (
        "transcripts that repeat a prompt column",
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": HH_A, "rejected": HH_B},
        {"messages": HH},
        [Q],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "keys", "prompt"), [shape[1:] for shape in SHAPES], ids=[shape[0] for shape in SHAPES])
def test_every_shape_of_a_pair_gives_the_same_comparison(row: dict[str, Any], keys: dict[str, Any], prompt: list[Any]) -> None:
    result = comparison(row, **keys)
    assert list(result.prompt) == prompt
    assert result.responses == ((A,), (B,))
    assert [(edge.winner, edge.loser, edge.margin) for edge in result.preferences] == [(0, 1, 0.0)]


def test_an_implicit_prompt_never_takes_the_last_message_of_a_side() -> None:
    result = comparison({"chosen": [Q, A], "rejected": [Q, A, Q2, B]})
    assert list(result.prompt) == [Q]
    assert result.responses == ((A,), (A, Q2, B))


BAD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("empty_response", {"prompt": "q", "chosen": " \n", "rejected": "b"}, {}),
    ("empty_response", {"chosen": [Q, A], "rejected": [Q, {"role": "assistant", "content": ""}]}, {}),
    ("empty_response", {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"}, {"messages": HH}),
    ("empty_response", {"chosen": [{"role": "system", "content": ""}], "rejected": [Q, A]}, {}),
    ("empty_cell", {"prompt": "q", "chosen": None, "rejected": "b"}, {}),
    ("empty_prompt", {"prompt": "", "chosen": "a", "rejected": "b"}, {}),
    ("empty_message", {"chosen": [{"role": "user", "content": ""}, A], "rejected": [{"role": "user", "content": ""}, B]}, {}),
    ("identical", {"prompt": "q", "chosen": "a", "rejected": " a\n"}, {}),
    ("identical", {"chosen": [Q, A], "rejected": [Q, A]}, {}),
    ("different_prompts", {"chosen": [Q, A], "rejected": [Q2, B]}, {}),
    ("different_prompts", {"prompt": "other", "chosen": [Q, A], "rejected": [Q, B]}, {}),
    (
        "different_prompts",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
        {"messages": HH},
    ),
    ("not_a_transcript", {"chosen": "a", "rejected": "b"}, {"messages": HH}),
    ("role_order", {"chosen": [Q, A, Q2], "rejected": [Q, B, Q]}, {}),
    ("role_order", {"chosen": [Q, Q2, A], "rejected": [Q, Q2, B]}, {}),
    ("role_order", {"chosen": [Q, SYSTEM, A], "rejected": [Q, SYSTEM, B]}, {}),
    ("role_order", {"chosen": [A, Q, A], "rejected": [A, Q, B]}, {}),
    ("role_order", {"prompt": [Q, A], "chosen": "a", "rejected": "b"}, {}),
    ("transcript", {"chosen": HH_A, "rejected": HH_B}, {}),
    ("missing_column", {"prompt": "q", "chosen": "a"}, {}),
    ("missing_column", {"chosen": "a", "rejected": "b"}, {"prompt": "question"}),
    ("missing_column", {"chosen": "a", "rejected": "b"}, {"system": "system"}),
    ("not_messages", {"prompt": "q", "chosen": 3, "rejected": "b"}, {}),
    ("not_messages", {"prompt": "q", "chosen": "a", "rejected": "b", "system": 3}, {"system": "system"}),
]


@pytest.mark.parametrize(("reason", "row", "keys"), BAD, ids=[f"{reason} {number}" for number, (reason, _, _) in enumerate(BAD)])
def test_a_row_that_cannot_be_used_is_dropped_with_its_reason(reason: str, row: dict[str, Any], keys: dict[str, Any]) -> None:
    assert dropped(row, **keys).reason == reason


def test_a_missing_column_is_told_with_those_that_are_there() -> None:
    assert dropped({"prompt": "q", "best": "a", "rejected": "b"}).detail == 'no column "chosen"; it has: prompt, best, rejected'


def test_trap_37_responses_that_repeat_the_prompt_are_not_given_it_twice() -> None:
    row = {"prompt": "Tell me a story.", "chosen": "Tell me a story. Once", "rejected": "Tell me a story. No."}
    assert dropped(row).reason == "response_repeats_prompt"
    assert comparison(row | {"rejected": "No."}).responses[0][0]["content"] == row["chosen"], (
        "one side alone may quote the prompt"
    )
    hh_with_prompt = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": HH_A, "rejected": HH_B}
    assert dropped(hh_with_prompt).reason == "transcript"


@pytest.mark.parametrize(
    ("cells", "keys", "margin"),
    [
        ({"margin": 0.5}, {"margin": "margin"}, 0.5),
        ({"margin": 2}, {"margin": "margin"}, 2.0),
        ({"s": {"c": 3.5, "r": 3}}, {"margin": ["s.c", "s.r"]}, 0.5),
        ({"margin": None}, {"margin": "margin", "margin_default": 0.25}, 0.25),
        ({}, {"margin": "margin", "margin_default": 0.0}, 0.0),
        ({"c": 1, "r": None}, {"margin": ["c", "r"], "margin_default": 0.1}, 0.1),
        ({"margin": 9.0}, {}, 0.0),
    ],
)
def test_trap_22_a_margin_comes_from_a_column_or_two_or_the_default(
    cells: dict[str, Any], keys: dict[str, Any], margin: float
) -> None:
    assert comparison({"prompt": "q", "chosen": "a", "rejected": "b"} | cells, **keys).preferences[0].margin == margin


@pytest.mark.parametrize(
    ("cells", "keys", "words"),
    [
        ({"margin": "high"}, {}, "expected a finite number, got 'high'"),
        ({"margin": "0.5"}, {}, "expected a finite number, got '0.5'"),
        ({"margin": float("nan")}, {}, "got 'nan'"),
        ({"margin": float("inf")}, {"margin_default": 0.0}, "got 'inf'"),
        ({"margin": True}, {}, "got 'True'"),
        ({"margin": -0.5}, {}, "expected at least 0, got -0.5"),
        ({"margin": None}, {}, "no number in margin; set margin_default, or remove the row"),
        ({}, {}, "no number in margin"),
        ({"c": 1, "r": 2}, {"margin": ["c", "r"]}, "expected at least 0, got -1"),
    ],
)
def test_trap_22_a_margin_that_is_none_is_an_error_of_its_row(cells: dict[str, Any], keys: dict[str, Any], words: str) -> None:
    result = dropped({"prompt": "q", "chosen": "a", "rejected": "b"} | cells, **({"margin": "margin"} | keys))
    assert result.reason == "bad_margin"
    assert words in result.detail


TOKENS = TokenizedSource(path="tokens.parquet", format="tokenized")


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids_chosen": [5, 6, 7, 2], "input_ids_rejected": [5, 6, 8, 9, 2]},
        {"chosen_ids": [5, 6, 7, 2], "rejected_ids": [5, 6, 8, 9, 2], "chosen": "text", "rejected": "text"},
        {
            "input_ids_chosen": [5, 6, 7, 2, 0, 0],
            "attention_mask_chosen": [1, 1, 1, 1, 0, 0],
            "input_ids_rejected": [0, 5, 6, 8, 9, 2],
            "attention_mask_rejected": [0, 1, 1, 1, 1, 1],
        },
    ],
    ids=["seed page", "trl", "padded"],
)
def test_rows_that_are_tokens_already_are_taken_as_they_are(row: dict[str, Any]) -> None:
    result = adapt(row, 0, TOKENS)
    assert isinstance(result, TokenizedComparison)
    assert result.sequences == ([5, 6, 7, 2], [5, 6, 8, 9, 2])
    assert (result.id, result.prefix_length) == ("tokens:0", 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids_chosen": [1.0], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [True], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [-1], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": "1 2", "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [], "input_ids_rejected": [1]}, "empty_response"),
        ({"input_ids_chosen": [1], "attention_mask_chosen": [1, 1], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [1], "attention_mask_chosen": [2], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [1]}, "one_response"),
        ({"input_ids_chosen": None, "input_ids_rejected": [1]}, "one_response"),
        ({"chosen_ids": None, "rejected_ids": None}, "missing_column"),
        ({"tokens": [1]}, "missing_column"),
    ],
)
def test_tokens_are_checked(row: dict[str, Any], reason: str) -> None:
    result = adapt(row, 0, TOKENS)
    assert isinstance(result, Dropped)
    assert (result.id, result.reason) == ("tokens:0", reason)


def test_margins_go_with_tokens_too() -> None:
    row = {"chosen_ids": [1, 2], "rejected_ids": [3, 2], "margin": 0.5}
    result = adapt(row, 0, TokenizedSource(path="t", format="tokenized", margin="margin"))
    assert isinstance(result, TokenizedComparison)
    assert result.preferences[0].margin == 0.5


def test_a_dotted_path_finds_nested_cells_list_items_and_names_with_dots() -> None:
    row = {"a": {"b": [{"c d": 1}]}, "x.y": 2, "p": {"q.r": {"s": 3}}, "n": None}
    found = [lookup(row, path) for path in ("a.b.0.c d", "x.y", "p.q.r.s", "n", "a.b")]
    assert found == [1, 2, 3, None, [{"c d": 1}]]
    for path in ("a.b.1.c d", "a.b.-1", "a.z", "x", "n.a", "a.b.c"):
        with pytest.raises(KeyError):
            lookup(row, path)


def outcomes(source: PairSource) -> tuple[Counter[str], list[Comparison], dict[str, list[str]]]:
    rows = [row for batch in load_comparisons(source) for row in batch]
    lost = [row for row in rows if isinstance(row, Dropped)]
    reasons: dict[str, list[str]] = {}
    for row in lost:
        reasons.setdefault(row.reason, []).append(row.id.removeprefix(f"{source.label}:"))
    kept = [row for row in rows if isinstance(row, Comparison)]
    return Counter(row.reason for row in lost), kept, reasons


def test_the_real_hh_rows_are_kept_or_dropped_by_reason(shared_data: Path) -> None:
    counts, kept, rows = outcomes(PairSource(path=str(shared_data / "hh_harmless.jsonl.gz"), messages=HH))
    assert counts == {"empty_response": 4, "role_order": 3, "different_prompts": 2}
    assert rows["empty_response"] == ["86", "516", "925", "1103"]
    assert rows["different_prompts"] == ["1254", "1688"]
    assert rows["role_order"] == ["667", "763", "1319"]
    assert len(kept) == 1791
    assert all(len(response) == 1 for row in kept for response in row.responses)
    assert max(len(row.prompt) for row in kept) > 10, "guard: long dialogues are among them"


def test_all_of_the_real_sharegpt_rows_are_kept(shared_data: Path) -> None:
    counts, kept, _ = outcomes(PairSource(path=str(shared_data / "dpo_en_demo.json"), prompt="conversations"))
    assert not counts
    assert len(kept) == 299
    assert sum(row.prompt[0]["role"] == "system" for row in kept) == 80
