"""One contender of tests/benchmarks/speed.py, as a process of its own.

    python tests/benchmarks/speed_contenders.py CONTENDER '{"data": …}'

It gets ready, then trains so many batches for every line on stdin, and answers with the seconds, the seconds of CPU
time and the images that they were. Between turns it waits where it is, inside its own training loop: what is timed is
whole steps, with everything that the loop does in them. Every contender sees the same images, networks and weights,
batch size and loss, on one thread.
"""

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edgekd.card import Card
from edgekd.data.examples import Batch, Examples
from edgekd.data.image_examples import examples
from edgekd.data.images import Split
from edgekd.data.sources import load_train_and_validation
from edgekd.distill.cache.outputs import teaching
from edgekd.distill.student import TrainingOptions, learn
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file
from edgekd.recipe import Recipe
from edgekd.tasks.known import load_card, task_of

TEMPERATURE, ALPHA, BATCH = 4.0, 0.9, 128
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
SHAPE = {"depth": 20, "width": 16}


@dataclass(frozen=True)
class Asked:
    """What the parent says."""

    data: Path
    """Holds cifar10/ and teachers/."""
    work: Path
    batches: int
    """Of a turn."""
    turns: int
    workers: int
    """Processes that load images for a DataLoader."""
    precision: str

    @property
    def images(self) -> int:
        """One epoch: all turns, and two more for what happens before the first and after the last."""
        return (self.turns + 2) * self.batches * BATCH


class Turns:
    """Called as each batch begins: lets so many begin for every line on stdin, then answers."""

    def __init__(self, batches: int, size: int = BATCH) -> None:
        self._batches, self._size, self._count, self._begin = batches, size, 0, (0.0, 0.0)
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else is printed must not be taken for an answer

    def __call__(self) -> None:
        if self._count % self._batches == 0:
            if self._count:
                wall, cpu = (now - begin for now, begin in zip(_clocks(), self._begin, strict=True))
                answer = {"seconds": wall, "cpu_seconds": cpu, "images": self._batches * self._size}
                print(json.dumps(answer), file=self._answers, flush=True)
            if not sys.stdin.readline():
                os._exit(0)  # all turns are over
            self._begin = _clocks()
        self._count += 1


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def card_of(asked: Asked, **recipe: Any) -> Card:
    """CIFAR-10, ResNet-56 → ResNet-20, for one epoch."""
    card = load_card("cifar10")
    given: dict[str, Any] = {  # the usual schedule, as the other contenders have it, instead of the card's preset
        "epochs": 1,
        "batch_size": BATCH,
        "views": 8,
        "temperature": TEMPERATURE,
        "losses": {"kd": ALPHA, "ce": 1 - ALPHA},
        "precision": asked.precision,
    }
    augment = dataclasses.replace(card.augment, flip=True)
    return dataclasses.replace(card, augment=augment, recipe=Recipe(**given | recipe))


def training_images(card: Card, asked: Asked) -> Split:
    """As many as all turns need."""
    train, _ = load_train_and_validation(card, asked.data / "cifar10")
    assert len(train) >= asked.images, f"{len(train)} images are too few for {asked.images}: fewer turns or batches"
    return train.subset(np.arange(asked.images))


def teacher_of(card: Card, asked: Asked) -> LoadedTeacher:
    return load_teacher_file(card, asked.data / "teachers" / "cifar10-resnet56.safetensors")


def student_of(card: Card) -> nn.Module:
    torch.manual_seed(0)
    return make(card, card.student, SHAPE, "student.knobs")


def counted(card: Card, images: Split, size: int, batches: int) -> Examples:
    """The images as examples; batches of `size` take turns, others are no part of the training."""
    plain = examples(images, card.data, card.augment)
    turns = Turns(batches, size)

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        if len(indices) == size:
            turns()
        return plain.batch(indices, k)

    return dataclasses.replace(plain, batch=batch)


# --- edgekd ---


def edgekd(asked: Asked, name: str, online: bool, **recipe: Any) -> None:
    """edgekd's own road to a student: with the teacher in the loop, or its outputs in the cache."""
    card = card_of(asked, **recipe)
    images = training_images(card, asked)
    train = counted(card, images, BATCH, asked.batches)
    validation = examples(images.subset(np.arange(100)), card.data, card.augment)
    folder = asked.work / name / "training"
    learn(
        card,
        SHAPE,
        student_of(card),
        [teacher_of(card, asked)],
        (train, validation),
        folder,
        TrainingOptions(online=online),
    )


def fill(asked: Asked) -> None:
    """Nothing but filling the cache: a turn is as many blocks of the teacher's as hold about as many images."""
    card = card_of(asked)
    together = task_of(card.data).together
    blocks = max(1, round(asked.batches * BATCH / together))
    train = counted(card, training_images(card, asked), together, blocks)
    none = torch.empty(0)
    with teaching(card, [teacher_of(card, asked)], train, (), online=False) as outputs:
        for k in range(card.recipe.views):
            outputs(k, np.arange(1), none)


def limit(asked: Asked) -> None:
    """Forward and backward pass of the student over one batch that lies in memory; nothing else."""
    card = card_of(asked)
    student = student_of(card).train().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels, logits = torch.randint(0, 10, (BATCH,)), torch.randn(BATCH, 10)
    turns = Turns(asked.batches)
    while True:
        turns()
        student.zero_grad()
        kd_loss(student(images), logits, labels).backward()


# --- what others do ---


class Images(torch.utils.data.Dataset[tuple[Any, int]]):
    """The images as torchvision.datasets.CIFAR10 gives them: through PIL and the transforms, one by one."""

    def __init__(self, images: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data, self.targets = images.read(np.arange(len(images))), images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def dataset(card: Card, asked: Asked) -> Images:
    """With the transforms of torchdistill's sample configuration for CIFAR-10."""
    from torchvision import transforms

    data = card.data
    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ]
    return Images(training_images(card, asked), transforms.Compose(steps))


def kd_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    soft = F.kl_div(
        F.log_softmax(student / TEMPERATURE, dim=1), F.softmax(teacher / TEMPERATURE, dim=1), reduction="batchmean"
    )
    return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(student, labels)


def plain(asked: Asked) -> None:
    """The textbook's loop: the teacher in it, a DataLoader, torchvision's transforms."""
    card = card_of(asked)
    loader = torch.utils.data.DataLoader(
        dataset(card, asked), batch_size=BATCH, shuffle=True, num_workers=asked.workers, drop_last=True
    )
    teacher, student = teacher_of(card, asked).net, student_of(card)
    assert teacher is not None
    teacher.eval()
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    turns, running = Turns(asked.batches), 0.0
    turns()
    for images, labels in loader:
        with torch.no_grad():
            soft = teacher(images)
        loss = kd_loss(student(images), soft, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running += loss.item()
        turns()


TORCHDISTILL = """
num_epochs: 1
train_data_loader:
  dataset_id: 'cifar10/train'
  sampler:
    class_or_func: !import_get
      key: 'torch.utils.data.RandomSampler'
    kwargs:
  kwargs:
    batch_size: {batch}
    num_workers: {workers}
    pin_memory: False
    drop_last: True
  cache_output:
teacher:
  forward_proc: 'forward_batch_only'
  sequential: []
  requires_grad: False
  frozen_modules: []
student:
  forward_proc: 'forward_batch_only'
  adaptations:
  sequential: []
  requires_grad: True
  frozen_modules: []
optimizer:
  key: 'SGD'
  kwargs: {{lr: {lr}, momentum: {momentum}, weight_decay: {weight_decay}, nesterov: {nesterov}}}
scheduler:
  key: 'MultiStepLR'
  kwargs:
    milestones: [91, 136]
    gamma: 0.1
criterion:
  key: 'WeightedSumLoss'
  kwargs:
    sub_terms:
      kd:
        criterion:
          key: 'KDLoss'
          kwargs:
            student_module_path: '.'
            student_module_io: 'output'
            teacher_module_path: '.'
            teacher_module_io: 'output'
            temperature: {temperature}
            alpha: {alpha}
            reduction: 'batchmean'
        weight: 1.0
"""
"""configs/sample/cifar10/kd/resnet20_from_densenet_bc_k12_depth100-final_run.yaml, from `num_epochs` on, with the
settings that all contenders share; no DataParallel and no pinned memory, which are for GPUs."""


def torchdistill(asked: Asked) -> None:
    """torchdistill, with the loop of its examples/torchvision/image_classification.py (train_one_epoch)."""
    from torchdistill.common.yaml_util import load_yaml_file
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    card = card_of(asked)
    settings = SGD | {"batch": BATCH, "workers": asked.workers, "temperature": TEMPERATURE, "alpha": ALPHA}
    path = asked.work / "torchdistill.yaml"
    path.write_text(TORCHDISTILL.format(**settings), encoding="utf-8")
    data = {"cifar10/train": dataset(card, asked)}
    teacher, device = teacher_of(card, asked).net, torch.device("cpu")
    box = get_distillation_box(teacher, student_of(card), data, load_yaml_file(str(path)), device, None, False, 1)
    turns = Turns(asked.batches)
    box.pre_epoch_process(epoch=0)
    metric_logger = MetricLogger(delimiter="  ")
    metric_logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    metric_logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    turns()
    for sample_batch, targets, supp_dict in metric_logger.log_every(box.train_data_loader, 100, "Epoch: [0]"):
        start_time = time.time()
        sample_batch, targets = sample_batch.to(device), targets.to(device)
        loss = box.forward_process(sample_batch, targets, supp_dict)
        box.post_forward_process(loss=loss)
        batch_size = sample_batch.shape[0]
        metric_logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        metric_logger.meters["img/s"].update(batch_size / (time.time() - start_time))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"The training loop was broken due to loss = {loss}")
        turns()


CONTENDERS: dict[str, Callable[[Asked], None]] = {
    "torchdistill": torchdistill,
    "plain loop": plain,
    "edgekd online": lambda asked: edgekd(asked, "online", online=True),
    "edgekd cached": lambda asked: edgekd(asked, "cached", online=False, views=1),
    "edgekd fill": fill,
    "edgekd alone": lambda asked: edgekd(asked, "alone", online=False, losses={"ce": 1.0}),
    "limit": limit,
}


def main() -> None:
    contender, text = sys.argv[1:]
    values = json.loads(text)
    asked = Asked(**values | {"data": Path(values["data"]), "work": Path(values["work"])})
    # A cache of its own: what another run has kept must not be found, nor this one's be found later.
    os.environ["EDGEKD_CACHE_HOME"] = str(asked.work / contender.replace(" ", "-"))
    torch.set_num_threads(1)
    CONTENDERS[contender](asked)


if __name__ == "__main__":
    main()
