"""Grow a trained ResNet-20 with option A to other blocks with option B, as weights to start a training from.

    python tests/benchmarks/grow.py STUDENT.safetensors GROWN.safetensors 0,2 0,1,+,2,+ 0,1,2

For each stage of GROWN the blocks are listed: the number of a block of STUDENT, or + for one that is put in and begins
as an identity. The shortcuts begin as 1×1 convolutions of zeros and ones. Where all old blocks are listed in order, the
grown network gives the answers of the old one. `edgekd distill` goes on from there with `[student] weights`.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from edgekd.nets.cifar_resnet import CifarResNet, CifarResNetShape
from edgekd.nets.weights import read_state, save_state


def grown(old: dict[str, Tensor], stages: list[list[str]]) -> CifarResNet:
    """The network whose stages have these blocks of a ResNet-20 with the weights `old`."""
    first, second, third = map(len, stages)
    torch.manual_seed(0)
    net = CifarResNet(CifarResNetShape(blocks=(first, second, third), shortcut="B"), 3, 10)
    state = net.state_dict()
    places = {
        f"layer{stage}.{place}": None if source == "+" else f"layer{stage}.{source}"
        for stage, blocks in enumerate(stages, 1)
        for place, source in enumerate(blocks)
    }
    for name in state:
        block, rest = ".".join(name.split(".")[:2]), ".".join(name.split(".")[2:])
        if block not in places:
            state[name] = old[name]
        elif rest == "shortcut.0.weight":
            state[name] = ones_of(state[name])
        elif not rest.startswith("shortcut"):
            source = places[block]
            if source is not None:
                state[name] = old[f"{source}.{rest}"]
            elif rest == "bn2.weight":
                state[name] = torch.zeros_like(state[name])
    net.load_state_dict(state)
    return net


def ones_of(weight: Tensor) -> Tensor:
    """The 1×1 convolution (C, c, 1, 1) that gives each of c channels unchanged, with zero channels on both sides; the
    untrained batch normalisation behind it divides by √(1 + ε)."""
    made, inside = torch.zeros_like(weight), weight.shape[1]
    channels = torch.arange(inside)
    made[channels + (weight.shape[0] - inside) // 2, channels] = (1 + 1e-5) ** 0.5
    return made


if __name__ == "__main__":
    source, out, *stages = sys.argv[1:]
    save_state(grown(dict(read_state(Path(source))), [one.split(",") for one in stages]), Path(out), {})
