"""Find the family and the shape of a network by the names and sizes of its weights."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekd.draft.facts import Option
from edgekd.errors import InputError, cut
from edgekd.nets.families import FAMILIES

__all__ = ["Family", "family_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The family and shape of a network, and what else its weights show."""

    family: str
    shape: dict[str, Any]
    outputs: int | None
    size: int | None = None
    channels: int | None = None
    vocabulary: int | None = None
    options: tuple[Option, ...] = ()
    """What the weights do not show."""

    @property
    def task(self) -> str:
        """The name of the task that the family is for."""
        return next((task for task, families in FAMILIES.items() if self.family in families), "image-classification")


Sizes = Mapping[str, tuple[int, ...]]
"""The shape of each weight, by its name."""


def family_of(state: Mapping[str, Tensor], path: Path) -> Family:
    """The family of these weights, one of edgekd's or torchvision's.

    Raises InputError if they belong to none of them.
    """
    sizes = {name: tuple(value.shape) for name, value in state.items()}
    known = (_cifar_resnet, _sequential, _keywords, _text, _unet, _detector, _seq2seq, _torchvision)
    found = next((family for one in known if (family := _recognised(one, sizes)) is not None), None)
    if found is None:
        names = ", ".join(cut(name) for name in list(sizes)[:3])
        raise InputError(
            f"--teacher {path}: its names ({names}, …) are those of no network that edgekd or torchvision makes; give "
            f"its network as ONNX: edgekd export module:function --weights {path} --input C,H,W --classes … --target T"
        )
    return found


def _recognised(look: Callable[[Sizes], Family | None], sizes: Sizes) -> Family | None:
    """What `look` finds; None also for a foreign network that has some of the family's names but not the others, or
    other sizes at them."""
    try:
        return look(sizes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        return None


def _cifar_resnet(sizes: Sizes) -> Family | None:
    if "linear.weight" not in sizes or "layer3.0.conv1.weight" not in sizes or "layer4.0.conv1.weight" in sizes:
        return None
    width, channels = sizes["conv1.weight"][:2]
    blocks = [len({name.split(".")[1] for name in sizes if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3)]
    widths = [width, *(sizes[f"layer{stage}.0.conv1.weight"][0] for stage in (2, 3))]
    shape: dict[str, Any] = {"depth": 6 * blocks[0] + 2} if len(set(blocks)) == 1 else {"blocks": blocks}
    shape |= {"width": width} if widths == [width, 2 * width, 4 * width] else {"widths": widths}
    shape |= {"shortcut": "B"} if "layer3.0.shortcut.0.weight" in sizes else {}
    return Family(family="cifar-resnet", shape=shape, outputs=sizes["linear.weight"][0], channels=channels)


def _sequential(sizes: Sizes) -> Family | None:
    """An `mlp` or a `convnet`, whose layers are numbered."""
    if not all(name.partition(".")[0].isdecimal() for name in sizes):
        return None
    ordered = [sizes[name] for name in sorted((n for n in sizes if n.endswith(".weight")), key=_number)]
    convolutions, matrices = [one for one in ordered if len(one) == 4], [one for one in ordered if len(one) == 2]
    if not matrices:
        return None
    outputs, hidden = matrices[-1][0], [one[0] for one in matrices[:-1]]
    if not convolutions:
        inside = matrices[0][1]
        channels = next((c for c in (1, 3) if inside % c == 0 and math.isqrt(inside // c) ** 2 == inside // c), None)
        if channels is None or not hidden:
            return None
        size = math.isqrt(inside // channels)
        return Family(family="mlp", shape={"hidden": hidden}, outputs=outputs, size=size, channels=channels)
    if len(hidden) != 1:
        return None
    grid = math.isqrt(matrices[0][1] // convolutions[-1][0])
    shape: dict[str, Any] = {"channels": [one[0] for one in convolutions], "hidden": hidden[0]}
    shape |= {"grid": grid} if grid > 1 else {}
    return Family(family="convnet", shape=shape, outputs=outputs, channels=convolutions[0][1])


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def _text(sizes: Sizes) -> Family | None:
    """A `bag-of-words`, a `text-cnn` or an `lstm`; a `transformer` has a number of heads, which no weight shows."""
    if "embedding.table.weight" not in sizes:
        return None
    vocabulary, embedding = sizes["embedding.table.weight"]
    layers = sum(name.startswith("forwards.") and name.endswith("weight_hh_l0") for name in sizes)
    filters = [size for name, size in sizes.items() if name.startswith("filters.") and name.endswith("weight")]
    heads = [size for name, size in sizes.items() if name.startswith("head") and name.endswith("weight")]
    shape: dict[str, Any] = {"embedding": embedding}
    if layers:
        family, shape = "lstm", shape | {"hidden": sizes["forwards.0.weight_hh_l0"][1], "layers": layers}
    elif filters:
        family = "text-cnn"
        shape |= {"filters": filters[0][0], "kernels": [size[1] // embedding for size in filters]}
    elif heads and not any(name.startswith("layers.") for name in sizes):
        family, shape = "bag-of-words", shape | {"hidden": heads[0][0] if len(heads) > 1 else 0}
    else:
        return None
    return Family(family=family, shape=shape, outputs=heads[-1][0], vocabulary=vocabulary)


def _keywords(sizes: Sizes) -> Family | None:
    """A `keyword-cnn` or a `ds-cnn`, whose layers are numbered, and whose strides no weight shows."""
    if not all(name.partition(".")[0].isdecimal() for name in sizes):
        return None
    ordered = [sizes[name] for name in sorted((n for n in sizes if n.endswith(".weight")), key=_number)]
    convolutions, matrices = [one for one in ordered if len(one) == 4], [one for one in ordered if len(one) == 2]
    if len(matrices) != 1 or not convolutions or convolutions[0][1] != 1:
        return None
    outputs, widths = matrices[0][0], [one[0] for one in convolutions]
    if any(one[1] == 1 for one in convolutions[1:]):
        shape = {"width": widths[0], "layers": len(widths) // 2, "kernel": list(convolutions[0][2:])}
        strides = [Option(words=f"stride {a}×{b}", shape={"stride": [a, b]}) for a in (2, 1) for b in (2, 1)]
        return Family(family="ds-cnn", shape=shape, outputs=outputs, channels=1, options=tuple(strides))
    if any(one[2:] != (3, 3) for one in convolutions):
        return None
    found = []
    for layers in (count for count in range(1, len(widths) + 1) if len(widths) % count == 0):
        stages = [widths[start : start + layers] for start in range(0, len(widths), layers)]
        if all(len(set(stage)) == 1 for stage in stages):
            values = {"channels": [stage[0] for stage in stages], "layers": layers}
            found.append(Option(words=f"{len(stages)} stages", shape=values))
    return Family(family="keyword-cnn", shape={}, outputs=outputs, channels=1, options=tuple(found))


def _unet(sizes: Sizes) -> Family | None:
    """A `unet`, of whose first convolution no weight shows the stride."""
    if not {"stem.0.weight", "head.weight", "up.0.0.weight"} <= sizes.keys():
        return None
    width, channels = sizes["stem.0.weight"][:2]
    depth = len({name.split(".")[1] for name in sizes if name.startswith("up.")})
    separable = sizes["up.0.0.weight"][1] == 1
    inside = [name for name in sizes if name.startswith("up.0.") and len(sizes[name]) == 4]
    shape: dict[str, Any] = {"width": width, "depth": depth, "layers": len(inside) // (2 if separable else 1)}
    lowest = [size[0] for name, size in sizes.items() if name.startswith(f"down.{depth}.") and len(size) == 4]
    shape["widest"] = max(lowest)
    shape |= {"separable": True} if separable else {}
    strides = tuple(Option(words=f"a first stride of {one}", shape={"stem_stride": one}) for one in (1, 2))
    outputs = sizes["head.weight"][0]
    return Family(family="unet", shape=shape, outputs=outputs, channels=channels, options=strides)


def _detector(sizes: Sizes) -> Family | None:
    """A `detector`, of whose strides the weights show the number and the first one."""
    if not {"stem.0.weight", "lateral.0.0.weight", "heads.0.scores.weight"} <= sizes.keys():
        return None
    width, channels = sizes["stem.0.weight"][:2]
    stages, lateral, heads = (
        len({name.split(".")[1] for name in sizes if name.startswith(f"{part}.")})
        for part in ("stages", "lateral", "heads")
    )
    classes, neck = sizes["heads.0.scores.weight"][:2]
    depth = len({name.split(".")[2] for name in sizes if name.startswith("stages.0.") and ".parts." in name})
    trunk = [sizes[name] for name in sizes if name.startswith("heads.0.trunk.") and len(sizes[name]) == 4]
    blocks = [size for name, size in sizes.items() if ".parts." in name and len(size) == 4]
    separable = any(size[1] == 1 for size in (*trunk, *blocks))
    deepest = 2 ** (stages + 1)
    shape: dict[str, Any] = {"width": width, "widest": sizes[f"stages.{stages - 1}.0.weight"][0], "depth": depth}
    shape |= {"deepest": deepest, "neck": neck, "layers": len(trunk) // (2 if separable else 1)}
    shape |= {"separable": True} if separable else {}
    first = deepest // 2 ** (lateral - 1)
    further = [stride for stride in (4, 8, 16, 32) if first < stride <= deepest]
    options = tuple(
        Option(words=f"strides {[first, *some]}", shape={"strides": [first, *some]})
        for some in itertools.combinations(further, heads - 1)
    )
    return Family(family="detector", shape=shape, outputs=classes, channels=channels, options=options)


def _seq2seq(sizes: Sizes) -> Family | None:
    """A `seq2seq`, whose number of heads no weight shows."""
    if not {"table.weight", "encoder_norm.weight", "decoder_norm.weight"} <= sizes.keys():
        return None
    vocabulary, width = sizes["table.weight"]
    feed = next((size[0] for name, size in sizes.items() if name.startswith("encoder.0.feed.") and len(size) == 2), 0)
    counts = {
        f"{part}_layers": len({name.split(".")[1] for name in sizes if name.startswith(f"{part}.")})
        for part in ("encoder", "decoder")
    }
    heads = tuple(Option(words=f"{n} heads", shape={"heads": n}) for n in (4, 8, 2, 1, 16, 3, 6) if width % n == 0)
    shape = {"width": width, **counts, "feed": feed}
    return Family(family="seq2seq", shape=shape, outputs=vocabulary, vocabulary=vocabulary, options=heads)


_TELLING = {
    "layer1.0.conv1.": ("resnet", "resnext", "wide_resnet"),
    "features.denseblock1.": ("densenet",),
    "trunk_output.": ("regnet",),
    "stage2.0.": ("shufflenet",),
    "encoder.layers.": ("vit",),
    "features.0.0.": ("mobilenet", "efficientnet", "convnext", "swin"),
    "features.0.weight": ("alexnet", "squeezenet", "vgg"),
    "inception3a.": ("googlenet",),
    "Mixed_5b.": ("inception",),
    "layers.0.weight": ("mnasnet",),
}
"""The beginning of a weight's name, and of the names of torchvision's networks that have such a weight."""


def _torchvision(sizes: Sizes) -> Family | None:
    """torchvision's classification network with these names and sizes, where the head may have any number of
    outputs."""
    import torchvision

    starts = tuple(
        one for key, names in _TELLING.items() if any(name.startswith(key) for name in sizes) for one in names
    )
    kept = {name: size for name, size in sizes.items() if not name.endswith("num_batches_tracked")}
    for name in torchvision.models.list_models(module=torchvision.models):
        if not name.startswith(starts or "\0"):
            continue
        usual = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        try:
            with torch.device("meta"):
                net = torchvision.models.get_model(name, weights=None, **usual)
        except (
            NotImplementedError,
            RuntimeError,
        ):  # some transformers cannot be built without memory for their weights
            net = torchvision.models.get_model(name, weights=None, **usual)
        own = {key: tuple(value.shape) for key, value in net.state_dict().items() if not key.endswith("tracked")}
        if own.keys() != kept.keys():
            continue
        other = [key for key in own if own[key] != kept[key]]
        if all(own[key][0] == 1000 and own[key][1:] == kept[key][1:] for key in other):
            head = [key for key in own if own[key][0] == 1000]
            return Family(family="torchvision", shape={"model": name}, outputs=kept[head[-1]][0], channels=3)
    return None
