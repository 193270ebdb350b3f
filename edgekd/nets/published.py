"""The weights that a card names: a file, or weights that torchvision or timm publish for a network."""

import re
from pathlib import Path

from edgekd.candidate import Shape
from edgekd.card import Card, Student, Teacher, is_published
from edgekd.errors import ConfigError, InputError, did_you_mean, one_line, shown
from edgekd.imports import require

__all__ = ["weights_file"]


def weights_file(card: Card, owner: Teacher | Student, shape: Shape) -> Path | None:
    """The weights file of a teacher, or of a student of that shape; None if the card names none.

    `weights = "pretrained"` means the published weights that torchvision or timm prefer for the network, and
    `"pretrained:NAME"` those of that name (torchvision) or tag (timm). They are looked for where these libraries keep
    their downloads, and only fetched if the card says `download = true`. Their SHA-256 is compared with the beginning
    of it that torchvision's file names contain.

    Raises ConfigError for an unknown network or name, and InputError for weights that are not on this machine and may
    not, or cannot, be fetched.
    """
    if not is_published(owner.weights):
        return card.resolve(owner.weights) if owner.weights else None
    _, _, name = owner.weights.partition(":")
    where = f"{card.file}: {'student' if isinstance(owner, Student) else 'teacher'}.weights"
    find = {"torchvision": _from_torchvision, "timm": _from_timm}[owner.family]  # check_card knows these two
    return find(str(shape.get("model", "")), name, owner.download, where)


def _from_torchvision(model: str, name: str, download: bool, where: str) -> Path:
    import torch
    import torchvision

    try:
        published = torchvision.models.get_model_weights(model).__members__
    except ValueError as error:
        raise ConfigError(f"{where}: torchvision has no model {shown(model)}") from error
    if (name or "DEFAULT") not in published:
        raise ConfigError(f"{where}: {model} has no weights {shown(name)}; {did_you_mean(name, published)}")
    url = str(published[name or "DEFAULT"].url)
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if path.is_file():
        return path
    if not download:
        raise _not_here(where, model, str(path))
    digest = re.search(r"-([a-f0-9]{8,})\.", path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, progress=False)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError is a wrong digest
        raise InputError(f"{where}: {url} cannot be fetched: {one_line(error, 120)}") from error
    return path


def _from_timm(model: str, name: str, download: bool, where: str) -> Path:
    timm = require("timm", "timm", "the family 'timm'")
    import huggingface_hub

    full = f"{model.partition('.')[0]}.{name}" if name else model
    try:
        about = timm.get_pretrained_cfg(full)
    except RuntimeError:  # an unknown tag
        about = None
    if about is None or not about.hf_hub_id:
        raise ConfigError(f"{where}: timm publishes no weights of {shown(full)} on the Hugging Face Hub")
    file = about.hf_hub_filename or "model.safetensors"
    try:
        return Path(huggingface_hub.hf_hub_download(about.hf_hub_id, file, local_files_only=not download))
    except Exception as error:  # huggingface_hub's and its HTTP library's exceptions have no common base
        if not download:
            raise _not_here(where, full, f"{about.hf_hub_id}/{file}") from error
        raise InputError(f"{where}: {about.hf_hub_id} cannot be fetched: {one_line(error, 120)}") from error


def _not_here(where: str, model: str, place: str) -> InputError:
    key = where.rpartition(" ")[2].replace(".weights", ".download")
    return InputError(
        f"{where}: the published weights of {model} are not on this machine ({place}); set {key} = true to fetch them, "
        "or name a file"
    )
