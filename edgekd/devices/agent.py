"""Serve one edgekd process on a device. This file is a stand-alone program that edgekd sends over ssh, and
deliberately one file.

It needs Python 3.9 and the standard library, and it does not import edgekd. It reads requests from stdin and writes
answers to stdout until it is told to stop or stdin ends. Both are lines of JSON; a line whose key "bytes" is above 0
is followed by so many bytes of a file. Every request has the key "do", which names a function of HANDLERS below.

With a folder as its argument it carries out the orders of a bundle, which edgekd packed, without any connection.

All files lie in one folder, `edgekd` in the user's cache folder:

    files/SHA256         worker, models and inputs, under the digest of their content; the oldest are removed first
    jobs/ID/             one worker process: its plan, its outputs and result.json, until the next session clears it
    venv/                the environment that `edgekd devices … --setup` makes

Only one session measures at a time: it holds the lock of LOCK, which the system releases when this process ends. When
stdin ends without a request to stop, the connection has dropped: the worker that runs may finish within LINGER_S, so
that the next session of the same owner finds its result.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["Session", "facts", "main", "run_bundle"]

# The lock lies in /tmp and not in a user's own folder, because all users of a device share one lock: a measurement of
# another user disturbs as much as an own one. A file left behind there means nothing; only the lock on it counts.
LOCK = os.environ.get("EDGEKD_DEVICE_LOCK", "/tmp/edgekd-device.lock")
LINGER_S = 30.0
BEAT_S = 2.0
OLDEST_PYTHON = (3, 9)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ASK_RUNTIME = """
import json, platform
told = {"python": platform.python_version()}
try:
    import numpy
    told["numpy"] = numpy.__version__
    import onnxruntime
    told["onnxruntime"] = onnxruntime.__version__
    told["providers"] = onnxruntime.get_available_providers()
except Exception as error:
    told["problem"] = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
print(json.dumps(told))
"""


class Refused(Exception):
    """A request that cannot be carried out; its text is the one line that the user sees."""


class Ended(Exception):
    """The session is over: stdin has ended, or the request was to stop."""


class Session:
    """One connection: its folder, the lock that it may hold, and what it has used."""

    def __init__(self, requests: Any, answers: Any) -> None:
        self.requests, self.answers = requests, answers
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        self.root = Path(cache, "edgekd")
        self.used: set[str] = set()
        self.lock: Any = None
        self.owner = ""
        self.lost = False

    def tell(self, answer: dict[str, Any]) -> None:
        """Write one answer. A broken connection is noted and not raised, because a worker may still be running."""
        if self.answers is None:
            return
        try:
            self.answers.write(json.dumps(answer).encode() + b"\n")
            self.answers.flush()
        except OSError:
            self.lost = True

    def file(self, digest: Any) -> Path:
        """Return the path of a stored file. Raises Refused for anything that is not a SHA-256 digest."""
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise Refused("a file is named by its SHA-256 digest, got " + repr(digest)[:80])
        return self.root / "files" / digest

    def job(self, name: Any) -> Path:
        """Return the folder of a job. Raises Refused for a name that could lead out of the folder."""
        if not isinstance(name, str) or not _DIGEST.fullmatch(name):
            raise Refused("a job is named by a SHA-256 digest, got " + repr(name)[:80])
        return self.root / "jobs" / name


def main() -> int:
    """Serve requests until the session ends."""
    # Without a buffer, because `select` cannot see a request that already lies in one.
    session = Session(open(0, "rb", buffering=0, closefd=False), sys.stdout.buffer)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of stdin says that the connection has dropped
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        while True:
            _serve(session)
    except (Ended, KeyboardInterrupt):
        return 0


def run_bundle(folder: Path) -> int:
    """Run the orders of a bundle that was copied here by hand, and write results.json beside it.

    What has been run before is not repeated, so that an interrupted bundle goes on where it stopped.
    """
    session = Session(None, None)
    session.root = folder
    bundle = json.loads((folder / "orders.json").read_text(encoding="utf-8"))
    held = take_lock(session, {"owner": bundle["bundle"], "who": _user() + "@" + platform.node()})
    if not held["held"]:
        print(f"edgekd: {held['by']} measures here since {held['since']}; try again later", file=sys.stderr)
        return 2
    told = facts(session, {"python": os.environ.get("PYTHON", "python3")})
    if told["runtime"].get("problem"):
        print(f"edgekd: {told['command']} cannot run models ({told['runtime']['problem']})", file=sys.stderr)
        return 2
    answers = []
    for number, order in enumerate(bundle["orders"], start=1):
        print(f"{number} of {len(bundle['orders'])}: {order['plan']['mode']}", file=sys.stderr, flush=True)
        answer = run(session, {**order, "python": told["command"]})
        out = session.job(order["job"]) / "out"
        files = {name: base64.b64encode((out / name).read_bytes()).decode() for name in answer["outputs"]}
        answers.append({**answer, "job": order["job"], "files": files})
    part = folder / "results.json.part"
    content = {"schema_version": 1, "kind": "edgekd results", "facts": told, "orders": bundle["orders"]}
    part.write_text(json.dumps({**content, "answers": answers}), encoding="utf-8")
    part.replace(folder / "results.json")
    print("wrote results.json; bring it back: edgekd bench … --from results.json", file=sys.stderr)
    return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _serve(session: Session) -> None:
    line = session.requests.readline()
    if not line:
        raise Ended
    request = json.loads(line)
    handler = HANDLERS.get(request.get("do"))
    try:
        if handler is None:
            raise Refused("this agent cannot do " + repr(request.get("do")))
        session.tell(handler(session, request))
    except Refused as error:
        session.tell({"refused": str(error)})
    except OSError as error:
        session.tell({"refused": _reason(session, error)})


def _reason(session: Session, error: OSError) -> str:
    where = str(error.filename or session.root)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return where + ": the device's disk is full; free some space there"
    return where + ": " + (os.strerror(error.errno) if error.errno else str(error))


# --- what is there ---


def facts(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Describe the device and the Python that runs workers."""
    return {
        "architecture": platform.machine(),
        "system": platform.system(),
        "release": _release(),
        "board": _text("/proc/device-tree/model").strip("\0\n "),
        "cpuinfo": _text("/proc/cpuinfo"),
        "cores": os.cpu_count(),
        "memory": _memory("MemTotal"),
        "free_disk": _free(session.root),
        "folder": str(session.root),
        "user": _user(),
        "state": state(),
        "command": worker_python(session, request),
        "runtime": _runtime(worker_python(session, request)),
    }


def _release() -> str:
    for line in _text("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return platform.platform()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _memory(key: str) -> int | None:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def state() -> dict[str, Any]:
    """Return governor, frequency, temperature and throttling bits; None where the device does not report one."""
    cpu = "/sys/devices/system/cpu/cpu0/cpufreq/"
    mhz = _text(cpu + "scaling_cur_freq").strip()
    top = _text(cpu + "cpuinfo_max_freq").strip()
    zones = [_text(str(zone)).strip() for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(text) / 1000 for text in zones if re.fullmatch(r"-?\d+", text)]
    return {
        "governor": _text(cpu + "scaling_governor").strip() or None,
        "mhz": int(mhz) / 1000 if mhz.isdigit() else None,
        "max_mhz": int(top) / 1000 if top.isdigit() else None,
        "temperature_c": max(degrees) if degrees else None,
        "throttled": _throttled(),
        "free_memory": _memory("MemAvailable"),
    }


def _throttled() -> int | None:
    """Return the bits of `vcgencmd get_throttled` (Raspberry Pi): 1 low voltage, 2 capped, 4 throttled, 8 hot."""
    command = shutil.which("vcgencmd")
    if command is None:
        return None
    try:
        done = subprocess.run([command, "get_throttled"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", done.stdout)
    return int(found[1], 16) if found else None


def worker_python(session: Session, request: dict[str, Any]) -> str:
    """Return the Python for workers: the one that the target names, or the one of --setup, or `python3`."""
    named = str(request.get("python") or "")
    if named:
        return str(Path(named).expanduser())
    own = session.root / "venv" / "bin" / "python"
    return str(own) if own.exists() else "python3"


def _runtime(python: str) -> dict[str, Any]:
    try:
        done = subprocess.run([python, "-I", "-c", _ASK_RUNTIME], capture_output=True, text=True, timeout=120)
        told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return told
    except subprocess.TimeoutExpired:
        return {"problem": python + " did not answer within 120 s"}
    except (OSError, ValueError, IndexError) as error:
        last = done.stderr.strip().splitlines()[-1:] if not isinstance(error, OSError) else [str(error)]
        return {"problem": (last or [python + " gave no answer"])[0][:200]}


def tell_state(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Return the device's state."""
    return state()


# --- files ---


def missing(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Return which of the files, given as digests, are not stored here."""
    digests = list(request["files"])
    for digest in digests:
        with contextlib.suppress(OSError):
            os.utime(session.file(digest))  # it is the newest
    session.used.update(digests)
    return {"missing": [digest for digest in digests if not session.file(digest).exists()]}


def put(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Store the bytes that follow as a file. Raises Refused if they do not have the digest that was announced."""
    path, size = session.file(request["sha256"]), int(request["bytes"])
    part = path.with_name("." + path.name + "." + str(os.getpid()))
    rest, whole = size, hashlib.sha256()
    failed: OSError | None = None
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_room(session, size, int(request.get("limit") or 0))
            file = stack.enter_context(part.open("wb", buffering=0))
        except OSError as error:
            failed = error
        while rest:
            chunk = session.requests.read(min(rest, 1 << 20))
            if not chunk:
                part.unlink(missing_ok=True)
                raise Ended
            rest -= len(chunk)
            whole.update(chunk)
            if failed is None:
                try:
                    if file.write(chunk) != len(chunk):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
                except OSError as error:  # read the rest all the same, so that the next request is found
                    failed = error
    if failed is not None or whole.hexdigest() != path.name:
        with contextlib.suppress(OSError):
            part.unlink()
        if failed is not None:
            raise failed
        raise Refused("the file arrived damaged; the transfer is repeated by the next start")
    part.replace(path)
    return {"stored": size}


def _make_room(session: Session, size: int, limit: int) -> None:
    """Remove the files that were used longest ago until `size` more bytes fit into the limit (0: no limit)."""
    kept = []
    for path in (session.root / "files").iterdir():
        if path.name.startswith("."):
            if time.time() - path.lstat().st_mtime > 3600:  # of a transfer that was cut
                path.unlink()
            continue
        kept.append((path.stat().st_mtime, path.stat().st_size, path))
    kept.sort()
    total = sum(one[1] for one in kept) + size
    for _, bytes_, path in kept:
        if not limit or total <= limit:
            break
        if path.name not in session.used:
            path.unlink()
            total -= bytes_


def get(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Send an output of a job: a line with its size, then its bytes, then a last line."""
    folder = session.job(request["job"])
    path = folder / "out" / _safe(request["name"])
    size = path.stat().st_size
    session.tell({"bytes": size})
    with path.open("rb") as file:
        try:
            shutil.copyfileobj(file, session.answers, 1 << 20)
        except OSError:
            session.lost = True
    return {"sent": size}


def _safe(name: Any) -> str:
    if "\0" in str(name) or {"", ".", ".."} & set(str(name).split("/")):
        raise Refused("a file's name would lead out of the folder: " + repr(name)[:80])
    return str(name)


def clean(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Remove the stored files and jobs, and with "all" the environment, too. Returns the bytes that were freed."""
    if session.lock is None:
        descriptor = _open_lock()
        free, holder = _locked(descriptor), _holder(descriptor)
        os.close(descriptor)
        if not free:
            raise Refused(str(holder.get("who", "another program")) + " measures there; clean it later")
    names = ["files", "jobs", *(["venv", "wheels"] if request.get("all") else [])]
    freed = 0
    for name in names:
        folder = session.root / name
        freed += sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        session.root.rmdir()
    return {"freed": freed, "folder": str(session.root)}


# --- the lock ---


def take_lock(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Take the lock of this device, or tell who holds it and since when.

    If the holder is an earlier session of the same owner, whose connection dropped, it gets LINGER_S to finish its
    worker and is then ended.
    """
    if session.lock is not None:
        return {"held": True}
    descriptor = _open_lock()
    owner, until = str(request["owner"]), time.monotonic() + LINGER_S + 5
    signals = [signal.SIGTERM, signal.SIGKILL]
    while not _locked(descriptor):
        holder, late = _holder(descriptor), time.monotonic() > until
        if holder.get("owner") != owner or (late and not signals):
            os.close(descriptor)
            return {"held": False, "by": holder.get("who", "another program"), "since": holder.get("since", "")}
        if late or (len(signals) == 2 and not holder.get("running")):
            _end(holder.get("pid"), signals.pop(0))
            until = time.monotonic() + 2
        time.sleep(0.1)
        session.tell({"beat": 1})
    session.lock, session.owner = descriptor, owner
    _note(session, {"who": request["who"], "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    _clear_jobs(session)
    return {"held": True}


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _open_lock() -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(LOCK, flags)
    except FileNotFoundError:
        descriptor = os.open(LOCK, flags | os.O_CREAT, 0o666)
        os.fchmod(descriptor, 0o666)  # every user of the device shares it, whatever the umask is
        return descriptor


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _end(pid: Any, number: int) -> None:
    """Send a signal to an earlier agent. Every user can write into the lock, so the process must be an agent."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        if "agent.py" in _text("/proc/" + str(int(pid)) + "/cmdline"):
            os.kill(int(pid), number)


def _note(session: Session, values: dict[str, Any]) -> None:
    """Write into the lock who holds it."""
    known = _holder(session.lock) if not values.get("who") else {}
    text = json.dumps({**known, **values, "pid": os.getpid(), "owner": session.owner}).encode()
    os.ftruncate(session.lock, 0)
    os.pwrite(session.lock, text, 0)


def _clear_jobs(session: Session) -> None:
    """Remove the jobs of other owners; this session's own ones may hold results that it did not receive."""
    for folder in (session.root / "jobs").glob("*"):
        if _text(str(folder / "owner")) != session.owner:
            shutil.rmtree(folder, ignore_errors=True)


# --- running a worker ---


def run(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Run one worker process and return its exit code, result and last error line, and the state before and after.

    A job that has finished before is not repeated: its answer is returned again, until a later request names it among
    those that were "received". While the worker runs, answers with
    "beat" or "progress" are written.
    """
    if session.lock is None:
        raise Refused("a worker runs only in a session that holds the lock")
    for name in request.get("received", []):
        shutil.rmtree(session.job(name), ignore_errors=True)
    folder = session.job(request["job"])
    kept = folder / "answer.json"
    if kept.exists():
        answer: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return {**answer, "kept": True}
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "owner").write_text(session.owner, encoding="utf-8")
    for name, digest in request["links"].items():
        _link(session.file(digest), folder / "in" / _safe(name))
    plan = {key: _placed(value, folder) for key, value in request["plan"].items()}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    before = state()
    _note(session, {"running": True})
    try:
        answer = _work(session, request, folder)
        answer.update(before=before, after=state(), outputs=sorted(path.name for path in (folder / "out").iterdir()))
        part = folder / "answer.part"
        part.write_text(json.dumps(answer), encoding="utf-8")
        part.replace(kept)
    finally:
        shutil.rmtree(folder / "in", ignore_errors=True)
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        _note(session, {"running": False})  # last, because a later session ends this one as soon as nothing runs
    if session.lost:
        raise Ended
    return answer


def _link(stored: Path, path: Path) -> None:
    """Give a stored file a name for one job. A hard link, because ONNX Runtime reads weights beside the model only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(stored, path)
    except FileNotFoundError:
        raise Refused("a file that the job needs is not on the device: " + stored.name) from None
    except OSError:  # a file system without hard links
        shutil.copyfile(stored, path)


def _placed(value: Any, folder: Path) -> Any:
    """Replace {"in": NAME} and {"out": NAME} in a plan by paths in the job's folder."""
    if isinstance(value, list):
        return [_placed(one, folder) for one in value]
    if isinstance(value, dict) and list(value) in (["in"], ["out"]):
        ((kind, name),) = value.items()
        return str(folder / kind / _safe(name))
    return value


def _work(session: Session, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    python, result, errors = worker_python(session, request), folder / "result.json", folder / "stderr"
    paths = ["--plan", str(folder / "plan.json"), "--model", str(folder / "in" / _safe(request["model"]))]
    command = [python, "-I", str(session.file(request["worker"])), *paths, "--out", str(result), "--die-with-parent"]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    with errors.open("wb") as stderr:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=environment,
        )
    try:
        code = _watch(session, worker, time.monotonic() + float(request["timeout_s"]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    told = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    text = result.read_text(encoding="utf-8") if result.exists() else ""
    return {"code": code, "result": text, "last": (told or ["no message"])[0][:200]}


def _watch(session: Session, worker: Any, until: float) -> int | None:
    """Wait for the worker and pass on its progress; None if it was stopped because it ran too long.

    Raises Ended if the request to stop arrives, or if the connection has dropped and LINGER_S have passed.
    """
    watched, told, rest = [worker.stdout.fileno()], time.monotonic(), [b""]
    if session.requests is not None:
        watched.append(session.requests.fileno())
    while worker.poll() is None:
        _listen(session, worker, watched, rest)
        if session.lost:
            until = min(until, told + LINGER_S)
        elif time.monotonic() - told > BEAT_S:
            told = time.monotonic()
            session.tell({"beat": 1})
        if time.monotonic() > until:
            if session.lost:
                raise Ended
            return None
    return int(worker.returncode)


def _listen(session: Session, worker: Any, watched: list[int], rest: list[bytes]) -> None:
    """Wait a moment for the worker's progress or a request; a stream that has ended is not watched any more."""
    for stream in select.select(watched, [], [], 0.05)[0]:  # with no stream left it only waits
        if stream == worker.stdout.fileno():
            chunk = os.read(stream, 65536)
            rest[0] = _pass_on(session, rest[0] + chunk)
        else:
            chunk = _heed(session)
        if not chunk:
            watched.remove(stream)


def _heed(session: Session) -> bytes:
    """Read what arrives while a worker runs. Raises Ended for the request to stop; otherwise stdin has ended."""
    line: bytes = session.requests.readline()
    if line and json.loads(line).get("do") == "stop":
        raise Ended
    session.lost = True
    return b""


def _pass_on(session: Session, text: bytes) -> bytes:
    *lines, rest = text.split(b"\n")
    for line in lines[-1:]:
        words = line.split()
        if len(words) == 3 and words[0] == b"done" and words[1].isdigit() and words[2].isdigit():
            session.tell({"progress": [int(words[1]), int(words[2])]})
    return rest


# --- the environment ---


def setup(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Make the environment with numpy and onnxruntime, from files that were sent or by pip from its index."""
    venv, wheels = session.root / "venv", session.root / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    packages = list(request["packages"])
    for name, digest in request.get("wheels", {}).items():
        _link(session.file(digest), wheels / _safe(name))
    source = ["--no-index", "--find-links", str(wheels)] if request.get("wheels") else []
    made = session.root / "venv.part"
    shutil.rmtree(made, ignore_errors=True)
    python = str(request.get("python") or "python3")
    _step(session, [python, "-m", "venv", str(made)])
    _step(session, [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", *source, *packages])
    shutil.rmtree(venv, ignore_errors=True)
    made.replace(venv)
    shutil.rmtree(wheels, ignore_errors=True)
    return {"folder": str(venv), "runtime": _runtime(str(venv / "bin" / "python"))}


def _step(session: Session, command: list[str]) -> None:
    worker = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        text = _output(session, worker)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    if worker.returncode:
        last = text.strip().splitlines()[-1:] or ["no message"]
        raise Refused(" ".join(command[:4]) + " …: " + last[0][:300])


def _output(session: Session, worker: Any) -> str:
    text, lines, requests = b"", worker.stdout.fileno(), session.requests.fileno()
    while True:
        ready, _, _ = select.select([lines, requests], [], [], BEAT_S)
        if requests in ready:
            raise Ended
        if lines in ready:
            chunk = os.read(lines, 65536)
            if not chunk:
                worker.wait()
                return text.decode("utf-8", "replace")
            text += chunk
        session.tell({"beat": 1})


def stop(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """End the session, and remove its jobs."""
    if session.lock is not None:
        for folder in (session.root / "jobs").glob("*"):
            shutil.rmtree(folder, ignore_errors=True)
    raise Ended


HANDLERS = {
    "facts": facts,
    "state": tell_state,
    "missing": missing,
    "put": put,
    "get": get,
    "clean": clean,
    "lock": take_lock,
    "run": run,
    "setup": setup,
    "stop": stop,
}


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        print(json.dumps({"refused": "python3 is " + platform.python_version() + ", and 3.9 is needed"}), flush=True)
        sys.exit(1)
    sys.exit(run_bundle(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else main())
