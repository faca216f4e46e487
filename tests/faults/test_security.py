"""S1 to S6 and S8 from the command line: what strangers laid there is neither opened, run, followed, shown nor deleted."""

import itertools
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.nursery import Ended, Nursery
from tests.faults.runs import full_recipe, in_directory
from tests.faults.test_resume import stop_after, stopped

TOKEN = "hf_" + "aB3" * 12


class Bomb:
    """A pickle that leaves a canary when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that appears when something of a stranger's has run."""
    return tmp_path / "canary"


def refused(ended: Ended, code: int, message: str, canary: Path) -> None:
    """That a command ended with a line that says why, and nothing ran."""
    assert ended.code == code, ended.stderr
    assert message in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not canary.exists()


def test_trap_s1_pickles_in_a_checkpoint_and_in_a_model_are_never_opened(
    place: Path, recipe: Path, nursery: Nursery, canary: Path, tmp_path: Path
) -> None:
    run = place / "pickles"
    stopped(nursery, recipe, run, [3])
    for name in ("optimizer.pt", "training_args.bin", "scheduler.pkl", "rng_state.pth"):
        (run / "checkpoints/step-00000003" / name).write_bytes(pickle.dumps(Bomb(canary)))
    ended = nursery.run(*in_directory(recipe, run), faults=stop_after(5, at=3))
    refused(ended, 143, "training_args.bin is no part of it and is not opened", canary)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    tokenizer = nursery.run("train", str(recipe), f"run.output_dir={tmp_path / 'run'}", f"model={{path: {model}}}")
    refused(tokenizer, 2, "error: ", canary)
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists(), "guard: opened, it leaves a canary"


def test_trap_s2_code_of_a_model_is_not_run_unless_it_is_allowed_and_pinned(
    recipe: Path, nursery: Nursery, canary: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}))
    (model / "code.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    train = ["train", str(recipe), f"run.output_dir={tmp_path / 'run'}"]
    refused(nursery.run(*train, f"model={{path: {model}}}"), 2, "error: ", canary)
    allowed = nursery.run(*train, f"model={{path: {model}, trust_remote_code: true}}")
    refused(allowed, 2, "trust_remote_code needs a full commit hash of 40 hexadecimal digits", canary)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ lipsum.__globals__['os'].popen('touch CANARY') }}", "SecurityError"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    ],
)
def test_trap_s3_templates_run_in_a_sandbox_with_limits(
    template: str, message: str, recipe: Path, nursery: Nursery, canary: Path, tmp_path: Path
) -> None:
    (tmp_path / "template.jinja").write_text(template.replace("CANARY", str(canary)))
    ended = nursery.run(*in_directory(recipe, tmp_path / "run"), f"data.chat_template={tmp_path / 'template.jinja'}")
    refused(ended, 3, message, canary)


def test_trap_s4_tags_and_bombs_of_aliases_are_refused(nursery: Nursery, canary: Path, tmp_path: Path) -> None:
    tag, bomb = tmp_path / "tag.yaml", tmp_path / "bomb.yaml"
    tag.write_text(f"run: !!python/object/apply:os.system ['touch {canary}']\n")
    names = "abcdefghijk"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]" for before, now in itertools.pairwise(names)]
    bomb.write_text("\n".join(lines))
    refused(nursery.run("train", tag), 2, "tags such as !!python/object/apply:os.system are not followed", canary)
    refused(nursery.run("train", bomb), 2, "more than 20000 values once aliases are expanded", canary)


@pytest.mark.parametrize("output_dir", [".", "'~'", "../x", "etc", "theirs", "theirs/.."])
def test_trap_s5_directories_of_others_are_refused_and_nothing_in_them_deleted(
    output_dir: str, recipe: Path, nursery: Nursery, canary: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    (here / "theirs/checkpoints/step-00000010").mkdir(parents=True)
    (here / "theirs/notes.txt").write_text("mine")
    (here / "etc").symlink_to("/etc")
    before = sorted(path.name for path in here.rglob("*"))
    for option in ([], ["--fresh"]):
        ended = nursery.run("train", str(recipe), f"run.output_dir={output_dir}", *option, cwd=here, HOME=str(tmp_path))
        refused(ended, ended.code, "error: run.output_dir: ", canary)
        assert ended.code in (2, 4)
    assert sorted(path.name for path in here.rglob("*")) == before


def test_trap_s6_no_token_of_the_environment_or_of_an_error_is_written_anywhere(
    place: Path, recipe: Path, nursery: Nursery, canary: Path
) -> None:
    run, wandb = place / "secrets", "0123456789abcdef" * 2 + "01234567"
    faults: list[Any] = [("tracker-log", 1, "raise"), *stop_after(5)]
    secrets = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": wandb}
    ended = nursery.run(*in_directory(recipe, run), "tracking.to=[tensorboard]", faults=faults, **secrets)
    refused(ended, 143, "trackers: tensorboard: RuntimeError: the network is away; <hidden>", canary)
    told = nursery.run(*in_directory(recipe, run), f"optimizer.lr={TOKEN}", **secrets)
    refused(told, 2, "error: ", canary)
    written = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    for text in (written.decode(errors="replace"), ended.stderr, ended.stdout, told.stderr):
        assert TOKEN not in text
        assert wandb not in text
        assert "hf_abcdefghijklmnopqrstuvwxyz" not in text


def test_trap_s8_malformed_lines_are_counted_with_their_number_and_records_are_the_owners(
    nursery: Nursery, canary: Path, tmp_path: Path
) -> None:
    recipe = full_recipe(tmp_path, data={})
    good = (tmp_path / "train.jsonl").read_text().splitlines()
    lines = [b'{"prompt": NaN, "chosen": "a", "rejected": "b"}', b'{"prompt": "\xff"}', b'{"prompt": "a", "prompt": "b"}', b"[1]"]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([*(line.encode() for line in good), *lines]) + b"\n")
    run = tmp_path / "run"
    ended = nursery.run(*in_directory(recipe, run))
    refused(ended, 3, "malformed", canary)
    assert "train.jsonl:41" in ended.stderr, ended.stderr
    ended = nursery.run(*in_directory(recipe, run), "data.max_drop_fraction=0.5", faults=stop_after(5))
    assert ended.code == 143, ended.stderr
    modes = {name: stat.S_IMODE((run / name).stat().st_mode) for name in ("ledger.jsonl", "samples.jsonl")}
    assert set(modes.values()) == {0o600}
