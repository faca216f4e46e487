"""The report is one file without requests, shows data as text, and can be read in a browser of any width."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from rmtrain.data.checks.preferences import RULES
from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.console import escape_invisible
from rmtrain.report.page import page, write_report
from rmtrain.report.tables import ADVICE
from rmtrain.report.tables import RULES as RULE_WORDS
from tests.chromium import Browser
from tests.evaluation.test_metrics import random_pairs

VOID = {"meta", "link", "br"}
NASTY = '<script>alert("x")</script><img src=https://example.com/a.png onerror=alert(1)> &amp; \x1b[31m </pre> {{ 7 * 7 }}'
SECRET = "hf_" + "b" * 34
SECTIONS = ["numbers", "training", "diagnosis", "errors", "samples", "data", "settings"]


def row(step: int, name: str = "a:0") -> dict[str, Any]:
    texts = {"prompt": f"User: {NASTY} {SECRET}", "chosen": f"yes {NASTY}", "rejected": "no " * 900}
    return {"step": step, "id": name, "source": "a", "rewards": [step / 10, 1.0], **texts}


def evidence() -> dict[str, Any]:
    scored = random_pairs(200)
    summary = summarize(scored)
    curves = [
        {
            "step": step,
            "train/epoch": step / 20,
            **{f"train/{name}": 1 / step for name in ("loss", "accuracy", "margin", "learning_rate", "grad_norm")},
        }
        for step in range(1, 60)
    ]
    evaluations = [
        {"step": step, "eval/loss": 0.6, "eval/accuracy": 0.7, "eval/chosen_reward": step, "eval/rejected_reward": 0.1}
        for step in (20, 40, 59)
    ]
    baseline = {"wins": 60, "losses": 40, "ties": 0, "share": 0.6, "low": 0.5, "high": 0.7}
    fault = {"found": 3, "rows": 3, "share": 0.01, "examples": [{"ids": [NASTY], "detail": NASTY}]}
    counts = {"read": 1000, "dropped": {"too_long": 30, "filtered": 100}, "gathered": 20, "kept": 850}
    return {
        "name": "run " + NASTY,
        "summary": {**summary, "warnings": [NASTY]},
        "diagnosis": diagnose(scored),
        "hardest": [row(0), row(1, "b:1")],
        "gates": {"accuracy": {"required": 0.7, "value": 0.6, "passed": False}},
        "metrics": [*curves, *evaluations],
        "samples": [row(step, name) for step in (20, 40, 59) for name in ("a:0", NASTY)],
        "waterfall": {"train": {NASTY: counts, "b": counts}, "eval": {"a": counts}},
        "findings": {"train": {"found": {"duplicate": fault}, "baselines": dict.fromkeys(RULES, baseline)}},
        "recipe": {"run": {"name": "x", "output_dir": f"{os.path.expanduser('~')}/runs/x"}, "note": SECRET, "template": NASTY},
        "environment": {"versions": {"torch": "2.13"}, "device": "cpu", "hashes": {"data": "0" * 64}},
    }


class Reader(HTMLParser):
    """Elements of a page as they open and close, ids, addresses and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.seen.append((tag, named))
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.addresses += [
            value for key, value in attrs if key in ("src", "href", "xlink:href", "action", "data", "srcset") and value
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def written() -> str:
    return page(**evidence())


def test_page_is_well_formed_with_unique_ids(written: str) -> None:
    reader = Reader(written)
    assert written.startswith("<!doctype html>")
    assert not reader.open
    assert len(reader.ids) == len(set(reader.ids)) > 20
    targets = [address[1:] for address in reader.addresses if address.startswith("#")]
    assert len([target for target in targets if target in SECTIONS]) == len(SECTIONS)
    assert set(targets) <= set(reader.ids)


def test_page_makes_no_request(written: str) -> None:
    reader = Reader(written)
    assert [address for address in reader.addresses if not address.startswith("#")] == ["data:,"]
    assert not {"script", "iframe", "img", "object", "embed", "form", "base"} & {tag for tag, _ in reader.seen}
    assert not any(key.startswith("on") for _, named in reader.seen for key in named)
    css = re.search(r"<style>(.*?)</style>", written, re.DOTALL)
    assert css
    assert "url(" not in css[1]
    assert "@import" not in css[1]
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", written)), "clip paths of the pictures"


def test_rows_of_data_are_never_markup(written: str) -> None:
    assert "<script" not in written
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in written
    assert "\x1b" not in written
    assert "{{ 7 * 7 }}" in written
    assert written.count("&amp;amp;") > 5, "guard: the row is there"


def test_trap_s6_no_secret_and_no_absolute_path(written: str) -> None:
    assert SECRET not in written
    assert written.count("&lt;hidden&gt;") == 5, "once in the recipe, and in each row"
    assert os.path.expanduser("~") + "/" not in written
    assert "…/x" in written


def test_every_picture_has_words_and_numbers(written: str) -> None:
    reader = Reader(written)
    pictures = [named for tag, named in reader.seen if tag == "svg"]
    figures = sum(tag == "figure" for tag, _ in reader.seen)
    assert len(pictures) == figures == 1 + 5 + 6 + 2, "sources, training, diagnosis and samples"
    for named in pictures:
        assert named["role"] == "img"
        assert all(name in reader.ids for name in (named["aria-labelledby"] or "").split())
    assert sum(tag == "details" for tag, _ in reader.seen) == figures + 1
    assert sum(tag == "title" for tag, _ in reader.seen) == figures + 1
    assert all(named.get("scope") for tag, named in reader.seen if tag == "th")
    assert [tag for tag, _ in reader.seen if tag in ("h1", "h2")] == ["h1"] + ["h2"] * 7


def test_page_has_the_numbers_that_matter(written: str) -> None:
    words = " ".join("".join(Reader(written).words).split())
    summary = evidence()["summary"]
    assert f"{summary['accuracy']:.3f}" in words
    assert f"[{summary['accuracy_low']:.3f}, {summary['accuracy_high']:.3f}]" in words
    assert "longer wins" in words
    assert re.search("gate accuracy.*0.7000.*0.6000.*missed", words)
    assert "− filtered" in words
    assert ADVICE["duplicate"] in words
    assert all(rule in words for rule in RULE_WORDS.values())
    assert "torch" in words
    assert [named["id"] for tag, named in Reader(written).seen if tag == "section"] == SECTIONS


def test_page_with_few_parts_is_well_formed() -> None:
    for few in (page("x"), page("x", summary=summarize(random_pairs(1))), page("x", samples=[row(3)])):
        assert not Reader(few).open
    scored = random_pairs(5)
    assert 'id="diagnosis"' in page("x", summary=summarize(scored), diagnosis=diagnose(scored))


def test_trap_s8_only_the_owner_can_read(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "x", None, gates={})
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


MEASURE = {
    "wide": "document.documentElement.scrollWidth",
    "clipped": """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('pre') && !e.closest('.hidden')
        && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)""",
    "touching": """[...document.querySelectorAll('svg')].flatMap(s => { const t = [...s.querySelectorAll('text')]
        .map(e => [e.textContent, e.getBoundingClientRect()]); return t.flatMap(([a, p], i) => t.slice(i + 1).filter(([b, q]) =>
        Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4)
        .map(([b]) => a + ' / ' + b)) })""",
    "paper": "getComputedStyle(document.body).backgroundColor",
    "curve": "getComputedStyle(document.querySelector('#training svg path[style*=accent]')).stroke",
    "smallest": """Math.min(...[...document.querySelectorAll('svg text')]
        .map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a))""",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_page_without_complaint(browser: Browser, written: str, width: int, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(written, encoding="utf-8")
    seen = browser.visit(tmp_path / "report.html", width, scheme, measure=MEASURE)
    assert seen.complaints == []
    assert len(seen.requests) == 1, "nothing but the file itself"
    assert seen.values["wide"] <= width
    assert seen.values["clipped"] == []
    assert seen.values["touching"] == []
    assert seen.values["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert seen.values["curve"] == {"light": "rgb(11, 99, 181)", "dark": "rgb(109, 179, 248)"}[scheme], (
        "pictures follow the theme"
    )
    assert seen.values["smallest"] >= 11, "letters of pictures keep their size on a phone"
    assert len(seen.screenshot) > 50_000, "guard: something was drawn"


def test_browser_reports_complaints(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<p>x</p><script>console.error('no')</script><img src='other.png'><div style='width:999px'>"
    )
    seen = browser.visit(tmp_path / "bad.html", 390, "light", measure=MEASURE)
    assert seen.complaints
    assert len(seen.requests) == 2
    assert seen.values["clipped"] == ["DIV."]


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "\x1b]52;c;a\x07\u202e", "&lt;b&gt;"]
)
def test_names_are_text_in_html(name: str) -> None:
    """Names of sources, runs, rows and hardware make no element, and no control character is in the page."""
    counts = {name: {"read": 10, "dropped": {}, "gathered": 0, "kept": 10}}
    scored = [ScoredComparison(f"{name}:{k}", name, (1.0, 0.0), (30, 20), PAIR) for k in range(40)]
    html = page(
        name, summary=summarize(scored), waterfall={"train": counts}, environment={"host": name, "versions": {}, "hashes": {}}
    )
    assert "<script>alert" not in html
    assert "<img" not in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert html.count(str(escape(escape_invisible(name)))) >= 3, "guard: it is shown"
