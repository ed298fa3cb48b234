"""A study at one layer of the network: its SAE, its latents tables, and every analysis of them."""

__all__ = ["Compute", "LayerStudy", "SCORES"]

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sae_lens import SAE

from mammosae_plugin.activations import ActivationStore, cache_layer_outputs, layer_output_nbytes
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.sae_formats.loading import load_found, weights_of
from mammosae_plugin.adapters.sae_formats.table import LAYOUTS
from mammosae_plugin.adapters.sae_settings import sae_settings
from mammosae_plugin.adapters.sources import Source
from mammosae_plugin.analysis import intervention, localization, probing, reconstruction
from mammosae_plugin.analysis.roles import latent_roles
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, read_parquet, write_parquet
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.latents.masked_passes import MaskedPasses
from mammosae_plugin.study import plans
from mammosae_plugin.study.images import TEST, TRAINING
from mammosae_plugin.study.inputs import EncoderGroup, ModelPair, StudyInputs, existing
from mammosae_plugin.training import train_sae
from mammosae_plugin.training.saving import CFG

logger = logging.getLogger(__name__)

SCORES: tuple[probing.Score, ...] = ("mean", "centered_mean")
_GIGABYTE = 1e9
_BATCH_BYTES = 2**22  # of a layer's outputs under as many masks as run together; small maps run faster in large batches
_SMALL_IMAGE = (64, 64)  # of the look at a layer before the study

Compute = Callable[[LatentTable, "ModelPair"], pd.DataFrame]


class LayerStudy:
    """The steps of a study at one layer, each computed when it is asked for and kept in the study's work folder.

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
        self._latest: tuple[HookedVisionModel, MaskedPasses] | None = None

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

    def _check_top(self, width: int) -> None:
        source = self.config.sae.train
        if source is None:
            d_sae, where = self.sae.cfg.d_sae, f"{self.sae_file.name if self.sae_file else 'the SAE'} has"
        else:
            d_sae = source.training.d_sae or source.training.expansion_factor * width
            where = f"the SAE of {self.name} will have"
        if self.config.analysis.top > d_sae:
            raise InputError(f"analysis.top is {self.config.analysis.top}, but {where} only {d_sae} latents; lower it")

    def _hooked(self, group: EncoderGroup) -> HookedVisionModel:
        """The group's network, looked at once for all layers."""
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
        return encode_latents(
            self._hooked(group),
            self.sae,
            images,
            plans.keep(plan, self.work / "latents" / f"{group.model}-{plans.digest(plan)}"),
            heads=heads,
            map_latents=lambda table: self._to_map(table, self.ranking),
            map_channels=lambda table: self._to_map(table, self._channel_ranking),
            map_splits=(TEST,),
            gradcam=self.config.analysis.gradcam,
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
        for concept in self.study.findings:
            for score in self._scores:
                chosen |= {int(index) for index in rank(table, concept, score).indices[1, : self.config.analysis.top]}
        return sorted(chosen)

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

    def _kept(self, name: str, pair: ModelPair, settings: Mapping[str, Any], compute: Compute) -> pd.DataFrame:
        """A data frame of one analysis of one pair, computed once for the same table and settings."""
        table = self.tables[pair]
        plan = plans.of_analysis(
            name, table=table.folder.name, model=pair.model, concept=pair.concept, settings=settings
        )
        path = self.work / "analyses" / f"{name}-{pair.model}-{pair.concept}-{plans.digest(plan)}.parquet"
        plans.keep(plan, path)
        if not path.exists():
            logger.info("%s: %s at %s", name, pair.key, self.name)
            frame = compute(table, pair)
            write_parquet(path, frame)
        frame = read_parquet(path)
        frame.insert(0, "model", pair.model)
        frame.insert(1, "concept", pair.concept)
        return frame

    def _each(
        self, name: str, settings: Mapping[str, Any], compute: Compute, pairs: Sequence[ModelPair] | None = None
    ) -> pd.DataFrame:
        frames = [self._kept(name, pair, settings, compute) for pair in (self.study.pairs if pairs is None else pairs)]
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

    @cached_property
    def reconstruction(self) -> pd.DataFrame:
        """Table 1: metrics of every pair without the SAE, with it, and their difference, with intervals."""
        settings = self._intervals
        return self._each(
            "reconstruction",
            settings,
            lambda table, pair: reconstruction.reconstruction_metrics(table, pair.concept, split=TEST, **settings),
        )

    @cached_property
    def sae_quality(self) -> pd.DataFrame:
        """How well the SAE reconstructs each pair's features, per split, and what it costs on the test images."""
        unit = self.unit

        def quality(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            rows = [reconstruction.reconstruction_quality(table, split).to_frame() for split in (TRAINING, TEST)]
            cost = reconstruction.auroc_cost(table, pair.concept, split=TEST, unit=unit)
            return pd.concat([rows[0], rows[1].assign(auroc_cost=cost)], ignore_index=True)

        return self._each("sae-quality", {"unit": unit}, quality)

    @cached_property
    def class_means(self) -> pd.DataFrame:
        """Both class scores of every live latent of every pair."""

        def means(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            live = table.live_latents(TRAINING)
            columns: dict[str, np.ndarray] = {"latent": live}
            for prefix, score in zip(("score_mean", "centered"), SCORES, strict=True):
                scores = probing.class_mean_latents(table, pair.concept, split=TRAINING, unit=self.unit, score=score)
                columns |= {f"{prefix}_{number}": row[live] for number, row in enumerate(scores)}
            return pd.DataFrame(columns)

        return self._each("class-means", {"unit": self.unit}, means)

    @cached_property
    def single_latents(self) -> pd.DataFrame:
        """The latent of each pair's finding whose maximum in the image separates the classes best."""
        settings = self._intervals

        def single(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            if len(table.live_latents(TRAINING)) == 0:  # a dead SAE is a result of this layer, no end of the study
                return pd.DataFrame({"latent": []})
            return probing.best_single_latent(table, pair.concept, **settings).to_frame()

        pairs = [pair for pair in self.study.pairs if pair.concept in self.study.findings]
        return self._each("single-latent", settings, single, pairs)

    def rankings(self) -> list[dict[str, Any]]:
        """The best latents of each pair's classes: scores, and mean activations on the class's test images."""
        rows = []
        n_best = max(20, self.config.analysis.top)
        for pair, table in self.tables.items():
            ranking = self.ranking(table, pair.concept)
            test = probing.class_mean_latents(table, pair.concept, split=TEST, unit=self.unit, score="mean")
            for number in range(len(ranking.indices)):
                latents = ranking.indices[number, :n_best]
                rows.append(
                    {
                        "model": pair.model,
                        "concept": pair.concept,
                        "score": self.config.analysis.score,
                        "class": number,
                        "latents": latents,
                        "scores": ranking.scores[number, :n_best],
                        "test_mean_activation": test[number, latents],
                    }
                )
        return rows

    @cached_property
    def roles(self) -> pd.DataFrame:
        """What the best latents of each finding are, and the evidence."""
        return self._roles(self.study.pairs)

    def _roles(self, pairs: Sequence[ModelPair]) -> pd.DataFrame:
        settings = {**self._intervals, "top": self.config.analysis.top, "n_controls": self.n_role_controls}

        def roles(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            return latent_roles(
                table,
                self.ranking(table, pair.concept),
                pair.concept,
                split=TEST,
                passes=self._passes_for(table, pair),
                **settings,
            )

        findings = [pair for pair in pairs if pair.concept in self.study.findings]
        return self._each("roles", {**settings, "score": self.config.analysis.score}, roles, findings)

    @property
    def n_role_controls(self) -> int:
        """Random groups beside every latent that is named; at the final map they cost next to nothing."""
        return self.config.analysis.inner_controls if self.is_inner else max(self.config.analysis.n_controls, 99)

    def named_latents(self) -> dict[str, list[dict[str, Any]]]:
        """The best latents of each finding by pair, with their roles and the evidence."""
        named: dict[str, list[dict[str, Any]]] = {
            pair.key: [] for pair in self.study.pairs if pair.concept in self.study.findings
        }
        for row in self.roles.to_dict("records"):
            named[f"{row.pop('model')}/{row.pop('concept')}"].append({str(key): value for key, value in row.items()})
        return named

    def probe(self) -> None:
        """Table 1, class means and rankings."""
        _ = self.reconstruction, self.sae_quality, self.class_means
        if self.study.has_several_layers:
            _ = self.single_latents
        self.rankings()

    @property
    def is_inner(self) -> bool:
        """Whether more of the network than the average over positions and the classifier lies behind the layer."""
        return any(table.readout_kind == "network" for table in self.tables.values())

    @property
    def n_controls(self) -> int:
        """Random groups of either kind beside every group of latents."""
        analysis = self.config.analysis
        return analysis.inner_controls if self.is_inner else analysis.n_controls

    @cached_property
    def interventions(self) -> pd.DataFrame:
        """Figure 2: one row per pair, mode, k, without and with the error term."""
        return self._interventions(self.study.pairs)

    def _interventions(self, pairs: Sequence[ModelPair]) -> pd.DataFrame:
        analysis = self.config.analysis
        settings = {
            **self._intervals,
            "n_controls": self.n_controls,
            "ks": sorted({*(analysis.ks or intervention.DEFAULT_KS), analysis.top}),
        }

        def sweeps(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            frames = []
            for error_term in (False, True) if analysis.error_term else (False,):
                frame = intervention.sweep(
                    table,
                    self.ranking(table, pair.concept),
                    concept=pair.concept,
                    split=TEST,
                    error_term=error_term,
                    passes=self._passes_for(table, pair),
                    **settings,
                )
                frame.insert(0, "error_term", error_term)
                frames.append(frame)
            return pd.concat(frames, ignore_index=True)

        return self._each(
            "interventions", {**settings, "error_term": analysis.error_term, "score": analysis.score}, sweeps, pairs
        )

    def _passes_for(self, table: LatentTable, pair: ModelPair) -> MaskedPasses | None:
        """What interventions at an inner layer need; the last is kept until `intervene` or another group ends its use.

        They hold a network and a layer's outputs, which are too large to keep them all.
        """
        if table.readout_kind != "network":
            return None
        group = self.study.group_of(pair)
        model = self._hooked(group)
        if self._latest is None or model is not self._latest[0]:
            self._latest = None  # the old one goes before the new one comes
            self._latest = model, self._passes(group, model)
        return self._latest[1]

    def _passes(self, group: EncoderGroup, model: HookedVisionModel) -> MaskedPasses:
        """What runs the network behind the layer under masks, from the layer's outputs kept on disk."""
        images = self.study.split(TEST).with_preprocessing(group.preprocessing)
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

    def intervene(self, group: EncoderGroup) -> None:
        """Figure 2, and the roles of latents, of the classifiers on one encoder."""
        pairs = list(group.heads)
        self._interventions(pairs)
        self._roles(pairs)
        self._latest = None

    @property
    def _thresholds(self) -> list[localization.Threshold]:
        analysis = self.config.analysis
        return [
            localization.Threshold(percentile=analysis.percentile),
            localization.Threshold(relative=analysis.relative),
        ]

    def _localized(self, name: str, compute: Compute) -> pd.DataFrame:
        analysis = self.config.analysis
        settings = {
            "thresholds": [str(threshold) for threshold in self._thresholds],
            "iou_threshold": analysis.iou_threshold,
            "top": analysis.top,
            "score": analysis.score,
            "unit": self.unit,
            **self._boxes,
        }
        return self._each(name, settings, compute, self.study.pairs_with_boxes)

    @property
    def _boxes(self) -> dict[str, Any]:
        return {"box_score": self.config.analysis.box_score, "contours": self.config.analysis.contours}

    @cached_property
    def localization(self) -> pd.DataFrame:
        """Table 2: average precision of the best latents' heatmaps against the boxes, under both thresholds."""
        analysis = self.config.analysis
        return self._localized(
            "localization",
            lambda table, pair: localization.localize_thresholds(
                table,
                self.ranking(table, pair.concept).indices[1, : analysis.top],
                pair.concept,
                split=TEST,
                thresholds=self._thresholds,
                iou_thresholds=[analysis.iou_threshold],
                **self._boxes,
            ).to_frame(),
        )

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """Table 2 of the best raw channels and, where it was asked for, of Grad-CAM."""
        analysis = self.config.analysis
        return self._localized(
            "baselines",
            lambda table, pair: localization.localize_baselines(
                table,
                pair.concept,
                channels=self._channel_ranking(table, pair.concept).indices[1, : analysis.top],
                split=TEST,
                thresholds=self._thresholds,
                iou_thresholds=[analysis.iou_threshold],
                **self._boxes,
            ).to_frame(),
        )

    def localize(self) -> None:
        """Table 2."""
        _ = self.localization, self.baselines
