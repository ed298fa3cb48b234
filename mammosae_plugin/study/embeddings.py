"""A study of embeddings: one vector per image, SAEs on these, their codes, and what the latents tell.

Its steps are those of a study of maps, each kept under a digest of what it depends on: `extract` embeds the images,
`train` trains a grid of SAEs in one pass, `encode` makes a table for each, `probe` asks what the codes tell beside the
vectors themselves and beside chance. What needs a map or a classifier is no part of it, and says so.
"""

__all__ = ["EmbeddingStudy"]

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from mammosae_plugin.activations import ActivationStore, embed, store_embeddings
from mammosae_plugin.activations.embedding_files import read_csv_of_images
from mammosae_plugin.activations.row_sources import Source, labelled, open_rows
from mammosae_plugin.adapters import load_sae
from mammosae_plugin.adapters.embedders import load_embedder
from mammosae_plugin.adapters.levels import levels_of
from mammosae_plugin.adapters.sae_formats.loading import weights_of
from mammosae_plugin.adapters.sae_formats.table import LAYOUTS
from mammosae_plugin.adapters.sae_settings import sae_settings
from mammosae_plugin.config import portable_config
from mammosae_plugin.config.embeddings import SAE as ONLY
from mammosae_plugin.config.embeddings import EmbeddingModel, EmbeddingStudyConfig
from mammosae_plugin.datasets.concepts import Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_parquet, sha256_of_file, write_parquet
from mammosae_plugin.findings.embeddings import write_embedding_findings
from mammosae_plugin.latents import LatentTable, encode_rows
from mammosae_plugin.measures.units import count_units
from mammosae_plugin.privacy.context import PrivacyContext
from mammosae_plugin.progress import progress
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.study import embedding_analyses as analyses
from mammosae_plugin.study import plans
from mammosae_plugin.study.embedding_report import write_report_of_embeddings
from mammosae_plugin.study.images import TRAINING, StudyImages
from mammosae_plugin.study.inputs import existing
from mammosae_plugin.study.latent_names import check_names, name_lines, names_of_table, require_tables
from mammosae_plugin.study.steps import Steps, dated
from mammosae_plugin.training import train_saes

logger = logging.getLogger(__name__)

Key = tuple[str, str]  # a model and one of its SAEs
_MOST_CLASSES = 50  # of a concept
_OF_UNITS = ("probes", "probes-of-vectors", "aurocs")  # whose numbers depend on what is counted


class EmbeddingStudy(Steps):
    """The steps of a study of embeddings, each computed when it is asked for and kept in the output folder.

    Args:
        config: The study's configuration.

    Raises:
        InputError: Anything that is wrong with images, vectors, SAEs or the configuration, in one line.
    """

    def __init__(self, config: EmbeddingStudyConfig) -> None:
        self.config = config
        self.output = config.output
        self.work = self.output / "work"
        self.results_folder = self.output / "results"
        self._stores: dict[str, ActivationStore] = {}
        self._tables: dict[Key, LatentTable] = {}
        self._vectors: dict[str, analyses.Vectors] = {}

    @property
    def report_file(self) -> Path:
        """Where the report lies."""
        return self.results_folder / "report.html"

    @property
    def state(self) -> tuple[Mapping[str, Any], str]:
        """The settings, and what changes with the files of images; empty where the vectors are there already."""
        return portable_config(self.config), "" if self.config.data is None else self.images.file_stats

    # Images and vectors

    @cached_property
    def images(self) -> StudyImages:
        """The images that networks make vectors of."""
        data = self.config.data
        assert data is not None  # the configuration has been validated
        return StudyImages(data, self.work, self.config.num_workers)

    @cached_property
    def _known(self) -> pd.DataFrame | None:
        """What the configuration's table knows of the images of stored vectors."""
        file = self.config.images
        if file is None:
            return None
        if file.suffix != ".parquet":
            return read_csv_of_images(file)
        if not file.is_file():
            raise InputError(f"the table of images {file} does not exist; name a CSV or parquet file")
        try:
            return read_parquet(file)
        except InputError as error:  # which would have the user's own file deleted
            raise InputError(f"{file} is no parquet file, or is damaged; give the table of images again") from error

    def _check(self) -> None:
        """See before anything runs for long that images, labels, networks and SAEs fit each other."""
        widths = {model.name: self._width(model) for model in self.config.models}
        for name, files in (self.config.sae.files or {}).items():
            for file in files:
                sae = load_sae(existing(file, LAYOUTS).path)
                if widths[name] != sae.cfg.d_in:
                    raise InputError(
                        f"the SAE {file} takes vectors of width {sae.cfg.d_in}, but those of model {name} have width "
                        f"{widths[name]}; name an SAE that was trained on this model's embeddings"
                    )

    def _width(self, model: EmbeddingModel) -> int:
        """Numbers in a vector of a model, whose images and labels are what the study needs."""
        if model.embeddings is not None:
            rows = open_rows(
                _source(model), column=model.column, images=self._known, concepts=list(self.config.concepts)
            )
            self._check_images(model, rows.images, rows.vocabulary)
            return rows.width
        assert model.network is not None
        images = self.images.all_images
        self._check_images(model, *labelled(images.images, None, list(self.config.concepts), images.vocabulary))
        embedder = load_embedder(
            model.network,
            pooling=model.pooling,
            weights=model.weights,
            seed=model.seed,
            image_size=images.image_size,
        )
        with embedder.hooked(images.image_size), torch.inference_mode():  # which says what does not fit
            return int(embedder(torch.zeros(1, 3, *images.image_size)).shape[1])

    def _check_images(self, model: EmbeddingModel, images: pd.DataFrame, vocabulary: Vocabulary) -> None:
        config = self.config
        splits = images["split"]
        needed = {config.analysis.split, *([] if config.sae.files else [TRAINING])}
        if lacking := sorted(needed - set(splits)):
            raise InputError(
                f"the vectors of model {model.name} have no image in the split {lacking[0]!r} (they have "
                f"{', '.join(sorted(set(splits)))}); give files of both splits, a table with a column split as "
                "`images`, or another analysis.split"
            )
        trained = set(images.loc[splits == TRAINING, "patient_id"])
        both = images[(splits != TRAINING) & images["patient_id"].isin(trained)]
        if len(both) and not config.sae.files:
            raise InputError(
                f"of model {model.name} the group {both['patient_id'].iloc[0]} has images in the splits {TRAINING} and "
                f"{both['split'].iloc[0]}; all images of a group (patient_id) have one split"
            )
        check_names(config.analysis.names, images.columns)
        for name in config.concepts:
            if (n := vocabulary[name].n_classes) > _MOST_CLASSES:
                raise InputError(
                    f"the concept {name!r} has {n} classes, each of which would be told from the rest; name a column "
                    f"of at most {_MOST_CLASSES}, such as bins of it"
                )
        concepts, where = Vocabulary(vocabulary[name] for name in config.concepts), f"the table of model {model.name}"
        for _ in analyses.labels_of(images[splits == config.analysis.split], concepts, config.evaluation_unit, where):
            pass  # which says what belongs to no unit

    def store(self, model: EmbeddingModel) -> ActivationStore:
        """The vectors of a model, of all splits, one per image."""
        if model.name not in self._stores:
            self._stores[model.name] = self._embedded(model) if model.network is not None else self._stored(model)
        return self._stores[model.name]

    def _embedded(self, model: EmbeddingModel) -> ActivationStore:
        assert model.network is not None
        plan = plans.of_embeddings(self.config, model, self.images.dataset, self.images.content)
        return embed(
            model.network,
            self.images.dataset,
            plans.keep(plan, self.work / "activations" / f"{model.name}-{plans.digest(plan)}"),
            pooling=model.pooling,
            weights=model.weights,
            seed=model.seed,
            dtype=model.dtype,
            autocast=model.autocast,
            device=self.config.device,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
        )

    def _stored(self, model: EmbeddingModel) -> ActivationStore:
        assert model.embeddings is not None
        source = _source(model)
        rows = open_rows(source, column=model.column, images=self._known)
        known = pd.util.hash_pandas_object(rows.images).to_numpy().tobytes().hex()
        plan = {"step": "extract", "rows": rows.fingerprint, "images": [rows.images.columns.tolist(), known]}
        folder = plans.keep({**plan, "images": plans.digest(plan["images"])}, self._folder_of(model, plan))
        return store_embeddings(source, folder, column=model.column, images=self._known)

    def _folder_of(self, model: EmbeddingModel, plan: plans.Plan) -> Path:
        return self.work / "activations" / f"{model.name}-{plans.digest(plan)}"

    def _rows(self, model: EmbeddingModel) -> Any:
        return open_rows(self._stores[model.name], concepts=list(self.config.concepts))

    def vectors(self, model: EmbeddingModel) -> analyses.Vectors:
        """(n, d) the vectors of the images that are judged on, in order."""
        if model.name not in self._vectors:
            _ = self.store(model)
            rows = self._rows(model)
            chosen = np.flatnonzero((rows.images["split"] == self.config.analysis.split).to_numpy())
            self._vectors = {model.name: np.concatenate(list(rows.blocks(chosen)))}  # of one model at a time
        return self._vectors[model.name]

    # SAEs and their codes

    def sae_folders(self, model: EmbeddingModel) -> dict[str, Path]:
        """By name where each SAE of a model lies, or will."""
        if self.config.sae.files is not None:
            files = [existing(file, LAYOUTS).path for file in self.config.sae.files[model.name]]
            names = [ONLY] if len(files) == 1 else [f"{number}-{file.stem}" for number, file in enumerate(files, 1)]
            return dict(zip(names, files, strict=True))
        manifest = self.store(model).manifest
        found = {}
        for name, settings in self.config.sae.settings.items():
            plan = {"step": "train", "rows": plans.digest(manifest), "training": settings.model_dump()}
            found[name] = plans.keep(plan, self.work / "sae" / f"{model.name}-{plans.digest(plan)}")
        return found

    def _train(self, model: EmbeddingModel) -> None:
        folders = self.sae_folders(model)
        if self.config.sae.files is not None:
            for folder in folders.values():
                _ = load_sae(folder)
            return
        store = self.store(model)
        splits = self._rows(model).images["split"].to_numpy()
        settings = {folders[name].name: one for name, one in self.config.sae.settings.items()}
        train_saes(
            store,
            self.work / "sae",
            settings,
            metadata={"trained_on_model": model.name},
            device=self.config.device,
            validation_images=np.flatnonzero(splits != TRAINING).tolist(),
        )

    @property
    def keys(self) -> Iterator[Key]:
        """Every SAE of every model."""
        for model in self.config.models:
            for name in self.sae_folders(model):
                yield model.name, name

    def model(self, name: str) -> EmbeddingModel:
        """A model by its name."""
        return next(model for model in self.config.models if model.name == name)

    def sae(self, key: Key) -> SAE[Any]:
        """An SAE, on the CPU."""
        model = self.model(key[0])
        if self.config.sae.files is None:
            self._train(model)
        return load_sae(self.sae_folders(model)[key[1]])

    def table(self, key: Key) -> LatentTable:
        """The codes of all images under an SAE."""
        if key not in self._tables:
            model, sae = self.model(key[0]), self.sae(key)
            store = self.store(model)
            plan = {
                "step": "encode",
                "rows": plans.digest(store.manifest),
                "sae": tensors_fingerprint(sae.state_dict()),
                "sae_settings": dict(sae_settings(sae)),
                "concepts": list(self.config.concepts),
            }
            folder = plans.keep(plan, self.work / "latents" / f"{model.name}-{plans.digest(plan)}")
            self._tables[key] = encode_rows(
                store, sae, folder, concepts=list(self.config.concepts), device=self.config.device
            )
        return self._tables[key]

    # Analyses

    def _kept(
        self, name: str, table: str, about: Mapping[str, str], compute: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """A data frame, computed once for the same codes or vectors and settings."""
        asked = self.config.analysis.model_dump(exclude={"names"})
        settings = {**asked, "seed": self.config.seed, "concepts": self.config.concepts}
        if name in _OF_UNITS and self.config.evaluation_unit.has_several_images:
            settings["unit"] = str(self.config.evaluation_unit)
        plan = plans.of_analysis(name, table=table, model=about["model"], concept="", settings=settings)
        path = self.work / "analyses" / f"{name}-{about['model']}-{plans.digest(plan)}.parquet"
        plans.keep(plan, path)
        if not path.exists():
            logger.info("%s of %s", name, " ".join(about.values()))
            write_parquet(path, compute())
        frame = read_parquet(path)
        for place, (column, value) in enumerate(about.items()):
            frame.insert(place, column, value)
        return frame

    def _of_saes(self, name: str, compute: Callable[[LatentTable, EmbeddingModel], pd.DataFrame]) -> pd.DataFrame:
        found = []
        keys, to = list(self.keys), self.work / "analyses"
        for key in progress(keys, description=name, unit="SAE", to=to, delay=2, leave=False):
            table, model = self.table(key), self.model(key[0])
            about = {"model": key[0], "sae": key[1]}
            found.append(self._kept(name, table.folder.name, about, lambda t=table, m=model: compute(t, m)))  # type: ignore[misc]
        return pd.concat(found, ignore_index=True)

    def _vocabulary(self, table: LatentTable) -> Vocabulary:
        return Vocabulary(table.vocabulary[name] for name in self.config.concepts)

    @cached_property
    def quality(self) -> pd.DataFrame:
        """How well every level of every SAE gives the vectors back."""
        return self._of_saes("quality", lambda table, _: analyses.quality(table))

    @cached_property
    def probes(self) -> pd.DataFrame:
        """Probes on codes, and on the vectors, their components and clusters."""
        settings, seed, unit = self.config.analysis, self.config.seed, self.config.evaluation_unit

        def of_codes(table: LatentTable, _: EmbeddingModel) -> pd.DataFrame:
            images = np.flatnonzero((table.images["split"] == settings.split).to_numpy())
            known, codes = table.images.iloc[images], table.codes()[images]
            return analyses.probes(codes, known, self._vocabulary(table), analyses.CODES, settings, seed, unit)

        found = [self._of_saes("probes", of_codes)]
        for model in self.config.models:
            rows, store = self._rows(model), self.store(model)
            known = rows.images[rows.images["split"] == settings.split]

            def of_vectors(model: EmbeddingModel = model, rows: Any = rows, known: Any = known) -> pd.DataFrame:
                words = Vocabulary(rows.vocabulary[name] for name in self.config.concepts)
                dense = self.vectors(model).astype(np.float64)
                arms = (analyses.DENSE, analyses.PCA, analyses.KMEANS)
                parts = [analyses.probes(dense, known, words, arm, settings, seed, unit) for arm in arms]
                return pd.concat(parts, ignore_index=True)

            about = {"model": model.name}
            found.append(self._kept("probes-of-vectors", plans.digest(store.manifest), about, of_vectors))
        return pd.concat(found, ignore_index=True)

    @cached_property
    def recovery(self) -> pd.DataFrame:
        """With how few latents probes reach what the vectors tell."""
        found = []
        for model in self.config.models:
            own = self.probes[self.probes["model"] == model.name]
            dense = own[own["arm"] == analyses.DENSE]
            for sae in self.sae_folders(model):
                frame = analyses.recovery(own[(own["arm"] == analyses.CODES) & (own["sae"] == sae)], dense)
                frame.insert(0, "model", model.name)
                frame.insert(1, "sae", sae)
                found.append(frame)
        return pd.concat(found, ignore_index=True)

    @cached_property
    def names(self) -> pd.DataFrame:
        """What the latents of every SAE are called; empty where the study asks for no names."""
        asked = self.config.analysis.names
        if asked is None:
            return pd.DataFrame()
        require_tables(asked, map(self.table, self.keys))
        found = []
        for key in self.keys:
            frame = names_of_table(self.table(key), asked, self.work, key[0], self.config.analysis.split)
            frame.insert(0, "encoder", key[0])
            frame.insert(1, "sae", key[1])
            found.append(frame)
        return pd.concat(found, ignore_index=True)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Everything that was found, by the name of its table in the findings."""
        settings, seed, split = self.config.analysis, self.config.seed, self.config.analysis.split
        words, unit = self._vocabulary, self.config.evaluation_unit
        return {
            "quality": self.quality,
            "latents": self._of_saes("latents", lambda t, m: analyses.of_latents(t, self.vectors(m), split)),
            "monosemanticity": self._of_saes(
                "monosemanticity", lambda t, _: analyses.monosemanticity(t, words(t), split, settings.n)
            ),
            "aurocs": self._of_saes("aurocs", lambda t, _: analyses.latents(t, words(t), split, settings, unit)),
            "probes": self.probes,
            "recovery": self.recovery,
            "retrieval": self._of_saes(
                "retrieval", lambda t, m: analyses.retrieval(t, self.vectors(m), words(t), split, settings, seed)
            ),
            "names": self.names,
        }

    # The steps

    def classify(self) -> None:
        """Nothing: a study of embeddings has no classifier."""

    def extract(self) -> None:
        """Make the vectors, or copy those that are given, when all that is cheap to see has been seen."""
        self._check()
        for model in self.config.models:
            _ = self.store(model)

    def train(self) -> None:
        """Train the SAEs of each model in one pass, or read those that the configuration names."""
        for model in self.config.models:
            self._train(model)

    def encode(self) -> None:
        """Make the codes of every SAE."""
        for key in self.keys:
            _ = self.table(key)

    def probe(self) -> None:
        """Everything that is asked of the codes."""
        _ = self.tables()

    def intervene(self) -> None:
        """Nothing: there is no classifier behind the vectors."""

    def localize(self) -> None:
        """Nothing: a vector has no places."""

    def evidence(self) -> None:
        """Nothing: what latents stand for is asked of what a classifier rests on."""

    def report(self) -> Path:
        """Write the findings and, from them, figures, tables and the report."""
        facts = plain(self._facts())
        dates = dated(facts, self.results_folder)
        found = write_embedding_findings(dates, self.tables(), self.results_folder)
        write_report_of_embeddings(found, self.results_folder)
        if self.config.data is not None:
            PrivacyContext.of_dataset(self.images.all_images).keep(self.output)
        return self.report_file

    def _facts(self) -> dict[str, Any]:
        models, saes, prevalence, splits = [], [], [], []
        for model in self.config.models:
            store = self.store(model)
            models.append(
                {
                    "model": model.name,
                    "source": Path(model.network).name if model.network else "stored vectors",
                    "weights": model.weights or ("" if model.network is None else "its own"),
                    "pooling": model.pooling if model.network else "",
                    "width": store.d_in,
                    "n_images": store.n_rows,
                    "manifest": plans.digest(store.manifest),
                }
            )
        for key in self.keys:
            sae, folder = self.sae(key), self.sae_folders(self.model(key[0]))[key[1]]
            weights = weights_of(folder)
            training = self.config.sae.settings.get(key[1])
            saes.append(
                {
                    "model": key[0],
                    "sae": key[1],
                    "architecture": sae.cfg.architecture(),
                    "d_sae": int(sae.cfg.d_sae),
                    "levels": list(levels_of(sae)) or [int(sae.cfg.d_sae)],
                    "file": folder.name,
                    "sha256": sha256_of_file(weights),
                    "tensors": tensors_fingerprint(sae.state_dict()),
                    "training": None if training is None else training.acting(),
                }
            )
        unit = self.config.evaluation_unit
        for name, table in self._different_images().items():
            about = {"model": name} if name else {}
            for split in table.splits:
                own = table.images[table.images["split"] == split]
                n_groups = int(own["patient_id"].nunique())
                several = {"n_units": count_units(own, unit, name)} if unit.has_several_images else {}
                splits.append({**about, "split": split, "n_images": len(own), "n_groups": n_groups, **several})
                for concept, class_name, labels, units in analyses.labels_of(own, self._vocabulary(table), unit):
                    there = units.patient_ids[labels == 1]
                    prevalence.append(
                        {
                            "concept": concept,
                            "class": class_name,
                            **about,
                            "split": split,
                            "n_positive": len(there),
                            "n_positive_groups": len(set(there)),
                            "n_labelled": int((~np.isnan(labels)).sum()),
                        }
                    )
        data, config = self.config.data, portable_config(self.config)
        return {
            "title": self.config.title,
            "data_kind": data.about.name if data is not None else "embeddings",
            "config": config,
            "provenance": {
                "packages": package_versions(),
                "dataset_fingerprint": self.images.content if data is not None else None,
                "seed": self.config.seed,
                **environment(),
            },
            "data": {
                "unit": str(unit),
                "splits": splits,
                "prevalence": prevalence,
                "n_quarantined": 0 if data is None else len(self.images.quarantine),
            },
            "models": models,
            "saes": saes,
        }

    def _different_images(self) -> dict[str, LatentTable]:
        """By model a table whose images and labels are told; one under "" where they are those of all models."""
        models = self.config.models
        tables = {model.name: self.table((model.name, next(iter(self.sae_folders(model))))) for model in models}
        told = {analyses.labels_digest(table.images, self._vocabulary(table)) for table in tables.values()}
        return tables if len(told) > 1 else {"": next(iter(tables.values()))}

    def summary(self, step: str) -> str:
        """What a command prints when its step is done: the main figures and where to find the rest."""
        why = {
            "classify": "a study of embeddings has no classifier",
            "intervene": "no classifier reads these vectors; `mammosae study` of kind maps intervenes on a network",
            "localize": "a vector has no places; `mammosae study` of kind maps localizes on a feature map",
            "evidence": "no classifier reads these vectors; mp.latent_evidence(table, concept) tells of their latents",
        }
        if step in why:
            return f"{step}: nothing to do: {why[step]}"
        if step == "extract":
            stores = [self.store(model).summary() for model in self.config.models]
            return "\n".join([*stores, f"extract: done; kept in {self.work / 'activations'}"])
        if step == "probe":
            shown = self.probes[["model", "sae", "arm", "concept", "class", "k", "auroc", "auroc_permuted"]]
            return f"{shown.to_string(index=False, max_rows=60)}\nkept in {self.work / 'analyses'}"
        if step == "report":
            test = self.quality[self.quality["split"] == self.config.analysis.split]
            last = test.groupby(["model", "sae"], sort=False).tail(1)
            lines = [
                f"{row['model']}/{row['sae']}: L0 {row['l0']:.1f}, explained variance {row['explained_variance']:.3f} "
                f"({self.config.analysis.split} split)"
                for row in last.to_dict("records")
            ]
            return "\n".join([*lines, *name_lines(self.names, ["encoder", "sae"]), f"report: {self.report_file}"])
        return f"{step}: done; kept in {self.work / {'train': 'sae', 'encode': 'latents'}[step]}"


def _source(model: EmbeddingModel) -> Source:
    assert model.embeddings is not None
    return model.embeddings[0] if len(model.embeddings) == 1 else list(model.embeddings)
