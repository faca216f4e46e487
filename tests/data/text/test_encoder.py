"""Comparisons to tokens: the same for training, evaluation and scoring, within the length policy."""

import random
import re
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.comparison import BadRow, Comparison, Dropped, Preference, TokenizedComparison, common_prefix_length
from rmtrain.data.text.encoder import Encoder, LengthPolicy, encode_conversations, find_overlong, truncate
from rmtrain.data.text.renderer import render
from rmtrain.data.text.templates import CHAT_TEMPLATES, edge_tokens
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from tests.helpers import SENTENCES, bert_like, byte_bpe, llama_like, roberta_like, unigram_like

KINDS = [byte_bpe, llama_like, unigram_like, bert_like, roberta_like]
THINKING_TEMPLATE = (  # as qwen3 does: thoughts are re-wrapped
    "{% for m in messages %}<{{ m.role }}>"
    "{% if '</think>' in m.content %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1] }}\n</think>\n\n"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content | trim }}{% endif %}{{ eos_token }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt }}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def comparison(prompt: str, chosen: str, rejected: str, number: int = 0) -> Comparison:
    turns = (user(prompt),) if prompt else ()
    return Comparison(f"s:{number}", "s", turns, ((assistant(chosen),), (assistant(rejected),)))


def encode_all(
    rows: list[Comparison], tokenizer: PreTrainedTokenizerFast, allow_rewritten: bool = False, **limits: Any
) -> list[TokenizedComparison | Dropped]:
    """Return each comparison as tokens or, in its place, the rows that it lost."""
    checked = Encoder(tokenizer, LengthPolicy(**{"max_length": 1024, "overlong": "drop"} | limits), allow_rewritten).encode(rows)
    return [item for row in checked for item in (row.row, *row.lost) if item is not None]


def encode(row: Comparison, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> TokenizedComparison | Dropped:
    (encoded,) = encode_all([row], tokenizer, **settings)
    return encoded


TALKS = [
    [user("What is the capital of France?"), assistant("Paris")],
    [{"role": "system", "content": "Be brief."}, user("How do I bake bread?"), assistant("Mix flour, water, salt.")],
    [user("tell me a joke"), assistant("why did the chicken"), user("go on"), assistant(" To get to the other side.\n")],
    [assistant("It is 42")],
]


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_trap_04_tokens_equal_those_of_transformers(build: type, name: str) -> None:
    tokenizer = prepared(build(), name)
    edges = edge_tokens(tokenizer)
    for talk, ids in zip(TALKS, encode_conversations(TALKS, tokenizer), strict=True):
        text = render(talk, tokenizer)
        assert tokenizer(text, add_special_tokens=not edges.in_template)["input_ids"] == ids
        if build is not unigram_like:  # whose first word is another after `<s>` than after nothing
            assert tokenizer(text.removeprefix("<s>"))["input_ids"] == ids, (
                "cards of the field strip the beginning that is added again"
            )
        if edges.in_template:
            assert tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"] == ids
        assert ids[-1] == edges.end
        assert ids[-2] != edges.end
        assert tuple(ids[: len(edges.leading)]) == edges.leading
        assert len(edges.leading) == 0 or ids.count(edges.leading[0]) == 1


def test_trap_32_tokens_are_lists_of_integers() -> None:
    ids = encode_conversations(TALKS, prepared(byte_bpe(), "simple_chat"))
    assert all(type(token) is int for tokens in ids for token in tokens)
    assert encode_conversations([], prepared(byte_bpe(), "simple_chat")) == []


@pytest.mark.parametrize("build", KINDS)
def test_rows_encode_the_same_in_any_batch(build: type) -> None:
    tokenizer = prepared(build(), "simple_chat")
    rows = [comparison(*SENTENCES[number].split(" ", 2), number) for number in range(6)]
    together = encode_all(rows, tokenizer)
    assert together == [encode(row, tokenizer) for row in rows]
    for row, encoded in zip(rows, together, strict=True):
        assert isinstance(encoded, TokenizedComparison)
        sequences = [list(sequence) for sequence in encoded.sequences]
        assert sequences == encode_conversations([(*row.prompt, *side) for side in row.responses], tokenizer)
        assert encoded.prefix_length == common_prefix_length(encoded.sequences)
        assert 0 < encoded.prompt_length <= encoded.prefix_length
    assert encode_all([], tokenizer) == []


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_prompt_length_ends_before_the_response(build: type, name: str) -> None:
    tokenizer = prepared(build(), name)
    encoded = encode(comparison("How do I bake bread?", "Paris is a city", "Paris was a town"), tokenizer)
    assert isinstance(encoded, TokenizedComparison)
    prompt = tokenizer.decode(encoded.sequences[0][: encoded.prompt_length]).lower()
    rest = tokenizer.decode(encoded.sequences[0][encoded.prompt_length :]).lower()
    assert "bread" in prompt
    assert "paris" not in prompt
    assert rest.strip().startswith("paris is a city")
    shared = tokenizer.decode(encoded.sequences[0][: encoded.prefix_length]).lower()
    assert "paris" in shared, "guard: the shared prefix extends into the responses"


def test_without_prompt_its_length_is_zero() -> None:
    encoded = encode(comparison("", "Paris", "bread"), prepared(byte_bpe(), "simple_concat"))
    assert isinstance(encoded, TokenizedComparison)
    assert encoded.prompt_length == 0


def test_trap_16_rewritten_responses_are_dropped_unless_allowed() -> None:
    tokenizer = prepared(byte_bpe(), THINKING_TEMPLATE)
    rows = [comparison("q", "<think>a</think>b", "c", 0), comparison("q", " b\n", "c", 1)]
    rewritten, trimmed = encode_all(rows, tokenizer)
    assert isinstance(rewritten, Dropped)
    assert (rewritten.id, rewritten.reason) == ("s:0", "rewritten_by_template")
    assert isinstance(trimmed, TokenizedComparison), "space around a response does not count"
    allowed = encode(rows[0], tokenizer, allow_rewritten=True)
    assert isinstance(allowed, TokenizedComparison)
    assert "<think>\na\n</think>\n\nb" in tokenizer.decode(allowed.sequences[0])


def test_a_response_is_not_found_in_the_prompt() -> None:
    shouting = "{% for m in messages %}{{ m.content if m.role == 'user' else m.content | upper }}{% endfor %}"
    tokenizer = prepared(byte_bpe(), shouting)
    encoded = encode(comparison("a or b?", "a", "b"), tokenizer)
    assert isinstance(encoded, Dropped)
    assert encoded.reason == "rewritten_by_template"


def test_responses_with_equal_tokens_are_dropped() -> None:
    encoded = encode(comparison("Which?", "Paris", "PARIS"), prepared(bert_like(), "simple_chat"))
    assert isinstance(encoded, Dropped)
    assert encoded.reason == "identical"


def test_a_response_with_an_own_end_is_dropped() -> None:
    encoded = encode(comparison("q", "a<|endoftext|>", "b"), prepared(byte_bpe(), "simple_chat"))
    assert isinstance(encoded, Dropped)
    assert encoded.reason == "double_end_token"


def test_a_missing_end_token_drops_the_row() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token if messages | length == 2 else '.' }}"
    tokenizer = prepared(byte_bpe(), template)
    assert isinstance(encode(comparison("q", "a", "b"), tokenizer), TokenizedComparison)
    encoded = encode(
        Comparison("s:0", "s", (user("q"), assistant("x"), user("y")), ((assistant("a"),), (assistant("b"),))), tokenizer
    )
    assert isinstance(encoded, Dropped)
    assert encoded.reason == "text_after_reply"


def test_trap_18_overlong_rows_are_dropped_by_reason() -> None:
    tokenizer = prepared(byte_bpe(), "simple_chat")
    rows = [comparison("q", "a", "b", 0), comparison("q", "a b c " * 50, "b", 1), comparison("q " * 20, "a", "b", 2)]
    reasons = [getattr(row, "reason", None) for row in encode_all(rows, tokenizer, max_length=70, max_prompt_length=30)]
    assert reasons == [None, "too_long", "prompt_too_long"]
    cut = encode_all(rows, tokenizer, max_length=70, max_prompt_length=30, overlong="truncate_prompt_left")
    assert [getattr(row, "reason", None) for row in cut] == [None, "response_too_long", None]
    with pytest.raises(DataError) as error:
        encode_all(rows, tokenizer, max_length=70, max_prompt_length=30, overlong="error")
    message = str(error.value)
    assert message.startswith("data.overlong ")
    assert re.search(r": s:1: .* 70; s:2: .* 30;", message)


def test_leading_special_tokens_survive_truncation() -> None:
    for build in (llama_like, bert_like):
        tokenizer = prepared(build(), "simple_chat")
        row = comparison("How do I bake bread? " * 5, "Mix flour", "Paris")
        whole, cut = encode(row, tokenizer), encode(row, tokenizer, max_length=24, overlong="truncate_prompt_left")
        assert isinstance(whole, TokenizedComparison)
        assert isinstance(cut, TokenizedComparison)
        assert max(map(len, whole.sequences)) > 24 == max(map(len, cut.sequences))
        for before, after in zip(whole.sequences, cut.sequences, strict=True):
            assert after[0] == before[0] == edge_tokens(tokenizer).leading[0]
            assert list(after[1:]) == list(before[1 + len(before) - len(after) :])


def test_a_refused_role_names_the_row() -> None:
    tokenizer = prepared(
        byte_bpe(),
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[-1].content }}",
    )
    rows = [
        comparison("q", "a", "b", 0),
        Comparison("s:1", "s", ({"role": "system", "content": "x"}, user("q")), ((assistant("a"),), (assistant("b"),))),
    ]
    kept, refused = encode_all(rows, tokenizer)
    assert isinstance(kept, TokenizedComparison)
    assert isinstance(refused, Dropped)
    assert (refused.id, refused.reason) == ("s:1", "template_refused")
    assert refused.detail.endswith("TemplateError: no system role")
    with pytest.raises(DataError, match=r"^s:1, response 1: .*TemplateError: no system role$"):
        Encoder(tokenizer, LengthPolicy(None)).encode_for_scoring(rows)


def test_a_refused_response_does_not_move_the_others() -> None:
    """Of three responses the template refuses one: the other two keep their prompt and their preference."""
    refusal = "{% if 'bad' in m.content %}{{ raise_exception('no') }}{% endif %}"
    template = f"{{% for m in messages %}}{refusal}{{{{ m.role }}}}: {{{{ m.content }}}}\n{{% endfor %}}{{{{ eos_token }}}}"
    tokenizer = prepared(byte_bpe(), template)
    turns = tuple((assistant(text),) for text in ("bad", "good day", "fine day"))
    edges = (Preference(0, 1), Preference(0, 2), Preference(1, 2))
    (whole,) = Encoder(tokenizer, LengthPolicy(1024, None, "drop")).encode(
        [Comparison("s:0", "s", (user("how?"),), turns, edges)]
    )
    two = encode(Comparison("s:0", "s", (user("how?"),), turns[1:]), tokenizer)
    assert (whole.row, whole.left_out, list(whole.responses)) == (two, ("template_refused",), [1, 2])
    assert isinstance(two, TokenizedComparison)
    assert two.prompt_length > 3, "guard: the prompt is not empty"


def test_tokenized_rows_are_checked() -> None:
    """They follow the same rules as texts, and are never truncated."""
    tokenizer = prepared(byte_bpe(), "simple_chat")
    end = tokenizer.eos_token_id
    rows = [
        TokenizedComparison("t:0", "t", ([5, 6, end], [5, 7, end]), 1, 1),
        TokenizedComparison("t:1", "t", ([5, 6], [5, 7, end]), 1, 1),
        TokenizedComparison("t:2", "t", ([5, 6, end, end], [5, 7, end]), 1, 1),
        TokenizedComparison("t:3", "t", ([5, 6, end], [5, 6, end]), 2, 2),
        TokenizedComparison("t:4", "t", ([5, 99999, end], [5, 7, end]), 1, 1),
        TokenizedComparison("t:5", "t", ([5] * 9 + [end], [5, 7, end]), 1, 1),
    ]
    checked = Encoder(tokenizer, LengthPolicy(8, 1, "truncate_prompt_left")).check(rows)
    assert checked[0].row is rows[0]
    assert [lost.reason for row in checked for lost in row.lost] == [
        "missing_end_token", "double_end_token", "identical", "unknown_token", "too_long",
    ]  # fmt: skip
    assert all(len(row.lost) == (row.row is None) for row in checked)


def test_trap_16_hidden_tool_calls_are_always_dropped() -> None:
    """Also where rewritten responses are allowed."""
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"x": 2}}}]}
    row = Comparison("s:0", "s", (user("2 + 2?"),), ((calling,), (assistant("4"),)))
    for allowed in (False, True):
        lost = encode(row, prepared(byte_bpe(), "simple_chat"), allow_rewritten=allowed)
        assert isinstance(lost, Dropped)
        assert lost.reason == "hidden_by_template"
        assert "tool_calls" in lost.detail


PROMPT, END = [1, 10, 11, 12, 13], 2
ROW = TokenizedComparison("s:0", "s", ([*PROMPT, 20, END], [*PROMPT, 20, 21, 22, END]), 6, 5)


def truncated(row: TokenizedComparison, leading: int, **limits: int) -> TokenizedComparison:
    policy = LengthPolicy(overlong="truncate_prompt_left", **limits)
    assert find_overlong(row, policy, leading) == {}
    return truncate(row, policy, leading)


def lists(row: TokenizedComparison) -> list[list[int]]:
    return [list(map(int, sequence)) for sequence in row.sequences]


@pytest.mark.parametrize("overlong", ["drop", "truncate_prompt_left", "error", "cut"])
def test_a_row_within_the_limits_is_unchanged(overlong: Any) -> None:
    for policy in (LengthPolicy(9, 5, overlong), LengthPolicy(None, None, overlong)):
        assert find_overlong(ROW, policy, leading=1) == {}
        assert truncate(ROW, policy, leading=1) is ROW


@pytest.mark.parametrize("overlong", ["drop", "error"])
def test_overlong_responses_are_named_with_their_length(overlong: Any) -> None:
    faults = find_overlong(ROW, LengthPolicy(8, None, overlong), leading=1)
    assert {number: (fault.reason, *re.findall(r"\d+", fault.detail)) for number, fault in faults.items()} == {
        1: ("too_long", "9", "8")
    }
    assert list(find_overlong(ROW, LengthPolicy(6, None, overlong), leading=1)) == [0, 1]


@pytest.mark.parametrize("overlong", ["drop", "error"])
def test_an_overlong_prompt_is_a_bad_row(overlong: Any) -> None:
    with pytest.raises(BadRow) as problem:
        truncate(ROW, LengthPolicy(9, 4, overlong), leading=1)
    assert (problem.value.reason, *re.findall(r"\d+", problem.value.detail)) == ("prompt_too_long", "5", "4")


def test_truncation_removes_the_same_tokens_for_all() -> None:
    """From the beginning of the prompt, after the leading special tokens."""
    row = truncated(ROW, leading=1, max_length=7)
    assert lists(row) == [[1, 12, 13, 20, END], [1, 12, 13, 20, 21, 22, END]]
    assert (row.prefix_length, row.prompt_length, row.cut) == (4, 3, (2, 2))
    assert lists(truncated(ROW, leading=0, max_length=7))[0] == [11, 12, 13, 20, END]
    short = truncated(ROW, leading=1, max_length=9, max_prompt_length=2)
    assert lists(short) == [[1, 13, 20, END], [1, 13, 20, 21, 22, END]]


def test_a_response_is_never_truncated() -> None:
    assert lists(truncated(ROW, leading=1, max_length=5)) == [[1, 20, END], [1, 20, 21, 22, END]]
    faults = find_overlong(ROW, LengthPolicy(4, None, "truncate_prompt_left"), leading=1)
    assert [(number, fault.reason) for number, fault in faults.items()] == [(1, "response_too_long")]


def test_a_tiny_limit_keeps_leading_special_tokens() -> None:
    row = truncated(ROW, leading=2, max_length=9, max_prompt_length=1)
    assert lists(row)[0] == [1, 10, 20, END]
    assert row.prompt_length == 2


def test_trap_03_truncation_keeps_responses_and_their_difference() -> None:
    rng, cut_rows = random.Random(0), 0
    policy = LengthPolicy(10, 6, "truncate_prompt_left")
    for number in range(500):
        prompt = [1, *(rng.randrange(10, 20) for _ in range(rng.randrange(12)))]
        responses = [[*(rng.randrange(20, 23) for _ in range(rng.randrange(1, 8))), END] for _ in range(2)]
        if responses[0] == responses[1]:
            continue
        sequences = tuple(np.array(prompt + response, np.int32) for response in responses)
        row = TokenizedComparison(f"s:{number}", "s", sequences, common_prefix_length(sequences), len(prompt))
        if max(map(len, sequences)) - row.prompt_length + 1 > 10:
            assert find_overlong(row, policy, leading=1)
            continue
        assert find_overlong(row, policy, leading=1) == {}
        fitting = truncate(row, policy, leading=1)
        cut_rows += fitting is not row
        first, second = lists(fitting)
        assert first != second
        assert all(sequence[0] == 1 and len(sequence) <= 10 for sequence in (first, second))
        assert all(cut_to[-len(own) :] == own for cut_to, own in zip((first, second), responses, strict=True))
        assert fitting.prefix_length == common_prefix_length(fitting.sequences)
        assert fitting.prompt_length <= 6
    assert cut_rows > 100, "guard: rows were truncated"


def question(*responses: str, prompt: str = "What is the capital of France?") -> Comparison:
    """A row to score, with any number of responses."""
    return Comparison("row 1", "src", (user(prompt),), tuple((assistant(response),) for response in responses))


def encode_to_score(
    rows: list[Comparison], tokenizer: PreTrainedTokenizerFast, max_length: int | None = None, overlong: Any = "error"
) -> tuple[list[TokenizedComparison], list[bool]]:
    return Encoder(tokenizer, LengthPolicy(max_length, overlong=overlong)).encode_for_scoring(rows)


@pytest.mark.parametrize("made", [lambda: prepared(byte_bpe(), "simple_chat"), lambda: prepared(llama_like(), "tokenizer")])
def test_scored_tokens_are_those_of_training(made: Any) -> None:
    tokenizer, row = made(), question("Paris.", "It is Paris, I think.")
    (ours,), are_cut = encode_to_score([row], tokenizer)
    theirs = encode(row, tokenizer, max_length=512)
    assert isinstance(theirs, TokenizedComparison)
    assert lists(ours) == lists(theirs)
    assert (ours.prefix_length, are_cut) == (theirs.prefix_length, [False])
    assert ours.prefix_length > 3, "guard: the prompt is shared"


def lengths(row: TokenizedComparison) -> list[int]:
    return [len(sequence) for sequence in row.sequences]


def test_overlong_scored_rows_are_cut_or_refused() -> None:
    """They lose tokens at their beginning, each response on its own."""
    tokenizer = prepared(llama_like(), "tokenizer")
    rows = [question("Paris.", "It is Paris, I think, but I do not know."), question("No.", prompt="Why?")]
    (whole, short), _ = encode_to_score(rows, tokenizer)
    limit = min(lengths(whole)) + 2
    (fitting, same), are_cut = encode_to_score(rows, tokenizer, limit, "cut")
    assert are_cut == [True, False]
    assert lengths(fitting) == [lengths(whole)[0], limit]
    assert (fitting.cut, whole.cut, same.cut) == ((0, lengths(whole)[1] - limit), (), ())
    assert fitting.sequences[1][0] == tokenizer.bos_token_id, "leading special tokens stay"
    assert list(fitting.sequences[1][1:]) == list(whole.sequences[1][-(limit - 1) :]), "the end stays"
    assert same == short
    for one, other in ((0, 1), (1, 0)):
        assert list(fitting.sequences[one][: fitting.prefix_length]) == list(fitting.sequences[other][: fitting.prefix_length])
    with pytest.raises(DataError, match=rf"^row 1, response 2: {lengths(whole)[1]} tokens, .* {limit};"):
        encode_to_score(rows, tokenizer, limit)


def test_one_response_and_equal_ones_can_be_scored() -> None:
    tokenizer = prepared(byte_bpe(), "simple_chat")
    (one, twice), _ = encode_to_score([question("Paris."), question("Paris.", "Paris.")], tokenizer)
    assert one.prefix_length == 0
    assert twice.prefix_length == len(twice.sequences[0]) - 1
    assert list(one.sequences[0]) == list(twice.sequences[1])
