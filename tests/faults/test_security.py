"""S1 to S6 and S8 from the command line: foreign files are neither opened, run, followed, shown nor deleted."""

import itertools
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import full_recipe, in_directory, stop_after, stopped
from tests.forks import Ended, ForkServer

TOKEN = "hf_" + "aB3" * 12


class Bomb:
    """A pickle that leaves a canary when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that appears when foreign code has run."""
    return tmp_path / "canary"


def assert_refused(ended: Ended, code: int, fragment: str, canary: Path) -> None:
    """Check that a command ended with this code and a message, and that no foreign code ran."""
    assert ended.code == code, ended.stderr
    assert fragment in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not canary.exists()


def test_trap_s1_pickles_are_never_opened(place: Path, recipe: Path, server: ForkServer, canary: Path, tmp_path: Path) -> None:
    run = place / "pickles"
    stopped(server, recipe, run, [3])
    for name in ("optimizer.pt", "training_args.bin", "scheduler.pkl", "rng_state.pth"):
        (run / "checkpoints/step-00000003" / name).write_bytes(pickle.dumps(Bomb(canary)))
    ended = server.run(*in_directory(recipe, run), faults=stop_after(5, at=3))
    assert_refused(ended, 143, "training_args.bin", canary)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    ended = server.run("train", str(recipe), f"run.output_dir={tmp_path / 'run'}", f"model={{path: {model}}}")
    assert_refused(ended, 4, "error: ", canary)
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists(), "guard: opened, it leaves a canary"


def test_trap_s2_model_code_must_be_pinned(recipe: Path, server: ForkServer, canary: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}))
    (model / "code.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    train = ["train", str(recipe), f"run.output_dir={tmp_path / 'run'}"]
    assert_refused(server.run(*train, f"model={{path: {model}}}"), 4, "error: ", canary)
    allowed = server.run(*train, f"model={{path: {model}, trust_remote_code: true}}")
    assert_refused(allowed, 2, "trust_remote_code", canary)
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.Mine", "code.Mine"]}}))
    pinned = server.run(*train, f"model={{path: {model}, trust_remote_code: true, revision: {'ab' * 20}}}")
    assert_refused(pinned, 2, "model.path: trust_remote_code", canary)


@pytest.mark.parametrize(
    ("template", "fragment"),
    [
        ("{{ lipsum.__globals__['os'].popen('touch CANARY') }}", "SecurityError"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    ],
)
def test_trap_s3_templates_are_sandboxed_and_limited(
    template: str, fragment: str, recipe: Path, server: ForkServer, canary: Path, tmp_path: Path
) -> None:
    (tmp_path / "template.jinja").write_text(template.replace("CANARY", str(canary)))
    ended = server.run(*in_directory(recipe, tmp_path / "run"), f"data.chat_template={tmp_path / 'template.jinja'}")
    assert_refused(ended, 3, fragment, canary)


def test_trap_s4_yaml_tags_and_bombs_are_refused(server: ForkServer, canary: Path, tmp_path: Path) -> None:
    tag, bomb = tmp_path / "tag.yaml", tmp_path / "bomb.yaml"
    tag.write_text(f"run: !!python/object/apply:os.system ['touch {canary}']\n")
    names = "abcdefghijk"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]" for before, now in itertools.pairwise(names)]
    bomb.write_text("\n".join(lines))
    assert_refused(server.run("train", tag), 2, "tag.yaml:1:6", canary)
    assert_refused(server.run("train", bomb), 2, "bomb.yaml", canary)


@pytest.mark.parametrize("output_dir", [".", "'~'", "../x", "etc", "theirs", "theirs/.."])
def test_trap_s5_foreign_directories_are_refused(
    output_dir: str, recipe: Path, server: ForkServer, canary: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    (here / "theirs/checkpoints/step-00000010").mkdir(parents=True)
    (here / "theirs/notes.txt").write_text("mine")
    (here / "etc").symlink_to("/etc")
    before = sorted(path.name for path in here.rglob("*"))
    for option in ([], ["--fresh"]):
        ended = server.run("train", str(recipe), f"run.output_dir={output_dir}", *option, cwd=here, HOME=str(tmp_path))
        assert_refused(ended, ended.code, "error: run.output_dir: ", canary)
        assert ended.code in (2, 4)
    assert sorted(path.name for path in here.rglob("*")) == before


def test_trap_s6_tokens_are_never_written(place: Path, recipe: Path, server: ForkServer, canary: Path) -> None:
    run, wandb = place / "secrets", "0123456789abcdef" * 2 + "01234567"
    faults: list[Any] = [("tracker-log", 1, "raise"), *stop_after(5)]
    secrets = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": wandb}
    ended = server.run(*in_directory(recipe, run), "tracking.to=[tensorboard]", faults=faults, **secrets)
    assert_refused(ended, 143, "RuntimeError: the network is away; <hidden>", canary)
    rejected = server.run(*in_directory(recipe, run), f"optimizer.lr={TOKEN}", **secrets)
    assert_refused(rejected, 2, "error: ", canary)
    written = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    for text in (written.decode(errors="replace"), ended.stderr, ended.stdout, rejected.stderr):
        assert TOKEN not in text
        assert wandb not in text
        assert "hf_abcdefghijklmnopqrstuvwxyz" not in text


def test_trap_s8_malformed_lines_and_private_records(server: ForkServer, canary: Path, tmp_path: Path) -> None:
    """Malformed lines are counted and the first is located; the records of the run are readable by the owner only."""
    recipe = full_recipe(tmp_path, data={})
    good = (tmp_path / "train.jsonl").read_text().splitlines()
    lines = [b'{"prompt": NaN, "chosen": "a", "rejected": "b"}', b'{"prompt": "\xff"}', b'{"prompt": "a", "prompt": "b"}', b"[1]"]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([*(line.encode() for line in good), *lines]) + b"\n")
    run = tmp_path / "run"
    ended = server.run(*in_directory(recipe, run))
    assert_refused(ended, 3, "malformed", canary)
    assert "train.jsonl:41" in ended.stderr, ended.stderr
    ended = server.run(*in_directory(recipe, run), "data.max_drop_fraction=0.5", faults=stop_after(5))
    assert ended.code == 143, ended.stderr
    modes = {name: stat.S_IMODE((run / name).stat().st_mode) for name in ("ledger.jsonl", "samples.jsonl")}
    assert set(modes.values()) == {0o600}
