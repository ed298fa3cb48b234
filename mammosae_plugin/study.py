"""A whole study from one configuration: the only module that knows all rooms.

Each step keeps what it makes under a name that holds a digest of everything the step depends on, so a step whose inputs
have not changed is never repeated, one whose inputs have changed never reads old results, and a killed study is simply
run again.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from mammosae_plugin import intervention, localization, probing, reconstruction
from mammosae_plugin.activations import ActivationStore, extract_activations
from mammosae_plugin.adapters import HookedVisionModel, MammoClipClassifier, load_mammo_clip, load_vision_sae
from mammosae_plugin.config import ModelConfig, StudyConfig, portable_config
from mammosae_plugin.datasets import (
    PREPROCESSING,
    VinDrMammo,
    leave_out_bad,
    n_classes_of,
    read_quarantine,
    screen_images,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    read_json,
    read_parquet,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_parquet,
)
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.report import write_report
from mammosae_plugin.training import train_classifier, train_sae
from mammosae_plugin.visualization import HeatmapPanels, validate_results, write_figures, write_tables

logger = logging.getLogger(__name__)

STEPS = ("classify", "extract", "train", "encode", "probe", "intervene", "localize", "report")
TRAINING, TEST = "training", "test"
SCORES: tuple[probing.Score, ...] = ("mean", "centered_mean")


def _digest(value: Any) -> str:
    return sha256_of_json(plain(value))[:12]


@dataclass(frozen=True)
class ModelPair:
    """One classifier of the comparison: a model of the configuration and the concept that it classifies."""

    model: str
    concept: str

    @property
    def key(self) -> str:
        """How the pair is named in files and results."""
        return f"{self.model}/{self.concept}"


class Study:
    """The steps of a study, each computed when it is asked for and kept in the output folder.

    Args:
        config: The study's configuration.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.output = config.output
        self.work = self.output / "work"
        self.results_folder = self.output / "results"
        self.pairs = tuple(ModelPair(model.name, concept) for model in config.models for concept in config.concepts)
        for concept in config.concepts:
            n_classes_of(concept)

    # Data

    @cached_property
    def _all_images(self) -> VinDrMammo:
        data = self.config.data
        return VinDrMammo(data.root, annotations=data.annotations, image_size=data.image_size)

    @cached_property
    def _file_stats(self) -> str:
        """Changes when an image file is replaced or the annotations change."""
        images = self._all_images
        stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in images.image_paths]
        return _digest([images.fingerprint, stats])

    @cached_property
    def content(self) -> str:
        """A digest of the annotations and of every byte of every image; results are kept under it."""
        file = self.work / f"content-{self._file_stats}.json"
        if not file.exists():
            images = self._all_images
            paths = tqdm(images.image_paths, desc="fingerprint", unit="image", dynamic_ncols=True)
            digests = dict(zip(images.images["image_id"], map(sha256_of_file, paths), strict=True))
            write_json(file, sha256_of_json([images.fingerprint, digests]))
        return str(read_json(file))

    @property
    def _quarantine_file(self) -> Path:
        return self.work / f"quarantine-{self._file_stats}.csv"

    @cached_property
    def dataset(self) -> VinDrMammo:
        """The images without those in quarantine, each read once to find out."""
        images, share = self._all_images, self.config.data.max_bad_share
        if self._quarantine_file.exists():
            return leave_out_bad(images, self._quarantine_file, max_bad_share=share)
        return screen_images(images, self._quarantine_file, max_bad_share=share, num_workers=self.config.num_workers)

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """image_id and reason of every image that was left out."""
        _ = self.dataset
        return read_quarantine(self._quarantine_file)

    def _split(self, split: str) -> VinDrMammo:
        part = self.dataset.select(split=split)
        if len(part) == 0:
            raise InputError(
                f"{self.config.data.root} has no image in the split {split!r}; the study needs training and test"
            )
        return part

    def _check_classes(self) -> None:
        for concept in self.config.concepts:
            for split in (TRAINING, TEST):
                labels = self._split(split).images[concept]
                missing = sorted(set(range(n_classes_of(concept))) - set(labels.unique()))
                if missing:
                    what = "no positive image" if missing == [1] else f"no image of class {missing[0]}"
                    raise InputError(
                        f"the {split} split has {what} for {concept}; remove it from `concepts` or add such images"
                    )

    # Models

    def _model_config(self, name: str) -> ModelConfig:
        return next(model for model in self.config.models if model.name == name)

    @cached_property
    def _classifier_files(self) -> dict[ModelPair, tuple[Path, ...]]:
        """What `load_mammo_clip` is given for each pair; classifiers that the study trains are trained here."""
        self._check_classes()
        return {pair: self._classifier_file(pair) for pair in self.pairs}

    def _classifier_file(self, pair: ModelPair) -> tuple[Path, ...]:
        config = self._model_config(pair.model)
        if config.classifiers is not None:
            file = config.classifiers[pair.concept]
            return (file,) if config.encoder is None else (config.encoder, file)
        assert config.encoder is not None and config.train is not None  # the configuration has been validated
        images = self._split(TRAINING)
        encoder = load_mammo_clip(_existing(config.encoder))
        if self.config.sae.path is not None and self.sae.cfg.d_in != encoder.num_features:
            raise InputError(  # before hours of training
                f"{self.config.sae.path.name} takes vectors of width {self.sae.cfg.d_in}, but the final map of "
                f"{config.encoder.name} has width {encoder.num_features}"
            )
        parts = [
            config.train.model_dump(),
            tensors_fingerprint(encoder.state_dict()),
            pair.concept,
            self.content,
            images.images["image_id"].tolist(),
        ]
        path = self.work / "classifiers" / f"{pair.model}-{pair.concept}-{_digest(parts)}.safetensors"
        if not path.exists():
            train_classifier(
                encoder,
                images,
                pair.concept,
                path,
                config.train,
                metadata={"preprocessing": PREPROCESSING},
                device=self.config.device,
                num_workers=self.config.num_workers,
            )
        return (path,)

    def classifier(self, pair: ModelPair) -> MammoClipClassifier:
        """The pair's classifier, in evaluation mode on the CPU.

        Raises:
            InputError: A file cannot be read, or its number of outputs is not that of the concept's classes.
        """
        files = self._classifier_files[pair]
        model = load_mammo_clip(*files)
        classes = n_classes_of(pair.concept)
        if model.n_class != (1 if classes == 2 else classes):
            raise InputError(
                f"{files[-1].name} has {model.n_class} outputs, but {pair.concept} has {classes} classes"
                + ("; is it the pretraining checkpoint instead of a classifier?" if model.n_class == 0 else "")
            )
        return model

    def _hooked(self, model: MammoClipClassifier) -> HookedVisionModel:
        return HookedVisionModel(model, [_final_module(model)])

    def classify(self) -> None:
        """Train the classifiers that the configuration does not give as files; check those that it gives."""
        for pair in self.pairs:
            self.classifier(pair)

    # The SAE

    def extract(self) -> ActivationStore | None:
        """The rows on which the SAE is trained; None where the configuration gives the SAE as a file."""
        source = self.config.sae.train
        if source is None:
            return None
        pair = ModelPair(source.model, source.concept)
        model = self.classifier(pair)
        images = self._split(TRAINING)
        parts = [
            tensors_fingerprint(_encoder_state(model)),
            self.content,
            images.images["image_id"].tolist(),
            source.fraction,
            self.config.seed,
            self.config.batch_size,
        ]
        return extract_activations(
            self._hooked(model),
            images,
            self.work / "activations" / _digest(parts),
            hook_name=_final_module(model),
            fraction=source.fraction,
            seed=self.config.seed,
            device=self.config.device,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
        )

    @cached_property
    def sae(self) -> Any:
        """The shared SAE, a SAELens SAE on the CPU."""
        if self.config.sae.path is not None:
            found = load_vision_sae(_existing(self.config.sae.path))
            if self.config.analysis.top > found.cfg.d_sae:
                raise InputError(
                    f"analysis.top is {self.config.analysis.top}, but {self.config.sae.path.name} has only "
                    f"{found.cfg.d_sae} latents; lower it"
                )
            return found
        source = self.config.sae.train
        store = self.extract()
        assert source is not None and store is not None
        parts = [store.manifest, source.training.model_dump()]
        described = {"preprocessing": PREPROCESSING, "trained_on_model": source.model, "concept": source.concept}
        folder = self.work / "sae" / _digest(parts)
        sae = train_sae(store, folder, source.training, metadata=described, device=self.config.device)
        return sae.to("cpu")

    def train(self) -> None:
        """Train the SAE, or read the one that the configuration names."""
        _ = self.sae

    # The latents tables

    @cached_property
    def tables(self) -> dict[ModelPair, LatentTable]:
        """The latents table of each pair; a model's classifiers with bit-identical encoders share one."""
        groups: dict[tuple[str, str], dict[ModelPair, nn.Linear]] = {}
        for pair in self.pairs:
            model = self.classifier(pair)
            encoder = tensors_fingerprint(_encoder_state(model))
            linear = model.classifier
            assert isinstance(linear, nn.Linear)  # `classifier` has checked the number of outputs
            groups.setdefault((pair.model, encoder), {})[pair] = linear
        sae_digest = tensors_fingerprint(self.sae.state_dict())
        tables: dict[ModelPair, LatentTable] = {}
        for (name, encoder), linears in groups.items():
            heads = {pair.concept: linear for pair, linear in linears.items()}
            parts = [
                encoder,
                sae_digest,
                self.content,
                self.dataset.images["image_id"].tolist(),
                {concept: tensors_fingerprint(linear.state_dict()) for concept, linear in heads.items()},
                [self._findings, self.config.analysis.top, self.config.data.unit, self.config.batch_size],
            ]
            table = encode_latents(
                self._hooked(self.classifier(next(iter(linears)))),
                self.sae,
                self.dataset,
                self.work / "latents" / f"{name}-{_digest(parts)}",
                heads=heads,
                map_latents=self._latents_to_map,
                map_splits=(TEST,),
                device=self.config.device,
                batch_size=self.config.batch_size,
                num_workers=self.config.num_workers,
            )
            tables |= dict.fromkeys(linears, table)
        return tables

    def encode(self) -> None:
        """Make the latents tables."""
        _ = self.tables

    def _latents_to_map(self, table: LatentTable) -> Sequence[int]:
        """The best latents of every finding's positive class by either score: Table 2 and Figure 3 need their maps."""
        chosen: set[int] = set()
        for concept in self._findings:
            for score in SCORES:
                ranking = self._ranking(table, concept, score)
                chosen |= {int(latent) for latent in ranking.indices[1, : self.config.analysis.top]}
        return sorted(chosen)

    @property
    def _findings(self) -> list[str]:
        """The study's concepts that have boxes: those with two classes."""
        return [concept for concept in self.config.concepts if n_classes_of(concept) == 2]

    def _ranking(self, table: LatentTable, concept: str, score: probing.Score | None = None) -> probing.RankedLatents:
        scores = probing.class_mean_latents(
            table, concept, split=TRAINING, unit=self.config.data.unit, score=score or self.config.analysis.score
        )
        return probing.rank_latents(scores)

    # The analyses

    def _kept(
        self, name: str, pair: ModelPair, settings: Any, compute: Callable[[LatentTable, ModelPair], pd.DataFrame]
    ) -> pd.DataFrame:
        """A data frame of one analysis of one pair, computed once for the same table and settings."""
        table = self.tables[pair]
        parts = [table.folder.name, pair.concept, settings, package_versions()["mammosae-plugin"]]
        path = self.work / "analyses" / f"{name}-{pair.model}-{pair.concept}-{_digest(parts)}.parquet"
        if not path.exists():
            logger.info("%s: %s", name, pair.key)
            frame = compute(table, pair)
            write_parquet(path, frame)
        frame = read_parquet(path)
        frame.insert(0, "model", pair.model)
        frame.insert(1, "concept", pair.concept)
        return frame

    def _each(
        self, name: str, settings: Any, compute: Callable[[LatentTable, ModelPair], pd.DataFrame]
    ) -> pd.DataFrame:
        frames = [self._kept(name, pair, settings, compute) for pair in self.pairs]
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def reconstruction(self) -> pd.DataFrame:
        """Table 1: metrics of every pair without the SAE, with it, and their difference, with intervals."""
        settings: dict[str, Any] = {
            "unit": self.config.data.unit,
            "n_bootstrap": self.config.analysis.n_bootstrap,
            "seed": self.config.seed,
        }
        return self._each(
            "reconstruction",
            settings,
            lambda table, pair: reconstruction.reconstruction_metrics(table, pair.concept, split=TEST, **settings),
        )

    @cached_property
    def sae_quality(self) -> pd.DataFrame:
        """How well the SAE reconstructs each pair's features, per split."""

        def quality(table: LatentTable, pair: ModelPair) -> pd.DataFrame:  # noqa: ARG001
            splits = (TRAINING, TEST)
            return pd.DataFrame([{"split": s, **reconstruction.reconstruction_quality(table, s)} for s in splits])

        return self._each("sae-quality", {}, quality)

    @cached_property
    def class_means(self) -> pd.DataFrame:
        """Both class scores of every live latent of every pair."""

        def means(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            live = table.live_latents(TRAINING)
            columns: dict[str, np.ndarray] = {"latent": live}
            for prefix, score in zip(("score_mean", "centered"), SCORES, strict=True):
                scores = probing.class_mean_latents(
                    table, pair.concept, split=TRAINING, unit=self.config.data.unit, score=score
                )
                columns |= {f"{prefix}_{number}": row[live] for number, row in enumerate(scores)}
            return pd.DataFrame(columns)

        return self._each("class-means", {"unit": self.config.data.unit}, means)

    def rankings(self) -> list[dict[str, Any]]:
        """The best latents of each pair's classes: scores, and mean activations on the class's test images."""
        rows = []
        for pair, table in self.tables.items():
            ranking = self._ranking(table, pair.concept)
            test = probing.class_mean_latents(table, pair.concept, split=TEST, unit=self.config.data.unit, score="mean")
            for number in range(len(ranking.indices)):
                latents = ranking.indices[number, :20]
                rows.append(
                    {
                        "model": pair.model,
                        "concept": pair.concept,
                        "score": self.config.analysis.score,
                        "class": number,
                        "latents": latents,
                        "scores": ranking.scores[number, :20],
                        "test_mean_activation": test[number, latents],
                    }
                )
        return rows

    def probe(self) -> None:
        """Table 1, class means and rankings."""
        _ = self.reconstruction, self.sae_quality, self.class_means
        self.rankings()

    @cached_property
    def interventions(self) -> pd.DataFrame:
        """Figure 2: one row per pair, mode, k, without and with the error term."""
        analysis = self.config.analysis
        settings: dict[str, Any] = {
            "unit": self.config.data.unit,
            "n_controls": analysis.n_controls,
            "n_bootstrap": analysis.n_bootstrap,
            "seed": self.config.seed,
            "ks": sorted({*(analysis.ks or intervention.DEFAULT_KS), analysis.top}),
        }

        def sweeps(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            frames = []
            for error_term in (False, True) if analysis.error_term else (False,):
                ranking = self._ranking(table, pair.concept)
                frame = intervention.sweep(
                    table, ranking, concept=pair.concept, split=TEST, error_term=error_term, **settings
                )
                frame.insert(0, "error_term", error_term)
                frames.append(frame)
            return pd.concat(frames, ignore_index=True)

        return self._each("interventions", [settings, analysis.error_term, analysis.score], sweeps)

    def intervene(self) -> None:
        """Figure 2."""
        _ = self.interventions

    @cached_property
    def localization(self) -> pd.DataFrame:
        """Table 2: average precision of the best latents' heatmaps against the boxes, under both thresholds."""
        analysis = self.config.analysis
        thresholds = [
            localization.Threshold(percentile=analysis.percentile),
            localization.Threshold(relative=analysis.relative),
        ]

        def localize(table: LatentTable, pair: ModelPair) -> pd.DataFrame:
            latents = self._ranking(table, pair.concept).indices[1, : analysis.top]
            return localization.localize_thresholds(
                table,
                latents,
                pair.concept,
                split=TEST,
                thresholds=thresholds,
                iou_thresholds=[analysis.iou_threshold],
            )

        pairs = [pair for pair in self.pairs if pair.concept in self._findings and self._has_boxes(pair.concept)]
        settings = [
            [str(threshold) for threshold in thresholds],
            analysis.iou_threshold,
            analysis.top,
            analysis.score,
            self.config.data.unit,
        ]
        frames = [self._kept("localization", pair, settings, localize) for pair in pairs]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _has_boxes(self, concept: str) -> bool:
        """Whether any test image has a box of the concept; without one there is nothing to localize."""
        findings = self._split(TEST).findings
        return bool(findings.loc[findings[concept] > 0, "xmin"].notna().any())

    def localize(self) -> None:
        """Table 2."""
        _ = self.localization

    # Results

    def _checkpoints(self) -> list[dict[str, str]]:
        files = [(pair.key, file) for pair in self.pairs for file in self._classifier_files[pair]]
        if self.config.sae.path is not None and self.config.sae.path.is_file():
            files.append(("sae", self.config.sae.path))
        return [{"name": name, "file": file.name, "sha256": sha256_of_file(file)} for name, file in files]

    def _describe_data(self) -> dict[str, Any]:
        config, splits, concepts = self.config.data, [], []
        for split in (TRAINING, TEST):
            part = self._split(split)
            splits.append(
                {
                    "split": split,
                    "n_images": len(part),
                    "n_patients": int(part.images["patient_id"].nunique()),
                    "n_rows": len(part.findings),
                }
            )
            for concept in self.config.concepts:
                rows = part.images if config.unit == "image" else part.findings
                positive = part.findings[part.findings[concept] > 0]
                concepts.append(
                    {
                        "concept": concept,
                        "split": split,
                        "n_positive": int((rows[concept] > 0).sum()),
                        "n_images": len(rows),
                        "n_boxes": int(positive["xmin"].notna().sum()) if concept in self._findings else 0,
                    }
                )
        quarantine = self.quarantine
        hidden = [reason.replace(image_id, "…") for image_id, reason in quarantine.itertuples(index=False, name=None)]
        reasons = pd.Series(hidden, dtype=object).value_counts().sort_index()
        # Of real patients the report says how many and why, not who; the quarantine file has the list.
        listed = [{"reason": str(reason), "n": int(n)} for reason, n in reasons.items()]
        if config.phantom:
            listed = [{str(key): value for key, value in row.items()} for row in quarantine.to_dict("records")]
        return {
            "image_size": list(config.image_size),
            "unit": config.unit,
            "splits": splits,
            "concepts": concepts,
            "n_quarantined": len(quarantine),
            "quarantine": listed,
            "n_clipped_boxes": self._all_images.n_clipped_boxes,
        }

    def _describe_models(self) -> list[dict[str, Any]]:
        described = []
        for pair in self.pairs:
            model, train = self.classifier(pair), self._model_config(pair.model).train
            described.append(
                {
                    "name": pair.model,
                    "concept": pair.concept,
                    "architecture": model.architecture,
                    "kind": train.kind if train is not None else pair.model,
                    "hook_name": f"{_final_module(model)}.hook_out",
                    "grid": list(self.tables[pair].grid),
                    "d_in": model.num_features,
                }
            )
        return described

    def _describe_sae(self) -> dict[str, Any]:
        cfg, source = self.sae.cfg, self.config.sae
        return {
            "source": source.path.name if source.path is not None else "trained in this study",
            "architecture": cfg.architecture(),
            "d_in": cfg.d_in,
            "d_sae": cfg.d_sae,
            "sha256": tensors_fingerprint(self.sae.state_dict()),
            "trained_on": f"{source.train.model}/{source.train.concept}" if source.train is not None else None,
            "training": None
            if source.train is None
            else {"share_of_positions": source.train.fraction, **source.train.training.model_dump()},
        }

    def _named_latents(self) -> dict[str, list[dict[str, Any]]]:
        named = {}
        for pair, table in self.tables.items():
            if pair.concept in self._findings:
                means = probing.class_mean_latents(table, pair.concept, split=TRAINING, unit=self.config.data.unit)
                roles = probing.latent_roles(means, self._ranking(table, pair.concept), top=self.config.analysis.top)
                named[pair.key] = [{"latent": latent, "role": role} for latent, role in roles]
        return named

    def results(self) -> dict[str, Any]:
        """Everything that figures, tables and the report say, as JSON values; see `visualization.results`."""
        found = {
            "format_version": 1,
            "title": self.config.report.title,
            "paper_setting": self.config.report.paper_setting,
            "data_kind": "phantom" if self.config.data.phantom else "vindr",
            "config": portable_config(self.config),
            "provenance": {
                "packages": package_versions(),
                "checkpoints": self._checkpoints(),
                "dataset_fingerprint": self.content,
                "seed": self.config.seed,
                **environment(),
            },
            "data": self._describe_data(),
            "models": self._describe_models(),
            "sae": self._describe_sae(),
            "sae_quality": self.sae_quality.to_dict("records"),
            "reconstruction": self.reconstruction.to_dict("records"),
            "rankings": self.rankings(),
            "interventions": self.interventions.to_dict("records"),
            "localization": self.localization.to_dict("records"),
            "named_latents": self._named_latents(),
        }
        found["checks"] = claims(found, top=self.config.analysis.top)
        described: dict[str, Any] = plain(found)
        # The date is that of the first run with these results: running again changes no byte.
        file = self.results_folder / "results.json"
        before = read_json(file) if file.exists() else {}
        created = before.pop("created", None) if isinstance(before, dict) else None
        described["created"] = created if before == described else date.today().isoformat()
        return described

    def _heatmap_panels(self) -> Iterator[HeatmapPanels]:
        for pair in self.pairs:
            if pair.concept not in self._findings:
                continue
            table = self.tables[pair]
            rows = table.rows(pair.concept, split=TEST)
            with_box = [
                int(r)
                for r, y in zip(rows.image_rows, rows.labels, strict=True)
                if y and len(table.boxes(r, pair.concept))
            ]
            if not with_box:
                continue
            # Drawn at random, the same for every model of a concept: not the images that look best.
            generator = np.random.default_rng([self.config.seed, crc32(pair.concept.encode())])
            size = min(self.config.report.n_images, len(with_box))
            chosen = np.sort(generator.choice(with_box, size, replace=False))
            latents = self._ranking(table, pair.concept).indices[1, : self.config.analysis.top]
            number_of = {image_id: number for number, image_id in enumerate(self.dataset.images["image_id"])}
            ids = [table.images["image_id"][row] for row in chosen]
            views = table.images.loc[chosen, ["laterality", "view"]]
            yield HeatmapPanels(
                model=pair.model,
                concept=pair.concept,
                images=[self.dataset.gray(number_of[image_id]) for image_id in ids],
                heatmaps=np.stack([table.maps(latents, row) for row in chosen]),
                boxes=[table.boxes(row, pair.concept) for row in chosen],
                latents=[int(latent) for latent in latents],
                activations=table.mean_latents[chosen][:, latents].toarray(),
                titles=[f"{row.laterality} {row.view}" for row in views.itertuples()],
            )

    def report(self) -> Path:
        """Write figures, tables, results.json, class_means.parquet and report.html; returns the report's path."""
        results, folder = self.results(), self.results_folder
        written = write_figures(validate_results(results), self.class_means, self._heatmap_panels(), folder)
        written += write_tables(validate_results(results), folder)
        # What an earlier configuration drew and this one does not must not stay: it may be images of patients.
        for path in [*(folder / "figures").glob("*"), *(folder / "tables").glob("*")]:
            if path not in written:
                path.unlink()
        write_parquet(folder / "class_means.parquet", self.class_means)
        write_json(folder / "results.json", results)
        return write_report(folder)

    # Running

    def run(self, until: str = "report") -> None:
        """Do the steps up to and including `until`; each shows its progress and keeps its result.

        The seconds that each step took are added up over runs in `timings.json` in the output folder.
        """
        file = self.output / "timings.json"
        for step in STEPS[: STEPS.index(until) + 1]:
            start = time.perf_counter()
            getattr(self, step)()
            seconds = time.perf_counter() - start
            timings = _timings(file)
            write_json(file, {**timings, step: round(timings.get(step, 0.0) + seconds, 2)})

    def summary(self, step: str) -> str:
        """What a command prints when its step is done: the main figures and where to find the rest."""
        if step == "report":
            lines = [
                f"{row['model']}/{row['concept']}: AUROC {row['auroc']:.3f} without the SAE, "
                f"{with_sae['auroc']:.3f} with it (test split)"
                for row, with_sae in zip(
                    self.reconstruction.query("variant == 'without_sae'").to_dict("records"),
                    self.reconstruction.query("variant == 'with_sae'").to_dict("records"),
                    strict=True,
                )
            ]
            return "\n".join([*lines, f"report: {self.results_folder / 'report.html'}"])
        frames = {"probe": "reconstruction", "intervene": "interventions", "localize": "localization"}
        if step == "extract" and self.config.sae.train is None:
            return "extract: nothing to do, because the study's SAE is given as a file"
        if step == "localize" and self.localization.empty:
            return "localize: nothing to do, because no concept of the study has a box in the test split"
        if step in frames:
            frame: pd.DataFrame = getattr(self, frames[step])
            return f"{frame.to_string(index=False, max_rows=40)}\nkept in {self.work / 'analyses'}"
        places = {"classify": "classifiers", "extract": "activations", "train": "sae", "encode": "latents"}
        return f"{step}: done; kept in {self.work / places[step]}"


def claims(results: Mapping[str, Any], *, top: int) -> list[dict[str, Any]]:
    """The paper's claims as yes-or-no questions about a study's results, each with the value and the bar.

    For every model and concept with two classes: the SAE costs at most 0.02 of AUROC; the `top` best latents of each
    class alone recover at least 95 % of (AUROC - 0.5); removing them costs more than removing as many random live
    latents (the mean over the random groups); at least one of them localizes the concept with an average precision
    above 0.25.
    """
    checks: list[dict[str, Any]] = []

    def add(name: str, value: float, threshold: float, direction: str) -> None:
        passed = (
            value >= threshold if direction == ">=" else value <= threshold if direction == "<=" else value > threshold
        )
        checks.append(
            {"name": name, "value": value, "threshold": threshold, "direction": direction, "passed": bool(passed)}
        )

    localized = pd.DataFrame(results["localization"])
    sweeps = pd.DataFrame(results["interventions"])
    variants = pd.DataFrame(results["reconstruction"])
    for (model, concept), rows in variants.groupby(["model", "concept"], sort=False):
        if n_classes_of(str(concept)) != 2:
            continue
        auroc = dict(zip(rows["variant"], rows["auroc"], strict=True))
        whole = auroc["without_sae"]
        add(f"{model}/{concept}: AUROC that the SAE costs", whole - auroc["with_sae"], 0.02, "<=")
        sweep = sweeps.query("model == @model and concept == @concept and k == @top and not error_term")
        for row in sweep.to_dict("records"):
            if row["mode"] == "activate":
                share = (row["auroc"] - 0.5) / (whole - 0.5) if whole > 0.5 else float("nan")
                add(
                    f"{model}/{concept}: share of (AUROC - 0.5) that the {top} best latents per class recover",
                    share,
                    0.95,
                    ">=",
                )
            else:
                excess = row["random_auroc_mean"] - row["auroc"]
                add(
                    f"{model}/{concept}: AUROC that removing them costs more than random live latents", excess, 0.0, ">"
                )
        if len(localized):
            best = localized.query("model == @model and concept == @concept")["average_precision"].max()
            add(f"{model}/{concept}: best average precision of a latent's heatmap", best, 0.25, ">")
    return checks


def _timings(file: Path) -> dict[str, float]:
    found = read_json(file) if file.exists() else {}
    return found if isinstance(found, dict) else {}


def _final_module(model: MammoClipClassifier) -> str:
    """The module path of the final map: the last of the release's layer names."""
    return list(model.layer_aliases.values())[-1]


def _encoder_state(model: MammoClipClassifier) -> dict[str, torch.Tensor]:
    """The state dict without the linear head."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier.")}


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist; check the configuration")
    return path


def run_study(config: StudyConfig) -> Path:
    """Run a whole study and return the path of its report. A killed study is run again and continues.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """
    study = Study(config)
    study.run()
    return study.results_folder / "report.html"
