"""Models for the measurements of the bench itself.

    python tests/benchmarks/prepare.py DATA FOLDER

writes into FOLDER: the ResNet-20 of DATA/teachers as fp32, as int8 with 8-bit weights (cpu-x86) and with 7-bit
weights (cpu-x86-avx2), mobilenet_v2 at 224 pixels with random weights, and CIFAR-10's test images as cifar10.npz.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

from edgekd.card import Card
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.export.onnx import export, quiet_export, save_model
from edgekd.export.quantize import quantize
from edgekd.export.variants import calibration_images
from edgekd.nets.teachers import load_teacher_file
from edgekd.target import load_target
from edgekd.tasks.known import load_card


def resnet20(data: Path, folder: Path) -> None:
    card = load_card("cifar10")
    depth20: Card = dataclasses.replace(
        card, teacher=dataclasses.replace(card.teacher, shape={"depth": 20, "width": 16})
    )
    target = load_target("cpu-x86")
    teacher = load_teacher_file(depth20, data / "teachers" / "cifar10-resnet20.safetensors")
    assert teacher.net is not None
    fp32 = folder / "resnet20-fp32.onnx"
    export(teacher.net, depth20, target, fp32, {"trained": teacher.file.name})
    train, _ = load_train_and_validation(depth20, data / "cifar10")
    images = calibration_images(train, 256)
    for name, scheme in (("8-bit", target.quantization), ("7-bit", load_target("cpu-x86-avx2").quantization)):
        quantize(fp32, folder / f"resnet20-int8-{name}.onnx", scheme, images)
    test = load_test(depth20, data / "cifar10")
    np.savez(folder / "cifar10.npz", inputs=test.read(np.arange(len(test))), labels=test.labels)


def mobilenet(folder: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2(weights=None).eval()
    with quiet_export():
        program = torch.onnx.export(
            net, (torch.randn(1, 3, 224, 224),), dynamo=True, verbose=False, external_data=False, opset_version=20
        )
    assert program is not None
    save_model(program.model_proto, folder / "mobilenet_v2-fp32.onnx")


if __name__ == "__main__":
    data, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    resnet20(data, folder)
    mobilenet(folder)
