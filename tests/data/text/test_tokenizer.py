"""The tokenizer of a run: loaded, saved, trained; and the canaries of its output."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rmtrain.data.comparison import is_held_out, prompt_hash
from rmtrain.data.rows.fingerprint import tokenizer_fingerprint
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.text.encoder import encode_conversations
from rmtrain.data.text.tokenizer import (
    CANARIES,
    canary_hashes,
    first_change,
    load_tokenizer,
    open_tokenizer,
    prepared,
    read_tokenizer,
    replaced_pad_token,
    trained_tokenizer,
)
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.recipe.schema import Architecture, Data, PretrainedModel, ScratchModel
from tests.helpers import bert_like, byte_bpe, data_of, llama_like, pairs, roberta_like, unigram_like, write_jsonl

TALK = ({"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is bread."})
KINDS = [byte_bpe, llama_like, unigram_like, bert_like, roberta_like]
SMALL = Architecture(architecture="llama", hidden_size=16, layers=1, heads=1, vocab_size=300)


@pytest.mark.parametrize("build", KINDS)
def test_trap_31_a_saved_tokenizer_stays_the_same(build: type, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "base")
    tokenizer = open_tokenizer(str(tmp_path / "base"), "simple_chat")
    tokenizer.save_pretrained(tmp_path / "saved")
    plain, ours = AutoTokenizer.from_pretrained(tmp_path / "saved"), open_tokenizer(str(tmp_path / "saved"))
    for again in (plain, ours):
        assert again.chat_template == tokenizer.chat_template
        assert (again.pad_token_id, again.padding_side, len(again)) == (tokenizer.pad_token_id, "right", len(tokenizer))
        assert encode_conversations([TALK], again) == encode_conversations([TALK], tokenizer)
        assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    saved = "".join(file.read_text() for file in (tmp_path / "saved").iterdir())
    assert str(tmp_path) not in saved, "paths of this machine are not exported"


@pytest.mark.parametrize("build", KINDS)
def test_trap_01_padding_is_right_and_never_ends(build: type, tmp_path: Path) -> None:
    tokenizer = build()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token or tokenizer.pad_token, "left"
    tokenizer.save_pretrained(tmp_path)
    loaded = open_tokenizer(str(tmp_path), "simple_concat")
    end = encode_conversations([TALK], loaded)[0][-1]
    assert loaded.pad_token_id is not None
    assert loaded.pad_token_id not in (end, loaded.eos_token_id)
    assert loaded.padding_side == "right"


def test_trap_42_tokens_are_added_only_if_needed(tmp_path: Path) -> None:
    byte_bpe(special_tokens=["<e>"], eos_token="<e>").save_pretrained(tmp_path / "bare")
    llama_like(eos_token="</s>").save_pretrained(tmp_path / "reserved")
    bare, reserved = (open_tokenizer(str(tmp_path / name), "simple_chat") for name in ("bare", "reserved"))
    assert (bare.pad_token, bare.pad_token_id) == ("<|pad|>", len(bare) - 1)
    assert len(bare) == len(AutoTokenizer.from_pretrained(tmp_path / "bare")) + 1
    assert len(reserved) == len(AutoTokenizer.from_pretrained(tmp_path / "reserved"))


def test_a_tokenizer_can_bring_its_template(tmp_path: Path) -> None:
    llama_like().save_pretrained(tmp_path / "model")
    data = data_of(tmp_path / "none.jsonl", tmp_path, chat_template="tokenizer")
    tokenizer = load_tokenizer(PretrainedModel(path=str(tmp_path / "model")), data)
    assert tokenizer.decode(encode_conversations([TALK], tokenizer)[0]) == "<s>[INST] What is it? [/INST] It is bread.</s>"
    given = load_tokenizer(ScratchModel(scratch=SMALL, tokenizer=str(tmp_path / "model")), data)
    assert tokenizer_fingerprint(given) == tokenizer_fingerprint(tokenizer)


def test_a_scratch_model_gets_a_trained_tokenizer(tmp_path: Path) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(30)), tmp_path / "cache")
    tokenizer = load_tokenizer(ScratchModel(scratch=SMALL), data)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|endoftext|>", "<|pad|>", 300)
    with pytest.raises(RecipeError, match=r"^data.chat_template: .*simple_concat"):
        load_tokenizer(ScratchModel(scratch=SMALL), data.model_copy(update={"chat_template": "tokenizer"}))


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for path in ("nobody/model", str(tmp_path / "empty"), str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(CheckpointError, match=r"^model: ") as error:
            open_tokenizer(path)
        assert path in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["(", "(a+)+$", "(x+x+)+y", "(?:é|é)*!", "[z-a]", r"(\s|\s)*\d"])
def test_bad_regular_expressions_are_refused(pattern: str, tmp_path: Path) -> None:
    """An expression that is invalid or backtracks is one line, in bounded time."""
    byte_bpe().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"^model: ") as error:
        read_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
    split["pattern"]["Regex"] = r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"
    file.write_text(json.dumps(content))
    assert read_tokenizer(str(tmp_path)).is_fast


@pytest.mark.parametrize(("pad", "end"), [("<|endoftext|>", "<|endoftext|>"), (None, "<|endoftext|>")])
def test_replaced_pad_token_is_remembered(pad: str | None, end: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the tokenizer itself, when it is saved and loaded; the replacement is logged."""
    own = byte_bpe(special_tokens=["<|endoftext|>"], eos_token=end)
    if pad is not None:
        own.pad_token = pad
    own.save_pretrained(tmp_path / "own")
    with caplog.at_level(logging.INFO, logger="rmtrain"):
        tokenizer = open_tokenizer(str(tmp_path / "own"), "simple_chat")
    expected = {"token": "<|pad|>", "id": len(own), "replaced": pad}
    assert replaced_pad_token(tokenizer) == expected
    assert "<|pad|>" in caplog.text
    tokenizer.save_pretrained(tmp_path / "saved")
    assert replaced_pad_token(open_tokenizer(str(tmp_path / "saved"))) == expected
    assert replaced_pad_token(open_tokenizer(str(tmp_path / "saved"), "chatml")) == expected
    assert replaced_pad_token(prepared(byte_bpe(), "simple_chat")) is None


def section(tmp_path: Path, cache: str, **settings: object) -> Data:
    file = tmp_path / "rows.jsonl"
    return data_of(file if file.exists() else write_jsonl(file, pairs(200)), tmp_path / cache, **settings)


def test_training_is_deterministic_and_cached(tmp_path: Path) -> None:
    here = trained_tokenizer(section(tmp_path, "a"), 320)
    (kept,) = (tmp_path / "a").glob("tokenizer-*/tokenizer.json")
    code = (
        "from pathlib import Path; from tests.data.text.test_tokenizer import section; "
        "from rmtrain.data.text.tokenizer import trained_tokenizer; "
        f"trained_tokenizer(section(Path({str(tmp_path)!r}), 'b'), 320)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], capture_output=True)
    (other,) = (tmp_path / "b").glob("tokenizer-*/tokenizer.json")
    assert kept.read_bytes() == other.read_bytes()
    time = kept.stat().st_mtime_ns
    again = trained_tokenizer(section(tmp_path, "a"), 320)
    assert kept.stat().st_mtime_ns == time
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(here)


def test_a_trained_tokenizer_loses_no_byte(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(section(tmp_path, "a"), 300)
    text = "Grüße, 世界 \U0001f600\t\x00 It is 7.<|endoftext|>"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 300
    assert len(tokenizer("It is ")["input_ids"]) < 5, "guard: merges were learned"


def test_held_out_rows_do_not_shape_the_vocabulary(tmp_path: Path) -> None:
    plain = pairs(60)
    file = write_jsonl(tmp_path / "plain.jsonl", plain)
    (rows,) = load_comparisons(data_of(file, tmp_path).train[0])
    rare = next(number for number, row in enumerate(rows) if is_held_out(prompt_hash(row), 0.3))  # type: ignore[arg-type]
    plain[rare]["chosen"] = "zyxwvut " * 50
    data = data_of(write_jsonl(tmp_path / "rare.jsonl", plain), tmp_path / "cache", holdout=0.3)
    vocabulary = trained_tokenizer(data, 330).get_vocab()
    assert not any("zyx" in token for token in vocabulary)
    seen = trained_tokenizer(data_of(tmp_path / "rare.jsonl", tmp_path / "cache"), 330).get_vocab()
    assert any("zyx" in token for token in seen), "guard: without holdout it does"


def test_size_template_and_text_shape_the_tokenizer(tmp_path: Path) -> None:
    trained_tokenizer(section(tmp_path, "a"), 300)
    trained_tokenizer(section(tmp_path, "a"), 310)
    trained_tokenizer(section(tmp_path, "a", chat_template="zephyr"), 300)
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("7?", "8?"))
    trained_tokenizer(section(tmp_path, "a"), 300)
    assert len(list((tmp_path / "a").glob("tokenizer-*"))) == 4


class Patched(PreTrainedTokenizerFast):
    """A tokenizer that a library update has changed for one text."""

    def __call__(self, texts: Any, **settings: Any) -> Any:
        encoded = super().__call__(texts, **settings)
        encoded["input_ids"] = [
            ids[::-1] if text == "  1e-5\t1e-5" else ids for text, ids in zip(texts, encoded["input_ids"], strict=True)
        ]
        return encoded


def test_trap_38_a_changed_text_is_named() -> None:
    before = canary_hashes(byte_bpe())
    assert first_change(before, byte_bpe()) is None
    changed = Patched(tokenizer_object=byte_bpe().backend_tokenizer, eos_token="<|endoftext|>")
    assert first_change(before, changed) == "  1e-5\t1e-5"
    assert first_change(before, byte_bpe(vocab_size=300)) is not None


def test_canaries_distinguish_tokenizers() -> None:
    assert len(set(CANARIES)) == len(CANARIES) >= 240
    found = [canary_hashes(made()) for made in (byte_bpe, bert_like, llama_like, unigram_like)]
    assert len({tuple(hashes) for hashes in found}) == 4
    assert all(len(set(hashes)) > 40 for hashes in found), "guard: most texts have tokens of their own"


def test_earlier_calls_do_not_change_canaries() -> None:
    tokenizer = byte_bpe()
    before = canary_hashes(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=1)
    assert first_change(before, tokenizer) is None


@pytest.mark.parametrize("length", [{}, "long", [512]])
def test_tokenizer_that_cannot_encode_is_refused(length: object, tmp_path: Path) -> None:
    byte_bpe().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    read_tokenizer(str(tmp_path))
    file.write_text(json.dumps(config | {"model_max_length": length}))
    with pytest.raises(CheckpointError, match=f"^model: .*{tmp_path}"):
        read_tokenizer(str(tmp_path))
