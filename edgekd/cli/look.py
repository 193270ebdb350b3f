"""`targets`, `models` and `doctor`: show targets, cards and the state of this machine."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

from edgekd import __version__
from edgekd.bench.plugins import installed_plugins, try_plugin
from edgekd.card import Student, Teacher
from edgekd.console import out, say
from edgekd.devices.device import Site
from edgekd.devices.emulated import CPUS, ENVIRONMENT, install_counter, install_system
from edgekd.devices.environments import RECIPES, available_providers, environment_folder, install
from edgekd.devices.local import Local, connect, look_for_runtime, require_runtime
from edgekd.errors import ConfigError, EdgekdError, ExitCode, UnavailableError
from edgekd.spec import bundled_names, locate
from edgekd.tables import rich_table
from edgekd.target import Target, load_target
from edgekd.tasks.known import load_card

__all__ = ["diagnose", "install_environment", "list_cards", "list_targets", "show_card", "show_layers", "show_target"]


def list_targets() -> int:
    """Print a line for each bundled target."""
    rows = []
    for name in bundled_names("targets"):
        target = load_target(name)
        rows.append(
            [
                name,
                target.title,
                target.provider.name.removesuffix("ExecutionProvider"),
                ", ".join(target.precisions),
                _short(target),
            ]
        )
    out(rich_table(["target", "device", "provider", "precisions", "here"], rows, "Bundled targets"))
    out("edgekd targets NAME shows one; copy its file to describe your own device")
    return ExitCode.PASS


def show_target(name: str) -> int:
    """Print the target's file, and whether this machine can run the target."""
    target = load_target(name)
    out(Path(target.file).read_text(encoding="utf-8-sig").rstrip())
    out("")
    out(f"# {target.file}")
    out(f"# this machine: {_seen(target)}")
    return ExitCode.PASS


def list_cards() -> int:
    """Print a line for each bundled card."""
    rows = []
    for name in bundled_names("models"):
        card = load_card(name)
        rows.append([name, card.title, card.data.source, f"{card.teacher.family} → {card.student.family or 'several'}"])
    out(rich_table(["card", "what", "data", "teacher → student"], rows, "Bundled model cards"))
    out("edgekd models NAME shows one; copy its file to describe your own model")
    return ExitCode.PASS


def show_layers(name: str | None) -> int:
    """Print the layers of the card's teacher and of the first shape of its student, in the order in which they run.

    Raises ConfigError if no card is named.
    """
    if name is None:
        raise ConfigError(f"--layers: name a card, such as {bundled_names('models')[0]}")
    from edgekd.candidate import Shape
    from edgekd.distill.terms.layers import outputs_of
    from edgekd.nets.deployed import Deployed, example_inputs
    from edgekd.nets.families import make, make_shapes

    card = load_card(name)
    shape = make_shapes(card, card.student)[0]
    owners: list[tuple[str, Teacher | Student, Shape, str]] = [("student", card.student, shape, "student.knobs")]
    if card.teacher.family not in ("onnx", "self"):
        owners.insert(0, ("teacher", card.teacher, card.teacher.shape, "teacher.shape"))
    for who, owner, its_shape, where in owners:
        net = Deployed(make(card, owner, its_shape, where), card.data)
        found = outputs_of(net, example_inputs(card.data, 2), f"{card.file}: {where}")
        rows = [[path, kind, " × ".join(map(str, size))] for path, kind, size in found]
        told = ", ".join(f"{key}={value}" for key, value in its_shape.items())
        out(
            rich_table(
                ["layer", "kind", "output of one example"], rows, f"{who}: {owner.family} {told}".replace("  ", " ")
            )
        )
    out("name a layer of each in [[recipe.features]]; without one the term is on the logits")
    return ExitCode.PASS


def show_card(name: str) -> int:
    """Print the card's file."""
    load_card(name)
    path = locate("models", name)
    out(path.read_text(encoding="utf-8-sig").rstrip())
    out("")
    out(f"# {path}")
    return ExitCode.PASS


def _seen(target: Target) -> str:
    """The same as `_here`, but without starting any program, because a target file may come from an untrusted
    source."""
    try:
        python = look_for_runtime(target)
    except EdgekdError as error:
        return str(error).removeprefix(f"target {target.name}: ")
    return f"measuring starts {python}; {_figures(target)}, if that has the provider" if python else _figures(target)


def _here(target: Target) -> str:
    """Describe whether this machine can run the target, and which provenance its figures would have."""
    try:
        connect(target, "local").close()
    except EdgekdError as error:
        return str(error).removeprefix(f"target {target.name}: ")
    return _figures(target)


def _figures(target: Target) -> str:
    elsewhere = Site(target, Local()).elsewhere
    if elsewhere:
        return f"not the device ({elsewhere}): accuracy is a proxy, time estimated or not judged"
    return "can be measured here"


def _short(target: Target) -> str:
    try:
        look_for_runtime(target)
    except EdgekdError:
        return "unavailable"
    return "measured" if Site(target, Local()).measurable else "proxy"


def install_environment(name: str) -> int:
    """Create the environment of a target, or the system of emulated boards."""
    if name == ENVIRONMENT:
        say(f"{environment_folder(name)}: installing, this may take minutes")
        out(f"{install_system()}: ready; edgekd bench … --target cpu-arm --device qemu://{next(iter(CPUS))}")
        try:
            install_counter()
        except UnavailableError as error:
            out(str(error))
        return ExitCode.PASS
    target = load_target(name)
    if target.environment in RECIPES:
        say(f"{environment_folder(target.environment)}: installing, this may take minutes")
    folder = install(target)
    require_runtime(target)
    out(f"{folder}: ready; edgekd bench … --target {name}")
    return ExitCode.PASS


def diagnose() -> int:
    """Print the onnxruntime build, its providers, and what is missing for each bundled target."""
    machine = Local().facts()
    out(f"edgekd {__version__}, Python {platform.python_version()}, {platform.system()} {machine.architecture}")
    out(f"CPU: {machine.model or 'unnamed'}, {os.cpu_count()} logical")
    out(f"onnxruntime: {_builds()}")
    try:
        providers = available_providers()
        out(f"providers: {', '.join(providers)}; devices: {_devices()}")
    except UnavailableError as error:
        out(f"providers: none; {error}")
    for name in installed_plugins():
        out(f"plugin {try_plugin(name).text} (edgekd does not run models on plugins yet)")
    for module in ("torch", "torchvision", "onnx", "onnxscript", "timm"):
        out(f"{module}: {_version_of(module)}")
    out("targets:")
    for name in bundled_names("targets"):
        target = load_target(name)
        out(f"  {name} ({target.provider.name}): {_here(target)}")
    return ExitCode.PASS


def _version_of(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        extra = "timm" if module == "timm" else "train,cpu"
        return f'not installed; pip install "edgekd[{extra}]"'
    return importlib.metadata.version(module)


def _builds() -> str:
    """Installed distributions that provide the onnxruntime module. If there are two, they overwrite each other's
    files."""
    found = sorted(
        f"{distribution.metadata['Name']} {distribution.version}"
        for distribution in importlib.metadata.distributions()
        if any(str(file) == "onnxruntime/__init__.py" for file in distribution.files or [])
    )
    if not found:
        return 'not installed; pip install "edgekd[cpu]"'
    warning = "; they overwrite one another: uninstall all, then install the one you need" if len(found) > 1 else ""
    return ", ".join(found) + warning


def _devices() -> str:
    """The devices that ONNX Runtime finds."""
    import onnxruntime

    if not hasattr(onnxruntime, "get_ep_devices"):
        return "this onnxruntime is too old to list them"
    devices = onnxruntime.get_ep_devices()
    return ", ".join(sorted({f"{device.ep_name} ({device.device.type.name})" for device in devices})) or "none"
