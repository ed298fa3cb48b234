"""A study at one layer of the network: its SAE, its latents tables, and where analyses of them are kept."""

__all__ = ["Compute", "LayerTables", "SCORES"]

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens import SAE
from torch import nn

from mammosae_plugin import distributed
from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.stored_shards import patient_number
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.sae_formats.loading import load_found, weights_of
from mammosae_plugin.adapters.sae_formats.table import LAYOUTS
from mammosae_plugin.adapters.sae_settings import sae_settings
from mammosae_plugin.adapters.sources import Source
from mammosae_plugin.analysis import probing
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, read_parquet, write_parquet
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.latents.encoding import is_whole_table
from mammosae_plugin.progress import progress_bar
from mammosae_plugin.study import plans
from mammosae_plugin.study.images import TEST, TRAINING
from mammosae_plugin.study.inputs import EncoderGroup, ModelPair, StudyInputs, existing
from mammosae_plugin.training import train_sae
from mammosae_plugin.training.rows import images_held_out
from mammosae_plugin.training.saving import CFG

logger = logging.getLogger(__name__)

SCORES: tuple[probing.Score, ...] = ("mean", "centered_mean")
_SMALL_IMAGE = (64, 64)  # of the look at a layer before the study

Compute = Callable[[LatentTable, "ModelPair"], pd.DataFrame]


class LayerTables:
    """A layer's SAE and latents tables, and how its analyses are kept in the study's work folder.

    Args:
        study: Data, classifiers and settings, which all layers share.
        name: The layer as the configuration names it.
        hook_name: Its hook point.
        is_final: Whether it is the final map.

    Raises:
        InputError: Anything that is wrong with the layer's SAE or does not fit it, in one line.
    """

    def __init__(self, study: StudyInputs, name: str, hook_name: str, *, is_final: bool) -> None:
        self.study = study
        self.config = study.config
        self.work = study.work
        self.name = name
        self.hook_name = hook_name
        self.module = module_path(hook_name)
        self.is_final = is_final
        self._made: dict[tuple[str, str], LatentTable] = {}

    @contextmanager
    def errors_name_it(self) -> Iterator[None]:
        """Let an error say at which layer it arose, where the study has several."""
        try:
            yield
        except InputError as error:
            if len(self.config.layers or ()) < 2 or str(error).startswith(f"layer {self.name}"):
                raise
            raise InputError(f"layer {self.name}: {error}") from error

    # The network

    def check(self, model: str) -> None:
        """See that a model has the layer, that it has positions, can be intervened on, and fits a given SAE.

        Raises:
            InputError: It does not.
        """
        networks, start = self.study.networks, self.study.start(model)
        try:
            try:
                hooked = networks.hooked(start, self.study.modules)
            except InputError:  # perhaps not because of this layer
                hooked = networks.hooked(start, [self.module])
            facts, given = networks.facts(start), self.config.data.image_size
            given = facts.preprocessing.input_size(given)
            size = facts.image_size or (_SMALL_IMAGE if given == self.config.data.image_size else given)
            if facts.image_size not in (None, given):
                raise InputError(
                    f"the network takes images of {size[0]} x {size[1]} pixels alone; set data.image_size to that, or "
                    f"the model's preprocessing.size, to which images are then stretched"
                )
            hooked.look(list(hooked.hook_shapes), size)  # once for all layers
            hooked.grid(self.hook_name, size)
            if hooked.rest_from(self.hook_name, size).reaches_head is False:
                final = networks.final_module(start)
                raise InputError(
                    "what the classifier reads does not depend on its positions (it reads a class token, or what goes "
                    f"around the layer), so no intervention at it means anything; choose {final} or an earlier one"
                )
            width = hooked.hook_shapes[self.hook_name][-1]
            if self.sae_file is not None:
                self._check_sae(hooked, width)
            elif self.config.sae.train is not None and model == self.config.sae.train.model:
                self._check_training(hooked, width, size, given)
        except InputError as error:
            raise InputError(f"layer {self.name} of model {model}: {error}") from error
        self._check_top(width)

    def _check_sae(self, hooked: HookedVisionModel, width: int) -> None:
        assert self.sae_file is not None
        cfg, file = self.sae.cfg, self.sae_file.name
        if cfg.d_in != width:
            raise InputError(f"{file} takes vectors of width {cfg.d_in}, but {self.hook_name} has width {width}")
        try:
            named = hooked.resolve_hook_name(cfg.metadata.hook_name)
        except InputError:
            named = cfg.metadata.hook_name
        if named != self.hook_name:
            raise InputError(f"{file} is an SAE of {named}, not of {self.hook_name}; give the SAE of this layer")

    def _check_training(
        self, hooked: HookedVisionModel, width: int, looked_at: tuple[int, int], image_size: tuple[int, int]
    ) -> None:
        """See that the SAE can be trained on the rows that there will be, before hours of making them.

        How many positions an image has follows from the smaller one that the network was looked at with; it is looked
        at with a whole one where that is too few.
        """
        source = self.config.sae.train
        assert source is not None
        training = source.training
        images = self.study.all_images.images
        of_training = images["patient_id"][images["split"] == TRAINING]
        patients = [str(patient_number(one)) for one in of_training[: source.limit]]
        if training.validation_share and len(set(patients)) > 1:
            held_out = images_held_out(patients, training.validation_share, training.order)
            patients = [one for one, out in zip(patients, held_out, strict=True) if not out]

        def check(positions: int) -> None:
            kept = min(source.count or max(1, round(positions * source.fraction)), positions)
            training.check_run(width, len(patients) * kept, "sae.train: the training images will give")

        sides = zip(hooked.grid(self.hook_name, looked_at), image_size, looked_at, strict=True)
        try:
            check(prod(ceil(cells * side / looked) for cells, side, looked in sides))
        except InputError:
            check(prod(hooked.grid(self.hook_name, image_size)))

    def _check_top(self, width: int) -> None:
        source = self.config.sae.train
        if source is None:
            d_sae, where = self.sae.cfg.d_sae, f"{self.sae_file.name if self.sae_file else 'the SAE'} has"
        else:
            d_sae = source.training.d_sae or source.training.expansion_factor * width
            where = f"the SAE of {self.name} will have"
        if self.config.analysis.top > d_sae:
            raise InputError(f"analysis.top is {self.config.analysis.top}, but {where} only {d_sae} latents; lower it")
        asked, of_final = self.config.analysis.repair, self.is_final or not self.study.has_several_layers
        named = (asked.named if asked is not None and of_final else None) or {}
        for pair, latents in named.items():
            if max(latents) >= d_sae:
                raise InputError(
                    f"analysis.repair.latents names latent {max(latents)} of {pair}, but {where} only {d_sae}: 0 to "
                    f"{d_sae - 1}"
                )

    def _hooked(self, group: EncoderGroup) -> HookedVisionModel:
        """The group's network, looked at once for all layers."""
        _ = self.sae  # first: what is read for it takes the place of the network that is in memory
        hooked = self.study.hooked(group.pair)
        hooked.look(list(hooked.hook_shapes), group.preprocessing.input_size(self.config.data.image_size))
        return hooked

    # The SAE

    @cached_property
    def sae_source(self) -> Source | None:
        """Where the layer's SAE was read from; None where the study trains it."""
        sae = self.config.sae
        checkpoint = sae.paths[self.name] if sae.paths is not None else sae.path
        return None if checkpoint is None else existing(checkpoint, LAYOUTS)

    @property
    def sae_file(self) -> Path | None:
        """The file or folder of the layer's SAE; None where the study trains it."""
        return self.sae_source.path if self.sae_source is not None else None

    @property
    def sae_weights(self) -> Path:
        """The file that holds the weights of the layer's SAE."""
        place = self.sae_file or self._trained_folder
        return weights_of(place)

    def extract(self) -> ActivationStore | None:
        """The rows on which the SAE is trained; None where the configuration gives the SAE as a file."""
        return None if self.config.sae.train is None else self.study.stores[self.hook_name]

    @cached_property
    def sae(self) -> SAE[Any]:
        """The layer's SAE, which all models share: a SAELens SAE on the CPU."""
        if self.sae_source is not None:
            found = load_found(self.sae_source)
            if found.cfg.metadata.hook_name is None:
                found.cfg.metadata.hook_name = self.hook_name
            return found
        source = self.config.sae.train
        store = self.extract()
        assert source is not None and store is not None
        preprocessing = self.study.facts(ModelPair(source.model, source.concept)).preprocessing
        described = {
            "preprocessing": preprocessing.describe(),
            "trained_on_model": source.model,
            "concept": source.concept,
        }
        sae = train_sae(store, self._trained_folder, source.training, metadata=described, device=self.config.device)
        return sae.to("cpu")

    @property
    def _trained_folder(self) -> Path:
        """Where the SAE that the study trains lies."""
        source, store = self.config.sae.train, self.extract()
        assert source is not None and store is not None
        plan = plans.of_sae(self.config, store.manifest)
        names = {name: plan[name] for name in ("model", "concept")}
        before = self.work / "sae" / plans.digest({name: value for name, value in plan.items() if name not in names})
        if (before / CFG).exists():  # of a version that left the names out of the plan
            said = read_json(before / CFG)["metadata"]
            if {"model": said.get("trained_on_model"), "concept": said.get("concept")} == names:
                return before
        return plans.keep(plan, self.work / "sae" / plans.digest(plan))

    def train(self) -> None:
        """Train the SAE, or read the one that the configuration names."""
        _ = self.sae

    # The latents tables

    @cached_property
    def tables(self) -> dict[ModelPair, LatentTable]:
        """The latents table of each pair; a model's classifiers with bit-identical encoders share one."""
        return {pair: self._table(group) for group in self.study.encoder_groups for pair in group.heads}

    def _table(self, group: EncoderGroup) -> LatentTable:
        key = (group.model, group.encoder)
        if key not in self._made:
            self._made[key] = self._encode(group)
        return self._made[key]

    def _encode(self, group: EncoderGroup) -> LatentTable:
        heads, images = group.named_heads, self.study.dataset.with_preprocessing(group.preprocessing)
        plan = plans.of_table(
            self.config,
            hook_name=self.hook_name,
            encoder=group.encoder,
            sae=self.sae.state_dict(),
            sae_settings=sae_settings(self.sae),
            heads=heads,
            with_boxes=self.study.findings,
            scores=self._scores,
            images=images,
            content=self.study.content,
        )
        folder = plans.keep(plan, self.work / "latents" / f"{group.model}-{plans.digest(plan)}")
        if distributed.on_main(partial(is_whole_table, folder)):
            return LatentTable(folder)
        return encode_latents(
            self._hooked(group),
            self.sae,
            images,
            folder,
            heads=heads,
            map_latents=lambda table: self._to_map(table, self.ranking),
            map_channels=lambda table: self._to_map(table, self._channel_ranking),
            map_splits=(TEST,),
            gradcam=self.config.analysis.gradcam,
            peaks=0 if (lesions := self.config.analysis.lesions) is None else lesions.peaks,
            map_groups=lambda table: self._groups(table, heads),
            device=self.config.device,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
        )

    def encode(self, group: EncoderGroup) -> None:
        """Make the latents table of the classifiers on one encoder."""
        self._table(group)

    def _to_map(
        self, table: LatentTable, rank: Callable[[LatentTable, str, probing.Score], probing.RankedLatents]
    ) -> Sequence[int]:
        """The best latents, or channels, of every finding by either score: Table 2 and Figure 3 need their maps."""
        chosen: set[int] = set()
        n = max(self.config.analysis.top, self.n_judged)
        for concept in self.study.findings:
            for score in self._scores:
                chosen |= {int(index) for index in rank(table, concept, score).indices[1, :n]}
        return sorted(chosen)

    def _groups(self, table: LatentTable, heads: Mapping[str, nn.Linear]) -> dict[str, dict[int, float]]:
        """The best latents of every finding, each weighted by what it adds to the logit, where that is linear."""
        lesions = self.config.analysis.lesions
        if lesions is None or table.readout_kind != "linear":
            return {}
        decoder, found = self.sae.W_dec.detach().double().cpu(), {}
        for concept in (name for name in self.study.findings if name in heads):
            best = self.ranking(table, concept).indices[1, : lesions.group or self.n_judged].tolist()
            effects = decoder[best] @ heads[concept].weight.detach().double().cpu()[0]
            found[concept] = dict(zip(best, effects.tolist(), strict=True))
        return found

    @property
    def n_judged(self) -> int:
        """How many of the best latents and channels are looked for lesions in."""
        lesions = self.config.analysis.lesions
        return (lesions.top if lesions is not None else None) or self.config.analysis.top

    @property
    def _scores(self) -> list[probing.Score]:
        """The scores whose best latents have maps."""
        return sorted({*SCORES, self.config.analysis.score})

    def ranking(self, table: LatentTable, concept: str, score: probing.Score | None = None) -> probing.RankedLatents:
        """The latents of a table by the study's score, or another."""
        scores = probing.class_mean_latents(
            table, concept, split=TRAINING, unit=self.unit, score=score or self.config.analysis.score
        )
        return probing.rank_latents(scores)

    def _channel_ranking(
        self, table: LatentTable, concept: str, score: probing.Score | None = None
    ) -> probing.RankedLatents:
        return probing.rank_channels(
            table, concept, split=TRAINING, unit=self.unit, score=score or self.config.analysis.score
        )

    # The analyses

    def kept(self, name: str, pair: ModelPair, settings: Mapping[str, Any], compute: Compute) -> pd.DataFrame:
        """A data frame of one analysis of one pair, computed once for the same table and settings."""
        path = self._place(name, pair, settings)
        if not path.exists():
            logger.info("%s: %s at %s", name, pair.key, self.name)
            frame = compute(self.tables[pair], pair)
            write_parquet(path, frame)
        frame = read_parquet(path)
        frame.insert(0, "model", pair.model)
        frame.insert(1, "concept", pair.concept)
        return frame

    def _place(self, name: str, pair: ModelPair, settings: Mapping[str, Any]) -> Path:
        """Where an analysis of a pair is kept, or will be."""
        table = self.tables[pair].folder.name
        plan = plans.of_analysis(name, table=table, model=pair.model, concept=pair.concept, settings=settings)
        path = self.work / "analyses" / f"{name}-{pair.model}-{pair.concept}-{plans.digest(plan)}.parquet"
        return plans.keep(plan, path)

    def _each(
        self, name: str, settings: Mapping[str, Any], compute: Compute, pairs: Sequence[ModelPair] | None = None
    ) -> pd.DataFrame:
        asked = self.study.pairs if pairs is None else pairs
        lacking = [pair for pair in asked if not self._place(name, pair, settings).exists()]
        frames = []
        with progress_bar(
            total=len(lacking),
            description=f"{name} at {self.name}",
            unit="classifier",
            to=self.work / "analyses",
            shown=len(lacking) > 0,
            leave=False,
        ) as bar:
            for pair in asked:
                frames.append(self.kept(name, pair, settings, compute))
                bar.update(pair in lacking)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    @property
    def unit(self) -> str:
        """What metrics count."""
        return str(self.config.data.evaluation_unit)

    @property
    def _resampling(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "n_bootstrap": self.config.analysis.n_bootstrap,
            "seed": self.config.seed,
        }

    @property
    def _intervals(self) -> dict[str, Any]:
        return {**self._resampling, "min_patients": self.config.analysis.min_patients}
