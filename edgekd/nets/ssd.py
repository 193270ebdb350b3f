"""torchvision's SSDlite, a detector with default boxes (anchors), as a teacher."""

import math

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from edgekd.errors import ConfigError
from edgekd.nets.mobile import for_channels

__all__ = ["SsdLite", "SsdLiteShape"]

STRIDES = (16, 32, 64, 128, 256, 512)
"""Those of the six grids, whose sizes are rounded up."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SsdLiteShape:
    """SSDlite has no knobs: its layers are those of `ssdlite320_mobilenet_v3_large`, for images of any size."""


class SsdLite(nn.Module):
    """`ssdlite320_mobilenet_v3_large` of torchvision (Sandler et al. 2018, arXiv 1801.04381; Howard et al. 2019, arXiv
    1905.02244), with the names of its weights. Images are normalised as the card says, and are not resized.

    In evaluation mode it maps images (B, 3, H, W) to corners and scores (B, 4 + C, A) at its A default boxes, as
    `Detector` does at its places. In training mode it gives what torchvision's loss takes, (B, 5 + C, A): the encoded
    box, and logits of the background and the classes. Raises ValueError for grey images.
    """

    def __init__(self, shape: SsdLiteShape, channels: int, height: int, width: int, outputs: int) -> None:
        super().__init__()
        made = for_channels(
            ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=outputs - 4 + 1), channels
        )
        self.backbone, self.head = made.get_submodule("backbone"), made.get_submodule("head")
        self.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))  # this and what follows are settings of torchvision's
        self.proposal_matcher = SSDMatcher(0.5)
        self.neg_to_pos_ratio = 3.0
        self.size = height, width
        self.register_buffer("default_boxes", default_boxes(height, width), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self._maps(images)
        with torch.autocast(images.device.type, enabled=False):
            found = self.head([one.float() for one in maps])
        encoded, logits = found["bbox_regression"].float(), found["cls_logits"].float()
        if self.training:
            return torch.cat([encoded, logits], dim=2).transpose(1, 2)
        corners = self.corners(encoded, self.boxes_for(images.shape[2], images.shape[3]).to(encoded.device))
        return torch.cat([corners, logits.softmax(dim=2)[..., 1:]], dim=2).transpose(1, 2)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The maps of the six grids, as torchvision's backbone gives them. The last four, as the heads of all six, are
        always in fp32: on small images they have one pixel, and there a gradient of a bf16 convolution on a CPU has
        been seen to be NaN.
        """
        maps = []
        for block in self.backbone.get_submodule("features").children():
            images = block(images)
            maps.append(images)
        with torch.autocast(images.device.type, enabled=False):
            for block in self.backbone.get_submodule("extra").children():
                maps.append(block(maps[-1].float()))
        return maps

    def corners(self, encoded: Tensor, anchors: Tensor) -> Tensor:
        """Corners (B, A, 4) of boxes that are encoded relative to the anchors (A, 4), which all images share;
        torchvision decodes several boxes of an anchor side by side."""
        found: Tensor = self.box_coder.decode_single(encoded.transpose(0, 1).flatten(1), anchors)
        return found.reshape(len(anchors), -1, 4).transpose(0, 1)

    def boxes_for(self, height: int, width: int) -> Tensor:
        """The default boxes (A, 4) of images of this size; views may be smaller than the card's images."""
        return self.get_buffer("default_boxes") if (height, width) == self.size else default_boxes(height, width)

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
        """torchvision's loss of what training mode gives, for boxes (B, 1 + M, 6) whose first one is the whole view.

        Boxes that are not judged are background. The loss knows neither `smoothing` nor `weights`, which cards of this
        family must not ask for. Raises ConfigError outside of training mode.
        """
        if not self.training:
            raise ConfigError("teacher: ssdlite is trained in one process; run without torchrun")
        anchors = self.boxes_for(int(targets[0, 0, 4]), int(targets[0, 0, 3])).to(outputs.device)
        raw = outputs.transpose(1, 2)
        told, matched = [], []
        for rows in targets[:, 1:]:
            rows = rows[(rows[:, 0] >= 0) & (rows[:, 5] == 0)]
            told.append({"boxes": rows[:, 1:5], "labels": rows[:, 0].long() + 1})
            nothing = torch.full((len(anchors),), -1, dtype=torch.int64, device=outputs.device)
            matched.append(self.proposal_matcher(box_iou(rows[:, 1:5], anchors)) if len(rows) else nothing)
        heads = {"bbox_regression": raw[..., :4], "cls_logits": raw[..., 4:]}
        terms = SSD.compute_loss(self, told, heads, [anchors] * len(told), matched)
        return torch.stack(list(terms.values())).sum()


def default_boxes(height: int, width: int) -> Tensor:
    """The corners (A, 4) in pixels of the default boxes, in the order of the heads' outputs."""
    with torch.device("cpu"):  # also where networks are built on the meta device, on which this cannot run
        grids = [torch.zeros(1, 1, math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]
        generator = DefaultBoxGenerator([[2, 3] for _ in STRIDES], min_ratio=0.2, max_ratio=0.95)
        images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
        corners: Tensor = generator(images, grids)[0]
    return corners
