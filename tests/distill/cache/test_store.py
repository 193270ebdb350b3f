"""The cache of teacher outputs: content-addressed, killed and resumed, shared by processes and ranks, limited.

Run as a program, this file is a process that fills a view; see `work`.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.distill.cache.blocks import Grid, file_bytes, open_part
from edgekd.distill.cache.files import cache_folder, cache_limit_bytes, clear_key, list_entries, part_file
from edgekd.distill.cache.store import Cache, fits, open_cache, outputs
from edgekd.errors import ConfigError, InputError, UnavailableError

PARTS = {"teacher": "ab12", "augment": {"flip": True, "crop_padding": 4}, "precision": "fp32"}
COUNT, BLOCK = 1_203, 100
STARTS = list(range(0, COUNT, BLOCK))
NAMES = ("logits", "layer1|attention")
TIMEOUT_S = 120


def expected(k: int, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What the teacher of these tests says; irrational, so that no two values agree by chance."""
    places = indices.astype(np.float64)[:, None]
    feature = np.cos(places * np.arange(1, 25) / (k + 2)).reshape(-1, 2, 3, 4)
    return {
        "logits": np.sin(places * np.arange(1, 6) + k).astype(np.float32),
        "layer1|attention": feature.astype(np.float16),
    }


class Teacher:
    """Remembers the first index of each block it is asked for."""

    def __init__(self, k: int = 0) -> None:
        self.k = k
        self.asked: list[int] = []

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        self.asked.append(int(indices[0]))
        return expected(self.k, indices)


def opened(root: Path, limit_bytes: int = 1_000_000_000, **parts: Any) -> Cache:
    return open_cache(root, PARTS | parts, COUNT, limit_bytes, block=BLOCK)


def filled(root: Path, names: tuple[str, ...] = NAMES, k: int = 0, **parts: Any) -> tuple[list[int], dict[str, Any]]:
    """The blocks that had to be computed, and the values."""
    teacher = Teacher(k)
    with opened(root, **parts) as cache:
        given = outputs(cache, k, names, teacher)
    return teacher.asked, given


def assert_right(given: dict[str, NDArray[Any]], k: int = 0, names: tuple[str, ...] = NAMES) -> None:
    assert tuple(given) == names
    for name, values in given.items():
        wanted = expected(k, np.arange(COUNT))[name]
        assert values.dtype == wanted.dtype
        assert np.array_equal(values, wanted)


def key_folder(root: Path) -> Path:
    (entry,) = list_entries(root)
    return entry.folder


# --- what is kept, and under which key ---


def test_a_view_is_computed_once_then_mapped(tmp_path: Path) -> None:
    asked, given = filled(tmp_path)
    assert asked == STARTS
    assert_right(given)
    assert all(isinstance(values, np.memmap) and not values.flags.writeable for values in given.values())
    asked, given = filled(tmp_path)
    assert asked == []
    assert_right(given)
    asked, given = filled(tmp_path, k=1)
    assert asked == STARTS
    assert_right(given, k=1)


def test_one_file_for_each_view_and_output(tmp_path: Path) -> None:
    filled(tmp_path)
    filled(tmp_path, ("logits",), k=12)
    files = {path.name for path in key_folder(tmp_path).iterdir() if not path.name.startswith(".")}
    npy = {"view-000.logits.npy", "view-000.layer1%7Cattention.npy", "view-012.logits.npy"}
    assert files == {"meta.json", "used", *npy}
    assert not list(tmp_path.rglob("*.part"))
    sizes = {path.name: path.stat().st_size for path in key_folder(tmp_path).glob("*.npy")}
    assert sizes["view-012.logits.npy"] == file_bytes((COUNT, 5), "float32") == LOGITS_BYTES
    assert sizes["view-000.layer1%7Cattention.npy"] == file_bytes((COUNT, 2, 3, 4), np.float16)


def test_an_output_that_comes_later_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    filled(tmp_path, ("logits",))
    logits = key_folder(tmp_path) / "view-000.logits.npy"
    before = logits.stat()
    asked, given = filled(tmp_path)
    assert asked == STARTS
    assert_right(given)
    assert (logits.stat().st_ino, logits.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert filled(tmp_path, ("layer1|attention",))[0] == []


def test_the_key_is_of_what_the_values_depend_on(tmp_path: Path) -> None:
    def key(parts: dict[str, Any], count: int = COUNT, block: int = BLOCK, **shown: str) -> str:
        with open_cache(tmp_path, parts, count, 1, block=block, shown=shown) as cache:
            return cache.key

    same = key(PARTS)
    assert len(same) == 64
    assert key(dict(reversed(PARTS.items()))) == same
    assert key(PARTS, teacher="copy-of-teacher.safetensors") == same
    others = [
        key(PARTS | {"teacher": "ab13"}),
        key(PARTS | {"augment": {"flip": True, "crop_padding": 3}}),
        key(PARTS | {"size": 32}),
        key(PARTS, count=COUNT + 1),
        key(PARTS, block=BLOCK + 1),
    ]
    assert len({same, *others}) == 6
    assert {entry.key for entry in list_entries(tmp_path)} == {same, *others}


def test_what_a_key_was_made_of_can_be_read(tmp_path: Path) -> None:
    with open_cache(tmp_path, PARTS, COUNT, 1, shown={"teacher": "big.onnx", "data": "cifar10"}) as cache:
        meta = json.loads((cache.folder / "meta.json").read_text())
        assert meta["parts"] == PARTS
        assert meta["shown"] == {"teacher": "big.onnx", "data": "cifar10"}
        (cache.folder / "meta.json").write_text("{")  # a disk's fault
        assert list_entries(tmp_path)[0].meta == {}
    with open_cache(tmp_path, PARTS, COUNT, 1) as cache:
        assert list_entries(tmp_path)[0].meta["parts"] == PARTS


def test_values_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    def overflows(indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        values = expected(0, indices)["layer1|attention"].copy()
        values[indices == 217, 1, 2, 3] = np.inf
        return {"layer3": values}

    with opened(tmp_path) as cache, pytest.raises(InputError) as caught:
        outputs(cache, 2, ("layer3",), overflows)
    assert str(caught.value) == (
        "the teacher's layer3 is not finite for example 217 in view 3; check its weights and the normalization, or "
        "name another layer (float16 ends at 65504)"
    )
    assert not list(key_folder(tmp_path).glob("*.npy"))


# --- killed ---


def work(root: str, log: str, hang_at: str, delay_s: str) -> None:
    """Fill view 0 of both outputs, note each block in `log`; wait before the block that begins at `hang_at`."""

    def compute(indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()} {indices[0]}\n")
        time.sleep(float(delay_s))
        if indices[0] == int(hang_at):
            wait_until(Path(f"{log}.go").exists)
        return expected(0, indices)

    with opened(Path(root)) as cache:
        outputs(cache, 0, NAMES, compute)


@contextlib.contextmanager
def worker(root: Path, log: Path, hang_at: int = -1, delay_s: float = 0.0) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, __file__, str(root), str(log), str(hang_at), str(delay_s)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def noted(log: Path) -> list[tuple[int, int]]:
    """Process and first index of each block that was computed."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_killed_half_way_nothing_is_computed_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with worker(tmp_path / "cache", log, hang_at=500) as process:
        wait_until(lambda: (process.pid, 500) in noted(log))
        process.kill()
    assert [start for _, start in noted(log)] == STARTS[:6]
    assert list_entries(tmp_path / "cache")[0].unfinished == 2
    asked, given = filled(tmp_path / "cache")
    assert asked == STARTS[5:]
    assert_right(given)
    filled(tmp_path / "undisturbed")
    for name in ("view-000.logits.npy", "view-000.layer1%7Cattention.npy"):
        contents = [(key_folder(tmp_path / root) / name).read_bytes() for root in ("cache", "undisturbed")]
        assert contents[0] == contents[1]


def test_killed_again_and_again(tmp_path: Path) -> None:
    log, seed = tmp_path / "log", int(os.environ.get("EDGEKD_KILL_SEED", time.time_ns() % 1_000_000))
    moments = random.Random(seed)
    for kills in range(3):
        with worker(tmp_path / "cache", log, delay_s=0.02) as process:
            before = len(noted(log))
            wait_until(lambda: len(noted(log)) > before or process.poll() is not None)  # noqa: B023
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
        print(f"seed {seed}: {len(noted(log))} blocks after {kills + 1} kills")
    asked, given = filled(tmp_path / "cache")
    assert_right(given)
    assert set(STARTS) == {start for _, start in noted(log)} | set(asked), seed
    # Each kill costs at most the block that was being computed.
    assert len(noted(log)) + len(asked) <= len(STARTS) + 3, seed


def test_a_block_counts_once_the_disk_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, 0

    def fails_at_the_fourth(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with opened(tmp_path) as cache:
        monkeypatch.setattr(os, "fsync", fails_at_the_fourth)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            outputs(cache, 0, ("logits",), Teacher())
        monkeypatch.setattr(os, "fsync", real)
    asked, given = filled(tmp_path, ("logits",))
    assert asked == STARTS[3:]
    assert_right(given, names=("logits",))


def test_killed_just_before_the_file_gets_its_name(tmp_path: Path) -> None:
    filled(tmp_path, ("logits",))
    path = key_folder(tmp_path) / "view-000.logits.npy"
    path.rename(path.with_name(f".{path.name}.part"))
    asked, given = filled(tmp_path, ("logits",))
    assert asked == []
    assert_right(given, names=("logits",))


# --- shared ---


def test_of_two_processes_one_computes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with worker(tmp_path / "cache", log, hang_at=300) as first:
        wait_until(lambda: (first.pid, 300) in noted(log))
        with worker(tmp_path / "cache", log) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "teacher: another process computes view 1; waiting for it\n"
            (tmp_path / "log.go").touch()
            assert first.wait(TIMEOUT_S) == second.wait(TIMEOUT_S) == 0
    assert noted(log) == [(first.pid, start) for start in STARTS]


def test_who_waits_goes_on_when_the_other_dies(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with worker(tmp_path / "cache", log, hang_at=300) as first:
        wait_until(lambda: (first.pid, 300) in noted(log))
        with worker(tmp_path / "cache", log) as second:
            assert second.stderr is not None
            assert "waiting for it" in second.stderr.readline()
            first.kill()
            _, said = second.communicate(timeout=TIMEOUT_S)
            assert second.returncode == 0
    assert said == "teacher: view 1 goes on after 3 of 13 blocks\n"
    assert [start for pid, start in noted(log) if pid == second.pid] == STARTS[3:]
    assert_right(filled(tmp_path / "cache")[1])


def in_ranks(roots: list[Path], names: tuple[str, ...] = NAMES) -> tuple[list[Teacher], list[Any]]:
    """What each rank computed, and got: its values or its error."""
    world = len(roots)
    teachers, got = [Teacher() for _ in roots], list[Any](roots)
    barrier = threading.Barrier(world, timeout=TIMEOUT_S)

    def rank_of(rank: int) -> None:
        try:
            with opened(roots[rank]) as cache:
                got[rank] = outputs(cache, 0, names, teachers[rank], rank, world, barrier.wait)
        except Exception as error:
            got[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=rank_of, args=[rank]) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return teachers, got


@pytest.mark.parametrize("world", [2, 3, 16])
def test_ranks_share_the_work(tmp_path: Path, world: int) -> None:
    teachers, got = in_ranks([tmp_path] * world)
    for given in got:
        assert_right(given)
    asked = [start for teacher in teachers for start in teacher.asked]
    assert asked == STARTS  # each a run of its own, in the ranks' order
    assert max(len(teacher.asked) for teacher in teachers) == -(-len(STARTS) // world)
    assert not any(teacher.asked for teacher in in_ranks([tmp_path] * world)[0])


def test_a_file_that_another_rank_is_creating_is_not_there_yet(tmp_path: Path) -> None:
    path, grid = tmp_path / "logits.npy", Grid(count=10, size=4)
    part_file(path).touch()
    with pytest.raises(FileNotFoundError, match=r"nothing is in it yet"):
        open_part(path, grid)
    open_part(path, grid, like=np.zeros((1, 5), np.float32)).close()
    part = open_part(path, grid)
    assert (part.row_bytes, [part.has(block) for block in range(grid.blocks)]) == (20, [False] * 3)
    part.close()


def test_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with worker(tmp_path / "cache", log, hang_at=900) as process:
        wait_until(lambda: (process.pid, 900) in noted(log))
    teachers, got = in_ranks([tmp_path / "cache"] * 2)
    assert [teacher.asked for teacher in teachers] == [[], STARTS[9:]]
    assert_right(got[0])
    assert_right(got[1])


def test_ranks_that_see_different_folders(tmp_path: Path) -> None:
    _, got = in_ranks([tmp_path / "here", tmp_path / "there"])
    assert isinstance(got[0], ConfigError)
    assert str(got[0]).startswith(
        f"{tmp_path / 'here'}: blocks of other ranks are missing in it; set EDGEKD_CACHE_HOME"
    )


# --- limits ---


LOGITS_BYTES = 128 + COUNT * 5 * 4


def keys_of(root: Path) -> list[str]:
    """The teachers whose outputs are there, the last used first."""
    return [entry.meta["parts"]["teacher"] for entry in list_entries(root)]


def three(root: Path) -> None:
    """Outputs of teachers a, b and c; b was not used for longest."""
    for teacher in "abc":
        filled(root, ("logits",), teacher=teacher)
    for entry in list_entries(root):
        used_s = {"a": 2_000_000, "b": 1_000_000, "c": 3_000_000}[entry.meta["parts"]["teacher"]]
        os.utime(entry.folder / "used", (used_s, used_s))


def test_the_least_recently_used_go_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three(tmp_path)
    with opened(tmp_path, limit_bytes=int(3.5 * LOGITS_BYTES), teacher="d") as cache:
        assert_right(outputs(cache, 0, ("logits",), Teacher()), names=("logits",))
        assert keys_of(tmp_path) == ["d", "c", "a"]
        assert_right(outputs(cache, 1, ("logits",), Teacher(1)), 1, ("logits",))
        assert keys_of(tmp_path) == ["d", "c"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("to make room" in line and "24.2 kB, last used" in line for line in said)


def test_reading_is_using(tmp_path: Path) -> None:
    filled(tmp_path, ("logits",), teacher="b")
    with opened(tmp_path, teacher="b") as cache:
        os.utime(cache.folder / "used", (1_000_000, 1_000_000))  # it was opened long ago
        filled(tmp_path, ("logits",), teacher="c")
        assert keys_of(tmp_path) == ["c", "b"]
        outputs(cache, 0, ("logits",), Teacher())
        assert keys_of(tmp_path) == ["b", "c"]


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    three(tmp_path)
    with opened(tmp_path, teacher="b"), opened(tmp_path, limit_bytes=2 * LOGITS_BYTES, teacher="d") as cache:
        assert fits(cache, {"logits": LOGITS_BYTES})
        assert sorted(keys_of(tmp_path)) == ["b", "d"]
        (in_use,) = (entry.key for entry in list_entries(tmp_path) if entry.meta["parts"]["teacher"] == "b")
        assert not clear_key(tmp_path, in_use)
        assert not fits(cache, {"logits": LOGITS_BYTES + 1})
    assert clear_key(tmp_path, in_use)
    assert keys_of(tmp_path) == ["d"]


def test_what_does_not_fit_is_told_and_removes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three(tmp_path)
    with opened(tmp_path, limit_bytes=2 * LOGITS_BYTES, teacher="d") as cache:
        assert not fits(cache, {"logits": LOGITS_BYTES, "layer3": 1_500_000})
        message = (
            f"{tmp_path}: 1.5 MB of teacher outputs do not fit in the cache of 48.4 kB; raise EDGEKD_CACHE_LIMIT_GB, "
            "or ask for fewer views or layers"
        )
        assert capsys.readouterr().err == f"cache: {message}\n"
        teacher = Teacher()
        with pytest.raises(ConfigError, match="do not fit in the cache"):
            outputs(cache, 0, ("layer1|attention",), teacher)
        assert teacher.asked == [0]  # the first block tells the size
    assert keys_of(tmp_path) == ["d", "c", "a", "b"]


def test_two_that_fit_alone_but_not_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a training has planned counts, though nothing of it is written yet; of one that has ended it does not."""
    with opened(tmp_path, limit_bytes=100_000, teacher="a") as first:
        assert fits(first, {"logits": 40_000, "layer3": 20_000})
        with opened(tmp_path, limit_bytes=100_000, teacher="b") as second:
            assert not fits(second, {"logits": 50_000})
            assert "of which others that run hold 60.0 kB" in capsys.readouterr().err
            assert fits(second, {"logits": 40_000})
    with opened(tmp_path, teacher="a"), opened(tmp_path, limit_bytes=100_000, teacher="b") as second:
        assert fits(second, {"logits": 100_000})


def test_what_the_key_holds_already_counts_once(tmp_path: Path) -> None:
    filled(tmp_path, ("logits",))
    with opened(tmp_path, limit_bytes=LOGITS_BYTES + 1_000) as cache:
        assert fits(cache, {"logits": LOGITS_BYTES, "layer3": 1_000})
        assert not fits(cache, {"layer3": 1_001})


def test_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    three(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with opened(tmp_path, teacher="d") as cache:
        assert not fits(cache, {"logits": 3 * LOGITS_BYTES + 1_001})
        assert capsys.readouterr().err == (
            f"cache: {tmp_path}: 73.6 kB of teacher outputs do not fit on its disk, 1.0 kB are free; "
            "set EDGEKD_CACHE_HOME to a larger one\n"
        )
        assert fits(cache, {"logits": LOGITS_BYTES + 1_001})
        assert keys_of(tmp_path) == ["d", "c"]


def test_a_full_disk_keeps_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwrite, 0

    def full(descriptor: int, content: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content, offset)

    with opened(tmp_path) as cache:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(UnavailableError, match=r"no space left on the device for view 1 .*EDGEKD_CACHE_HOME"):
            outputs(cache, 0, NAMES, Teacher())
        monkeypatch.setattr(os, "pwrite", real)
        assert not list(cache.folder.rglob("*view-*.npy*"))
    asked, given = filled(tmp_path)
    assert asked == STARTS
    assert_right(given)


def test_a_disk_that_takes_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: real(descriptor, content[:200], offset))
    assert_right(filled(tmp_path)[1])


# --- damage ---


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 7), "has 24181 bytes, 24188 are wanted"),
        (lambda path: os.truncate(path, 50), "its header is broken"),
        (lambda path: os.truncate(path, 0), "its header is broken"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': nonsense" + bytes(9_000)), "header is broken"),
        (lambda path: np.save(path, np.zeros((7, 5), np.float32)), "holds 7 examples, 1203 are wanted"),
        (lambda path: np.save(path, np.asfortranarray(np.zeros((COUNT, 5)))), "its header is another's"),
    ],
)
def test_a_damaged_file_is_told_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], what: str
) -> None:
    filled(tmp_path)
    path = key_folder(tmp_path) / "view-000.logits.npy"
    spoil(path)
    asked, given = filled(tmp_path)
    assert asked == STARTS
    assert_right(given)
    said = capsys.readouterr().err
    assert said.startswith(f"cache: {path}: ")
    assert said.endswith(f"{what}; computed again\n")


def test_a_damaged_unfinished_file_is_begun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, ("logits",))
    path = key_folder(tmp_path) / "view-000.logits.npy"
    part = path.with_name(f".{path.name}.part")
    path.rename(part)
    os.truncate(part, 300)
    asked, given = filled(tmp_path, ("logits",))
    assert asked == STARTS
    assert_right(given, names=("logits",))
    assert f"{part}: has 300 bytes, 24188 are wanted; computed again" in capsys.readouterr().err


def test_what_a_killed_removal_left_goes(tmp_path: Path) -> None:
    filled(tmp_path)
    key_folder(tmp_path).rename(tmp_path / f".removed-{key_folder(tmp_path).name}")
    assert list_entries(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# --- where, and how much ---


def test_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_CACHE_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "mine" / "teacher"
    monkeypatch.setenv("EDGEKD_CACHE_HOME", "~/kept")
    assert cache_folder() == tmp_path / "home" / "kept" / "teacher"
    monkeypatch.delenv("EDGEKD_CACHE_HOME")
    assert cache_folder() == tmp_path / "xdg" / "edgekd" / "teacher"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "edgekd" / "teacher"
    assert list_entries(cache_folder()) == []
    assert not (tmp_path / "home").exists()


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKD_CACHE_LIMIT_GB", raising=False)
    assert cache_limit_bytes() == 20_000_000_000
    monkeypatch.setenv("EDGEKD_CACHE_LIMIT_GB", "0.5")
    assert cache_limit_bytes() == 500_000_000


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "20 GB", "much"])
def test_a_limit_that_is_no_positive_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EDGEKD_CACHE_LIMIT_GB", text)
    with pytest.raises(ConfigError) as caught:
        cache_limit_bytes()
    assert str(caught.value) == (
        f"EDGEKD_CACHE_LIMIT_GB: got {text!r}; it should be a positive number of GB, such as 20"
    )


if __name__ == "__main__":
    work(*sys.argv[1:])
