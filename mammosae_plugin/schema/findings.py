"""What a findings dataset holds: its configs, their columns and types, and where each file lies.

`docs/findings.md` says what the columns mean. The tables are written without any metadata beside these columns.
"""

from collections.abc import Mapping

import pyarrow as pa

FORMAT_VERSION = 1

_METRICS = ("auroc", "average_precision", "precision", "recall", "f1", "accuracy")
_CONTROLS = tuple(f"{kind}_{metric}" for kind in ("random", "mass") for metric in ("auroc", "average_precision"))


def _with_ends(*names: str, middle: str = "") -> list[tuple[str, pa.DataType]]:
    return [(f"{name}{part}", pa.float64()) for name in names for part in (middle, "_low", "_high")]


CONCEPT = pa.struct(
    [
        ("concept", pa.string()),
        ("n_images", pa.list_(pa.int64())),
        ("class_means", pa.list_(pa.float64())),
        ("scores", pa.list_(pa.float64())),
        ("ranks", pa.list_(pa.int64())),
        ("average_precision", pa.float64()),
        ("ablation_effect", pa.float64()),
    ]
)
NOTE = pa.struct(
    [
        ("author", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("concept", pa.string()),
        ("confidence", pa.int64()),
        ("created", pa.string()),
    ]
)
_PAIR = [("layer", pa.string()), ("model", pa.string()), ("concept", pa.string())]

SCHEMAS: dict[str, pa.Schema] = {
    "latents": pa.schema(
        [
            ("layer", pa.string()),
            ("hook_name", pa.string()),
            ("encoder", pa.string()),
            ("latent", pa.int64()),
            ("firing_rate", pa.float64()),
            ("max_activation", pa.float32()),
            ("mean_activation", pa.float64()),
            ("concepts", pa.list_(CONCEPT)),
            ("notes", pa.list_(NOTE)),
        ]
    ),
    "interventions": pa.schema(
        [
            *_PAIR,
            ("error_term", pa.bool_()),
            ("mode", pa.string()),
            ("k", pa.int64()),
            ("n_latents", pa.int64()),
            ("n_live", pa.int64()),
            *_with_ends(*_METRICS),
            *_with_ends(*_CONTROLS, middle="_mean"),
        ]
    ),
    "reconstruction": pa.schema(
        [
            *_PAIR,
            ("variant", pa.string()),
            ("n_rows", pa.int64()),
            ("n_positive", pa.int64()),
            ("n_patients", pa.int64()),
            *_with_ends(*_METRICS),
        ]
    ),
    "localization": pa.schema(
        [
            *_PAIR,
            ("method", pa.string()),
            ("threshold", pa.string()),
            ("iou_threshold", pa.float64()),
            ("rank", pa.int64()),
            ("latent", pa.int64()),
            ("n_images", pa.int64()),
            ("n_boxes", pa.int64()),
            ("n_predictions", pa.int64()),
            ("average_precision", pa.float64()),
        ]
    ),
    "study": pa.schema(
        [
            ("format_version", pa.int64()),
            ("title", pa.string()),
            ("created", pa.string()),
            ("data_kind", pa.string()),
            ("min_group", pa.int64()),
            ("layers", pa.list_(pa.string())),
            ("concepts", pa.list_(pa.string())),
            ("config", pa.string()),
            ("provenance", pa.string()),
            ("data", pa.string()),
            ("models", pa.string()),
            ("sae", pa.string()),
            ("named_latents", pa.string()),
        ]
    ),
    "examples": pa.schema(
        [
            ("image", pa.string()),
            ("patient", pa.string()),
            ("layer", pa.string()),
            ("encoder", pa.string()),
            ("latent", pa.int64()),
            ("concept", pa.string()),
            ("label", pa.int64()),
            ("heatmap", pa.list_(pa.list_(pa.float32()))),
        ]
    ),
}
"""The columns of every config, in order; a config's table has exactly these."""

CONFIGS = tuple(SCHEMAS)
OPTIONAL = ("examples",)
JSON_COLUMNS = ("config", "provenance", "data", "models", "sae", "named_latents")
"""The columns of `study` that are JSON texts."""


def parquet_path(config: str) -> str:
    """Where a config's only file lies in the dataset's folder."""
    return f"{config}/train-00000-of-00001.parquet"


_PLACE = {"layer": "the layer as the study names it"}
_OF_PAIR = {**_PLACE, "model": "the model", "concept": "the finding"}
_COUNTED = {
    "auroc": "area under the ROC curve, with its 95 % interval over patients (`_low`, `_high`); and so for the others",
    "average_precision": "area under the precision-recall curve, of images",
    "precision, recall, f1, accuracy": "at a logit of 0, of images",
}

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "latents": {
        **_PLACE,
        "hook_name": "the hook point at which the SAE reads",
        "encoder": "the model whose images were read, or `model/finding` where each classifier has its own encoder",
        "latent": "the latent's number, from 0",
        "firing_rate": "share (0 to 1) of the test images in which it is not 0 at every position",
        "max_activation": "its largest value in a test image, in the SAE's units",
        "mean_activation": "its mean over all positions of all test images, in the SAE's units",
        "concepts": "a list with an entry per finding: the fields below",
        "concepts.concept": "the finding",
        "concepts.n_images": "training images of each class, class 0 (absent) first",
        "concepts.class_means": "mean activation over all positions of the training images of each class",
        "concepts.scores": "what ranks it for each class: the class mean, by default less the mean over all images",
        "concepts.ranks": "its place by that score, for each class; 1 is best",
        "concepts.average_precision": "of its boxes against the annotated ones in test images; of the best only",
        "concepts.ablation_effect": "mean change of the logit in test images with the finding, when it is set to 0",
        "notes": "readers' notes: author, text, label, concept, confidence (1 to 5), created",
    },
    "interventions": {
        **_OF_PAIR,
        "error_term": "whether the SAE's error was added back",
        "mode": "activate: only the group is kept; deactivate: the group is set to 0",
        "k": "latents taken per class",
        "n_latents": "latents in the group, the union over the classes",
        "n_live": "those of them that fire at all",
        **_COUNTED,
        "random_*, mass_*": "the same of random groups of the same size, and of the same activation mass",
    },
    "reconstruction": {
        **_OF_PAIR,
        "variant": "without_sae, with_sae, or their difference",
        "n_rows": "test images, or rows where rows are the unit",
        "n_positive": "those with the finding",
        "n_patients": "their patients",
        **_COUNTED,
    },
    "localization": {
        **_OF_PAIR,
        "method": "whose boxes: latent, channel or grad_cam",
        "threshold": "what part of the map was kept for the boxes",
        "iou_threshold": "overlap (intersection over union) that counts as found",
        "rank": "place of the latent or channel by score",
        "latent": "number of the latent or channel; -1 for Grad-CAM",
        "n_images": "test images with a box",
        "n_boxes": "annotated boxes in them",
        "n_predictions": "boxes that were drawn",
        "average_precision": "of the boxes, 0 to 1",
    },
    "study": {
        "format_version": "of this layout",
        "title, created, data_kind": "the study's title, its date, and phantom or vindr",
        "min_group": "statistics of fewer patients are null",
        "layers, concepts": "their names",
        "config": "JSON: the settings, without paths of a machine",
        "provenance": "JSON: versions, checksums of the checkpoints, the fingerprint of the dataset",
        "data, models": "JSON: images and patients by split; classifiers, and where they are published",
        "sae": "JSON by layer: SHA-256 of the weights file, where it is published (repo, revision, id), quality",
        "named_latents": "JSON by layer: the latents that the study names",
    },
    "examples": {
        "image, patient": "keyed hashes of their ids",
        **_PLACE,
        "encoder, latent, concept": "as in `latents`",
        "label": "class of the image",
        "heatmap": "the latent's activation at each position, rows from above",
    },
}
"""What the columns mean, for the card; a column without an entry here is explained by one that names its family."""
