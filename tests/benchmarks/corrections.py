"""What correcting a network before its quantization gives, and small files that compute in float.

    python tests/benchmarks/corrections.py DATA OUT.json [WEIGHTS.safetensors]

DATA holds `cifar10/` and `teachers/`. An inverted-residual network (MobileNetV2-like, ReLU) is trained for eight
epochs on 10,000 images of CIFAR-10; its int8 files with one scale for each tensor or channel, with and without
equalisation, clipped weights and bias correction, are scored on 2,000 test images; so are those of the same network
after channels were scaled, which changes no output. The ResNet-20 of DATA/teachers is timed in fp16, with weights alone
in int8, and with both signs of activations, by turns with fp32, on each provider that is installed.
"""

import dataclasses
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekd.card import Card, Student
from edgekd.data.images import Split
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.devices.local import connect
from edgekd.errors import EdgekdError
from edgekd.export.onnx import cpu_logits, export
from edgekd.export.quantize import prepare, quantize, quantize_prepared, to_half
from edgekd.export.variants import calibration_images
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.nets.folding import folded
from edgekd.nets.inverted import InvertedBlock
from edgekd.nets.teachers import load_teacher_file
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.scratch import scratch
from edgekd.search.material import Material, figures_of, time_ratio
from edgekd.target import Quantization, load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION as TASK
from edgekd.tasks.known import load_card

SHAPE = {"widths": [16, 24, 40, 80], "layers": 2, "stem_stride": 2, "expansion": 4}
EPOCHS, IMAGES, SIZE, RATE = 8, 10_000, 128, 0.1


def trained(card: Card, train: Split, weights: Path | None) -> nn.Module:
    """The network after its training with SGD, a one-cycle schedule, flips and shifts of whole batches; existing
    `weights` of such a training are taken, others are kept there."""
    torch.manual_seed(0)
    net = make(card, Student(family="inverted-residual"), SHAPE, "student.knobs")
    if weights and weights.exists():
        load_into(net, read_state(weights), weights)
        return net.eval()
    deployed = Deployed(net, card.data).train()
    chosen = np.linspace(0, len(train) - 1, IMAGES).astype(np.int64)
    images, labels = torch.from_numpy(train.read(chosen)), torch.from_numpy(train.labels[chosen])
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * (IMAGES // SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    for _ in range(EPOCHS):
        for batch in torch.randperm(IMAGES).split(SIZE)[: IMAGES // SIZE]:
            x = images[batch].flip(2) if torch.rand(()) < 0.5 else images[batch]
            shift = torch.randint(-3, 4, (2,)).tolist()
            loss = nn.functional.cross_entropy(deployed(x.roll(shift, (1, 2))), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if weights:
        save_state(net, weights, {"card": card.name})
    return net.eval()


def skewed(net: nn.Module) -> nn.Module:
    """The network with other ranges of the inner channels of its blocks, by factors between 1/32 and 32, and with the
    same outputs."""
    torch.manual_seed(0)
    for block in net.modules():
        if isinstance(block, InvertedBlock):
            parts: Any = block.parts
            factors = 10 ** (3 * torch.rand(parts[1].num_features) - 1.5)
            with torch.no_grad():
                parts[1].weight *= factors
                parts[1].bias *= factors
                parts[3].weight /= factors[:, None, None, None]
    return net


def corrected(fp32: Path, images: NDArray[np.uint8], x: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Top-1 and bytes of the network's files."""
    folder = fp32.parent
    prepare(fp32, folder / "prepared.onnx")
    rows: dict[str, Any] = {}

    def row(name: str, file: Path) -> None:
        top1 = float((cpu_logits(file, TASK, x).argmax(axis=1) == labels).mean())
        rows[name] = {"top1": top1, "bytes": file.stat().st_size}
        print(name, rows[name], flush=True)

    row("fp32", fp32)
    to_half(fp32, folder / "fp16.onnx")
    row("fp16", folder / "fp16.onnx")
    made = folder / "made.onnx"
    others = {
        "W8, the weights alone": Quantization(activation="float"),
        "A16W8": Quantization(activation="uint16", weight="uint8", per_channel=False),
    }
    for name, scheme in others.items():
        quantize_prepared(folder / "prepared.onnx", made, scheme, images, fp32)
        row(name, made)
    for per_channel, equal, clip, bias in product((True, False), repeat=4):
        if per_channel and clip:
            continue
        scheme = Quantization(per_channel=per_channel, equalize=equal, clip_weights=clip, correct_bias=bias)
        quantize_prepared(folder / "prepared.onnx", made, scheme, images, fp32)
        words = [f"U8S8 per {'channel' if per_channel else 'tensor'}", *["equalised"] * equal]
        row(", ".join([*words, *["weights clipped"] * clip, *["biases corrected"] * bias]), made)
    return rows


def providers(fp32: Path, images: NDArray[np.uint8], inputs: Path, labels: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Time, top-1 and bytes of small files of the ResNet-20 on each provider."""
    folder = fp32.parent
    to_half(fp32, folder / "fp16.onnx")
    signs: dict[str, Any] = {"w8": "float", "u8s8": "uint8", "s8s8": "int8"}
    for name, activation in signs.items():
        quantize(fp32, folder / f"{name}.onnx", Quantization(activation=activation), images)
    rows: list[dict[str, Any]] = []
    for target, name in product(("cpu-x86", "openvino-cpu"), ("fp16", *signs)):
        file = folder / f"{name}.onnx"
        row: dict[str, Any] = {"target": target, "file": name, "bytes": file.stat().st_size}
        try:
            site = connect(load_target(target))
            known = Material(
                fp32=fp32, calibration=images, inputs=inputs, targets=labels, task=TASK, site=site, folder=folder
            )
            row["time_ratio_to_fp32"] = list(dataclasses.astuple(time_ratio(file, fp32, known)))
            row["top1"] = float(figures_of(file, known, f"{target}-{name}").mean())
        except EdgekdError as error:
            row["failed"] = str(error).replace(f"{folder}/", "")[:160]
        rows.append(row)
        print(row, flush=True)
    return rows


def main(data: Path, out: Path, weights: Path | None) -> None:
    card, cpu = load_card("cifar10"), load_target("cpu-x86")
    train, _ = load_train_and_validation(card, data / "cifar10")
    test = load_test(card, data / "cifar10")
    chosen = np.arange(0, len(test), 5)
    x, labels, images = test.read(chosen), test.labels[chosen], calibration_images(train, 256)
    with scratch() as name:
        first, second, third = (Path(name, part) for part in ("mobile", "resnet20", "skewed"))
        mobile = trained(card, train, weights)
        export(folded(mobile, card.data), card, cpu, first / "fp32.onnx", {"trained": "here"})
        content: dict[str, Any] = {"schema_version": 1, "images": len(labels), "shape": SHAPE}
        content["training"] = {"epochs": EPOCHS, "images": IMAGES, "batch_size": SIZE, "learning_rate": RATE, "seed": 0}
        content["inverted-residual"] = corrected(first / "fp32.onnx", images, x, labels)
        export(folded(skewed(mobile), card.data), card, cpu, third / "fp32.onnx", {"trained": "here"})
        content["skewed inverted-residual"] = corrected(third / "fp32.onnx", images, x, labels)
        write_json(out, content)
        teacher = dataclasses.replace(card.teacher, shape={"depth": 20, "width": 16})
        depth20 = dataclasses.replace(card, teacher=teacher)
        net = load_teacher_file(depth20, data / "teachers" / "cifar10-resnet20.safetensors").net
        assert net is not None
        export(folded(net, card.data), depth20, cpu, second / "fp32.onnx", {"trained": "given"})
        np.save(second / "inputs.npy", x)
        content["resnet20"] = providers(second / "fp32.onnx", images, second / "inputs.npy", labels)
        write_json(out, content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
