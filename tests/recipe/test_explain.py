"""Each mistake in a recipe is one line with its place, its key and what was probably meant, and all lines come at once."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from rmtrain.recipe.explain import entries, key_paths, suggest
from rmtrain.recipe.key_aliases import ALIASES, HINTS, SAME_VALUES
from rmtrain.recipe.schema import Optimizer, Training
from rmtrain.recipe.yaml import write_yaml
from tests.recipe.recipes import GOOD, KINDS, SCRATCH, assert_problems, complete, load, problems

SECTIONS = "run, data, model, lora, batching, objective, optimizer, training, checkpoints, evaluation, tracking or hub"

# What to replace in GOOD, by what, and the problems: `line:column|key|words of the message`.
BROKEN: list[tuple[str, str, list[str]]] = [
    ("  lr: 1e-5", "  learing_rate: 1e-5", ["7:3|optimizer.learing_rate|mean lr?"]),
    ("  lr: 1e-5", "  lr: '1e-5'", ['7:7|optimizer.lr|number|got "1e-5"|quotes']),
    ("  lr: 1e-5", "  lr: 5", ["7:7|optimizer.lr|<= 1|got 5"]),
    ("  lr: 1e-5", "  lr: 0", ["7:7|optimizer.lr|> 0|got 0"]),
    ("  lr: 1e-5", "  lr:", ["7:3|optimizer.lr|number|got null"]),
    ("  lr: 1e-5", "  lr: true", ["7:7|optimizer.lr|number|got true"]),
    ("  lr: 1e-5", "  lr: [1]", ["7:7|optimizer.lr|number|list of 1"]),
    ("  lr: 1e-5", "  lr: 1e-5\n  lr: 2e-5", ["8:3|optimizer.lr|duplicate|7|8"]),
    ("  lr: 1e-5", "  clip: 1.0", ["6:1|optimizer.lr|missing"]),
    ("  lr: 1e-5", "  lr: 1e-5: 3", ["7:11||YAML"]),
    ("optimizer:\n  lr: 1e-5\n", "", ["1:1|optimizer|missing"]),
    (
        "  lr: 1e-5",
        "  lr: 1e-5\n  schedule: linaer\n  warmup: 1.5\n  betas: [0.9]\n  clip: None\n  batch_size: 8\n  zzz: 1",
        [
            "8:13|optimizer.schedule|'linear', 'cosine', 'cosine_with_restarts', 'constant'|got \"linaer\"|mean linear?",
            "9:11|optimizer.warmup|< 1|integer|got 1.5",
            "10:3|optimizer.betas.1|missing",
            '11:9|optimizer.clip|null|"None"',
            "12:3|optimizer.batch_size|unknown|under training",
            "13:3|optimizer.zzz|unknown|name, lr, head_lr, min_lr, schedule, warmup, decay, cycles, betas, eps, weight_decay or clip",
        ],
    ),
    ("  lr: 1e-5", "  lr: 1e-5\n  betas: [0.9, 0.9, 0.9]", ["8:10|optimizer.betas|at most 2|list of 3"]),
    ("run: {name: demo,", "run: {name: my run,", ['1:13|run.name|got "my run"']),
    ("run: {name: demo,", "run: {name: '',", ['1:13|run.name|got ""']),
    ("demo, output", "demo, seed: -1, output", ["1:25|run.seed|>= 0|got -1"]),
    ("run: {name: demo, output_dir: runs/demo}", "run:", ["1:1|run|section|got null"]),
    ("model: {path: some/model}", "mdoel: {path: some/model}", ["5:1|mdoel|unknown|mean model?"]),
    ("model: {path: some/model}", "model: some/model", ['5:8|model|section|got "some/model"|{path: some/model}']),
    ("model: {path: some/model}", "model: {name: some/model}", ["5:9|model.name|unknown|mean path?"]),
    ("model: {path: some/model}", "model: {dtype: float32}", ["5:1|model.path|missing"]),
    (
        "model: {path: some/model}",
        "model: {path: some/model, dtype: bfloat, tokenizer: x, dropout: 1}",
        [
            "5:34|model.dtype|'float32' or 'bfloat16'|got \"bfloat\"|mean bfloat16?",
            "5:42|model.tokenizer|kind pretrained|only of scratch",
            "5:65|model.dropout|< 1|got 1",
        ],
    ),
    (
        "model: {path: some/model}",
        SCRATCH.replace("scratch", "scrach").replace("}}", "}, tokenizer: x}"),
        ["5:9|model.scrach|unknown|mean scratch?"],
    ),
    (
        "model: {path: some/model}",
        SCRATCH.replace("layers: 2", "layers: 2.0, num_attention_heads: 4"),
        ["5:65|model.scratch.layers|integer|got 2.0|write 2", "5:70|model.scratch.num_attention_heads|unknown|mean heads?"],
    ),
    (
        "model: {path: some/model}",
        SCRATCH.replace("}}", "}, dtype: half}"),
        ["5:86|model.dtype|'float32' or 'bfloat16'|got \"float16\""],
    ),
    ("    - path: pairs.jsonl", "    path: x", ["4:5|data.train|list|got a section"]),
    ("    - path: pairs.jsonl", "    - pairs.jsonl", ['4:7|data.train.0|section|got "pairs.jsonl"|{path: pairs.jsonl}']),
    ("    - path: pairs.jsonl", "    []", ["4:5|data.train|list of 0"]),
    (
        "    - path: pairs.jsonl",
        "    - {path: a, format: pairs}\n    - {path: b, format: 5}",
        [
            '4:25|data.train.0.format|pair, ab|got "pairs"|mean pair?',
            "5:25|data.train.1.format|pair, ab|got 5",
        ],
    ),
    (
        "    - path: pairs.jsonl",
        "    - {path: a, format: tokenized, chosen: y, margin: [p, q]}",
        ["4:36|data.train.0.chosen|kind tokenized|only of pair", "4:55|data.train.0.margin|string|list of 2"],
    ),
    (
        "    - path: pairs.jsonl",
        "    - {path: 7, split: false, data_files: [1], limit: 0, chosn: x, messages: {roles: {bot: asistant}}}",
        [
            "4:14|data.train.0.path|got 7|quotes",
            "4:24|data.train.0.split|got false|quotes",
            "4:44|data.train.0.data_files.0|got 1|quotes",
            "4:55|data.train.0.limit|> 0|got 0",
            "4:58|data.train.0.chosn|unknown|mean chosen?",
            "4:92|data.train.0.messages.roles.bot|'system', 'user', 'assistant' or 'tool'|got \"asistant\"|mean assistant?",
        ],
    ),
    ("    - path: pairs.jsonl", "    - {path: x, data_files: 5}", ["4:29|data.train.0.data_files|list or|string|got 5|quotes"]),
    ("    - path: pairs.jsonl", "    - {path: x, pair: 1}", ["4:17|data.train.0.pair|unknown"]),
    (
        "  train:",
        "  path: x\n  max_token_length: 8\n  train:",
        ["3:3|data.path|unknown|under data.train.0 or data.eval.0", "4:3|data.max_token_length|unknown|mean max_length?"],
    ),
    (
        "optimizer:",
        "lr: 1\nnum_train_epochs: 3\nper_device_train_batch_size: 8\ndataset: x\nlora_r: 8\ngradient_checkpointing: true\noptimizer:",
        [
            "6:1|lr|unknown|under optimizer",
            "7:1|num_train_epochs|unknown|mean training.epochs?",
            "8:1|per_device_train_batch_size|unknown|training.batch_size|per device × processes × accumulation",
            "9:1|dataset|unknown|mean data.train?",
            "10:1|lora_r|unknown|mean lora.rank?",
            "11:1|gradient_checkpointing|unknown|under model",
        ],
    ),
    (
        "optimizer:",
        "hub: {push: yes, hf_token: x}\nwandb_api_key: y\noptimizer:",
        [
            '6:13|hub.push|boolean|got "yes"|write true',
            "6:18|hub.hf_token|unknown|HF_TOKEN",
            "7:1|wandb_api_key|unknown|WANDB_API_KEY",
        ],
    ),
    ("optimizer:", "zzz: 1\noptimizer:", [f"6:1|zzz|unknown|{SECTIONS}"]),
    ("optimizer:", "objective: {run: x}\noptimizer:", ["6:13|objective.run|unknown|top level"]),
    ("optimizer:", "objective: {typ: plackett_luce}\noptimizer:", ["6:13|objective.typ|unknown|mean type?"]),
    ("optimizer:", "objective: {type: plackett}\noptimizer:", ['6:19|objective.type|bradley_terry|"plackett"']),
    (
        "optimizer:",
        "lora: {r: 8, targets: q_proj}\noptimizer:",
        ["6:8|lora.r|unknown|mean rank?", "6:23|lora.targets|'all-linear' or a list|got \"q_proj\"|[ and ]"],
    ),
    ("optimizer:", "lora: {targets: [1]}\noptimizer:", ["6:18|lora.targets.0|string|got 1|quotes"]),
    (
        "optimizer:",
        "tracking: {to: [wandb, mlfow]}\nevaluation: {gates: {acc: 0.7, loss: low}}\noptimizer:",
        [
            "6:24|tracking.to.1|'wandb', 'tensorboard'|got \"mlfow\"|mean mlflow?",
            "7:22|evaluation.gates.acc|unknown|'accuracy', 'accuracy_low'|mean accuracy?",
            '7:38|evaluation.gates.loss|number|got "low"',
        ],
    ),
    ("optimizer:", "hub: {id: mine}\noptimizer:", ['6:11|hub.id|/|got "mine"']),
    ("optimizer:", "training:\noptimizer:", ["6:1|training|section|got null"]),
    ("optimizer:", "resume: true\noverwrite: true\noptimizer:", ["6:1|resume|--resume", "7:1|overwrite|--fresh"]),
    ("optimizer:", "<<: {a: 1}\noptimizer:", ["6:1|<<|unknown"]),
    (GOOD, "", ["1:1||run, data and model|nothing"]),
    (GOOD, "- a\n- b\n", ["1:1||run, data and model|list of 2"]),
]


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN)
def test_broken_recipe_gives_its_problems(old: str, new: str, expected: list[str]) -> None:
    assert GOOD.count(old) == 1, "guard: the recipe is changed in one place"
    assert_problems(problems(GOOD.replace(old, new)), [f"recipe.yaml:{line}" for line in expected])


def test_the_table_is_long_enough() -> None:
    assert len(BROKEN) >= 40
    assert sum(len(expected) for _, _, expected in BROKEN) >= 60


def misspellings(name: str) -> list[str]:
    middle = len(name) // 2
    candidates = [name[:-1], name[:middle] + name[middle + 1 :], name[:middle] + name[middle] + name[middle:], name + "x"]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate and candidate != name]


def wrong_names() -> list[tuple[Any, str, str]]:
    """Every section at every place, with each of its keys and each misspelling of that key."""
    cases = []
    for entry in entries():
        siblings = {name for other in entries() if other.path == entry.path for name in other.section.model_fields}
        for name in entry.section.model_fields:
            cases += [(entry, name, wrong) for wrong in sorted({*misspellings(name)} - siblings - {"b"})]
    return cases


def test_every_misspelt_key_is_corrected() -> None:
    """A letter less, doubled or added: the suggestion is the key itself, at the same place."""
    cases = wrong_names()
    for entry, name, wrong in cases:
        suggestion = suggest((*entry.path, wrong), entry.kind)
        assert suggestion.meant == (*entry.path, name), (entry.path, wrong, suggestion)
        assert f"mean {name}?" in suggestion.message
    assert len(cases) > 300, "guard: every key was tried"


def test_a_misspelt_required_key_is_one_problem() -> None:
    """The missing key, and keys that no longer fit the kind of their section, are not reported as well."""
    tried: dict[tuple[Any, str], str] = {}
    for entry, name, wrong in wrong_names():
        if entry.section.model_fields[name].is_required() or name in ("format", "type"):
            tried.setdefault((entry, name), wrong)
    for (entry, name), wrong in tried.items():
        if entry.path in (("data", "eval", 0, "augment"), ("data", "eval", 0, "fold")):
            continue  # only a training source can have it
        source = str(entry.kind) if entry.kind in KINDS else "pair"
        data = complete(source, "scratch" if "scratch" in (*entry.path, entry.kind) else "pretrained")
        section: Any = data
        if entry.path[:1] == ("objective",) and (len(entry.path) > 1 or entry.kind not in ("bradley_terry", "plackett_luce")):
            continue  # `complete` has no other objective
        for part in entry.path:
            section = section[part]
        section[wrong] = section.pop(name)
        (line,) = problems(write_yaml(data))
        assert line.partition("  ")[2].startswith(f"{'.'.join(map(str, (*entry.path, wrong)))}: "), line
        assert f"mean {name}?" in line
    assert len(tried) > 30, "guard: required keys were found"


def test_every_alias_leads_to_a_key() -> None:
    """Names of other trainers are answered with the key of ours, wherever they were written."""
    paths = {path for found in key_paths().values() for path in found}
    for alias, ours in ALIASES.items():
        assert ours in paths, alias
        if "." not in alias:
            (line,) = problems(GOOD + f"{alias}: 1\n")
            assert line.startswith(f"recipe.yaml:8:1  {alias}: ")
            assert f"mean {'.'.join(map(str, ours))}?" in line
    assert len(ALIASES) > 100, "guard: the table was read"
    assert not ALIASES.keys() & HINTS.keys()


def test_hints_say_what_a_name_means_here() -> None:
    """A name with another meaning is answered by that, wherever it was written, and leads to no key of ours."""
    paths = {path for found in key_paths().values() for path in found}
    assert not {name for name in HINTS if "." not in name} & key_paths().keys(), "no hint stands in the way of a key"
    for name, advice in HINTS.items():
        *section, key = name.split(".")
        for at in (
            [(section[0],)] if section else [(), ("training",), ("data",), ("data", "train", 0), ("optimizer",), ("model",)]
        ):
            assert suggest((*at, key)) == (f"unknown key; {advice}", None, False), name
    known = {".".join(map(str, path)) for path in paths} | {".".join(map(str, path[1:])) for path in paths}
    sections = {
        "data",
        "training",
        "optimizer",
        "model",
        "batching",
        "checkpoints",
        "evaluation",
        "tracking",
        "hub",
        "lora",
        "run",
    }
    named = {word for advice in HINTS.values() for word in re.findall(r"\b[a-z]+\.[a-z_0-9.]*[a-z_0-9]\b", advice)}
    keys = {word for word in named if word.partition(".")[0] in sections | {"objective"}}
    assert keys <= known, "every key that a hint names exists"
    assert len(HINTS) > 150, "guard: the table was read"
    assert len(keys) > 15, "guard: keys were found"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("training.per_device_train_batch_size", ["training.batch_size", "processes"]),
        ("training.gradient_accumulation_steps", ["batching.max_tokens", "tokens"]),
        ("optimizer.warmup_steps", ["mean warmup?"]),
        ("optimizer.warmup_ratio", ["mean warmup?"]),
        ("training.lr_end", ["mean optimizer.min_lr?"]),
        ("optimizer.min_lr_rate", ["optimizer.min_lr", "multiply"]),
        ("optimizer.lr_scheduler_kwargs", ["min_lr", "decay", "cycles"]),
        ("evaluation.eval_on_start", ["mean on_start?"]),
        ("training.early_stopping_patience", ["mean evaluation.early_stopping.patience?"]),
        ("evaluation.early_stopping_threshold", ["any improvement"]),
        ("data.train.0.weights", ["repeat", "fraction"]),
        ("data.train.0.upsample", ["mean repeat?"]),
        ("data.packing", ["batching.layout"]),
        ("training.packing", ["batching.layout"]),
        ("model.num_labels", ["one output"]),
        ("model.attn_implementation", ["batching.layout"]),
        ("evaluation.eval_benchmarks", ["mean benchmarks?"]),
        ("training.early_stopping", ["under evaluation"]),
        ("tracking.tags", ["WANDB_TAGS"]),
        ("hub.private", ["hub.public"]),
        ("training.fp16", ["float16", "bfloat16"]),
        ("training.bf16", ["training.precision"]),
        ("training.deepspeed", ["--accelerate-config"]),
        ("training.use_liger_kernel", ["remove"]),
        ("data.seed", ["under run"]),
        ("optimizer.optim", ["mean name?"]),
        ("training.per_device_train_batchsize", ["training.batch_size"]),
    ],
)
def test_keys_of_other_trainers_are_answered(key: str, words: list[str]) -> None:
    """Each is answered with what it means here, and never with a key that only looks like it."""
    (line,) = problems(GOOD, [f"{key}=1"])
    assert line.startswith(f"override {key}=1  {key}: ")
    assert all(word in line for word in words), line
    assert ("did you mean" in line) == any("mean" in word for word in words)


@pytest.mark.parametrize(
    ("override", "words", "wrong"),
    [
        ("tracking.to=[comet_ml]", ["metrics.jsonl"], "did you mean"),
        ("tracking.to=none", ["[]"], "between"),
        ("optimizer.name=adafactor", ["'adamw'"], "8bit?"),
        ("model.dtype=fp16", ["float16", "training.precision"], "did you mean"),
        ("optimizer.schedule=cosine_with_min_lr", ["optimizer.min_lr", "cosine"], "linear?"),
        ("optimizer.schedule=polynomial", ["linear with min_lr"], "did you mean"),
        ("optimizer.schedule=reduce_lr_on_plateau", ["step only"], "did you mean"),
    ],
)
def test_values_of_other_trainers_are_answered(override: str, words: list[str], wrong: str) -> None:
    (line,) = problems(GOOD, [override])
    assert all(word in line for word in words), line
    assert wrong not in line


def test_names_of_transformers_are_accepted() -> None:
    """Where they mean the same, and are stored under our names."""
    overrides = ["optimizer.name=adamw_torch", "optimizer.schedule=constant_with_warmup", "training.precision=fp16"]
    recipe = load(GOOD, [*overrides, "model.dtype=torch.float32"])
    values = (recipe.optimizer.name, recipe.optimizer.schedule, recipe.training.precision, recipe.model.dtype)
    assert values == ("adamw", "constant", "float16", "float32")
    assert load(GOOD, ["optimizer.name=adamw_bnb_8bit"]).optimizer.name == "adamw_8bit"
    assert load(GOOD, ["optimizer.schedule=wsd", "optimizer.decay=0.2"]).optimizer.schedule == "warmup_stable_decay"
    assert load(GOOD, ["optimizer.schedule=cosine_with_min_lr", "optimizer.min_lr=0"]).optimizer.schedule == "cosine"
    choices = [get_args(field.annotation) for field in (*Optimizer.model_fields.values(), *Training.model_fields.values())]
    assert set(SAME_VALUES.values()) <= {value for values in choices for value in values}, "guard: no name leads nowhere"


def test_an_alias_in_eval_leads_to_eval() -> None:
    assert suggest(("data", "eval", 0, "chosen_column"), "pair").meant == ("data", "eval", 0, "chosen")


def test_kinds_and_their_places() -> None:
    found = [(entry.path, entry.kind) for entry in entries()]
    assert found[0] == ((), None)
    assert (("model", "scratch"), None) in found
    assert {kind for path, kind in found if path == ("data", "train", 0, "label")} == {
        "value",
        "index",
        "one_hot",
        "sign",
        "scores",
        "votes",
        "probability",
    }
    assert (("data", "eval", 0, "filter", 0), None) in found
    assert key_paths()["rank"] == [("lora", "rank")]


def test_an_error_loads_no_heavy_library() -> None:
    Path("recipe.yaml").write_text(GOOD.replace("lr:", "learing_rate:"))
    code = (
        "import sys\nfrom rmtrain.recipe.load import load_recipe\nfrom rmtrain.errors import RecipeError\n"
        "try:\n    load_recipe('recipe.yaml')\nexcept RecipeError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    error, heavy = done.stdout.splitlines()
    assert error.startswith("recipe.yaml:7:3  optimizer.learing_rate: ")
    assert heavy == "[]"


def test_thousands_of_problems_are_cut_short() -> None:
    lines = problems(GOOD + "".join(f"k{i}: 1\n" for i in range(5000)))
    assert len(lines) == 101
    assert any(line.startswith("recipe.yaml:1:1  ") and "4900" in line for line in lines)


def test_control_characters_do_not_reach_the_terminal() -> None:
    lines = problems(GOOD.replace("name: demo", 'name: "\\e[31m\\n\\u202e"').replace("lr:", '"l\\nr":'))
    assert lines[0].endswith(r'got "\x1b[31m\n\u202e"')
    assert_problems(lines[1:], [r"recipe.yaml:7:3|optimizer.l\nr|mean lr?"])


def test_lone_surrogates_are_refused() -> None:
    """Half a surrogate pair cannot be encoded later; pydantic refuses it, in values and in keys."""
    cases = [
        (GOOD.replace("some/model", '"\\ud800"'), r'5:15|model.path|"\ud800"'),
        (GOOD.replace("lr:", '"\\ud800":'), r'7:3|optimizer|"\ud800"'),
        (GOOD + 'evaluation: {gates: {"\\ud800": 1}}', "8:14|evaluation.gates|unknown"),
    ]
    for text, expected in cases:
        assert_problems(problems(text), [f"recipe.yaml:{expected}"])
