"""Pictures of images in which latents fire, which go out with findings where the images' owner allows it.

`PrivacyContext.why_no_pictures` decides whether they may; the guard holds the same against what is staged.
"""

__all__ = ["copy_pictures", "Images", "pictures_of", "told_pictures"]

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mammosae_plugin.config import load_data
from mammosae_plugin.datasets import StudyDataset, open_dataset
from mammosae_plugin.datasets.content import content_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.published import Findings
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.privacy.context import PrivacyContext, PrivacyError
from mammosae_plugin.privacy.pictures import PICTURE, flaw_of_picture, is_permitted
from mammosae_plugin.visualization import latent_pictures

Row = dict[str, Any]
Images = StudyDataset | str | Path
"""A study's images: a dataset, or the study's YAML file, which says where they lie."""


def pictures_of(
    study: StudyFolder, context: PrivacyContext, images: Images | None, folder: Path
) -> tuple[pa.Table | None, Row]:
    """The config `pictures` of a study, its files drawn into a folder, and what `data` of the study's row says of it.

    Args:
        study: The study.
        context: Whose images they are, and whether pictures were asked for.
        images: The images; None where nobody said where they lie.
        folder: Where the files are written, under `pictures/`.

    Returns:
        The table, None where there are no pictures, and `shown` with `reason`, or with `n_latents`, `n_pictures`,
        `bytes` and `most`.

    Raises:
        PrivacyError: Images were given whose pictures may not leave.
        InputError: They are not the study's.
    """
    why_not = context.why_no_pictures
    if images is None:
        return None, {"shown": False, "reason": why_not or "where the images lie was not said (--data STUDY.yaml)"}
    if why_not is None:
        dataset = images if not isinstance(images, (str, Path)) else open_dataset(load_data(images))
        of_these = replace(context, datasets=(dataset.about.name,), about=(dataset.about,))
        why_not = of_these.why_no_pictures
    if why_not is not None:
        raise PrivacyError(f"no pictures of {study.folder.name} can go out: {why_not}. Nothing was drawn or sent")
    if content_of(dataset, study.folder / "work") != study.dataset_fingerprint:
        named = images if isinstance(images, (str, Path)) else dataset.about.title
        raise InputError(
            f"the images or annotations of {named} are not those that {study.folder.name} was run with, so its latents "
            "fired on others; name the YAML file that it was run with, or run it again"
        )
    most = latent_pictures.MOST_LATENTS
    return latent_pictures.draw_pictures(study, dataset, folder, min_group=context.min_group, most=most)


def copy_pictures(findings: Findings, folder: Path) -> None:
    """Copy the files of findings with pictures, as they were drawn.

    Raises:
        InputError: A file is missing, or is not what its name says.
    """
    if findings.pictures is None or findings.pictures_folder is None:
        return
    sizes: dict[str, int] = {}
    for name in dict.fromkeys([*findings.pictures["whole"], *findings.pictures["crop"].dropna()]):
        file = findings.pictures_folder / str(name)
        data = file.read_bytes() if PICTURE.fullmatch(str(name)) and file.is_file() else b""
        if flaw_of_picture(data) is not None or latent_pictures.keep_picture(data, folder, sizes) != name:
            raise InputError(f"{findings.origin} lists a picture that is missing or damaged; stage or load it again")


def told_pictures(findings: Findings, *, examples: bool) -> Findings:
    """Findings as a Space shows them: with their pictures only where these are asked for.

    Raises:
        InputError: They are asked for, and the findings have none.
    """
    told = findings.study["data"].get("pictures")
    if examples and findings.pictures is None:
        reason = f" ({told['reason']})" if isinstance(told, dict) and told.get("reason") else ""
        raise InputError(
            f"{findings.origin} holds no pictures{reason}; publish it with --examples and --data STUDY.yaml first, or "
            "name the study's folder and --data STUDY.yaml here"
        )
    if examples or not is_permitted(findings.study["data"]):
        return findings
    return findings.with_pictures(None, {"shown": False, "reason": "the pages were made without them (--examples)"})
