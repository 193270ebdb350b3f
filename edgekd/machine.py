"""The properties of a device that determine how fast and how exactly it runs a model."""

from dataclasses import dataclass

__all__ = ["Machine"]


@dataclass(frozen=True)
class Machine:
    """A device's CPU and system."""

    architecture: str
    """x86_64 or aarch64 (arm64 and AMD64 are other names of these two)."""
    model: str
    features: frozenset[str]
    cpu_part: str
    """Arm: the part number of the first core, such as 0xd08; empty elsewhere."""
    system: str = "Linux"
    """Linux, Darwin or Windows."""
    emulator: str = ""
    """The description of the emulator of this machine; empty for real hardware."""

    @property
    def saturates_int8(self) -> bool:
        """Whether 8-bit weights can saturate: x86 multiplies them in 16 bits unless it has VNNI."""
        return self.architecture == "x86_64" and not self.features & {"avx512_vnni", "avx_vnni"}
