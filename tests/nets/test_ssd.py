"""torchvision's SSDlite as a network of this package gives what torchvision's own model gives."""

import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from edgekd.errors import ConfigError
from edgekd.nets.ssd import SsdLite, SsdLiteShape

CLASSES, SIZE = 2, 320


@pytest.fixture(scope="module")
def net() -> SsdLite:
    torch.manual_seed(0)
    made = SsdLite(SsdLiteShape(), 3, SIZE, SIZE, 4 + CLASSES)
    for parameter in made.parameters():
        if parameter.dim() > 1:  # so that the scores of an untrained network differ
            torch.nn.init.kaiming_normal_(parameter)
    return made


def test_boxes_scores_and_loss_are_those_of_torchvision(net: SsdLite) -> None:
    torch.manual_seed(0)
    own = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, score_thresh=0.0, nms_thresh=1.0,
        topk_candidates=10_000, detections_per_img=10_000,
    )  # fmt: skip
    own.load_state_dict(net.state_dict())  # the names of the weights are torchvision's
    images = torch.rand(2, 3, SIZE, SIZE)
    normalised = (images - 0.5) / 0.5  # torchvision does this inside
    with torch.no_grad():
        outputs = net.eval()(normalised)
        found = own.eval()(list(images))[0]
    assert outputs.shape == (2, 4 + CLASSES, 3234) == (2, 4 + CLASSES, len(net.get_buffer("default_boxes")))
    for label in range(CLASSES):
        theirs = found["scores"][found["labels"] == label + 1]
        assert torch.allclose(theirs, outputs[0, 4 + label].sort(descending=True).values, atol=1e-5)
        corners = found["boxes"][found["labels"] == label + 1][0]
        best = outputs[0, :4, outputs[0, 4 + label].argmax()].clamp(0, SIZE)
        assert torch.allclose(corners, best, atol=1e-2)
    rows = torch.tensor([[[-1.0, 0, 0, SIZE, SIZE, 0], [0, 20, 30, 120, 150, 0], [1, 200, 100, 300, 280, 0]],
                         [[-1.0, 0, 0, SIZE, SIZE, 0], [-1, 0, 0, 0, 0, 0], [1, 10, 10, 60, 60, 1]]])  # fmt: skip
    told = [{"boxes": rows[0, 1:, 1:5], "labels": rows[0, 1:, 0].long() + 1},
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]  # fmt: skip
    for one in (net, own):
        one.train()
        for module in one.modules():  # the same statistics for both calls
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    with torch.no_grad():
        expected = sum(own(list(images), told).values())
        found_loss = net.loss(net(normalised), rows, 0.0, None)
    assert float(found_loss) == pytest.approx(float(expected), rel=1e-4)


def test_maps_of_one_pixel_are_computed_in_fp32_where_the_rest_is_in_bf16() -> None:
    torch.manual_seed(0)
    small = SsdLite(SsdLiteShape(), 3, 48, 64, 4 + CLASSES)
    inputs: dict[str, torch.dtype] = {}
    for name, module in small.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, out, name=name: inputs.update({name: out.dtype}))
    rows = torch.tensor([[[-1.0, 0, 0, 64, 48, 0], [0, 20, 10, 50, 40, 0]]]).repeat(4, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = small(torch.rand(4, 3, 48, 64))
    small.loss(outputs, rows, 0.0, None).backward()
    exact = {name for name, kind in inputs.items() if kind == torch.float32}
    assert exact == {name for name in inputs if name.startswith(("backbone.extra", "head"))}
    assert all(bool(one.grad.isfinite().all()) for one in small.parameters() if one.grad is not None)


def test_other_sizes_and_what_does_not_suit(net: SsdLite) -> None:
    small = SsdLite(SsdLiteShape(), 3, 48, 64, 4 + CLASSES).eval()
    with torch.no_grad():
        assert small(torch.rand(1, 3, 48, 64)).shape == (1, 4 + CLASSES, 6 * (3 * 4 + 2 * 2 + 4 * 1))
        assert small(torch.rand(1, 3, 32, 32)).shape == (1, 4 + CLASSES, 6 * (2 * 2 + 5))  # a smaller view
    with pytest.raises(ValueError, match="3 channels"):
        SsdLite(SsdLiteShape(), 1, 48, 64, 4 + CLASSES)
    with pytest.raises(ConfigError, match="without torchrun"):
        net.eval().loss(torch.zeros(1, 6, 3234), torch.zeros(1, 2, 6), 0.0, None)
