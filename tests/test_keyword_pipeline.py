"""The whole road on a few generated clips: card to verdict, then bench, report and check; and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile

from edgekd.devices.local import Local
from edgekd.target import load_target

Cli = Callable[..., Any]

CARD = """
title = "Three tones"
task = "keyword-spotting"

[data]{data}
[augment]
time_shift_ms = 40
noise = 0.5
noise_snr_db = [10, 20]
time_mask = 3
frequency_mask = 2

[teacher]
family = "keyword-cnn"
shape = {{ channels = [16, 16], dropout = 0 }}

[teacher.training]
epochs = 8
batch_size = 12
learning_rate = 0.05

[student]
family = "ds-cnn"

[student.knobs]
width = [16]
layers = [1]
kernel = [[4, 4]]
dropout = [0]

[recipe]
epochs = 12
batch_size = 12
learning_rate = 0.05
views = 4

[budget]
size_kb = 20
min_accuracy = 0.5
"""


def target_of_this_machine() -> str:
    """A target that every machine is, whichever CPU it has: cpu-x86-avx2 without its demands on the hardware."""
    text = Path(load_target("cpu-x86-avx2").file).read_text(encoding="utf-8")
    for key, value in {"architecture": Local().facts().architecture, "requires": [], "lacks": []}.items():
        text, changed = re.subn(rf"^{key} = .*$", f"{key} = {json.dumps(value)}", text, flags=re.MULTILINE)
        assert changed == 1
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sounds: ModuleType) -> Path:
    """A folder with a card and its data; a run in it is shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("keywords")
    (folder / "tones.toml").write_text(CARD.format(data=sounds.DATA))
    (folder / "here.toml").write_text(target_of_this_machine())
    sounds.write_clips(folder / "data")
    return folder


@pytest.fixture
def run(place: Path, cli: Cli) -> Path:
    if not (place / "run").exists():
        done = cli("distill", place / "tones.toml", "-t", place / "here.toml", "--out", place / "run")
        assert done.returncode == 0, done.stderr + done.stdout
        assert "tones on here: pass" in done.stdout
    return place / "run"


def test_the_shipped_file_takes_the_samples_of_a_file(run: Path, place: Path) -> None:
    """As the documentation shows it: nothing of edgekd."""
    result = json.loads((run / "result.json").read_text())
    chosen = next(model for model in result["models"] if model["name"] == result["chosen"])
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    right = []
    for path in sorted((place / "data" / "test").rglob("*.*")):
        samples, rate = soundfile.read(path, dtype="int16")
        assert (samples.shape, rate) == ((2000,), 4000)
        (logits,) = session.run(None, {"samples": samples[None]})
        right.append(labels[logits.argmax()] == path.parent.name)
    assert (len(right), result["test_reads"]) == (30, 1)
    assert np.mean(right) == pytest.approx(chosen["scores"][0]["value"])
    assert np.mean(right) > 0.8  # chance is a third


def test_a_stream_is_heard_as_the_page_shows(run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text(encoding="utf-8")
    section = page.partition("\n## A stream of sound\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(run)
    stream: dict[str, Any] = {}
    exec(compile(block, "deploying.md", "exec"), stream)
    sound, _ = soundfile.read(place / "data" / "test" / "rise" / "01.wav", dtype="int16")
    blocks = [sound[begin : begin + 400] for begin in range(0, len(sound), 400)]
    assert {stream["hear"](one) for one in blocks} <= {None, "fall", "high", "rise"}
    assert np.array_equal(stream["clip"], sound)
    (logits,) = stream["session"].run(None, {"samples": sound[None]})
    powers = np.exp(logits[0])
    np.testing.assert_allclose(stream["recent"][-1], powers / powers.sum(), rtol=1e-4)
    # A word that is heard three times is told once.
    stream["session"] = type("Sure", (), {"run": lambda *asked: [np.array([[0.0, 0.0, 9.0]])]})()
    assert [stream["hear"](blocks[0]) for _ in range(12)].count("rise") in (1, 2)


def test_the_front_end_stays_in_float(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    model = onnx.load(run / "exported" / "student-int8.onnx")
    kinds = [node.op_type for node in model.graph.node]
    first, log = kinds.index("Conv"), kinds.index("Log")
    assert first < log < kinds.index("QuantizeLinear")
    assert {"Range", "Cos", "Sin"} < set(kinds[:log])
    # The formulas take the place of 64 kB of numbers; the network has about 400 weights.
    assert (run / "exported" / "student-int8.onnx").stat().st_size < 8_000
    int8 = result["models"][2]
    assert int8["name"] == "student int8" and int8["torch_agreement"] > 0.9
    assert result["parity"]["relative"] < 1e-4 and result["parity"]["same"] == 1


def test_reports_have_the_real_time_factor_and_the_confusion(run: Path, cli: Cli) -> None:
    result = json.loads((run / "result.json").read_text())
    chosen = next(model for model in result["models"] if model["name"] == result["chosen"])
    (note,) = [note for note in result["notes"] if note.startswith("real-time factor")]
    told = re.match(r"real-time factor ([\d.e-]+) \(measured\): one call takes [\d.]+ ms for a clip of 0\.5 s$", note)
    assert told and float(told[1]) == pytest.approx(chosen["latency_p50_ms"] / 500, rel=0.06)
    assert note in (run / "report.md").read_text()
    done = cli("report", run, "--html", "page.html", "--json", "all.json")
    assert done.returncode == 0, done.stderr
    page = Path("page.html").read_text()
    assert "30 test clips" in page and "Confusion matrix" in page and "real-time factor" in page
    (story,) = json.loads(Path("all.json").read_text())["runs"]
    details = story["targets"][0]["models"][0]["details"]
    assert np.array(details["confusion"]).shape == (3, 3) and np.sum(details["confusion"]) == 30


def test_bench_and_check_take_the_run_and_the_file(run: Path, place: Path, cli: Cli) -> None:
    done = cli("bench", run, run / "model.onnx", "-t", place / "here.toml", "--quick", "--json", "bench.json")
    assert (done.returncode, done.stderr) == (0, "")
    models = json.loads(Path("bench.json").read_text())["models"]
    result = json.loads((run / "result.json").read_text())
    assert [m["scores"][0]["value"] for m in models[:3]] == [m["scores"][0]["value"] for m in result["models"]]
    done = cli("check", run, "-t", place / "here.toml", "--budget", "size_kb=20", "--budget", "min_accuracy=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    arrays = {"inputs": np.load(run / "data" / "test.npy"), "labels": np.load(run / "data" / "test.labels.npy")}
    assert arrays["inputs"].dtype == np.int16
    np.savez("clips.npz", **arrays)
    off = [f"{key}=off" for key in ("max_slowdown", "max_slowdown_p95", "max_load_growth", "max_memory_growth")]
    options = [word for key in off for word in ("--tolerance", key)]
    int8, fp32 = (run / "exported" / f"student-{precision}.onnx" for precision in ("int8", "fp32"))
    files = int8, "--baseline", fp32, "--data", "clips.npz"
    done = cli("check", *files, "-t", place / "here.toml", *options, "--tolerance", "max_accuracy_loss=50")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy loss" in done.stdout


def test_another_machine_gets_a_proxy(place: Path, cli: Cli, tmp_path: Path) -> None:
    other = "cpu-arm" if Local().facts().architecture == "x86_64" else "cpu-x86"
    short = [word for key in ("teacher.training.epochs", "recipe.epochs") for word in ("--set", f"{key}=1")]
    free = ("--budget", "min_accuracy=0.01")
    done = cli("distill", place / "tones.toml", "-t", other, "--out", tmp_path / "other", *short, *free)
    assert done.returncode in (0, 3), done.stderr
    result = json.loads((tmp_path / "other" / "result.json").read_text())
    assert result["models"][2]["scores"][0]["provenance"] == "proxy"
    assert not [note for note in result["notes"] if note.startswith("real-time factor")]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("rate = 4000", "rate = 8000", "fall/00.flac: is of 4000 Hz, the card's data.rate is 8000; resample it"),
        ("seconds = 0.5", "seconds = 0.25", "has 2000 samples, and a clip has at most 1000; cut it, or set"),
        ("high_hz = 1900", "high_hz = 2100", "high_hz: should be above low_hz and at most rate / 2, 2000"),
        ("mels = 16", "mels = 80", "mels: filter 0 of 80 is narrower than the lines of the spectrum, 25 Hz apart"),
        ("mels = 16", "mels = 16\ncoefficients = 9", 'coefficients: has no effect with features = "log-mel"'),
        ("mean = [-5]", "mean = [-5, 1]", "mean: should be one number or 16, one for each bin, got 2"),
        ("window_ms = 40", "window_ms = 600", "window_ms: is 2400 samples with a hop of 80 in a clip of 2000"),
        ("hop_ms = 20", "hop_ms = 1e308", "hop_ms: got 1e+308; it should be less than or equal to 60000"),
        ('"rise"]', '"raise"]', "rise: is no class of the card; did you mean 'raise'?"),
        ('path = "data"', 'path = "gone"', "gone: no such data folder; give the folder with --data DIR"),
        ("time_mask = 3", "time_mask = 24", "augment.time_mask: should be less than the 24 frames of a clip, got 24"),
        ("time_mask = 3", "flip = true", "augment.flip: is for images, the task is keyword-spotting; drop it"),
        ("noise = 0.5\n", "", "noise_snr_db: has no effect without noise"),
        ('"ds-cnn"', '"convnet"', "student.family: 'convnet' is not for keyword-spotting;"),
        ("kernel = [[4, 4]]", "kernel = [[4, 64]]", "student.knobs: kernel [4, 64] is too large for features of 16×24"),
        ("views = 4", "views = 4\nsmall_share = 0.5", "recipe.small_share: is for images that get one class"),
        ("[budget]", "[export]\nresize = true\ntimed_size = [9, 9]\n[budget]", "export.resize: has no effect"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    place: Path, cli: Cli, sounds: ModuleType, tmp_path: Path, before: str, after: str, said: str
) -> None:
    text = CARD.format(data=sounds.DATA)
    assert before in text
    card = place / "wrong.toml"
    card.write_text(text.replace(before, after, 1))
    done = cli("distill", card, "-t", place / "here.toml", "--out", tmp_path / "wrong")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
