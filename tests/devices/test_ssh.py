"""Measuring over ssh, on a board that is a real sshd on loopback, and everything that can go wrong on the way."""

import dataclasses
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.bench.records import Effort, Plan
from edgekd.bench.runner import make_plan, measure_latency, predict
from edgekd.devices import ssh
from edgekd.devices.device import Site
from edgekd.devices.link import Address, Link, parse_address
from edgekd.devices.local import Local
from edgekd.devices.orders import WORKER
from edgekd.devices.ssh import Ssh
from edgekd.errors import ConfigError, InputError, ModelError, UnavailableError
from edgekd.files import file_sha256
from edgekd.target import Hardware, Target, load_target

Waiting = Callable[[Callable[[], object]], None]
QUICK = Effort(processes=2, min_processes=2, warmup_s=0.02, min_calls=20, max_calls=40, max_s=0.05, placement=False)
ARCHITECTURE: Any = Local().facts().architecture
HERE = dataclasses.replace(load_target("cpu-x86"), hardware=Hardware(architecture=ARCHITECTURE), name="here")


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable[[Path, int], Path]) -> Path:
    """A network of one matrix product that takes rows of eight numbers."""
    return tiny_model(tmp_path / "a model's file.onnx", 1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """3,000 rows of inputs."""
    file = tmp_path / "rows.npy"
    np.save(file, np.random.Generator(np.random.PCG64(2)).standard_normal((3000, 8)).astype(np.float32))
    return file


def plan(device: Ssh, mode: Any = "latency", target: Target = HERE, **values: Any) -> Plan:
    bounds = {"warmup_s": 0.0, "min_calls": 20, "max_calls": 20, "max_s": 0.0}
    return make_plan(Site(target, device), mode=mode, **bounds | values)


def long(device: Ssh, seconds: float) -> Plan:
    """A plan whose worker is busy for so long."""
    return plan(device, "throughput", max_s=seconds, min_calls=1)


# --- addresses ---


def test_an_address_may_have_a_user_and_a_port() -> None:
    assert parse_address("ssh://board") == Address("ssh://board", "board")
    assert parse_address("ssh://pi@board.local:2222/") == Address(
        "ssh://pi@board.local:2222", "board.local", "pi", 2222
    )
    assert parse_address("ssh://[fe80::1]:22") == Address("ssh://[fe80::1]:22", "fe80::1", "", 22)


@pytest.mark.parametrize(
    "text", ["ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://pi@-x", "ssh://h:99999", "ssh://h/x"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"it should be like ssh://pi@board"):
        parse_address(text)


# --- measuring ---


def test_the_device_tells_what_it_is(board: Any) -> None:
    device = board.device()
    assert device.facts() == dataclasses.replace(Local().facts(), model=device.facts().model)
    assert device.facts().features == Local().facts().features
    told = device.describe()
    assert told["folder"] == str(board.cache)
    assert told["cores"] == os.cpu_count()
    assert {"onnxruntime", "numpy", "python", "providers"} <= told["runtime"].keys()
    assert (device.free_memory() or 0) > 0


def test_a_worker_there_measures_and_answers_as_one_here(board: Any, model: Path, rows: Path, tmp_path: Path) -> None:
    device = board.device()
    site = Site(HERE, device)
    told: list[tuple[int, int]] = []
    predict(model, site, rows, tmp_path / "there.npy", on_progress=lambda *numbers: told.append(numbers))
    predict(model, Site(HERE, Local()), rows, tmp_path / "here.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"))
    (taken,) = measure_latency([model], site, rows, QUICK)
    assert isinstance(taken, list)
    first, second = taken
    assert len(first.latency_s) >= 20 and first.fingerprint == second.fingerprint
    here = Local().run(plan(device, inputs=str(rows)), model, HERE, 60)
    alike = {"model_sha256", "shapes", "onnxruntime", "cpu", "architecture", "inputs"}
    assert all(first.fingerprint[key] == here.fingerprint[key] for key in alike)


def test_a_file_goes_over_once_and_of_the_data_only_what_is_timed(board: Any, model: Path, rows: Path) -> None:
    device = board.device()
    device.run(plan(device, inputs=str(rows)), model, HERE, 60)
    first = device.sent_bytes
    worker = WORKER.stat().st_size
    assert 256 * 32 < first - worker - model.stat().st_size < 256 * 32 + 200  # 256 of 3,000 rows, and a header
    device.run(plan(device, inputs=str(rows)), model, HERE, 60)
    assert device.sent_bytes == first
    device.close()
    again = board.device()
    again.run(plan(again, inputs=str(rows)), model, HERE, 60)
    assert again.sent_bytes == 0


def test_files_on_the_device_are_bounded_and_cleaned(
    board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "LIMIT_BYTES", 250_000)
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(os.urandom(100_000))
        device = board.device()
        device.send([tmp_path / f"{number}"])
        device.close()
    assert sum(path.stat().st_size for path in (board.cache / "files").iterdir()) == 200_000
    freed = board.device().ask({"do": "clean"})
    assert (freed["freed"], board.cache.exists()) == (200_000, False)


def test_a_baseline_and_weights_in_other_files_go_over_too(board: Any, model: Path, tmp_path: Path) -> None:
    import onnx

    kept = onnx.load(model)
    big = tmp_path / "big.onnx"
    onnx.save(kept, big, save_as_external_data=True, location="weights' file.bin", size_threshold=0)
    device = board.device()
    record = device.run(plan(device, "pair", baseline=str(big)), model, HERE, 60)
    assert record.baseline is not None and len(record.baseline["latency_s"]) == len(record.latency_s)


def test_errors_of_a_model_are_told_as_here(board: Any, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    device = board.device()
    with pytest.raises(InputError) as caught:
        device.run(plan(device), broken, HERE, 60)
    assert str(caught.value).startswith(f"{broken}: onnxruntime cannot load it")
    assert str(board.home) not in str(caught.value)
    with pytest.raises(InputError, match=re.escape(f"baseline {broken}: onnxruntime cannot load it")):
        device.run(plan(device, "pair", baseline=str(broken)), model, HERE, 60)
    with pytest.raises(ModelError, match=r"still running after 1 s \(exit 124\); stopped$"):
        device.run(long(device, 60), model, HERE, 1)
    assert len(device.run(plan(device), model, HERE, 60).latency_s) == 20  # the device goes on


# --- what can go wrong ---


def test_a_wrong_host_key_is_told_with_what_to_do(board: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = (board.folder / "ssh_config").read_text()
    other = (board.folder / "user_key.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{board.port} {other}")
    (tmp_path / "config").write_text(config.replace(f"{board.folder}/known_hosts", f"{tmp_path}/known"))
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(tmp_path / "config"))
    with pytest.raises(UnavailableError, match=r"^device ssh://board: its host key is not the one in known_hosts"):
        board.device().facts()


def test_a_missing_key_is_told_with_what_to_do(board: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = (board.folder / "ssh_config").read_text()
    (tmp_path / "config").write_text(config.replace(f"{board.folder}/user_key", f"{board.folder}/host_key"))
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(tmp_path / "config"))
    with pytest.raises(UnavailableError, match=r"lets nobody in without a password.* `ssh-copy-id board`$"):
        board.device().facts()


def test_a_device_that_is_off_or_unknown_is_told(board: Any) -> None:
    with pytest.raises(
        UnavailableError, match=r"^device ssh://127\.0\.0\.1:1: cannot be reached \(.*refused\); is it on"
    ):
        Ssh("ssh://127.0.0.1:1").facts()
    with pytest.raises(UnavailableError, match=r"^device ssh://no-such-host\.invalid: ssh: Could not resolve hostname"):
        Ssh("ssh://no-such-host.invalid").facts()


def test_python_without_onnxruntime_is_told_with_what_to_do(board: Any) -> None:
    (board.home / "bin").mkdir()
    bare = board.home / "bin" / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without its packages
    bare.chmod(0o755)
    device = Ssh("ssh://board", str(bare))
    with pytest.raises(
        UnavailableError, match=r"cannot run models \(No module named 'numpy'\); `edgekd devices ssh://board --setup`"
    ):
        device.require(HERE)
    device.close()
    with pytest.raises(UnavailableError, match=r"has no Python to start \(.*not found\); install python3"):
        Ssh("ssh://board", "no-such-python").facts()


def test_a_provider_that_is_not_there_is_told(board: Any) -> None:
    with pytest.raises(UnavailableError, match=r"target cuda needs CUDAExecutionProvider, and onnxruntime .* offers"):
        board.device().require(load_target("cuda"))


def test_a_second_user_is_told_who_measures(board: Any, model: Path) -> None:
    first, second = board.device(), board.device()
    first.run(plan(first), model, HERE, 60)
    with pytest.raises(
        UnavailableError, match=r"^device ssh://board: \S+@\S+ measures there since 20\d\d-.*; try again later$"
    ):
        second.run(plan(second), model, HERE, 60)
    first.close()
    assert second.run(plan(second), model, HERE, 60).latency_s


def test_a_lock_that_names_another_process_ends_only_agents(board: Any, model: Path) -> None:
    device = board.device()
    device.run(plan(device), model, HERE, 60)
    told = json.loads((board.home / "lock").read_text())
    device.close()
    agent = Link(parse_address("ssh://board"), board.python)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    forged = {**told, "pid": bystander.pid, "running": False}
    with (board.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(json.dumps(forged))
        lock.flush()
        answer = agent.request({"do": "lock", "owner": told["owner"], "who": "me"})
    agent.close()
    assert not answer["held"]
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_killed_worker_is_told_and_the_next_one_runs(board: Any, model: Path, until: Waiting) -> None:
    device = board.device()
    device.facts()
    failed: list[str] = []

    def work() -> None:
        with pytest.raises(ModelError) as caught:
            device.run(long(device, 60), model, HERE, 60)
        failed.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: workers(board))
    os.kill(workers(board)[0], 9)
    thread.join(20)
    killed = "the worker was killed while it ran the model, as the system does when memory runs out (no message)"
    assert failed == [f"{model}: on device ssh://board, {killed}"]
    assert device.run(plan(device), model, HERE, 60).latency_s


def workers(board: Any) -> list[int]:
    """The processes of workers on the board."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if str(board.cache).encode() in text and b"--die-with-parent" in text:
            found.append(int(path.parent.name))
    return found


def test_a_full_disk_is_told_in_one_line(board: Any, model: Path) -> None:
    (board.cache / "files").mkdir(parents=True)
    device = board.device()
    device.facts()
    first = board.cache / "files" / f".{file_sha256(model)}.{agent_pid(board)}"
    first.symlink_to("/dev/full")  # this is where the next file is written
    with pytest.raises(InputError, match=r"^device ssh://board: .*: the device's disk is full; free some space there$"):
        device.send([model])
    device.send([model])  # the connection goes on


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended may stay listed until its parent asks for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def agent_pid(board: Any) -> int:
    """The agent's process: the Python on the board that was started with `-c`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text, environment = path.read_bytes(), (path.parent / "environ").read_bytes()
        except OSError:
            continue
        if (
            b"agent.py" in text
            and text.startswith(board.python.encode())
            and f"HOME={board.home}\0".encode() in environment
        ):
            return int(path.parent.name)
    raise AssertionError("no agent runs")


def test_after_an_interrupt_no_process_is_left(board: Any, model: Path, tmp_path: Path, until: Waiting) -> None:
    # A process that is started in the background may ignore the interrupt, and so would what it starts.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    main = [sys.executable, "-c", f"{heed}; from edgekd.cli.main import main; main()"]
    target = "cpu-x86" if Local().facts().architecture == "x86_64" else "cpu-arm"
    command = [*main, "bench", str(model), "--target", target, "--device", "ssh://board"]
    keep_busy = [*command, "--sustained", "1", "--shape", "x=1,8"]
    started = subprocess.Popen(keep_busy, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until(lambda: workers(board))
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=20)
    assert (started.returncode, "Traceback" in told, "interrupted" in told) == (130, False, True)
    until(lambda: not board.processes())


# --- connections that drop ---


def test_a_connection_that_drops_between_two_workers_is_taken_up_again(board: Any, model: Path) -> None:
    device = board.device()
    device.run(plan(device), model, HERE, 60)
    assert board.cut() == 1
    assert device.run(plan(device), model, HERE, 60).latency_s
    assert device.cuts == 1


def test_what_was_measured_during_a_cut_is_kept(board: Any, model: Path, until: Waiting) -> None:
    device = board.device()
    device.facts()

    seen: set[int] = set()
    ended = threading.Event()

    def cut() -> None:
        until(lambda: workers(board))
        time.sleep(0.3)
        board.cut()
        while not ended.wait(0.1):
            seen.update(workers(board))

    cutter = threading.Thread(target=cut)
    cutter.start()
    record = device.run(long(device, 2.5), model, HERE, 60)
    ended.set()
    cutter.join()
    assert record.elapsed_s >= 2.5
    assert device.cuts == 1
    assert len(seen) == 1  # it did not run twice
    assert not list((board.cache / "jobs").glob("*/in"))


@pytest.mark.slow
def test_cuts_at_random_moments_lose_nothing_and_repeat_nothing(board: Any, model: Path) -> None:
    """Twelve workers and ten cuts: each order gives one record, and each worker was started once."""
    (board.home / "bin").mkdir()
    counting, log = board.home / "bin" / "counting", board.home / "log"
    counting.write_text(
        f'#!/bin/sh\ncase "$*" in *--die-with-parent*) echo one >> {log};; esac\nexec {sys.executable} "$@"\n'
    )
    counting.chmod(0o755)
    board.python = str(counting)
    device = board.device()
    device.facts()
    over, moments = threading.Event(), random.Random(5)

    def cutting() -> None:
        for _ in range(10):
            if over.wait(moments.uniform(0.2, 1.2)):
                return
            board.cut()

    cutter = threading.Thread(target=cutting)
    cutter.start()
    lasting = [0.3 + 0.1 * number for number in range(12)]
    records = [
        device.run(plan(device, "throughput", max_s=seconds, min_calls=1), model, HERE, 60) for seconds in lasting
    ]
    over.set()
    cutter.join()
    assert [record.elapsed_s >= seconds for record, seconds in zip(records, lasting, strict=True)] == [True] * 12
    assert device.cuts >= 3
    assert len(log.read_text().splitlines()) == 12


def test_a_device_that_does_not_come_back_is_given_up(board: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "RECONNECT_S", 1.0)
    device = board.device()
    device.run(plan(device), model, HERE, 60)
    board.cut()
    board.stop()
    try:
        with pytest.raises(UnavailableError, match=r"and did not come back; the same command goes on from here$"):
            device.run(plan(device), model, HERE, 60)
        with pytest.raises(UnavailableError, match=r"did not come back"):  # at once
            device.run(plan(device), model, HERE, 60)
    finally:
        board.start()


def test_an_agent_that_hangs_is_told_and_replaced(
    board: Any, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    device = board.device()
    device.facts()
    monkeypatch.setattr("edgekd.devices.link.SILENT_S", 3.0)
    device.run(plan(device), model, HERE, 60)
    pid = agent_pid(board)
    os.kill(pid, signal.SIGSTOP)
    assert device.run(plan(device), model, HERE, 60).latency_s
    assert device.cuts >= 1
    assert "edgekd: device ssh://board: has said nothing for 3 s; trying for" in capsys.readouterr().err
    assert not alive(pid)


# --- heat ---


def test_a_hot_device_may_cool_down_first(
    board: Any, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    throttle = board.home / "bin" / "vcgencmd"
    throttle.parent.mkdir()
    throttle.write_text(f"#!/bin/sh\ncat {board.home}/bits\n")
    throttle.chmod(0o755)
    (board.home / "bits").write_text("throttled=0x50004\n")
    monkeypatch.setattr(ssh, "COOL_S", 0.5)
    device = board.device()
    record = device.run(plan(device), model, HERE, 60)
    assert (
        "edgekd: device ssh://board: it is throttled; waiting up to 0 s for it to cool down" in capsys.readouterr().err
    )
    assert record.disturbance["throttled"] == 4.0
    (board.home / "bits").write_text("throttled=0x50000\n")  # in the past only
    assert device.run(plan(device), model, HERE, 60).disturbance["throttled"] == 0.0
