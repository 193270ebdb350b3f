"""Ways to quantise after training, side by side, on three networks and on each runtime that is installed.

    python tests/benchmarks/quantization.py DATA OUT.json [CONVNET_RUN]

DATA holds `cifar10/` and `teachers/`. The networks are the ResNet-20 of DATA/teachers (CIFAR-10), the student
of CONVNET_RUN, a folder made by `edgekd distill cifar10-cnn`, and a MobileNetV2 of width 0.35 trained for four epochs
here, all on CIFAR-10. Each scheme and calibration is measured by `choose_scheme`, on 2,000 test images: time by turns
with fp32, kernels, size, accuracy. OUT.json also gets the sizes of an int8 ResNet-8 of 77,946 parameters.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.card import Card, Student
from edgekd.data.images import Split
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.devices.local import connect
from edgekd.errors import EdgekdError
from edgekd.export.onnx import export
from edgekd.export.quantize import quantize
from edgekd.export.variants import calibration_images
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.nets.teachers import load_teacher_file
from edgekd.scratch import scratch
from edgekd.search.material import Material
from edgekd.search.schemes import choose_scheme
from edgekd.target import Quantization, load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION
from edgekd.tasks.known import load_card

TRIED = Quantization(
    schemes=("u8s8", "u8s8-7bit", "s8s8", "u8u8"),
    calibrations=("minmax", "entropy", "percentile"),
    forms=("qoperator",),
)
SIGNS = Quantization(schemes=("u8s8", "u8s8-7bit", "s8s8"))
TARGETS = {"cpu-x86": TRIED, "openvino-cpu": SIGNS, "wasm": SIGNS}
COUNT = 2_000


class Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inner, outer, stride), convolution(outer, outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride) if inner != outer else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet8(nn.Module):
    """The network of MLPerf Tiny's image classification: 77,946 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))
        return out


def convolution(inner: int, outer: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer))


def sizes(card: Card, images: np.ndarray[Any, Any], folder: Path) -> dict[str, int]:
    """Bytes of the ResNet-8's files; its weights are random, which changes no size."""
    torch.manual_seed(0)
    fp32 = folder / "resnet8.onnx"
    export(folded(ResNet8().eval(), card.data), card, load_target("cpu-x86"), fp32, {"trained": "no"})
    found = {"fp32": fp32.stat().st_size}
    for form in ("qdq", "qoperator"):
        quantize(fp32, folder / f"{form}.onnx", dataclasses.replace(TRIED, form=form), images)
        found[form] = (folder / f"{form}.onnx").stat().st_size
    return found


def mobilenet(card: Card, train: Split) -> nn.Module:
    """A small MobileNetV2, trained for four epochs on 12,000 images."""
    torch.manual_seed(0)
    net = make(card, Student(family="mobilenet-v2"), {"width": 0.35}, "student.knobs")
    deployed = Deployed(net, card.data).train()
    chosen = np.linspace(0, len(train) - 1, 12_000).astype(np.int64)
    images, labels = torch.from_numpy(train.read(chosen)), torch.from_numpy(train.labels[chosen])
    epochs, size = 4, 96
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (len(images) // size))
    for epoch in range(epochs):
        for batch in torch.randperm(len(images)).split(size):
            if len(batch) == size:
                loss = nn.functional.cross_entropy(deployed(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        print(f"mobilenet epoch {epoch + 1}: loss {float(loss):.3f}", flush=True)
    return net.eval()


def measured(fp32: Path, train: Split, test: Split, folder: Path, name: str) -> dict[str, Any]:
    """All trials of one network on each target."""
    chosen = np.linspace(0, len(test) - 1, COUNT).astype(np.int64)
    inputs = folder / f"{name}.npy"
    np.save(inputs, test.read(chosen))
    found: dict[str, Any] = {}
    for target, tried in TARGETS.items():
        settings = dataclasses.replace(load_target(target), quantization=tried)
        place = folder / f"{name}-{target}"
        place.mkdir()
        try:
            site = connect(settings)
        except EdgekdError as error:
            found[target] = {"absent": str(error)}
            continue
        material = Material(
            fp32=fp32,
            calibration=calibration_images(train, 256),
            inputs=inputs,
            targets=test.labels[chosen],
            task=IMAGE_CLASSIFICATION,
            site=site,
            folder=place,
        )
        choice = choose_scheme(material)
        trials = [trial.as_json() for trial in choice.trials]
        found[target] = {"trials": trials, "failed": choice.failed, "why": choice.why}
        print(f"{name} on {target}: {choice.why}", flush=True)
        site.close()
    return found


def main(data: Path, out: Path, convnet_run: Path | None) -> None:
    cifar10, cpu = load_card("cifar10"), load_target("cpu-x86")
    with scratch() as name:
        folder = Path(name)
        train, _ = load_train_and_validation(cifar10, data / "cifar10")
        test = load_test(cifar10, data / "cifar10")
        content: dict[str, Any] = {"schema_version": 1, "images": COUNT, "networks": {}}
        content["resnet8_bytes"] = sizes(cifar10, calibration_images(train, 256), folder)
        depth20 = dataclasses.replace(
            cifar10, teacher=dataclasses.replace(cifar10.teacher, shape={"depth": 20, "width": 16})
        )
        net = load_teacher_file(depth20, data / "teachers" / "cifar10-resnet20.safetensors").net
        assert net is not None
        export(folded(net, cifar10.data), depth20, cpu, folder / "resnet20.onnx", {"trained": "given"})
        content["networks"]["resnet20"] = measured(folder / "resnet20.onnx", train, test, folder, "resnet20")
        write_json(out, content)
        if convnet_run:
            fp32 = convnet_run / "exported" / "student-fp32.onnx"
            content["networks"]["cifar10-cnn"] = measured(fp32, train, test, folder, "cifar10-cnn")
            write_json(out, content)
        net = folded(mobilenet(cifar10, train), cifar10.data)
        export(net, cifar10, cpu, folder / "mobilenet.onnx", {"trained": "here"})
        content["networks"]["mobilenet-v2"] = measured(folder / "mobilenet.onnx", train, test, folder, "mobilenet-v2")
        write_json(out, content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
