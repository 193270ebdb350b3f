"""What a model that takes sequences says of them in its metadata: the length to time, and what pads shorter ones."""

from functools import lru_cache
from pathlib import Path

__all__ = ["sequence_of"]

KEYS = ("sequence_length", "padding")
"""Keys of an ONNX file's metadata; edgekd writes them into models for text, and anybody may into theirs."""


def sequence_of(model: Path) -> dict[str, int]:
    """`sequence_length` and `padding` as the file's metadata has them, whole numbers; empty for other models."""
    try:
        state = model.stat()
    except OSError:
        return {}  # whoever loads it says what is wrong
    return dict(_read(model, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=64)
def _read(model: Path, changed: int, size: int) -> tuple[tuple[str, int], ...]:
    """Kept, for each of many workers asks; of the file as it was changed last."""
    import onnx

    try:
        found = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
        values = {key: int(found[key]) for key in KEYS if key in found}
    except Exception:  # protobuf's errors have no common base; the runtime says what is wrong with the file
        return ()
    return tuple(values.items()) if values.get("sequence_length", 0) > 0 else ()
