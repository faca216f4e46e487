"""`rmtrain score`: rewards for a file, resumed after any interruption."""

import fcntl
import gzip
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rmtrain.command_line.options import CommandResult
from rmtrain.commands.score import CHUNK, ScoreOptions, score
from rmtrain.data.rows.readers import MAX_LINE_BYTES, Malformed, read_lines
from rmtrain.errors import DataError, RecipeError, RmtrainError, TryAgain
from rmtrain.evaluation.scorer import RewardScorer
from tests.exports import tiny_export
from tests.forks import rmtrain
from tests.helpers import write_jsonl
from tests.runs import environment_of_process

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_export(tmp_path_factory.mktemp("score") / "model"))


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make conversations, prompts with a response and prompts with several, of random words."""
    generator = random.Random(seed)

    def words() -> str:
        return " ".join(generator.choice(["bright", "dull", "é", "barn", "mill"]) for _ in range(generator.randint(1, 9)))

    made: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{number}: {words()}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": words()}]
        made.append(
            [
                {"messages": messages},
                {"id": number, "prompt": prompt, "response": words()},
                {"prompt": messages[:1], "responses": [words() for _ in range(1 + number % 4)]},
            ][number % 3]
        )
    return made


def run(model: str, source: Path | str, target: Path | str, **options: Any) -> CommandResult:
    return score(ScoreOptions(model, str(source), str(target), **options), QUIET)


def test_rewards_equal_the_scorers_in_order(model: str, tmp_path: Path) -> None:
    made = rows(30)
    source = write_jsonl(tmp_path / "in.jsonl", made)
    result = run(model, source, tmp_path / "out.jsonl")
    assert (result.document["rows"], result.document["skipped"]) == (30, 0)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    scorer, seen = RewardScorer(model), []
    for number, (row, got) in enumerate(zip(made, written, strict=True), 1):
        assert got["input_line"] == number
        assert {key: got[key] for key in row} == row, "the keys of the input stay"
        replies = row.get("responses") or [row.get("response") or row["messages"][-1]["content"]]
        prompt = row.get("prompt") or row["messages"][:-1]
        rewards = got["rewards"] if "responses" in row else [got["reward"]]
        assert rewards == pytest.approx(scorer(prompts=[prompt] * len(replies), completions=replies), abs=1e-5)
        seen += rewards
    assert all(float(np.float32(reward)) == reward for reward in seen), "float32, unrounded"
    assert np.ptp(seen) > 0.5, "guard: rewards differ"
    settings = json.loads((tmp_path / "out.settings.json").read_text())
    assert (settings["dtype"], settings["max_length"], settings["overlong"]) == ("float32", 256, "error")


def test_best_of_writes_the_best_response(model: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [row for row in rows(60) if "responses" in row])
    run(model, source, tmp_path / "out.jsonl", best_of=True)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, got in zip(map(json.loads, source.read_text().splitlines()), written, strict=True):
        assert got["reward"] == max(got["rewards"]) == got["rewards"][got["best"]]
        assert got["response"] == row["responses"][got["best"]]
        assert "responses" not in got
    assert {got["best"] for got in written} >= {0, 1, 2}, "guard: not always the first"


def test_resume_after_kill_9_gives_same_bytes(model: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows(12 * CHUNK))
    run(model, source, tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "rmtrain", "score", model, str(source), "-o", str(out)]
    process = subprocess.Popen(command, env=environment_of_process(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert 0 < out.stat().st_size < len(whole), "guard: it was killed on the way"
    result = run(model, source, out)
    assert out.read_bytes() == whole
    assert result.document["rows"] == 12 * CHUNK


def test_resume_from_any_byte_gives_same_bytes(model: str, tmp_path: Path) -> None:
    """The output may end within a line, within a chunk, or be complete; nothing that is complete is written again."""
    made = rows(3 * CHUNK + 40)
    content = "".join(json.dumps(row) + "\n" + ("\n" if number % 50 == 0 else "") for number, row in enumerate(made))
    source = tmp_path / "in.jsonl"
    source.write_text(content.replace('"id": 100,', '"id": ,', 1))
    out = tmp_path / "out.jsonl"
    run(model, source, out, skip_bad=True)
    whole = out.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == 10]
    cuts = [0, 1, ends[0] + 1, ends[CHUNK - 8], ends[CHUNK - 8] + 1, ends[CHUNK + 20] - 3, ends[2 * CHUNK + 100] + 1, len(whole)]
    resumed = []
    for cut in cuts:
        out.write_bytes(whole[:cut])
        resumed.append(run(model, source, out, skip_bad=True).document)
        assert out.read_bytes() == whole, f"cut at byte {cut}"
    assert {document["skipped"] for document in resumed} == {1}
    assert [document["resumed_after"] for document in resumed] == [whole[:cut].count(b"\n") for cut in cuts]
    assert {document["rows"] for document in resumed} == {len(ends)}
    assert len({document["resumed_after"] for document in resumed}) >= 4, "guard: it resumed at several places"


def test_finished_output_is_never_shortened(model: str, tmp_path: Path) -> None:
    """Of an input that ends earlier or differs in the last chunk, an output with more lines stays unchanged."""
    made = rows(2 * CHUNK)
    out = tmp_path / "out.jsonl"
    run(model, write_jsonl(tmp_path / "in.jsonl", made), out)
    whole, before = out.read_bytes(), out.stat().st_mtime_ns
    assert run(model, tmp_path / "in.jsonl", out).document["resumed_after"] == 2 * CHUNK
    assert out.read_bytes() == whole
    for name, other in (
        ("short", made[: CHUNK + 5]),
        ("shorter", made[:9]),
        ("changed", [*made[: CHUNK + 5], *rows(CHUNK - 5, 1)]),
    ):
        with pytest.raises(DataError) as refused:
            run(model, write_jsonl(tmp_path / f"{name}.jsonl", other), out)
        assert refused.value.problems[0].startswith(f"{out}:")
        assert f"{name}.jsonl" in refused.value.problems[0]
        assert out.read_bytes() == whole
    assert before > 0, "guard: the output was written"


def test_foreign_output_is_left_alone(model: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows(20))
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    with pytest.raises(RecipeError, match=r"out\.jsonl: .*out\.settings\.json"):
        run(model, source, out)
    assert out.read_text() == "precious\n"
    run(model, source, out, fresh=True)
    whole = out.read_bytes()
    with pytest.raises(RecipeError, match=r"out\.jsonl: .*max_length: 256 against 128"):
        run(model, source, out, max_length=128)
    other = write_jsonl(tmp_path / "other.jsonl", rows(20, seed=1))
    with pytest.raises(DataError, match=r"out\.jsonl: .*other\.jsonl"):
        run(model, other, out)
    with pytest.raises(RecipeError, match=r"^.*in\.jsonl: "):
        run(model, source, source)
    with pytest.raises(RecipeError, match=r"absent\.jsonl does not exist"):
        run(model, tmp_path / "absent.jsonl", out)
    with out.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TryAgain, match=r"out\.jsonl: "):
            run(model, source, out)
    assert out.read_bytes() == whole, "no refusal changed it"
    out.write_text("[]\n")
    with pytest.raises(RecipeError, match=r"out\.jsonl:1: "):
        run(model, source, out)
    assert out.read_text() == "[]\n"


def test_bad_lines_stop_or_are_skipped(model: str, tmp_path: Path) -> None:
    made = rows(6)
    bad = [b'{"prompt": "a"}', b"{oops", b'{"prompt": "p", "response": "' + b"long " * 400 + b'"}', b"\xff"]
    lines = [json.dumps(row).encode() for row in made[:4]] + bad + [json.dumps(row).encode() for row in made[4:]]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines))
    shown_of = {5: "prompt", 6: "2: ", 7: "256", 8: "UTF-8"}
    for number, shown in shown_of.items():
        (tmp_path / "one.jsonl").write_bytes(b"\n".join(lines[:4] + [b""] * (number - 5) + [lines[number - 1]]))
        with pytest.raises(DataError, match=rf"^one\.jsonl:{number}:.*{shown}") as refused:
            run(model, tmp_path / "one.jsonl", tmp_path / "one.out.jsonl", fresh=True)
        assert len(refused.value.problems) == 1
    result = run(model, source, tmp_path / "out.jsonl", skip_bad=True)
    assert (result.document["rows"], result.document["skipped"]) == (6, 4)
    numbers = [json.loads(line)["input_line"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert numbers == [1, 2, 3, 4, 9, 10]
    cut = run(model, source, tmp_path / "cut.jsonl", skip_bad=True, cut=True)
    assert (cut.document["rows"], cut.document["cut"]) == (7, 1)
    assert json.loads((tmp_path / "cut.jsonl").read_text().splitlines()[4])["truncated"] is True


def test_compressed_damaged_and_empty_input(model: str, tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "in.jsonl", rows(5))
    with gzip.open(tmp_path / "in.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    for name in ("in.jsonl", "in.jsonl.gz"):
        run(model, tmp_path / name, tmp_path / f"{name}.out")
    assert (tmp_path / "in.jsonl.out").read_bytes() == (tmp_path / "in.jsonl.gz.out").read_bytes()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"^empty\.jsonl: "):
        run(model, tmp_path / "empty.jsonl", tmp_path / "empty.out")
    compressed = (tmp_path / "in.jsonl.gz").read_bytes()
    (tmp_path / "half.jsonl.gz").write_bytes(compressed[: len(compressed) // 2])
    with pytest.raises(DataError, match=r"^half\.jsonl\.gz: "):
        run(model, tmp_path / "half.jsonl.gz", tmp_path / "half.out")


def test_too_long_line_takes_no_memory() -> None:
    stream = io.BytesIO(b'{"prompt": "' + b"x" * (3 * MAX_LINE_BYTES) + b'"}\n{"a": 1}\n')
    lines = list(read_lines("in.jsonl", stream))
    assert [number for number, _ in lines] == [1, 2]
    assert isinstance(lines[0][1], Malformed)


def test_standard_input_and_output(model: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows(7))
    run(model, source, tmp_path / "out.jsonl")
    command = [sys.executable, "-m", "rmtrain", "score", model, "-", "-o", "-"]
    process = subprocess.run(command, input=source.read_bytes(), capture_output=True, env=environment_of_process())
    assert process.returncode == 0, process.stderr
    assert process.stdout == (tmp_path / "out.jsonl").read_bytes()
    assert re.search(rb"^scored +7 ", process.stderr, re.MULTILINE)


def test_cli_exit_codes_of_score(model: str, tmp_path: Path) -> None:
    """A bad line is exit code 3 and one line; --json and -o - are exit code 2, since both write to stdout."""
    source = write_jsonl(tmp_path / "in.jsonl", [*rows(3), {"prompt": "x"}])
    refused = rmtrain("score", model, source, "-o", tmp_path / "out.jsonl")
    assert refused.returncode == 3
    assert refused.stderr.splitlines()[-1].startswith("error: in.jsonl:4: ")
    both = rmtrain("score", model, source, "-o", "-", "--json")
    assert (both.returncode, both.stdout) == (2, "")


def test_missing_model_writes_no_output(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows(1))
    with pytest.raises(RmtrainError, match="absent"):
        run(str(tmp_path / "absent"), source, tmp_path / "out.jsonl")
    assert not os.path.exists(tmp_path / "out.jsonl")
