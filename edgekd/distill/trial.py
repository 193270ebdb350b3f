"""Checks that try out a network on a few examples before any training."""

import torch
from torch import Tensor, nn

from edgekd.card import Card, Training
from edgekd.data.views import shrunk
from edgekd.distill.terms.layers import as_config_error
from edgekd.errors import ConfigError, one_line
from edgekd.nets.deployed import Deployed
from edgekd.tasks.known import task_of

__all__ = ["check_learning", "check_small", "check_steady", "shape_words"]


def check_steady(module: nn.Module, inputs: Tensor, where: str, axes: int = 2, each: bool = True) -> Tensor:
    """The outputs of a network with its preprocessing, in evaluation mode, with `axes` axes. Without `each`, an example
    may have several rows of them.

    Raises ConfigError, whose message begins with `where`, if the network cannot take the inputs, gives no logits, gives
    values that are not finite, or gives different values for the same inputs.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]), as_config_error(where):
        first, second = (module.eval()(inputs) for _ in range(2))
    _require_logits(first, len(inputs) if each else None, where, axes)
    answers: Tensor = first.float()
    if not bool(answers.isfinite().all()):
        raise ConfigError(f"{where}: the network gives numbers that are not finite for the card's data")
    if not torch.allclose(answers, second.float(), rtol=1e-3, atol=1e-3 * float(answers.abs().max())):
        raise ConfigError(
            f"{where}: the network gives different answers to the same inputs in evaluation mode; a dropout that is "
            "called as a function needs training=self.training"
        )
    return answers


def check_learning(net: nn.Module, card: Card, inputs: Tensor, where: str) -> None:
    """Raise ConfigError, whose message begins with `where`, if the network cannot be trained on the card's data.

    Do not use `net` afterwards: its running statistics have been updated with `inputs`.
    """
    whole = Deployed(net, card.data)
    task = task_of(card.data)
    wanted, each = task.shape(card.data, tuple(inputs.shape)), not task.generates
    answers = check_steady(whole, inputs, where, len(wanted), each)
    if not task.gives(answers.shape[1:], card.data, tuple(inputs.shape)):
        raise ConfigError(
            f"{where}: the network gives {tuple(answers.shape[1:])} outputs for {task.targets(card.data)}; its "
            f"last layer should give {shape_words(wanted[1:])}"
        )
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), as_config_error(where):
        logits = whole.train()(inputs)
        _require_logits(logits, len(inputs) if each else None, where, len(wanted))
        if logits.requires_grad:
            logits.float().sum().backward()
    if all(parameter.grad is None for parameter in net.parameters()):
        raise ConfigError(
            f"{where}: no gradient reaches the network's parameters, so it cannot learn; does it detach its outputs, "
            "compute them under no_grad, or freeze all its layers?"
        )


def check_small(net: nn.Module, card: Card, inputs: Tensor, training: Training, where: str) -> None:
    """Raise ConfigError if the training has `small_share`, and the network cannot take smaller images than `inputs`.

    `where` is the training's key in the card.
    """
    if not training.small_share:
        return
    images = inputs.dtype == torch.uint8 and inputs.dim() == 4  # features of sound have four axes, too
    if not images or task_of(card.data).grid(tuple(inputs.shape)):
        raise ConfigError(f"{card.file}: {where}.small_share: is for images that get one class; set small_share = 0")
    smaller = shrunk(inputs, training.small_scale)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            Deployed(net, card.data).eval()(smaller)
    except Exception as error:  # the network's own code
        raise ConfigError(
            f"{card.file}: {where}.small_share: the network cannot take smaller images, of {smaller.shape[1]}×"
            f"{smaller.shape[2]} ({one_line(error, 100)}); set small_share = 0"
        ) from error
    finally:
        net.train()


def shape_words(shape: tuple[int, ...]) -> str:
    """The shape of one example's outputs in words: `10`, `(2, 64, 64)`."""
    return str(shape[0] if len(shape) == 1 else shape)


def _require_logits(logits: object, count: int | None, where: str, axes: int) -> None:
    if not isinstance(logits, Tensor):
        raise ConfigError(f"{where}: the network gives a {type(logits).__name__}; it should give its logits")
    if logits.dim() != axes or count not in (None, len(logits)):
        raise ConfigError(
            f"{where}: the network gives {tuple(logits.shape)} for {count} examples; it should give one logit for each "
            f"class of each {'example' if axes == 2 else 'pixel of each example'}"
        )
