"""A million generated pairs through `rmtrain preprocess`: rows a second, and the memory of all its processes together.

Pairs are random words, with the frequencies of natural language, in a JSONL file; the tokenizer is a byte-level BPE trained on the first
of them. The command runs as a process of its own, as a user runs it. Memory is sampled from the outside: the proportional set size of
the process and of those it starts. Its private part (`anonymous`) cannot be given back under memory pressure. Needs Linux.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, figure, finish, machine, parser, show

VOCABULARY, WORDS, SAMPLE = 8192, 30_000, 20_000
SECONDS_BETWEEN_SAMPLES = 0.25
RECIPE = """\
run: {{name: scale, output_dir: {folder}/run}}
data:
  train: [{{path: {rows}, dedup: true, holdout: 0.01}}]
  chat_template: simple_chat
  processes: {processes}
  cache_dir: {folder}/cache
model: {{scratch: {{architecture: llama, hidden_size: 64, layers: 1, heads: 1}}, tokenizer: {folder}/tokenizer}}
optimizer: {{lr: 1.0e-4}}
"""


def words(rng: np.random.Generator) -> list[str]:
    """Return different words of two to ten letters."""
    letters = rng.integers(ord("a"), ord("z") + 1, (2 * WORDS, 10), dtype=np.uint8)
    lengths = np.clip(rng.poisson(5, 2 * WORDS), 2, 10)
    made = (bytes(row[:length]).decode() for row, length in zip(letters, lengths, strict=True))
    return list(dict.fromkeys(made))[:WORDS]


def write_pairs(file: Path, count: int) -> list[str]:
    """Write `count` pairs of about 40 words in the prompt and 30 in each response; returns some of their texts."""
    rng, sample = np.random.default_rng(0), []
    known = np.array(words(rng))
    common = 1 / np.arange(1, len(known) + 1)
    with file.open("w", encoding="utf-8") as stream:
        for begin in range(0, count, 10_000):
            size = min(10_000, count - begin)
            lengths = np.clip(rng.lognormal([3.5, 3.2, 3.2], 0.6, (size, 3)), 2, 300).astype(int)
            drawn = known[rng.choice(len(known), lengths.sum(), p=common / common.sum())]
            texts = [" ".join(part) for part in np.split(drawn, np.cumsum(lengths.ravel())[:-1])]
            for prompt, chosen, rejected in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
                stream.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
            sample += texts[: max(SAMPLE - len(sample), 0)]
    return sample


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """Train a byte-level BPE on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>").save_pretrained(folder)


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def memory(pids: list[int]) -> dict[str, int]:
    """Return the bytes of some processes together: the proportional set size, and its private part."""
    total = {"Pss": 0, "Pss_Anon": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name in total:
                total[name] += 1024 * int(rest.split()[0])
    return {"all": total["Pss"], "anonymous": total["Pss_Anon"]}


def preprocess(count: int, processes: int, folder: Path) -> dict[str, Any]:
    """Generate pairs, preprocess them as a user does, and sample the memory."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    write_tokenizer(folder / "tokenizer", write_pairs(rows, count))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, rows=rows, processes=processes), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with (folder / "out.json").open("w") as out, (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "rmtrain", "preprocess", str(recipe), "--json"]
        process = subprocess.Popen(command, stdout=out, stderr=log, env=environment)
        peaks, seconds_tokenized = {"all": 0, "anonymous": 0}, None
        while process.poll() is None:
            now = memory(family(process.pid))
            peaks = {name: max(value, now[name]) for name, value in peaks.items()}
            if seconds_tokenized is None and list((folder / "cache").glob("[!.]*/manifest.json")):
                seconds_tokenized = time.perf_counter() - start
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"preprocess ended with {process.returncode}: {(folder / 'log.txt').read_text()[-2000:]}")
    splits = json.loads((folder / "out.json").read_text())["splits"]
    kept = sum(split["comparisons"] for split in splits.values())
    assert kept > 0.99 * count, f"{kept} of {count} pairs were kept"
    return {
        "pairs": count,
        "kept": kept,
        "tokens": sum(split["tokens"] for split in splits.values()),
        "bytes_of_rows": rows.stat().st_size,
        "seconds": seconds,
        "seconds_tokenized": seconds_tokenized,
        "peak_bytes": peaks,
    }


def measure(arguments: Namespace) -> list[dict[str, Any]]:
    """Measure a tenth of the pairs, then all of them, so that growth shows."""
    found = []
    for count in (arguments.pairs // 10, arguments.pairs):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found.append(preprocess(count, arguments.processes, Path(folder) / "scale"))
    return found


def main() -> None:
    """Measure, print, write."""
    made = parser(__doc__)
    made.add_argument("--pairs", type=int, default=1_000_000, help="The larger size; the smaller is a tenth of it.")
    made.add_argument("--processes", type=int, default=2, help="data.processes.")
    made.add_argument("--folder", type=Path, help="Folder for some gigabytes of temporary files (default: the system's).")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.pairs = 20_000
    about, found = machine(), measure(arguments)
    lines = [
        [
            one["pairs"],
            one["seconds"],
            one["pairs"] / one["seconds"],
            one["tokens"] / one["seconds"],
            one["peak_bytes"]["all"] / 1e9,
            one["peak_bytes"]["anonymous"] / 1e9,
        ]
        for one in found
    ]
    columns = ["pairs", "seconds", "pairs/s", "tokens/s", "GB", "GB anonymous"]
    show(f"`rmtrain preprocess`, {arguments.processes} processes", columns, lines)
    small, large = (one["peak_bytes"]["anonymous"] for one in found)
    grown = (large - small) / (found[1]["pairs"] - found[0]["pairs"])
    pairs = f"{found[1]['pairs']:,} pairs"
    figures = [
        figure(f"preprocessing {pairs}, with start and checks", f"{found[1]['pairs'] / found[1]['seconds']:,.0f} pairs/s", "–"),
        figure("memory of all processes together", f"{found[1]['peak_bytes']['all'] / 1e9:.2f} GB", "bounded"),
        figure("its private part", f"{large / 1e9:.2f} GB", "bounded"),
        figure("growth of the private part with each pair", f"{grown:.0f} bytes", "–"),
    ]
    finish(arguments, {"machine": about, "sizes": found}, figures)


if __name__ == "__main__":
    main()
