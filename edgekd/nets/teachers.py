"""Teachers: a torch network with its weights, or an ONNX file run through ONNX Runtime."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.card import Card
from edgekd.errors import InputError, one_line
from edgekd.nets.deployed import Deployed, Preprocess, example_inputs
from edgekd.nets.families import make
from edgekd.nets.weights import load_into, read_state
from edgekd.tasks.known import task_of

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxNet", "Teacher", "load_teacher_file", "make_teacher_net"]


class OnnxNet(nn.Module):
    """An ONNX model as a torch module: uint8 images (B, H, W, C), or token ids (B, L), to logits (B, classes), without
    gradients.

    The model takes uint8 (B, H, W, C), or normalised float (B, C, H, W); of ids int32 or int64.
    """

    def __init__(self, path: Path, card: Card) -> None:
        super().__init__()
        self.path = path
        self.session = _open(path)
        inputs = self.session.get_inputs()
        self.takes_uint8 = False
        how = task_of(card.data).normalization(card.data)
        if how is None:
            self.preprocess: nn.Module = _Ids(path, inputs)
            return
        self.preprocess = Preprocess(how)
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(uint8)", "tensor(float)"):
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{path}: takes {found}; one input, uint8 NHWC or float NCHW, is needed")
        self.takes_uint8 = inputs[0].type == "tensor(uint8)"

    def forward(self, images: Tensor) -> Tensor:
        x = images if self.takes_uint8 else self.preprocess(images)
        own, name = self.session.get_inputs()[0], self.session.get_outputs()[0].name
        parts = x.cpu().split(1) if own.shape[0] == 1 else [x.cpu()]  # exported for one image: one by one
        answers = [self.session.run([name], {own.name: part.numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(answers).astype(np.float32, copy=False))


class _Ids(nn.Module):
    """Token ids in the type that the model takes."""

    def __init__(self, path: Path, inputs: "list[onnxruntime.NodeArg]") -> None:
        super().__init__()
        types = {"tensor(int32)": torch.int32, "tensor(int64)": torch.int64}
        if len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].type not in types:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{path}: takes {found}; one input, int32 or int64 token ids (batch, length), is needed")
        self.dtype = types[inputs[0].type]

    def forward(self, ids: Tensor) -> Tensor:
        return ids.to(self.dtype)


def _open(path: Path) -> "onnxruntime.InferenceSession":
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: no such teacher file")
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        raise InputError(f"{path}: ONNX Runtime cannot load it: {one_line(error, 150)}") from error


@dataclass(frozen=True)
class Teacher:
    """The teacher as distillation sees it."""

    module: nn.Module
    """uint8 images (B, H, W, C) to logits (B, classes)."""
    file: Path
    """Its weights, or the ONNX model."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What a torch network's answers depend on beside its weights, plain JSON values."""

    @property
    def net(self) -> nn.Module | None:
        """The torch network without preprocessing; None for an ONNX teacher."""
        return self.module.net if isinstance(self.module, Deployed) else None


def make_teacher_net(card: Card) -> nn.Module:
    """The card's teacher network, randomly initialised."""
    return make(card, card.teacher, card.teacher.shape, "teacher.shape")


def load_teacher_file(card: Card, path: Path) -> Teacher:
    """The card's teacher with the weights (or the ONNX model) at `path`, in evaluation mode.

    Raises InputError if the file is wrong, or its classes are not those of the data.
    """
    if card.teacher.family == "onnx" or path.suffix == ".onnx":
        module: nn.Module = OnnxNet(path, card)
        identity: dict[str, Any] = {}
    else:
        net = make_teacher_net(card)
        load_into(net, read_state(path), path)
        module = Deployed(net, card.data)
        identity = _identity(card, net)
    module.eval()
    task, example = task_of(card.data), example_inputs(card.data, 2)
    try:
        with torch.no_grad():
            logits = module(example)
    except Exception as error:  # torch's RuntimeError, or ONNX Runtime's exceptions, which have no common base
        raise InputError(
            f"{path}: the teacher cannot take a batch of 2 {task.takes(card.data)}: {one_line(error, 150)}"
        ) from error
    if logits.shape != (2, task.outputs(card.data)):
        raise InputError(f"{path}: the teacher gives {tuple(logits.shape[1:])} outputs for {task.targets(card.data)}")
    return Teacher(module, path, identity)


def _identity(card: Card, net: nn.Module) -> dict[str, Any]:
    """Family and shape, for equal weights make other networks with other heads; and SHA-256 of the source files of the
    network's classes and of the function that made it."""
    owner, content = card.teacher, hashlib.sha256()
    names = {type(module).__module__ for module in net.modules()}
    for name in sorted(names | ({owner.function.partition(":")[0]} if owner.function else set())):
        source = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        content.update(f"{name}\0".encode())
        content.update(hashlib.sha256(source.read_bytes() if source.is_file() else b"").digest())
    return {
        "family": owner.family,
        "function": owner.function,
        "shape": owner.shape,
        "source": content.hexdigest(),
    }
