"""RMB: pairs, best of n, and the mean of its four parts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.benchmarks.rmb import RMB
from tests.evaluation.benchmarks.rows import best_of, pair, weighted_total

PAIRS, BON = "Pairwise_set/Helpfulness/Code/Documentation", "BoN_set/Helpfulness/Code/Documentation"
HARMLESS = "Pairwise_set/Harmlessness/S1"


def test_best_must_beat_every_loser() -> None:
    rows = [
        pair(PAIRS, 1.0, 0.0, "1"),
        pair(PAIRS, 1.0, 1.0, "2"),
        best_of(BON, 3.0, 1.0, 2.0, name="1"),
        best_of(BON, 3.0, 3.0, 3.0, name="2"),  # a tie with two losers
        best_of(BON, 3.0, 1.0, 4.0, name="3"),
        pair(HARMLESS, 0.0, 1.0, "1"),
    ]
    numbers = measure(RMB, rows)
    found = {name: (section["score"], section["half_credit"]) for name, section in numbers["sections"].items()}
    assert found == {
        "Helpfulness pairs": (1 / 2, 3 / 4),
        "Helpfulness best-of-n": (1 / 3, pytest.approx((1 + 1 / 3) / 3)),
        "Harmlessness pairs": (0.0, 0.0),
    }
    assert numbers["score"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert (numbers["ties"], numbers["decisions"], numbers["missing"]) == (2, 6, ["Harmlessness best-of-n"])
    assert weighted_total(RMB.units(rows), "official") == pytest.approx(RMB.scores(rows, "official").total, abs=1e-12)


def test_rows_of_a_prompt_widen_every_interval() -> None:
    """In both kinds of rows, and in the total, where a prompt has rows in two sections."""
    rows = [pair(PAIRS, 1.0, float(2 * (n // 5 % 3 == 0)), str(n)) for n in range(500)]
    rows += [best_of(BON, 1.0, float(2 * (n // 5 % 3 == 0)), 0.0, name=str(n)) for n in range(500)]
    alone = measure(RMB, rows)
    together = measure(RMB, [replace(row, prompt=str(int(row.id) // 5)) for row in rows])
    names = list(alone["sections"])
    parts = [(alone, together), *((alone["sections"][name], together["sections"][name]) for name in names)]
    narrower = [(one["high"] - one["low"]) / (two["high"] - two["low"]) for one, two in parts]
    assert narrower == pytest.approx([10**-0.5, 5**-0.5, 5**-0.5], rel=0.05)
    assert len(names) == 2, "guard"


def test_rows_of_both_kinds() -> None:
    turns = [{"role": role, "content": role, "language": "English"} for role in ("user", "assistant", "user")]
    answers = [{"llm_name": "m", "answer": text} for text in ("best", "second", "third")]
    raw = {"bon_uid": 7, "conversation_input": turns, "bon_best": answers[0], "loser_list": answers[1:], "category_path": BON}
    best = RMB.item(raw, Path("x"), 0)
    assert (best.id, best.responses, len(best.preferences)) == ("7", ("best", "second", "third"), 2)
    assert best.prompt[0] == {"role": "user", "content": "user"}, "what a template does not know is left out"
    row = {"pair_uid": 3, "conversation_input": turns, "chosen": answers[0], "reject": answers[1], "category_path": PAIRS}
    assert RMB.item(row, Path("x"), 0).responses == ("best", "second")
    for change in ({"category_path": "Other/Helpfulnes"}, {"conversation_input": []}, {"chosen": "text"}):
        with pytest.raises(ValueError, match=rf"^{next(iter(change))}: "):
            RMB.item(row | change, Path("x"), 0)


def test_output_of_its_script(tmp_path: Path) -> None:
    rows = [
        {"pair_uid": n, "category_path": PAIRS, "chosen_reward": 0.25 * n, "reject_reward": 0.5, "is_correct": 0}
        for n in range(5)
    ]
    (tmp_path / "m_result.json").write_text(json.dumps(rows, indent=2))
    scored = read_output(RMB, tmp_path / "m_result.json")
    assert [row.rewards for row in scored] == [(0.25 * n, 0.5) for n in range(5)]
    numbers = measure(RMB, scored)
    assert (numbers["score"], numbers["ties"], numbers["half_credit"]) == (2 / 5, 1, 2.5 / 5)


def test_files_of_the_repository() -> None:
    found = [Path("BoN_set/Harmlessness/S1.json"), Path("Pairwise_set/Harmlessness/S1.json"), Path("eval/result/m.json")]
    assert RMB.files(found) == found[:2]
