"""All texts that a person can read are pinned in one file; no other test depends on their wording."""

from tests.messages import ROOT, messages


def test_messages_are_pinned() -> None:
    """A change of words shows up as a diff of one file: run `make docs`, read it, and commit it."""
    pinned = (ROOT / "tests/golden/messages.txt").read_text(encoding="utf-8")
    assert messages() == pinned
    assert pinned.count("\n") > 300, "guard: texts were collected"
