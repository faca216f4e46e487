"""The models of `recipes/models`: their published sizes, and the memory that a dry run estimates for each recipe.

`python -m tests.library_models` writes the estimates into docs/MODELS.md; it takes a minute or two, and no network.
"""

import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from rmtrain.command_line.options import TrainOptions
from rmtrain.commands.dry_run import dry_run
from rmtrain.recipe.library import recipes
from rmtrain.recipe.load import load_recipe
from tests.model.builders import make_tokenizer
from tests.runs import ROOT, write_rows

PAGE = ROOT / "docs/MODELS.md"
NAMES = [name for name, file in recipes().items() if file.parent.name == "models"]


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        **others,
    }


def _qwen3(*sizes: int) -> dict[str, Any]:
    return {"model_type": "qwen3", **_sizes(*sizes, 151_936, head_dim=128)}


def _llama(*sizes: int, head_dim: int) -> dict[str, Any]:
    return {"model_type": "llama", **_sizes(*sizes, 128_256, head_dim=head_dim)}


GEMMA_3_1B = _sizes(1152, 26, 4, 1, 6912, 262_144, head_dim=256, sliding_window=512)
GEMMA_3_4B = _sizes(2560, 34, 8, 4, 10_240, 262_208, head_dim=256, sliding_window=1024)
GEMMA_3_EYES = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
GEMMA_4_E4B = _sizes(
    *(2560, 42, 8, 2, 10_240, 262_144),
    head_dim=256,
    global_head_dim=512,
    num_kv_shared_layers=18,
    hidden_size_per_layer_input=256,
    sliding_window=512,
)

MODELS: dict[str, tuple[float, dict[str, Any]]] = {
    "Qwen/Qwen3-0.6B-Base": (0.596, _qwen3(1024, 28, 16, 8, 3072)),
    "Qwen/Qwen3-1.7B-Base": (1.721, _qwen3(2048, 28, 16, 8, 6144)),
    "Qwen/Qwen3-4B-Base": (4.022, _qwen3(2560, 36, 32, 8, 9728)),
    "Qwen/Qwen3-8B-Base": (8.191 - 0.622, _qwen3(4096, 36, 32, 8, 12_288)),
    "meta-llama/Llama-3.2-1B-Instruct": (1.236, _llama(2048, 16, 32, 8, 8192, head_dim=64)),
    "meta-llama/Llama-3.2-3B-Instruct": (3.213, _llama(3072, 28, 24, 8, 8192, head_dim=128)),
    "meta-llama/Llama-3.1-8B-Instruct": (8.030 - 0.525, _llama(4096, 32, 32, 8, 14_336, head_dim=128)),
    "google/gemma-3-1b-it": (1.000, {"model_type": "gemma3_text", **GEMMA_3_1B}),
    "google/gemma-3-4b-it": (
        4.300,
        {
            "model_type": "gemma3",
            "text_config": {"model_type": "gemma3_text", **GEMMA_3_4B},
            "vision_config": {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14, **GEMMA_3_EYES},
        },
    ),
    "google/gemma-4-E4B-it": (7.5, {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text", **GEMMA_4_E4B}}),
    "answerdotai/ModernBERT-base": (0.149, {"model_type": "modernbert", **_sizes(768, 22, 12, 12, 1152, 50_368)}),
    "answerdotai/ModernBERT-large": (0.395, {"model_type": "modernbert", **_sizes(1024, 28, 16, 16, 2624, 50_368)}),
    "HuggingFaceTB/SmolLM3-3B": (3.075, {"model_type": "smollm3", **_sizes(2048, 36, 16, 4, 11_008, 128_256)}),
}
"""Billions of weights as published, without an output layer that shares no weights with the embeddings; and the sizes in `config.json`."""


def command_of(name: str) -> list[str]:
    """Return the command in a recipe's comment, without `rmtrain train RECIPE`."""
    (command,) = re.findall(r"^# rmtrain train \S+(.*)$", recipes()[name].read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(command)


def longest_pairs(folder: Path, max_length: int, count: int) -> Path:
    """Write pairs that are as long as the recipe admits: nearly no prompt, and two responses that share nothing."""
    tokenizer = make_tokenizer()
    per_word = len(tokenizer("7 " * 100)["input_ids"]) / 100
    words = int((max_length - 32) / per_word)
    rows = [{"prompt": f"{number}", "chosen": "7 " * words, "rejected": "8 " * words} for number in range(count)]
    return write_rows(folder / "rows.jsonl", rows)


def estimate(name: str, folder: Path) -> dict[str, Any]:
    """Return the dry run of a recipe on its GPUs, with one longest comparison in each micro-batch.

    The model is its configuration alone. The tokenizer is a small one, which changes no size; so templates of tokenizers are not tried.
    """
    recipe = load_recipe(recipes()[name])
    tokenizer = make_tokenizer()
    tokenizer.chat_template += "{{ '' if enable_thinking else '' }}"  # the only variable that these recipes set
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(MODELS[recipe.model.path][1]))
    gpus, gigabytes = map(int, re.findall(r"(\d+)x(\d+)gb$", name)[0])
    rows = longest_pairs(folder, recipe.data.max_length, 8)
    overrides = [
        f"model.path={folder}",
        f"data.train=[{{path: {rows}}}]",
        "data.eval=[]",
        "evaluation.every=null",
        f"training.batch_size={gpus}",
    ]
    overrides += [f"data.cache_dir={folder / 'cache'}", f"run.output_dir={folder / 'run'}"]
    options = dict(zip(command_of(name)[::2], command_of(name)[1::2], strict=True))
    return dry_run(
        load_recipe(recipes()[name], overrides),
        Console(quiet=True),
        TrainOptions(
            gpu_memory=gigabytes,
            processes=int(options["--processes"]) if "--processes" in options else None,
            accelerate_config=options.get("--accelerate-config"),
        ),
    ).document


def row(name: str, document: dict[str, Any]) -> str:
    """Return a dry run as a row of the table in docs/MODELS.md."""
    (one,) = (one for one in document["strategies"] if one["name"] == document["strategy"])
    state = one["total"] - one["activations"]
    cells = [
        f"`{name}`",
        f"{document['parameters'] / 1e9:.2f} B",
        f"{document['trainable'] / 1e6:,.0f} M",
        f"{state / 1e9:.1f} GB",
        f"{one['activations'] / 1e9:.1f} GB",
        f"{one['total'] / 1e9:.1f} of {0.9 * one['memory'] / 1e9:.1f} GB",
        f"{document['max_tokens']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def table_rows() -> list[str]:
    """Return the rows of the table in docs/MODELS.md as they are now."""
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| `[\w.-]+` \|", line)]


if __name__ == "__main__":
    made = []
    for recipe_name in NAMES:
        with tempfile.TemporaryDirectory() as made_folder:
            made.append(row(recipe_name, estimate(recipe_name, Path(made_folder))))
            print(made[-1], flush=True)
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split("|---|---|---|---|---|---|---|\n")
    PAGE.write_text(f"{head}|---|---|---|---|---|---|---|\n" + "\n".join(made) + rest[rest.index("\n\n") :], encoding="utf-8")
