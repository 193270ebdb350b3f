"""Types of the numbers in settings, each with the range that it may have."""

from typing import Annotated

from pydantic import Field

__all__ = ["Fraction", "NotNegative", "Positive", "Seed"]

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
