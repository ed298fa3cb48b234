"""What of a study's configuration and provenance may be told: nothing of the machine where it ran."""

__all__ = ["LOCAL_FOLDER", "sae_origin", "shared_config", "shared_provenance"]

import re
from collections.abc import Mapping
from typing import Any

from mammosae_plugin.adapters.sources import is_on_hub
from mammosae_plugin.config import BELOW_ROOT
from mammosae_plugin.config.maps import START_LIBRARIES
from mammosae_plugin.schema.results import TRAINED_HERE

Row = dict[str, Any]

_FILE = re.compile(r".+\.(?:pt|pth|tar|ckpt|bin|safetensors|npz|json)", re.IGNORECASE | re.DOTALL)
LOCAL_FOLDER = "a local folder"


def _without_folder(name: Any) -> Any:
    """The name of a file of weights, or a place on the Hub; of a folder on this machine not even its name."""
    return name if not isinstance(name, str) or is_on_hub(name) or _FILE.fullmatch(name) else LOCAL_FOLDER


def sae_origin(sae: Mapping[str, Any]) -> str:
    """Where an SAE came from, as it may be told."""
    source = str(sae["source"])
    return source if sae.get("published") or source == TRAINED_HERE else str(_without_folder(source))


def shared_config(config: Mapping[str, Any]) -> Row:
    """The configuration without what is about the machine where it ran: folders, files of SAEs, its device.

    SAEs that were read from the Hub keep their place there.
    """

    def without(section: Mapping[str, Any], *keys: str) -> Row:
        return {key: value for key, value in section.items() if key not in keys}

    kept = without(config, "output", "device", "num_workers")
    sae = without(config["sae"], "path", "paths")
    if is_on_hub(config["sae"].get("path")):
        sae["path"] = config["sae"]["path"]
    if paths := {layer: place for layer, place in (config["sae"].get("paths") or {}).items() if is_on_hub(place)}:
        sae["paths"] = paths
    models = [
        {
            **model,
            "encoder": _without_folder(model.get("encoder")),
            "classifiers": model.get("classifiers")
            and {concept: _without_folder(place) for concept, place in model["classifiers"].items()},
            **{name: without(model[name], "arguments", "prefix") for name in START_LIBRARIES if model.get(name)},
        }
        for model in config["models"]
    ]
    data = without(config["data"], "root", "labels", "mapping")  # what labels there are is told by `_shared_data`
    for name in (name for name in BELOW_ROOT & data.keys() if data[name] is not None):
        data[name] = re.split(r"[/\\]", str(data[name]))[-1]
    analysis = {**config["analysis"], "pairs": None}  # whose images are others, of which nothing goes out
    if analysis.get("names"):
        analysis["names"] = {**analysis["names"], "files": []}
    return {**kept, "data": data, "sae": sae, "models": models, "analysis": analysis}


def shared_provenance(provenance: Mapping[str, Any]) -> Row:
    """Versions and checksums, with the names of files of weights but of no folder."""
    checkpoints = [{**row, "file": _without_folder(row["file"])} for row in provenance["checkpoints"]]
    return {**provenance, "checkpoints": checkpoints}
