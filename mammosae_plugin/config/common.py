"""What the configurations of every kind of study have alike, and names and places as they are written there."""

__all__ = ["Checkpoint", "CommonConfig", "Data", "FileName", "is_empty", "path_or_hub"]

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, field_validator

from mammosae_plugin.adapters.recording import require_device
from mammosae_plugin.adapters.sources import HUB_SCHEMES
from mammosae_plugin.datasets.registry import DataSettings, LocalPath, of_its_kind
from mammosae_plugin.files import local_path
from mammosae_plugin.validation import Settings


def path_or_hub(value: str | Path) -> str | Path:
    """A place on the Hub as it is written, or a local path."""
    return value if str(value).startswith(HUB_SCHEMES) else local_path(value)


_LONGEST_NAME = 64
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def _file_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?<!\.)", name) is None:
        raise ValueError(
            f"must be letters, digits and _.-, the first no point or hyphen, the last no point, because files "
            f"bear it; not {name!r}"
        )
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"has {len(name)} letters, but files bear it; give at most {_LONGEST_NAME}")
    if name.split(".")[0].lower() in _RESERVED:
        raise ValueError(f"is {name!r}, which no file on Windows may be called; choose another name")
    return name


# A local path, or "hub://owner/name[@revision]/path/in/repo", which stays a string.
Checkpoint = Annotated[str | Path, AfterValidator(path_or_hub)]
# The section of the kind of dataset that it names, with that kind's own settings.
Data = Annotated[SerializeAsAny[DataSettings], BeforeValidator(of_its_kind)]
FileName = Annotated[str, AfterValidator(_file_name)]


def is_empty(section: Settings, name: str) -> bool:
    """Whether a section is written and says nothing."""
    return name in section.model_fields_set and getattr(section, name) is None


class CommonConfig(Settings):
    """What every study is told. Relative paths count from the folder of the configuration file."""

    output: LocalPath = Field(description="The one folder that everything is written to.")
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Seeds sampled positions, bootstraps, random groups, images drawn; training has its own.",
    )
    device: str = Field("cpu", description="Where networks run: cpu, cuda, cuda:1, ...")
    batch_size: int = Field(1, gt=0, description="Images per forward pass of extraction and encoding.")
    num_workers: int = Field(
        0, ge=0, description="Processes that read images beside the network, and that make boxes of heatmaps."
    )

    @field_validator("device")
    @classmethod
    def _device_is_there(cls, device: str) -> str:
        require_device(device)
        return device
