from pathlib import Path

from tokenizers import Tokenizer

from rmtrain.data.rows.dataset import digest, source_identity, tokenizer_fingerprint
from rmtrain.recipe.schema import PairSource
from tests.helpers import byte_bpe, llama_like, pairs, write_jsonl


def test_a_source_is_known_by_content_and_reading_not_by_place(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, there = (write_jsonl(folder / "rows.jsonl", pairs(3)) for folder in (tmp_path, tmp_path / "other"))
    base = source_identity(PairSource(path=str(here)))
    assert source_identity(PairSource(path=str(there))) == base
    assert source_identity(PairSource(path=str(there), tag="rows")) == base
    for change in ({"tag": "mine"}, {"limit": 2}, {"holdout": 0.1}, {"chosen": "rejected"}, {"messages": {"transcript": "hh"}}):
        assert source_identity(PairSource(path=str(here), **change)) != base, change


def test_trap_14_one_character_of_a_tokenizer_changes_its_fingerprint() -> None:
    tokenizer = llama_like(pad_token="<unk>")
    before = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(llama_like(pad_token="<unk>")) == before
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == before, "calls leave it alone"
    tokenizer.chat_template += " "
    assert tokenizer_fingerprint(tokenizer) != before
    assert tokenizer_fingerprint(llama_like(pad_token="<s>")) != before
    text = byte_bpe().backend_tokenizer.to_str()
    changed = byte_bpe()
    changed._tokenizer = Tokenizer.from_str(text.replace('"use_regex":true', '"use_regex":false', 1))
    assert tokenizer_fingerprint(changed) != tokenizer_fingerprint(byte_bpe())


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest({})) == 64
