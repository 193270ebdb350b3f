"""Networks and teachers that cannot be used end a run with one line before anything is measured; others go on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

Cli = Callable[..., Any]

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, kind):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))
        self.kind = kind
    def forward(self, x):
        y = self.body(x)
        if self.kind == "control" and y.mean() > 0.5:
            y = y * 2
        if self.kind == "dropout":
            y = nn.functional.dropout(y, 0.5)
        if self.kind == "detached":
            y = y.detach()
        return y.softmax(1) if self.kind == "softmax" else y

def net(classes, kind):
    if kind == "unbuildable":
        raise RuntimeError("no such kind")
    return Net(classes, kind)
"""


@pytest.fixture
def own(tiny_card: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The tiny card with a student of one's own, of these kinds, which trains for one epoch."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "trial_nets", raising=False)
    (tiny_card.parent / "trial_nets.py").write_text(NETS)

    def write(kinds: str) -> Path:
        text = re.sub(r"(?m)^epochs = \d+", "epochs = 1", tiny_card.read_text())
        text = text.replace("warmup_epochs = 0.5", "warmup_epochs = 0.0").replace("min_accuracy = 0.5\n", "")
        student = f'[student]\nfamily = "import"\nfunction = "trial_nets:net"\n\n[student.knobs]\nkind = {kinds}\n\n'
        tiny_card.write_text(text[: text.index("[student]")] + student + text[text.index("[recipe]") :])
        return tiny_card

    return write


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("dropout", "different answers to the same inputs in evaluation mode"),
        ("detached", "no gradient reaches"),
        ("control", r"torch cannot export the network to ONNX: .*\(trial_nets\.py:12: if self\.kind == \"control\""),
        ("unbuildable", "no such kind"),
    ],
)
def test_a_student_that_cannot_be_used(own: Callable[[str], Path], cli: Cli, kind: str, told: str) -> None:
    done = cli("distill", own(f'["{kind}"]'), "-t", "cpu-x86", "--out", "run")
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^edgekd: .*tiny\.toml: student.*{told}", done.stderr, re.MULTILINE), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("run/teacher").exists() and not Path("run/records").exists()


def test_candidates_that_cannot_be_used_are_left_out(own: Callable[[str], Path], cli: Cli) -> None:
    card = own('["control", "dropout", "plain", "unbuildable", "softmax"]')
    done = cli("distill", card, "-t", "cpu-x86", "--out", "run")
    assert done.returncode in (0, 3), done.stderr
    for kind in ("control", "dropout", "unbuildable"):
        assert f"search: kind={kind} is left out: " in done.stderr
    content = json.loads(Path("run/candidates.json").read_text())
    assert [entry["shape"]["kind"] for entry in content["candidates"]] == ["plain", "softmax"]
    assert [entry["shape"]["kind"] for entry in content["left_out"]] == ["control", "dropout", "unbuildable"]
    assert all(entry["reason"] for entry in content["left_out"])


def test_no_candidate_is_left(own: Callable[[str], Path], cli: Cli) -> None:
    done = cli("distill", own('["dropout", "detached"]'), "-t", "cpu-x86", "--out", "other")
    assert done.returncode == 2
    assert "kind=dropout" in done.stderr.splitlines()[-1]


def test_an_onnx_teacher_that_gives_sigmoids_by_hand(tiny_card: Path, cli: Cli) -> None:
    rng = np.random.default_rng(0)
    weights = {"W": rng.normal(0, 1, (64, 10)).astype(np.float32), "one": np.float32(1)}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["sums"]),
        helper.make_node("Neg", ["sums"], ["negative"]),
        helper.make_node("Exp", ["negative"], ["powers"]),
        helper.make_node("Add", ["powers", "one"], ["below"]),
        helper.make_node("Reciprocal", ["below"], ["answers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sigmoids",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["n", 10])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "t.onnx")
    done = cli("distill", tiny_card, "-t", "cpu-x86", "--out", "run", "--teacher", "t.onnx")
    assert done.returncode == 2
    assert "t.onnx: gives each class a probability of its own" in done.stderr
    assert not Path("run/candidates.json").exists()
