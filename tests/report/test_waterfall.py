"""The waterfall table: what was read is what was dropped and what was kept."""

from rmtrain.report.tables import total, waterfall_table
from tests.report.render import render

WATERFALL = {
    "hh": {"read": 1800, "dropped": {"empty_response": 4, "too_long": 231}, "gathered": 0, "kept": 1565},
    "uf [x]": {"read": 61135, "dropped": {}, "gathered": 0, "kept": 61135},
}


def test_every_count_stands_in_the_table_largest_drop_first() -> None:
    assert render(waterfall_table({"hh": WATERFALL["hh"]})) == (
        "data                 rows   share\n"
        "hh                  1,800          ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  − too long          231  12.8 %                      ━━━━\n"
        "  − empty response      4   0.2 %                      ━\n"
        "  = kept            1,565  86.9 %  ━━━━━━━━━━━━━━━━━━━━\n"
    )


def test_several_sources_are_added_up() -> None:
    text = render(waterfall_table(WATERFALL))
    assert total(WATERFALL) == {"read": 62935, "dropped": {"empty_response": 4, "too_long": 231}, "gathered": 0, "kept": 62700}
    assert "all sources" in text
    assert "62,700  99.6 %" in text
    assert "uf [x]" in text, "a tag is not markup"


def test_rows_gathered_into_others_stand_between_what_is_lost_and_what_is_kept() -> None:
    counts = {"read": 1000, "dropped": {"too_long": 100}, "gathered": 500, "kept": 400}
    assert render(waterfall_table({"hh": counts})) == (
        "data           rows   share\n"
        "hh            1,000          ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  − too long    100  10.0 %                       ━━━\n"
        "  ∪ gathered    500  50.0 %           ━━━━━━━━━━━━\n"
        "  = kept        400  40.0 %  ━━━━━━━━━\n"
    )


def test_what_the_recipe_leaves_out_comes_before_faults_and_is_said_to_be_asked() -> None:
    counts = {"read": 1000, "dropped": {"too_long": 300, "filtered": 100, "capped": 200}, "gathered": 0, "kept": 400}
    table = waterfall_table({"hh": counts})
    assert render(table) == (
        "data                     rows   share\n"
        "hh                      1,000          ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  − capped, as asked      200  20.0 %                     ━━━━━\n"
        "  − filtered, as asked    100  10.0 %                  ━━━\n"
        "  − too long              300  30.0 %           ━━━━━━━\n"
        "  = kept                  400  40.0 %  ━━━━━━━━━\n"
    )
    coloured = render(table, color=True).splitlines()
    assert "\x1b[33m" in coloured[3]
    assert "\x1b[31m" in coloured[4]


def test_a_source_that_lost_everything_and_an_empty_one() -> None:
    text = render(
        waterfall_table(
            {
                "gone": {"read": 3, "dropped": {"empty": 3}, "gathered": 0, "kept": 0},
                "none": {"read": 0, "dropped": {}, "gathered": 0, "kept": 0},
            }
        )
    )
    assert "= kept        0    0 %" in text
    assert "–" in text


def test_it_fits_any_width_and_has_no_colour_in_a_pipe() -> None:
    for width in (60, 80, 120):
        text = render(waterfall_table(WATERFALL), width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "61,135" in text
        assert "\x1b" not in text
    assert "\x1b[32m" in render(waterfall_table(WATERFALL), color=True)


def test_responses_that_are_left_out_of_comparisons_are_told_apart_from_rows() -> None:
    counts = {"read": 1000, "dropped": {}, "gathered": 0, "kept": 1000, "left_out": {"too_long": 3, "no_score": 1200}}
    assert render(waterfall_table({"uf": counts})) == (
        "data                              rows  share\n"
        "uf                               1,000         ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "  = kept                         1,000  100 %  ━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "    without responses: no score  1,200\n"
        "    without responses: too long      3\n"
    )
