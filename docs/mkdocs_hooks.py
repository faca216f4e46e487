"""Hooks of mkdocs. The site also has: the files outside docs/ that pages link to; each page as Markdown, and llms.txt, for assistants."""

import re
import shutil
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)\)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
DETAILS = """Every command and key of these pages is checked by a test. Assistants that use the command line begin with
[For assistants](assistants.md); those that change the code, with AGENTS.md in the repository."""


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs/ that pages link to, such as examples."""
    from mkdocs.structure.files import File  # here, since the tests call `llms_text` without mkdocs

    linked = {path for page in DOCS.glob("*.md") for path in OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    for path in sorted(linked):
        files.append(File(path, str(DOCS.parent), config.site_dir, use_directory_urls=False))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to files outside docs/ lead to their copies."""
    return OUTSIDE.sub(r"](\1)", markdown)


def on_post_build(config: Any) -> None:
    """Write llms.txt, and the Markdown of each page next to it."""
    site = Path(config.site_dir)
    (site / "llms.txt").write_text(llms_text(config.site_name, config.site_description, config.nav), encoding="utf-8")
    for page in DOCS.glob("*.md"):
        shutil.copy(page, site)


def llms_text(name: str, description: str, nav: list[dict[str, list[dict[str, str]]]]) -> str:
    """The pages of a navigation with their first paragraphs, in the form of llmstxt.org."""
    lines = [f"# {name}", "", f"> {description}", "", DETAILS]
    for section in nav:
        for heading, pages in section.items():
            lines += ["", f"## {heading}", ""]
            lines += [f"- [{title}]({file}): {summary(file)}" for page in pages for title, file in page.items()]
    return "\n".join(lines) + "\n"


def summary(file: str) -> str:
    """The first paragraph of a page, in one line and without links."""
    paragraphs = (DOCS / file).read_text(encoding="utf-8").split("\n\n")
    first = next(text for text in paragraphs if not text.startswith(("#", "|", "```", "<", "- ")))
    return " ".join(LINK.sub(r"\1", first).split())
