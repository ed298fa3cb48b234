"""What a findings dataset holds: its configs and their columns, each declared once.

Whoever has to know a column takes it from here: the types of the parquet files, the dictionary on the card, what is
null where a group of patients is small, which columns the privacy guard lets out, and what a Space shows.
`docs/findings.md` says how the numbers are computed. The tables are written without any metadata beside these columns.
"""

__all__ = [
    "BOX_PRECISIONS", "COLUMNS", "CONCEPT", "CONFIGS", "dictionary", "EVIDENCE", "FORMAT_VERSION", "GROUPS",
    "JSON_COLUMNS", "KEPT", "KEPT_CONCEPT", "KEPT_SCHEMAS", "LABELS", "LAYER_SCHEMAS", "LAYERS", "METRICS", "names_of",
    "NOTE", "OPTIONAL", "parquet_path", "SCHEMAS", "VIEWS",
]  # fmt: skip

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby

import pyarrow as pa

from mammosae_plugin.schema.columns import Column, Privacy, leaves
from mammosae_plugin.schema.explained import EXPLAINED
from mammosae_plugin.schema.names_of_latents import KEPT_NAMES, NAMES
from mammosae_plugin.schema.pages import HISTOGRAMS, KEPT_HISTOGRAMS, KEPT_SIGNS, LATENT_MAP, NEIGHBOURS, PICTURES
from mammosae_plugin.schema.pairs import PAIRS
from mammosae_plugin.schema.repairs import REPAIR_COLUMNS

FORMAT_VERSION = 1

_TEXT, _WHOLE, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_STRUCTS = pa.null()  # its type is that of its fields


def _with_interval(name: str, meaning: str, middle: str = "", label: str = "") -> Iterator[Column]:
    """A statistic with both ends of its 95 % interval over patients."""
    for end in (middle, "_low", "_high"):
        told = f"{meaning}, with its 95 % interval over patients (`_low`, `_high`)"
        yield Column(f"{name}{end}", _REAL, told, "0 to 1", "group", label=label)


_MEASURED = {
    "auroc": ("area under the ROC curve, of images", "AUROC"),
    "average_precision": ("area under the precision-recall curve, of images", "AP"),
    "precision": ("precision at a logit of 0, of images", ""),
    "recall": ("recall at a logit of 0, of images", ""),
    "f1": ("F1 at a logit of 0, of images", "F1"),
    "accuracy": ("accuracy at a logit of 0, of images", ""),
}
METRICS = tuple(_MEASURED)
"""What a classifier is measured by, in order."""
_METRICS = tuple(
    column for name, (meaning, label) in _MEASURED.items() for column in _with_interval(name, meaning, label=label)
)
_CONTROLS = tuple(
    column
    for kind, chosen in (("random", "of the same size"), ("mass", "of the same activation mass"))
    for metric in ("auroc", "average_precision")
    for column in (
        replace(one, meaning=f"mean {metric} of random groups {chosen}, and between which 95 % of them lie")
        for one in _with_interval(f"{kind}_{metric}", "", middle="_mean")
    )
)
_LAYER = Column("layer", _TEXT, "the layer as the study names it")
_HOOK = Column("hook_name", _TEXT, "the hook point at which the SAE reads", label="Hook point")
_ENCODER = Column(
    "encoder", _TEXT, "the model whose images were read, or `model/finding` where each classifier has its own encoder"
)
_BEHIND = (
    Column("n_rows", _WHOLE, "test images, or what else the study's unit is", "the study's unit", label="Rows"),
    Column("n_positive", _WHOLE, "those with the finding", "the study's unit", "count", label="Positive"),
    Column("n_patients", _WHOLE, "their patients", "patients", label="Patients"),
)
_LATENT = Column("latent", _WHOLE, "the latent's number, from 0")
_PAIR = (_LAYER, Column("model", _TEXT, "the model"), Column("concept", _TEXT, "the finding"))

CONCEPT = (
    Column("concept", _TEXT, "the finding"),
    Column(
        *("n_images", pa.list_(_WHOLE), "training images of each class, class 0 (absent) first", "images", "count"),
        each="n_images",
    ),
    Column(
        *("class_means", pa.list_(_REAL), "mean activation over all positions of the training images of each class"),
        *("the SAE's", "group"),
        each="class_mean",
    ),
    *(
        Column(
            *(f"class_mean{end}", pa.list_(_REAL), "end of its 95 % interval, patients as clusters (t distribution)"),
            *("the SAE's", "group"),
            each=f"mean{end}",
        )
        for end in ("_low", "_high")
    ),
    Column(
        *(
            "scores",
            pa.list_(_REAL),
            "what ranks it for each class: the class mean, by default less that of all images",
        ),
        *("the SAE's", "group"),
        each="score",
    ),
    Column(
        *("ranks", pa.list_(_WHOLE), "its place by that score, for each class; 1 is best", "", "group"), each="rank"
    ),
    Column(
        *("average_precision", _REAL, "of its boxes against the annotated ones in test images; of the best only"),
        *("0 to 1", "group"),
    ),
    Column(
        *("ablation_effect", _REAL, "mean change of the logit in test images with the finding, when it is set to 0"),
        *("logit", "group"),
    ),
)
NOTE = (
    Column("author", _TEXT, "the reader who wrote the note, as they sign"),
    Column("text", _TEXT, "the note in the reader's words"),
    Column("label", _TEXT, "a label that readers share"),
    Column("concept", _TEXT, "the finding that the note is about"),
    Column("confidence", _WHOLE, "how sure the reader is", "1 to 5"),
    Column("created", _TEXT, "when it was written"),
)

_FOUND = {
    "all": ("lesions found", "in all test images"),
    "healthy": ("lesions found", "in healthy images alone"),
    "breast": ("breasts of which a lesion is found", "in all test images"),
}


def _of_lesions() -> Iterator[Column]:
    """What is told of how a map finds lesions."""
    chance = "the same of lesions of other patients, in images of the same side and view"
    for kind, (what, where) in _FOUND.items():
        for end in ("", "_low", "_high"):
            told = f"share of {what} at each `fppi`, false positives counted {where}, with 95 % interval over patients"
            yield Column(f"{kind}_sensitivity{end}", pa.list_(_REAL), told, "0 to 1", "group")
        yield from _with_interval(f"{kind}_cpm", f"mean of `{kind}_sensitivity`", label="CPM")
        yield Column(f"{kind}_sensitivity_chance", pa.list_(_REAL), chance, "0 to 1", "group")
        yield Column(f"{kind}_cpm_chance", _REAL, "its mean", "0 to 1", "group")
    yield Column("p", _REAL, "share of draws of such lesions, or the own, with as high a CPM", "0 to 1", "group")
    yield Column("p_adjusted", _REAL, "that, by Benjamini and Hochberg over the maps of a finding", "0 to 1", "group")
    pointing = "share of images with lesions whose highest peak lies in one"
    for name, what in (("pointing", pointing), ("energy", "mean share of the map in the image's lesions")):
        yield from _with_interval(name, what)
        yield Column(f"{name}_chance", _REAL, chance, "0 to 1", "group")
    yield Column("average_precision", _REAL, "of its boxes, as in localization", "0 to 1", "group")
    yield Column("best_member", _WHOLE, "of a group: its latent of the highest CPM; else -1")
    for end in ("", "_low", "_high"):
        yield Column(f"gain{end}", _REAL, "the group's CPM less that latent's, with its interval", "", "group")


def _ends(
    name: str, meaning: str, unit: str = "", *, how: str = "95 % interval over patients", label: str = ""
) -> Iterator[Column]:
    """A number of a latent with both ends of its interval."""
    for end in ("", "_low", "_high"):
        yield Column(f"{name}{end}", _REAL, f"{meaning}, with its {how} (`_low`, `_high`)", unit, "group", label=label)


def _of_latent(name: str, meaning: str, unit: str = "", label: str = "") -> Column:
    return Column(name, _REAL, meaning, unit, "group", label=label)


_SHARE = "0 to 1"
_Q = "after Benjamini and Hochberg over the latents of the layer, model and finding"
EVIDENCE = (
    *_PAIR,
    _LATENT,
    Column("verdict", _TEXT, "what it stands for: concept, context, shortcut or unclear", "", "group"),
    Column("reason", _TEXT, "why, in a line", "", "group"),
    Column("statistic", _TEXT, "max or mean over positions, whose AUROC is farther from 0.5", "", "group"),
    *_ends("auroc", "AUROC of that statistic in test images", _SHARE, how="DeLong interval, patients as groups"),
    _of_latent("auroc_q", f"that it is 0.5: p-value of the better of the two, doubled, {_Q}", _SHARE),
    *_ends("auroc_training", "the same in training images", _SHARE, how="DeLong interval, patients as groups"),
    _of_latent("auroc_training_q", f"that this is 0.5, {_Q}", _SHARE),
    _of_latent("drop_p", "p-value, one-sided, that it is no nearer to 0.5 in test images", _SHARE),
    *(
        column
        for one in ("max", "mean")
        for column in (
            *_ends(
                f"auroc_{one}", f"AUROC of its {one} over positions", _SHARE, how="DeLong interval, patients as groups"
            ),
            _of_latent(f"auroc_{one}_boot_low", "the same interval from resampled patients (`_boot`)", _SHARE),
            _of_latent(f"auroc_{one}_boot_high", "the same interval from resampled patients (`_boot`)", _SHARE),
            _of_latent(f"auroc_{one}_p", "p-value that it is 0.5", _SHARE),
            _of_latent(f"auroc_{one}_q", f"that, {_Q}", _SHARE),
        )
    ),
    _of_latent("mean_with", "mean over positions of test images with the finding", "the SAE's"),
    _of_latent("mean_without", "the same of those without", "the SAE's"),
    _of_latent("standardized_difference", "their difference over the standard deviation within both"),
    _of_latent("fires_with", "share of the test images with the finding in which it fires", _SHARE),
    _of_latent("fires_without", "the same of those without", _SHARE),
    _of_latent("firing_rate", "the same of all", _SHARE),
    _of_latent("effect_with", "mean change of the logit without it, with the finding", "logit"),
    _of_latent("effect_without", "the same without the finding", "logit"),
    *_ends("effect", "how much nearer the classes' logits come without it", "logit"),
    _of_latent("effect_share", "that, of their whole distance"),
    *_ends("reliance", "covariance of what it adds to the logit with the logit, of the logit's variance"),
    Column("effect_reason", _TEXT, "why the effect is not known"),
    _of_latent("inside", "share of its activation that lies in the image's own boxes", _SHARE),
    _of_latent("inside_chance", "the same in other patients' boxes", _SHARE),
    *_ends("place", "their ratio; 1 by chance"),
    Column("place_reason", _TEXT, "why its place is not known", "", "group"),
    *_ends("cpm", "lesions found: mean sensitivity of its peaks over numbers of false positives per image", _SHARE),
    _of_latent("cpm_chance", "the same of lesions of other patients, in images of the same side and view", _SHARE),
    _of_latent(
        "cpm_q",
        "p-value that it finds no more than that, after Benjamini and Hochberg over the maps of a finding",
        _SHARE,
    ),
    Column("cpm_reason", _TEXT, "why its lesions are not known; only the best latents are looked for lesions in"),
    _of_latent("in_breast", "share of its activation in the breast", _SHARE),
    _of_latent("in_breast_chance", "the same of the area", _SHARE),
    Column("covariate", _TEXT, "what else of the images it goes with most", "", "group"),
    Column("covariate_kind", _TEXT, "whether that is of the patient or of the acquisition", "", "group"),
    _of_latent("covariate_r", "the correlation of ranks with it, or with that word of it that goes with it most"),
    _of_latent("covariate_q", "that there is none, after Benjamini and Hochberg over latents and covariates", _SHARE),
    _of_latent("log_odds", "of the finding per standard deviation of the rank of its mean, by logistic regression"),
    _of_latent("log_odds_given", "the same beside the covariates"),
    _of_latent("explained", "1 less the ratio of the two"),
    _of_latent("likelihood_ratio", "twice what it adds to the log-likelihood beside the covariates"),
    _of_latent("design_effect", "how much larger its variance is with patients as clusters, by which that is divided"),
    _of_latent("given_p", "p-value that it adds nothing", _SHARE),
    _of_latent("given_q", f"that, {_Q}", _SHARE),
    Column("given_reason", _TEXT, "what of this could not be fitted", "", "group"),
    Column("n_rows", _WHOLE, "test images, or what else the study's unit is", "the study's unit"),
    Column("n_positive", _WHOLE, "those with the finding", "the study's unit", "count"),
    Column("n_patients_with", _WHOLE, "patients with the finding", "patients", "count"),
    Column("n_patients_without", _WHOLE, "patients without", "patients", "count"),
    Column("n_patients_boxed", _WHOLE, "patients with boxes", "patients", "count"),
    Column("n_tests", _WHOLE, "latents that the corrections count", "latents"),
    Column("detectable_auroc", _REAL, "smallest AUROC of one latent found with 80 % power", _SHARE, "count"),
)
GROUPS = (
    *_PAIR,
    Column("by", _TEXT, "what makes the groups; nothing: all images"),
    Column("group", _TEXT, "the group"),
    Column("n_rows", _WHOLE, "its test images, or what else the study's unit is", "the study's unit", "count"),
    Column("n_positive", _WHOLE, "those with the finding", "the study's unit", "count"),
    Column("n_patients", _WHOLE, "its patients", "patients", "count"),
    *_with_interval("auroc", "area under the ROC curve in the group", label="AUROC"),
    _of_latent("rest_auroc", "the same of all others", _SHARE, label="AUROC of the others"),
    _of_latent("difference", "the group's less the others'"),
    _of_latent("p", "p-value, two-sided, that they are equal", _SHARE),
    _of_latent("q", "that, after Benjamini and Hochberg over the groups", _SHARE),
    Column("worst", _FLAG, "whether it is the lowest of those that `by` makes", "", "group"),
    Column("reason", _TEXT, "why a group is not scored", "", "group"),
)


_AGREEING = {
    "views": "two views of a breast",
    "sides": "one view of both breasts",
    "crossed": "other breast, other view",
}


def _of_views() -> Iterator[Column]:
    """What is told of how far images of a patient agree."""
    for name, pair in _AGREEING.items():
        yield from _ends(name, f"correlation of its ranks between pairs of test images: {pair}", "-1 to 1")
        chance = "the same with other patients: mean and 95th percentile (`_high`) of the draws"
        yield from (_of_latent(f"{name}_chance{end}", chance, "-1 to 1") for end in ("", "_high"))
        yield _of_latent(f"{name}_p", "share of draws that agree as much, one-sided", _SHARE)
        yield _of_latent(f"{name}_q", "that, after Benjamini and Hochberg over the latents", _SHARE)
        yield Column(f"{name}_pairs", _WHOLE, "pairs of images, of a patient's exams together", "pairs", "count")
        yield Column(f"{name}_patients", _WHOLE, "patients who have such pairs", "patients", "count")
    yield from _ends("own_breast", "views less crossed: what is of the own breast alone")


VIEWS = (*_PAIR, _LATENT, *_of_views())
_SECRET_VIEWS = (
    *(Column(f"{one}_firing", _WHOLE, "patients in whose pairs it fires", "patients", "secret") for one in _AGREEING),
    Column("reason", _TEXT, "why a number is missing", privacy="secret"),
)
_SECRET_EVIDENCE = (
    Column("covariate_level", _TEXT, "the word of the covariate that it goes with most", privacy="secret"),
    Column("covariate_patients", _WHOLE, "patients with it, or without, whichever are fewer", "patients", "secret"),
    Column("n_firing_with", _WHOLE, "patients with the finding in whose images it fires", "patients", "secret"),
    Column("n_firing_without", _WHOLE, "the same without", "patients", "secret"),
)

COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "latents": (
        _LAYER,
        _HOOK,
        _ENCODER,
        _LATENT,
        Column(
            "firing_rate",
            _REAL,
            "share of the test images in which it is not 0 at every position",
            "0 to 1",
            "group",
        ),
        Column("max_activation", pa.float32(), "its largest value in a test image", "the SAE's", "group"),
        Column(
            "mean_activation",
            _REAL,
            "its mean over all positions of all test images",
            "the SAE's",
            "group",
        ),
        Column("concepts", _STRUCTS, "a list with an entry per finding: the fields below", fields=CONCEPT, longest=64),
        Column("notes", _STRUCTS, "readers' notes: the fields below", fields=NOTE, longest=1000),
    ),
    "interventions": (
        *_PAIR,
        Column("error_term", _FLAG, "whether the SAE's error was added back"),
        Column("mode", _TEXT, "activate: only the group is kept; deactivate: the group is set to 0"),
        Column("k", _WHOLE, "latents taken per class", "latents", label="k"),
        Column("n_latents", _WHOLE, "latents in the group, the union over the classes", "latents", label="Latents"),
        Column("n_live", _WHOLE, "those of them that fire at all", "latents", label="Live latents"),
        *_METRICS,
        *_CONTROLS,
    ),
    "reconstruction": (
        *_PAIR,
        Column("variant", _TEXT, "without_sae, with_sae, or their difference"),
        *_BEHIND,
        *_METRICS,
    ),
    "localization": (
        *_PAIR,
        Column("method", _TEXT, "whose boxes: latent, channel or grad_cam"),
        Column("threshold", _TEXT, "what part of the map was kept for the boxes"),
        Column("iou_threshold", _REAL, "overlap (intersection over union) that counts as found", "0 to 1", label="IoU"),
        Column("rank", _WHOLE, "place of the latent or channel by score"),
        Column("latent", _WHOLE, "number of the latent or channel; -1 for Grad-CAM"),
        Column("n_images", _WHOLE, "test images with a box", "images", "count", label="Images"),
        Column("n_boxes", _WHOLE, "annotated boxes in them", "boxes", "count", label="Boxes"),
        Column("n_predictions", _WHOLE, "boxes that were drawn", "boxes", "count"),
        Column("average_precision", _REAL, "of the boxes", "0 to 1", "group"),
    ),
    "lesions": (
        *_PAIR,
        Column("method", _TEXT, "whose peaks: latent, channel, grad_cam, or group, the sum of the best latents"),
        Column("rank", _WHOLE, "place of the latent or channel by score"),
        Column("latent", _WHOLE, "number of the latent or channel; -1 for Grad-CAM and groups"),
        Column("n_latents", _WHOLE, "latents that were summed up", "latents"),
        Column("fppi", pa.list_(_REAL), "false positives per image"),
        Column("n_images", _WHOLE, "test images that were looked at", "images", "count", label="Images"),
        Column("n_healthy", _WHOLE, "those without the finding and without a box", "images", "count", label="Healthy"),
        Column("n_unlocated", _WHOLE, "left out: the finding without a box", "images", "count"),
        Column("n_lesions", _WHOLE, "annotated lesions", "lesions", "count", label="Lesions"),
        Column("n_reachable", _WHOLE, "those in which the centre of a position lies", "lesions", "count"),
        Column("n_lesion_images", _WHOLE, "images with lesions", "images", "count"),
        Column("n_breasts", _WHOLE, "breasts with lesions; nothing where sides are not known", "breasts", "count"),
        *_of_lesions(),
    ),
    "evidence": EVIDENCE,
    "groups": GROUPS,
    "views": VIEWS,
    "names": (_LAYER, _ENCODER, *NAMES),
    "histograms": HISTOGRAMS,
    "neighbours": NEIGHBOURS,
    "latent_map": LATENT_MAP,
    "pictures": PICTURES,
    "study": (
        Column("format_version", _WHOLE, "of this layout"),
        Column("title", _TEXT, "the study's title"),
        Column("created", _TEXT, "the date of the study"),
        Column("data_kind", _TEXT, "the name of the dataset, or phantom"),
        Column("min_group", _WHOLE, "statistics of fewer patients are null", "patients"),
        Column("layers", pa.list_(_TEXT), "names of the layers", longest=256),
        Column("concepts", pa.list_(_TEXT), "names of the findings", longest=64),
        Column("config", _TEXT, "JSON: the settings, without paths of a machine", is_json=True),
        Column(
            "provenance", _TEXT, "JSON: versions, checksums of checkpoints, the dataset's fingerprint", is_json=True
        ),
        Column(
            "data",
            _TEXT,
            "JSON: images and patients by split, the unit that is counted, and whether pictures may be shown",
            is_json=True,
        ),
        Column("models", _TEXT, "JSON: classifiers, and where they are published", is_json=True),
        Column(
            "sae",
            _TEXT,
            "JSON by layer: SHA-256 of the weights file, where it is published (repo, revision, id), quality",
            is_json=True,
        ),
        Column("named_latents", _TEXT, "JSON by layer: the latents that the study names", is_json=True),
    ),
    "examples": (
        Column("image", _TEXT, "keyed hash of the image's id", privacy="image"),
        Column("patient", _TEXT, "keyed hash of the patient's id", privacy="image"),
        _LAYER,
        _ENCODER,
        _LATENT,
        Column("concept", _TEXT, "the finding"),
        Column("label", _WHOLE, "class of the image; nothing where its label is missing", privacy="image"),
        Column(
            "heatmap",
            pa.list_(pa.list_(pa.float32())),
            "the latent's activation at each position, rows from above",
            "the SAE's",
            "image",
            longest=64,  # a map beyond 64 x 64 is a picture
        ),
    ),
}
"""The columns of every config, in order; the table of a config that is published has exactly these, none is secret."""

_SPLIT = Column("split", _TEXT, "training or test", privacy="secret")
_SUM = "a sum over images: a statistic (a finding, or nothing for all images) and the number of its sum"
KEPT_CONCEPT = (
    *CONCEPT,
    Column(
        *("n_boxed", _WHOLE, "patients in whose test images with a box of the finding the latent fires"),
        *("patients", "secret"),
    ),
)
KEPT: Mapping[str, tuple[Column, ...]] = {
    "latents": (
        *(column for column in COLUMNS["latents"] if column == _LATENT or column.privacy == "group"),
        Column("n_silent", _WHOLE, "patients with a test image in which it does not fire", "patients", "secret"),
        Column("concepts", _STRUCTS, "a list with an entry per finding", fields=KEPT_CONCEPT, longest=64),
    ),
    "classes": (
        Column("concept", _TEXT, "the finding", privacy="secret"),
        _SPLIT,
        Column("n_images", pa.list_(_WHOLE), "images of each class, class 0 first", "images", "secret"),
        Column("n_patients", pa.list_(_WHOLE), "patients of each class", "patients", "secret"),
        Column("n_boxed", _WHOLE, "patients with a box of the finding", "patients", "secret"),
    ),
    "sums": (
        _SPLIT,
        Column("one", _TEXT, f"{_SUM}; nothing where `other` is told alone", privacy="secret"),
        Column("other", _TEXT, _SUM, privacy="secret"),
        Column(
            *(
                "n_patients",
                pa.list_(pa.int32()),
                "patients in whose images, by which the two differ, each latent fires",
            ),
            *("patients", "secret"),
        ),
    ),
    "signs": KEPT_SIGNS,
    "histograms": KEPT_HISTOGRAMS,
}
"""The tables that a study keeps of one encoder at one layer: every number, and of how few patients some of them are."""

_SECRET_BEHIND = (
    Column("n_positive_patients", _WHOLE, "patients with the finding", "patients", "secret"),
    Column("n_negative_patients", _WHOLE, "patients without it", "patients", "secret"),
    Column("fewest_patients", _WHOLE, "patients of the class with the fewest", "patients", "secret"),
    Column("undefined_share", _REAL, "share of the resamples that lacked a class", "0 to 1", "secret"),
)
BOX_PRECISIONS = tuple(
    Column(f"average_precision_{rule}", _REAL, f"of the boxes, each scored by the {what}", "0 to 1", "secret")
    for rule, what in (
        *(("maximum", "largest value in it"), ("mean", "mean value in it")),
        *(("sum", "sum of the values in it"), ("area", "size of its region")),
    )
)
"""A row's average precision under each rule by which a box can be scored."""


def _kept(column: Column) -> Column:
    """A published column before what must not get out is taken from it."""
    return replace(column, privacy="secret") if column.is_json else column


def _json(name: str, meaning: str) -> Column:
    return Column(name, _TEXT, f"JSON: {meaning}", privacy="secret", is_json=True)


_OF_STUDY = {column.name: _kept(column) for column in COLUMNS["study"]}
LAYERS: Mapping[str, tuple[Column, ...]] = {
    "study": (
        *(_LAYER, Column("primary", _TEXT, "the layer whose report lies at the top"), _OF_STUDY["title"]),
        Column("paper_setting", _FLAG, "whether the paper's numbers may stand beside the study's"),
        *(_OF_STUDY[name] for name in ("data_kind", "config", "provenance", "data", "models")),
        _json("tables", "the latents table, in work/latents, of each model and finding"),
        _OF_STUDY["sae"],
        _json("sae_quality", "how well the SAE reconstructs, by model, finding and split"),
        Column("n_controls", _WHOLE, "random groups of either kind beside every group of latents", "groups"),
        _OF_STUDY["named_latents"],
        _json("checks", "the paper's claims: value, threshold, direction, and whether it passed"),
        _OF_STUDY["created"],
    ),
    "reconstruction": (*COLUMNS["reconstruction"], *_SECRET_BEHIND),
    "rankings": (
        *_PAIR,
        Column("score", _TEXT, "by what latents are ranked", privacy="secret"),
        Column("class", _WHOLE, "the class", privacy="secret"),
        Column("latents", pa.list_(_WHOLE), "its best latents, best first", privacy="secret"),
        Column("scores", pa.list_(_REAL), "their scores", "the SAE's", "secret"),
        Column("test_mean_activation", pa.list_(_REAL), "their means in its test images", "the SAE's", "secret"),
    ),
    "interventions": (*COLUMNS["interventions"], *_BEHIND, *_SECRET_BEHIND),
    "localization": (*COLUMNS["localization"], *BOX_PRECISIONS),
    "lesions": (
        *COLUMNS["lesions"],
        Column("n_patients", _WHOLE, "patients of the images", "patients", "secret"),
        Column("n_lesion_patients", _WHOLE, "patients with lesions", "patients", "secret"),
        Column("energy_n_images", _WHOLE, "images in which the map is anywhere above 0", "images", "secret"),
    ),
    "evidence": (*EVIDENCE, *_SECRET_EVIDENCE),
    "groups": (*GROUPS, *_SECRET_BEHIND[:2]),
    "views": (*VIEWS, *_SECRET_VIEWS),
    "explained": EXPLAINED,
    "pairs": (_LAYER, *PAIRS),
    "repair": (*_PAIR, *REPAIR_COLUMNS),
    "names": (_LAYER, _ENCODER, *KEPT_NAMES),
    "layers": (
        *(_LAYER, _HOOK, *_PAIR[1:]),
        Column("grid", pa.list_(_WHOLE), "rows and columns of positions", "positions"),
        Column("d_in", _WHOLE, "width of the layer", "channels"),
        Column("d_sae", _WHOLE, "size of the SAE", "latents"),
        Column("explained_variance", _REAL, "share of the features' variance that the SAE explains"),
        Column("l0", _REAL, "latents that fire at a position", "latents", label="L0"),
        Column("dead_share", _REAL, "share of latents that never fire", "0 to 1"),
        Column("trained_l0", _REAL, "latents per position that the SAE was trained for", "latents"),
        Column("auroc_without_sae", _REAL, "AUROC without the SAE", "0 to 1", "group", label="AUROC without SAE"),
        Column("auroc_with_sae", _REAL, "AUROC with it", "0 to 1", "group", label="AUROC with SAE"),
        Column("single_latent", _WHOLE, "the latent that separates best", label="Best single latent"),
        *_with_interval("single_latent_auroc", "its AUROC", label="AUROC, single latent"),
        Column("recovered", _REAL, "share of the AUROC above chance that the best recover", label="AUROC recovered"),
        Column("removal_excess", _REAL, "AUROC lost beyond random groups", label="AUROC lost beyond random"),
        Column("best_latent", _WHOLE, "the latent that localizes best"),
        Column("best_latent_ap", _REAL, "average precision of its boxes", "0 to 1", "group", label="AP, best latent"),
        Column("best_channel_ap", _REAL, "of the best raw channel", "0 to 1", "group", label="AP, best raw channel"),
        Column("gradcam_ap", _REAL, "of Grad-CAM", "0 to 1", "group", label="AP, Grad-CAM"),
    ),
}
"""The tables that a study keeps of its layers: a row per layer, and the rows of all layers, with every number."""

CONFIGS = tuple(COLUMNS)
OPTIONAL = (
    *("evidence", "examples", "groups", "histograms", "latent_map", "lesions", "names", "neighbours"),
    *("pictures", "views"),
)
"""Configs that not every study has: of those that ask for it, and of those of this version on."""
SCHEMAS, KEPT_SCHEMAS, LAYER_SCHEMAS = (
    {name: pa.schema([column.field for column in columns]) for name, columns in tables.items()}
    for tables in (COLUMNS, KEPT, LAYERS)
)
"""The types of the columns, in order, of what is published and of what is kept."""
LABELS = {column.name: column.label for columns in LAYERS.values() for column in columns if column.label}
"""What heads a column in a table for people, where it is not its name in words."""
JSON_COLUMNS = tuple(column.name for column in COLUMNS["study"] if column.is_json)
"""The columns of `study` that are JSON texts."""


def parquet_path(config: str) -> str:
    """Where a config's only file lies in the dataset's folder."""
    return f"{config}/train-00000-of-00001.parquet"


def names_of(config: str, *privacy: Privacy) -> tuple[str, ...]:
    """The columns of a config of some classes of privacy."""
    return tuple(name for name, column in leaves(COLUMNS[config]).items() if column.privacy in privacy)


def dictionary(config: str) -> list[tuple[str, str, str]]:
    """What the columns of a config mean, for the card: names, unit and meaning.

    Fields of structs stand below their column, and columns side by side with the same meaning in one row.
    """
    parts = [
        (name, one)
        for column in COLUMNS[config]
        for name, one in ((column.name, column), *((f"{column.name}.{one.name}", one) for one in column.fields))
    ]
    rows = groupby(parts, key=lambda part: (part[1].unit, part[1].meaning))
    return [(", ".join(name for name, _ in own), unit, meaning) for (unit, meaning), own in rows]
