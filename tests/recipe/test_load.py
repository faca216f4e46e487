"""A recipe loads completely or says, one line per problem and all at once, where, what was expected, what came, what to change."""

import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import entries, key_paths
from rmtrain.recipe.key_aliases import ALIASES
from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml import write_yaml

GOOD = """\
run: {name: demo, output_dir: runs/demo}
data:
  train:
    - path: pairs.jsonl
model: {path: some/model}
optimizer:
  lr: 1e-5
"""
SCRATCH = "model: {scratch: {architecture: llama, hidden_size: 64, layers: 2, heads: 4}}"
LR = "expected a number above 0 and at most 1"
ADVICE = "no secrets in a recipe; use `hf auth login` or the HF_TOKEN environment variable"
SECTIONS = "run, data, model, lora, batching, objective, optimizer, training, checkpoints, evaluation, tracking or hub"

# What to replace in GOOD, by what, and the lines that must come. `@` stands for "recipe.yaml:".
BROKEN: list[tuple[str, str, list[str]]] = [
    ("  lr: 1e-5", "  learing_rate: 1e-5", ["@7:3  optimizer.learing_rate: unknown key; did you mean lr?"]),
    ("  lr: 1e-5", "  lr: '1e-5'", [f'@7:7  optimizer.lr: {LR}, got "1e-5"; remove the quotes']),
    ("  lr: 1e-5", "  lr: 5", [f"@7:7  optimizer.lr: {LR}, got 5"]),
    ("  lr: 1e-5", "  lr:", [f"@7:3  optimizer.lr: {LR}, got null"]),
    ("  lr: 1e-5", "  lr: true", [f"@7:7  optimizer.lr: {LR}, got true"]),
    ("  lr: 1e-5", "  lr: [1]", [f"@7:7  optimizer.lr: {LR}, got a list of 1"]),
    ("  lr: 1e-5", "  lr: 1e-5\n  lr: 2e-5", ["@8:3  optimizer.lr: duplicate key, on line 7 and on line 8; keep one"]),
    ("  lr: 1e-5", "  clip: 1.0", [f"@6:1  optimizer.lr: missing; {LR}"]),
    (
        "  lr: 1e-5",
        "  lr: 1e-5: 3",
        ['@7:11  not well-formed YAML: a second ": " in one line; quote the text, or begin a new line'],
    ),
    ("optimizer:\n  lr: 1e-5\n", "", ["@1:1  optimizer: missing; expected a section with lr"]),
    (
        "  lr: 1e-5",
        "  lr: 1e-5\n  schedule: linaer\n  warmup: 100\n  betas: [0.9]\n  clip: None\n  batch_size: 8\n  zzz: 1",
        [
            '@8:13  optimizer.schedule: expected linear, cosine or constant, got "linaer"; did you mean linear?',
            "@9:11  optimizer.warmup: expected a number at least 0 and below 1, got 100",
            "@10:10  optimizer.betas: expected a list of 2, each a number at least 0 and below 1, got a list of 1",
            '@11:9  optimizer.clip: write null to turn it off, or "None" in quotes if it is text',
            "@12:3  optimizer.batch_size: unknown key; it belongs under training",
            "@13:3  optimizer.zzz: unknown key; expected name, lr, schedule, warmup, betas, eps, weight_decay or clip",
        ],
    ),
    (
        "run: {name: demo,",
        "run: {name: my run,",
        ['@1:13  run.name: expected text of letters, digits, `_`, `.` and `-`, got "my run"'],
    ),
    (
        "demo, output",
        "demo, seed: -1, output",
        ["@1:25  run.seed: expected a whole number at least 0 and below 4294967296, got -1"],
    ),
    ("run: {name: demo, output_dir: runs/demo}", "run:", ["@1:1  run: expected a section with name and output_dir, got null"]),
    ("model: {path: some/model}", "mdoel: {path: some/model}", ["@5:1  mdoel: unknown key; did you mean model?"]),
    (
        "model: {path: some/model}",
        "model: some/model",
        ['@5:8  model: expected a section with path or scratch, got "some/model"; write {path: some/model}'],
    ),
    ("model: {path: some/model}", "model: {name: some/model}", ["@5:9  model.name: unknown key; did you mean path?"]),
    ("model: {path: some/model}", "model: {dtype: float32}", ["@5:1  model.path: missing; expected non-empty text"]),
    (
        "model: {path: some/model}",
        "model: {path: some/model, dtype: bf16, tokenizer: x, dropout: 1}",
        [
            '@5:34  model.dtype: expected float32 or bfloat16, got "bf16"; did you mean bfloat16?',
            "@5:40  model.tokenizer: not a key of the kind pretrained, only of scratch; remove it",
            "@5:63  model.dropout: expected a number at least 0 and below 1, got 1",
        ],
    ),
    (
        "model: {path: some/model}",
        SCRATCH.replace("scratch", "scrach").replace("}}", "}, tokenizer: x}"),
        ["@5:9  model.scrach: unknown key; did you mean scratch?"],
    ),
    (
        "model: {path: some/model}",
        SCRATCH.replace("layers: 2", "layers: 2.0, num_attention_heads: 4"),
        [
            "@5:65  model.scratch.layers: expected a whole number above 0 and at most 1024, got 2.0; write 2",
            "@5:70  model.scratch.num_attention_heads: unknown key; did you mean heads?",
        ],
    ),
    ("    - path: pairs.jsonl", "    path: x", ["@4:5  data.train: expected a non-empty list, each a section, got a section; "]),
    (
        "    - path: pairs.jsonl",
        "    - pairs.jsonl",
        ['@4:7  data.train.0: expected a section with path, got "pairs.jsonl"; write {path: pairs.jsonl}'],
    ),
    ("    - path: pairs.jsonl", "    []", ["@4:5  data.train: expected a non-empty list, each a section, got a list of 0"]),
    (
        "    - path: pairs.jsonl",
        "    - {path: a, format: pairs}\n    - {path: b, format: 5}",
        [
            '@4:25  data.train.0.format: expected pair, ab, ranked or tokenized, got "pairs"; did you mean pair?',
            "@5:25  data.train.1.format: expected pair, ab, ranked or tokenized, got 5",
        ],
    ),
    (
        "    - path: pairs.jsonl",
        "    - {path: a, format: tokenized, chosen: y, margin: [p, q]}",
        [
            "@4:36  data.train.0.chosen: not a key of the kind tokenized, only of pair; remove it",
            "@4:55  data.train.0.margin: expected text, or null, got a list of 2",
        ],
    ),
    (
        "    - path: pairs.jsonl",
        "    - {path: 7, split: false, data_files: [1], limit: 0, chosn: x, messages: {roles: {bot: asistant}}}",
        [
            "@4:14  data.train.0.path: expected non-empty text, got 7; put it in quotes",
            "@4:24  data.train.0.split: expected text, or null, got false; put it in quotes",
            "@4:44  data.train.0.data_files.0: expected text, got 1; put it in quotes",
            "@4:55  data.train.0.limit: expected a whole number above 0, or null, got 0",
            "@4:58  data.train.0.chosn: unknown key; did you mean chosen?",
            '@4:92  data.train.0.messages.roles.bot: expected system, user, assistant or tool, got "asistant"; did you mean assistant?',
        ],
    ),
    (
        "  train:",
        "  path: x\n  max_token_length: 8\n  train:",
        [
            "@3:3  data.path: unknown key; it belongs under data.train.0 or data.eval.0",
            "@4:3  data.max_token_length: unknown key; did you mean max_length?",
        ],
    ),
    (
        "optimizer:",
        "lr: 1\nnum_train_epochs: 3\nper_device_train_batch_size: 8\ndataset: x\nlora_r: 8\ngradient_checkpointing: true\noptimizer:",
        [
            "@6:1  lr: unknown key; it belongs under optimizer",
            "@7:1  num_train_epochs: unknown key; did you mean training.epochs?",
            "@8:1  per_device_train_batch_size: unknown key; did you mean training.batch_size?",
            "@9:1  dataset: unknown key; did you mean data.train?",
            "@10:1  lora_r: unknown key; did you mean lora.rank?",
            "@11:1  gradient_checkpointing: unknown key; it belongs under model",
        ],
    ),
    (
        "optimizer:",
        "hub: {push: yes, hf_token: x}\nwandb_api_key: y\noptimizer:",
        [
            '@6:13  hub.push: expected true or false, got "yes"; write true',
            f"@6:18  hub.hf_token: unknown key; {ADVICE}",
            "@7:1  wandb_api_key: unknown key; no secrets in a recipe; use `wandb login` or the WANDB_API_KEY environment variable",
        ],
    ),
    ("optimizer:", "zzz: 1\noptimizer:", [f"@6:1  zzz: unknown key; expected {SECTIONS}"]),
    (
        "optimizer:",
        "lora: {r: 8, targets: q_proj}\noptimizer:",
        [
            "@6:8  lora.r: unknown key; did you mean rank?",
            '@6:23  lora.targets: expected all-linear, or a non-empty list, each text, got "q_proj"; put it in a list, between [ and ]',
        ],
    ),
    (
        "optimizer:",
        "tracking: {to: [wandb, mlfow]}\nevaluation: {gates: {acc: 0.7, loss: low}}\noptimizer:",
        [
            '@6:24  tracking.to.1: expected wandb, tensorboard, trackio or mlflow, got "mlfow"; did you mean mlflow?',
            "@7:22  evaluation.gates.acc: unknown key; "
            "expected accuracy, accuracy_low, half_credit_accuracy or loss; did you mean accuracy?",
            '@7:38  evaluation.gates.loss: expected a number, got "low"',
        ],
    ),
    ("optimizer:", "training:\noptimizer:", ["@6:1  training: expected a section, got null"]),
    ("optimizer:", "<<: {a: 1}\noptimizer:", ["@6:1  <<: unknown key; merge keys are not followed, write the keys themselves"]),
    (
        "some/model}",
        "some/model, quantization: nf4, dtype: bfloat16, trust_remote_code: true}",
        [
            "@5:41  model.quantization: nf4 weights cannot train; add lora, or set null",
            "@5:53  model.dtype: AdamW's small updates round to nothing in bfloat16; "
            "take float32, add lora, or set training.allow_bfloat16_weights",
            "@5:82  model.revision: trust_remote_code needs a full commit hash of 40 hexadecimal digits here, got nothing",
        ],
    ),
    (
        "model: {path: some/model}",
        SCRATCH.replace("heads: 4", "heads: 6, key_value_heads: 4, max_positions: 512"),
        [
            "@5:75  model.scratch.heads: expected a divisor of hidden_size (64), got 6",
            "@5:95  model.scratch.key_value_heads: expected a divisor of heads (6), got 4",
            "@5:113  data.max_length: expected at most model.scratch.max_positions (512), got 1024",
        ],
    ),
    (
        "    - path: pairs.jsonl",
        "    - {path: a/pairs.jsonl.gz, holdout: 0.1}\n    - {path: b/pairs.csv}\n"
        "  eval: [{path: c/pairs, holdout: 0.5}]\n  max_length: 10000\nbatching: {max_tokens: 9000}",
        [
            '@5:14  data.train.1.tag: "pairs" is also the tag of data.train.0; give each source its own',
            '@6:17  data.eval.0.tag: "pairs" is also the tag of data.train.0; give each source its own',
            "@6:35  data.eval.0.holdout: all of an evaluation source is evaluated already; "
            "remove it, or move the source to data.train",
            "@8:24  batching.max_tokens: expected at least data.max_length (10000), got 9000",
        ],
    ),
    (
        "optimizer:",
        "evaluation: {every: 100, gates: {accuracy: 0.7}}\nhub: {id: mine}\noptimizer:",
        [
            "@6:21  evaluation.every: there is nothing to evaluate; add data.eval, or holdout to a source of data.train",
            "@6:33  evaluation.gates: there is nothing to evaluate; add data.eval, or holdout to a source of data.train",
            '@7:11  hub.id: expected owner/name, got "mine"',
        ],
    ),
    (GOOD, "", ["@1:1  expected sections such as run, data and model, got nothing"]),
    (GOOD, "- a\n- b\n", ["@1:1  expected sections such as run, data and model, got a list of 2"]),
]

BROKEN_OVERRIDES: list[tuple[list[str], list[str]]] = [
    (["optimizer.learing_rate=1"], ["override optimizer.learing_rate=1  optimizer.learing_rate: unknown key; did you mean lr?"]),
    (["optimizer.lr=abc"], [f'override optimizer.lr=abc  optimizer.lr: {LR}, got "abc"']),
    (["optimizer.lr="], [f"override optimizer.lr=  optimizer.lr: {LR}, got null"]),
    (["optimizer={}"], [f"override optimizer={{}}  optimizer.lr: missing; {LR}"]),
    (["optimizer.lr.x=1"], ["override optimizer.lr.x=1  optimizer.lr.x: optimizer.lr is no section and has no key x"]),
    (["lora.rank=0"], ["override lora.rank=0  lora.rank: expected a whole number above 0 and at most 16384, got 0"]),
    (
        ["data.train.1.path=x"],
        ["override data.train.1.path=x  data.train.1.path: data.train is a list of 1; expected an index below 1, got 1"],
    ),
    (
        ["data.eval.0.path=x"],
        [
            "override data.eval.0.path=x  data.eval.0.path: data.eval has no entries yet; give the whole list, such as data.eval=[...]"
        ],
    ),
    (["data.train.0.tag=[a"], ["override data.train.0.tag=[a  data.train.0.tag: not well-formed YAML: "]),
    (["lr"], ["override lr  expected a key path, =, and a value, such as optimizer.lr=1e-5"]),
    (["a..b=1"], ["override a..b=1  expected a key path, =, and a value, such as optimizer.lr=1e-5"]),
    (["lora={rank: 1, rank: 2}"], ["override lora={rank: 1, rank: 2}  lora.rank: duplicate key; keep one"]),
    (["hub.token=hf_abcdefghijklmnop"], [f"override hub.token=<hidden>  hub.token: unknown key; {ADVICE}"]),
    (
        ["training.batch_size=0", "x=1", "optimizer.lr=9"],
        [
            "override training.batch_size=0  training.batch_size: expected a whole number above 0, got 0",
            f"override x=1  x: unknown key; expected {SECTIONS}",
            f"override optimizer.lr=9  optimizer.lr: {LR}, got 9",
        ],
    ),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, overrides: Sequence[str] = ()) -> Recipe:
    Path("recipe.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_recipe("recipe.yaml", overrides)


def problems(text: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as raised:
        load(text, overrides)
    assert raised.value.exit_code == 2
    return raised.value.problems


def outcome(text: str, overrides: Sequence[str] = ()) -> Recipe | RecipeError:
    try:
        return load(text, overrides)
    except RecipeError as error:
        return error


def assert_lines(came: Sequence[str], expected: Sequence[str]) -> None:
    """Lines equal what is expected; one that is expected to end in `; ` or `: ` only begins so."""
    cut = [line[: len(start)] if start.endswith(" ") else line for line, start in zip(came, expected, strict=False)]
    assert [*cut, *came[len(expected) :]] == list(expected)


def test_a_good_recipe_loads_with_its_defaults() -> None:
    recipe = load(GOOD)
    assert recipe.optimizer.lr == 1e-05
    assert isinstance(recipe.optimizer.lr, float)
    assert recipe.training.batch_size == 32
    assert recipe.lora is None
    assert recipe.data.train[0].title == "pairs"


@pytest.mark.parametrize(("old", "new", "lines"), BROKEN)
def test_each_broken_recipe_gives_its_lines(old: str, new: str, lines: list[str]) -> None:
    assert GOOD.count(old) == 1, "guard: the recipe is changed in one place"
    assert_lines(problems(GOOD.replace(old, new)), [line.replace("@", "recipe.yaml:", 1) for line in lines])


@pytest.mark.parametrize(("overrides", "lines"), BROKEN_OVERRIDES)
def test_each_broken_override_gives_its_lines(overrides: list[str], lines: list[str]) -> None:
    assert_lines(problems(GOOD, overrides), lines)


def test_the_tables_are_long_enough() -> None:
    assert len(BROKEN) >= 40
    assert sum(len(lines) for _, _, lines in BROKEN) >= 60


def test_problems_of_yaml_schema_and_overrides_come_together_in_reading_order() -> None:
    text = GOOD.replace("  lr: 1e-5", "  lr: 1e-5\n  lr: 2\n  clip: None\n  waemup: 0.1")
    assert [line.split("  ")[0] for line in problems(text, ["run.seed=-1", "run.name=''"])] == [
        "recipe.yaml:8:3",
        "recipe.yaml:9:9",
        "recipe.yaml:10:3",
        "override run.seed=-1",
        "override run.name=''",
    ]


def test_overrides_set_keys_by_the_rules_of_the_file() -> None:
    overrides = ["optimizer.lr=3e-6", "data.train.0.path=other.jsonl", "data.train.0.split=no", "lora.rank=8", "hub.push=true"]
    recipe = load(
        GOOD, [*overrides, "data.eval=[{path: held.jsonl}]", "data.eval.0.limit=5", "optimizer.clip=", "run.name=a=b=c"[:10]]
    )
    assert recipe.optimizer.lr == 3e-06
    assert recipe.optimizer.clip is None
    assert recipe.data.train[0].path == "other.jsonl"
    assert recipe.data.train[0].split == "no"
    assert recipe.data.eval[0].limit == 5
    assert recipe.lora is not None
    assert recipe.lora.rank == 8
    assert recipe.hub.push is True


def test_an_override_repairs_the_file_and_the_last_one_wins() -> None:
    assert load(GOOD.replace("1e-5", "high"), ["optimizer.lr=1e-4", "optimizer.lr=1e-3"]).optimizer.lr == 1e-3
    assert load(GOOD, [f"model={SCRATCH.removeprefix('model: ')}"]).model.dtype == "float32"


def test_text_that_yaml_1_1_takes_for_something_else_stays_text() -> None:
    recipe = load(GOOD.replace("- path: pairs.jsonl", "- {path: pairs.jsonl, split: no, name: on, revision: 1e, tag: 12:30}"))
    source = recipe.data.train[0]
    assert (source.split, source.name, source.revision, source.tag) == ("no", "on", "1e", "12:30")


SECRETS = [
    "https://me:" + "hunter" * 20 + "@host",
    "hf_" + "aB3" * 12,
    "sk-" + "aB3" * 12,
    "https://me:hunter2@host/x",
    "hf_aB3aB3aB3aB3",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_is_repeated_or_loaded(secret: str) -> None:
    wandb = "0123456789abcdef" * 2 + "01234567"
    shapes = [
        (GOOD.replace("lr: 1e-5", f"lr: '{secret}'"), []),
        (GOOD.replace("lr: 1e-5", f"lr: 1e-5\n  token: {secret}\n  '{secret}': 1"), []),
        (GOOD, [f"optimizer.lr='{secret}'", f"wandb.api_key={wandb}", f"api_key={secret}", f"tracking.wandb={wandb}"]),
        (GOOD.replace("lr: 1e-5", f"lr: 1e-5: {secret}"), []),
        (GOOD, [f"{secret}=1", secret]),
    ]
    for text, overrides in shapes:
        told = "\n".join(problems(text, overrides))
        assert secret not in told
        assert "hunter" not in told
        assert wandb not in told
    if len(secret) > 20:
        assert problems(GOOD.replace("some/model", secret)) == (
            f"recipe.yaml:5:15  model.path: looks like a password or token; {ADVICE}",
        )


def test_a_commit_hash_is_no_secret() -> None:
    commit = "a" * 40
    assert load(GOOD.replace("some/model", f"some/model, revision: {commit}, trust_remote_code: true")).model.head == "auto"


def test_nothing_in_a_recipe_is_executed() -> None:
    lines = problems(GOOD.replace("demo,", "!!python/object/apply:os.system ['touch canary'],", 1))
    assert lines[0].startswith("recipe.yaml:1:13  run.name: tags such as !!python/object/apply:os.system are not followed")
    assert not Path("canary").exists()


def test_control_characters_do_not_reach_the_terminal() -> None:
    lines = problems(GOOD.replace("name: demo", 'name: "\\e[31m\\n\\u202e"').replace("lr:", '"l\\nr":'))
    assert lines[0].endswith(r'got "\x1b[31m\n\u202e"')
    assert lines[1:] == (r"recipe.yaml:7:3  optimizer.l\nr: unknown key; did you mean lr?",)


LABELS = {
    "value": "by: value, column: w, values: {1: a, 0: b}",
    "index": "by: index, column: w",
    "one_hot": "by: one_hot, a: v, b: w",
    "sign": "by: sign, column: w, positive: a",
    "scores": "by: scores, a: v, b: w",
}
KINDS = {
    "tokenized": "format: tokenized",
    "ranked": "format: ranked, responses: r, score: s",
    "ab": "format: ab, a: x, b: y, label: {by: index, column: w}",
    **{kind: f"format: ab, a: x, b: y, label: {{{label}}}" for kind, label in LABELS.items()},
}


def complete(kind_of_source: str, kind_of_model: str) -> dict[str, Any]:
    """A recipe in which every section is written out."""
    text = GOOD if kind_of_model == "pretrained" else GOOD.replace("model: {path: some/model}", SCRATCH)
    overrides = ["data.eval=[{path: held.jsonl}]", "lora={}"]
    if kind_of_source != "pair":
        overrides += [f"data.{side}.0={{path: {side}.jsonl, {KINDS[kind_of_source]}}}" for side in ("train", "eval")]
    selection = ["filter=[{column: c, equals: 1}]", "cap={by: c, rows: 2}"]
    overrides += [f"data.{side}.0.{key}" for side in ("train", "eval") for key in selection]
    return load(text, overrides).model_dump(mode="json")


def rename(data: dict[str, Any], path: tuple[str | int, ...], new: str) -> None:
    section: Any = data
    for part in path[:-1]:
        section = section[part]
    items = [(new if key == path[-1] else key, value) for key, value in section.items()]
    section.clear()
    section.update(items)


def misspellings(name: str) -> list[str]:
    middle = len(name) // 2
    candidates = [name[:-1], name[:middle] + name[middle + 1 :], name[:middle] + name[middle] + name[middle:], name + "x"]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate and candidate != name]


def test_every_key_misspelt_by_a_letter_is_named_and_corrected() -> None:
    tried, seen = 0, set()
    for entry in entries():
        source = str(entry.kind) if entry.kind in KINDS else "pair"
        siblings = {name for other in entries() if other.path == entry.path for name in other.section.model_fields}
        model = "scratch" if "scratch" in (*entry.path, entry.kind) else "pretrained"
        whole = complete(source, model)
        for name in entry.section.model_fields:
            wrongs = sorted({*misspellings(name)} - siblings - {"b"})
            for wrong in wrongs[:1] if entry.section in seen else wrongs:
                data = deepcopy(whole)
                rename(data, (*entry.path, name), wrong)
                lines = problems(write_yaml(data))
                where = ".".join(map(str, (*entry.path, wrong)))
                assert [line.split("  ")[1] for line in lines] == [f"{where}: unknown key; did you mean {name}?"]
                tried += 1
        seen.add(entry.section)
    assert tried > 300, "guard: every key was tried"


def test_every_name_of_a_peer_leads_to_a_key_of_ours() -> None:
    paths = {path for found in key_paths().values() for path in found}
    for peer, ours in ALIASES.items():
        assert ours in paths, peer
        if "." not in peer:
            (line,) = problems(GOOD + f"{peer}: 1\n")
            assert line == f"recipe.yaml:8:1  {peer}: unknown key; did you mean {'.'.join(map(str, ours))}?"
    assert len(ALIASES) > 100, "guard: the table is there"


def test_an_error_loads_no_heavy_library() -> None:
    Path("recipe.yaml").write_text(GOOD.replace("lr:", "learing_rate:"))
    code = (
        "import sys\nfrom rmtrain.recipe.load import load_recipe\nfrom rmtrain.errors import RecipeError\n"
        "try:\n    load_recipe('recipe.yaml')\nexcept RecipeError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["recipe.yaml:7:3  optimizer.learing_rate: unknown key; did you mean lr?", "[]"]


def test_thousands_of_mistakes_are_told_in_short() -> None:
    lines = problems(GOOD + "".join(f"k{i}: 1\n" for i in range(5000)))
    assert len(lines) == 101
    assert "recipe.yaml:1:1  and 4900 more problems" in lines


text_values = st.text(min_size=1, max_size=12)
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["pair", "scratch", "tokenized", "path", "x" * 5000, "\ud800"]),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(
        st.sampled_from(["path", "format", "scratch", "pair", "lr", "str", "0", "[key]"]) | st.text(max_size=4),
        st.integers(),
        max_size=3,
    ),
)


def every_path(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [*([path] if path else []), *(deeper for part, value in inner for deeper in every_path(value, (*path, part)))]


@settings(max_examples=250, deadline=None)
@given(draw=st.data())
def test_no_mutation_of_a_recipe_gives_anything_but_a_recipe_or_its_errors(draw: st.DataObject) -> None:
    data = complete(draw.draw(st.sampled_from(["pair", *KINDS])), draw.draw(st.sampled_from(["pretrained", "scratch"])))
    for _ in range(draw.draw(st.integers(1, 4))):
        path = draw.draw(st.sampled_from(every_path(data)))
        section: Any = data
        for part in path[:-1]:
            section = section[part]
        match draw.draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                section[path[-1]] = draw.draw(junk)
            case "remove":
                del section[path[-1]]
            case "add" if isinstance(section, dict):
                section[draw.draw(st.sampled_from([*key_paths(), *ALIASES]) | st.text(max_size=6))] = draw.draw(junk)
        if not data:
            break
    came = outcome(write_yaml(data))
    if isinstance(came, Recipe):
        assert load(dump_recipe(came)) == came
    else:
        assert all(line.isprintable() and line.startswith("recipe.yaml") for line in came.problems)
        assert len(came.problems) < 40


@settings(max_examples=150, deadline=None)
@given(draw=st.data())
def test_no_mutation_of_the_text_gives_anything_but_a_recipe_or_its_errors(draw: st.DataObject) -> None:
    text = GOOD
    for _ in range(draw.draw(st.integers(1, 3))):
        start = draw.draw(st.integers(0, len(text)))
        text = (
            text[:start]
            + draw.draw(st.text(max_size=3) | st.sampled_from(list(":{}[]#&*!'\"\n\t- ")))
            + text[start + draw.draw(st.integers(0, 4)) :]
        )
    overrides = draw.draw(
        st.lists(
            st.builds("{}={}".format, st.sampled_from(["run.name", "data.train.0", "lora", "x.0.y"]), st.text(max_size=8)),
            max_size=2,
        )
    )
    came = outcome(text, overrides)
    assert isinstance(came, Recipe) or all(line.isprintable() for line in came.problems)


@settings(max_examples=100, deadline=None)
@given(
    path=text_values,
    template=st.text(min_size=1),
    lr=st.floats(0, 1, exclude_min=True),
    gates=st.dictionaries(st.sampled_from(["accuracy", "loss"]), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_a_recipe_is_dumped_and_read_back_equal(path: str, template: str, lr: float, gates: dict[str, float]) -> None:
    data = complete("pair", "pretrained")
    data["data"]["train"][0] |= {"path": path, "tag": "a", "split": "no", "margin": ["x", "1e-5"]}
    data["data"]["chat_template"], data["optimizer"]["lr"], data["evaluation"]["gates"] = template, lr, gates
    recipe = Recipe.model_validate(data)
    assert load(dump_recipe(recipe)) == recipe
