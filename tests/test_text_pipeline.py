"""The whole road on a few generated sentences: card to verdict, then bench and check; and what is refused."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers

from edgekd.devices.local import Local
from edgekd.target import load_target

Cli = Callable[..., Any]

CARD = """
title = "Two sorts of words"
task = "text-classification"

[data]
source = "tsv"
path = "data"
classes = ["bad", "good"]
max_length = 12
vocabulary = 20

[augment]
word_dropout = 0.1

[teacher]
family = "lstm"
shape = { embedding = 8, hidden = 8, dropout = 0.1 }

[teacher.training]
epochs = 6
batch_size = 20
optimizer = "adamw"
learning_rate = 0.02

[student]
family = "bag-of-words"

[student.knobs]
embedding = [4, 8]

[recipe]
epochs = 8
batch_size = 20
optimizer = "adamw"
learning_rate = 0.05
views = 2

[budget]
size_kb = 20
min_accuracy = 0.8
"""
WORDS = {"bad": "awful boring dull poor sad weak".split(), "good": "bright clever fine funny great warm".split()}
SHARED = "a the film plot cast and".split()


def write_parts(folder: Path) -> None:
    """200 sentences of 3 to 9 words, of which one to three tell the class."""
    rng = random.Random(0)
    folder.mkdir()
    for part, count in (("train", 200), ("dev", 60), ("test", 80)):
        lines = []
        for number in range(count):
            label = ("bad", "good")[number % 2]
            words = rng.choices(WORDS[label], k=rng.randint(1, 3)) + rng.choices(SHARED, k=rng.randint(2, 6))
            lines.append(f"{' '.join(rng.sample(words, len(words)))}\t{label}\n")
        (folder / f"{part}.tsv").write_text("".join(lines))


def target_of_this_machine() -> str:
    """A target that every machine is, whichever CPU it has: cpu-x86-avx2 without its demands on the hardware."""
    text = Path(load_target("cpu-x86-avx2").file).read_text(encoding="utf-8")
    for key, value in {"architecture": Local().facts().architecture, "requires": [], "lacks": []}.items():
        text, changed = re.subn(rf"^{key} = .*$", f"{key} = {json.dumps(value)}", text, flags=re.MULTILINE)
        assert changed == 1
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card and its data; a run in it is shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "words.toml").write_text(CARD)
    (folder / "here.toml").write_text(target_of_this_machine())
    write_parts(folder / "data")
    return folder


@pytest.fixture
def run(place: Path, cli: Cli) -> Path:
    if not (place / "run").exists():
        done = cli("distill", place / "words.toml", "-t", place / "here.toml", "--out", place / "run")
        assert done.returncode == 0, done.stderr
        assert "words on here: pass" in done.stdout.splitlines()[-1]
    return place / "run"


def test_the_shipped_file_and_its_tokenizer_are_all_a_user_needs(run: Path, place: Path) -> None:
    """As the README shows it: nothing of edgekd."""
    result = json.loads((run / "result.json").read_text())
    chosen = next(model for model in result["models"] if model["name"] == result["chosen"])
    tokenizer = tokenizers.Tokenizer.from_file(str(run / "tokenizer.json"))
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    lines = [line.split("\t") for line in (place / "data" / "test.tsv").read_text().splitlines()]
    right = 0
    for sentence, label in lines:
        ids = np.array([tokenizer.encode(sentence).ids], dtype=np.int32)
        (logits,) = session.run(None, {"ids": ids})
        right += labels[logits.argmax()] == label
    assert right / len(lines) == pytest.approx(chosen["scores"][0]["value"])
    assert (result["test_examples"], result["test_reads"]) == (80, 1)
    assert chosen["scores"][0]["value"] > 0.9  # words that tell the class are never those of the other


def test_the_reports_speak_of_sentences(run: Path, cli: Cli, tmp_path: Path) -> None:
    assert "Accuracy on 80 test sentences" in (run / "report.md").read_text()
    done = cli("report", run, "--html", "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "80 test sentences" in page
    for text in (page, (run / "report.md").read_text()):
        assert " test images" not in text
        assert " real images" not in text


def test_figures_are_of_the_median_sentence(run: Path, place: Path) -> None:
    lines = (place / "data" / "dev.tsv").read_text().splitlines()
    lengths = sorted(len(line.split("\t")[0].split()) for line in lines)
    result = json.loads((run / "result.json").read_text())
    for model in result["models"]:
        assert model["latency_p50_ms"] > 0
        assert model["fingerprint"]["sequence_length"] == lengths[(len(lengths) - 1) // 2]
    teacher, fp32, int8 = result["models"]
    assert teacher["macs"] > fp32["macs"] == 8 * 2
    assert fp32["params"] == 20 * 8 + 8 * 2 + 2
    assert int8["size_bytes"] < 8_000
    assert int8["torch_agreement"] > 0.9
    assert result["parity"]["relative"] < 1e-4
    candidates = json.loads((run / "candidates.json").read_text())["candidates"]
    assert [candidate["shape"] for candidate in candidates] == [{"embedding": 4}, {"embedding": 8}]
    assert all(c["precisions"]["int8"]["latency_p50_ms"]["value"] > 0 for c in candidates)


def test_bench_and_check_take_the_run_and_the_file(run: Path, place: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("bench", run, run / "model.onnx", "-t", place / "here.toml", "--quick", "--json", "bench.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "timed with sequences of" in done.stdout
    models = json.loads((tmp_path / "bench.json").read_text())["models"]
    result = json.loads((run / "result.json").read_text())
    assert [m["scores"][0]["value"] for m in models[:3]] == [m["scores"][0]["value"] for m in result["models"]]
    assert "value" not in models[3]["scores"][0]
    assert models[3]["fingerprint"]["sequence_length"] == models[0]["fingerprint"]["sequence_length"]
    done = cli("check", run, "-t", place / "here.toml", "--budget", "size_kb=20", "--budget", "min_accuracy=0.5")
    assert done.returncode == 0, done.stdout


def test_bench_on_other_sentences_uses_the_runs_tokenizer(run: Path, cli: Cli, tmp_path: Path, place: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "test.tsv").write_text("great great film\tgood\nawful and unheard of\tbad\n" * 5)
    arguments = ("bench", run, "-t", place / "here.toml", "--quick", "--data", other)
    done = cli(*arguments, "--json", "other.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "other.json").read_text())["models"][1]["scores"][0]["value"] == 1.0
    kept = (run / "tokenizer.json").read_bytes()
    try:
        (run / "tokenizer.json").unlink()
        done = cli(*arguments)
    finally:
        (run / "tokenizer.json").write_bytes(kept)
    assert done.returncode == 2
    assert "tokenizer.json: no such tokenizer file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_machine_gets_int8_by_declaration(place: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("distill", place / "words.toml", "-t", "cpu-arm", "--out", tmp_path / "arm")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "arm" / "result.json").read_text())
    assert result["chosen"] == "student int8"
    assert result["models"][2]["scores"][0]["provenance"] == "proxy"
    assert result["models"][2]["latency_p50_ms"] is None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("max_length = 12", "max_length = 0", "data.max_length: got 0; it should be greater than or equal to 1"),
        ("max_length = 12", "", "data.max_length: is missing; add it"),
        ("max_length = 12", "max_lenght = 12", "data.max_lenght: unknown key; did you mean 'max_length'"),
        ('source = "tsv"', 'source = "digits"', "data.source: got \"digits\"; it should be 'tsv' or 'import'"),
        ("vocabulary = 20", "vocabulary = 20\nsize = 8", "data.size: unknown key;"),
        ("vocabulary = 20", "vocabulary = 2", "data.vocabulary: got 2; it should be greater than or equal to 3"),
        ("vocabulary = 20", "vocabulary = 20\ntimed_length = 13", "must be at most max_length, 12, got 13"),
        ('"lstm"', '"lsmt"', "teacher.family: unknown family 'lsmt'; did you mean 'lstm'?"),
        ('"bag-of-words"', '"mlp"', "student.family: 'mlp' is not for text-classification;"),
        ("vocabulary = 20", "vocabulary = 999", "data.vocabulary: got 999; the tokenizer of the training"),
        ('source = "tsv"', 'source = "tsv"\ntokenizer = "own.json"', "own.json: no such tokenizer file;"),
        ('path = "data"', 'path = "gone"', "gone: no such data folder; give the folder with --data DIR"),
        ('path = "data"', "", "data.path: the card names no folder for its data; give one with --data DIR"),
        ("word_dropout = 0.1", "word_dropout = 1.0", "augment.word_dropout: got 1.0; it should be less than 1"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_card_is_one_line(place: Path, cli: Cli, before: str, after: str, said: str) -> None:
    assert before in CARD
    card = place / "wrong.toml"
    card.write_text(CARD.replace(before, after))
    done = cli("distill", card, "-t", "cpu-x86-avx2", "--out", "wrong")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("part", "text", "said"),
    [
        ("train", "a film\tgood\nthe plot\n", "train.tsv:2: has 0 tabs;"),
        ("dev", "a film\tfair\n", "dev.tsv:1: label 'fair' is no class of the card;"),
        ("train", "", "train.tsv: holds no sentences"),
    ],
)
def test_a_mistake_in_the_data_is_one_line(cli: Cli, tmp_path: Path, part: str, text: str, said: str) -> None:
    (tmp_path / "words.toml").write_text(CARD)
    write_parts(tmp_path / "data")
    (tmp_path / "data" / f"{part}.tsv").write_text(text)
    done = cli("distill", "./words.toml", "-t", "cpu-x86-avx2", "--out", "run")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
