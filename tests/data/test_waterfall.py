import json

from rmtrain.data.comparison import Dropped
from rmtrain.data.waterfall import EXAMPLES, REMEDIES, Waterfall, with_remedy
from tests.runs import ROOT
from tests.test_guides import reasons


def waterfall(kept: int, **dropped: int) -> Waterfall:
    counts = Waterfall()
    for _ in range(kept):
        counts.of("hh").add(kept=1)
    for reason, number in dropped.items():
        counts.of("hh").add(kept=0, dropped=[Dropped(f"hh:{row}", "hh", reason, "why") for row in range(number)])
    return counts


def test_rows_are_kept_or_dropped() -> None:
    counts = waterfall(20, too_long=7, identical=1)
    hh = counts.of("hh")
    assert (hh.read, hh.kept, hh.dropped) == (28, 20, {"too_long": 7, "identical": 1})
    assert hh.examples["too_long"] == [f"hh:{row}: why" for row in range(EXAMPLES)]


def test_gathered_rows_are_not_lost() -> None:
    counts = waterfall(10, too_long=1)
    counts.of("hh").add(kept=0, gathered=9)
    assert (counts.of("hh").read, counts.of("hh").kept, counts.of("hh").gathered) == (20, 10, 9)
    assert counts.problems(0.05) == []
    (problem,) = counts.problems(0.04)
    assert problem.startswith("hh: 1 of 20 ")
    assert all(part in problem for part in ("5.0 %", "allowed 4 %"))


def test_added_comparisons_are_not_rows() -> None:
    """They change neither how many rows were read nor the share that was lost."""
    counts = waterfall(10, too_long=1)
    counts.of("hh").add(kept=40, added={"other_prompts": 10, "repeated": 30})
    counts.of("hh").add(kept=0, dropped=[Dropped("hh:1+other", "hh", "other_prompt_unfit", "why")], added={"other_prompts": 1})
    hh = counts.of("hh")
    assert (hh.read, hh.kept, hh.added) == (11, 50, {"other_prompts": 11, "repeated": 30})
    assert hh.read + sum(hh.added.values()) == hh.kept + hh.gathered + sum(hh.dropped.values())
    (problem,) = counts.problems(0.09)
    assert problem.startswith("hh: 1 of 11 rows dropped (9.1 %), allowed")
    assert counts.problems(0.1) == []
    assert Waterfall.from_json(counts.to_json()).of("hh") == hh


def test_waterfall_survives_json() -> None:
    counts = waterfall(20, too_long=7)
    again = Waterfall.from_json(json.loads(json.dumps(counts.to_json())))
    assert again.to_json() == counts.to_json()
    assert counts.to_json()["hh"]["dropped"] == {"too_long": 7}


def test_trap_18_excess_loss_names_source_and_reasons() -> None:
    """Losing more than the allowed share is an error with source, numbers and reasons, the most frequent first."""
    counts = waterfall(1680, empty_response=10, too_long=110)
    assert counts.problems(0.07) == []
    (problem,) = counts.problems(0.05)
    assert problem.startswith("hh: 120 of 1800 ")
    assert all(part in problem for part in ("6.7 %", "allowed 5 %"))
    assert problem.index("too_long 110 (hh:0: why; ") < problem.index("empty_response 10 (hh:0: why; ")


def test_intentional_drops_do_not_count() -> None:
    """Rows that the recipe leaves out are neither lost nor part of the total."""
    counts = waterfall(90, filtered=700, not_drawn=100, capped=50, duplicate=30, tie=10, prepared_away=10, too_long=10)
    assert counts.problems(0.1) == []
    (problem,) = counts.problems(0.09)
    assert problem.startswith("hh: 10 of 100 ")
    assert all(part in problem for part in ("10.0 %", "900", "allowed 9 %", "too_long 10 (hh:0: why; "))
    assert "filtered" not in problem
    (problem,) = waterfall(0, filtered=3).problems(1.0)
    assert "filtered 3 (hh:0: why; " in problem


def test_source_without_rows_is_refused() -> None:
    """A source without rows, or without a kept row, is refused even if all rows may be lost."""
    (problem,) = waterfall(0, too_long=3).problems(1.0)
    assert problem.startswith("hh: ")
    assert "too_long 3 (hh:0: why; " in problem
    counts = Waterfall()
    counts.of("empty")
    (problem,) = counts.problems(1.0)
    assert problem.startswith("empty: ")


def test_each_reason_has_its_remedy() -> None:
    """The remedy of a reason is about that reason: only a row that cannot be repaired is a case for a larger share."""
    raised = {reason for file in (ROOT / "rmtrain/data").rglob("*.py") for reason in reasons(file)}
    assert sorted((raised | {"malformed_row"}) - set(REMEDIES)) == []
    assert {reason for reason, remedy in REMEDIES.items() if "max_drop_fraction" in remedy} == {"identical"}
    assert "data.max_length" in REMEDIES["too_long"]
    assert "overlong" in REMEDIES["too_long"]
    assert "overlong" not in REMEDIES["response_too_long"], "which does not help there"
    assert len(raised) > 35, "guard: the source was read"


def test_remedy_is_not_repeated() -> None:
    detail = f"the text is a transcript; {REMEDIES['transcript']}"
    assert with_remedy("transcript", detail) == detail
    assert with_remedy("identical", detail).startswith(f"{detail}; ")
