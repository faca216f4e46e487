"""What is shown to others names no secret and no place of this machine."""

import os
from pathlib import Path
from typing import Any

from rmtrain.redact import redact_paths

SECRET = "hf_" + "a" * 34


def test_paths_keep_their_last_part_and_secrets_nothing() -> None:
    values: dict[str, Any] = {
        "output_dir": "/mnt/disk/somebody/runs/mine",
        "data": [{"path": "~/rows.jsonl"}, {"path": "owner/pairs"}, {"path": "../rows.jsonl"}],
        "note": f"token {SECRET}",
        "home": f"saved in {os.path.expanduser('~')}/x and {Path.cwd()}/y",
        "template": "{{ x }}</s>",
        "slash": "/",
        "seed": 1,
        "none": None,
    }
    shown = redact_paths(values)
    assert shown["output_dir"] == "…/mine"
    assert [source["path"] for source in shown["data"]] == ["…/rows.jsonl", "owner/pairs", "../rows.jsonl"]
    assert SECRET not in str(shown)
    assert os.path.expanduser("~") + "/" not in shown["home"]
    assert str(Path.cwd()) not in shown["home"]
    assert [shown[key] for key in ("template", "slash", "seed", "none")] == ["{{ x }}</s>", "/", 1, None]
