"""The surest errors, the worst first, as text."""

from pathlib import Path

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.evaluation.samples import hardest_errors, hardest_rows
from rmtrain.evaluation.scores_file import ScoredComparison
from tests.evaluation.test_metrics import pair, random_lists
from tests.runs import tiny_recipe


def test_the_largest_wrong_margins_come_first_and_nothing_else() -> None:
    rows = [pair(1.0, 0.0), pair(0.0, 1.0), pair(0.0, 3.0), pair(2.0, 2.0), pair(0.0, 2.0)]
    assert [number for number, _ in hardest_errors(rows, 10)] == [2, 4, 1]
    assert [number for number, _ in hardest_errors(rows, 2)] == [2, 4]
    assert hardest_errors(rows[:1], 10) == []


def test_of_a_comparison_its_worst_preference_counts() -> None:
    row = ScoredComparison("a", "s", (1.0, 3.0, 9.0), (), (Preference(0, 1), Preference(1, 2), Preference(2, 0)))
    tie = ScoredComparison("b", "s", (0.0, 90.0), (), (Preference(0, 1, 0.0, 0.5, 1.0),))
    assert hardest_errors([row, tie], 5) == [(0, Preference(1, 2))]
    many = random_lists(50)
    found = hardest_errors(many, 1000)
    assert len({number for number, _ in found}) == len(found) > 10
    leads = [many[n].rewards[edge.loser] - many[n].rewards[edge.winner] for n, edge in found]
    assert leads == sorted(leads, reverse=True)
    assert min(leads) > 0


def test_they_have_the_texts_of_their_rows(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, rows=24, test_rows=6)
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    data = prepare(recipe.data, tokenizer).eval
    scored = [ScoredComparison(data[k].id, data[k].source, (0.0, float(k)), (), PAIR) for k in range(len(data))]
    (worst, second) = hardest_rows(data, scored, tokenizer, 2)
    assert worst["id"] == data[len(data) - 1].id
    assert worst["rewards"] == [0.0, float(len(data) - 1)]
    assert "describe the" in worst["prompt"]
    assert worst["chosen"].strip().startswith("the ")
    assert worst["chosen"] != worst["rejected"]
    assert second["rewards"][1] < worst["rewards"][1]
