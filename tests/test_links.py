"""Links of the Markdown pages, on the site and in the repository: files and headings exist, and every page is in the navigation."""

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.pages import FENCE, PAGES
from tests.runs import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
IN_NAV = [file for section in SITE["nav"] for pages in section.values() for page in pages for file in page.values()]


def prose(text: str) -> str:
    """A page without blocks and without code that is not the text of a link."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(file: Path) -> Counter[str]:
    """The anchors of a page's headings, by the rules of GitHub, which are those of the site but for repeated hyphens."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return Counter(re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower()).strip().replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files_and_headings(page: str) -> None:
    for link in LINK.findall(prose(PAGES[page])):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            if anchor:
                assert anchors(target)[anchor] == 1, f"{link}: no heading, or several"
                assert "--" not in anchor, "the site has one hyphen there, and GitHub two"


def test_links_with_anchors_were_found() -> None:
    links = [link for text in PAGES.values() for link in LINK.findall(prose(text))]
    assert sum("#" in link for link in links) > 15
    assert sum(link.startswith("docs/") for link in links) > 8


def test_navigation_has_every_page_once() -> None:
    assert sorted(IN_NAV) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))
    assert len(IN_NAV) > 15, "guard"


def test_llms_txt_describes_every_page() -> None:
    """It has the form of llmstxt.org: a title, a summary as a quote, and lists of links with descriptions."""
    make = runpy.run_path(str(ROOT / "docs/mkdocs_hooks.py"))["llms_text"]
    title, empty, quote, *rest = make(SITE["site_name"], SITE["site_description"], SITE["nav"]).splitlines()
    assert (title, empty) == ("# rmtrain", "")
    assert quote.startswith("> ")
    listed = [re.fullmatch(r"- \[(.+)\]\((.+\.md)\): (.{20,})", line) for line in rest if line.startswith("- ")]
    assert [match and match[2] for match in listed] == IN_NAV
    assert sum(line.startswith("## ") for line in rest) == len(SITE["nav"])
