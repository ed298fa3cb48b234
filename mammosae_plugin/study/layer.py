"""The analyses of a study at one layer, each computed when it is asked for and kept in the study's work folder."""

__all__ = ["LayerStudy"]

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.analysis import froc, intervention, localization, probing, reconstruction
from mammosae_plugin.analysis.confounding import confounders, group_performance
from mammosae_plugin.analysis.evidence import latent_evidence
from mammosae_plugin.analysis.lesion_localization import SENSITIVITIES
from mammosae_plugin.analysis.roles import latent_roles
from mammosae_plugin.analysis.views import view_agreement
from mammosae_plugin.datasets.suspects import breast_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.latents.kept_passes import AskedMasks
from mammosae_plugin.study.explained import explained_images
from mammosae_plugin.study.images import TEST, TRAINING
from mammosae_plugin.study.inputs import EncoderGroup, ModelPair, StudyInputs
from mammosae_plugin.study.layer_passes import LayerPasses
from mammosae_plugin.study.layer_tables import SCORES, Compute

logger = logging.getLogger(__name__)


class LayerStudy(LayerPasses):
    """The steps of a study at one layer, each computed when it is asked for and kept in the study's work folder."""

    def __init__(self, study: StudyInputs, name: str, hook_name: str, *, is_final: bool) -> None:
        super().__init__(study, name, hook_name, is_final=is_final)
        self._known_boxes: dict[str, localization.MapBoxes] = {}

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

    def _roles(self, pairs: Iterable[ModelPair]) -> pd.DataFrame:
        def named(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            return self._named(table, pair, self._passes_for(table, pair))

        return self._each("roles", self._roles_plan, named, self._of_findings(pairs))

    def _of_findings(self, pairs: Iterable[ModelPair]) -> list[ModelPair]:
        return [pair for pair in pairs if pair.concept in self.study.findings]

    @property
    def _roles_plan(self) -> dict[str, Any]:
        return {**self._of_roles, "score": self.config.analysis.score, **self._of_sample}

    @property
    def _of_roles(self) -> dict[str, Any]:
        return {**self._intervals, "top": self.config.analysis.top, "n_controls": self.n_role_controls}

    def _named(self, table: LatentTable, pair: ModelPair, passes: intervention.Passes | None) -> pd.DataFrame:
        ranking, settings = self.ranking(table, pair.concept), self._of_roles
        return latent_roles(table, ranking, pair.concept, split=TEST, passes=passes, patients=self.sampled, **settings)

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
    def n_controls(self) -> int:
        """Random groups of either kind beside every group of latents."""
        analysis = self.config.analysis
        return analysis.inner_controls if self.is_inner else analysis.n_controls

    @cached_property
    def interventions(self) -> pd.DataFrame:
        """Figure 2: one row per pair, mode, k, without and with the error term."""
        return self._interventions(self.study.pairs)

    def _interventions(self, pairs: Sequence[ModelPair]) -> pd.DataFrame:
        def sweeps(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            frames = []
            for error_term in self._error_terms:
                frame = self._sweep(table, pair, error_term, self._passes_for(table, pair))
                frame.insert(0, "error_term", error_term)
                frames.append(frame)
            return pd.concat(frames, ignore_index=True)

        return self._each("interventions", self._interventions_plan, sweeps, pairs)

    @property
    def _interventions_plan(self) -> dict[str, Any]:
        analysis = self.config.analysis
        return {**self._of_sweeps, "error_term": analysis.error_term, "score": analysis.score, **self._of_sample}

    @property
    def _error_terms(self) -> tuple[bool, ...]:
        return (False, True) if self.config.analysis.error_term else (False,)

    @property
    def _of_sweeps(self) -> dict[str, Any]:
        ks = sorted({*(self.config.analysis.ks or intervention.DEFAULT_KS), self.config.analysis.top})
        return {**self._intervals, "n_controls": self.n_controls, "ks": ks}

    def _sweep(
        self, table: LatentTable, pair: ModelPair, error_term: bool, passes: intervention.Passes | None
    ) -> pd.DataFrame:
        return intervention.sweep(
            table,
            self.ranking(table, pair.concept),
            concept=pair.concept,
            split=TEST,
            error_term=error_term,
            passes=passes,
            patients=self.sampled,
            **self._of_sweeps,
        )

    def _asked(self, table: LatentTable, pairs: Iterable[ModelPair]) -> AskedMasks:
        asked = AskedMasks(table)
        for pair in pairs:
            for error_term in self._error_terms:
                asked.by(partial(self._sweep, table, pair, error_term))
        for pair in self._of_findings(pairs):
            asked.by(partial(self._named, table, pair))
            asked.by(partial(self._removed, table, pair))
        return asked

    def _removed(self, table: LatentTable, pair: ModelPair, passes: intervention.Passes) -> Any:
        """The ablations behind the evidence on latents."""
        rows = table.rows(pair.concept, split=TEST, unit=self.unit).of_patients(self.sampled)
        latents = np.intersect1d(table.live_latents(TEST), self._masked(table, pair))
        images = np.unique(rows.image_rows)
        return intervention.single_ablations(
            table, latents, head=pair.concept, image_rows=images, n_controls=0, passes=passes
        )

    def is_intervened_on(self, group: EncoderGroup) -> bool:
        """Whether Figure 2 and the roles of the classifiers on one encoder are kept."""
        sweeps = [self._place("interventions", pair, self._interventions_plan) for pair in group.heads]
        roles = [self._place("roles", pair, self._roles_plan) for pair in self._of_findings(group.heads)]
        return all(file.exists() for file in (*sweeps, *roles))

    def intervene(self, group: EncoderGroup) -> None:
        """Figure 2, and the roles of latents, of the classifiers on one encoder."""
        pairs = list(group.heads)
        self._interventions(pairs)
        self._roles(pairs)
        self._latest = None

    @cached_property
    def evidence(self) -> pd.DataFrame:
        """Every latent that fires, what is known of it for each finding, and what it stands for."""
        return self._evidence(self.study.pairs)

    def _evidence(self, pairs: Sequence[ModelPair]) -> pd.DataFrame:
        analysis, settings = self.config.analysis, self._of_evidence
        masked = analysis.evidence.masked if self.is_inner else 0
        return self._each(
            "evidence",
            {
                **settings,
                "masked": masked,
                "alpha": analysis.confounders.alpha,
                "score": analysis.score,
                "breast": analysis.confounders.breast,
                **(self._of_sample if masked else {}),
            },
            self.told,
            [pair for pair in pairs if pair.concept in self.study.findings],
        )

    def _masked(self, table: LatentTable, pair: ModelPair) -> list[int]:
        """The latents that are removed one by one at an inner layer, for the evidence on them."""
        n = self.config.analysis.evidence.masked if self.is_inner else 0
        best: list[int] = self.ranking(table, pair.concept).indices[1, :n].tolist()
        return best

    def told(self, table: LatentTable, pair: ModelPair) -> pd.DataFrame:
        """The evidence on every latent of a table, or of a part of one, with the verdicts."""
        analysis = self.config.analysis
        if len(np.unique(table.rows(pair.concept, split=TEST, unit=self.unit).labels)) < 2:
            return pd.DataFrame({"latent": []})
        best = self._masked(table, pair)
        shared: dict[str, Any] = {
            **self._of_evidence,
            "split": TEST,
            "masked": best,
            "passes": self._passes_for(table, pair) if best else None,
        }
        known = latent_evidence(table, pair.concept, patients=self.sampled, **shared)
        verdicts = confounders(
            table,
            pair.concept,
            training=TRAINING,
            alpha=analysis.confounders.alpha,
            evidence=known,
            breast=self._breast(table) if analysis.confounders.breast else None,
            **shared,
        )
        return known.drop(columns="reason").merge(
            verdicts[["latent", *(verdicts.columns.difference(known.columns)), "reason"]], on="latent"
        )

    @property
    def _of_evidence(self) -> dict[str, Any]:
        evidence = self.config.analysis.evidence
        more = {"n_bootstrap": evidence.n_bootstrap, "n_permutations": evidence.n_permutations}
        return {**self._intervals, **more, "covariates": self.covariates}

    def _breast(self, table: LatentTable) -> Callable[[int], NDArray[np.bool_] | None]:
        """Where the breast is in an image of a table, by its row there."""
        ids, dataset = table.images["image_id"].tolist(), self.study.dataset
        return lambda row: breast_of(dataset.select(image_ids=[ids[row]]).gray(0))

    @property
    def covariates(self) -> Any:
        """The columns that describe images, as the settings name them."""
        given = self.config.analysis.confounders.covariates
        return list(given) if isinstance(given, tuple) else given

    @cached_property
    def groups(self) -> pd.DataFrame:
        """How well each finding is told in the groups that the covariates make."""
        settings, covariates = self._intervals, self.covariates

        def served(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            if len(np.unique(table.rows(pair.concept, split=TEST, unit=self.unit).labels)) < 2:
                return pd.DataFrame({"by": []})
            by = None if covariates is None else [*covariates]
            return group_performance(table, pair.concept, by, split=TEST, **settings)

        findings = [pair for pair in self.study.pairs if pair.concept in self.study.findings]
        return self._each("groups", {**settings, "covariates": covariates}, served, findings)

    @cached_property
    def explained(self) -> pd.DataFrame:
        """The images whose logit is taken apart, of every classifier whose logit is a sum over latents here."""
        return self._explained(self.study.pairs)

    def _explained(self, pairs: Sequence[ModelPair]) -> pd.DataFrame:
        asked = self.config.analysis.explain
        if asked is None:
            return pd.DataFrame()

        def taken_apart(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            group = self.study.group_of(pair)
            images = self.study.dataset.with_preprocessing(group.preprocessing)
            return explained_images(
                table,
                pair.concept,
                asked,
                model=self._hooked(group),
                sae=self.sae,
                head=group.heads[pair],
                images=images,
                hook_name=self.hook_name,
                device=self.config.device,
            )

        sums = [pair for pair in pairs if self.tables[pair].readout_kind == "linear"]
        findings = [pair for pair in sums if pair.concept in self.study.findings]
        return self._each("explained", asked.model_dump(), taken_apart, findings)

    def tell(self, group: EncoderGroup) -> None:
        """The evidence on latents of the classifiers on one encoder, the images explained, what latents answer to."""
        self._evidence(list(group.heads))
        self._explained(list(group.heads))
        if self.config.analysis.pairs is not None:
            self._answers(group)
        self._latest = None

    @cached_property
    def views(self) -> pd.DataFrame:
        """How far views and sides agree on every latent; of each table once, and shown for all classifiers on it."""
        asked = self.config.analysis.views
        if asked is None:
            return pd.DataFrame()
        settings = {**asked.model_dump(), "min_patients": self.config.analysis.min_patients, "seed": self.config.seed}

        def agreement(table: LatentTable, _pair: ModelPair) -> pd.DataFrame:
            try:
                return view_agreement(table, split=TEST, **settings)
            except InputError as error:  # no images are known to be pairs
                logger.warning("agreement between views and sides is left out: %s", error)
                return pd.DataFrame({"latent": []})

        first: dict[str, ModelPair] = {}
        frames = []
        for pair, table in self.tables.items():
            own = self.kept("views", first.setdefault(table.folder.name, pair), settings, agreement)
            frames.append(own.assign(model=pair.model, concept=pair.concept))
        return pd.concat(frames, ignore_index=True)

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

    def _boxes_of(self, table: LatentTable) -> localization.MapBoxes:
        """The boxes of a table's heatmaps, which all concepts share until `localize` ends their use."""
        name = table.folder.name
        if name not in self._known_boxes:
            self._known_boxes[name] = localization.MapBoxes(table, num_workers=self.config.num_workers)
        return self._known_boxes[name]

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
                boxes=self._boxes_of(table),
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
                boxes=self._boxes_of(table),
                **self._boxes,
            ).to_frame(),
        )

    @cached_property
    def lesions(self) -> pd.DataFrame:
        """Lesion by lesion: FROC of the best latents, their sum, raw channels and Grad-CAM, on all test images."""
        analysis, lesions = self.config.analysis, self.config.analysis.lesions
        if lesions is None:
            return pd.DataFrame()
        intervals = {name: value for name, value in self._intervals.items() if name != "unit"}

        def judged(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            n = self.n_judged
            found = froc(
                table,
                self.ranking(table, pair.concept).indices[1, :n],
                pair.concept,
                split=TEST,
                channels=self._channel_ranking(table, pair.concept).indices[1, :n],
                groups=[name for name in table.map_groups(TEST) if name == pair.concept],
                masks=self.study.masks_of(pair.concept),
                fppi=lesions.fppi,
                n_null=lesions.n_null,
                **intervals,
            ).to_frame()
            found["fppi"] = pd.Series([list(lesions.fppi)] * len(found), index=found.index, dtype=object)
            return found.drop(columns=["name", "average_precision"])

        settings = {**self._intervals, **lesions.model_dump(), "n": self.n_judged, "score": analysis.score}
        settings["chance"] = list(SENSITIVITIES)  # an earlier version told that of the first alone
        found = self._each("lesions", settings, judged, self.study.pairs_with_boxes)
        return found if found.empty else found.assign(average_precision=self._precisions(found))

    def _precisions(self, found: pd.DataFrame) -> list[float]:
        """The average precision of Table 2, by its first threshold, of the maps that were looked for lesions in."""
        key = ["model", "concept", "method", "latent"]
        judged = pd.concat([self.localization.assign(method="latent"), self.baselines])
        of = judged.drop_duplicates(key).set_index(key)["average_precision"]
        return [float(of.get(tuple(row), np.nan)) for row in found[key].itertuples(index=False)]

    def localize(self) -> None:
        """Table 2, and the lesions that are found."""
        _ = self.localization, self.baselines, self.lesions
        self._known_boxes.clear()
