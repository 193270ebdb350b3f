"""`edgekd cache`, as a user sees it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekd.distill.cache.files import cache_folder, list_entries
from edgekd.distill.cache.store import open_cache, outputs

Cli = Callable[..., Any]


def keep(teacher: str, views: int = 2, days: float = 0.0) -> str:
    """Outputs of a teacher, last used some days ago; returns the key."""
    shown = {"teacher": f"/far/{teacher}.safetensors", "data": "digits"}

    def compute(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": np.zeros((len(indices), 10), np.float32), "layer3": np.zeros((len(indices), 4), np.float16)}

    parts = {"teacher": {"sha256": teacher}, "seed": 3}
    with open_cache(cache_folder(), parts, 700, 10**9, shown=shown) as cache:
        for k in range(views):
            outputs(cache, k, ("logits", "layer3") if k == 0 else ("logits",), compute)
        os.utime(cache.folder / "used", (time.time() - days * 86_400,) * 2)
        return cache.key


def test_nothing_is_kept(cli: Cli) -> None:
    for arguments, said in (([], "0 B of at most 20.00 GB (EDGEKD_CACHE_LIMIT_GB)"), (["--clear"], "holds nothing")):
        done = cli("cache", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{cache_folder()}: {said}\n", "")
    assert not cache_folder().exists()


def test_what_is_kept_is_listed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_CACHE_LIMIT_GB", "0.5")
    old, new = keep("resnet56", days=3.1), keep("vit", views=1)
    done = cli("cache")
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == ["Teacher", "outputs"]
    assert lines[1] == ["key", "teacher", "data", "views", "outputs", "size", "last", "used"]
    assert " ".join(lines[3]) == f"{new[:8]} vit.safetensors digits 1 layer3, logits 33.9 kB just now"
    assert " ".join(lines[4]) == f"{old[:8]} resnet56.safetensors digits 2 layer3 (1), logits 62.0 kB 3 days ago"
    assert " ".join(lines[5]) == f"{cache_folder()}: 95.8 kB of at most 500.0 MB (EDGEKD_CACHE_LIMIT_GB)"


def test_one_key_is_shown_with_what_it_was_made_of(cli: Cli) -> None:
    kept, other = keep("resnet56"), keep("vit")
    part = next(cache_folder().glob(f"{kept}/view-001*"))
    part.rename(part.with_name(f".{part.name}.part"))
    done = cli("cache", kept[:5].upper())
    assert other[:8] not in done.stdout
    assert "layer3, logits, 1 unfinished" in done.stdout
    assert f"{cache_folder() / kept}\n  teacher.sha256 = resnet56\n  seed = 3\n" in done.stdout


def test_a_damaged_description_is_no_error(cli: Cli) -> None:
    kept = keep("resnet56")
    for content in ("{", "[]", '{"parts": 3, "shown": 4}'):
        (cache_folder() / kept / "meta.json").write_text(content)
        done = cli("cache", kept)
        assert done.returncode == 0, done.stderr
        assert [line.split()[:3] for line in done.stdout.splitlines()][3] == [kept[:8], "?", "?"]


def test_all_is_removed_but_what_is_in_use(cli: Cli) -> None:
    gone, used = keep("resnet56"), keep("vit")
    parts = {"teacher": {"sha256": "vit"}, "seed": 3}
    with open_cache(cache_folder(), parts, 700, 10**9) as cache:
        assert cache.key == used
        assert " in use " in cli("cache").stdout
        done = cli("cache", "--clear")
        assert (done.returncode, done.stdout) == (0, f"{gone[:8]}: removed, 62.0 kB\n")
        assert done.stderr == f"{used[:8]}: kept, it is in use by a training\n"
        done = cli("cache", "--clear", used[:8])
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"edgekd: {used[:8]}: is in use by a training; wait for it, or stop it\n"
        assert (cache.folder / "view-000.logits.npy").exists()
    assert cli("cache", "--clear", used[:8]).stdout == f"{used[:8]}: removed, 62.0 kB\n"
    assert list_entries(cache_folder()) == []
    assert [path.name for path in cache_folder().iterdir()] == [".lock"]


def test_one_is_removed(cli: Cli) -> None:
    kept, gone = keep("resnet56"), keep("vit")
    assert cli("cache", gone, "--clear").returncode == 0
    assert [entry.key for entry in list_entries(cache_folder())] == [kept]


def test_keys_that_name_none_or_several(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [keep(str(number), views=0) for number in range(17)]
    first = next(key[0] for key in keys if sum(other[0] == key[0] for other in keys) > 1)  # of 17, two begin alike
    alike = sum(key[0] == first for key in keys)
    wrong = keys[0][:7] + ("0" if keys[0][7] != "0" else "1")
    for arguments, words in (
        ([wrong], f"cache: no key {wrong!r}; did you mean {keys[0][:8]!r}"),
        ([""], "cache: no key ''"),
        ([first], f"cache: {first!r} begins {alike} keys: "),
    ):
        for option in ([], ["--clear"]):
            done = cli("cache", *arguments, *option)
            assert done.returncode == 2
            assert done.stderr.startswith(f"edgekd: {words}"), done.stderr
    assert len(list_entries(cache_folder())) == 17
    monkeypatch.setenv("EDGEKD_CACHE_LIMIT_GB", "none")
    done = cli("cache")
    assert (done.returncode, done.stderr) == (
        2,
        "edgekd: EDGEKD_CACHE_LIMIT_GB: got 'none'; it should be a positive number of GB, such as 20\n",
    )


def test_it_needs_neither_numpy_nor_torch() -> None:
    keep("vit")
    code = (
        "import sys; sys.modules.update(numpy=None, torch=None); sys.argv = ['edgekd', 'cache'];"
        "from edgekd.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vit.safetensors" in done.stdout
