"""Every text that a person can read in a terminal, collected from the source: errors, log lines, help texts, labels of tables.

`python -m tests.messages` prints them; `make docs` writes tests/golden/messages.txt, where a reviewer reads each change of words.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEWEST_WORDS = 3


def template(node: ast.expr) -> str | None:
    """Return a string literal, or an f-string with the expressions in braces; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (
            part.value if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}"  # type: ignore[attr-defined]
            for part in node.values
        )
        return "".join(map(str, parts))
    return None


def texts(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of a module in their order, without docstrings and without pieces of f-strings."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in ast.walk(node) if part is not node)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped]
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset)):
        text = template(node)
        if text is not None and len(text.split()) >= FEWEST_WORDS:
            yield text


def messages() -> str:
    """Return all texts, file by file, one a line."""
    blocks = []
    for file in sorted((ROOT / "rmtrain").rglob("*.py")):
        lines = [f"  {text!r}" for text in texts(ast.parse(file.read_text(encoding="utf-8")))]
        if lines:
            blocks.append("\n".join([str(file.relative_to(ROOT)), *lines]))
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    print(messages(), end="")
