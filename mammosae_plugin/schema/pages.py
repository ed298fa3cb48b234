"""The configs of findings that pages are made of: histograms, neighbours, a map of latents, pictures."""

__all__ = [
    "HISTOGRAMS", "KEPT_HISTOGRAMS", "KEPT_PAGES", "KEPT_SIGNS", "LATENT_MAP", "N_BINS", "NEIGHBOURS", "PAGE_SCHEMAS",
    "PICTURE_FILE", "PICTURES", "PICTURES_FOLDER",
]  # fmt: skip

import pyarrow as pa

from mammosae_plugin.schema.columns import Column

N_BINS = 16
"""Equal parts of the range of a latent's activation, from 0 to its largest, that a histogram has at most."""

_TEXT, _WHOLE, _REAL, _SMALL = pa.string(), pa.int64(), pa.float64(), pa.int32()
_LAYER = Column("layer", _TEXT, "the layer as the study names it")
_ENCODER = Column("encoder", _TEXT, "the model, or `model/finding`, whose images were read")
_LATENT = Column("latent", _WHOLE, "the latent's number, from 0")

HISTOGRAMS = (
    _LAYER,
    _ENCODER,
    Column("concept", _TEXT, "the finding, or what else the study asks for"),
    Column("class", _WHOLE, "the class, from 0 (absent)"),
    _LATENT,
    Column(
        *("edges", pa.list_(_REAL), "where bins of its maximum over positions begin, and where the last ends"),
        *("the SAE's", "group"),
        longest=N_BINS + 1,
    ),
    Column("n_images", pa.list_(_WHOLE), "test images of the class in each bin", "images", "group", longest=N_BINS),
    Column(
        *("n_silent", _WHOLE, "those in which it does not fire; nothing: they are counted in the first bin"),
        *("images", "group"),
    ),
    Column("n", _WHOLE, "all of them", "images", "group"),
)
NEIGHBOURS = (
    _LAYER,
    _ENCODER,
    _LATENT,
    Column("kind", _TEXT, "together: by how alike the images are in which they fire; decoder: by their directions"),
    Column("rank", _WHOLE, "its place, from 1"),
    Column("neighbour", _WHOLE, "the other latent's number"),
    Column("value", _REAL, "correlation of firing over test images, or cosine of the directions", "-1 to 1", "group"),
    Column("chance", _REAL, "95th percentile of that for a neighbour of this rank by chance", "-1 to 1"),
    Column("n", _WHOLE, "test images behind a correlation", "images"),
)
LATENT_MAP = (
    _LAYER,
    _LATENT,
    Column("x", _REAL, "place on the map of the SAE's directions"),
    Column("y", _REAL, "place on the map of the SAE's directions"),
)
PICTURES_FOLDER = "pictures"
PICTURE_FILE = rf"{PICTURES_FOLDER}/[0-9a-f]{{32}}\.webp"
"""The name of a picture: the first digits of the SHA-256 of its own bytes, which say nothing of whose it is."""
PICTURES = (
    _LAYER,
    _ENCODER,
    _LATENT,
    Column("kind", _TEXT, "strongest; range: over the range of its activation; healthy: strongest without any finding"),
    Column("rank", _WHOLE, "its place among those of its kind, from 1"),
    Column("activation", _REAL, "the latent's maximum over the positions of the image", "the SAE's", "image"),
    Column("quantile", _REAL, "share of the test images in which it fires that fire no more", "0 to 1", "image"),
    Column(
        *("classes", pa.null(), "classes of the image: the fields below"),
        fields=(
            Column("concept", _TEXT, "the finding"),
            Column("class", _WHOLE, "the image's class; nothing where its label is missing", privacy="image"),
        ),
        longest=64,
    ),
    Column(
        *("boxes", pa.list_(pa.list_(_REAL)), "annotated boxes of the findings, xyxy"),
        *("pixels of the network's input", "image"),
        longest=64,
    ),
    Column("whole", _TEXT, "the file of the whole image, with what the latent fires on and the boxes"),
    Column("crop", _TEXT, "the file of a square round the latent's peak; nothing where no place is known"),
)


def _secret(name: str, meaning: str, unit: str = "") -> Column:
    return Column(name, _SMALL, meaning, unit, "secret")


KEPT_SIGNS = (
    Column("sign", _SMALL, "a number for images with the same class of every concept", privacy="secret"),
    Column("classes", pa.list_(_SMALL), "these, in the encoder's order; -1: not known", privacy="secret"),
    _secret("n_images", "test images that have it", "images"),
    _secret("n_patients", "patients, each counted at one sign", "patients"),
)
KEPT_HISTOGRAMS = (
    _secret("latent", "the latent"),
    _secret("bin", "0: it does not fire; from 1: which part of its range"),
    _secret("sign", "of the images"),
    _secret("n_images", "test images there", "images"),
    _secret("n_patients", "patients, each counted in one bin and at one sign; in bin 0 apart from the others"),
)
_KEPT_NEIGHBOURS = (
    *NEIGHBOURS,
    *(
        _secret(f"n_{name}", f"patients with an image in which {what}; 0 for those by directions", "patients")
        for name, what in (
            *(("both", "both fire"), ("only", "the latent alone fires")),
            *(("other", "the neighbour alone fires"), ("neither", "neither fires")),
        )
    ),
)

KEPT_PAGES = {"neighbours": _KEPT_NEIGHBOURS, "latent_map": LATENT_MAP}
"""What a study keeps of all its layers in a table each, beside what it keeps of every encoder."""
PAGE_SCHEMAS = {name: pa.schema([column.field for column in columns]) for name, columns in KEPT_PAGES.items()}
