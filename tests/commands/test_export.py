"""Any checkpoint of a run can be exported in each form, and the export reloads with the same rewards."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from rmtrain.command_line.exits import fail_on_missed
from rmtrain.commands.export import ExportOptions, export
from rmtrain.commands.train import train
from rmtrain.errors import CheckpointError, GateMissed, RecipeError, RmtrainError
from rmtrain.model.hub import uploaded_files
from rmtrain.model.reload_check import check
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Recipe
from tests.exports import tiny_export
from tests.forks import ForkServer
from tests.hub_server import TOKEN, hub_server
from tests.runs import tiny_recipe

QUIET = Console(quiet=True)
LORA = {"rank": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("full")
    train(tiny_recipe(folder, checkpoints={"every": 2, "keep": 9}, hub={"id": "owner/tiny"}), QUIET)
    return folder / "run"


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an adapter over a base model in a local directory."""
    folder = tmp_path_factory.mktemp("lora")
    base = tiny_export(folder / "base")
    recipe = tiny_recipe(folder, data={"chat_template": "tokenizer"}).model_dump()
    train(Recipe.model_validate({**recipe, "model": {"path": str(base)}, "lora": LORA}), QUIET)
    return folder / "run"


def checkpoint(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:08d}"


def golden(directory: Path) -> list[float]:
    return [entry["reward"] for entry in json.loads((directory / "golden.json").read_text())]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping


def test_the_last_checkpoint_equals_the_runs_model(run: Path, tmp_path: Path) -> None:
    outcome = export(ExportOptions(run, output=tmp_path / "again"))
    assert outcome.document == {"model": str(tmp_path / "again"), "step": 6, "hub": None}
    assert golden(tmp_path / "again") == golden(run / "model")
    ours, theirs = tensors(tmp_path / "again"), tensors(run / "model")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "again/README.md").read_text() == (run / "model/README.md").read_text(), "guard: same data and evaluation"


def test_any_checkpoint_exports_and_reloads(run: Path) -> None:
    """The card of an older checkpoint has no evaluation, but provenance and versions."""
    directory = Path(export(ExportOptions(checkpoint(run, 2))).document["model"])
    assert directory == run / "exports/step-00000002"
    assert check(str(directory))["ok"]
    assert json.loads((directory / "rmtrain.json").read_text())["step"] == 2
    card = (directory / "README.md").read_text()
    assert card != (run / "model/README.md").read_text()
    assert torch.__version__ in card
    assert golden(directory) != golden(run / "model"), "guard: training changed it"


def test_a_finished_runs_model_is_only_verified(run: Path) -> None:
    before = (run / "model/model.safetensors").stat().st_mtime_ns
    assert export(ExportOptions(run)).document == {"model": str(run / "model"), "step": None, "hub": None}
    assert (run / "model/model.safetensors").stat().st_mtime_ns == before
    file = run / "model/golden.json"
    kept = file.read_text()
    try:
        file.write_text(re.sub(r'"reward": -?[\d.]+', '"reward": 77.0', kept, count=1))
        with pytest.raises(CheckpointError, match=re.escape(str(run / "model"))):
            export(ExportOptions(run))
    finally:
        file.write_text(kept)


def test_other_dtypes_keep_a_float32_head(run: Path, tmp_path: Path) -> None:
    dtype = "float16"
    export(ExportOptions(run, output=tmp_path / "small", dtype=dtype))
    saved = tensors(tmp_path / "small")
    assert {str(tensor.dtype) for name, tensor in saved.items() if name != "score.weight"} == {f"torch.{dtype}"}
    assert saved["score.weight"].dtype == torch.float32
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    assert json.loads((tmp_path / "small/rmtrain.json").read_text())["dtype"] == dtype
    assert golden(tmp_path / "small") == pytest.approx(golden(run / "model"), abs=0.05)
    assert golden(tmp_path / "small") != golden(run / "model"), "guard: it was rounded"


def test_an_adapter_alone_gives_the_same_rewards(lora_run: Path, tmp_path: Path) -> None:
    export(ExportOptions(lora_run, output=tmp_path / "adapter", adapter=True))
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "golden.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    assert golden(tmp_path / "adapter") == pytest.approx(golden(lora_run / "model"), abs=1e-5)
    model, _ = load_reward_model(str(tmp_path / "adapter"), "cpu")
    assert any("lora_" in name for name, _ in model.named_parameters())
    export(ExportOptions(lora_run, output=tmp_path / "adapter", adapter=True))
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"], "the older export is replaced, nothing else is left"


def test_merged_exports_include_the_adapter(lora_run: Path, tmp_path: Path) -> None:
    export(ExportOptions(lora_run, output=tmp_path / "merged", dtype="bfloat16"))
    assert (tmp_path / "merged/adapter/adapter_model.safetensors").is_file()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert model.config.dtype == torch.bfloat16
    assert check(str(tmp_path / "merged"))["ok"]


def test_impossible_exports_are_refused(run: Path, lora_run: Path, tmp_path: Path) -> None:
    refusals: list[tuple[ExportOptions, str]] = [
        (ExportOptions(tmp_path), f"{tmp_path}: "),
        (ExportOptions(run, ["model.path=x"]), "model.path=x: "),
        (ExportOptions(run, dtype="int8"), "--dtype int8: "),
        (ExportOptions(run, adapter=True, output=tmp_path / "a"), "--adapter: "),
        (ExportOptions(lora_run, adapter=True, dtype="bfloat16"), "--dtype: "),
        (ExportOptions(lora_run, adapter=True, push=True), "--push: "),
        (ExportOptions(checkpoint(run, 3)), f"{checkpoint(run, 3)}/manifest.json: "),
    ]
    for request, place in refusals:
        with pytest.raises((RecipeError, CheckpointError), match=f"^{re.escape(place)}"):
            export(request)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "mine"))):
        export(ExportOptions(run, output=tmp_path / "mine"))
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_damage_and_other_tokenizers_are_refused(run: Path, tmp_path: Path) -> None:
    file = checkpoint(run, 4) / "model.safetensors"
    kept = file.read_bytes()
    try:
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=re.escape(f"{file}: ")):
            export(ExportOptions(checkpoint(run, 4), output=tmp_path / "x"))
    finally:
        file.write_bytes(kept)
    environment = run / "environment.json"
    text = environment.read_text()
    try:
        facts: dict[str, Any] = json.loads(text)
        facts["hashes"]["tokenizer"] = "0" * 64
        environment.write_text(json.dumps(facts))
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(run))}: .*tokenizer"):
            export(ExportOptions(checkpoint(run, 4), output=tmp_path / "x"))
    finally:
        environment.write_text(text)
    assert not (tmp_path / "x").exists()


def test_failed_uploads_are_reported_with_missed_gates() -> None:
    gates = {"accuracy": {"required": 0.9, "value": 0.5, "passed": False}}
    with pytest.raises(GateMissed) as both:
        fail_on_missed(gates, "hub: it failed")
    gate, upload = both.value.problems
    assert gate.startswith("gate accuracy: ")
    assert all(number in gate for number in ("0.9", "0.5000", "0.4000"))
    assert upload == "hub: it failed"
    with pytest.raises(RmtrainError, match="hub: it failed") as alone:
        fail_on_missed({}, "hub: it failed")
    assert alone.value.exit_code == 1
    fail_on_missed({}, None)


def test_trap_s7_the_printed_command_repeats_an_upload(run: Path, tmp_path: Path) -> None:
    with hub_server() as hub:
        hub.refusals["commit"] = 1
        with ForkServer(**hub.environment(tmp_path, TOKEN)) as server:
            failed = server.run("export", run, "--push")
            assert failed.code == 1, failed.stderr
            retry = re.search(r"Retry: rmtrain (.*)", failed.stderr)
            assert retry
            again = server.run(*retry[1].split(), "--json")
        assert again.code == 0, again.stderr
        assert json.loads(again.stdout)["hub"] == f"{hub.address}/owner/tiny"
        repository = hub.repositories["model", "owner/tiny"]
        assert repository.private
        assert "report.html" not in repository.revisions["main"]
        assert "README.md" in repository.revisions["main"]


def test_trap_s7_uploads_contain_no_local_paths(lora_run: Path) -> None:
    files = uploaded_files(lora_run / "model")
    text = "".join((lora_run / "model" / name).read_text() for name in files if not name.endswith(".safetensors"))
    assert str(lora_run.parent) not in text
    assert json.loads((lora_run / "model/rmtrain.json").read_text())["base"]["path"] == "base"
    assert "output_dir: …/run" in text, "guard: the recipe is in the card"
