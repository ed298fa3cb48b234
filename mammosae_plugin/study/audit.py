"""The audit of an SAE: seeds of it and controls made of the same rows, all encoded in one pass, scored, and compared.

What is made on the way (trained seeds, controls, codes, scores of each) is kept in the output folder, each under a
digest of what it depends on. A killed run is made again and continues; another SAE or other rows are refused.
"""

__all__ = ["audit_from_files", "audit_sae", "audit_study"]

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sae_lens import SAE
from threadpoolctl import threadpool_limits

from mammosae_plugin import distributed
from mammosae_plugin.activations import ActivationStore, store_embeddings
from mammosae_plugin.activations.row_sources import Source, images_of
from mammosae_plugin.activations.store import MANIFEST
from mammosae_plugin.adapters import load_sae
from mammosae_plugin.adapters.attached_sae import refuse_what_no_map_fits
from mammosae_plugin.adapters.checkpoints import refuse_not_finite
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.adapters.sae_settings import sae_settings
from mammosae_plugin.analysis.score_card import (
    AuditSettings,
    chosen_labels,
    member_scores,
    reasons_of,
    reference_scores,
    replications,
)
from mammosae_plugin.analysis.structure_scores import AuditImages
from mammosae_plugin.arguments import whole
from mammosae_plugin.config import EmbeddingStudyConfig, StudyConfig
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    differences,
    local_path,
    read_json,
    sha256_of_json,
    write_json,
    write_text,
)
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.latents.image_codes import ImageCodes, encode_images
from mammosae_plugin.latents.table import TABLE as LATENTS_TABLE
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import require_unclaimed
from mammosae_plugin.progress import progress
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.schema.score_card import FIGURE, SCORE_CARD, SCORES, TRAINED, Member, ScoreCard, study_audit
from mammosae_plugin.schema.score_card import SAE as THIS
from mammosae_plugin.study.audit_data import AuditData, ImagePlaces, labels_in
from mammosae_plugin.study.embeddings import EmbeddingStudy
from mammosae_plugin.study.study import Study
from mammosae_plugin.training import SAETraining, train_saes
from mammosae_plugin.training.controls import (
    PlannedTraining,
    frozen,
    measured_l0,
    pca_sae,
    permuted_encoder,
    training_of,
    untrained_sae,
)
from mammosae_plugin.training.saving import CFG, save_sae
from mammosae_plugin.visualization.score_card import plot_score_card
from mammosae_plugin.visualization.style import save_figure

logger = logging.getLogger(__name__)

PLAN, TABLE = "audit.json", "score_card.csv"
TRAINING_ROWS = 500_000


def audit_sae(
    sae: SAE[Any],
    rows: Source,
    folder: str | os.PathLike[str],
    *,
    images: pd.DataFrame | None = None,
    vocabulary: Vocabulary | None = None,
    concepts: Sequence[str | Concept] | None = None,
    group: str = "patient_id",
    split: str | None = None,
    seeds: int = 3,
    training_rows: int = TRAINING_ROWS,
    settings: AuditSettings | None = None,
    places: ImagePlaces | None = None,
    device: str = "cpu",
) -> ScoreCard:
    """Hold an SAE against seeds of itself and against controls, on the rows that it reads, and write its score card.

    Seeds of it are trained in one pass over the rows of the training images, as its metadata say that it was, with as
    many whose directions stay random. As many untrained ones, as many copies of it with a permuted encoder, and
    principal components are made of the same rows. All are encoded in one pass, each latent's maximum over an image's
    rows is its code, and every score of `schema.score_card.SCORES` is had of all.

    Args:
        sae: A SAELens SAE.
        rows: The rows: an activation store, of vectors or of the positions of maps, or its folder; or files of
            embeddings, as for `encode_rows`.
        folder: Where everything goes: score_card.json, its figure and table, and in `work` what can be reused.
        images: What is known of the images, if it does not lie beside the rows: image_id, patient_id, split, labels.
        vocabulary: What `images` are labelled with, as class numbers.
        concepts: Which columns are labels; by default those that hold 0 and 1 alone, or that the rows name.
        group: The column that says which images belong together.
        split: The split that is scored; by default "test" where there is one, else all images.
        seeds: How many seeds, and members of each control that is random.
        training_rows: Rows that each seed is trained over at the most, counted every time that they are read.
        settings: How to score.
        places: Boxes and pixels of the images, for the shares of energy inside boxes and inside the breast.
        device: Where SAEs are trained and run.

    Raises:
        InputError: Rows of another width than the SAE's, no image of the split, a column that is not there, or a folder
            that holds another audit.
    """
    settings, folder = settings or AuditSettings(), local_path(folder)
    if not hasattr(sae, "cfg") or not hasattr(sae, "encode"):
        raise InputError(f"the SAE is a {type(sae).__name__}: give a SAELens SAE, such as load_sae(path)")
    seeds, training_rows = whole(seeds, "seeds", least=2), whole(training_rows, "training_rows", least=1)
    refuse_not_finite(sae.state_dict(), where="the SAE")
    refuse_what_no_map_fits(sae, "the audit")
    for name, what in ((CFG, "an SAE"), (MANIFEST, "activations"), (LATENTS_TABLE, "a latents table")):
        if (folder / name).exists() and not (folder / PLAN).exists():
            raise InputError(f"{folder} holds {what}; give the audit a folder of its own, such as {folder / 'audit'}")
    require_unclaimed(folder, [PLAN], [SCORE_CARD, FIGURE, TABLE])
    with only_run(folder), evaluation(sae, device="cpu"):
        if distributed.world_size() > 1:
            raise InputError("an audit runs in one process; start it without torchrun")
        store, known, labelled = _opened(rows, folder, images, vocabulary, concepts)
        if store.d_in != sae.cfg.d_in:
            raise InputError(
                f"the SAE takes vectors of width {sae.cfg.d_in}, but {store.folder} has rows of width {store.d_in}; "
                "use rows of the layer that it was trained on"
            )
        data = AuditData(store, known, labelled, group, split, settings, places)
        return _Audit(sae, data, folder, seeds, training_rows, device).run()


def _opened(
    rows: Source,
    folder: Path,
    images: pd.DataFrame | None,
    vocabulary: Vocabulary | None,
    concepts: Sequence[str | Concept] | None,
) -> tuple[ActivationStore, pd.DataFrame, Vocabulary]:
    """A store of the rows, made in the folder of those that lie in files, and what is known of their images."""
    if isinstance(rows, (str, os.PathLike)) and (local_path(rows) / MANIFEST).exists():
        rows = ActivationStore(local_path(rows))
    if isinstance(rows, ActivationStore):
        return rows, *images_of(rows, images=images, vocabulary=vocabulary, concepts=concepts)
    store = store_embeddings(rows, folder / "work" / "rows", images=images, concepts=concepts)
    return store, *images_of(store)


@dataclass(frozen=True)
class _Audit:
    """One audit in its folder."""

    sae: SAE[Any]
    data: AuditData
    folder: Path
    n_seeds: int
    training_rows: int
    device: str

    def run(self) -> ScoreCard:
        """Make what is missing, and write the card."""
        self._claim()
        l0 = measured_l0(self.sae, self.data.sample)
        if l0 == 0:
            raise InputError("the SAE fires at none of the training images' rows: it is of other rows, or dead")
        planned = training_of(self.sae, self.data.n_training_rows, l0=l0, most_rows=self.training_rows)
        reasons: dict[str, str] = {}
        saes = self._saes(planned, l0, reasons)
        codes = self._codes(saes)
        # Thousands of small fits: a pool of threads waits for itself longer than it computes, most of all where others
        # use the processor too (references of the demo 28 s, with two threads 256 s).
        with threadpool_limits(1):
            card = self._card(saes, codes, planned, l0, reasons)
        write_text(self.folder / TABLE, card.to_frame().to_csv(index=False))
        save_figure(plot_score_card(card), self.folder / FIGURE)
        write_json(self.folder / SCORE_CARD, card.to_json())
        return card

    def _claim(self) -> None:
        said = {
            "sae": self._digest(self.sae),
            "rows": self.data.fingerprint,
            "seeds": self.n_seeds,
            "training_rows": self.training_rows,
        }
        if not (self.folder / PLAN).exists():
            write_json(self.folder / PLAN, said)
        elif (there := read_json(self.folder / PLAN)) != said:
            raise InputError(
                f"{self.folder} holds another audit ({differences(there, said)}); name another folder or delete it"
            )

    @staticmethod
    def _digest(sae: SAE[Any]) -> str:
        return sha256_of_json([tensors_fingerprint(sae.state_dict()), sae_settings(sae)])

    # What is scored

    def _saes(self, planned: PlannedTraining, l0: float, reasons: dict[str, str]) -> dict[tuple[str, int], SAE[Any]]:
        """Every SAE by kind and number, trained ones first."""
        base = planned.settings
        random = [base.seed + 1 + number for number in range(self.n_seeds)]
        runs = {f"trained-{seed}": SAETraining(**{**base.model_dump(), "seed": seed}) for seed in random}
        runs |= {f"frozen-{seed}": frozen(SAETraining(**{**base.model_dump(), "seed": seed})) for seed in random}
        plan = {
            "rows": self.data.fingerprint,
            "images": self.data.training.tolist(),
            "settings": {name: one.model_dump(mode="json") for name, one in runs.items()},
        }
        work = self.folder / "work" / f"saes-{sha256_of_json(plan)[:12]}"
        held_out = np.setdiff1d(np.arange(len(self.data.store.image_ids)), self.data.training).tolist()
        trained = train_saes(self.data.store, work, runs, device=self.device, validation_images=held_out)
        found: dict[tuple[str, int], SAE[Any]] = {(THIS, 1): self.sae}
        for kind, name in ((TRAINED, "trained"), ("frozen decoder", "frozen")):
            found |= {(kind, 1 + number): trained[f"{name}-{seed}"] for number, seed in enumerate(random)}
        sample, like = self.data.sample, self.sae
        made = {
            ("untrained", 1 + number): partial(untrained_sae, base, sample, seed=seed, like=like, l0=l0)
            for number, seed in enumerate(random)
        }
        made |= {
            ("permuted encoder", 1 + number): partial(permuted_encoder, like, sample, seed=seed, l0=l0)
            for number, seed in enumerate(random)
        }
        made[("pca", 1)] = partial(pca_sae, sample, like=like, l0=l0)
        beside = self.folder / "work" / f"controls-{sha256_of_json([plan, self._digest(like)])[:12]}"
        for (kind, number), make in made.items():
            place = beside / f"{kind.replace(' ', '-')}-{number}"
            try:
                if not (place / CFG).exists():
                    save_sae(make(), place)
                found[kind, number] = SAE.load_from_disk(place)
            except InputError as error:
                reasons[kind] = str(error)
        return found

    def _codes(self, saes: Mapping[tuple[str, int], SAE[Any]]) -> dict[tuple[str, int], Path]:
        """The file with the codes of each; those that are missing are made in one pass over the rows."""
        images = {"rows": self.data.fingerprint, "images": self.data.images.tolist(), "grid": self.data.grid}
        images["maps of"] = self.data.map_images
        paths = {
            key: self.folder / "work" / "codes" / f"{key[0].replace(' ', '-')}-{key[1]}-{digest[:12]}.safetensors"
            for key, sae in saes.items()
            if (digest := sha256_of_json([self._digest(sae), images]))
        }
        missing = {key: path for key, path in paths.items() if not path.exists()}
        if missing:
            by_name = {str(key): saes[key] for key in missing}
            found = encode_images(
                self.data.rows,
                by_name,
                len(self.data.images),
                grid=self.data.grid,
                map_images=self.data.map_images,
                device=self.device,
            )
            for key, path in missing.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                found[str(key)].write(path)
        return paths

    # Scores

    def _card(
        self,
        saes: Mapping[tuple[str, int], SAE[Any]],
        codes: Mapping[tuple[str, int], Path],
        planned: PlannedTraining,
        l0: float,
        reasons: dict[str, str],
    ) -> ScoreCard:
        data, settings = self.data, self.data.settings
        labels, missing = chosen_labels(data.labels, data.groups, settings)
        images = AuditImages(
            data.groups,
            labels,
            data.nested,
            data.vectors,
            data.channels,
            data.regions,
            reasons={**missing, **data.reasons},
        )
        asked = [
            asdict(settings),
            [
                {name: np.nan_to_num(values, nan=-1).tolist() for name, values in some.items()}
                for some in (labels, data.nested)
            ],
            plain(data.regions),
            data.groups.tolist(),
            list(SCORES),
            package_versions(),
        ]
        scored: dict[tuple[str, int], dict[str, float | None]] = {}
        n_latents = int(self.sae.cfg.d_sae)
        references, dense = self._kept(
            "rows", [asked, data.fingerprint, n_latents], lambda: reference_scores(images, settings, n_latents)
        )
        dense = {name: auroc for name, auroc in dense.items() if auroc is not None}
        encoded: dict[tuple[str, int], ImageCodes] = {}
        for key, path in progress(codes.items(), description="score", unit="SAE"):
            encoded[key] = ImageCodes.read(path).of(saes[key])
            scored[key] = self._kept(
                path.stem,
                asked,
                partial(member_scores, encoded[key], images, dense, settings),
            )
        kinds = dict.fromkeys(kind for kind, _ in codes)
        for kind in kinds:
            keys = [key for key in codes if key[0] in ((THIS, TRAINED) if kind == THIS else (kind,))]
            shared = self._kept(
                f"replication-{kind.replace(' ', '-')}",
                [asked, [codes[key].name for key in keys]],
                partial(replications, [encoded[key].codes for key in keys], settings),
            )
            for key, share in zip(keys, shared, strict=True):
                if key[0] == kind:
                    scored[key]["replication"] = share
        members = tuple(Member(kind, number, scores) for (kind, number), scores in scored.items())
        return ScoreCard(
            sae={
                "architecture": self.sae.cfg.architecture(),
                "d_in": int(self.sae.cfg.d_in),
                "d_sae": int(self.sae.cfg.d_sae),
                "tensors": tensors_fingerprint(self.sae.state_dict()),
                "hook_name": data.store.hook_name,
            },
            rows={
                "n_images": len(data.images),
                "n_groups": len(np.unique(data.groups)),
                "n_rows": encoded[THIS, 1].n_rows,
                "split": data.split,
                "concepts": list(labels),
                "fingerprint": data.fingerprint,
                "grid": data.grid,
            },
            members=members,
            training={
                "settings": planned.settings.model_dump(mode="json"),
                "settings_known": planned.known,
                "rows_seen": planned.rows_seen,
                "seeds": [planned.settings.seed + 1 + number for number in range(self.n_seeds)],
                "l0": l0,
                **({} if planned.own_batch_size is None else {"own_batch_size": planned.own_batch_size}),
            },
            settings=asdict(settings),
            references=references,
            reasons={**reasons_of(members, list(encoded.values()), images), **reasons},
            provenance={"packages": package_versions(), **environment()},
        )

    def _kept(self, name: str, depends_on: Any, compute: Any) -> Any:
        """A result as JSON, computed once for the same inputs."""
        path = self.folder / "work" / "scores" / f"{name}-{sha256_of_json(plain(depends_on))[:12]}.json"
        if not path.exists():
            write_json(path, plain(compute()))
        return read_json(path)


def audit_study(
    config: StudyConfig | EmbeddingStudyConfig,
    folder: str | os.PathLike[str] | None = None,
    *,
    layer: str | None = None,
    seeds: int = 3,
    training_rows: int = TRAINING_ROWS,
    most_images: int = AuditSettings.most_images,
) -> ScoreCard:
    """Audit an SAE of a study on the rows that it was trained on and with the study's labels.

    Steps before it that are not done yet are done first.

    Args:
        config: The study's configuration.
        folder: Where the audit goes; by default `audit/<layer>` in the study's output folder, where `compare` finds it.
        layer: The layer, as the configuration names it; by default that of the final map, or else the last. Of a study
            of embeddings MODEL/SAE, by default the first.
        seeds: As for `audit_sae`.
        training_rows: As for `audit_sae`.
        most_images: Images that are scored; of more, whole groups are drawn.

    Raises:
        InputError: The study trains no SAE on maps, has no such layer, or as `audit_sae`.
    """
    told: dict[str, Any]
    if isinstance(config, EmbeddingStudyConfig):
        found = EmbeddingStudy(config)
        keys = {"/".join(key): key for key in found.keys}
        name = next(iter(keys)) if layer is None else layer
        _require_layer(name, keys)
        store, sae = found.store(found.model(keys[name][0])), found.sae(keys[name])
        told = {"concepts": list(config.concepts)}
    else:
        study = Study(config)
        if config.sae.train is None:
            raise InputError(
                "the study is given its SAE as a file, so that it has no rows to train seeds of it on; audit it with "
                "the rows that it was trained on: mammosae audit SAE --rows STORE"
            )
        by_name = {one.name: one for one in study.layers}
        name = study.primary.name if layer is None else layer
        _require_layer(name, by_name)
        rows, sae = by_name[name].extract(), by_name[name].sae
        assert rows is not None  # of a study that trains its SAE
        store, data = rows, study.dataset
        told = {"images": data.images, "vocabulary": data.vocabulary, "places": ImagePlaces.of_dataset(data)}
    return audit_sae(
        sae,
        store,
        study_audit(config.output, name) if folder is None else folder,
        **told,
        seeds=seeds,
        training_rows=training_rows,
        settings=AuditSettings(most_images=most_images),
        device=config.device,
    )


def _require_layer(name: str, there: Iterable[str]) -> None:
    if name not in there:
        raise InputError(f"the study has no layer {name!r}; it has {', '.join(there)}")


def audit_from_files(
    sae: str | os.PathLike[str],
    rows: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    table: str | os.PathLike[str] | None = None,
    concepts: Sequence[str] | None = None,
    group: str = "patient_id",
    split: str | None = None,
    seeds: int = 3,
    training_rows: int = TRAINING_ROWS,
    most_images: int = AuditSettings.most_images,
    device: str = "cpu",
) -> ScoreCard:
    """`audit_sae` of what lies in files: the SAE, a store or files of embeddings, and what is known of the images.

    Args:
        sae: The SAE's folder, file or place on the Hub.
        rows: A store's folder, or files of embeddings.
        folder: Where everything goes.
        labels: A table (.csv, .parquet) with image_id and labels, or
        table: a latents table of these images, whose labels, patients, splits and boxes are taken.
        concepts: As for `audit_sae`; of a latents table some of its concepts.
        group: As for `audit_sae`.
        split: As for `audit_sae`.
        seeds: As for `audit_sae`.
        training_rows: As for `audit_sae`.
        most_images: Images that are scored; of more, whole groups are drawn.
        device: As for `audit_sae`.

    Raises:
        InputError: A file that cannot be read, labels and a table, or as `audit_sae`.
    """
    if labels is not None and table is not None:
        raise InputError("labels are given twice, in a file (--labels) and in a latents table (--table); give one")
    told: dict[str, Any] = {"images": None if labels is None else labels_in(local_path(labels)), "concepts": concepts}
    if table is not None:
        known = LatentTable(local_path(table))
        names = list(known.vocabulary) if concepts is None else list(concepts)
        vocabulary = Vocabulary([known.vocabulary.named(name, str(known.folder)) for name in names])
        told = {"images": known.images, "vocabulary": vocabulary, "places": ImagePlaces.of_table(known)}
    source = rows[0] if len(rows) == 1 else list(rows)
    return audit_sae(
        load_sae(sae),
        source,
        folder,
        **told,
        group=group,
        split=split,
        seeds=seeds,
        training_rows=training_rows,
        settings=AuditSettings(most_images=most_images),
        device=device,
    )
