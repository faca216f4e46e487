from typing import Any

import pytest

from rmtrain.data.comparison import Comparison, Dropped
from rmtrain.data.rows.formats import adapt
from rmtrain.recipe.schema import Messages, PairSource

SYSTEM = {"role": "system", "content": "be brief"}
Q, Q2 = {"role": "user", "content": "q"}, {"role": "user", "content": "q2"}
A, B = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
SHARE_A, SHARE_B = {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
HH, JSON = Messages(transcript="hh"), Messages(decode_json=True)
HH_A, HH_B = "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b"


def pair(row: dict[str, Any], **keys: Any) -> Comparison | Dropped:
    result = adapt(row, "hh:3", PairSource(path="hh.jsonl", **keys))
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
    ("two columns", {"i": "q1", "j": "q2", "chosen": "a", "rejected": "b"}, {"prompt": ["i", "j"]}, [Q | {"content": "q1\nq2"}]),
    ("empty second column", {"i": "q", "j": "", "chosen": "a", "rejected": "b"}, {"prompt": ["i", "j"]}, [Q]),
    ("null second column", {"i": "q", "j": None, "chosen": "a", "rejected": "b"}, {"prompt": ["i", "j"]}, [Q]),
    ("json cells", {"prompt": '[{"role": "user", "content": "q"}]', "chosen": '"a"', "rejected": '["b"]'}, {"messages": JSON}, [Q]),
    ("lists of one text", {"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]}, {}, [Q]),
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
def test_every_pair_shape_gives_same_comparison(row: dict[str, Any], keys: dict[str, Any], prompt: list[Any]) -> None:
    result = comparison(row, **keys)
    assert list(result.prompt) == prompt
    assert result.responses == ((A,), (B,))
    assert [(edge.winner, edge.loser, edge.margin) for edge in result.preferences] == [(0, 1, 0.0)]


def test_implicit_prompt_excludes_last_message() -> None:
    """An implicit prompt never includes the last message of a response."""
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
    ("empty_prompt", {"q": None, "chosen": "a", "rejected": "b"}, {"prompt": "q"}),
    ("empty_prompt", {"q": [], "chosen": "a", "rejected": "b"}, {"prompt": "q"}),
    ("empty_prompt", {"q": "", "r": None, "chosen": "a", "rejected": "b"}, {"prompt": ["q", "r"]}),
    ("not_messages", {"q": "q", "r": 3, "chosen": "a", "rejected": "b"}, {"prompt": ["q", "r"]}),
    ("images", {"prompt": "q", "chosen": "a", "rejected": "b", "images": ["x.png"]}, {}),
    ("not_json", {"prompt": "q", "chosen": "[", "rejected": "[]"}, {"messages": JSON}),
    ("not_json", {"prompt": '["q"]', "chosen": '["\\ud83d"]', "rejected": '["b"]'}, {"messages": JSON}),
    ("empty_cell", {"prompt": '["q"]', "chosen": "", "rejected": '["b"]'}, {"messages": JSON}),
    ("empty_message", {"prompt": ["q"], "chosen": ["a"], "rejected": [None]}, {}),
    ("role_order", {"prompt": ["q", "q2"], "chosen": ["a", "a"], "rejected": ["b"]}, {}),
    ("role_order", {"prompt": "q", "chosen": ["a", "c"], "rejected": ["b", "d"]}, {}),
    ("role_order", {"chosen": ["a", "c"], "rejected": ["b", "d"]}, {}),
]


@pytest.mark.parametrize(("reason", "row", "keys"), BAD, ids=[f"{reason} {number}" for number, (reason, _, _) in enumerate(BAD)])
def test_unusable_pair_is_dropped_with_reason(reason: str, row: dict[str, Any], keys: dict[str, Any]) -> None:
    assert dropped(row, **keys).reason == reason


def test_missing_column_lists_existing_ones() -> None:
    problem = dropped({"prompt": "q", "best": "a", "rejected": "b"})
    assert problem.reason == "missing_column"
    assert '"chosen"' in problem.detail
    assert problem.detail.endswith("prompt, best, rejected")


def test_trap_37_responses_repeating_prompt_are_dropped() -> None:
    """Responses that all begin with the text of the prompt are dropped: the prompt would be there twice."""
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
        ({"c": True, "r": False}, {"margin": ["c", "r"]}, 1.0),
    ],
)
def test_trap_22_margin_from_columns_or_default(cells: dict[str, Any], keys: dict[str, Any], margin: float) -> None:
    """A margin is read from one column, is the difference of two, or is the default."""
    assert comparison({"prompt": "q", "chosen": "a", "rejected": "b"} | cells, **keys).preferences[0].margin == margin


@pytest.mark.parametrize(
    ("cells", "keys", "value"),
    [
        ({"margin": "high"}, {}, "'high'"),
        ({"margin": "0.5"}, {}, "'0.5'"),
        ({"margin": float("nan")}, {}, "'nan'"),
        ({"margin": float("inf")}, {"margin_default": 0.0}, "'inf'"),
        ({"margin": True}, {}, "'True'"),
        ({"margin": -0.5}, {}, "-0.5"),
        ({"margin": None}, {}, "margin_default"),
        ({}, {}, "margin_default"),
        ({"c": 1, "r": 2}, {"margin": ["c", "r"]}, "-1"),
    ],
)
def test_trap_22_invalid_margin_is_bad_margin(cells: dict[str, Any], keys: dict[str, Any], value: str) -> None:
    result = dropped({"prompt": "q", "chosen": "a", "rejected": "b"} | cells, **({"margin": "margin"} | keys))
    assert result.reason == "bad_margin"
    assert value in result.detail


def test_lists_of_texts_are_alternating_turns() -> None:
    row = {"prompt": ["q", "q2"], "chosen": ["a", "c"], "rejected": ["a", "d"]}
    result = comparison(row)
    assert list(result.prompt) == [Q, A, Q2]
    assert [response[0]["content"] for response in result.responses] == ["c", "d"]
    part = comparison(row | {"rejected": ["b", "d"]})
    assert list(part.prompt) == [Q], "the conversations differ from their first replies on"
    assert part.responses[1] == (B, Q2, {"role": "assistant", "content": "d"})
    encoded = {"prompt": '["q", "q2"]', "chosen": '["a", "c"]', "rejected": '["a", "d"]'}
    assert comparison(encoded, messages=JSON) == result
    assert "set lists: true" in dropped({"prompt": "q", "chosen": ["a", "c"], "rejected": ["b", "d"]}).detail


def texts(result: Comparison) -> list[str]:
    return [response[-1]["content"] for response in result.responses]


def edges(result: Comparison) -> list[tuple[str, str]]:
    names = texts(result)
    return [(names[edge.winner], names[edge.loser]) for edge in result.preferences]


def test_lists_compare_each_chosen_with_each_rejected() -> None:
    """With `lists`, each chosen response is preferred to each rejected one, all in one comparison."""
    result = comparison({"prompt": "q", "chosen": ["a", "c"], "rejected": ["b", "d", "e"]}, lists=True)
    assert list(result.prompt) == [Q]
    assert texts(result) == ["a", "c", "b", "d", "e"]
    assert edges(result) == [("a", "b"), ("a", "d"), ("a", "e"), ("c", "b"), ("c", "d"), ("c", "e")]
    one = comparison({"prompt": "q", "chosen": "a", "rejected": ["b", B | {"content": "d"}], "m": 0.5}, lists=True, margin="m")
    assert edges(one) == [("a", "b"), ("a", "d")]
    assert [edge.margin for edge in one.preferences] == [0.5, 0.5]
    whole = comparison({"chosen": [[Q, A]], "rejected": [[Q, B], [Q, A | {"content": "c"}]]}, lists=True)
    assert (list(whole.prompt), texts(whole)) == ([Q], ["a", "b", "c"])


def test_equal_responses_of_lists_are_merged() -> None:
    """Equal responses are merged, their preferences weigh together, and none is compared with itself."""
    result = comparison({"prompt": "q", "chosen": ["a", " a\n"], "rejected": ["b", "a"]}, lists=True)
    assert texts(result) == ["a", "b"]
    assert [(edge.winner, edge.loser, edge.weight) for edge in result.preferences] == [(0, 1, 2.0)]
    assert dropped({"prompt": "q", "chosen": ["a"], "rejected": ["a", "a "]}, lists=True).reason == "identical"
    empty = dropped({"prompt": "q", "chosen": [], "rejected": ["a"]}, lists=True)
    assert (empty.reason, empty.detail.split()[0]) == ("empty_cell", "chosen")
    blank = dropped({"prompt": "q", "chosen": ["a", ""], "rejected": ["b"]}, lists=True)
    assert (blank.reason, blank.detail.split()[0]) == ("empty_response", "chosen.1")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"x": 1}'}}]}
RESULT = {"role": "tool", "content": "2", "tool_call_id": "c1"}


def test_tool_calls_between_assistant_turns() -> None:
    """Calls and their results are turns between those of the assistant; calls count when responses are compared."""
    whole = comparison({"chosen": [Q, CALL, RESULT, A], "rejected": [Q, CALL, RESULT, B]})
    assert [message["role"] for message in whole.prompt] == ["user", "assistant", "tool"]
    assert whole.prompt[1]["tool_calls"] == [{"function": {"name": "add", "arguments": {"x": 1}}}]
    other = CALL | {"tool_calls": [{"function": {"name": "add", "arguments": {"x": 2}}}]}
    calls = comparison({"prompt": [Q], "chosen": [CALL], "rejected": [other]})
    assert [response[0]["tool_calls"][0]["function"]["arguments"]["x"] for response in calls.responses] == [1, 2]
    assert dropped({"prompt": [Q], "chosen": [CALL], "rejected": [CALL]}).reason == "identical"
    assert dropped({"chosen": [Q, RESULT, A], "rejected": [Q, RESULT, B]}).reason == "role_order"
    twice = {"chosen": [Q, CALL, RESULT, A], "rejected": [Q, CALL, RESULT, RESULT, B]}
    assert dropped(twice).reason == "different_prompts"
    assert "tool" in dropped(twice).detail


@pytest.mark.parametrize("before", [[Q], [SYSTEM, Q], [Q, A, Q2], []], ids=["one turn", "system", "two turns", "no turn"])
def test_lone_text_replaces_the_last_turn(before: list[dict[str, str]]) -> None:
    """`rejected_response` next to `messages`: without a prompt column, the text answers the turn before the last one."""
    row, keys = {"messages": [*before, A], "rejected_response": "b"}, {"chosen": "messages", "rejected": "rejected_response"}
    result = comparison(row, **keys)
    assert (list(result.prompt), result.responses) == (before, ((A,), (B,)))
    swapped = comparison(row, chosen=keys["rejected"], rejected=keys["chosen"])
    assert (list(swapped.prompt), swapped.responses) == (before, ((B,), (A,)))
    with_system = comparison(row | {"s": "be brief"}, system="s", **keys)
    assert list(with_system.prompt) == [SYSTEM, *(turn for turn in before if turn != SYSTEM)]


@pytest.mark.parametrize("lone", [B, [B]])
def test_lone_message_is_not_completed(lone: Any) -> None:
    """A list of messages that lacks its question is a fault of the data, which public datasets have."""
    assert dropped({"chosen": [Q, A], "rejected": lone}).reason == "different_prompts"


def test_lone_text_with_prompt_column_follows_it() -> None:
    """A prompt that the recipe names is not changed, and a conversation that ends with a question has no reply to replace."""
    named = comparison({"prompt": [Q], "chosen": [Q, A, Q2, A], "rejected": "b"})
    assert (named.prompt, named.responses) == ((Q,), ((A, Q2, A), (B,)))
    assert dropped({"chosen": [Q, A, Q2], "rejected": "b"}).reason == "role_order"
