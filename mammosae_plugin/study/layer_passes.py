"""Interventions at an inner layer of a study: what runs the network behind it, how long that takes, and of whom."""

__all__ = ["LayerPasses", "PassesLeft", "permit"]

import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory

from mammosae_plugin.activations import cache_layer_outputs, layer_output_nbytes
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.latents.kept_passes import AskedMasks, KeptPasses
from mammosae_plugin.latents.masked_passes import MaskedPasses
from mammosae_plugin.study import plans
from mammosae_plugin.study.images import TEST
from mammosae_plugin.study.inputs import EncoderGroup, ModelPair, StudyInputs
from mammosae_plugin.study.layer_pairs import LayerPairs

logger = logging.getLogger(__name__)

_GIGABYTE, _HOUR = 1e9, 3600.0
_BATCH_BYTES = 2**22  # of a layer's outputs under as many masks as run together; small maps run faster in large batches
_WORTH_TELLING = 60.0  # seconds of passes


@dataclass(frozen=True)
class PassesLeft:
    """What interventions at one layer on one encoder still take.

    Attributes:
        layer: The layer's name.
        model: The encoder's.
        n_masks: How many masks differ.
        n_asked: How many were asked for, by all concepts.
        n_images: Images on which they are still to be run.
        n_patients: Of so many patients.
        n_passes: Passes of the rest of the network, about.
        seconds: That these take, as measured on one image.
    """

    layer: str
    model: str
    n_masks: int
    n_asked: int
    n_images: int
    n_patients: int
    n_passes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"interventions at {self.layer}: {self.n_masks:,} masks ({self.n_asked:,} were asked for, by all concepts "
            f"on the encoder of {self.model}) on {self.n_images:,} images of {self.n_patients:,} patients, about "
            f"{self.n_passes:,} passes of the rest of the network, {_duration(self.seconds)} as measured here"
        )


def permit(left: Sequence[PassesLeft], hours: float) -> None:
    """Say how long passes will take, and refuse more than was allowed, before any of them is run.

    Args:
        left: What layers and encoders still take.
        hours: That all of them may take together.

    Raises:
        InputError: They would take longer.
    """
    if not left:
        return
    seconds = sum(one.seconds for one in left)
    longest = max(left, key=lambda one: one.seconds)
    together = (
        f"interventions at inner layers: about {sum(one.n_passes for one in left):,} passes of the rest of networks, "
        f"{_duration(seconds)} as measured here; the longest are {longest}"
    )
    if seconds > hours * _HOUR:
        fitting = floor(longest.n_patients * hours * _HOUR / seconds)
        raise InputError(
            f"{together if len(left) > 1 else longest}; analysis.inner_hours allows {hours:g} h: set "
            f"analysis.inner_patients to {f'{fitting} or fewer' if fitting > 1 else 'a small number'}, ask for fewer "
            "inner_controls or ks, or allow more hours"
        )
    level = logging.WARNING if seconds >= _WORTH_TELLING else logging.INFO
    for one in left:
        logger.log(level, "%s", one)
    if len(left) > 1:
        logger.log(level, "interventions at inner layers: %s in all, as measured here", _duration(seconds))


class LayerPasses(LayerPairs):
    """A layer's SAE and tables, with what interventions behind an inner layer need."""

    def __init__(self, study: StudyInputs, name: str, hook_name: str, *, is_final: bool) -> None:
        super().__init__(study, name, hook_name, is_final=is_final)
        self._latest: tuple[HookedVisionModel, MaskedPasses] | None = None
        self._asks: dict[str, tuple[AskedMasks, Path]] = {}
        self._kept: dict[str, KeptPasses] = {}
        self.is_permitted = False
        """Whether it was told how long passes here take, and that they may."""

    @abstractmethod
    def _asked(self, table: LatentTable, pairs: Iterable[ModelPair]) -> AskedMasks:
        """What all analyses of some classifiers on one encoder will ask for."""

    @property
    def is_inner(self) -> bool:
        """Whether more of the network than the average over positions and the classifier lies behind the layer."""
        return any(table.readout_kind == "network" for table in self.tables.values())

    @property
    def sampled(self) -> list[str] | None:
        """The test patients on whose images the network is run without latents; None where they are all."""
        return self.study.sampled_patients if self.is_inner else None

    @property
    def _of_sample(self) -> dict[str, int]:
        """What the results of interventions depend on, where these are of a sample."""
        n = self.config.analysis.inner_patients
        return {} if n is None or self.sampled is None else {"inner_patients": n}

    def _asked_of(self, group: EncoderGroup) -> tuple[AskedMasks, Path]:
        """All masks of the classifiers on one encoder, and where their answers are kept."""
        if group.encoder not in self._asks:
            asked = self._asked(self.tables[group.pair], group.heads)
            plan = {"step": "intervene", **KeptPasses.plan(asked)}
            self._asks[group.encoder] = asked, plans.keep(plan, self.work / "masked-passes" / plans.digest(plan))
        return self._asks[group.encoder]

    def _passes_for(self, table: LatentTable, pair: ModelPair) -> KeptPasses | None:
        """What interventions at an inner layer need: all masks of the classifiers on the pair's encoder, run once."""
        if table.readout_kind != "network":
            return None
        group = self.study.group_of(pair)
        if group.encoder not in self._kept:
            if not self.is_permitted and (left := self.passes_left(group)):
                permit([left], self.config.analysis.inner_hours)
            asked, folder = self._asked_of(group)
            self._kept[group.encoder] = KeptPasses(folder, asked, lambda: self._masked_passes(group))
        return self._kept[group.encoder]

    def passes_left(self, group: EncoderGroup) -> PassesLeft | None:
        """What interventions on one encoder still take, with a pass measured on one image; None where nothing."""
        if self.tables[group.pair].readout_kind != "network":
            return None
        asked, folder = self._asked_of(group)
        if not (rows := KeptPasses.left(folder, asked)):
            return None
        images, row = asked.table.images, rows[0]
        edits, _ = asked.edits(asked.heads_at(row))
        one = self._images_run(group).select(image_ids=[images["image_id"].iloc[row]])
        with TemporaryDirectory() as scratch:
            passes = self._passes(group, self._hooked(group), one, Path(scratch) / "one")
            seconds = passes.seconds_of_a_pass(asked.table, edits, row)
        n_passes, n_patients = asked.estimate(rows), images["patient_id"].iloc[rows].nunique()
        numbers = (asked.n_masks, asked.n_asked, len(rows), n_patients, n_passes, seconds * n_passes)
        return PassesLeft(self.name, group.model, *numbers)

    def _masked_passes(self, group: EncoderGroup) -> MaskedPasses:
        """What runs the network; the last is kept until its use ends.

        It holds a network and a layer's outputs, which are too large to keep them all.
        """
        model = self._hooked(group)
        if self._latest is None or model is not self._latest[0]:
            self._latest = None  # the old one goes before the new one comes
            images = self._images_run(group)
            plan = plans.of_layer_outputs(
                self.config,
                hook_name=self.hook_name,
                encoder=group.encoder,
                images=images,
                content=self.study.content,
            )
            folder = plans.keep(plan, self.work / "layer-outputs" / plans.digest(plan))
            if not folder.exists():
                self._announce(model, images)
            self._latest = model, self._passes(group, model, images, folder)
        return self._latest[1]

    def _images_run(self, group: EncoderGroup) -> StudyDataset:
        """The test images on which the network is run without latents."""
        images = self.study.split(TEST).with_preprocessing(group.preprocessing)
        if self.sampled is None:
            return images
        own = images.images
        return images.select(image_ids=own.loc[own["patient_id"].astype(str).isin(self.sampled), "image_id"])

    def _passes(
        self, group: EncoderGroup, model: HookedVisionModel, images: StudyDataset, folder: Path
    ) -> MaskedPasses:
        """What runs the network behind the layer under masks, from the layer's outputs kept in a folder."""
        outputs = cache_layer_outputs(
            model,
            images,
            folder,
            hook_name=self.hook_name,
            device=self.config.device,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
        )
        at_once = min(max(_BATCH_BYTES // outputs.nbytes_per_image, 4), 32)
        heads, device = group.named_heads, self.config.device
        return MaskedPasses(model, self.sae, outputs, heads, device=device, masks_at_once=at_once)

    def _announce(self, model: HookedVisionModel, images: StudyDataset) -> None:
        """Say how large the layer's outputs will be on disk, before they are written there."""
        image_size = images.preprocessing.input_size(images.image_size)
        size = layer_output_nbytes(model, self.hook_name, image_size) * len(images) / _GIGABYTE
        if size >= 1:
            logger.warning(
                "the outputs of %s for %d test images take %.1f GB in work/layer-outputs, which can be deleted when "
                "the study is done",
                *(self.name, len(images), size),
            )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:,.1f} h"
