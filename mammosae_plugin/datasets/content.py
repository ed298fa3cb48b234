"""What the files of a dataset hold, as one digest: whether images are those that something was computed of."""

__all__ = ["content_of", "file_stats_of"]

from functools import partial
from pathlib import Path

from mammosae_plugin import distributed
from mammosae_plugin.datasets.protocol import StudyDataset
from mammosae_plugin.files import read_json, sha256_of_file, sha256_of_json, write_json


def file_stats_of(images: StudyDataset) -> str:
    """Twelve digits that change when a file of an image or mask is replaced or the annotations change."""
    stats = [
        (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None
        for path in [*images.image_paths, *_masks(images)]
    ]
    return sha256_of_json([images.fingerprint, stats])[:12]


def content_of(images: StudyDataset, work: Path, stats: str | None = None) -> str:
    """The SHA-256 of the annotations and of every byte of every image and mask, wherever they lie.

    Args:
        images: All of them.
        work: The folder where it is kept, so that files are read again only when one was replaced.
        stats: What `file_stats_of` gives, where that is known.
    """
    file = work / f"content-{stats or file_stats_of(images)}.json"
    if not distributed.on_main(file.exists):
        paths = images.image_paths  # of volumes one for each of their slices
        each = list(dict.fromkeys(paths))
        of_each = distributed.spread(_digest, each, description="fingerprint", unit="file")
        of_file = dict(zip(each, of_each, strict=True))
        digests = dict(zip(images.images["image_id"], (of_file[path] for path in paths), strict=True))
        of_masks = distributed.spread(sha256_of_file, _masks(images), description="fingerprint", unit="mask")
        content = sha256_of_json([images.fingerprint, digests, *([of_masks] if of_masks else [])])
        distributed.on_main(partial(write_json, file, content))
    return str(read_json(file))


def _masks(images: StudyDataset) -> list[Path]:
    """The files of masks, where the data have some; a mask may change without the box around it."""
    return list(getattr(images, "mask_paths", []))


def _digest(image: Path) -> str | None:
    return sha256_of_file(image) if image.exists() else None
