"""Distilling one student."""

import shutil
from typing import Any

import torch
from torch import nn

from edgekd.card import Card
from edgekd.console import say
from edgekd.data.images import Split
from edgekd.distill.loop import Job, train
from edgekd.distill.losses import distillation
from edgekd.distill.teacher import teacher_logits
from edgekd.errors import ConfigError
from edgekd.nets.families import Shape, make
from edgekd.nets.teachers import Teacher
from edgekd.nets.weights import load_into, read_state, save_state
from edgekd.run import Run, read_json, write_json

__all__ = ["copy_matching", "distill_student", "training_summary"]


def distill_student(card: Card, shape: Shape, teacher: Teacher, data: tuple[Split, Split], run: Run) -> nn.Module:
    """The student of that shape, distilled as the card's recipe says; a finished one is only loaded."""
    recipe, out = card.recipe, run.student_weights
    torch.manual_seed(recipe.seed)
    net = make(card, card.student, shape, "student.knobs")
    if not out.exists():
        if recipe.init_from_teacher:
            if teacher.net is None:
                raise ConfigError(f"{card.file}: recipe.init_from_teacher: an ONNX teacher has no tensors to copy")
            copied = copy_matching(teacher.net, net)
            say(f"student: {copied} of {len(net.state_dict())} tensors copied from the teacher")
        job = Job(
            name="student",
            data=card.data,
            augment=card.augment,
            train=data[0],
            validation=data[1],
            training=recipe,
            loss=distillation(recipe),
            teacher_logits=teacher_logits(card, teacher, data[0], run.teacher_logits),
            views=recipe.views,
            checkpoint=out.parent / "attempt" / "checkpoint.pt",
        )
        history = train(net, job)
        write_json(out.with_name("history.json"), {"schema_version": 1, "epochs": history})
        save_state(net, out, {"card": card.name})
    shutil.rmtree(out.parent / "attempt", ignore_errors=True)
    shutil.rmtree(run.teacher_logits, ignore_errors=True)  # large, and nothing reads it again
    load_into(net, read_state(out), out)
    return net.eval()


def training_summary(run: Run) -> dict[str, Any]:
    """Epochs, seconds and the last validation accuracy of the student's training."""
    epochs = read_json(run.student_weights.with_name("history.json"))["epochs"]
    return {
        "epochs": len(epochs),
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        "validation_accuracy": epochs[-1]["validation_accuracy"],
    }


def copy_matching(teacher: nn.Module, student: nn.Module) -> int:
    """Copy the teacher's tensors of equal name and shape into the student; returns how many."""
    source, own = teacher.state_dict(), student.state_dict()
    same = {name: tensor for name, tensor in source.items() if name in own and own[name].shape == tensor.shape}
    student.load_state_dict(same, strict=False)
    return len(same)
