"""CIFAR-10 and its published ResNet-56, through edgekd's own code; needs EDGEKD_DATA."""

from pathlib import Path

import numpy as np
import pytest

from edgekd.bench.runner import predict
from edgekd.data.arrays import keep_split
from edgekd.data.images import Split
from edgekd.data.sources import load_test
from edgekd.devices.local import connect
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.teacher import validation_score
from edgekd.export.teacher import export_teacher
from edgekd.nets.teachers import load_teacher_file
from edgekd.target import load_target
from edgekd.tasks.known import load_card


@pytest.mark.slow
def test_resnet56_reaches_its_published_accuracy_and_answers_alike_in_torch(data_folder: Path, tmp_path: Path) -> None:
    card, target = load_card("cifar10"), load_target("cpu-x86")
    test = load_test(card, data_folder / "cifar10")
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    teacher = load_teacher_file(card, data_folder / "teachers" / "cifar10-resnet56.safetensors")
    export_teacher(teacher, card, target, tmp_path / "teacher.onnx")
    predict(tmp_path / "teacher.onnx", connect(target), keep_split(test, tmp_path / "test"), tmp_path / "logits.npy")
    predicted = np.load(tmp_path / "logits.npy").argmax(1)
    assert (predicted == test.labels).mean() == pytest.approx(0.9339, abs=1e-9)
    some = Split(test.labels[:1_000], test.read)  # torch takes a minute of a core for all of them
    right = (predicted[:1_000] == some.labels).mean()
    assert validation_score(card, teacher, examples_of(card, some)) == pytest.approx(right, abs=1e-9)
