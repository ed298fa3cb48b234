"""Scores of an audit by which latents are judged as a set, in the image, and as findings within findings."""

__all__ = ["AuditImages", "most_active", "structure_scores", "why_missing"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mammosae_plugin.analysis.dictionaries import (
    clarity_of,
    code_redundancy_of,
    decoder_redundancy_of,
    firing_density_of,
)
from mammosae_plugin.analysis.hierarchies import absorption_of, implied_hierarchy
from mammosae_plugin.analysis.spatial import energy_share_of, moran_of, position_entropy_of
from mammosae_plugin.analysis.widths import splitting_of
from mammosae_plugin.latents.image_codes import ImageCodes

TOP = 10  # images of a latent by which monosemanticity and clarity are judged
_DRAWS = 200  # by which clarity's chance is had
_MOST_PAIRS = 10  # of findings within findings, those with the most images
_OF_MAPS = ("moran", "position_entropy", "breast_energy", "box_energy")


@dataclass(frozen=True)
class AuditImages:
    """What is known of the images that an audit scores.

    Attributes:
        groups: (n_images,) numbered: which belong together.
        labels: By name (n_images,) 0 or 1, NaN where it is missing: those that are asked for.
        nested: The same of labels that may lie in each other.
        vectors: (n_images, d) the rows themselves, averaged over positions; None where they are not known.
        channels: (n_images, d) each channel's maximum over positions; None where an image has but one.
        regions: By score ("breast_energy", "box_energy") of some images, by number, (h, w): the share of each position
            that belongs to the breast, or to boxes.
        reasons: By score why it cannot be had, where that is known beforehand.
    """

    groups: NDArray[np.int64]
    labels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    nested: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    vectors: NDArray[np.float64] | None = None
    channels: NDArray[np.float64] | None = None
    regions: Mapping[str, Mapping[int, NDArray[np.float64]]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def hierarchy(self) -> dict[str, str]:
        """Child -> parent of the nested labels; the pairs with the most images."""
        found = implied_hierarchy(self.nested)
        largest = sorted(found, key=lambda child: (-float(np.nansum(self.nested[child])), child))[:_MOST_PAIRS]
        return {child: parent for child, parent in found.items() if child in largest}

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return int(self.groups.max(initial=-1)) + 1


def structure_scores(
    member: ImageCodes, codes: sparse.csr_array, images: AuditImages, *, most_latents: int, seed: int
) -> dict[str, float | None]:
    """Density, redundancy, clarity, absorption, splitting and where latents lie, of one SAE.

    Args:
        member: What the SAE says of the images.
        codes: (n_images, D) its codes in float64.
        images: What is known of these.
        most_latents: Latents whose likeness is looked at: those that fire in the most images.
        seed: Of what is drawn for chance.

    Returns:
        Some of `schema.score_card.SCORES`; None where one cannot be had.
    """
    groups = images.groups
    found: dict[str, Any] = {}
    density = firing_density_of(codes, groups, n_bootstrap=0)
    rates = density.latents["log10_rate"].dropna()
    found |= {"dense_share": density.dense_share, "median_density": rates.median() if len(rates) else None}
    if images.vectors is not None:
        found["clarity"] = _clarity(codes, images.vectors, groups, seed)
    chosen = most_active(codes, most_latents)
    if member.directions is not None:
        # Not less its chance: random directions are what the untrained control has.
        found["decoder_redundancy"] = decoder_redundancy_of(member.directions[chosen], n_draws=0).mean
    if codes.shape[0] >= 3:
        alike = code_redundancy_of(codes[:, chosen], groups, n_bootstrap=0, seed=seed)
        found["code_redundancy"] = alike.mean - alike.chance_mean
    if images.hierarchy:
        absorbed = absorption_of(
            codes, images.nested, groups, images.hierarchy, n_permutations=0, n_bootstrap=0, seed=seed
        )
        found["absorption"] = _mean(absorbed["excess"])
    if len(member.levels) > 1 and codes.shape[0] >= 3:
        first, second = member.levels[:2]
        parts = splitting_of(codes[:, :first], codes[:, first:second], groups, n_draws=1, n_bootstrap=0, seed=seed)
        found["splitting"] = parts.share("split") - parts.chance_split
    if member.maps is not None and len(member.maps):
        found |= _in_the_image(member.maps, member.map_images, images.regions)
    return {name: None if value is None or not np.isfinite(value) else float(value) for name, value in found.items()}


def _clarity(
    codes: sparse.csr_array, vectors: NDArray[np.float64], groups: NDArray[np.int64], seed: int
) -> float | None:
    usable = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    if len(np.unique(groups[usable])) < TOP:
        return None
    found = clarity_of(codes[usable], vectors[usable], groups[usable], n=TOP, n_draws=_DRAWS, seed=seed)
    return _mean(found["clarity"] - found["null"])


def _in_the_image(
    maps: NDArray[np.float32], of_image: NDArray[np.int64] | None, regions: Mapping[str, Mapping[int, NDArray[Any]]]
) -> dict[str, float | None]:
    found = {"moran": _mean(moran_of(maps, n_permutations=1)[0]), "position_entropy": _mean(position_entropy_of(maps))}
    if of_image is None:
        return found
    for name, by_image in regions.items():
        known = np.flatnonzero(np.isin(of_image, list(by_image)))
        if len(known):
            inside, area = energy_share_of(maps[known], np.stack([by_image[one] for one in of_image[known].tolist()]))
            found[name] = _mean(inside - area)
    return found


def most_active(codes: sparse.csr_array, most: int) -> NDArray[np.int64]:
    """The latents (m,), rising, that fire in the most images; those that never fire are none."""
    fires = np.diff(sparse.csc_array(codes).indptr)
    order = np.argsort(-fires, kind="stable")[:most]
    return np.sort(order[fires[order] > 0])


def why_missing(members: Sequence[ImageCodes], images: AuditImages) -> dict[str, str]:
    """By score why no SAE has it, as far as codes and images tell.

    Args:
        members: All that are scored, the SAE itself first.
        images: What is known of the images.
    """
    found: dict[str, str] = {}
    if all(one.maps is None or not len(one.maps) for one in members):
        found |= dict.fromkeys(_OF_MAPS, "the rows are not the positions of whole maps")
    else:
        found["breast_energy"] = "the images themselves are not known: audit a study (--config), which has them"
        found["box_energy"] = "no image with a map has a box that is known: give a study or a latents table with boxes"
    if images.n_groups < TOP:
        few = f"{images.n_groups} groups are fewer than {TOP}"
        found |= dict.fromkeys(("monosemanticity", "monosemantic_share", "clarity"), few)
    if images.vectors is None:
        found |= dict.fromkeys(
            ("activation_similarity", "clarity", "recovery_20"), "the rows themselves are not known beside their codes"
        )
    if all(one.directions is None for one in members):
        found["decoder_redundancy"] = "codes and tables do not hold the decoder's rows"
    if not images.hierarchy:
        found["absorption"] = (
            "no label lies in another, of 10 images or more" if images.nested else "there are no labels"
        )
    if len(members[0].levels) < 2:
        found["splitting"] = (
            "the SAE has no levels, and a wider one is not known: analysis.splitting holds the tables of two widths "
            "against each other"
        )
    if len(members) < 2:
        found["replication"] = "there is no other seed"
    return {**found, **images.reasons}


def _mean(values: Any) -> float | None:
    """The mean of those that are known; None without any."""
    array = np.asarray(values, dtype=np.float64)
    known = array[np.isfinite(array)]
    return float(known.mean()) if len(known) else None
