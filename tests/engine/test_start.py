"""Strategies that shard weights start with a shard of the model and one layer in memory, from the same weights as one process."""

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig

from rmtrain.model.build import scratch_config
from rmtrain.recipe.schema import Architecture, Recipe
from tests.helpers import byte_bpe
from tests.runs import ROOT, environment_of_process, tiny_recipe, torchrun, write_recipe

MOST = 0.65
"""Of the model's size: half of it on each of two ranks, one layer, and what lies outside of layers."""


def write_start(
    folder: Path,
    sizes: dict[str, Any],
    change: Callable[[Any], None] | None = None,
    model: dict[str, Any] | None = None,
    **sections: Any,
) -> None:
    """Write a checkpoint of several files with random weights and a recipe that trains it, with keys of its `model` section."""
    folder.mkdir(parents=True)
    tokenizer = byte_bpe()
    config: PretrainedConfig = scratch_config(Architecture(**sizes), tokenizer)
    torch.manual_seed(3)
    kind = AutoModelForMaskedLM if sizes["architecture"] == "bert" else AutoModelForCausalLM
    base = kind.from_config(config)
    if change is not None:
        change(base)
    size = sum(parameter.nbytes for parameter in base.parameters())
    base.save_pretrained(folder / "base", max_shard_size=size // 4)
    tokenizer.save_pretrained(folder / "base")
    assert len(list((folder / "base").glob("*.safetensors"))) > 2, "guard: several files"
    recipe = tiny_recipe(folder, **sections).model_dump()
    write_recipe(folder, Recipe.model_validate({**recipe, "model": {"path": str(folder / "base"), **(model or {})}}))


def starts(strategy: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what two ranks found for each recipe in a folder."""
    command = [*torchrun(2), "-m", "tests.engine.starts", strategy, str(folder)]
    # glibc's malloc would keep many of the tensors that are freed, and how many depends on their order.
    environment = environment_of_process(ACCELERATE_USE_CPU="true", MALLOC_MMAP_THRESHOLD_=str(2**18))
    ranks = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400)
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*/start-*.json")):
        found.setdefault(file.parent.name, []).append(json.loads(file.read_text()))
    return found


@pytest.mark.parametrize(
    "strategy", ["fsdp2", *(pytest.param(name, marks=pytest.mark.long) for name in ("fsdp2_offload", "zero3", "zero3_offload"))]
)
def test_sharded_start_has_the_same_weights(strategy: str, tmp_path: Path) -> None:
    """Read and sharded layer by layer, every tensor is the one of a single process, bit for bit; so is the fingerprint of frozen ones."""
    sizes = {"hidden_size": 32, "layers": 3, "heads": 2, "max_positions": 128}
    llama = {"architecture": "llama", **sizes}
    write_start(tmp_path / "full", llama)
    write_start(tmp_path / "lora", llama, lora={"rank": 2})
    write_start(tmp_path / "dora", llama, lora={"rank": 2, "dora": True})
    write_start(tmp_path / "bfloat16", llama, lambda model: model.to(torch.bfloat16), training={"precision": "bfloat16"})
    write_start(tmp_path / "encoder", {"architecture": "bert", **sizes})
    write_start(tmp_path / "mixture", {"architecture": "mixtral", **sizes}, lora={"rank": 2})
    found = starts(strategy, tmp_path)
    for name, ranks in found.items():
        for rank in ranks:
            assert rank["differing"] == [], name
            assert rank["same_frozen"], name
            assert rank["layers"] == (0 if name == "dora" else 3), name
            assert (rank["frozen"] is not None) == (name in ("lora", "dora", "mixture")), name
            assert rank["layout"] == ("packed" if name == "encoder" else "shared_prefix"), name
    assert len(found) == 6, "guard: each recipe was started"
    assert {len(ranks) for ranks in found.values()} == {2}, "guard: on two ranks"


@pytest.mark.long
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'rmtrain[8bit]'")
@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp2_offload"])
def test_sharded_nf4_weights_are_the_same(strategy: str, tmp_path: Path) -> None:
    """Quantized whole and then sharded, each 4-bit tensor is that of a single process, bit for bit."""
    sizes = {"architecture": "llama", "hidden_size": 64, "layers": 2, "heads": 2, "max_positions": 128}
    write_start(tmp_path / "nf4", sizes, lora={"rank": 2}, model={"quantization": "nf4", "dtype": "bfloat16"})
    for rank in starts(strategy, tmp_path)["nf4"]:
        assert rank["differing"] == []
        assert rank["same_frozen"]
        assert rank["frozen"] is not None
        assert rank["types"]["uint8"] == 2 * 7, "guard: the linear layers are in 4 bits"


# Of a shard, ZeRO-3 also holds a float32 copy and its gradients, from its engine's first moment on: three halves. What it gathers in the
# probe is bounded by numbers of weights that are more than this model has.
@pytest.mark.long
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_trap_17_no_rank_holds_the_whole_model(strategy: str, tmp_path: Path) -> None:
    """On each of two ranks a sharded model takes less than two thirds of its size; until the first step, under FSDP2."""
    sizes = {
        "architecture": "llama",
        "hidden_size": 288,
        "layers": 64,
        "heads": 6,
        "intermediate_size": 1152,
        "max_positions": 128,
    }
    write_start(tmp_path / "1-tiny", {**sizes, "hidden_size": 24, "layers": 2, "intermediate_size": 48})
    write_start(tmp_path / "2-large", sizes)
    for rank in starts(strategy, tmp_path)["2-large"]:
        print({key: round(rank[key] / rank["whole"], 2) for key in ("place", "prepare", "peak")})
        assert rank["place" if strategy == "zero3" else "peak"] < MOST * rank["whole"]
        assert rank["differing"] == []
        assert rank["whole"] > 300e6, "guard: what else a process allocates is small"
        assert rank["layers"] == 64, "guard: its layers were read one by one"
