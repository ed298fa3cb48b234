"""What keeps SAEs, and findings about their latents, from being published unless somebody insists."""

__all__ = ["flaws_of", "flaws_of_study", "refuse_poor"]

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.schema.results import poor_sae

logger = logging.getLogger(__name__)


def refuse_poor(flaws: Iterable[str], *, force_poor: bool) -> None:
    """Stop a publication of what is poor; where somebody insists, say in the log what is.

    Raises:
        InputError: there is a flaw, and nobody insists.
    """
    found = list(flaws)
    if not found:
        return
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    what = f"an SAE does poorly ({'; '.join(found[:3])}{more}), so that claims about its latents mean little"
    if not force_poor:
        raise InputError(f"{what}: train a better one, or publish it all the same with --force-poor (force_poor=True)")
    logger.warning("%s", what)


def flaws_of_study(folder: Any) -> list[str]:
    """The flaws of a study's SAEs on the test images of each of its classifiers."""
    return flaws_of(
        {
            layer.name: layer.results["sae"] | {"quality": layer.results["sae_quality"]}
            for layer in StudyFolder(folder).layers
        }
    )


def flaws_of(saes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same from what findings say of the SAEs, by layer."""
    return [
        f"{layer}, {row['model']}/{row['concept']}: {flaw}"
        for layer, sae in saes.items()
        for row in sae.get("quality", [])
        if row["split"] == "test" and (flaw := poor_sae(row, sae.get("trained_l0")))
    ]
