"""Examples for an ONNX model that edgekd did not train: ready arrays of an .npz file, or images of a folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.errors import InputError, one_line, shown
from edgekd.tasks.classification import labels_problem

if TYPE_CHECKING:
    from edgekd.card import Data

__all__ = ["Ready", "model_inputs", "ready_images", "ready_npz"]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Examples as the model takes them."""

    inputs: Mapping[str, NDArray[Any]]
    """An array for each input of the model, by its name; the first axis counts the examples."""
    labels: NDArray[Any] | None
    """Class numbers (n,), or what else is right for each example, or None if that is not known."""
    about: str
    """Where they are from, in words."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def part(self, indices: NDArray[np.int64]) -> "Ready":
        """The examples at `indices`."""
        labels = None if self.labels is None else self.labels[indices]
        return Ready(inputs={n: a[indices] for n, a in self.inputs.items()}, labels=labels, about=self.about)


def model_inputs(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The types of the model's inputs by name, without the weights that old files list among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value.type.tensor_type for value in model.graph.input if value.name not in weights}


def ready_npz(path: Path, model: onnx.ModelProto, problem_of: Callable[[NDArray[Any]], str] = labels_problem) -> Ready:
    """Read the array `inputs`, or one array for each input of the model, and perhaps `labels`, from an .npz file.
    `problem_of` describes why an array cannot be labels; it is a task's `targets_problem`.

    Raises InputError if arrays are missing, or if their types or numbers do not fit.
    """
    wanted = model_inputs(model)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile may raise any exception for a damaged file
        raise InputError(f"{path}: cannot be read as .npz: {one_line(error)}") from error
    labels = arrays.pop("labels", None)
    if set(arrays) == {"inputs"} and len(wanted) == 1:
        arrays = {next(iter(wanted)): arrays["inputs"]}
    if set(arrays) != set(wanted):
        raise InputError(
            f"{path}: holds the arrays {_listed(arrays)}; it should hold `inputs`, or one for each input of the model "
            f"({_listed(wanted)}), and perhaps `labels`"
        )
    for name, array in arrays.items():
        kind = _dtype(name, wanted[name])
        if array.dtype != kind:
            raise InputError(f"{path}: {name} is {array.dtype}, and the model takes {kind}; convert it")
        if problem := _shape_problem(array.shape, wanted[name]):
            raise InputError(f"{path}: {name} {problem}")
    counts = {len(array) if array.ndim else 0 for array in (*arrays.values(), *([] if labels is None else [labels]))}
    if len(counts) != 1:
        raise InputError(f"{path}: its arrays hold different numbers of examples ({_listed(map(str, counts))})")
    if labels is not None and (problem := problem_of(labels)):
        raise InputError(f"{path}: {problem}")
    if labels is not None and labels.ndim == 1:
        labels = labels.astype(np.int64)
    return Ready(inputs=arrays, labels=labels, about=str(path))


def _shape_problem(shape: tuple[int, ...], wanted: onnx.TypeProto.Tensor) -> str:
    """Why arrays of this shape cannot be fed, or nothing. Any number of examples can, because each is fed by itself."""
    if not wanted.HasField("shape"):
        return ""
    sizes = [dim.dim_value or dim.dim_param or "?" for dim in wanted.shape.dim]
    fixed = [size if isinstance(size, int) else own for size, own in zip(sizes[1:], shape[1:], strict=False)]
    if len(shape) == len(sizes) and list(shape[1:]) == fixed:
        return ""
    return f"has the shape {'×'.join(map(str, shape))}, and the model takes {'×'.join(map(str, sizes))}"


def ready_images(
    folder: Path,
    model: onnx.ModelProto,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | None,
    most: int,
) -> Ready:
    """Read up to `most` images of a folder, spread evenly, as the model's single input takes them.

    A model with a uint8 input gets pixels 0 to 255, one with a float input (pixel / 255 − mean) / std. Channels come
    first unless only the last axis is 1 or 3. Folders inside are classes in the order of their names, in `test` or
    `val` where there are such folders. Without folders the images have no labels.
    """
    from edgekd.data.images import decode, read_file

    name, kind, shape = _image_input(model)
    last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    channels, sides = (shape[3], shape[1:3]) if last else (shape[1], shape[2:4])
    side = size or sides[0]
    if channels not in (1, 3) or not side or (sides[0] or side) != (sides[1] or side):
        raise InputError(
            f"--data {folder}: images of 1 or 3 channels and equal sides are read, and the input {name!r} is {shape}; "
            "give --size where the sizes are free, or ready inputs as .npz"
        )
    files, labels, classes = _files(folder)
    chosen = np.linspace(0, len(files) - 1, min(most, len(files))).astype(np.int64)
    data = _as_data(side, channels, classes)
    pixels: NDArray[Any] = np.stack([decode(read_file(files[i]), data, str(files[i])) for i in chosen])
    if kind != np.uint8:
        pixels = _normalized(pixels, mean, std)
    images = np.ascontiguousarray(pixels if last else pixels.transpose(0, 3, 1, 2))
    known = None if labels is None else labels[chosen]
    return Ready(inputs={name: images}, labels=known, about=f"the images in {folder}")


def _normalized(pixels: NDArray[Any], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    channels = pixels.shape[-1]
    for option, values in (("--mean", mean), ("--std", std)):
        if values and len(values) != channels:
            raise InputError(f"{option}: got {len(values)} numbers; the model takes {channels} channels")
    if any(value <= 0 for value in std):
        raise InputError("--std: should be numbers above 0")
    shift, scale = np.array(mean or [0.0] * channels), np.array(std or [1.0] * channels)
    return np.asarray((pixels / 255 - shift) / scale, np.float32)


def _dtype(name: str, kind: onnx.TypeProto.Tensor) -> np.dtype[Any]:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    except KeyError:
        raise InputError(
            f"the model's input {shown(name)} is no tensor, or of a type that onnx does not know"
        ) from None


def _image_input(model: onnx.ModelProto) -> tuple[str, np.dtype[Any], list[int]]:
    wanted = model_inputs(model)
    name, kind = next(iter(wanted.items()), ("", onnx.TypeProto.Tensor(elem_type=onnx.TensorProto.FLOAT)))
    shape = [dim.dim_value for dim in kind.shape.dim]
    known = _dtype(name, kind)
    if len(wanted) != 1 or len(shape) != 4 or known not in (np.float32, np.uint8):
        raise InputError(
            "--data: a folder of images is for a model with one float or uint8 input of four axes; give "
            "ready inputs as .npz"
        )
    return name, known, shape


def _files(folder: Path) -> tuple[list[Path], NDArray[np.int64] | None, list[str]]:
    from edgekd.data.folders import class_files

    root = next((folder / part for part in ("test", "val", "validation") if (folder / part).is_dir()), folder)
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) > 1:
        files, labels = class_files(root, classes)
        return files, np.array(labels, np.int64), classes
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise InputError(f"--data {folder}: holds no images ({', '.join(IMAGE_ENDINGS)}) and no class folders")
    return files, None, ["", " "]


def _as_data(size: int, channels: int, classes: list[str]) -> "Data":
    from edgekd.card import Data

    count: Any = channels  # 1 or 3
    numbers = (0.0,) * channels, (1.0,) * channels
    names = tuple(classes) if len(classes) > 1 and classes[0] else ("a", "b")
    return Data(source="image-folder", size=size, channels=count, classes=names, mean=numbers[0], std=numbers[1])


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
