"""What several tests share."""

import dataclasses
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Networks this small gain nothing from threads, and on a busy machine two of them wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from edgekd.bench.records import Effort, Plan, Record
from edgekd.check.asked import JobOptions
from edgekd.cli.main import main
from edgekd.cluster import SETTINGS
from edgekd.devices.device import OnProgress, Site
from edgekd.devices.local import Local
from edgekd.machine import Machine
from edgekd.target import Target

pytest_plugins = "pytester"
"""For tests/check/test_pytest_plugin.py; pytest takes it from here alone."""

LONGEST = (
    "test_distributed.py",
    "test_resume.py",
    "test_real_data.py",
    "test_detection_pipeline.py",
    "test_pipeline.py",
    "test_compressed_pipeline.py",
    "test_ssh.py",
    "test_searching.py",
    "test_keyword_pipeline.py",
    "test_translation_pipeline.py",
)
"""The files that take more than a minute, the longest first. They begin first, so that no process is left with one of
them when all others are done."""

_NUMBERS = itertools.count()

QUICK = Effort(processes=2, warmup_s=0.05, min_calls=50, max_calls=100, max_s=0.05)
"""100 calls in two processes: enough for a p95, too few for a verdict anybody should trust."""

TINY_CARD = """
title = "Digits, as small and short as it gets"

[data]
source = "digits"
size = 8
channels = 1
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
mean = [0.3055]
std = [0.3760]
validation_fraction = 0.15

[augment]
crop_padding = 1

[teacher]
family = "convnet"
shape = { channels = [16, 32], hidden = 32 }

[teacher.training]
epochs = 8
batch_size = 64
learning_rate = 0.1
warmup_epochs = 0.5

[student]
family = "convnet"

[student.knobs]
channels = [[8, 8], [8, 16]]
hidden = [16]

[recipe]
epochs = 12
batch_size = 32
learning_rate = 0.1
warmup_epochs = 0.5
views = 2

[budget]
size_kb = 60
min_accuracy = 0.5
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; pytest-xdist is told to keep the order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test or fixture reads or fills the user's cache of teacher outputs."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKD_CACHE_HOME", str(folder / "fixtures"))
        yield folder


@pytest.fixture(scope="session")
def discs() -> Any:
    """The module `mask_data`: a small folder of images and masks, and its card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        return importlib.import_module("mask_data")


@pytest.fixture(scope="session")
def things() -> Any:
    """The module `box_data`: a small folder of images with boxes, and its card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        return importlib.import_module("box_data")


@pytest.fixture(autouse=True)
def own_cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor that of another test."""
    monkeypatch.setenv("EDGEKD_CACHE_HOME", str(caches / str(next(_NUMBERS))))


@pytest.fixture(autouse=True)
def no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run tells does not depend on whether an emulated board is installed; tests that want one say so."""
    monkeypatch.setenv("EDGEKD_DEVICE", "local")


@pytest.fixture(autouse=True)
def own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width of the terminal in which the tests run changes no table."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def tiny_card(tmp_path: Path) -> Path:
    """A card that trains in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_CARD, encoding="utf-8")
    return path


Answer = Callable[[Plan, Path, Target, float, OnProgress | None], Record]


@dataclass
class FakeDevice:
    """A device that says of itself what a test gives it. Its workers run on this machine, or `answer` replaces them."""

    machine: Machine
    answer: Answer = Local().run
    free: int | None = None
    closed: bool = False

    def facts(self) -> Machine:
        return self.machine

    def free_memory(self) -> int | None:
        return self.free

    def require(self, target: Target) -> None:
        Local().require(target)

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        return self.answer(plan, model, target, timeout_s, on_progress)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def place() -> Callable[..., Site]:
    """`place(target)` is the target on a fake device that it describes; `machine` makes it another one, and further
    values are the FakeDevice's."""

    def on(target: Target, machine: Machine | None = None, **values: Any) -> Site:
        hw = target.hardware
        system = "Linux" if hw.system == "any" else hw.system
        part = next(iter(hw.cpu_part), "")
        alike = Machine(hw.architecture.replace("arm64", "aarch64"), "a board", frozenset(hw.requires), part, system)
        return Site(target, FakeDevice(machine or alike, **values))

    return on


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    if not os.environ.get("EDGEKD_DATA"):
        pytest.skip("EDGEKD_DATA is unset: no real data here")
    return Path(os.environ["EDGEKD_DATA"])


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that starts a Ray cluster of one node, with further `resources`; the test is skipped without Ray."""
    pytest.importorskip("ray", reason='no Ray here: pip install "edgekd[ray]"')
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    made: list[Any] = []

    def start(**resources: float) -> Any:
        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "resources": resources}
        try:
            made.append(Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False}))
        except Exception as error:  # Ray gives its processes 30 s to start, and a busy machine may need more
            if "timed out during startup" not in str(error):
                raise
            pytest.skip(f"Ray does not start here: {error}")
        return made[-1]

    yield start
    for cluster in made:
        cluster.shutdown()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


NASTY = "::error::a\n##[error]b\r\x1b[31m\u202e$x_{\\frac}$|c\n::warning::d"
"""A name, or a text, that terminals, screens, GitHub, Markdown and matplotlib would all obey."""


@pytest.fixture
def nasty() -> str:
    """What nobody should obey, see NASTY."""
    return NASTY


@pytest.fixture
def harmless() -> Callable[[str], None]:
    """Assert that nothing in a text is obeyed by what shows it."""

    def check(text: str) -> None:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", text), repr(
            text
        )
        assert not re.search(r"^\s*::", text, re.MULTILINE), text
        assert "##[" not in text, text

    return check


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `edgekd ARGS` in the test's own folder; in this process, for importing torch takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgekd.pipeline.EFFORT", QUICK)
    monkeypatch.setattr("edgekd.search.material.EFFORT", QUICK)
    monkeypatch.setattr("edgekd.cli.checking.Effort", partial(Effort, **dataclasses.asdict(QUICK)))
    monkeypatch.setattr("edgekd.check.jobs.JobOptions", partial(JobOptions, effort=QUICK))
    monkeypatch.setattr("edgekd.check.measure.PAIR", QUICK)
    monkeypatch.setattr("edgekd.cli.measuring.QUICK", QUICK)
    monkeypatch.setattr("edgekd.search.candidates.EFFORT", QUICK)

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["edgekd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def sounds() -> ModuleType:
    """The module tests/data/sounds.py, which makes clips of sound."""
    spec = importlib.util.spec_from_file_location("sounds", Path(__file__).parent / "data" / "sounds.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
