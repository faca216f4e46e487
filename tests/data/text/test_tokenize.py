"""Comparisons to tokens: the same for training, evaluation and scoring."""

import random
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.comparison import PAIR, BadRow, Comparison, Dropped, TokenizedComparison, common_prefix_length
from rmtrain.data.text.templates import CHAT_TEMPLATES, edge_tokens, render
from rmtrain.data.text.tokenize import Encoder, encode_comparisons, encode_conversations, fit_prompt, overlong
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.evaluation.scorer import Limit, ScoreRequest, Turns, encode
from rmtrain.recipe.schema import Data, PairSource
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


def data(**settings: Any) -> Data:
    return Data(train=[{"path": "x"}], **settings)


def encode(row: Comparison, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> TokenizedComparison | Dropped:
    (encoded,) = encode_comparisons([row], tokenizer, data(**settings))
    return encoded


TALKS = [
    [user("What is the capital of France?"), assistant("Paris")],
    [{"role": "system", "content": "Be brief."}, user("How do I bake bread?"), assistant("Mix flour, water, salt.")],
    [user("tell me a joke"), assistant("why did the chicken"), user("go on"), assistant(" To get to the other side.\n")],
    [assistant("It is 42")],
]


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_trap_04_what_is_trained_on_is_what_consumers_serve(build: type, name: str) -> None:
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
def test_a_batch_gives_what_each_row_alone_gives_and_what_conversations_give(build: type) -> None:
    tokenizer = prepared(build(), "simple_chat")
    rows = [comparison(*SENTENCES[number].split(" ", 2), number) for number in range(6)]
    together = encode_comparisons(rows, tokenizer, data())
    assert together == [encode(row, tokenizer) for row in rows]
    for row, encoded in zip(rows, together, strict=True):
        assert isinstance(encoded, TokenizedComparison)
        sequences = [list(sequence) for sequence in encoded.sequences]
        assert sequences == encode_conversations([(*row.prompt, *side) for side in row.responses], tokenizer)
        assert encoded.prefix_length == common_prefix_length(encoded.sequences)
        assert 0 < encoded.prompt_length <= encoded.prefix_length
    assert encode_comparisons([], tokenizer, data()) == []


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_the_prompt_is_what_stands_before_the_response(build: type, name: str) -> None:
    tokenizer = prepared(build(), name)
    encoded = encode(comparison("How do I bake bread?", "Paris is a city", "Paris was a town"), tokenizer)
    assert isinstance(encoded, TokenizedComparison)
    prompt = tokenizer.decode(encoded.sequences[0][: encoded.prompt_length]).lower()
    rest = tokenizer.decode(encoded.sequences[0][encoded.prompt_length :]).lower()
    assert "bread" in prompt
    assert "paris" not in prompt
    assert rest.strip().startswith("paris is a city")
    shared = tokenizer.decode(encoded.sequences[0][: encoded.prefix_length]).lower()
    assert "paris" in shared, "guard: the shared prefix goes on into the responses"


def test_a_row_without_prompt_has_a_prompt_of_no_tokens() -> None:
    encoded = encode(comparison("", "Paris", "bread"), prepared(byte_bpe(), "simple_concat"))
    assert isinstance(encoded, TokenizedComparison)
    assert encoded.prompt_length == 0


def test_trap_16_a_response_that_the_template_rewrites_is_dropped_unless_allowed() -> None:
    tokenizer = prepared(byte_bpe(), THINKING_TEMPLATE)
    rows = [comparison("q", "<think>a</think>b", "c", 0), comparison("q", " b\n", "c", 1)]
    rewritten, trimmed = encode_comparisons(rows, tokenizer, data())
    assert isinstance(rewritten, Dropped)
    assert (rewritten.id, rewritten.reason) == ("s:0", "rewritten_by_template")
    assert isinstance(trimmed, TokenizedComparison), "space around a response is no part of it"
    allowed = encode(rows[0], tokenizer, allow_rewritten=True)
    assert isinstance(allowed, TokenizedComparison)
    assert "<think>\na\n</think>\n\nb" in tokenizer.decode(allowed.sequences[0])


def test_a_response_is_not_found_in_the_prompt() -> None:
    only_prompts = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}{{ messages | length }}"
    tokenizer = prepared(byte_bpe(), only_prompts)
    encoded = encode(comparison("a or b?", "a", "b"), tokenizer)
    assert isinstance(encoded, Dropped)
    assert encoded.reason == "rewritten_by_template"


def test_identical_tokens_are_dropped_though_the_texts_differ() -> None:
    encoded = encode(comparison("Which?", "Paris", "PARIS"), prepared(bert_like(), "simple_chat"))
    assert isinstance(encoded, Dropped)
    assert (encoded.reason, encoded.detail) == ("identical", "the responses have the same tokens")


def test_a_response_that_ends_in_the_end_token_itself_is_dropped() -> None:
    encoded = encode(comparison("q", "a<|endoftext|>", "b"), prepared(byte_bpe(), "simple_chat"))
    assert isinstance(encoded, Dropped)
    assert encoded.reason == "double_end_token"


def test_a_template_that_does_not_always_end_is_found_row_by_row() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token if messages | length == 2 else '.' }}"
    tokenizer = prepared(byte_bpe(), template)
    assert isinstance(encode(comparison("q", "a", "b"), tokenizer), TokenizedComparison)
    encoded = encode(
        Comparison("s:0", "s", (user("q"), assistant("x"), user("y")), ((assistant("a"),), (assistant("b"),))), tokenizer
    )
    assert isinstance(encoded, Dropped)
    assert encoded.reason == "missing_end_token"


def test_trap_18_over_long_rows_are_counted_by_reason_and_never_cut() -> None:
    tokenizer = prepared(byte_bpe(), "simple_chat")
    rows = [comparison("q", "a", "b", 0), comparison("q", "a b c " * 50, "b", 1), comparison("q " * 20, "a", "b", 2)]
    reasons = [
        getattr(row, "reason", None) for row in encode_comparisons(rows, tokenizer, data(max_length=70, max_prompt_length=30))
    ]
    assert reasons == [None, "too_long", "prompt_too_long"]
    cut = encode_comparisons(rows, tokenizer, data(max_length=70, max_prompt_length=30, overlong="truncate_prompt_left"))
    assert [getattr(row, "reason", None) for row in cut] == [None, "response_too_long", None]
    with pytest.raises(DataError) as error:
        encode_comparisons(rows, tokenizer, data(max_length=70, max_prompt_length=30, overlong="error"))
    message = str(error.value)
    assert message.startswith("data.overlong is error, and rows are too long: s:1: ")
    assert "over max_length 70; s:2: prompt of" in message


def test_the_beginning_of_a_sequence_survives_the_cut() -> None:
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


def test_a_template_that_refuses_a_role_names_the_row() -> None:
    tokenizer = prepared(
        byte_bpe(),
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[-1].content }}",
    )
    rows = [
        comparison("q", "a", "b", 0),
        Comparison("s:1", "s", ({"role": "system", "content": "x"}, user("q")), ((assistant("a"),), (assistant("b"),))),
    ]
    with pytest.raises(DataError, match=r"^s:1: the chat template failed: TemplateError: no system role$"):
        encode_comparisons(rows, tokenizer, data())


def test_rows_of_tokens_are_held_to_the_same_rules() -> None:
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
    checked = Encoder(tokenizer, data(max_length=8, overlong="truncate_prompt_left", max_prompt_length=1)).check(rows)
    assert checked[0].row is rows[0]
    assert [lost.reason for row in checked for lost in row.lost] == [
        "missing_end_token", "double_end_token", "identical", "unknown_token", "too_long",
    ]  # fmt: skip
    assert all(len(row.lost) == (row.row is None) for row in checked)


def test_trap_16_what_a_template_does_not_show_is_dropped_whatever_is_allowed() -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"x": 2}}}]}
    row = Comparison("s:0", "s", (user("2 + 2?"),), ((calling,), (assistant("4"),)))
    for allowed in (False, True):
        lost = encode(row, prepared(byte_bpe(), "simple_chat"), allow_rewritten=allowed)
        assert isinstance(lost, Dropped)
        assert lost.reason == "hidden_by_template"
        assert lost.detail == "the chat template does not write what a message has in tool_calls"


PROMPT, END = [1, 10, 11, 12, 13], 2
ROW = TokenizedComparison("s:0", "s", ([*PROMPT, 20, END], [*PROMPT, 20, 21, 22, END]), 6, 5)


def data(overlong: str, **limits: int) -> Data:
    return Data(train=[{"path": "x"}], overlong=overlong, **limits)


def cut(row: TokenizedComparison, leading: int, **limits: int) -> TokenizedComparison:
    policy = data("truncate_prompt_left", **limits)
    assert overlong(row, policy, leading) == {}
    return fit_prompt(row, policy, leading)


def lists(row: TokenizedComparison) -> list[list[int]]:
    return [list(map(int, sequence)) for sequence in row.sequences]


def test_a_row_within_the_limits_is_left_alone() -> None:
    for policy in ("drop", "truncate_prompt_left", "error"):
        limits = data(policy, max_length=9, max_prompt_length=5)
        assert overlong(ROW, limits, leading=1) == {}
        assert fit_prompt(ROW, limits, leading=1) is ROW


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_responses_over_the_limit_are_told_each_with_its_length(policy: str) -> None:
    faults = overlong(ROW, data(policy, max_length=8), leading=1)
    assert {number: (fault.reason, fault.detail) for number, fault in faults.items()} == {
        1: ("too_long", "9 tokens, over max_length 8")
    }
    assert list(overlong(ROW, data(policy, max_length=6), leading=1)) == [0, 1]


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_a_prompt_over_its_limit_is_told(policy: str) -> None:
    with pytest.raises(BadRow) as problem:
        fit_prompt(ROW, data(policy, max_length=9, max_prompt_length=4), leading=1)
    assert (problem.value.reason, problem.value.detail) == ("prompt_too_long", "prompt of 5 tokens, over max_prompt_length 4")


def test_the_prompt_is_cut_from_the_left_after_its_beginning_and_for_all_alike() -> None:
    row = cut(ROW, leading=1, max_length=7)
    assert lists(row) == [[1, 12, 13, 20, END], [1, 12, 13, 20, 21, 22, END]]
    assert (row.prefix_length, row.prompt_length) == (4, 3)
    assert lists(cut(ROW, leading=0, max_length=7))[0] == [11, 12, 13, 20, END]
    short = cut(ROW, leading=1, max_length=9, max_prompt_length=2)
    assert lists(short) == [[1, 13, 20, END], [1, 13, 20, 21, 22, END]]


def test_a_response_is_never_cut() -> None:
    assert lists(cut(ROW, leading=1, max_length=5)) == [[1, 20, END], [1, 20, 21, 22, END]]
    faults = overlong(ROW, data("truncate_prompt_left", max_length=4), leading=1)
    assert [(number, str(fault)) for number, fault in faults.items()] == [
        (1, "response_too_long: response of 4 tokens alone is over max_length 4")
    ]


def test_a_limit_below_the_special_tokens_at_the_beginning_leaves_those() -> None:
    row = cut(ROW, leading=2, max_length=9, max_prompt_length=1)
    assert lists(row)[0] == [1, 10, 20, END]
    assert row.prompt_length == 2


def test_trap_03_cutting_never_erases_the_difference_the_end_or_the_response() -> None:
    rng, cut_rows = random.Random(0), 0
    policy = data("truncate_prompt_left", max_length=10, max_prompt_length=6)
    for number in range(500):
        prompt = [1, *(rng.randrange(10, 20) for _ in range(rng.randrange(12)))]
        responses = [[*(rng.randrange(20, 23) for _ in range(rng.randrange(1, 8))), END] for _ in range(2)]
        if responses[0] == responses[1]:
            continue
        sequences = tuple(np.array(prompt + response, np.int32) for response in responses)
        row = TokenizedComparison(f"s:{number}", "s", sequences, common_prefix_length(sequences), len(prompt))
        if max(map(len, sequences)) - row.prompt_length + 1 > 10:
            assert overlong(row, policy, leading=1)
            continue
        assert overlong(row, policy, leading=1) == {}
        fitting = fit_prompt(row, policy, leading=1)
        cut_rows += fitting is not row
        first, second = lists(fitting)
        assert first != second
        assert all(sequence[0] == 1 and len(sequence) <= 10 for sequence in (first, second))
        assert all(cut_to[-len(own) :] == own for cut_to, own in zip((first, second), responses, strict=True))
        assert fitting.prefix_length == common_prefix_length(fitting.sequences)
        assert fitting.prompt_length <= 6
    assert cut_rows > 100, "guard: rows were cut"


FREE = Limit(None, "error")


def said(role: str, text: str) -> Turns:
    return ({"role": role, "content": text},)


def asked(*responses: str, prompt: str = "What is the capital of France?") -> ScoreRequest:
    return ScoreRequest("row 1", said("user", prompt), tuple(said("assistant", response) for response in responses), "src", PAIR)


@pytest.mark.parametrize("made", [lambda: prepared(byte_bpe(), "simple_chat"), lambda: prepared(llama_like(), "tokenizer")])
def test_tokens_are_those_of_training(made: Any) -> None:
    tokenizer = made()
    row = asked("Paris.", "It is Paris, I think.")
    (ours,), cut = encode([row], tokenizer, FREE)
    data = Data(train=[PairSource(path="x")], chat_template="simple_chat", max_length=512)
    (theirs,) = Encoder(tokenizer, data).encode([Comparison("row 1", "src", row.prompt, row.responses)])
    assert theirs.row is not None
    assert [list(s) for s in ours.sequences] == [[int(t) for t in s] for s in theirs.row.sequences]
    assert (ours.prefix_length, cut) == (theirs.row.prefix_length, [False])
    assert ours.prefix_length > 3, "guard: the prompt is shared"


def lengths(row: TokenizedComparison) -> list[int]:
    return [len(sequence) for sequence in row.sequences]


def test_what_is_too_long_loses_its_beginning_or_is_refused() -> None:
    tokenizer = prepared(llama_like(), "tokenizer")
    rows = [asked("Paris.", "It is Paris, I think, but I do not know."), asked("No.", prompt="Why?")]
    (whole, short), _ = encode(rows, tokenizer, FREE)
    limit = min(lengths(whole)) + 2
    (fitting, same), cut = encode(rows, tokenizer, Limit(limit, "cut"))
    assert cut == [True, False]
    assert lengths(fitting) == [lengths(whole)[0], limit]
    assert fitting.sequences[1][0] == tokenizer.bos_token_id, "what stands before a text stays"
    assert list(fitting.sequences[1][1:]) == list(whole.sequences[1][-(limit - 1) :]), "the end stays"
    assert same == short
    for one, other in ((0, 1), (1, 0)):
        assert list(fitting.sequences[one][: fitting.prefix_length]) == list(fitting.sequences[other][: fitting.prefix_length])
    with pytest.raises(DataError, match=rf"row 1, response 2: {lengths(whole)[1]} tokens, over the limit of {limit}"):
        encode(rows, tokenizer, Limit(limit, "error"))


def test_a_single_response_and_identical_ones() -> None:
    tokenizer = prepared(byte_bpe(), "simple_chat")
    (one, twice), _ = encode([asked("Paris."), asked("Paris.", "Paris.")], tokenizer, FREE)
    assert one.prefix_length == 0
    assert twice.prefix_length == len(twice.sequences[0]) - 1
    assert list(one.sequences[0]) == list(twice.sequences[1])
