import random

from rmtrain.data.comparison import Comparison, TokenizedComparison, is_held_out, prompt_hash, response_hashes


def row(prompt: str, *responses: str) -> Comparison:
    turns = [({"role": "assistant", "content": response},) for response in responses]
    return Comparison("s:0", "s", ({"role": "user", "content": prompt},) if prompt else (), tuple(turns))


def test_a_prompt_is_the_same_whatever_its_case_spacing_and_unicode_form() -> None:
    assert prompt_hash(row("What is  it?\n", "a", "b")) == prompt_hash(row("WHAT is it?", "c", "d"))
    assert prompt_hash(row("caf\u00e9", "a", "b")) == prompt_hash(row("cafe\u0301", "a", "b"))
    assert prompt_hash(row("What is it", "a", "b")) != prompt_hash(row("What is it?", "a", "b"))


def test_rows_without_prompt_are_told_apart_by_their_responses_in_any_order() -> None:
    assert prompt_hash(row("", "a", "b")) == prompt_hash(row("", "b", "a"))
    assert prompt_hash(row("", "a", "b")) != prompt_hash(row("", "a", "c"))


def test_roles_are_part_of_a_prompt() -> None:
    system = Comparison("s:0", "s", ({"role": "system", "content": "q"},), row("q", "a", "b").responses)
    assert prompt_hash(system) != prompt_hash(row("q", "a", "b"))


def test_tokens_are_hashed_by_prefix_and_rest() -> None:
    one = TokenizedComparison("t:0", "t", ([1, 2, 3], [1, 2, 4]), 2, 2)
    assert prompt_hash(one) == prompt_hash(TokenizedComparison("t:1", "t", ([1, 2, 5], [1, 2, 6]), 2, 2))
    assert response_hashes(one) == response_hashes(TokenizedComparison("t:1", "t", ([9, 3], [9, 4]), 1, 1))
    assert len(set(response_hashes(one))) == 2


def test_hashes_are_stable_across_processes_and_versions() -> None:
    assert prompt_hash(row("What is it?", "a", "b")) == 10197172099385727905


def test_the_held_out_share_is_about_the_share_and_the_same_in_any_order() -> None:
    prompts = [row(f"prompt {number}", "a", "b") for number in range(4000)]
    held_out = {one.prompt[0]["content"] for one in prompts if is_held_out(prompt_hash(one), 0.2)}
    assert 0.17 < len(held_out) / len(prompts) < 0.23
    random.Random(1).shuffle(prompts)
    assert held_out == {one.prompt[0]["content"] for one in prompts if is_held_out(prompt_hash(one), 0.2)}
    fewer = [one for one in prompts if is_held_out(prompt_hash(one), 0.1)]
    assert fewer
    assert all(is_held_out(prompt_hash(one), 0.2) for one in fewer), "a larger share holds a smaller one"
    assert not any(is_held_out(prompt_hash(one), None) or is_held_out(prompt_hash(one), 0.0) for one in prompts)
