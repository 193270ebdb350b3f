"""`edgekd prune` on a network that edgekd did not train, as a user calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from edgekd.spec import locate

Cli = Callable[..., Any]
pytest.importorskip("torch_pruning")

MODULE = """
import torch
from torch import nn

def wide(width=48):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3))
"""


@pytest.fixture
def mine(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The name of a module in the test's folder; of its own, because Python keeps modules by their names."""
    name = f"mine_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    return name


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images whose class is their brightest channel."""
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 30)):
        for number in range(count):
            image = random.integers(20, 120, (8, 8, 3)) + 90 * np.eye(3, dtype=int)[number % 3]
            folder = tmp_path / "images" / part / "abc"[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A target that is no machine's, with fp32 alone, so that nothing is timed."""
    text = locate("targets", "cpu-x86").read_text(encoding="utf-8").replace('"avx2"', '"no_such_feature"')
    text = text.replace('precisions = ["int8", "fp32"]', 'precisions = ["fp32"]')
    assert 'precisions = ["fp32"]' in text
    (tmp_path / "elsewhere.toml").write_text(text, encoding="utf-8")
    return tmp_path / "elsewhere.toml"


def test_a_function_is_pruned_to_a_size(cli: Cli, mine: str, images: Path, elsewhere: Path, tmp_path: Path) -> None:
    asked = ["--target", elsewhere, "--data", images, "--input", "3,8,8", "--mean", "0.4,0.4,0.4"]
    done = cli("prune", f"{mine}:wide", *asked, "--budget", "size_kb=5.5", "--epochs", 1, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    assert "% of the channels must be removed to meet the budget" in done.stderr
    assert "file size" in done.stdout
    assert "shipped: pruned fp32" in done.stdout
    run = tmp_path / "runs" / "wide-pruned@elsewhere"
    assert (run / "model.onnx").stat().st_size <= 5_500 < (run / "exported" / "given-fp32.onnx").stat().st_size
    assert [model["name"] for model in json.loads((run / "result.json").read_text())["models"]] == [
        "given",
        "pruned fp32",
    ]
    told = (run / "report.md").read_text() + cli("report", run, "--html", tmp_path / "page.html").stdout
    told += (tmp_path / "page.html").read_text().partition('class="run"')[2]
    assert "The network is the given network pruned: removed = " in told
    assert "smaller than the given network" in told and "agreement with the given network" in told
    told = (told + done.stdout).lower().replace("student/pruned.safetensors", "")
    assert "teacher" not in told and "student" not in told
    widths = json.loads((run / "student" / "pruned.json").read_text())["widths"]
    assert 8 <= widths["0"][1] < 48  # channels of the convolution
    program = torch.export.load(run / "exported" / "pruned.pt2").module()  # needs neither edgekd nor torch-pruning
    x = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
    (logits,) = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"image": x})
    with torch.no_grad():
        assert np.allclose(program(torch.from_numpy(x)).numpy(), logits, atol=1e-4)
    again = cli("prune", f"{mine}:wide", *asked, "--budget", "size_kb=5.5", "--epochs", 1, "--rounds", 1)
    assert again.returncode == 0, again.stderr
    assert "already done; --fresh starts again" in again.stderr
    one = images / "train" / "a" / "0.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(one)
    changed = cli("prune", f"{mine}:wide", *asked, "--budget", "size_kb=5.5", "--epochs", 1, "--rounds", 1)
    assert changed.returncode == 2
    assert "the training data have changed since this run began" in changed.stderr
    fits = cli("prune", f"{mine}:wide", *asked, "--budget", "size_kb=50", "--out", tmp_path / "other")
    assert fits.returncode == 0, fits.stderr
    assert "meets the limits as it is (file size ≤ 50.0 kB); nothing is removed" in fits.stdout
    assert not (tmp_path / "other" / "scratch").exists()


@pytest.mark.parametrize(
    ("budget", "unproven"),
    [
        (["latency_p50_ms=2"], "latency p50 "),
        (["latency_p95_ms=2"], "latency p95 unknown"),
        (["size_kb=50", "min_accuracy=0.5"], "accuracy unknown"),
    ],
)
def test_what_is_not_known_is_no_pass(
    cli: Cli, mine: str, images: Path, elsewhere: Path, budget: list[str], unproven: str
) -> None:
    limits = [part for limit in budget for part in ("--budget", limit)]
    done = cli("prune", f"{mine}:wide", "--target", elsewhere, "--data", images, "--input", "3,8,8", *limits)
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert "nothing is removed, and the verdict is inconclusive" in done.stdout
    assert unproven in done.stdout
    assert "file size" not in done.stdout  # its limit is met


def test_a_limit_that_int8_alone_meets_is_missed(cli: Cli, mine: str, images: Path, tmp_path: Path) -> None:
    text = locate("targets", "cpu-x86").read_text(encoding="utf-8").replace('"avx2"', '"no_such_feature"')
    (tmp_path / "both.toml").write_text(text, encoding="utf-8")
    shape = ["--input", "3,8,8", "--shape", "width=900", "--budget", "size_kb=80"]
    done = cli("prune", f"{mine}:wide", "--target", tmp_path / "both.toml", "--data", images, *shape)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "its fp32 file misses a limit, and another precision does not: nothing is removed" in done.stdout
    assert "≤ 80.0 kB: fail" in done.stdout


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("M:wide", [], "--data DIR: is missing; pruning trains the network again after each round"),
        ("M:wide", ["--data", "images"], "give the shape of one square image with --input"),
        (
            "M:wide",
            ["--data", "images", "--input", "3,8,8"],
            "M:wide: there is no limit to prune for; give one of --bud",
        ),
        ("M:wide", ["--data", "images", "--classes", "a,b,d"], "--classes: should be the 3 classes of images"),
        ("M:wide", ["--data", "images", "--input", "3,8,8", "--mean", "1"], "--mean: got 1 numbers"),
        ("M:wide", ["--data", "images", "--input", "3,8,8", "--std", "0,1,1"], "--std: should be numbers above 0"),
        ("M:wide", ["--data", "images", "--input", "3,8,8", "--importance", "x"], "--importance x: is unknown; "),
        (
            "given.onnx",
            ["--data", "images"],
            "given.onnx: is an ONNX file; pruning needs the torch network, for no well",
        ),
        ("none.pt", ["--data", "images"], "none.pt: no such"),
    ],
)
def test_what_does_not_suit_is_told_in_one_line(
    cli: Cli, mine: str, images: Path, elsewhere: Path, tmp_path: Path, source: str, options: list[str], expected: str
) -> None:
    done = cli("prune", source.replace("M:", f"{mine}:"), "--target", elsewhere, *options)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr.replace(mine, "M")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
