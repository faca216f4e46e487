"""Hostile recipes: no traceback, no code runs, and nothing is written outside the directories that the recipe names.

Each mutated recipe is run by the command line up to its first step. An audit hook sees every file that Python opens for writing,
renames or removes, and every program that is started.
"""

import importlib
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rmtrain import cli
from rmtrain.data.text import template_process
from rmtrain.errors import RecipeError, Stopped
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.yaml import write_yaml
from tests.recipe.recipes import every_path
from tests.runs import planted_rows, tiny_recipe, write_rows

STAGES = [*["data"] * 8, "model", "step"]
CODES = {0, 1, 2, 3, 4, 5, 143}
HOSTILE = [
    *(
        "/",
        ".",
        "..",
        "~",
        "../x",
        "~/x",
        "/etc",
        "/proc/self",
        "/dev/null/x",
        "sub/../../x",
        "link",
        "theirs",
        "a\0b",
        "x" * 300,
    ),
    *("{{ lipsum.__globals__['os'].popen('touch CANARY') }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 1 / 0 }}", "{% x"),
    *("os:system", "evil:touch", "../evil:touch", "pickled", "remote", "train.jsonl", "bytes.jsonl", "nothing.parquet", "hf_x"),
    *("simple_chat", "tokenizer", "ranked", "ab", "tokenized", "nf4", "padded", "plackett_luce", "bert", "gpt2", "new"),
    *("prompt", "chosen", "rejected", "", " ", "\ud800", "\x1b[31m", "ü", "-1", "1e400", "null"),
]
NUMBERS = [-1, 0, 1, 2, 3, 7, 64, 96, 400, 10**12, 2**63, 0.0, 0.5, 1.5, -1e-9, 1e308, float("inf"), float("nan"), True, False]
TAGGED = [
    "!!python/object/apply:os.system ['touch CANARY']",
    "!!python/object/new:subprocess.Popen [['touch', 'CANARY']]",
    "!!python/name:os.system",
    "&a [*a]",
    "!!binary aGVsbG8=",
    "<<: {a: 1}",
]
values = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(NUMBERS),
    st.none(),
    st.lists(st.sampled_from([*HOSTILE, *NUMBERS]), max_size=2),
    st.dictionaries(st.sampled_from(["path", "format", "by", "scratch", "rank", "type"]), st.sampled_from(HOSTILE), max_size=2),
    st.text(max_size=6),
)
PLANTED = ("theirs", "link", "evil.py", "bytes.jsonl", "pickled", "remote", "train.jsonl", "test.jsonl", "recipe.yaml", "cache")
"""Files in the current directory before a recipe is run."""
DIRECTORY = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
"""Index of the argument of an event that is the open directory of a relative path; the value -1 means the current directory."""


def like(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type, so that many mutated recipes are good enough to be run."""
    if isinstance(value, str):
        return st.sampled_from(HOSTILE)
    if isinstance(value, int | float):
        return st.sampled_from([number for number in NUMBERS if isinstance(number, type(value))])
    return values


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class AuditLog:
    """Records what this process does to files and processes while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.written: list[Path] = []
        self.started: list[str] = []
        sys.addaudithook(self.record)

    def record(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self.written.append(Path(os.path.abspath(arguments[0])))
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.rename", "os.link", "os.symlink"):
            within = [f"/proc/self/fd/{number}" for number in arguments[DIRECTORY.get(event, len(arguments)) :] if number != -1]
            base = os.readlink(within[0]) if within else "."
            self.written += [
                Path(os.path.abspath(os.path.join(base, path))) for path in arguments[:2] if isinstance(path, str | Path)
            ]
        elif event == "os.fork" and sys._getframe(1).f_code.co_filename == template_process.__file__:
            return
        elif event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn", "socket.connect"):
            self.started.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def audit() -> AuditLog:
    """One hook for all recipes, since audit hooks cannot be removed."""
    return AuditLog()


class Canary:
    """An object whose unpickling runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch CANARY",)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home directory, and in it the current directory with hostile files."""
    home = tmp_path_factory.mktemp("home")
    here = home / "here"
    (here / "theirs").mkdir(parents=True)
    (here / "theirs/notes.txt").write_text("mine")
    (here / "link").symlink_to("/etc")
    (here / "evil.py").write_text("import os\nos.system('touch CANARY')\ndef touch(row):\n    os.system('touch CANARY')\n")
    (here / "bytes.jsonl").write_bytes(b'\xff\xfe{"prompt": NaN}\n' * 3)
    for name, config in (
        ("pickled", '{"model_type": "llama"}'),
        ("remote", '{"model_type": "mine", "auto_map": {"AutoConfig": "evil.C"}}'),
    ):
        (here / name).mkdir()
        (here / name / "config.json").write_text(config)
        (here / name / "pytorch_model.bin").write_bytes(pickle.dumps(Canary()))
        (here / name / "evil.py").write_text((here / "evil.py").read_text())
    tiny_recipe(here)
    write_rows(here / "train.jsonl", planted_rows(8, seed=1))
    write_rows(here / "test.jsonl", planted_rows(4, seed=2))
    before, directory, temporary = dict(os.environ), Path.cwd(), tempfile.tempdir
    (home / "tmp").mkdir()
    os.environ.update(HOME=str(home), HF_HOME=str(home / "tmp/hf"), TMPDIR=str(home / "tmp"))
    os.chdir(here)
    tempfile.tempdir = str(home / "tmp")
    yield here
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = temporary


def base(here: Path) -> dict[str, Any]:
    """A good recipe with most of its sections written out; its paths are below the current directory."""
    recipe = tiny_recipe(here, lora={"rank": 2}, training={"batch_size": 4, "precision": "float32"})
    data = recipe.model_dump(mode="json")
    data["run"]["output_dir"], data["data"]["cache_dir"] = "runs/mine", "cache"
    data["data"]["train"][0]["path"], data["data"]["eval"][0]["path"] = "train.jsonl", "test.jsonl"
    write_rows(here / "train.jsonl", planted_rows(8, seed=1))
    write_rows(here / "test.jsonl", planted_rows(4, seed=2))
    return data


def below(section: Any, part: str | int) -> Any:
    """The value at a key or an index; None where an earlier change has replaced it."""
    if isinstance(section, dict):
        return section.get(part)
    return section[part] if isinstance(section, list) and isinstance(part, int) and part < len(section) else None


def mutated(draw: st.DataObject, whole: dict[str, Any]) -> str:
    """The text of a recipe with one to three changes, mostly one, and half of them of the right type: many are good enough to train."""
    data, tags = deepcopy(whole), []
    paths = [path for path in every_path(data) if path[-1] not in ("cache_dir", "processes")]
    for _ in range(draw.draw(st.sampled_from((1, 1, 1, 1, 2, 3)))):
        path = draw.draw(st.sampled_from(paths))
        section: Any = data
        for part in path[:-1]:
            section = below(section, part)
        if isinstance(section, dict):
            value = draw.draw(like(section.get(str(path[-1]))) if draw.draw(st.booleans()) else values)
            if path[-1] != "prepare" or value != "evil:touch":  # code of the user's own, next to the recipe, which has to run
                section[str(path[-1])] = value
        if draw.draw(st.integers(0, 19)) == 0:
            tags.append(draw.draw(st.sampled_from(TAGGED)))
    return write_yaml(data) + "".join(f"extra{number}: {tag}\n" for number, tag in enumerate(tags))


class Stops:
    """Ends a run at a stage: when the data is read, when the model is built, or at its first step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage = "step"
        for stage, name in (("data", "commands.train.build_reward_model"), ("model", "commands.train.make_plan")):
            module, _, function = f"rmtrain.{name}".rpartition(".")
            original = getattr(importlib.import_module(module), function)
            monkeypatch.setattr(f"rmtrain.{name}", partial(self.stop_or, stage, original))
        monkeypatch.setattr("rmtrain.engine.loop.train_step", partial(self.stop_or, "step", None))

    def stop_or(self, stage: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        """End the run at this stage, or call the original function."""
        if self.stage == stage or original is None:
            raise Stopped(15)
        return original(*args, **kwargs)


def run(recipe: Path, audit: AuditLog) -> int:
    """Train by the command line up to the first step, and return the exit code."""
    audit.written, audit.started, audit.on = [], [], True
    try:
        cli.main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    finally:
        audit.on = False
    pytest.fail(f"{recipe} ended without an exit code")


def clear_away(here: Path) -> None:
    """Delete the files of earlier recipes, since `--fresh` would rename their runs."""
    made = [path for path in here.parent.iterdir() if path.name not in ("here", "tmp")]
    for path in [*made, *(path for path in here.iterdir() if path.name not in PLANTED)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def check(
    draw: st.DataObject, here: Path, audit: AuditLog, whole: dict[str, Any], stops: Stops, outcomes: dict[int, int]
) -> None:
    text, stops.stage = mutated(draw, whole), draw.draw(st.sampled_from(STAGES))
    file = here / "recipe.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    clear_away(here)
    code = run(file, audit)
    outcomes[code] = outcomes.get(code, 0) + 1
    assert code in CODES, code
    assert not audit.started
    assert not list(here.parent.rglob("CANARY"))
    allowed = [here.parent / "tmp", Path(os.devnull)]
    try:
        recipe = load_recipe(file)
    except RecipeError:
        pass
    else:
        names = [name for name in (recipe.run.output_dir, recipe.data.cache_dir) if "\0" not in name]  # which no path can have
        allowed += [Path(name).expanduser().resolve() for name in names]
    outside = [path for path in audit.written if not any(path.resolve().is_relative_to(place) for place in allowed)]
    # A folder on the way, and one that showed whether it is writable.
    tried = [path.parent if path.name.startswith(".new-") else path for path in outside]
    made_on_the_way = [
        path for path, place in zip(outside, tried, strict=True) if any(each.is_relative_to(place) for each in allowed)
    ]
    assert set(outside) <= set(made_on_the_way), set(outside) - set(made_on_the_way)
    assert (here / "theirs/notes.txt").read_text() == "mine"


def mutate(count: int, here: Path, audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    outcomes: dict[int, int] = {}
    stops, whole = Stops(monkeypatch), base(here)
    monkeypatch.setattr(sys, "argv", ["rmtrain", "train", "recipe.yaml", "--fresh"])

    @settings(
        max_examples=count,
        derandomize=count < 1000,  # `make faults` tries new ones
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(draw=st.data())
    def every_recipe(draw: st.DataObject) -> None:
        check(draw, here, audit, whole, stops, outcomes)

    every_recipe()
    return outcomes


@pytest.mark.filterwarnings("ignore")
def test_no_hostile_recipe_does_harm(here: Path, audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = mutate(100, here, audit, monkeypatch)
    assert sum(outcomes.values()) >= 100
    assert {2, 143} <= outcomes.keys(), "guard: some were refused, and some good enough to begin training"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(5))  # pytest ends a test after 600 s
def test_none_of_ten_thousand_recipes_does_harm(part: int, here: Path, audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = mutate(2_000, here, audit, monkeypatch)
    print(part, {f"exit {code}": number for code, number in sorted(outcomes.items())})
    assert sum(outcomes.values()) >= 2_000
    assert outcomes[143] > 100, "guard: many were good enough to begin training"
