"""One network of a finished study, with its SAE and its latents table, for what is asked of it afterwards."""

__all__ = ["Finished", "finished_layer", "layer_of"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mammosae_plugin.config import StudyConfig, load_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings import StudyFolder
from mammosae_plugin.findings.study_folder import LayerResults
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.study.inputs import ModelPair
from mammosae_plugin.study.layer import LayerStudy
from mammosae_plugin.study.study import Study


@dataclass(frozen=True)
class Finished:
    """A classifier of a finished study at one of its layers.

    Attributes:
        study: the study, whose steps are not run again.
        layer: its layer.
        pair: the model and concept of the classifier.
        found: what the study found at the layer.
        table: the latents table that the study made.
    """

    study: Study
    layer: LayerStudy
    pair: ModelPair
    found: LayerResults
    table: LatentTable


def finished_layer(
    file: Path | None,
    settings: Sequence[str] = (),
    *,
    model: str | None = None,
    concept: str | None = None,
    layer: str | None = None,
) -> Finished:
    """A classifier of a finished study.

    Args:
        file: the study's YAML file, or None when the settings say everything.
        settings: as for `load_config`.
        model: a model of the study; None where it has one.
        concept: a concept; None where it has one.
        layer: a layer; None means the primary one.

    Raises:
        InputError: no such study, of maps and finished; no such model, concept or layer, or several where none is
            named.
    """
    config = load_config(file, settings)
    named = file or config.output
    if not isinstance(config, StudyConfig):
        raise InputError(f"{named} is a study of embeddings, which has no classifier; name a study of maps")
    folder = StudyFolder(config.output)
    found = folder.layer(layer)
    models = list(dict.fromkeys(encoder.model for encoder in found.encoders.values()))
    pair = ModelPair(_one(model, models, "model", str(named)), _one(concept, folder.concepts, "concept", str(named)))
    encoder = next((e for e in found.encoders.values() if e.model == pair.model and pair.concept in e.concepts), None)
    if encoder is None:
        raise InputError(f"{config.output} has no table of {pair.key}; run `mammosae study` again")
    study = Study(config)
    return Finished(study, layer_of(study, found, str(named)), pair, found, encoder.table)


def layer_of(study: Study, found: LayerResults, named: str) -> LayerStudy:
    """The layer of a study at which something was found, with its SAE in memory.

    Args:
        study: the study.
        found: what was found there.
        named: what the study is called in an error.

    Raises:
        InputError: the study's settings have no such layer.
    """
    of_name = {one.name: one for one in study.layers}
    if found.name not in of_name and len(of_name) > 1:
        raise InputError(f"{named} has no layer {found.name}, which {study.output} has; run `mammosae study` again")
    chosen = of_name.get(found.name, study.primary)
    _ = chosen.sae  # what is read to train it takes the place of a network that is asked for before
    return chosen


def _one(wanted: str | None, there: Sequence[str], what: str, where: str) -> str:
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted is None:
        raise InputError(f"{where} has the {what}s {', '.join(there)}; name one with --{what}")
    if wanted not in there:
        raise InputError(f"{where} has no {what} {wanted!r}; it has {', '.join(there)}")
    return wanted
