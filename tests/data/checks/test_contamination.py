"""Training rows that have a prompt of a benchmark, in whatever shape the benchmark comes."""

import csv
import gzip
import json
import random
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.checks import contamination
from rmtrain.data.checks import edited_prompts as contamination_index
from rmtrain.data.checks.benchmark_prompts import PROMPT_COLUMNS, prompt_file
from rmtrain.data.checks.edited_prompts import FEWEST, PromptIndex, words_in_order, words_of
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.recipe.schema import EditedPrompts
from tests.edges import prepared_rows, row
from tests.helpers import byte_bpe, write_jsonl

QUESTION = "Which city is on the Seine?"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def benchmark_overlap(train: TokenizedData, files: list[str]) -> dict[int, str]:
    """Return the rows that are found, with the row of the benchmark alone."""
    found = contamination.benchmark_overlap(
        train, [prompt_file(file) for file in files], prepared(byte_bpe(), "simple_chat"), None
    )
    return {number: detail.removeprefix("prompt of ") for number, detail in found.items()}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> TokenizedData:
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": QUESTION},
    ]
    rows = [
        row("What is bread?", "a", "b"),
        row(QUESTION, "Paris", "Rome"),
        row("Sort these: 3 1 2", "1 2 3", "3 2 1"),
        {"prompt": turns, "chosen": "Paris", "rejected": "Rome"},
    ]
    return prepared_rows(tmp_path_factory.mktemp("train"), tokenizer, rows)[0].train


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return str(path)


@pytest.mark.parametrize("name", ["bench.jsonl", "bench.json", "bench.csv", "bench.parquet"])
def test_trap_12_benchmark_prompt_in_any_file_format(name: str, tmp_path: Path, train: TokenizedData) -> None:
    """A prompt of a benchmark is found in every file format, in any case and spacing."""
    file = write(tmp_path / name, [{"id": 1, "prompt": "Other?"}, {"id": 2, "prompt": f"  {QUESTION.upper()}\n"}])
    assert benchmark_overlap(train, [file]) == {1: f"{name}:1"}


@pytest.mark.parametrize("column", PROMPT_COLUMNS)
def test_prompt_column_has_usual_names(column: str, tmp_path: Path, train: TokenizedData) -> None:
    file = write(tmp_path / "bench.jsonl", [{"id": "x", column: QUESTION, "chosen": "Paris"}])
    assert benchmark_overlap(train, [file]) == {1: "bench.jsonl:0"}


@pytest.mark.parametrize(
    ("cells", "rows"),
    [
        ({"prompt": [{"role": "user", "content": QUESTION}]}, [1]),
        ({"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Lyon"}]}, [1]),
        ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": QUESTION}]}, [1]),
        ({"conversation_input": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]}, []),
        ({"prompt": f"\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: {QUESTION}\n\nAssistant:"}, [3]),
        ({"instruction": "Sort these:", "input": "3 1 2"}, [2]),
        ({"instruction": QUESTION, "input": ""}, [1]),
        ({"input": QUESTION, "output_1": "Paris"}, [1]),
        ({"prompt": "Which city is on the Seine"}, []),
    ],
)
def test_prompts_of_every_shape_are_compared(
    cells: dict[str, Any], rows: list[int], tmp_path: Path, train: TokenizedData
) -> None:
    file = write(tmp_path / "bench.jsonl", [cells])
    assert list(benchmark_overlap(train, [file])) == rows


def test_several_benchmark_files_or_none(tmp_path: Path, train: TokenizedData) -> None:
    files = [write(tmp_path / "a.jsonl", [{"prompt": "What is bread?"}]), write(tmp_path / "b.json", [{"question": QUESTION}])]
    assert benchmark_overlap(train, files) == {0: "a.jsonl:0", 1: "b.json:0"}
    assert benchmark_overlap(train, []) == {}


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("none.jsonl", None, r"none\.jsonl does not exist"),
        ("notes.txt", "text", r"notes\.txt "),
        ("empty.jsonl", "", r"empty\.jsonl "),
        ("broken.jsonl", '{"prompt": "a"}\n{oops\n', r"broken\.jsonl:1 .* broken\.jsonl:2:"),
        ("broken.json", '[{"prompt" 1}]', r"broken\.json:1:12: "),
        ("other.jsonl", '{"id": 1, "answer": "a"}', r"other\.jsonl:0 .* id, answer$"),
        ("odd.jsonl", '{"prompt": 7}', r"odd\.jsonl:0: prompt "),
    ],
)
def test_unreadable_benchmark_file_is_an_error(
    name: str, content: str | None, place: str, tmp_path: Path, train: TokenizedData
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"^data\.benchmarks: .*" + place) as error:
        benchmark_overlap(train, [str(tmp_path / name)])
    assert len(error.value.problems) == 1


def test_real_benchmarks_are_read(shared_data: Path, train: TokenizedData) -> None:
    for name in ("llmbar_natural.json", "rmbench_chat.json", "pandalm_test.json"):
        assert benchmark_overlap(train, [str(shared_data / name)]) == {}


ASKED = (
    "Write a short letter to the landlord of a flat in which the heating has not worked since the first cold week of November."
)
CHANGED = "Write a short note to the landlord of a flat in which the boiler has not worked since the first wet week of November."
OTHER = (
    "Write a short letter to your best friend about the last summer holiday, and say what you liked about the food and the sea."
)


def test_edited_and_embedded_prompts_are_found(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Three edited words, a longer prompt around it, both, and an earlier turn; another task and shorter prompts are not taken for it."""
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "Dear"}, {"role": "user", "content": "Go on."}]
    prompts: list[Any] = [
        *(CHANGED, f"You are a helpful tenant. {ASKED} Be polite.", f"Please do this: {CHANGED} Thanks!", turns),
        *(OTHER, "Write a short letter to the landlord.", ASKED.upper().replace(",", " ,"), "Hello."),
    ]
    made, data = prepared_rows(tmp_path / "rows", tokenizer, [{"prompt": one, "chosen": "a", "rejected": "b"} for one in prompts])
    source = prompt_file(write(tmp_path / "bench.jsonl", [{"prompt": "Name it."}, {"prompt": ASKED}]))
    found = contamination.benchmark_overlap(made.train, [source], tokenizer, data.edited_prompts)
    assert list(found) == [0, 1, 2, 3, 6]
    assert found[0] == "88% of the prompt of bench.jsonl:1"
    assert found[1] == found[3] == "100% of the prompt of bench.jsonl:1"
    assert found[6] == "prompt of bench.jsonl:1" or found[6].startswith("100% ")
    assert contamination.benchmark_overlap(made.train, [source], tokenizer, None).keys() <= {6}
    strict = EditedPrompts(words=4, share=0.95)
    assert list(contamination.benchmark_overlap(made.train, [source], tokenizer, strict)) == [1, 3, 6]


def test_three_edits_are_found_wherever_they_are() -> None:
    """Of a prompt of at least 16 words every three edits leave four words in a row, and at least 13 of 16."""
    words = ASKED.split()[:16]
    index = PromptIndex([("it", " ".join(words))], 4)
    for places in combinations(range(16), 3):
        edited = ["xyz" if place in places else word for place, word in enumerate(words)]
        near = index.find(" ".join(edited), 0.7)
        assert near is not None, places
        assert near.share >= 13 / 16, places
    assert index.find(" ".join(reversed(words)), 0.3) is None, "guard: order counts"
    assert index.find("", 0.1) is None


@pytest.mark.parametrize("count", [1, 2, 4])
def test_words_that_are_put_in_or_left_out_shift_the_rest(count: int) -> None:
    """All words of a prompt that are left are found, on both sides of the place."""
    words = ASKED.split()[:16]
    index = PromptIndex([("it", " ".join(words))], 4)
    for place in range(4, 13):
        longer = index.find(" ".join(["so", "then", *words[:place], *["xyz"] * count, *words[place:], "please"]), 0.3)
        shorter = index.find(" ".join(["so", "then", *words[:place], *words[place + count :], "please"]), 0.3)
        assert longer is not None
        assert shorter is not None
        assert (longer.share, shorter.share) == (1, 1 - len(words[place : place + count]) / 16), place


def test_repeated_instructions_say_nothing() -> None:
    """A text that all prompts of a benchmark begin with does not make a training prompt one of them."""
    begin = "Answer the following question and end with one line that says only the letter of the right choice."
    questions = [
        f"{begin} Which {noun} weighs {number} times as much as that of the town?"
        for number, noun in enumerate(
            ("bell", "clock", "door", "roof", "wall", "gate", "well", "mill", "boat", "cart", "lamp", "oven")
        )
    ]
    index = PromptIndex([(str(number), question) for number, question in enumerate(questions)], 4)
    assert index.find(f"{begin} Who wrote the first book about it?", 0.7) is None
    assert len(questions) > contamination_index.MAX_PROMPTS, "guard"
    near = index.find(questions[3] + " Think first.", 0.7)
    assert near is not None
    assert near.where == "3"


def test_longest_common_subsequence_is_exact() -> None:
    """By bits, it is that of the usual table, for all sizes around the 64 bits of a word as well."""
    generator = random.Random(0)
    for _ in range(200):
        one, other = ([generator.choice("abcd") for _ in range(generator.randint(0, 90))] for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, left in enumerate(one):
            for j, right in enumerate(other):
                table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
        assert words_in_order(one, other) == table[-1][-1]


def test_words_of_scripts_without_spaces() -> None:
    assert words_of("Don't STOP, ﬁne\n2 + 2") == ["don", "t", "stop", "fine", "2", "2"]
    assert words_of("你好 world今天") == ["你", "好", "world", "今", "天"]
    asked = "请写一封信给房东说明暖气从十一月第一周起就坏了"
    near = PromptIndex([("it", asked)], 4).find(f"老师说：{asked.replace('房东', '邻居')}谢谢", 0.7)
    assert near is not None
    assert near.share > 0.9
    assert PromptIndex([("it", "只有七个字的话")], 4).find("只有七个字的话吗", 0.5) is None, "too few words"
    assert FEWEST == 8, "guard"


def test_repetitive_text_takes_linear_time() -> None:
    """A text of one word, 100,000 times, against a prompt that has it 1,000 times, is looked at in a few places."""
    index = PromptIndex([("it", "very " * 1000 + "good")], 4)
    start = time.perf_counter()
    assert index.find("very " * 100_000, 0.9) is not None
    assert time.perf_counter() - start < 30, "guard: by far"


def test_hh_prompts_are_no_false_alarms(shared_data: Path) -> None:
    """Of 1,800 HH rows none has a prompt of 1,527 real ones; of these prompts, edited and embedded, nearly all are found."""
    instructions = json.loads((shared_data / "pandalm_test.json").read_text())
    asked = [row["prompt"] for row in json.loads((shared_data / "rmbench_chat.json").read_text())]
    asked += [row["input"] for row in json.loads((shared_data / "llmbar_natural.json").read_text())]
    others = [f"{row['instruction']}\n{row['input'] or ''}" for row in instructions]
    index = PromptIndex([(text, text) for text in (*asked, *others)], 4)
    with gzip.open(shared_data / "hh_harmless.jsonl.gz", "rt") as file:
        hh = [json.loads(line)["chosen"].rpartition("\n\nAssistant:")[0] for line in file]
    assert [prompt for prompt in hh if index.find(prompt, 0.7)] == []
    generator, found, count = random.Random(1), 0, 0
    for text in asked:
        words = text.split()
        if len(words_of(text)) < FEWEST:
            continue
        for place in generator.sample(range(len(words)), 3):
            words[place] = generator.choice(hh).split()[-1]
        count += 1
        found += index.find(f"{generator.choice(hh)[:300]} {' '.join(words)} Be brief.", 0.7) is not None
    assert found > 0.85 * count
    assert (count, len(hh)) > (190, 1700), "guard"
