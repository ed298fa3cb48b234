"""What a study of embeddings found: its tables and their columns, each declared once; `results/findings` holds them."""

__all__ = ["FIGURES", "FOUND", "KIND", "LABELS", "SCHEMAS", "TABLES"]

import pyarrow as pa

from mammosae_plugin.schema.columns import Column
from mammosae_plugin.schema.names_of_latents import KEPT_NAMES

KIND = "embeddings"
FOUND = 5
"""Images that a query of retrieval finds and that are judged."""

_TEXT, _REAL, _WHOLE, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()


def _group(name: str, meaning: str, unit: str = "", label: str = "") -> Column:
    return Column(name, _REAL, meaning, unit, "group", label=label)


def _count(name: str, meaning: str, unit: str, label: str = "") -> Column:
    return Column(name, _WHOLE, meaning, unit, "count", label=label)


_MODEL = Column("model", _TEXT, "whose vectors they are")
_SAE = Column("sae", _TEXT, "the SAE among those of the model", label="SAE")
_LABEL = (Column("concept", _TEXT, "what is told"), Column("class", _TEXT, "the class that is told from the rest"))
_REASON = Column("reason", _TEXT, "why a number is missing; empty where it is not")
_LATENT = Column("latent", _WHOLE, "the latent")
_EVIDENCE = (
    _count("n_rows", "images with a label, or what else the study's unit is", "the study's unit"),
    _count("n_positive", "those of the class", "the study's unit"),
    _count("n_groups", "groups (patients, volumes) with a label", "groups", "Groups"),
    _count("n_positive_groups", "those with an image of the class", "groups", "Positive groups"),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "study": (
        Column("kind", _TEXT, "embeddings"),
        *(
            Column(name, _TEXT, meaning, is_json=True)
            for name, meaning in (
                ("title", "the report's heading"),
                ("data_kind", "what the images are"),
                ("config", "the configuration, with file names in place of paths"),
                ("provenance", "versions, seed, fingerprints"),
                ("data", "images and groups per split, how often each class occurs, what was left out"),
                ("models", "where each model's vectors come from, and how many numbers they have"),
                ("saes", "each SAE: architecture, levels, settings, fingerprint, folder"),
                ("created", "the day of the first run that found this"),
            )
        ),
    ),
    "quality": (
        *(_MODEL, _SAE, Column("split", _TEXT, "the split"), Column("level", _WHOLE, "latents up to this level")),
        Column("l0", _REAL, "latents that fire per image", "latents", label="L0"),
        Column("explained_variance", _REAL, "share of the vectors' variance that the level gives back"),
        Column("mse", _REAL, "squared error, mean over images and numbers", label="MSE"),
        Column("dead_share", _REAL, "share of the level's latents that fire in no image of the split", "0 to 1"),
        _count("n_images", "images of the split", "images"),
    ),
    "latents": (
        *(_MODEL, _SAE, _LATENT),
        _group("firing_rate", "share of the images in which it fires", "0 to 1"),
        Column("max_activation", _REAL, "its largest activation", "the SAE's", "image"),
        _group("mean_activation", "its mean over all images", "the SAE's"),
        _group("similarity", "mean cosine of the vectors of images in which it fires, weighted by it"),
        _group("similarity_by_chance", "the mean over all pairs of images"),
    ),
    "monosemanticity": (
        *(_MODEL, _SAE, _LATENT, Column("n", _WHOLE, "strongest images looked at, one of each group", "images")),
        _count("n_images", "images in which it fires", "images"),
        _count("n_groups", "groups in which it fires", "groups"),
        _group("coherence", "mean Jaccard index of the label sets of all pairs"),
        _group("null", "the same of images of as many groups at random"),
        _group("specificity", "1 - entropy of the labels / its maximum"),
        _group("monosemanticity", "(coherence - null, at least 0) x specificity"),
        _group("p", "share of the random draws as coherent", label="p"),
        _group("q", "the same after Benjamini and Hochberg", label="q"),
    ),
    "aurocs": (
        *(_MODEL, _SAE, *_LABEL, _LATENT),
        _group("auroc", "of the latent alone", "0 to 1", "AUROC"),
        _group("p", "of labels permuted between groups", label="p"),
        _group("q", "the same after Benjamini and Hochberg over the latents", label="q"),
        _group("p_family", "share of permutations in which any latent is as far from 0.5"),
        _group("best_by_chance", "what the best latent reaches in 95 of 100 permutations", "0 to 1"),
    ),
    "probes": (
        *(_MODEL, _SAE, Column("arm", _TEXT, "codes; or of the vectors dense, pca, kmeans"), *_LABEL),
        Column("k", _WHOLE, "features that the probe uses", "features"),
        Column("uses_all", _FLAG, "whether these are all latents"),
        _group("auroc", "on groups that the probe never saw", "0 to 1", "AUROC"),
        _group("auroc_low", "lower end of its 95 % interval over groups", "0 to 1"),
        _group("auroc_high", "upper end", "0 to 1"),
        Column("chance", _REAL, "0.5"),
        _group("auroc_permuted", "the same procedure on permuted labels", "0 to 1", "AUROC, permuted labels"),
        _group("calibration_slope", "of the label on the logit; 1 is right, below 1 overconfident"),
        *_EVIDENCE,
        _REASON,
    ),
    "recovery": (
        *(_MODEL, _SAE, *_LABEL, _group("dense_auroc", "of the probe on the vectors", "0 to 1", "AUROC, vectors")),
        *(
            Column(
                f"k_{share}",
                _WHOLE,
                f"latents that reach {share} % of what it tells above chance",
                "latents",
                label=f"{share} %",
            )
            for share in (50, 80, 90, 100)
        ),
    ),
    "retrieval": (
        *(_MODEL, _SAE, *_LABEL),
        Column("method", _TEXT, "fingerprint, cosine, bm25; dense (the vectors), random"),
        _group("precision", f"share of the first {FOUND} images that are of the class", "0 to 1"),
        _group("precision_low", "lower end of its 95 % interval over the groups that ask", "0 to 1"),
        _group("precision_high", "upper end", "0 to 1"),
        _group("over_random", "precision beyond that of random images"),
        _group("over_random_low", "lower end of its 95 % interval"),
        _group("over_random_high", "upper end"),
        _group("p", "of precision, against random images", label="p"),
        _group("recall", "share of all images of the class that are among the first", "0 to 1"),
        _group("average_precision", "its mean over queries, mAP", "0 to 1"),
        _group("ndcg", "discounted gain of the first images, of the best possible", "0 to 1", "nDCG"),
        _count("n_queries", "images that asked", "images", "Queries"),
        _count("n_query_groups", "groups of these", "groups"),
        _count("n_unanswered", "images that asked and have no latent to go by", "images"),
        _REASON,
    ),
    "names": (Column("encoder", _TEXT, "the model whose vectors they are"), _SAE, *KEPT_NAMES),
}
"""The tables, a file each; `study` has one row, and studies of earlier versions have no `names`."""

LABELS = {column.name: column.label for columns in TABLES.values() for column in columns if column.label}
"""What heads a column in a table for people, where it is not its name in words."""
SCHEMAS = {name: pa.schema([column.field for column in columns]) for name, columns in TABLES.items()}

FIGURES = {
    "levels": ("levels.png", "Explained variance of the vectors against L0, a point per level of each SAE"),
    "probes": (
        "probes.png",
        "AUROC of probes by the number of latents that they may use, with 95 % intervals over groups; thin: on "
        "permuted labels; dashed: of all of the vector; dotted: guessing",
    ),
    "coherence": (
        "coherence.png",
        "Coherence of the strongest images' labels of every scored latent, most coherent first; dotted: by chance",
    ),
    "retrieval": (
        "retrieval.png",
        "Share of the first images found that have the label of the image that asked, with 95 % intervals",
    ),
}
"""The figures of the report: file and what it shows."""
