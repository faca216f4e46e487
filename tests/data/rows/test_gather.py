from rmtrain.data.comparison import Comparison, Dropped, Preference, TokenizedComparison, rows_of
from rmtrain.data.rows.select import gather


def row(number: int, prompt: str, chosen: str, rejected: str, margin: float = 0.0) -> Comparison:
    turns = ({"role": "user", "content": prompt},) if prompt else ()
    sides = tuple(({"role": "assistant", "content": text},) for text in (chosen, rejected))
    return Comparison(f"s:{number}", "s", turns, sides, (Preference(0, 1, margin),))


def texts(comparison: Comparison) -> list[str]:
    return [response[0]["content"] for response in comparison.responses]


def test_rows_of_a_prompt_become_one_in_the_place_of_the_first() -> None:
    lost = Dropped("s:2", "s", "empty_cell", "")
    tokens = TokenizedComparison("t:0", "t", ([1, 9], [2, 9]), 0, 0)
    rows = [row(0, "p", "a", "b"), row(1, "q", "x", "y"), lost, row(3, "p", "c", "a", 0.5), tokens, row(5, "p", "c", "b")]
    first, second, *others = gather(rows)
    assert others == [lost, tokens]
    assert (second, second is rows[1]) == (rows[1], True)
    assert (first.id, first.source, first.prompt) == ("s:0", "s", rows[0].prompt)
    assert texts(first) == ["a", "b", "c"], "each different response once"
    assert first.preferences == (Preference(0, 1), Preference(2, 0, margin=0.5), Preference(2, 1))
    assert [edge.rows for edge in first.preferences] == [("s:0",), ("s:3",), ("s:5",)]
    assert rows_of(first) == ("s:0", "s:3", "s:5")
    assert rows_of(second) == ("s:1",)


def test_rows_that_say_the_same_weigh_more_and_contradictions_stay() -> None:
    (one,) = gather([row(0, "p", "a", "b"), row(1, "p", "b", "a"), row(2, "p", "a", "b"), row(3, "p", "a", "b", 1.0)])
    assert texts(one) == ["a", "b"]
    assert one.preferences == (Preference(0, 1, weight=2.0), Preference(1, 0), Preference(0, 1, margin=1.0))
    assert rows_of(one) == ("s:0", "s:1", "s:2", "s:3")


def test_prompts_are_equal_to_the_letter_and_rows_without_one_stay_alone() -> None:
    rows = [row(0, "p", "a", "b"), row(1, "P", "a", "b"), row(2, "p ", "a", "b"), row(3, "", "a", "b"), row(4, "", "a", "b")]
    system = Comparison("s:5", "s", ({"role": "system", "content": "p"},), rows[0].responses)
    assert list(gather([*rows, system])) == [*rows, system]


def test_a_response_of_several_messages_is_one_response() -> None:
    turns = [
        ({"role": "assistant", "content": "a"}, {"role": "user", "content": x}, {"role": "assistant", "content": "b"})
        for x in "yz"
    ]
    prompt = ({"role": "user", "content": "p"},)
    rows = [Comparison(f"s:{n}", "s", prompt, (turns[n % 2], turns[1 - n % 2])) for n in range(2)]
    (one,) = gather(rows)
    assert one.responses == tuple(turns)
    assert one.preferences == (Preference(0, 1), Preference(1, 0))


def test_messages_that_differ_beside_their_content_are_different() -> None:
    calls = [{"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"x": x}}]} for x in (1, 2, 1)]
    prompt = ({"role": "user", "content": "p"},)
    rows = [Comparison(f"s:{n}", "s", prompt, ((calls[n],), (calls[n + 1],))) for n in range(2)]
    (one,) = gather(rows)
    assert one.responses == ((calls[0],), (calls[1],))
    assert one.preferences == (Preference(0, 1), Preference(1, 0))
    tool = ({"role": "tool", "content": "p", "tool_call_id": "c"},)
    assert len(list(gather([rows[0], Comparison("s:9", "s", (*prompt, *tool), rows[0].responses)]))) == 2


def test_rows_that_a_comparison_is_made_of_stay_its_rows() -> None:
    group = Comparison(
        "s:4", "s", row(0, "p", "a", "b").prompt, row(0, "p", "a", "b").responses, (Preference(0, 1, rows=("s:4", "s:9")),)
    )
    (one,) = gather([group, row(5, "p", "b", "a")])
    assert rows_of(one) == ("s:4", "s:5", "s:9")
    late = Comparison("s:8", "s", group.prompt, group.responses, (Preference(0, 1, rows=("s:8", "s:9")),))
    (one,) = gather([late, row(5, "p", "c", "a")])
    assert (one.id, rows_of(one)) == ("s:5", ("s:5", "s:8", "s:9")), "its id is that of the first of its rows"


def test_rows_stand_in_the_order_of_the_source() -> None:
    edges = tuple(Preference(0, 1, margin=float(n), rows=(f"a:b:{name}",)) for n, name in enumerate(["10", "9", "2.10", "2.9"]))
    comparison = Comparison("a:b:2.9", "a:b", (), row(0, "", "a", "b").responses, edges)
    assert rows_of(comparison) == ("a:b:2.9", "a:b:2.10", "a:b:9", "a:b:10")
