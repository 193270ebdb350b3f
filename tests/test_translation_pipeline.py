"""The whole road on a language that is translated word for word: card to verdict, then what follows."""

import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import edgekd
from edgekd.artefacts import write_list
from edgekd.bench.worker import DEFAULTS, make_session, opened
from edgekd.budget import Budget
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.external import decoder_of, file_digest, model_bytes
from edgekd.search.int8 import settle_int8
from edgekd.search.material import Material
from edgekd.target import Hardware, Quantization, load_target
from edgekd.tasks.translation import TRANSLATION, texts_of, tokenizer_from

Cli = Callable[..., Any]

CARD = """
title = "Word for word"
task = "translation"

[data]
path = "data"
source_language = "en"
target_language = "de"
max_length = 10
vocabulary = 80
beam = 2

[teacher]
family = "seq2seq"
shape = { width = 32, encoder_layers = 1, decoder_layers = 1, heads = 2, feed = 32, dropout = 0.0 }

[teacher.training]
epochs = 14
batch_size = 16
optimizer = "adamw"
learning_rate = 0.01

[student]
family = "seq2seq"

[student.knobs]
width = [24]
encoder_layers = [1]
decoder_layers = [1]
heads = [2]
feed = [16]
dropout = [0.0]

[recipe]
epochs = 8
batch_size = 16
optimizer = "adamw"
learning_rate = 0.01
temperature = 1.0
losses = { kd = 1.0, ce = 0.5 }
sequences = "both"
sequence_beam = 2

[budget]
size_kb = 200
min_bleu = 0.1
"""
WORDS = dict(zip("a the dog cat man child sees takes red small".split(),
                 "ein der hund katze mann kind sieht nimmt rot klein".split(), strict=True))  # fmt: skip


def write_parts(folder: Path) -> None:
    """Sentences of two to four words, whose translations are those of the words."""
    rng = random.Random(0)
    folder.mkdir()
    for part, count in (("train", 320), ("val", 24), ("test", 32)):
        rows = [rng.choices(list(WORDS), k=rng.randint(2, 4)) for _ in range(count)]
        (folder / f"{part}.en").write_text("".join(" ".join(row) + "\n" for row in rows))
        (folder / f"{part}.de").write_text("".join(" ".join(WORDS[word] for word in row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card and its data; a run in it is shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("translation")
    (folder / "words.toml").write_text(CARD)
    write_parts(folder / "data")
    return folder


@pytest.fixture
def run(place: Path, cli: Cli) -> Path:
    """The finished run, made by the first test that asks."""
    if not (place / "run").exists():
        done = cli("distill", place / "words.toml", "-t", "cpu-arm", "--out", place / "run")
        assert done.returncode in (0, 3), done.stderr + done.stdout
    return place / "run"


def result_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return content


def bleu_of(model: dict[str, Any]) -> float:
    """The deciding score of a model in a result."""
    first = model["scores"][0]
    assert first["name"] == "bleu"
    return float(first["value"])


def test_teacher_and_student_learn_and_are_scored_by_bleu(run: Path) -> None:
    result = result_of(run)
    teacher, fp32, int8 = result["models"]
    assert bleu_of(teacher) > 15 and bleu_of(fp32) > 5 and bleu_of(int8) > 5
    assert fp32["torch_agreement"] == 1.0  # NumPy's beam search is torch's
    assert result["parity"]["relative"] < 1e-4 and result["parity"]["same"] == 1.0
    history = json.loads((run / "student" / "history.json").read_text())["epochs"]
    assert history[-1]["examples"] == 640 and {"kd", "ce"} <= history[-1]["terms"].keys()


def test_the_shipped_model_is_two_files_that_translate_alone(run: Path) -> None:
    result = result_of(run)
    chosen = next(model for model in result["models"] if model["name"] == result["chosen"])
    assert model_bytes(run / "model.onnx") == chosen["size_bytes"]
    assert chosen["size_bytes"] > (run / "model.onnx").stat().st_size
    exact = {**DEFAULTS, "mode": "predict", "precise_int8": True}  # as on an Arm CPU, also without VNNI
    session = make_session(onnxruntime, exact, str(run / "model.onnx"))
    known = onnxruntime.InferenceSession(run / "model.onnx").get_modelmeta().custom_metadata_map
    made = tokenizer_from(known["tokenizer"], "the metadata")
    assert made.to_str() == tokenizer_from((run / "tokenizer.json").read_text(), "the run").to_str()
    targets = np.load(run / "data" / "test.labels.npy")
    ids = [np.array([made.encode(text).ids], np.int32) for text in targets[:, 0].tolist()]
    texts = texts_of(np.concatenate([session.run(None, {"ids": row})[0] for row in ids]), made)
    assert TRANSLATION.score(texts, targets)["bleu"] == bleu_of(chosen)


def test_the_loop_in_the_docs_translates(run: Path) -> None:
    text = (Path(edgekd.__file__).parents[1] / "docs" / "translation.md").read_text(encoding="utf-8")
    (loop,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said = subprocess.run([sys.executable, "-c", loop], cwd=run, capture_output=True, text=True, check=True).stdout
    session = opened(str(run / "model.onnx"))
    session.settings["beam"] = 1
    made = tokenizer_from((run / "tokenizer.json").read_text(), "the run")
    (ids,) = session.run(None, {"ids": np.array([made.encode("a dog sees the cat").ids], np.int32)})
    assert said.strip() == texts_of(ids, made)[0] != ""


@pytest.mark.parametrize("command", ["bench", "check"])
def test_a_swapped_decoder_is_one_line(run: Path, cli: Cli, tmp_path: Path, command: str) -> None:
    for name in ("mine.onnx", "mine.decoder.onnx"):
        shutil.copyfile(run / "exported" / name.replace("mine", "student-int8"), tmp_path / name)
    shutil.copyfile(run / "exported" / "student-fp32.decoder.onnx", tmp_path / "mine.decoder.onnx")
    budget = ("--budget", "size_kb=900") if command == "check" else ()
    done = cli(command, "mine.onnx", "-t", "cpu-arm", *budget)
    assert done.returncode == 2
    assert "mine.decoder.onnx: is not the decoder with which mine.onnx was written" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("edgekd: ")]) == 1


def test_a_lost_decoder_is_exported_again(run: Path, place: Path, cli: Cli) -> None:
    decoder = decoder_of(run / "exported" / "student-fp32.onnx")
    before = decoder.read_bytes()
    decoder.unlink()
    done = cli("distill", place / "words.toml", "-t", "cpu-arm", "--out", run)
    assert done.returncode in (0, 3), done.stderr
    assert "student-fp32.decoder.onnx" in done.stderr and decoder.read_bytes() == before


def test_int8_is_chosen_by_measuring_both_files(run: Path, tmp_path: Path) -> None:
    """On this machine, whichever it is."""
    hardware = Hardware(architecture="aarch64" if Local().facts().architecture == "aarch64" else "x86_64")
    tried = Quantization(schemes=("u8s8-7bit",))
    target = dataclasses.replace(load_target("cpu-x86"), hardware=hardware, quantization=tried)
    fp32, inputs = run / "exported" / "student-fp32.onnx", run / "data" / "test.npy"
    material = Material(fp32=fp32, calibration=None, inputs=inputs, targets=np.load(run / "data" / "test.labels.npy"),
                        task=TRANSLATION, site=Site(target, Local()), folder=tmp_path / "trials")  # fmt: skip
    file = tmp_path / "student-int8.onnx"
    kept = settle_int8(material, file, Budget(), None)
    names = [trial["name"] for trial in kept["trials"]]
    assert names == ["dynamic U8S8, 8-bit weights", "dynamic U8S8, 7-bit weights"]
    assert all(trial["validation_score"] > 5 for trial in kept["trials"])
    assert file_digest(file) == kept["sha256"]
    assert {trial["size_bytes"] for trial in kept["trials"]} >= {model_bytes(file)}
    decoder_of(file).unlink()  # as if the process was killed between the two files
    assert settle_int8(material, file, Budget(), None) == kept
    assert file_digest(file) == kept["sha256"]


def test_the_report_shows_translations(run: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("report", run, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    sentence, reference, _ = result_of(run)["models"][0]["details"]["translations"][0]
    assert "<h2>Translations</h2>" in page and f'<td class="text">{sentence}</td>' in page and reference in page
    without = tmp_path / "without"
    shutil.copytree(run, without, ignore=shutil.ignore_patterns("exported"))
    done = cli("report", without, "--html", tmp_path / "page.html")
    assert done.returncode == 0 and sentence in (tmp_path / "page.html").read_text(encoding="utf-8"), done.stderr
    (without / "model.decoder.onnx").unlink()
    done = cli("report", without, "--html", tmp_path / "page.html")
    assert done.returncode == 2 and f"{without / 'model.decoder.onnx'}: is missing; run its" in done.stderr


def test_a_model_is_checked_against_another_on_the_same_sentences(run: Path, tmp_path: Path, cli: Cli) -> None:
    inputs, labels = (np.load(run / "data" / f"test{end}.npy") for end in ("", ".labels"))
    np.savez(tmp_path / "set.npz", inputs=inputs, labels=labels)
    files = run / "exported" / "student-fp32.onnx", "--baseline", run / "exported" / "teacher-fp32.onnx"
    done = cli("check", *files, "-t", "cpu-arm", "--data", tmp_path / "set.npz")
    assert "BLEU loss" in done.stdout, done.stderr + done.stdout


def test_a_run_is_checked_by_its_folder(run: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("check", run, "-t", "cpu-arm", "--baseline", run)
    assert done.returncode == 0 and "(the very same file (SHA-256))" in done.stdout, done.stderr + done.stdout
    other = tmp_path / "other"
    shutil.copytree(run, other)
    changed = bytearray((other / "model.decoder.onnx").read_bytes())
    changed[len(changed) // 2] ^= 1
    (other / "model.decoder.onnx").write_bytes(changed)
    (other / "artefacts.json").unlink()
    write_list(other)  # a list that holds the digest of the changed file
    done = cli("check", other, "-t", "cpu-arm")
    assert done.returncode == 2 and "model.onnx: is not the file the run made" in done.stderr


def test_missing_files_and_pairs_end_in_one_line(place: Path, tmp_path: Path, cli: Cli) -> None:
    write_parts(tmp_path / "data")
    (tmp_path / "data" / "train.de").write_text("ein hund\n")
    done = cli("distill", place / "words.toml", "-t", "cpu-arm", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "train.de: has 1 lines, and train.en has 320" in done.stderr
