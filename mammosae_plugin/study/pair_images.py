"""The images of a study's counterfactual pairs: opened, held against the CSV of the pairs, told by their content."""

__all__ = ["PairImages"]

import filecmp
from functools import cached_property
from pathlib import Path

import pandas as pd

from mammosae_plugin.analysis.counterfactuals import check_places
from mammosae_plugin.config import PairSettings
from mammosae_plugin.datasets import StudyDataset, read_pairs
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_json
from mammosae_plugin.study.images import StudyImages

_SIDES = ["image_id_a", "image_id_b"]
_OF_A_PAIR = [*_SIDES, "attribute", "xmin", "ymin", "xmax", "ymax"]


class PairImages(StudyImages):
    """The pairs of a study and their images, none of which is left out: whoever names a pair wants it.

    Args:
        settings: The section `analysis.pairs`.
        work: The study's folder for what is found.
        num_workers: Processes that read images.
    """

    def __init__(self, settings: PairSettings, work: Path, num_workers: int) -> None:
        super().__init__(settings.data, work / "pairs", num_workers)
        self.file = settings.pair_file

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """A row per pair, as `read_pairs` gives it.

        Raises:
            InputError: There is none, or an image is not there, twice in a pair, or in two files of the same bytes; a
                box lies outside the image.
        """
        pairs, where = read_pairs(self.file), f"analysis.pairs: {self.file.name}"
        if not len(pairs):
            raise InputError(f"{where} has no pair: give a row for each")
        images = self.all_images
        path_of = dict(zip(images.images["image_id"].astype(str), images.image_paths, strict=True))
        for column in _SIDES:
            ids = pairs[column].astype(str)
            if (unknown := ~ids.isin(path_of)).any():
                raise InputError(
                    f"{where} names the image {ids[unknown].iloc[0]!r}, which {self.data.root} does not have "
                    f"({int(unknown.sum())} such pairs); add the images, or leave these pairs out"
                )
            if gone := [one for one in ids if not path_of[one].exists()]:
                raise InputError(
                    f"{where} names the image {gone[0]!r}, whose file is missing ({len(gone)} such pairs); put it into "
                    f"{path_of[gone[0]].parent}, or leave these pairs out"
                )
        both = zip(*(pairs[column].astype(str) for column in _SIDES), strict=True)
        same = [(one, other) for one, other in both if _is_one(one, other, path_of)]
        if same:
            raise InputError(
                f"{where}: {same[0][0]!r} and {same[0][1]!r} are the same image ({len(same)} such pairs); a pair's "
                "images differ in its attribute: give the other image, or leave these pairs out"
            )
        check_places(pairs, self.data.image_size, where)
        return pairs

    @cached_property
    def dataset(self) -> StudyDataset:
        """The images that a pair names."""
        return self.all_images.select(image_ids=sorted({*self.pairs[_SIDES].astype(str).to_numpy().ravel().tolist()}))

    @property
    def fingerprint(self) -> str:
        """A digest of what the CSV says of the pairs."""
        return sha256_of_json(self.pairs[_OF_A_PAIR].to_csv(index=False))


def _is_one(first: str, second: str, path_of: dict[str, Path]) -> bool:
    one, other = path_of[first], path_of[second]
    return first == second or (one != other and filecmp.cmp(one, other, shallow=False))
