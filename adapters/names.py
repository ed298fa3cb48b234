"""Names of networks, as people write them anywhere: which library a name is of, and what the library calls it."""

__all__ = ["network_name", "NetworkName"]

import os
from pathlib import Path
from typing import Any, NamedTuple

from mammosae_plugin.adapters.saved_classifiers import is_classifier_folder
from mammosae_plugin.adapters.sources import HUB_SCHEMES, is_on_hub
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json

_SCHEMES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "hf": "transformers",
    "open_clip": "open_clip",
    "function": "function",
}
_OF_TIMM = ("hf-hub:", "hf_hub:", "local-dir:")  # timm's own


class NetworkName(NamedTuple):
    """Where a network is to be found.

    Attributes:
        library: "timm", "torchvision", "transformers", "open_clip" or "function"; "file" of a checkpoint that
            `load_classifier` reads.
        name: its name there, or the path or address of the file.
        has_weights: whether the name is of certain weights, as that of a repository is, and not of an architecture.
    """

    library: str
    name: str
    has_weights: bool


def network_name(text: str | os.PathLike[str]) -> NetworkName:
    """What a network's name means.

    `timm:`, `torchvision:`, `transformers:` (or `hf:`), `open_clip:` and `function:` say the library; `hf-hub:` is a
    repository of timm's. Without any of them it is a file, a folder, by its config, a repository of transformers where
    it has the form owner/name, and else timm's name of an architecture.

    Raises:
        InputError: the name is empty, or of a folder that says nothing of a network.
    """
    name = os.fspath(text)
    if not name.strip():
        raise InputError("the model's name is empty; give a checkpoint, or a library's name of a network")
    scheme, _, rest = name.partition(":")
    if scheme in _SCHEMES and not name.startswith(HUB_SCHEMES):
        if not rest.strip():
            raise InputError(f"{name} names no network; write it behind the colon")
        return NetworkName(_SCHEMES[scheme], rest, _has_weights(_SCHEMES[scheme], rest))
    if name.startswith(_OF_TIMM):
        return NetworkName("timm", name, True)
    path = local_path(name)
    if not name.startswith(HUB_SCHEMES) and path.is_dir():
        return _of_folder(name, path)
    if name.startswith(HUB_SCHEMES) or path.exists():
        return NetworkName("file", name, True)
    if is_on_hub(name):
        return NetworkName("transformers", name, True)
    return NetworkName("timm", name, False)


def _of_folder(name: str, path: Path) -> NetworkName:
    if (path / "open_clip_config.json").is_file():
        return NetworkName("open_clip", f"local-dir:{name}", _holds_weights(path))
    said: Any = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if isinstance(said, dict) and "format_version" in said and is_classifier_folder(path):
        return NetworkName("file", name, True)
    if isinstance(said, dict) and "model_type" in said:
        return NetworkName("transformers", name, _holds_weights(path))
    if isinstance(said, dict) and "architecture" in said:
        return NetworkName("timm", f"local-dir:{name}", _holds_weights(path))
    raise InputError(
        f"{name} is a folder without the config of a network (config.json of transformers or timm, "
        "open_clip_config.json); give a checkpoint file of the network, or a library's name of one"
    )


def _has_weights(library: str, name: str) -> bool:
    if library == "transformers":
        path = local_path(name)
        return _holds_weights(path) if path.is_dir() else True
    if library == "timm":
        return name.startswith(_OF_TIMM)
    return library == "function" or (library == "open_clip" and ("/" in name or ":" in name))


def _holds_weights(folder: Path) -> bool:
    return any(file.suffix in (".safetensors", ".bin", ".pt", ".pth") for file in folder.iterdir())
