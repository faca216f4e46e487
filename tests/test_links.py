"""Links: files and headings exist, addresses outside of the repository are well-formed, and every page is in the navigation."""

import re
import runpy
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.pages import FENCE, PAGES
from tests.runs import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
ADDRESS = re.compile(r"https?://(?![\[{])[^\s<>\"'`)\]}]+")
PAPER = re.compile(r"arxiv(?:\.org/[a-z]+/|\s*:\s*)([^\s\"'`,;)\]]*)", re.IGNORECASE)
TEXTS = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for folder in ("rmtrain", "docs", "examples", "benchmarks", "")
    for file in sorted((ROOT / folder).rglob("*") if folder else ROOT.glob("*"))
    if file.suffix in (".py", ".md", ".html", ".css", ".yaml", ".yml", ".toml", ".sh", ".sbatch", ".json")
}
"""All files of the project that may name an address, except tests and licences."""
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


def problem_of(address: str) -> str | None:
    """What is wrong with the form of an address outside of the repository; the network is not asked."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1") or (parts.scheme == "http" and "." not in host):  # this machine, or a placeholder
        return None
    if parts.scheme != "https":
        return "not https"
    if not re.fullmatch(r"([a-z\d]([a-z\d-]*[a-z\d])?\.)+[a-z]{2,}", parts.netloc):
        return "not a name of a host in lower case"
    if re.search(r"//|[.,;:]$|[^!-~]|\\", parts.path):
        return "a path that is empty in a part, or ends in punctuation"
    if host == "arxiv.org" and not re.fullmatch(r"/abs/\d{4}\.\d{4,5}", parts.path):
        return "not the abstract of a paper"
    return None


def test_addresses_are_well_formed_and_spelled_alike() -> None:
    """One address has one spelling, with or without `www.` and a slash at its end."""
    found = {(name, address.rstrip(".,;:")) for name, text in TEXTS.items() for address in ADDRESS.findall(text)}
    assert {(name, address, problem) for name, address in found if (problem := problem_of(address))} == set()
    spellings: dict[str, set[str]] = {}
    for _, address in found:
        plain = re.sub(r"^https?://(www\.)?", "", address).rstrip("/").lower()
        spellings.setdefault(plain, set()).add(address)
    assert [same for same in spellings.values() if len(same) > 1] == []
    assert len(spellings) > 4, "guard"


def test_papers_have_numbers_of_arxiv() -> None:
    """Every `arXiv:YYMM.NNNNN` has a month and five digits, and four before 2015."""
    papers = {(name, number) for name, text in TEXTS.items() for number in PAPER.findall(text)}
    wrong = [
        each for each in papers if not re.match(r"(\d\d(0[1-9]|1[0-2])\.\d{5}|(0\d|1[0-4])(0[1-9]|1[0-2])\.\d{4})(?!\d)", each[1])
    ]
    assert wrong == []
    assert len({number for _, number in papers}) > 15, "guard"


@pytest.mark.parametrize(
    "address",
    [
        "http://pytorch.org/docs",
        "https://Example.com/a",
        "https://example/a",
        "https://example.com//a",
        "https://user@example.com/a",
        "https://arxiv.org/pdf/2101.03961",
        "https://arxiv.org/abs/21010.3961",
    ],
)
def test_malformed_addresses_are_found(address: str) -> None:
    assert problem_of(address)
    assert problem_of("https://example.com/a/b.html#c") is None


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
