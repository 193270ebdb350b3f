"""Weights files: what is read, what is refused, and that nothing in them runs."""

import argparse
import os
import pathlib
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from edgekd.errors import InputError
from edgekd.nets.weights import load_file, load_into, read_state, save_state


def net(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, classes))


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


WRITERS: dict[str, Callable[[dict[str, torch.Tensor], Path], None]] = {
    "safetensors": lambda state, path: safetensors.torch.save_file(state, path),
    "state dict": lambda state, path: torch.save(state, path),
    "old format": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "state_dict inside": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "model inside": lambda state, path: torch.save({"model": state, "best": 0.5}, path),
    "DataParallel": lambda state, path: torch.save({f"module.{name}": value for name, value in state.items()}, path),
    "DataParallel inside": lambda state, path: torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}}, path
    ),
}


@pytest.mark.parametrize("how", WRITERS)
def test_weights_as_they_are_usually_written(how: str, tmp_path: Path) -> None:
    state = net().state_dict()
    WRITERS[how](state, tmp_path / "weights.bin")
    read = read_state(tmp_path / "weights.bin")
    assert equal(read, state)
    other = net(seed=1)
    load_into(other, read, tmp_path / "weights.bin")
    assert equal(other.state_dict(), state)


def test_a_safetensors_header_that_begins_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for length in range(200):
        safetensors.torch.save_file({"a": torch.arange(3)}, path, {"note": "x" * length})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert equal(read_state(path), {"a": torch.arange(3)})


def test_tied_weights_are_kept_under_both_names(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        return net

    one, other = tied(), tied()
    save_state(one, tmp_path / "w.safetensors", {})
    load_into(other, read_state(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")
    assert torch.equal(other.state_dict()["0.weight"], one.state_dict()["0.weight"])
    assert other.state_dict()["1.weight"].data_ptr() == other.state_dict()["0.weight"].data_ptr()


def test_reading_leaves_no_file_open(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    save_state(net(), tmp_path / "w.safetensors", {})
    read_state(tmp_path / "w.safetensors")
    assert [str(warning.message) for warning in recwarn] == []


def test_saving_is_deterministic_and_leaves_one_file(tmp_path: Path) -> None:
    contents = set()
    for number in range(5):
        path = tmp_path / f"{number}" / "w.safetensors"
        save_state(net(), path, {"card": "digits"})
        contents.add(path.read_bytes())
        assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]
    assert len(contents) == 1
    with safetensors.safe_open(tmp_path / "0" / "w.safetensors", "pt") as file:
        assert file.metadata() == {"card": "digits"}
    assert equal(read_state(tmp_path / "0" / "w.safetensors"), net().state_dict())


def test_channels_last_weights_are_saved_like_others(tmp_path: Path) -> None:
    save_state(net(), tmp_path / "a.safetensors", {})
    save_state(net().to(memory_format=torch.channels_last), tmp_path / "b.safetensors", {})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"w\xff.safetensors")
    save_state(net(), path, {})
    assert equal(read_state(path), net().state_dict())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_state(tmp_path / "gone.pth")
    assert str(caught.value) == f"{tmp_path / 'gone.pth'}: no such weights file"


@pytest.mark.parametrize("how", ["safetensors", "state dict", "old format"])
def test_a_truncated_file_is_named(how: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    WRITERS[how](net().state_dict(), path)
    content = path.read_bytes()
    for size in (0, 3, 20, 100, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"weights\.bin: "):
            read_state(path)


def test_damaged_bytes_are_never_more_than_an_input_error(tmp_path: Path) -> None:
    path, rng, refused = tmp_path / "weights.bin", random.Random(0), 0
    WRITERS["old format"](net().state_dict(), path)
    content = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(1, 400)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state(path)
        except InputError:
            refused += 1
    assert refused > 75


def test_a_zip_archive_that_pythons_zipfile_refuses_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(net().state_dict(), path)
    whole = path.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    path.write_bytes(whole[:end] + b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + whole[end:])
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(path)
    assert equal(read_state(path), net().state_dict())


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(random.Random(0).randbytes(2_000))
    with pytest.raises(InputError, match=r"neither a whole safetensors file nor a PyTorch state dict"):
        read_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights")
    with pytest.raises(InputError, match=r"not a readable PyTorch file"):
        read_state(path)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return _spring, (str(self.path),)


def _spring(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("how", ["state dict", "old format", "plain pickle"])
def test_code_in_a_pickle_does_not_run(how: str, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "weights.pth"
    content = {"weight": _Trap(sprung)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        WRITERS[how](content, path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"weights\.pth: is a pickle that holds more than tensors; it was not loaded"):
        read_state(path)
    assert not sprung.exists()
    # The trap works where one is careless: so the test would see it.
    torch.load(path, weights_only=False) if how != "plain pickle" else pickle.loads(path.read_bytes())
    assert sprung.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "net.pth")
    with pytest.raises(
        InputError, match=r"Save the state dict: torch\.save\(model\.state_dict\(\), …\) or safetensors$"
    ):
        read_state(tmp_path / "net.pth")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3)], ids=["list", "numbers", "tensor"])
def test_what_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: holds no state dict \(names and tensors\): it (is|has) .+"):
        read_state(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")  # torch warns that it will drop quantized and nested tensors
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({0: torch.zeros(3)}, "holds no state dict (names and tensors): it has 0, a int, with a Tensor"),
        ({"a": {0: torch.zeros(3)}}, "holds no state dict (names and tensors): it has 'a', a str, with a dict"),
        ({"a" * 1000: 1}, f"holds no state dict (names and tensors): it has '{'a' * 58}…, a str, with a int"),
        ({"a": torch.eye(3).to_sparse()}, "a is sparse (torch.sparse_coo); save the state dict with dense tensors of"),
        ({"a": torch.zeros(3, device="meta")}, "a is on the device 'meta', where tensors have no values; save the"),
        ("quantized", "a is quantized; save the state dict with dense tensors of numbers"),
    ],
)
def test_what_holds_no_plain_numbers_is_refused(content: object, said: str, tmp_path: Path) -> None:
    if content == "quantized":
        content = {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        read_state(tmp_path / "w.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'w.pth'}: {said}")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_not_converted_silently(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) if name == "0.weight" else tensor for name, tensor in net().state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_into(net(), state, tmp_path / "w.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pth'}: weights of another architecture: 1 of another kind of number "
        f"(0.weight is {str(dtype).removeprefix('torch.')}, wanted float32)"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) if "weight" in name else tensor for name, tensor in net().state_dict().items()}
    load_into(net(), state, tmp_path / "w.pth")


@pytest.mark.parametrize("how", ["safetensors", "state dict", "old format"])
def test_a_damaged_file_is_loaded_or_refused_on_one_line(how: str, tmp_path: Path) -> None:
    path, draw, refused = tmp_path / "weights.bin", random.Random(0), 0
    WRITERS[how](net().state_dict(), path)
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged) if draw.random() < 0.5 else 400)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            load_into(net(), read_state(path), path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
    assert refused > 20


def test_weights_of_another_architecture_name_the_keys(tmp_path: Path) -> None:
    state = net(classes=4).state_dict()
    state["5.weight"] = state.pop("1.bias")
    with pytest.raises(InputError) as caught:
        load_into(net(), state, tmp_path / "w.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pth'}: weights of another architecture: 1 missing (1.bias); "
        "1 not in the network (5.weight); "
        "2 of another size (3.weight is (4, 72), wanted (3, 72), 3.bias is (4,), wanted (3,))"
    )


def test_a_refused_file_leaves_the_network_alone(tmp_path: Path) -> None:
    target = net(seed=1)
    state = net().state_dict()
    del state["0.bias"]
    with pytest.raises(InputError, match=r"1 missing \(0\.bias\)"):
        load_into(target, state, tmp_path / "w.pth")
    assert equal(target.state_dict(), net(seed=1).state_dict())


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    target = net(seed=1)
    load_into(target, state, tmp_path / "w.pth")
    assert torch.equal(target.state_dict()["0.weight"], state["0.weight"])


# --- checkpoints of training scripts ---


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def lightning(state: dict[str, torch.Tensor]) -> dict[str, object]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(3)},
        "loops": {},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1},
    }


CHECKPOINTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
    "ema": lambda state: {"ema": state, "updates": 100},
    "ema_state_dict": lambda state: {"ema_state_dict": state, "epoch": 1},
    "ema beside another network": lambda state: {"model": {"other.weight": torch.ones(2)}, "ema": state},
    "ema inside": lambda state: {"ema": {"module": state}},
    "Lightning": lightning,
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled in DataParallel": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "a wrapper": lambda state: prefixed(state, "net."),
    "averaged": lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(3)},
    "options": lambda state: {
        "model": state,
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x"), best=np.float64(1)),
    },
    "extra state": lambda state: state | {"0._extra_state": None},
}


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_checkpoints_as_training_scripts_write_them(how: str, tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(CHECKPOINTS[how](dict(state)), tmp_path / "w.pt")
    other = net(seed=1)
    load_file(other, tmp_path / "w.pt")
    assert equal(other.state_dict(), state)


def test_a_part_that_was_compiled(tmp_path: Path) -> None:
    state = nn.Sequential(net()).state_dict()
    torch.save({name.replace("0.", "0._orig_mod.", 1): value for name, value in state.items()}, tmp_path / "w.pt")
    other = nn.Sequential(net(seed=1))
    load_file(other, tmp_path / "w.pt")
    assert equal(other.state_dict(), state)


def test_prefixes_of_the_network_itself_stay(tmp_path: Path) -> None:
    one, other = (nn.ModuleDict({"model": net(seed)}) for seed in (0, 1))
    torch.save(one.state_dict(), tmp_path / "w.pt")
    load_file(other, tmp_path / "w.pt")
    assert equal(other.state_dict(), one.state_dict())


def test_a_mismatch_says_what_was_tried(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["0.bias"]
    state["5.weight"] = torch.ones(1)
    torch.save({"state_dict": prefixed(state, "module."), "ema": {"a": torch.ones(1)}}, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        load_file(net(), tmp_path / "w.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pt'}: weights of another architecture: 1 missing (0.bias); 1 not in the network (5.weight); "
        "tried: state dicts state_dict, ema; names without module."
    )
