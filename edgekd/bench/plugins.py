"""Plugin execution providers: libraries that separate packages install beside onnxruntime.

Each such package offers `get_library_path()` and `get_ep_name()`
(https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/). A library is registered in a separate process,
because a broken library may crash it.
"""

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass

__all__ = ["Plugin", "installed_plugins", "try_plugin"]

_REGISTER = """
import importlib, json, sys
import onnxruntime
plugin = importlib.import_module(sys.argv[1])
name = plugin.get_ep_name()
onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
devices = [d.device.type.name for d in onnxruntime.get_ep_devices() if d.ep_name == name]
print(json.dumps({"name": name, "devices": devices}))
"""


@dataclass(frozen=True)
class Plugin:
    """The result of registering a plugin library."""

    module: str
    provider: str
    devices: tuple[str, ...]
    problem: str = ""

    @property
    def text(self) -> str:
        """One line of text for `edgekd doctor`."""
        if self.problem:
            return f"{self.module}: cannot be registered: {self.problem}"
        devices = ", ".join(self.devices) or "no device of its kind here"
        return f"{self.module}: {self.provider}, {devices}"


def installed_plugins() -> list[str]:
    """Return the names of the modules of installed packages that contain a plugin library."""
    found = set()
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or []:
            if len(file.parts) == 2 and file.parts[0].startswith("onnxruntime_") and file.name == "__init__.py":
                found.add(file.parts[0])
    return sorted(name for name in found if name.startswith(("onnxruntime_ep_", "onnxruntime_qnn")))


def try_plugin(module: str) -> Plugin:
    """Register the plugin's library in a fresh process and list the devices that it offers."""
    command = [sys.executable, "-P", "-c", _REGISTER, module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, errors="replace")
    except subprocess.TimeoutExpired:
        return Plugin(module, "", (), "still running after 60 s")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Plugin(module, "", (), last[0][:200])
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Plugin(module, answer["name"], tuple(answer["devices"]))
