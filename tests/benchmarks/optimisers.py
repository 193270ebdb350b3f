"""The same short distillation by SGD and by Muon, for several networks, by validation accuracy.

    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/optimisers.py OUT.json 8 resnet/sgd resnet/muon

The card is `cifar10` without labels (`alpha` 1), its teacher the ResNet-56 in DIR/teachers. The networks are three
small ones and the ResNet-20 of the card. What OUT.json holds already is not trained again; test images are not read.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgekd.card import Card, Student
from edgekd.distill.student import learn
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.untrained import new_student
from edgekd.files import write_json
from edgekd.nets.families import make_shapes
from edgekd.nets.teachers import load_teacher_file
from edgekd.tasks.known import load_card

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("cifar-resnet", {"blocks": (0, 3, 1), "widths": (8, 32, 48), "shortcut": "B"}),
    "resnet20": ("cifar-resnet", {"depth": 20}),
    "inverted": ("inverted-residual", {"widths": (32, 48), "layers": 3, "expansion": 3, "stem_stride": 2}),
    "separable": ("separable", {"widths": (64, 128), "layers": 3, "stem_stride": 2}),
}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.15, "momentum": 0.85},
    "muon": {"optimizer": "muon", "learning_rate": 0.1, "momentum": 0.9},
}
COMMON: dict[str, Any] = {"weight_decay": 3e-4, "warmup_epochs": 1.0, "views": 6, "alpha": 1.0}


def card_of(network: str, optimiser: str, epochs: int) -> Card:
    """The card with that student and optimiser."""
    card, (family, shape) = load_card("cifar10"), NETWORKS[network]
    student = Student(family=family, knobs={name: [value] for name, value in shape.items()})
    recipe = dataclasses.replace(card.recipe, epochs=epochs, **COMMON, **OPTIMISERS[optimiser])
    return dataclasses.replace(card, student=student, recipe=recipe)


def main() -> None:
    """Train each pair that OUT.json does not hold yet."""
    out, epochs, *pairs = sys.argv[1:]
    source, plain = Path(os.environ["EDGEKD_DATA"]), load_card("cifar10")
    learning = learning_of(plain.data)
    train, validation = learning.load(plain, source / "cifar10")
    data = learning.examples(plain, train), learning.examples(plain, validation)
    teacher = load_teacher_file(plain, source / "teachers" / "cifar10-resnet56.safetensors")
    for pair in pairs:
        name = f"{pair}, {epochs} epochs"
        content: dict[str, Any] = json.loads(Path(out).read_text()) if Path(out).exists() else {"schema_version": 1}
        if name in content:
            continue
        network, optimiser = pair.split("/")
        card = card_of(network, optimiser, int(epochs))
        shape, began = make_shapes(card, card.student)[0], time.process_time()
        net, _ = new_student(card, shape, teacher)
        with tempfile.TemporaryDirectory() as folder:
            history = learn(card, shape, net, [teacher], data, Path(folder, "student"))
        content[name] = {
            "shape": shape,
            "recipe": dataclasses.asdict(card.recipe),
            "validation_accuracy": [entry["validation_accuracy"] for entry in history],
            "loss": [entry["loss"] for entry in history],
            "cpu_seconds": round(time.process_time() - began),
        }
        write_json(Path(out), content)
        print(name, content[name]["validation_accuracy"], flush=True)


if __name__ == "__main__":
    main()
