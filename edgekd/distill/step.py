"""One forward pass of a training: the network, the auxiliary modules, and the weighted loss terms."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.data.views import shrunk
from edgekd.distill.objective import Objective, Seen
from edgekd.distill.optimise import autocast
from edgekd.distill.terms.layers import Taps, core
from edgekd.errors import ConfigError
from edgekd.recipe import Training

__all__ = ["TrainingStep"]


class TrainingStep(nn.Module):
    """Computes the loss terms of a batch. It is a module so that DistributedDataParallel can wrap all trained parts."""

    def __init__(self, net: nn.Module, objective: Objective, training: Training) -> None:
        super().__init__()
        self.net, self.learned = net, objective.learned
        self._objective, self._precision = objective, training.precision
        self._small_epochs, self._small_scale = round(training.small_share * training.epochs), training.small_scale
        self._taps = Taps(core(net), objective.layers, "recipe.features")
        # In a list, so that the compiled network is not registered as a second submodule with the same parameters.
        self._forward = [torch.compile(net) if training.compile else net]

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        indices: NDArray[np.int64],
        teacher: dict[str, Tensor],
        epoch: int,
        share: float,
        step: int,
    ) -> dict[str, Tensor]:
        """The weighted terms of a batch after the fraction `share` of `epoch` (counted from 0); `step` counts over the
        whole training."""
        part, _ = self._objective.part(epoch)
        small = epoch < self._small_epochs
        with autocast(self._precision):
            logits = self._forward[0](shrunk(inputs, self._small_scale) if small else inputs)
            if not isinstance(logits, Tensor):  # some torchvision networks return a named tuple in training mode
                raise ConfigError(f"the network gives a {type(logits).__name__} in training; it should give its logits")
            peers = tuple(peer(inputs).float() for peer in self._peers())
        seen = Seen(
            logits=logits.float(),
            targets=targets,
            indices=torch.from_numpy(indices).to(inputs.device),
            features={name: value.float() for name, value in self._taps.values.items()},
            teacher=teacher,
            peers=peers,
            temperature=self._objective.temperature(epoch + share),
            step=step,
        )
        return part.terms(seen)

    def release(self) -> None:
        """Remove the forward hooks from the network, which is still used after training."""
        self._taps.remove()

    def _peers(self) -> list[nn.Module]:
        return list(self.learned["peers"].children()) if "peers" in self.learned else []
