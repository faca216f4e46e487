from typing import Any

import pytest

from rmtrain.data.messages import BadRow, split_transcript, to_messages
from rmtrain.recipe.schema import Messages

PLAIN = Messages()
HH = Messages(transcript="hh")
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(cell: Any, settings: Messages = PLAIN) -> list[dict[str, str]]:
    return list(to_messages(cell, "chosen", settings, "assistant"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a", [ASSISTANT]),
        ({"role": "user", "content": "q"}, [USER]),
        ({"from": "gpt", "value": "a"}, [ASSISTANT]),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], [USER, ASSISTANT]),
        ([{"role": "Human", "content": "q"}, {"role": "model", "content": "a"}], [USER, ASSISTANT]),
        ([{"role": "user", "value": "q", "name": "x"}, {"from": "assistant", "content": "a"}], [USER, ASSISTANT]),
        ([{"role": "user", "content": [{"type": "text", "text": "q"}]}], [USER]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}, "s"]}],
            [USER | {"content": "qrs"}],
        ),
        ([{"role": "system", "content": "  "}, USER], [USER]),
        ([{"role": "system", "content": "be kind"}, USER], [{"role": "system", "content": "be kind"}, USER]),
        ([USER | {"tool_calls": [], "images": None}], [USER]),
    ],
)
def test_every_usual_spelling_of_messages_is_understood(cell: Any, expected: list[dict[str, str]]) -> None:
    assert read(cell) == expected


def test_key_names_and_role_names_follow_the_recipe() -> None:
    settings = Messages(role_key="speaker", content_key="text", roles={"Narrator": "system", "bot": "user"})
    cell = [{"speaker": "Narrator", "text": "s"}, {"speaker": "bot", "text": "q"}, {"speaker": "assistant", "text": "a"}]
    assert [message["role"] for message in read(cell, settings)] == ["system", "user", "assistant"]
    with pytest.raises(BadRow, match=r'a message has no "speaker"; it has: role, content'):
        read([USER], settings)


@pytest.mark.parametrize(
    ("cell", "reason", "words"),
    [
        (None, "empty_cell", "chosen is null"),
        ([], "empty_cell", "chosen is an empty list"),
        (7, "not_messages", "chosen is a number; expected text, a message or a list of messages"),
        (True, "not_messages", "chosen is a boolean"),
        (["a", "b"], "not_messages", "chosen holds text; expected messages"),
        ([[USER]], "not_messages", "chosen holds a list; expected messages"),
        ([{"content": "q"}], "not_messages", 'a message has no "role"; it has: content'),
        ([{"role": "user"}], "not_messages", 'a message has no "content"; it has: role'),
        ([{"role": "tool", "content": "x"}], "unknown_role", "role 'tool' is not known; say what it is in messages.roles"),
        ([{"role": None, "content": "x"}], "unknown_role", "role 'None' is not known"),
        ([{"role": "user", "content": None}], "empty_message", "the content of a message is null"),
        ([{"role": "user", "content": 3}], "not_messages", "the content of a message is a number"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not_text", "a content part is 'image'; only text is supported"),
        ([{"role": "user", "content": [{"type": "text"}]}], "not_messages", "a content part is an object"),
        ([{"role": "user", "content": [3]}], "not_messages", "a content part is a number"),
        ([ASSISTANT | {"tool_calls": [{}]}], "unsupported_message", 'a message has "tool_calls"'),
        ([ASSISTANT | {"reasoning_content": "hm"}], "unsupported_message", 'a message has "reasoning_content"'),
        ("\n\nHuman: q\n\nAssistant: a", "transcript", "chosen looks like an HH transcript; set messages.transcript: hh"),
    ],
)
def test_what_is_no_message_is_told_by_reason_and_column(cell: Any, reason: str, words: str) -> None:
    with pytest.raises(BadRow) as problem:
        read(cell)
    assert problem.value.reason == reason
    assert words in problem.value.detail
    assert "chosen" in problem.value.detail


def test_a_transcript_becomes_its_turns() -> None:
    text = "\n\nHuman: one\n\ntwo\n\nAssistant: three Human: x\n\nHuman:\n\nAssistant: "
    turns = [("user", "one\n\ntwo"), ("assistant", "three Human: x"), ("user", ""), ("assistant", "")]
    expected = [{"role": role, "content": content} for role, content in turns]
    assert list(split_transcript(text)) == expected
    assert read(text, HH) == expected
    assert read("no transcript", HH) == [{"role": "assistant", "content": "no transcript"}]
