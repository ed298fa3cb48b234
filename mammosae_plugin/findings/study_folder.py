"""A study on disk as it is found: its findings at every layer, and the latents tables behind them.

Nothing is computed here and no configuration file is needed: what a study's folder holds is enough.
"""

__all__ = [
    "Encoder", "is_study_folder", "LayerResults", "layers_of", "RESULTS_FOLDER", "sae_tensors", "StudyFolder",
    "TABLES_FOLDER",
]  # fmt: skip

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.findings.embeddings import is_embedding_study
from mammosae_plugin.findings.layers import read_layers
from mammosae_plugin.schema.names import FINDINGS_FOLDER, RESULTS_FILE, layer_folder
from mammosae_plugin.schema.results import Results

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

RESULTS_FOLDER, TABLES_FOLDER = "results", Path("work") / "latents"


@dataclass(frozen=True)
class Encoder:
    """What shares a latents table: a model, or those of its classifiers whose encoders are bit-identical.

    Attributes:
        name: The model's name where all its classifiers share the table, else "model/concept".
        model: The model's name.
        concepts: The concepts whose classifiers share the table.
        table_folder: The table.
    """

    name: str
    model: str
    concepts: tuple[str, ...]
    table_folder: Path

    @cached_property
    def table(self) -> "LatentTable":
        """The latents table, which is read when it is asked for."""
        from mammosae_plugin.latents import LatentTable

        return LatentTable(self.table_folder)


@dataclass(frozen=True)
class LayerResults:
    """What a study found at one layer.

    Attributes:
        name: The layer as the study's configuration names it.
        folder: Where its report lies.
        results: What was found.
        study_folder: The study's output folder.
    """

    name: str
    folder: Path
    results: Results
    study_folder: Path

    @cached_property
    def encoders(self) -> Mapping[str, Encoder]:
        """By name, in the study's order."""
        return _encoders(self.results, self.study_folder)

    @property
    def hook_name(self) -> str:
        """The hook point at which the SAE reads."""
        return str(self.results["models"][0]["hook_name"])

    @property
    def sae_tensors(self) -> str:
        """Fingerprint of the SAE's tensors."""
        return sae_tensors(self.results["sae"])

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.results["sae"]["d_sae"])


def layers_of(study_folder: Path, found: Mapping[str, Results]) -> tuple[LayerResults, ...]:
    """The layers of a study, from what was found at each."""
    primary = _primary(found)
    places = {name: study_folder / RESULTS_FOLDER / layer_folder(name, primary) for name in found}
    return tuple(LayerResults(name, places[name], results, study_folder) for name, results in found.items())


def _primary(found: Mapping[str, Results]) -> str:
    name, results = next(iter(found.items()))
    return results["layer"]["primary"] if "layer" in results else name


def sae_tensors(sae: Mapping[str, Any]) -> str:
    """What tells a study's SAE from others: the fingerprint of its tensors, whatever file they lie in.

    Args:
        sae: What a study says of it. Earlier versions wrote the fingerprint as `sha256`, which is now the file's.
    """
    return str(sae.get("tensors") or sae.get("sha256"))


def is_study_folder(place: Any) -> bool:
    """Whether a finished study lies in a folder; False for what is no path."""
    marks = (FINDINGS_FOLDER, RESULTS_FILE)  # earlier versions wrote the latter alone
    return isinstance(place, (str, os.PathLike)) and any(
        (local_path(place) / RESULTS_FOLDER / mark).exists() for mark in marks
    )


class StudyFolder:
    """A study's output folder.

    Args:
        folder: The folder that the study's configuration calls `output`.

    Raises:
        InputError: No finished study is there, or one of an earlier version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = local_path(folder)
        if not is_study_folder(self.folder):
            raise InputError(
                f"{self.folder} holds no finished study (no {RESULTS_FOLDER}/{FINDINGS_FOLDER}); run `mammosae study`, "
                "or name the folder that its configuration calls output"
            )
        if is_embedding_study(self.folder / RESULTS_FOLDER):
            raise InputError(
                f"{self.folder} holds a study of embeddings, whose findings stay in its folder (results/report.html, "
                "results/findings); publish an SAE of it by its own folder in work/sae"
            )
        found = read_layers(self.folder / RESULTS_FOLDER / FINDINGS_FOLDER)
        self.layers = layers_of(self.folder, found)
        self.primary_name = _primary(found)
        self.results = found[self.primary_name]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The study's concepts, in order."""
        return tuple(dict.fromkeys(row["concept"] for row in self.results["models"]))

    @property
    def classifiers(self) -> dict[str, tuple[str, str]]:
        """By "model/concept" the id under which a classifier is published, and what tells its weights from others."""
        checksums: dict[str, list[str]] = {}
        for row in self.results["provenance"]["checkpoints"]:
            checksums.setdefault(row["name"], []).append(row["sha256"])
        found = {}
        for row in self.results["models"]:
            key = f"{row['name']}/{row['concept']}"
            found[key] = (key.replace("/", "-"), "+".join(checksums.get(key, [])))
        return found

    @property
    def saes(self) -> dict[str, tuple[str, str]]:
        """By layer the id under which its SAE is published, and what tells its weights from others."""
        return {layer.name: (layer.name, layer.sae_tensors) for layer in self.layers}

    @property
    def dataset_fingerprint(self) -> str:
        """SHA-256 over the annotations and every byte of every image of the study."""
        return str(self.results["provenance"]["dataset_fingerprint"])

    @property
    def training_images(self) -> dict[str, int] | None:
        """How many images of how many patients the study trained on: n_images, n_patients."""
        rows = [row for row in self.results["data"]["splits"] if row["split"] == "training"]
        return {name: rows[0][name] for name in ("n_images", "n_patients")} if rows else None

    def layer(self, name: str | None = None) -> LayerResults:
        """A layer by its name; the primary one for None.

        Raises:
            InputError: The study has no such layer.
        """
        wanted = self.primary_name if name is None else name
        for layer in self.layers:
            if layer.name == wanted:
                return layer
        raise InputError(f"{self.folder} has no layer {wanted!r}; it has {', '.join(x.name for x in self.layers)}")


def _encoders(results: Results, study: Path) -> dict[str, Encoder]:
    concepts: dict[tuple[str, str], list[str]] = {}
    for row in results["tables"]:
        concepts.setdefault((row["model"], Path(row["table"]).name), []).append(row["concept"])
    n_tables = {model: sum(model == other for other, _ in concepts) for model, _ in concepts}
    found = [
        Encoder(
            model if n_tables[model] == 1 else f"{model}/{'+'.join(shared)}",
            model,
            tuple(shared),
            study / TABLES_FOLDER / table,
        )
        for (model, table), shared in concepts.items()
    ]
    return {encoder.name: encoder for encoder in found}
