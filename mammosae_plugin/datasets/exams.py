"""Images exam by exam, each with the same views in the same order, as networks of several views are given them."""

__all__ = ["by_exam", "ExamImages"]

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Self

from mammosae_plugin.arguments import one_of, shown, whole
from mammosae_plugin.datasets.base import Item
from mammosae_plugin.datasets.protocol import PARTS, StudyDataset
from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)

_PLACES = ("laterality", "view")


class ExamImages:
    """A dataset whose images come exam by exam; `by_exam` makes it. It has all parts of its dataset.

    Attributes:
        dataset: The images in their own order.
        n_views: Images of an exam.
    """

    images: pd.DataFrame

    def __init__(self, dataset: StudyDataset, order: npt.NDArray[np.intp], n_views: int) -> None:
        """Take the rows of `dataset.images` in order, n_views of each exam."""
        self.dataset, self.n_views, self._order = dataset, n_views, order
        self.images = dataset.images.iloc[order].reset_index(drop=True)
        if "exam_id" not in self.images:
            self.images.insert(2, "exam_id", self.images["patient_id"])

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._order)

    def __getitem__(self, index: int) -> Item:
        """Item `index`, in this order."""
        return self.dataset[int(self._order[index])]

    def gray(self, index: int) -> npt.NDArray[np.uint8]:
        """The image of item `index` for display."""
        return self.dataset.gray(int(self._order[index]))

    @property
    def image_paths(self) -> list[Any]:
        """The image files, one per row of `images`."""
        paths = self.dataset.image_paths
        return [paths[row] for row in self._order]

    @property
    def fingerprint(self) -> str:
        """That of the dataset; the ids say the order."""
        return self.dataset.fingerprint

    def with_preprocessing(self, preprocessing: Any) -> Self:
        """The same images as another network wants them."""
        return type(self)(self.dataset.with_preprocessing(preprocessing), self._order, self.n_views)

    def select(
        self, *, split: str | None = None, image_ids: Iterable[str] | None = None, exclude: Iterable[str] = ()
    ) -> Self:
        """The dataset with fewer images, in unchanged order.

        Raises:
            InputError: Nothing is left, or parts of exams are.
        """
        chosen = self.dataset.select(split=split, image_ids=image_ids, exclude=exclude)
        places = pd.Index(chosen.images["image_id"]).get_indexer(self.images["image_id"])
        rows = np.flatnonzero(places >= 0)
        if len(rows) % self.n_views or (rows.reshape(-1, self.n_views)[:, 0] % self.n_views).any() or (
            np.diff(rows.reshape(-1, self.n_views), axis=1) != 1
        ).any():  # fmt: skip
            raise InputError(
                f"the images that are chosen ({shown(split or 'by id')}) are no whole exams of {self.n_views} views: "
                "keep the images of an exam in one split, and a limit a multiple of them"
            )
        return type(self)(chosen, places[rows], self.n_views)


def _of_dataset(name: str) -> property:
    return property(lambda self: getattr(self.dataset, name))


for _name in PARTS:
    if _name not in vars(ExamImages) and _name != "images":
        setattr(ExamImages, _name, _of_dataset(_name))


def by_exam(
    dataset: StudyDataset,
    n_views: int,
    *,
    views: Sequence[Any] | None = None,
    incomplete: Literal["refuse", "leave out"] = "refuse",
) -> StudyDataset:
    """The images of a dataset exam by exam, each with its views in one order.

    Exams are told by `exam_id`, or, without it, by `patient_id`; views by `laterality` and `view`, whichever the
    dataset has.

    Args:
        dataset: One row of `images` per image.
        n_views: Images of an exam.
        views: The views in the order that the network wants: pairs such as ("L", "CC"), or single words where the
            dataset has but one of the columns. By default sorted: L CC, L MLO, R CC, R MLO.
        incomplete: What to do about exams that lack a view or have one twice: "refuse" them, or "leave out".

    Raises:
        InputError: No column says which view an image is, a view that there is not, or exams that are incomplete.
    """
    whole(n_views, "n_views", least=1)
    one_of(incomplete, "incomplete", ("refuse", "leave out"))
    images = dataset.images
    exam = images["exam_id" if "exam_id" in images else "patient_id"].map(str)
    columns = [name for name in _PLACES if name in images]
    if not columns:
        raise InputError(
            f"no column says which of {n_views} views an image is: give the images a view (and a laterality), such as "
            "as_images(images, covariates={'exam_id': [...], 'view': [...]})"
        )
    keys = images[columns].astype(str).agg(" ".join, axis=1)
    if keys.nunique() < n_views:
        raise InputError(
            f"the images have {keys.nunique()} views ({', '.join(sorted(keys.unique()))}), and the network takes "
            f"{n_views} of each exam: give images of all {n_views}"
        )
    wanted = sorted(keys.unique()) if views is None else [_said(view) for view in views]
    if len(wanted) != n_views or (set(wanted) - set(keys)):
        raise InputError(
            f"the views are {', '.join(wanted)}, and the network takes {n_views} of "
            f"{', '.join(sorted(keys.unique()))}: name them in its order, by_exam(dataset, {n_views}, views=[...])"
        )
    place = keys.map({key: number for number, key in enumerate(wanted)})
    table = pd.DataFrame({"exam": exam, "place": place, "row": np.arange(len(images))}).dropna()
    counts = table.groupby("exam", sort=False)["place"].agg(["size", "nunique"])
    is_whole = (counts["size"] == n_views) & (counts["nunique"] == n_views)
    missing = [*counts.index[~is_whole], *sorted(set(exam) - set(counts.index))]
    if missing and incomplete == "refuse":
        raise InputError(
            f"{len(missing)} of {exam.nunique()} exams (such as {missing[0]}) have not "
            f"each of the {n_views} views once: leave them out, by_exam(dataset, {n_views}, incomplete='leave out')"
        )
    if not is_whole.any():
        raise InputError(f"no exam has each of the {n_views} views {', '.join(wanted)} once")
    if missing:
        logger.info("%d of %d exams have not each view once and are left out", len(missing), exam.nunique())
    table = table[table["exam"].isin(counts.index[is_whole])]
    number = {name: row for row, name in enumerate(counts.index)}
    table = table.assign(number=table["exam"].map(number)).sort_values(["number", "place"], kind="stable")
    made: Any = ExamImages(dataset, table["row"].to_numpy(dtype=np.intp), n_views)
    found: StudyDataset = made
    return found


def _said(view: Any) -> str:
    return view if isinstance(view, str) else " ".join(map(str, view))
