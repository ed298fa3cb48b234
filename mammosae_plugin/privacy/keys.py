"""Which entries JSON and YAML of an upload may have, and how many numbers may stand together in them.

The names are those that this package and SAELens write: settings are read off the classes that define them, so that a
new setting is known here too; the rest is listed. What is not listed is not known to be harmless.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from mammosae_plugin.provenance import PACKAGES
from mammosae_plugin.schema.results import ROLE_NUMBERS

MOST_NUMBERS = 64
"""How many numbers a list may hold, lists in it included, and a text."""
MOST_ENTRIES = 256
"""How many numbers an object may hold, those of its lists included; and how many entries it may have."""
MOST_OBJECTS = 1024
"""How many objects or texts a list may hold."""

_METRICS = ("auroc", "average_precision", "precision", "recall", "f1", "accuracy")
_SPLITS = ("training", "validation", "test")
_HUB = ("repo", "revision", "commit")
_PREPROCESSING = ("read_as", "steps", "mean", "std", "resize")
_SOURCE = (
    *("kind", "variant", "files", "sha256", "hub", "seed", "metadata", "trained_from", "folded_batch_norms", *_HUB),
    *("concept", "concepts", "config", "encoder", "dataset", "images", "preprocessing", "outcome", *_PREPROCESSING),
    *("n_patients", "n_images", "validation_auroc", "epoch", *_SPLITS),
)
_METADATA = (
    *("sae_lens_version", "sae_lens_training_version", "mammosae_version", "mammosae_plugin_version"),
    *("model_name", "hook_name", "layout", "image_size", "dataset_path", "dataset_fingerprint", "trained_on", "splits"),
    *("model_fingerprint", "model_source", "seed", "training", "preprocessing", "trained_on_model", "concept"),
    *("training_architecture", "training_architecture_details", "l0", "num_dead_features", "dead_feature_window"),
    *("source_file", "source_sha256", "source_repo", "source_revision", "source_commit"),
    # of SAEs that SAELens trained on language models
    *("model_class_name", "model_from_pretrained_kwargs", "hook_head_index", "hook_name_out", "hook_head_index_out"),
    *("context_size", "seqpos_slice", "prepend_bos", "exclude_special_tokens", "sequence_separator_token"),
    *("disable_concat_sequences", "neuronpedia_id"),
)
_CLASSIFIER = (
    *("format_version", "architecture", "n_class", "static_padding", "image_size", "source", "metadata"),
    "trained_from",
)
_MEASURES = (
    *("explained_variance", "mse", "l0", "dead_share", "slope", "rows", "measured_on", "n_images", "n_positions"),
    "auroc_cost",
    *("n_patients", "n_rows", "n_positive", "n_negative", "model", "concept", "split"),
    *("auroc_without_sae", "auroc_with_sae"),
    *(f"{metric}{end}" for metric in _METRICS for end in ("", "_low", "_high")),
)
_COURSE = (
    *("step", "of", "final", "rows", "loss", "mse_loss", "l1_loss", "l0_loss", "pre_act_loss"),
    *("auxiliary_reconstruction_loss", "explained_variance", "mse", "l0", "dead_share", "slope", "learning_rate"),
    *("shrinkage", "dead_window_steps", "dead_share_in_training", "rows_in_training", "n_dead"),
    *("l1_coefficient", "l0_coefficient"),
    *("density", "log10_edges", "counts", "never", "auroc_cost"),
)
_PROVENANCE = (
    *("weights_sha256", "cfg_sha256", "tensors", "published_with", "trained_with", "dataset_fingerprint"),
    *("model_fingerprint", "source", "mammosae_plugin", "packages", "python", "platform", "mammosae_version"),
    *("sae_lens_training_version", "source_file", "source_sha256", "source_repo", "source_revision", "source_commit"),
    *("datasets", "licence", "base_model", "confounders", "latent", "follows", "figures"),
    *("images", "n_images", "n_patients", "image_size"),
)
_CARD = (
    *("license", "license_name", "license_link", "language", "library_name", "pipeline_tag", "tags", "base_model"),
    *("base_model_relation", "datasets", "model-index", "name", "results", "task", "type", "dataset", "config"),
    *("split", "revision", "args", "metrics", "value", "verified", "source", "url", "pretty_name", "size_categories"),
    *("task_categories", "configs", "config_name", "data_files", "path", "default", "title", "emoji", "colorFrom"),
    *("colorTo", "sdk", "pinned", "short_description", "id", "task_id", "notes", "date", "metric", "models"),
)
_DATA = (
    *("image_size", "unit", "splits", "concepts", "n_quarantined", "n_clipped_boxes", "split", "concept"),
    *("boxes", "n_mended_boxes", "n_inverted_boxes", "n_dropped_boxes"),
    *("n_images", "n_patients", "n_rows", "n_positive", "n_boxes"),
)
_MODELS = (
    *("layer", "encoder", "name", "concept", "architecture", "kind", "hook_name", "grid", "d_in", "readout"),
    *("published", "repo", "revision", "id"),
)
_SAE = (
    *(
        "source",
        "architecture",
        "d_in",
        "d_sae",
        "sha256",
        "trained_on",
        "trained_l0",
        "training",
        "share_of_positions",
    ),
    *("positions_per_image", "hook_name", "quality", "model", "concept", "split", "explained_variance", "l0"),
    *("dead_share", "mse", "n_dead", "n_live", "n_images", "n_positions", "auroc_cost", "tensors"),
    *("published", "repo", "revision", "id"),
)
_STUDY_PROVENANCE = ("packages", "checkpoints", "name", "file", "sha256", "dataset_fingerprint", "seed", "python")


@dataclass(frozen=True)
class Entries:
    """What may stand in a JSON value.

    Attributes:
        keys: the keys that may occur, at any depth.
        pattern: further keys, by their form.
        names: for how many levels from the top the keys are names that users gave (of layers, of models).
        named: keys whose value is an object whose own keys are such names.
    """

    keys: frozenset[str]
    pattern: str = ""
    names: int = 0
    named: frozenset[str] = frozenset()

    def unknown(self, value: Any, names: int | None = None) -> Iterator[str]:
        """The keys in a value that may not occur."""
        names = self.names if names is None else names
        if isinstance(value, Mapping):
            for key, item in value.items():
                text = key if isinstance(key, str) else ""  # YAML has other keys
                if not (_NAME.fullmatch(text) if names else self._knows(text)):
                    yield str(key)
                yield from self.unknown(item, max(names - 1, int(text in self.named)))
        elif isinstance(value, list):
            for item in value:
                yield from self.unknown(item, names)

    def _knows(self, key: str) -> bool:
        return key in self.keys or bool(self.pattern and re.fullmatch(self.pattern, key))


_NAME = re.compile(r"[A-Za-z_][\w .+-]{0,79}(?:/[\w .+-]{1,80})?")


def entries_of(path: str, place: str) -> Entries | None:
    """What may stand in a file, or at a place of a table; None where it is code's own data (JavaScript).

    Args:
        path: the file's path in the upload.
        place: as `Opened.values` names it; "column config" is JSON in the column `config` of a table.
    """
    if path.endswith((".js", ".safetensors")):
        return None
    if path.endswith(".parquet"):
        return _study(place.removeprefix("column ")) if path.startswith("study/") else Entries(frozenset())
    return _of_file(path.rpartition("/")[2] if path.endswith((".json", ".jsonl")) else "a card")


def _of_file(name: str) -> Entries:
    match name:
        case "cfg.json":
            keys = frozenset((*_sae_lens(), *_METADATA, *_SOURCE, *_settings_of_training()))
            return Entries(keys, named=frozenset({"folded_batch_norms"}))
        case "config.json":
            keys = frozenset((*_CLASSIFIER, *_SOURCE, *_settings_of_training()))
            return Entries(keys, named=frozenset({"static_padding"}))
        case "training.json":
            return Entries(frozenset(("plan_sha256", "config", "steps", *_sae_lens(), *_settings_of_training())))
        case "metrics.jsonl":
            return Entries(frozenset(_COURSE), pattern=r"inner_mse_loss_\d{1,6}")
        case "evaluation.json":
            return Entries(frozenset(_MEASURES))
        case "provenance.json":
            return Entries(frozenset((*_PROVENANCE, *PACKAGES)))
        case "a card":
            return Entries(frozenset(_CARD))
    return Entries(frozenset())


def _study(column: str) -> Entries:
    """What may stand in the JSON columns of the config `study`."""
    match column:
        case "config":
            return Entries(_settings_of_study(), named=frozenset({"classifiers"}))
        case "provenance":
            return Entries(frozenset((*_STUDY_PROVENANCE, "platform", *PACKAGES)))
        case "data":
            return Entries(frozenset(_DATA))
        case "models":
            return Entries(frozenset(_MODELS))
        case "sae":
            return Entries(frozenset((*_SAE, *_settings_of_training())), names=1)
        case "named_latents":
            return Entries(frozenset(("latent", "role", "reason", "by", *ROLE_NUMBERS)), names=2)
    return Entries(frozenset())


def _sae_lens() -> set[str]:
    """The fields of every architecture that SAELens knows now, also those that users registered."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    configs = [
        config for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY) for _, config in registry.values()
    ]
    return {"architecture"} | {field.name for config in configs for field in dataclasses.fields(config)}


@cache
def _settings_of_training() -> frozenset[str]:
    from mammosae_plugin.training.classifier import ClassifierTraining
    from mammosae_plugin.training.settings import SAETraining

    return frozenset((*SAETraining.model_fields, *ClassifierTraining.model_fields))


@cache
def _settings_of_study() -> frozenset[str]:
    from mammosae_plugin.config import StudyConfig

    found: set[str] = set()

    def walk(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.update(kind.model_fields)
            for field in kind.model_fields.values():
                walk(field.annotation)
            for one in kind.__subclasses__():
                walk(one)
        for inner in get_args(kind):
            walk(inner)

    walk(StudyConfig)
    return frozenset(found)


def too_many_numbers(value: Any) -> str | None:
    """What in a JSON value holds more numbers, or more entries, than a setting or an aggregate does; None if nothing.

    A picture of 8 x 8 pixels is the largest that passes in a list, and one of 16 x 16 in an object.
    """
    if isinstance(value, Mapping):
        lists = sum(_numbers(item) for item in value.values())
        if len(value) > MOST_ENTRIES or lists > MOST_ENTRIES:
            return f"an object of more than {MOST_ENTRIES} numbers or entries"
    elif isinstance(value, list):
        if _numbers(value) > MOST_NUMBERS:
            return f"a list of more than {MOST_NUMBERS} numbers"
        if len(value) > MOST_OBJECTS:
            return f"a list of more than {MOST_OBJECTS} entries"
    elif isinstance(value, str) and lists_numbers(value):
        return f"a text of more than {MOST_NUMBERS} numbers"
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next(filter(None, map(too_many_numbers, inner)), None)


def lists_numbers(text: str) -> bool:
    """Whether a text is a list of numbers: more than `MOST_NUMBERS`, or one with very many digits; JSON is not."""
    if len(_NUMBER.findall(text)) <= MOST_NUMBERS and not _DIGITS.search(text):
        return False
    try:
        return not isinstance(json.loads(text), (dict, list))  # which is held against the limits as such
    except ValueError:
        return True


_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DIGITS = re.compile(r"\d{100,}")


def _numbers(value: Any) -> int:
    """The numbers in a value and in lists in it; objects in lists are looked at by themselves."""
    if isinstance(value, list):
        return sum(map(_numbers, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)
