"""TrivialAugment and RandAugment on whole batches; each image has its own operation and magnitude.

Every step is integer arithmetic or a single, correctly rounded floating-point operation, never a fused or blocked one.
So the result for an image does not depend on the batch or on its position in the batch.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["OPERATIONS", "SIGNED", "apply_operations", "magnitude_table", "rand_augment", "trivial_augment"]

LEVELS = 31
"""Number of strengths of each operation, which are 0 … 30."""

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""The 14 operations that both policies choose from with equal probability."""

SIGNED = np.array([name in OPERATIONS[1:10] for name in OPERATIONS])
"""(14,): whether the sign of the operation's magnitude is random, so that it is negative for half of the images."""


def trivial_augment(images: Tensor, u: NDArray[np.float64]) -> Tensor:
    """TrivialAugment (Wide) of Müller and Hutter 2021, algorithm 1 and table 9: one operation of uniform strength.

    images (B, H, W, C) uint8; u (B, 3) are uniform draws in [0, 1) for operation, strength and sign. Returns images of
    the same shape.
    """
    chosen = (u[:, 0] * len(OPERATIONS)).astype(np.int64)
    levels = (u[:, 1] * LEVELS).astype(np.int64)
    magnitudes = magnitude_table("trivial", images.shape[1], images.shape[2])[chosen, levels]
    return apply_operations(images, torch.from_numpy(chosen), _signed(magnitudes, chosen, u[:, 2]))


def rand_augment(images: Tensor, u: NDArray[np.float64], level: int) -> Tensor:
    """RandAugment (Cubuk et al. 2020, figure 2): N operations one after the other, all with strength `level` (0 … 30).

    images (B, H, W, C) uint8; u (B, N, 2) are uniform draws in [0, 1) for operation and sign. Returns images of the
    same shape.
    """
    table = magnitude_table("rand", images.shape[1], images.shape[2])
    for n in range(u.shape[1]):
        chosen = (u[:, n, 0] * len(OPERATIONS)).astype(np.int64)
        signed = _signed(table[chosen, level], chosen, u[:, n, 1])
        images = apply_operations(images, torch.from_numpy(chosen), signed)
    return images


def _signed(magnitudes: NDArray[np.float64], chosen: NDArray[np.int64], u: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.where(SIGNED[chosen] & (u < 0.5), -magnitudes, magnitudes))


@lru_cache(maxsize=8)
def magnitude_table(policy: Literal["trivial", "rand"], height: int, width: int) -> NDArray[np.float64]:
    """The magnitude of each operation at each strength, (14, 31), for images of that size; row i is OPERATIONS[i].

    Units: shear, the tangent of the angle; translate, pixels; rotate, degrees; brightness, color, contrast and
    sharpness, the factor minus one; posterize, the number of bits that are kept; solarize, the grey level from which
    pixels are inverted. The ranges of TrivialAugment are those of its paper, table 9 (Wide). The ranges of RandAugment
    are those of torchvision, where the largest translation is 150/331 of the image, as in AutoAugment on ImageNet.
    """
    wide = policy == "trivial"
    factor, shear, angle, bits = (0.99, 0.99, 135.0, 6) if wide else (0.9, 0.3, 30.0, 4)
    steps = np.arange(LEVELS) / (LEVELS - 1)
    rows = {
        "shear_x": shear * steps,
        "shear_y": shear * steps,
        "translate_x": (32.0 if wide else 150 / 331 * width) * steps,
        "translate_y": (32.0 if wide else 150 / 331 * height) * steps,
        "rotate": angle * steps,
        **{name: factor * steps for name in ("brightness", "color", "contrast", "sharpness")},
        "posterize": 8 - np.round(bits * steps),
        "solarize": 8.5 * np.arange(LEVELS - 1, -1, -1),  # exact in binary; some equal a grey level
    }
    return np.stack([rows.get(name, np.zeros(LEVELS)) for name in OPERATIONS])


def apply_operations(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply to each of the images (B, H, W, C) uint8, with C 1 or 3, its own operation; return a new tensor.

    operations (B,) int64 are indices into OPERATIONS. magnitudes (B,) float64 are in the units of `magnitude_table`;
    operations without a magnitude ignore them. Geometric operations take the nearest pixel, and zero outside the image.
    """
    order = torch.argsort(operations, stable=True)  # so that the images of each operation are one slice
    images, magnitudes = images.index_select(0, order), magnitudes[order]
    ends = np.cumsum(np.bincount(operations.numpy(), minlength=len(OPERATIONS))).tolist()
    moved = slice(ends[0], ends[_LAST_GEOMETRIC])
    if moved.start < moved.stop:
        images[moved] = _move(images[moved], operations[order][moved], magnitudes[moved])
    for name, operation in _COLOR.items():
        at = OPERATIONS.index(name)
        part = slice(ends[at - 1], ends[at])
        if part.start < part.stop:
            images[part] = operation(images[part], magnitudes[part][:, None, None, None])
    return images.index_select(0, torch.argsort(order))  # 100 times faster than index_copy_


_LAST_GEOMETRIC = OPERATIONS.index("rotate")


def _move(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Shear, translate or rotate each image (n, H, W, C), with one gather for all of them."""
    count, height, width, channels = images.shape
    xx, xy, x0, yx, yy, y0 = _inverse_matrices(operations.numpy(), magnitudes.numpy(), height, width)
    y, x = torch.arange(height)[None, :, None] + 0.5, torch.arange(width)[None, None, :] + 0.5
    columns = ((xx * x + x0) + xy * y).floor_().clamp_(-1, width)  # of the pixel at that point; −1 or width is outside
    rows = ((yx * x + y0) + yy * y).floor_().clamp_(-1, height)
    framed = images.new_zeros(count, height + 2, width + 2, channels)
    framed[:, 1:-1, 1:-1] = images
    places = rows.add_(1).mul_(width + 2).add_(columns).add_(1).long()
    places += torch.arange(count)[:, None, None] * ((height + 2) * (width + 2))
    return framed.view(-1, channels).index_select(0, places.view(-1)).view(images.shape)


def _inverse_matrices(
    operations: NDArray[np.int64], magnitudes: NDArray[np.float64], height: int, width: int
) -> tuple[Tensor, ...]:
    """The matrices that map each output point to a point of the input, in pixels: x' = xx x + xy y + x0 and
    y' = yx x + yy y + y0.

    The origin is the top left corner of the image, which a shear does not move; a rotation turns counter-clockwise
    around the centre. Returns xx, xy, x0, yx, yy and y0, each a tensor (n, 1, 1) float32.
    """
    name = {name: operations == OPERATIONS.index(name) for name in OPERATIONS[: _LAST_GEOMETRIC + 1]}
    angle = np.radians(np.where(name["rotate"], magnitudes, 0.0))
    cos, sin = np.cos(angle), np.sin(angle)
    xy = np.where(name["shear_x"], magnitudes, -sin)
    yx = np.where(name["shear_y"], magnitudes, sin)
    pixels = np.trunc(magnitudes)
    x0 = np.where(name["translate_x"], -pixels, (1 - cos) * width / 2 + sin * height / 2)
    y0 = np.where(name["translate_y"], -pixels, (1 - cos) * height / 2 - sin * width / 2)
    matrices = np.stack((cos, xy, x0, yx, cos, y0)).astype(np.float32)
    return torch.from_numpy(matrices)[:, :, None, None].unbind()


def _brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    return _byte(images * (1 + magnitude).float())


def _color(images: Tensor, magnitude: Tensor) -> Tensor:
    return images if images.shape[3] == 1 else _blend(images, _grey(images), magnitude)


def _contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    grey = _grey(images) if images.shape[3] == 3 else images
    total = grey.sum((1, 2, 3), keepdim=True, dtype=torch.int64)  # int64 is exact, so the order does not matter
    return _blend(images, total.float() / grey[0].numel(), magnitude)


def _sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend each pixel with the weighted mean of its 3 × 3 neighbourhood, where the centre has weight 5 and the other
    pixels 1. The border is unchanged."""
    if min(images.shape[1:3]) <= 2:
        return images
    whole = images.short()
    inner = whole[:, 1:-1, 1:-1]
    rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner
    smooth = (total / 13).round_()
    images = images.clone()
    images[:, 1:-1, 1:-1] = _byte(inner - (smooth - inner) * magnitude.float())
    return images


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    return images & (256 - 2 ** (8 - bits)).to(torch.uint8)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold.ceil().to(torch.uint8), ~images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional  # imported here: it takes longer than the rest of torch

    stretched: Tensor = functional.autocontrast_image(images.permute(0, 3, 1, 2).contiguous())  # 3 times faster
    return stretched.permute(0, 2, 3, 1)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    equal: Tensor = functional.equalize_image(images.permute(0, 3, 1, 2))
    return equal.permute(0, 2, 3, 1)


def _grey(images: Tensor) -> Tensor:
    """The luma of RGB images (ITU-R BT.601), rounded down, (n, H, W, 1) float32."""
    red, green, blue = images.unbind(3)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).floor_().unsqueeze(3)


def _blend(images: Tensor, others: Tensor, magnitude: Tensor) -> Tensor:
    """(1 + m) images − m others, where m is the magnitude, as uint8."""
    return _byte((images * (1 + magnitude).float()).sub_(others * magnitude.float()))


def _byte(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)  # rounds towards zero, as torchvision does


_COLOR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
