"""What each kind of upload may hold, and nothing else: the policies that stagers hand to the privacy guard.

The entries of JSON and YAML are those that this package and SAELens write: settings are read off the classes that
define them, so that a new setting is known here too; the rest is listed. The columns of findings are their schema's.
"""

__all__ = ["FINDINGS", "MODEL", "POLICIES", "SAE", "SPACE"]

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, get_args

from pydantic import BaseModel

from mammosae_plugin.privacy.policy import Entries, Policy
from mammosae_plugin.privacy.reading import Opened
from mammosae_plugin.provenance import PACKAGES
from mammosae_plugin.schema.findings import COLUMNS, METRICS
from mammosae_plugin.schema.pages import PICTURE_FILE
from mammosae_plugin.schema.results import ROLE_NUMBERS
from mammosae_plugin.schema.score_card import FIELDS as SCORE_CARD_FIELDS
from mammosae_plugin.schema.score_card import SCORE_CARD

_SPLITS = ("training", "validation", "test")
_HUB = ("repo", "revision", "commit")
_PREPROCESSING = ("read_as", "steps", "mean", "std", "resize")
_SOURCE = (
    *("kind", "variant", "files", "sha256", "hub", "seed", "metadata", "trained_from", "folded_batch_norms", *_HUB),
    *("concept", "concepts", "config", "encoder", "dataset", "images", "preprocessing", "outcome", *_PREPROCESSING),
    *("n_patients", "n_images", "n_unlabelled", "weights", "validation_auroc", "epoch", *_SPLITS),
)
# where a loaded SAE was from: its metadata say it, and so does the provenance of what is published
_SAE_SOURCE = (
    *("source_format", "source_file", "source_sha256", "source_repo", "source_revision", "source_commit"),
    *("source_layer", "source_submodule"),
)
_METADATA = (
    *("sae_lens_version", "sae_lens_training_version", "mammosae_version", "mammosae_plugin_version"),
    *("model_name", "hook_name", "layout", "image_size", "dataset_path", "dataset_fingerprint", "trained_on", "splits"),
    *("model_fingerprint", "model_source", "seed", "training", "preprocessing", "trained_on_model", "concept"),
    *("training_architecture", "training_architecture_details", "l0", "num_dead_features", "dead_feature_window"),
    *_SAE_SOURCE,
    *("input_normalization", "levels", "k"),
    # of SAEs that other libraries saved
    *("dictionary_class", "decoder_normalized", "threshold"),
    *("assumed", "normalization", "encoder"),
    # of SAEs that SAELens trained on language models
    *("model_class_name", "model_from_pretrained_kwargs", "hook_head_index", "hook_name_out", "hook_head_index_out"),
    *("context_size", "seqpos_slice", "prepend_bos", "exclude_special_tokens", "sequence_separator_token"),
    *("disable_concat_sequences", "neuronpedia_id"),
)
_CLASSIFIER = (
    *("format_version", "architecture", "n_class", "static_padding", "image_size", "source", "metadata"),
    "library",
    "trained_from",
    "unit",
)
_MEASURES = (
    *("explained_variance", "mse", "l0", "dead_share", "slope", "rows", "measured_on", "n_images", "n_positions"),
    "auroc_cost",
    *("n_patients", "n_rows", "n_positive", "n_negative", "model", "concept", "split"),
    *("auroc_without_sae", "auroc_with_sae"),
    *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")),
)
_COURSE = (
    *("step", "of", "final", "rows", "loss", "mse_loss", "l1_loss", "l0_loss", "pre_act_loss"),
    *("auxiliary_reconstruction_loss", "explained_variance", "mse", "l0", "dead_share", "slope", "learning_rate"),
    *("shrinkage", "dead_window_steps", "dead_share_in_training", "rows_in_training", "n_dead"),
    *("l1_coefficient", "l0_coefficient"),
    *("density", "log10_edges", "counts", "never", "auroc_cost"),
    *("r2", "levels", "width", "alive", "mean_absolute_correlation"),
)
_PROVENANCE = (
    *("weights_sha256", "cfg_sha256", "tensors", "published_with", "trained_with", "dataset_fingerprint"),
    *("model_fingerprint", "source", "mammosae_plugin", "packages", "python", "platform", "commit", "mammosae_version"),
    *("sae_lens_training_version", *_SAE_SOURCE),
    *("datasets", "citations", "licence", "base_model", "confounders", "latent", "follows", "figures"),
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
    *("n_images", "n_patients", "n_rows", "n_units", "n_positive", "n_missing", "n_boxes"),
    *("vocabulary", "name", "kind", "classes", "masks"),
    *("pictures", "shown", "reason", "n_latents", "n_pictures", "most", "bytes"),
)
_MODELS = (
    *("layer", "encoder", "name", "concept", "architecture", "kind", "hook_name", "grid", "d_in", "readout"),
    *("published", "repo", "revision", "id", "library", "preprocessing", *_PREPROCESSING),
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
    *("latent_map", "trustworthiness", "trustworthiness_by_chance", "n_mapped", "n_latents"),
    *("published", "repo", "revision", "id"),
)
_STUDY_PROVENANCE = (
    "packages",
    "checkpoints",
    "name",
    "file",
    "sha256",
    "dataset_fingerprint",
    "seed",
    "python",
    "commit",
)


def _sae_lens() -> set[str]:
    """The fields of every architecture that SAELens knows now, also those that users registered."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    configs = [
        config for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY) for _, config in registry.values()
    ]
    return {"architecture"} | {field.name for config in configs for field in dataclasses.fields(config)}


@cache
def _settings_of_training() -> frozenset[str]:
    from mammosae_plugin.training.classifier_settings import ClassifierTraining
    from mammosae_plugin.training.settings import SAETraining

    return frozenset((*SAETraining.model_fields, *ClassifierTraining.model_fields))


@cache
def _settings_of_study() -> frozenset[str]:
    from mammosae_plugin.config import StudyConfig
    from mammosae_plugin.datasets import dataset_kinds

    found: set[str] = set()
    dataset_kinds()  # which imports the settings of all kinds

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


# -- tensors -----------------------------------------------------------------------------------------------------------

_TENSORS = re.compile(r"[WbB]_(?:enc|dec|gate|mag)|r_mag|threshold|log_threshold|rescale_acts_by_decoder_norm|sparsity")


def _header(file: Opened) -> tuple[dict[str, Any], bool]:
    """The tensors in a file by name, and whether its header says more of them than their format."""
    header = dict(file.values[0][1]) if file.values else {}
    metadata = header.pop("__metadata__", None) or {}
    return header, bool(set(metadata.items()) - {("format", "pt"), ("format", "np")})


def _tensors_of_sae(file: Opened) -> Iterator[str]:
    """Those of an SAE, of the shapes in its cfg.json."""
    header, says_more = _header(file)
    if says_more:
        yield "the header of its tensors has metadata; save them without"
    sizes = _sizes_of(file)
    for name, tensor in header.items():
        shape = tensor["shape"]
        if not _TENSORS.fullmatch(name):
            yield "it has a tensor that no SAE has; save the SAE alone"
        elif not str(tensor["dtype"]).startswith(("F", "BF")):
            yield f"its tensor {name} is {tensor['dtype']} and not floating point"
        elif len(shape) > 2 or any(size not in sizes for size in shape):
            yield f"its tensor {name} has not the shape that cfg.json says"


def _sizes_of(file: Opened) -> set[int]:
    """The lengths that an SAE's tensors have by the cfg.json beside them."""
    beside = Opened("cfg.json", file.file.with_name("cfg.json"))
    cfg = beside.values[0][1] if beside.file.is_file() and beside.values else {}
    if not isinstance(cfg, dict):
        return set()
    return {size for key in ("d_in", "d_sae", "d_out") if isinstance(size := cfg.get(key), int)}


def _tensors_of_classifier(file: Opened, functions: Collection[str] = ()) -> Iterator[str]:
    """Those of the network that config.json names, all of them and no others."""
    from mammosae_plugin.adapters.saved_classifiers import read_saved_classifier
    from mammosae_plugin.adapters.sources import Source
    from mammosae_plugin.errors import InputError

    try:
        read_saved_classifier(Source(file.file.parent, file.file.parent.name), device="meta", functions=functions)
    except InputError:
        yield "its tensors are not those of the network in config.json; stage the classifier again"
    header, says_more = _header(file)
    if says_more:
        yield "the header of its tensors has metadata; save them without"
    for name, tensor in header.items():
        kinds = ("I64",) if name.endswith("num_batches_tracked") else ("F", "BF")
        if not str(tensor["dtype"]).startswith(kinds):
            yield f"its tensor {name} is {tensor['dtype']}; stage the classifier again"


_LEVELS_OF_ARGUMENTS = 4  # of a function, or of a config of transformers with its parts


# -- the policies ------------------------------------------------------------------------------------------------------


def _only(*names: str, **named: Any) -> Any:
    return lambda: Entries(frozenset(names), **named)


_FIGURE = r"figures/[A-Za-z0-9][A-Za-z0-9._-]*\.png"
_OF_CARDS = {"a card": _only(*_CARD)}
_BESIDE_WEIGHTS = {
    **_OF_CARDS,
    "evaluation.json": _only(*_MEASURES),
    "provenance.json": _only(*_PROVENANCE, *PACKAGES),
}

SAE = Policy(
    "sae",
    re.compile(
        r"README\.md|\.eval_results/[\w.-]+\.yaml|" + _FIGURE + r"|[A-Za-z0-9][\w.-]*/(?:cfg\.json|sae_weights\."
        r"safetensors|sparsity\.safetensors|training\.json|metrics\.jsonl|metrics\.png|score_card\.json|score_card\.png|"
        r"evaluation\.json|provenance\.json)"
    ),
    entries={
        **_BESIDE_WEIGHTS,
        "cfg.json": lambda: Entries(
            frozenset((*_sae_lens(), *_METADATA, *_SOURCE, *_settings_of_training())),
            named={"folded_batch_norms": 1},
        ),
        "training.json": lambda: Entries(
            frozenset(("plan_sha256", "config", "steps", *_sae_lens(), *_settings_of_training()))
        ),
        "metrics.jsonl": _only(*_COURSE, pattern=r"inner_mse_loss_\d{1,6}"),
        SCORE_CARD: lambda: Entries(frozenset((*SCORE_CARD_FIELDS, *_settings_of_training(), *_sae_lens(), *PACKAGES))),
    },
    tensors=_tensors_of_sae,
)
MODEL = Policy(
    "model",
    re.compile(
        r"README\.md|\.eval_results/[\w.-]+\.yaml|[A-Za-z0-9][\w.-]*/(?:config\.json|model\.safetensors|evaluation\.json"
        r"|provenance\.json)"
    ),
    entries={
        **_BESIDE_WEIGHTS,
        "config.json": lambda: Entries(
            frozenset((*_CLASSIFIER, "arguments", *_SOURCE, *_settings_of_training())),
            named={"static_padding": 1, "arguments": _LEVELS_OF_ARGUMENTS},
        ),
    },
    tensors=_tensors_of_classifier,
)
FINDINGS = Policy(
    "findings",
    re.compile(rf"README\.md|{_FIGURE}|{PICTURE_FILE}|(?:{'|'.join(COLUMNS)})/train-00000-of-00001\.parquet"),
    entries={
        **_OF_CARDS,
        "study config": lambda: Entries(_settings_of_study(), named={"classifiers": 1, "outputs": 1, "covariates": 1}),
        "study provenance": _only(*_STUDY_PROVENANCE, "platform", *PACKAGES),
        "study data": _only(*_DATA),
        "study models": _only(*_MODELS),
        "study sae": lambda: Entries(frozenset((*_SAE, *_settings_of_training())), names=1),
        "study named_latents": _only("latent", "role", "reason", "by", *ROLE_NUMBERS, names=2),
    },
    columns=COLUMNS,
)
SPACE = Policy(
    "space",
    re.compile(r"README\.md|index\.html|[A-Za-z0-9][\w-]*\.(?:css|js)|data/[A-Za-z0-9][\w.-]*\.js|" + PICTURE_FILE),
    entries=_OF_CARDS,
    pages=files("mammosae_plugin.hub_cards") / "space",
)

POLICIES: Mapping[str, Policy] = {policy.kind: policy for policy in (SAE, MODEL, FINDINGS, SPACE)}
"""By the word for what is uploaded."""
