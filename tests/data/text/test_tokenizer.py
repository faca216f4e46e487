import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rmtrain.data.rows.dataset import tokenizer_fingerprint
from rmtrain.data.text.tokenize import encode_conversations
from rmtrain.data.text.tokenizer import load_tokenizer, open_tokenizer
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Architecture, PretrainedModel, ScratchModel
from tests.helpers import bert_like, byte_bpe, data_of, llama_like, pairs, roberta_like, unigram_like, write_jsonl

TALK = ({"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is bread."})
KINDS = [byte_bpe, llama_like, unigram_like, bert_like, roberta_like]
SMALL = Architecture(architecture="llama", hidden_size=16, layers=1, heads=1, vocab_size=300)


@pytest.mark.parametrize("build", KINDS)
def test_trap_31_a_saved_tokenizer_is_the_same_when_loaded_again(build: type, tmp_path: Path) -> None:
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
    assert str(tmp_path) not in saved, "no path of this machine is exported"


@pytest.mark.parametrize("build", KINDS)
def test_trap_01_padding_is_on_the_right_and_never_an_end_token(build: type, tmp_path: Path) -> None:
    tokenizer = build()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token or tokenizer.pad_token, "left"
    tokenizer.save_pretrained(tmp_path)
    loaded = open_tokenizer(str(tmp_path), "simple_concat")
    end = encode_conversations([TALK], loaded)[0][-1]
    assert loaded.pad_token_id is not None
    assert loaded.pad_token_id not in (end, loaded.eos_token_id)
    assert loaded.padding_side == "right"


def test_trap_42_a_token_is_added_only_where_none_can_be_spared(tmp_path: Path) -> None:
    byte_bpe(special_tokens=["<e>"], eos_token="<e>").save_pretrained(tmp_path / "bare")
    llama_like(eos_token="</s>").save_pretrained(tmp_path / "reserved")
    bare, reserved = (open_tokenizer(str(tmp_path / name), "simple_chat") for name in ("bare", "reserved"))
    assert (bare.pad_token, bare.pad_token_id) == ("<|pad|>", len(bare) - 1)
    assert len(bare) == len(AutoTokenizer.from_pretrained(tmp_path / "bare")) + 1
    assert len(reserved) == len(AutoTokenizer.from_pretrained(tmp_path / "reserved"))


def test_a_model_with_its_own_template_needs_no_name(tmp_path: Path) -> None:
    llama_like().save_pretrained(tmp_path / "model")
    data = data_of(tmp_path / "none.jsonl", tmp_path, chat_template="tokenizer")
    tokenizer = load_tokenizer(PretrainedModel(path=str(tmp_path / "model")), data)
    assert tokenizer.decode(encode_conversations([TALK], tokenizer)[0]) == "<s>[INST] What is it? [/INST] It is bread.</s>"
    given = load_tokenizer(ScratchModel(scratch=SMALL, tokenizer=str(tmp_path / "model")), data)
    assert tokenizer_fingerprint(given) == tokenizer_fingerprint(tokenizer)


def test_a_scratch_model_without_tokenizer_gets_one_trained_on_its_data(tmp_path: Path) -> None:
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", pairs(30)), tmp_path / "cache")
    tokenizer = load_tokenizer(ScratchModel(scratch=SMALL), data)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|endoftext|>", "<|pad|>", 300)
    with pytest.raises(RecipeError, match=r"data.chat_template: the tokenizer has no chat template; name one: simple_concat"):
        load_tokenizer(ScratchModel(scratch=SMALL), data.model_copy(update={"chat_template": "tokenizer"}))


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for path in ("nobody/model", str(tmp_path / "empty"), str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(RecipeError, match=r"^model: no tokenizer at ") as error:
            open_tokenizer(path)
        assert "\n" not in str(error.value)
