"""What a findings dataset holds: its configs, their columns and types, and where each file lies.

`docs/findings.md` says what the columns mean. The tables are written without any metadata beside these columns.
"""

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
