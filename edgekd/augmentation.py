"""Settings of the random augmentation of examples."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.ranges import Fraction, NotNegative, Positive, Seed

__all__ = ["Augment"]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Augment:
    """Random augmentation, by which the views of one example differ."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Zero pixels put around the image before a random crop of the original size."""
    flip: bool | Literal["alternate"] = False
    """Horizontal mirror with probability one half. With `alternate`, an image that is mirrored in one view is not in
    the next one (Jordan 2024, section 3.6)."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """Colour and shape operations: TrivialAugment (Müller and Hutter 2021) or RandAugment (Cubuk et al. 2020)."""
    rand_operations: Annotated[int, Field(ge=1, le=8)] = 2
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """RandAugment's N (operations) and M (magnitude, on a scale up to 30)."""
    mixup: NotNegative = 0.0
    """α of λ ~ Beta(α, α); the image becomes λ image + (1 − λ) partner (Zhang et al. 2018); 0 turns it off."""
    cutmix: NotNegative = 0.0
    """α of λ ~ Beta(α, α); a rectangle of 1 − λ of the image comes from the partner (Yun et al. 2019); 0 turns it off.
    If `mixup` is set as well, each is applied to half of the images."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of a grey square at a random place of the image, after all other operations (DeVries and Taylor
    2017); 0 turns it off."""
    crop: Annotated[int, Field(ge=0)] = 0
    """Masks and boxes only: side in pixels of a square that is cut out at random, with its mask or boxes; 0 turns it
    off."""
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Masks and boxes only: the smallest and the largest factor by which what is cut out is scaled, with its mask or
    boxes."""
    turn: bool = False
    """Masks and boxes only: whether images are turned by 0, 90, 180 or 270 degrees at random, with their masks or
    boxes; views that are no squares by 0 or 180."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Masks and boxes only: grey levels are multiplied by a factor between 1 − b and 1 + b; 0 turns it off."""
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Sentences only: share of the tokens that are replaced by the unknown token, which must have id 1."""
    time_shift_ms: NotNegative = 0.0
    """Clips only: the largest shift, forwards or backwards; zeros fill the gap."""
    noise: Fraction = 0.0
    """Clips only: share of the clips to which noise is added, from the folder `_background_noise_` of the data, or pink
    noise if there is no such folder."""
    noise_snr_db: tuple[float, float] = (5.0, 20.0)
    """The lowest and the highest ratio of clip to noise."""
    time_mask: Annotated[int, Field(ge=0)] = 0
    frequency_mask: Annotated[int, Field(ge=0)] = 0
    """Clips only: the largest number of neighbouring frames, or of bins, that a mask sets to the mean (SpecAugment;
    Park et al. 2019, without the time warp); 0 turns it off."""
    masks: Annotated[int, Field(ge=1, le=8)] = 1
    """Clips only: number of masks of each kind."""
    seed: Seed = 0
    """Seed of the views. It is separate from the training's seed, so that trainings with different seeds share the
    teacher's outputs."""

    @model_validator(mode="after")
    def _check(self) -> "Augment":
        if self.policy != "rand" and (self.rand_operations, self.rand_magnitude) != (2, 9):
            raise ValueError('rand_operations, rand_magnitude: have no effect without policy = "rand"')
        if not -40 <= self.noise_snr_db[0] <= self.noise_snr_db[1] <= 100:
            raise ValueError("noise_snr_db: should be [lowest, highest] within -40 … 100 dB")
        if not self.noise and self.noise_snr_db != (5.0, 20.0):
            raise ValueError("noise_snr_db: has no effect without noise")
        if self.masks != 1 and not (self.time_mask or self.frequency_mask):
            raise ValueError("masks: has no effect without time_mask or frequency_mask")
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: should give the smaller factor first, got {list(self.scale)}")
        return self
