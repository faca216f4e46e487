import subprocess
import sys
from pathlib import Path

from rmtrain.data.comparison import is_held_out, prompt_hash
from rmtrain.data.rows.dataset import tokenizer_fingerprint
from rmtrain.data.rows.loading import load_comparisons
from rmtrain.data.text.tokenizer import trained_tokenizer
from rmtrain.recipe.schema import Data
from tests.helpers import data_of, pairs, write_jsonl


def section(tmp_path: Path, cache: str, **settings: object) -> Data:
    file = tmp_path / "rows.jsonl"
    return data_of(file if file.exists() else write_jsonl(file, pairs(200)), tmp_path / cache, **settings)


def test_training_is_deterministic_across_processes_and_kept(tmp_path: Path) -> None:
    here = trained_tokenizer(section(tmp_path, "a"), 320)
    (kept,) = (tmp_path / "a").glob("tokenizer-*/tokenizer.json")
    code = (
        "from pathlib import Path; from tests.data.text.test_bpe import section; from rmtrain.data.text.tokenizer import trained_tokenizer;"
        f"trained_tokenizer(section(Path({str(tmp_path)!r}), 'b'), 320)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], capture_output=True)
    (other,) = (tmp_path / "b").glob("tokenizer-*/tokenizer.json")
    assert kept.read_bytes() == other.read_bytes()
    time = kept.stat().st_mtime_ns
    again = trained_tokenizer(section(tmp_path, "a"), 320)
    assert kept.stat().st_mtime_ns == time
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(here)


def test_the_end_token_is_one_token_and_no_text_loses_a_byte(tmp_path: Path) -> None:
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


def test_another_size_template_or_text_is_another_tokenizer(tmp_path: Path) -> None:
    trained_tokenizer(section(tmp_path, "a"), 300)
    trained_tokenizer(section(tmp_path, "a"), 310)
    trained_tokenizer(section(tmp_path, "a", chat_template="zephyr"), 300)
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("7?", "8?"))
    trained_tokenizer(section(tmp_path, "a"), 300)
    assert len(list((tmp_path / "a").glob("tokenizer-*"))) == 4
