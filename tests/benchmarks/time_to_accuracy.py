"""How long torchdistill trains to an accuracy on validation images, for `edgekd distill cifar10` to be held beside.

    EDGEKD_DATA=DIR OMP_NUM_THREADS=1 python tests/benchmarks/time_to_accuracy.py WORK OUT.json 0.917

The interpreter needs torchdistill and edgekd[train]. The pair is the card's, ResNet-56 → ResNet-20, on its 45,000
training images; the schedule is that of torchdistill's sample configuration (182 epochs, 0.1, a tenth of it from epoch
91 and from epoch 136 on). OUT.json gets the seconds, the CPU seconds and the accuracy after each epoch; the 5,000
validation images are scored outside of that time. It takes most of a day of one core: it may be stopped at any time,
and goes on from the last whole epoch in WORK.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import speed_contenders as pair  # type: ignore[import-not-found]
import torch

from edgekd.data.image_examples import examples
from edgekd.data.sources import load_train_and_validation
from edgekd.distill.distributed import World
from edgekd.distill.tasks.classification import accuracy
from edgekd.files import write_json
from edgekd.nets.deployed import Deployed

EPOCHS = 182
USUAL = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}


def cpu_seconds() -> float:
    """Of this process and of the workers of the DataLoaders that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Train until the accuracy is reached or the schedule ends."""
    from torchdistill.common.yaml_util import load_yaml_file
    from torchdistill.core.distillation import get_distillation_box

    work, out, wanted = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # One batch a turn: the images of all turns are whole batches of the card's training images.
    asked = pair.Asked(Path(os.environ["EDGEKD_DATA"]), work, 1, 349, 1, "fp32")
    card = pair.card_of(asked)
    _, held_out = load_train_and_validation(card, asked.data / "cifar10")
    validation = examples(held_out, card.data, card.augment)
    settings = USUAL | {"batch": pair.BATCH, "workers": 1, "temperature": pair.TEMPERATURE, "alpha": pair.ALPHA}
    path = work / "torchdistill.yaml"
    path.write_text(pair.TORCHDISTILL.format(**settings), encoding="utf-8")
    student, data = pair.student_of(card), {"cifar10/train": pair.dataset(card, asked)}
    teacher, config = pair.teacher_of(card, asked).net, load_yaml_file(str(path))
    box = get_distillation_box(teacher, student, data, config, torch.device("cpu"), None, False, 1)
    epochs: list[dict[str, Any]] = json.loads(out.read_text())["epochs"] if out.exists() else []
    if epochs:
        kept = torch.load(work / "kept.pt")
        student.load_state_dict(kept["student"])
        box.optimizer.load_state_dict(kept["optimizer"])
        box.lr_scheduler.load_state_dict(kept["schedule"])
    for number in range(len(epochs), EPOCHS):
        began, cpu = time.perf_counter(), cpu_seconds()
        rate = box.optimizer.param_groups[0]["lr"]
        box.pre_epoch_process(epoch=number)
        for images, targets, more in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(images, targets, more))
        box.post_epoch_process()
        spent = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - cpu}
        scored = accuracy(Deployed(student, card.data), validation, "fp32", World())
        epochs.append({"learning_rate": rate, **spent, "validation_accuracy": scored})
        state = {
            "student": student.state_dict(),
            "optimizer": box.optimizer.state_dict(),
            "schedule": box.lr_scheduler.state_dict(),
        }
        torch.save(state, work / "kept.pt")
        total = {key: sum(epoch[key] for epoch in epochs) for key in spent}
        write_json(out, {"schema_version": 1, "wanted": wanted, "schedule": USUAL, "total": total, "epochs": epochs})
        print(f"epoch {number + 1}/{EPOCHS}: {scored:.2%}, {spent['seconds']:.0f} s, {total['seconds']:.0f} s in all")
        if scored >= wanted:
            return


if __name__ == "__main__":
    main()
