"""Public SAEs of images, and making them known to SAELens by name: `SAE.from_pretrained(release, sae_id)`.

The table is releases.yaml, whose facts come from repositories and docs that it names; no file was downloaded for it.

SAELens keeps its list of releases in one dictionary per process, and the loaders of foreign formats in two more. That
they can be added to is not documented: what is taken for granted has a canary each in tests/test_hub_releases.py. The
documented way, which needs no registration and takes a revision, is

    SAE.from_pretrained("KKNakka/MammoSAE", "sparse_autoencoder_final.pt", converter=huggingface_converter())
"""

__all__ = ["describe_releases", "LOADER", "register_releases", "Release", "RELEASES"]

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, try_to_load_from_cache
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_CONFIG_GETTERS, NAMED_PRETRAINED_SAE_LOADERS
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup, get_pretrained_saes_directory

from mammosae_plugin.adapters.sae_formats.loading import huggingface_config, huggingface_converter
from mammosae_plugin.adapters.sources import HUB_SCHEME, parse_hub_name
from mammosae_plugin.errors import InputError
from mammosae_plugin.file_kinds import CHECKPOINT_SUFFIXES

logger = logging.getLogger(__name__)

LOADER = "mammosae_vision_sae"
_USUAL = ("weights.pt", "n_images_2600058.pt")
"""What the weights in ViT-Prisma's repos are called, as far as code says that downloads them."""


@dataclass(frozen=True)
class Release:
    """SAEs of one kind on the Hub, under one name.

    Attributes:
        name: the first argument of `SAE.from_pretrained`.
        repo: the Hub's repo, or the owner of the repos where each SAE has one of its own.
        model: the model that the SAEs belong to, for the lists that SAELens prints.
        saes: the second argument of `SAE.from_pretrained` -> the path in the repo: of a folder in SAELens's format or,
            with `foreign`, of what `load_sae` reads; or `hub://owner/name[/path]` of another repo, without a path for
            the one file of weights in it.
        foreign: whether the files are of another library than SAELens.
        library: which one, as `mammosae inspect` names it.
        d_in: width of the rows, where it is known.
        trained_on: "map" (positions of a feature map), "patches", "class_token", "class_token_and_patches" or "image"
            (one vector each).
        facts: by the second argument, what the SAE's metadata are to say where its file does not: `hook_name`,
            `source_layer`.
        source: where these facts stand.
        note: what to know besides, or what could not be verified.
    """

    name: str
    repo: str
    model: str
    saes: Mapping[str, str]
    foreign: bool = False
    library: str = "SAELens"
    d_in: int | None = None
    trained_on: str | None = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str | None = None
    note: str | None = None


def _read(path: Path) -> tuple[Release, ...]:
    found = []
    for said in yaml.safe_load(path.read_text(encoding="utf-8")):
        saes: dict[str, dict[str, Any]] = said["saes"]
        repos = {one.get("repo", said.get("repo")) for one in saes.values()}
        found.append(
            Release(
                name=said["name"],
                repo=said.get("repo") or min(repos).split("/")[0],
                model=said["model"],
                saes={sae_id: _place(said.get("repo"), one) for sae_id, one in saes.items()},
                foreign=True,
                library=said["library"],
                d_in=said.get("d_in"),
                trained_on=said["trained_on"],
                facts={sae_id: _facts(said, one) for sae_id, one in saes.items()},
                source=said["source"],
                note=said.get("note"),
            )
        )
    return tuple(found)


def _place(repo: str | None, said: Mapping[str, Any]) -> str:
    if repo is not None:
        return str(said["file"])
    return f"{HUB_SCHEME}{said['repo']}" + (f"/{said['file']}" if "file" in said else "")


def _facts(said: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    facts = {"model_name": said["model"], "trained_on": said["trained_on"]}
    facts |= {"source_layer": one["layer"]} if "layer" in one else {}
    return facts | ({"hook_name": one["hook_name"], "layout": "channels_last"} if "hook_name" in one else {})


RELEASES: tuple[Release, ...] = _read(Path(__file__).with_name("releases.yaml"))


def register_releases(releases: Sequence[Release] = RELEASES) -> tuple[str, ...]:
    """Make `SAE.from_pretrained("mammo-sae-b5-vindr", "layer_39")` work in this process, and all other public SAEs.

    Nothing is downloaded and nothing happens at import: call it once where it is wanted. Calling it again changes
    nothing. Afterwards SAELens warns when the same repo is loaded by its name and says that the repo is on its official
    list, which is not so.

    Args:
        releases: what to register; by default the releases that this package knows (`mammosae releases` lists them).

    Returns:
        The names of the releases.

    Raises:
        InputError: SAELens, or another package, already has something else under one of the names; nothing is changed.
    """
    directory: dict[str, Any] = get_pretrained_saes_directory()
    for release in releases:
        for sae_id, facts in release.facts.items():
            _FACTS[release.repo, release.saes[sae_id]] = facts
    tables: list[tuple[dict[str, Any], str, Any]] = [
        (NAMED_PRETRAINED_SAE_LOADERS, LOADER, _load),
        (NAMED_PRETRAINED_SAE_CONFIG_GETTERS, LOADER, _config),
        *((directory, release.name, _lookup(release)) for release in releases),
    ]
    for table, name, entry in tables:
        if name in table and table[name] != entry:
            of = f", of the repo {table[name].repo_id}" if table is directory else ""
            raise InputError(f"SAELens already has something else under the name {name!r}{of}; it is left as it is")
    for table, name, entry in tables:
        table[name] = entry
    return tuple(release.name for release in releases)


def describe_releases(name: str | None = None, releases: Sequence[Release] = RELEASES) -> str:
    """The releases for reading, a line each; or of one of them all that is known, with a line for each SAE.

    Raises:
        InputError: There is no release of this name.
    """
    if name is None:
        lines = [("release", "SAEs", "library", "d_in", "model"), *(_line(release) for release in releases)]
        return _aligned(lines)
    release = next((one for one in releases if one.name == name), None)
    if release is None:
        raise InputError(f"{name!r} is no release; known are {', '.join(one.name for one in releases)}")
    facts = {
        "release": release.name,
        "library": release.library,
        "repository": release.repo,
        "model": release.model,
        "d_in": release.d_in and str(release.d_in),
        "trained on": release.trained_on,
        "source": release.source,
        "note": release.note,
    }
    told = _aligned([(key, value) for key, value in facts.items() if value])
    saes = [("SAE", "file", "hook point or block")]
    for sae_id, place in release.saes.items():
        said = release.facts.get(sae_id, {})
        saes.append((sae_id, place, str(said.get("hook_name", said.get("source_layer", "")))))
    return f"{told}\n\n{_aligned(saes)}"


def _line(release: Release) -> tuple[str, ...]:
    width = "" if release.d_in is None else str(release.d_in)
    return release.name, str(len(release.saes)), release.library, width, release.model


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


_FACTS: dict[tuple[str, str], Mapping[str, Any]] = {}  # of registered releases, by repo and path


def _load(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], None]:
    """SAELens's loader of these releases."""
    repo, path = _found(repo_id, folder_name)
    config, state, _ = huggingface_converter()(repo, path, device, force_download)
    return _with_facts(config, repo_id, folder_name, cfg_overrides), state, None


def _config(
    repo_id: str,
    folder_name: str,
    device: str | None = None,
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    repo, path = _found(repo_id, folder_name)
    return _with_facts(huggingface_config(repo, path, device, force_download), repo_id, folder_name, cfg_overrides)


def _with_facts(
    config: dict[str, Any], repo_id: str, folder_name: str, cfg_overrides: Mapping[str, Any] | None
) -> dict[str, Any]:
    """With what the table says where the file itself does not."""
    told = {key: value for key, value in config["metadata"].items() if value is not None}
    metadata = {**_FACTS.get((repo_id, folder_name), {}), **told}
    return {**config, "metadata": metadata, **(cfg_overrides or {})}


def _found(repo_id: str, place: str) -> tuple[str, str]:
    """Repo and path of a place in a release."""
    if not place.startswith(HUB_SCHEME):
        return repo_id, place
    repo, _, path = parse_hub_name(place)
    return repo, path or _weights_in(repo)


def _weights_in(repo: str) -> str:
    """The one file of weights in a repo; one of a usual name where it has several, or nobody can be asked.

    Raises:
        InputError: there are several.
    """
    try:
        files = HfApi().list_repo_files(repo)
    except Exception as error:  # the download says what is wrong, or finds it in the cache
        files = [name for name in _USUAL if isinstance(try_to_load_from_cache(repo, name), str)]
        logger.info("the files of %s cannot be listed (%s); what the cache holds is taken", repo, error)
    weights = [name for name in files if PurePosixPath(name).suffix in CHECKPOINT_SUFFIXES]
    if usual := [name for name in _USUAL if name in weights or not weights]:
        return usual[0]
    if len(weights) > 1:
        raise InputError(
            f"{repo} holds {len(weights)} files of weights, of which none is {' or '.join(_USUAL)}: "
            f"{', '.join(sorted(weights)[:4])}; load one with load_sae({repo!r}, filename=...)"
        )
    return weights[0]


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
