"""Teachers: a torch network with its weights, or an ONNX file that ONNX Runtime runs."""

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
from edgekd.console import say
from edgekd.errors import InputError, did_you_mean, one_line
from edgekd.nets.deployed import Deployed, example_inputs, noise_inputs, preprocess_of
from edgekd.nets.families import make
from edgekd.nets.outputs import are_probabilities, head_of, log_of, sigmoid_words
from edgekd.nets.weights import load_file
from edgekd.tasks.front_end import FrontEnd
from edgekd.tasks.known import task_of

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["LoadedTeacher", "OnnxNet", "load_teacher_file", "make_teacher_net"]


class OnnxNet(nn.Module):
    """An ONNX model as a torch module without gradients: maps uint8 images (B, H, W, C), samples of sound (B, samples)
    or token ids (B, L) to logits (B, classes).

    The model's own input is the same, or normalised float (B, C, H, W). Token ids may be int32 or int64. If the model
    gives probabilities, the logits are their logarithms.
    """

    def __init__(self, path: Path, card: Card) -> None:
        super().__init__()
        self.path = path
        self.session = _open(path)
        self.output = _logits_output(self.session, card, path)
        self.logarithm = False
        inputs = self.session.get_inputs()
        self.takes_raw = False
        how = task_of(card.data).normalization(card.data)
        if how is None:
            self.preprocess: nn.Module = _Ids(path, inputs)
            return
        self.preprocess = preprocess_of(card.data)
        if isinstance(how, FrontEnd):
            self.takes_raw = _takes_samples(path, inputs, how, card)
            return
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(uint8)", "tensor(float)"):
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{path}: takes {found}; one input, uint8 NHWC or float NCHW, is needed")
        self.takes_raw = inputs[0].type == "tensor(uint8)"

    def forward(self, images: Tensor) -> Tensor:
        x = images if self.takes_raw else self.preprocess(images)
        own, name = self.session.get_inputs()[0], self.output
        parts = x.cpu().split(1) if own.shape[0] == 1 else [x.cpu()]  # exported for a batch of 1: run one by one
        answers = [self.session.run([name], {own.name: part.numpy()})[0] for part in parts]
        found = torch.from_numpy(np.concatenate(answers).astype(np.float32, copy=False))
        return log_of(found) if self.logarithm else found

    def settle(self, inputs: Tensor) -> None:
        """Find out whether the model gives probabilities, from its last node and its outputs for `inputs`.

        Raises InputError for independent sigmoids.
        """
        ending = _last_node(self.path, self.output)
        if ending in ("Sigmoid", "HardSigmoid"):
            raise InputError(f"{self.path}: {sigmoid_words(f'its last node is {ending}')}")
        self.logarithm = ending != "LogSoftmax" and are_probabilities(self(inputs))


def _takes_samples(path: Path, inputs: "list[onnxruntime.NodeArg]", how: FrontEnd, card: Card) -> bool:
    """Whether an ONNX model for sound takes raw samples as edgekd's own files do; otherwise it takes features.

    Raises InputError for any other input, and for a model that takes samples if the views of the card are features.
    """
    samples = "tensor(int16)" if how.integer else "tensor(float)"
    kinds = [(one.type, len(one.shape)) for one in inputs]
    if kinds not in ([(samples, 2)], [("tensor(float)", 4)]):
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise InputError(
            f"{path}: takes {found}; one input, {samples} (batch, {how.samples}), or float features (batch, 1, "
            f"{how.bins}, {how.frames}), is needed"
        )
    if kinds[0][1] == 2 and (card.augment.time_mask or card.augment.frequency_mask):
        raise InputError(
            f"{path}: takes samples, and augment.time_mask and augment.frequency_mask mask features; drop both"
        )
    return kinds[0][1] == 2


def _logits_output(session: "onnxruntime.InferenceSession", card: Card, path: Path) -> str:
    """The name of the output with the logits: the card's `output`, else `logits` or the first one of shape (batch,
    classes), else the first one."""
    outputs, wanted = session.get_outputs(), card.teacher.output
    wanted_outputs = task_of(card.data).outputs(card.data)
    names = [str(one.name) for one in outputs]
    if wanted and wanted not in names:
        raise InputError(f"{path}: teacher.output: {wanted!r} is unknown; {did_you_mean(wanted, names)}")
    if wanted:
        return wanted
    axes = len(task_of(card.data).shape(card.data, tuple(example_inputs(card.data, 1).shape)))
    fitting = [str(one.name) for one in outputs if len(one.shape) == axes and one.shape[1] == wanted_outputs]
    return [*(name for name in fitting if name == "logits"), *fitting, *names][0]


_PASSING = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Reshape", "QuantizeLinear", "DequantizeLinear")
"""Types of nodes that do not change values, apart from rounding."""


def _last_node(path: Path, output: str) -> str:
    """The type of the last node before `output` that changes values; empty if there is none."""
    import onnx

    nodes = {name: node for node in onnx.load(path, load_external_data=False).graph.node for name in node.output}
    node = nodes.get(output)
    while node is not None and node.op_type in _PASSING:
        node = nodes.get(node.input[0])
    return node.op_type if node is not None else ""


class _Ids(nn.Module):
    """Converts token ids to the integer type that the model takes."""

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
class LoadedTeacher:
    """A teacher that is ready for distillation: its module, its file, and what identifies it."""

    module: nn.Module
    """Maps uint8 images (B, H, W, C), or token ids (B, L), to logits (B, classes)."""
    file: Path
    """The file of its weights, or the ONNX model."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What its outputs depend on in addition to the weights, as JSON values."""

    @property
    def net(self) -> nn.Module | None:
        """The torch network without preprocessing; None for an ONNX teacher."""
        return self.module.net if isinstance(self.module, Deployed) else None


def make_teacher_net(card: Card) -> nn.Module:
    """The card's teacher network, randomly initialised."""
    return make(card, card.teacher, card.teacher.shape, "teacher.shape")


def load_teacher_file(card: Card, path: Path) -> LoadedTeacher:
    """The card's teacher with the weights (or the ONNX model) in the file `path`, in evaluation mode.

    Raises InputError if the file is not usable, or if the number of outputs does not fit the data.
    """
    if card.teacher.family == "onnx" or path.suffix == ".onnx":
        module: nn.Module = OnnxNet(path, card)
        identity: dict[str, Any] = {"output": card.teacher.output} if card.teacher.output else {}
    else:
        net = make_teacher_net(card)
        load_file(net, path)
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
    fits = task.gives(logits.shape[1:], card.data, tuple(example.shape))
    if not fits or (len(logits) != len(example) and not task.generates):
        gives = f"the teacher gives {tuple(logits.shape[1:])} outputs for {task.targets(card.data)}"
        if len(logits) != len(example) and not task.generates:
            gives = f"the teacher gives outputs of {len(logits)} examples for a batch of {len(example)}"
        raise InputError(f"{path}: {gives}")
    if _settled(module, noise_inputs(card.data, 8)):
        say(f"{path}: the teacher gives probabilities; their logarithms are taken as its logits")
        identity["outputs"] = "logarithms"
    return LoadedTeacher(module, path, identity)


def _settled(module: nn.Module, inputs: Tensor) -> bool:
    """Whether the teacher gives probabilities, so that its logits are their logarithms."""
    if isinstance(module, OnnxNet):
        module.settle(inputs)
        return module.logarithm
    assert isinstance(module, Deployed)  # there are only these two kinds
    head = head_of(module.net)
    return head is not None and head.logarithm


def _identity(card: Card, net: nn.Module) -> dict[str, Any]:
    """What identifies a torch teacher in addition to its weights: family and shape, because networks with different
    numbers of heads can have equal weights; and the SHA-256 of the source files of the network's classes and of the
    function that made it."""
    owner, content = card.teacher, hashlib.sha256()
    names = {type(module).__module__ for module in net.modules()}
    for name in sorted(names | ({owner.function.partition(":")[0]} if owner.function else set())):
        source = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        content.update(f"{name}\0".encode())
        content.update(hashlib.sha256(source.read_bytes() if source.is_file() else b"").digest())
    named = {"output": owner.output} if owner.output else {}
    return named | {
        "family": owner.family,
        "function": owner.function,
        "shape": owner.shape,
        "source": content.hexdigest(),
    }
