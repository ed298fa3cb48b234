"""Releases of SAEs under a name that `SAE.from_pretrained` knows.

SAELens keeps its list of releases in one dictionary per process, and the loaders of foreign formats in two more. That
they can be added to is not documented: what is taken for granted has a canary each in tests/test_hub_releases.py. The
documented way, which needs no registration and takes a revision, is

    SAE.from_pretrained("KKNakka/MammoSAE", "sparse_autoencoder_final.pt", converter=vision_sae_huggingface_loader)
"""

__all__ = ["LOADER", "register_releases", "Release", "RELEASES"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_CONFIG_GETTERS, NAMED_PRETRAINED_SAE_LOADERS
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup, get_pretrained_saes_directory

from mammosae_plugin.adapters.sae_formats.loading import huggingface_config
from mammosae_plugin.adapters.sae_formats.mammo_sae import DEFAULT_FILENAME
from mammosae_plugin.adapters.vision_sae import vision_sae_huggingface_loader
from mammosae_plugin.errors import InputError

LOADER = "mammosae_vision_sae"


@dataclass(frozen=True)
class Release:
    """SAEs in one Hub repo, under one name.

    Attributes:
        name: the first argument of `SAE.from_pretrained`.
        repo: the Hub's repo.
        model: the model that the SAEs belong to, for the lists that SAELens prints.
        saes: the second argument of `SAE.from_pretrained` -> the path in the repo: of a folder in SAELens's format or,
            with `foreign`, of a Mammo-SAE checkpoint.
        foreign: whether the files are Mammo-SAE checkpoints.
    """

    name: str
    repo: str
    model: str
    saes: Mapping[str, str]
    foreign: bool = False


RELEASES: tuple[Release, ...] = (
    Release(
        name="mammo-sae-b5-vindr",
        repo="KKNakka/MammoSAE",
        model="mammo_clip_b5",
        saes={"layer_39": DEFAULT_FILENAME},
        foreign=True,
    ),
)


def register_releases(releases: Sequence[Release] = RELEASES) -> tuple[str, ...]:
    """Make `SAE.from_pretrained("mammo-sae-b5-vindr", "layer_39")` work in this process.

    Nothing is downloaded and nothing happens at import: call it once where it is wanted. Calling it again changes
    nothing. Afterwards SAELens warns when the same repo is loaded by its name and says that the repo is on its official
    list, which is not so.

    Args:
        releases: what to register; by default the releases that this package knows.

    Returns:
        The names of the releases.

    Raises:
        InputError: SAELens, or another package, already has something else under one of the names; nothing is changed.
    """
    directory: dict[str, Any] = get_pretrained_saes_directory()
    tables: list[tuple[dict[str, Any], str, Any]] = [
        (NAMED_PRETRAINED_SAE_LOADERS, LOADER, vision_sae_huggingface_loader),
        (NAMED_PRETRAINED_SAE_CONFIG_GETTERS, LOADER, huggingface_config),
        *((directory, release.name, _lookup(release)) for release in releases),
    ]
    for table, name, entry in tables:
        if name in table and table[name] != entry:
            of = f", of the repo {table[name].repo_id}" if table is directory else ""
            raise InputError(f"SAELens already has something else under the name {name!r}{of}; it is left as it is")
    for table, name, entry in tables:
        table[name] = entry
    return tuple(release.name for release in releases)


def _lookup(release: Release) -> PretrainedSAELookup:
    ids = list(release.saes)
    return PretrainedSAELookup(
        release=release.name,
        repo_id=release.repo,
        model=release.model,
        conversion_func=LOADER if release.foreign else None,
        saes_map=dict(release.saes),
        # What SAELens itself writes for releases that state neither.
        expected_var_explained=dict.fromkeys(ids, 1.0),
        expected_l0=dict.fromkeys(ids, 0.0),
        neuronpedia_id={},
        norm_scaling_factor={},
        config_overrides=None,
    )
