"""The steps that `scale.py` measures, on synthetic tables of a real study's form.

Of 16,384 latents 850 fire, in 1 to 60 % of the images each, as those of a trained SAE do on mammograms; 80 % of the
images are training images, 4 images are of one patient. Tables, findings and Spaces are written by the code that a
study writes them with, and read from the disk.
"""

import contextlib
import multiprocessing
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from encode_rows import noise, sae_of
from helpers_results import synthetic_results

from mammosae_plugin.activations.embedding_files import write_vectors
from mammosae_plugin.analysis import (
    class_mean_latents,
    confounders,
    latent_evidence,
    monosemanticity,
    rank_latents,
    retrieve,
    sweep,
)
from mammosae_plugin.analysis.neighbours import decoder_neighbours, firing_neighbours
from mammosae_plugin.analysis.score_card import audit
from mammosae_plugin.datasets import VinDrMammo, make_phantoms, screen_images
from mammosae_plugin.datasets.about import KNOWN
from mammosae_plugin.datasets.concepts import Vocabulary
from mammosae_plugin.datasets.vindr import older_vocabulary
from mammosae_plugin.files import write_parquet, write_safetensors
from mammosae_plugin.findings.kept import write_findings
from mammosae_plugin.findings.published import Findings
from mammosae_plugin.hub.findings import stage_findings
from mammosae_plugin.hub.policies import SPACE
from mammosae_plugin.hub.space import build_space
from mammosae_plugin.latents import LatentTable, encode_rows
from mammosae_plugin.latents.encoding import seal_table
from mammosae_plugin.latents.table import ELEMENTS, FINDINGS, FORMAT_VERSION, IMAGES, PEAKS, READOUT, VOCABULARY
from mammosae_plugin.privacy.guard import PrivacyContext, check_staged
from mammosae_plugin.shards import run_shards

CONCEPTS = ("Mass", "Suspicious_Calcification")
MODELS = ("pretrained", "finetuned", "third")
GRID, D_IN, SHARD = (48, 29), 2048, 64
N_PEAKS, N_ORGANS, D_ROWS, L0_ROWS = 5, 20, 1024, 40.0
MOMENTS = ("sum", "sum_sq", "sse")

Done = Callable[[], Path | None]
"""What is measured of a step; gives the folder whose size on disk is told."""


@dataclass(frozen=True)
class Place:
    """Where a step works, and on how much."""

    folder: Path
    images: int
    latents: int
    encoders: int

    @property
    def table(self) -> Path:
        return self.folder / "tables" / f"{self.images}-{self.latents}"

    @property
    def study(self) -> Path:
        return self.folder / "studies" / f"{self.images}-{self.latents}-{self.encoders}"

    @property
    def rows(self) -> Path:
        return self.folder / "rows" / f"{self.images}-{self.latents}"


class Uncounted:
    """CPU seconds that are the benchmark's own."""

    seconds = 0.0

    @classmethod
    @contextlib.contextmanager
    def part(cls) -> Iterator[None]:
        start = time.process_time()
        yield
        cls.seconds += time.process_time() - start


# The latents table of images


def labelled(n: int) -> pd.DataFrame:
    """What is known of n images of a quarter as many patients."""
    rng, patient = np.random.default_rng(0), np.arange(n) // 4
    n_patients = int(patient[-1]) + 1
    known = pd.DataFrame(
        {
            "image_id": [f"image_{row:06}q" for row in range(n)],
            "patient_id": [f"patient_{one:06}q" for one in patient],
            "split": np.where(patient < 0.8 * n_patients, "training", "test"),
            "laterality": np.tile(["L", "L", "R", "R"], n)[:n],
            "view": np.tile(["CC", "MLO"], n)[:n],
            "age": rng.integers(40, 80, n_patients).astype(float)[patient],
            "density": rng.integers(0, 4, n_patients)[patient],
            "machine": rng.choice(["a", "b", "c"], n_patients)[patient],
        }
    )
    return known.assign(**{name: (rng.random(n_patients) < 0.08)[patient].astype(int) for name in CONCEPTS})


class Codes:
    """What an SAE says of images: latents that fire in a share of the images each, a few more strongly with a label."""

    def __init__(self, latents: int, seed: int) -> None:
        rng, n_live = np.random.default_rng(seed), latents * 850 // 16_384
        self.seed, self.latents = seed, latents
        self.live = np.sort(rng.choice(latents, n_live, replace=False)).astype(np.int32)
        self.share = rng.uniform(0.01, 0.6, n_live)
        self.weight = np.zeros((latents, len(CONCEPTS)))
        self.weight[self.live] = rng.normal(size=(n_live, len(CONCEPTS))) / 10

    def shard(self, known: pd.DataFrame, first: int, items: range, peaks: int) -> dict[str, torch.Tensor]:
        """The tensors of a shard; `first` is the number of the split's first image."""
        rng, n = np.random.default_rng([self.seed, first + items.start]), len(items)
        dense = rng.gamma(2, 0.5, (n, len(self.live))) * (rng.random((n, len(self.live))) < self.share)
        dense[:, :20] *= 1 + known[CONCEPTS[0]].to_numpy()[items.start : items.stop, None]
        fired = sparse.csr_array(dense.astype(np.float32))
        mean = sparse.csr_array((fired.data, self.live[fired.indices], fired.indptr), shape=(n, self.latents))
        with_sae = np.asarray(mean @ self.weight)
        found: dict[str, Any] = {
            "indptr": mean.indptr.astype(np.int64),
            "indices": mean.indices.astype(np.int32),
            "mean": mean.data,
            "max": mean.data * 3,
            "mean_channels": rng.standard_normal((n, D_IN), dtype=np.float32),
            "map_images": np.zeros(0, dtype=np.int64),
            "map_latents": np.zeros(0, dtype=np.int64),
            "map_channels": np.zeros(0, dtype=np.int64),
            **{f"logits_with_sae.{name}": with_sae[:, [at]].copy() for at, name in enumerate(CONCEPTS)},
            **{f"logits.{name}": with_sae[:, [at]] + rng.normal(size=(n, 1)) / 10 for at, name in enumerate(CONCEPTS)},
            "total.n_positions": np.int64(n * GRID[0] * GRID[1]),
            "total.l0": np.int64(n * 32),
            **{f"total.{name}": np.full(D_IN, float(n)) for name in MOMENTS},
        }
        if peaks:
            falling = np.linspace(1, 0.6, peaks, dtype=np.float32)
            found["peaks.latents.counts"] = np.full(mean.nnz, peaks, dtype=np.uint8)
            found["peaks.latents.positions"] = rng.integers(0, GRID[0] * GRID[1], mean.nnz * peaks, dtype=np.int32)
            found["peaks.latents.values"] = (found["max"][:, None] * falling).ravel()
        return {name: torch.from_numpy(np.asarray(value)) for name, value in found.items()}


def write_table(folder: Path, n: int, latents: int, *, seed: int = 0, peaks: int = N_PEAKS) -> None:
    """A latents table of synthetic codes, as `encode_latents` writes one behind its network."""
    with Uncounted.part():
        codes, every = Codes(latents, seed), labelled(n)
    elements = {name: version for name, version in ELEMENTS.items() if peaks or name != PEAKS}
    for split in ("training", "test"):
        known = every[every["split"] == split].reset_index()
        first = int(known["index"][0])

        def compute(items: range, known: pd.DataFrame = known, first: int = first) -> dict[str, torch.Tensor]:
            with Uncounted.part():
                return codes.shard(known, first, items, peaks)

        plan = {"synthetic": seed, "latents": latents, "split": split}
        run_shards(folder / split, plan, len(known), SHARD, compute, description=f"encode {split}")
        boxed = known[CONCEPTS[0]].to_numpy() == 1
        corners = {"xmin": 200.0, "ymin": 300.0, "xmax": 420.0, "ymax": 560.0}
        boxes = {name: np.where(boxed, value, np.nan) for name, value in corners.items()}
        write_parquet(folder / split / IMAGES, known.drop(columns="index"))
        write_parquet(folder / split / FINDINGS, known[["image_id", *CONCEPTS]].assign(**boxes))
    readout = {f"weight.{name}": torch.from_numpy(codes.weight[:, [at]].copy()) for at, name in enumerate(CONCEPTS)}
    readout |= {f"offset.{name}": torch.zeros(1, dtype=torch.float64) for name in CONCEPTS}
    write_safetensors(folder / READOUT, readout)
    vocabulary: Vocabulary = older_vocabulary(CONCEPTS)
    header = {
        "format_version": FORMAT_VERSION, "elements": elements, PEAKS: peaks, "splits": ["training", "test"],
        "concepts": list(CONCEPTS), VOCABULARY: vocabulary.to_json(), "heads": list(CONCEPTS),
        "hook_name": "bn2.hook_out", "readout": "linear", "gradcam": [], "d_sae": latents, "d_in": D_IN,
        "grid": list(GRID), "image_size": [1520, 912], "provenance": {"inputs": {}, "sae": {}},
    }  # fmt: skip
    seal_table(folder, header)


def table_written(at: Place) -> Done:
    shutil.rmtree(at.table, ignore_errors=True)

    def do() -> Path:
        write_table(at.table, at.images, at.latents)
        return at.table

    return do


def table_read(at: Place) -> Done:
    def do() -> None:
        table = LatentTable(at.table)
        assert table.mean_latents.shape == table.max_latents.shape == (at.images, at.latents)
        assert len(table.logits(CONCEPTS[0])) == len(table.mean_channels) == at.images

    return do


def opened(at: Place) -> LatentTable:
    """The table with its codes and labels read."""
    table = LatentTable(at.table)
    assert len(table.images) == table.mean_latents.shape[0] == table.max_latents.shape[0]
    return table


def places_of_a_latent(at: Place) -> Done:
    table = opened(at)
    latent = int(table.live_latents("test")[0])
    return lambda: nothing(table.peaks([latent]))


def column_of_a_latent(at: Place) -> Done:
    table = opened(at)
    latent = int(table.live_latents("test")[0])
    return lambda: nothing(table.max_latents[:, [latent]].toarray())


def nothing(_: object) -> None:
    return None


def ranked(table: LatentTable) -> Any:
    return rank_latents(class_mean_latents(table, CONCEPTS[0], split="training", score="centered_mean"))


def ranking(at: Place) -> Done:
    table = opened(at)
    return lambda: nothing(ranked(table))


def swept(at: Place) -> Done:
    table = opened(at)
    order = ranked(table)
    return lambda: nothing(sweep(table, order, concept=CONCEPTS[0]))


def evidence(at: Place) -> Done:
    table = opened(at)
    return lambda: nothing(latent_evidence(table, CONCEPTS[0]))


def confounded(at: Place) -> Done:
    table = opened(at)
    known = latent_evidence(table, CONCEPTS[0], n_bootstrap=0, n_permutations=1)
    return lambda: nothing(confounders(table, CONCEPTS[0], evidence=known))


def neighbours(at: Place) -> Done:
    table = opened(at)
    directions = np.random.default_rng(0).standard_normal((at.latents, D_IN), dtype=np.float32)

    def do() -> None:
        firing_neighbours(table)
        decoder_neighbours(directions, table.live_latents("test"))

    return do


def audited(at: Place) -> Done:
    folders = [at.table.with_name(f"{at.table.name}-{seed}") for seed in range(1, 6)]
    for seed, folder in enumerate(folders, start=1):
        write_table(folder, at.images, at.latents, seed=seed, peaks=0)
    others = list(map(LatentTable, folders))
    controls = {"untrained": others[3:4], "frozen decoder": others[4:]}
    return lambda: nothing(audit(LatentTable(at.table), others[:3], controls, concepts=CONCEPTS))


# What is told of it: findings and the Space


def made_study(at: Place) -> dict[str, Any]:
    """What a study found at its layer, under one encoder or more, each with two classifiers and a table."""
    results: dict[str, Any] = synthetic_results()
    for name, key in (("models", "name"), ("sae_quality", "model")):
        results[name] = with_third(results[name], key)
    for name in ("reconstruction", "rankings", "interventions", "localization"):
        results[name] = with_third(results[name], "model")
    wanted = MODELS[: at.encoders]
    for name, key in (("models", "name"), *((one, "model") for one in ("sae_quality", "reconstruction", "rankings"))):
        results[name] = [row for row in results[name] if row[key] in wanted]
    for name in ("interventions", "localization"):
        results[name] = [row for row in results[name] if row["model"] in wanted]
    results["named_latents"] = {}
    results["tables"] = [{"model": model, "concept": one, "table": model} for model in wanted for one in CONCEPTS]
    results["sae"] |= {"d_in": D_IN, "d_sae": at.latents, "training": {}}
    analysis = {"score": "centered_mean", "top": 10}
    results["config"] = {"title": results["title"], "analysis": analysis, "sae": {}, "models": [], "data": {}}
    for model in wanted:
        folder = at.study / "work" / "latents" / model
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_symlink():
            folder.symlink_to(at.table.resolve())
    known = labelled(at.images)
    ids = frozenset(known["image_id"]) | frozenset(known["patient_id"])
    about = KNOWN["phantom"]
    PrivacyContext(ids, (about.name,), about=(about,), concepts=frozenset(CONCEPTS)).keep(at.study)
    return results


def with_third(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [*rows, *({**row, key: "third"} for row in rows if row[key] == "finetuned")]


def findings_written(at: Place) -> Done:
    results = made_study(at)
    shutil.rmtree(at.study / "results", ignore_errors=True)

    def do() -> Path:
        write_findings(at.study, {"final": results})  # type: ignore[dict-item]
        return at.study / "results" / "findings"

    return do


def findings_staged(at: Place) -> Done:
    shutil.rmtree(at.study / "staged", ignore_errors=True)

    def do() -> Path:
        return stage_findings(at.study, at.study / "staged")

    return do


def space_built(at: Place) -> Done:
    shutil.rmtree(at.study / "space", ignore_errors=True)
    return lambda: build_space(Findings.of_study(at.study), at.study / "space")


def space_checked(at: Place) -> Done:
    context = PrivacyContext.of_study(at.study)
    return lambda: nothing(check_staged(at.study / "space", SPACE, context))


# Embeddings


def embeddings_of(at: Place) -> pd.DataFrame:
    rng, n = np.random.default_rng(1), at.images
    known = pd.DataFrame({f"organ_{at}": (rng.random(n) < 0.1).astype(np.int8) for at in range(N_ORGANS)})
    known.insert(0, "image_id", [f"ct/s{row // 300:04d}/z/{row % 300:04d}" for row in range(n)])
    known.insert(1, "patient_id", [f"s{row // 300:04d}" for row in range(n)])
    return known.assign(split=np.where(np.arange(n) < 0.8 * n, "training", "test"))


def embeddings_written(at: Place) -> Done:
    shutil.rmtree(at.rows, ignore_errors=True)
    at.rows.mkdir(parents=True)

    def do() -> Path:
        write_vectors(at.rows / "rows.parquet", embeddings_of(at), noise(at.images, D_ROWS))
        return at.rows

    return do


def rows_encoded(at: Place) -> Done:
    shutil.rmtree(at.rows / "table", ignore_errors=True)
    sae = sae_of(D_ROWS, [128, 512, 2048, at.latents], L0_ROWS)

    def do() -> Path:
        encode_rows(at.rows / "rows.parquet", sae, at.rows / "table")
        return at.rows / "table"

    return do


def rows_read(at: Place) -> Done:
    def do() -> None:
        table = LatentTable(at.rows / "table")
        assert table.codes().shape == (len(table.images), at.latents)

    return do


def rows_opened(at: Place) -> LatentTable:
    table = LatentTable(at.rows / "table")
    assert table.codes().shape == (len(table.images), at.latents)
    return table


def rows_evidence(at: Place) -> Done:
    table = rows_opened(at)
    return lambda: nothing(latent_evidence(table, "organ_0"))


def rows_meaning(at: Place) -> Done:
    table = rows_opened(at)
    return lambda: nothing(monosemanticity(table, n_bootstrap=0, n_draws=100))


def rows_retrieved(at: Place) -> Done:
    table = rows_opened(at)
    return lambda: nothing(retrieve(table, table.images["image_id"][0]))


def rows_audited(at: Place) -> Done:
    """Tables of one SAE under six names: what is read and scored is as much as with six SAEs."""
    table = at.rows / "table"
    others = [LatentTable(table) for _ in range(5)]
    controls = {"untrained": others[3:4], "frozen decoder": others[4:]}
    return lambda: nothing(audit(LatentTable(table), others[:3], controls))


# Images


def phantoms(at: Place) -> VinDrMammo:
    folder, size = at.folder / "phantoms" / str(at.images), (1520, 912)
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_phantoms(folder, n_patients=at.images // 4, images_per_patient=4, image_size=size)
        (folder / "made").touch()
    return VinDrMammo(folder, image_size=size)


def images_decoded(at: Place) -> Done:
    images = phantoms(at)

    def do() -> None:
        for number in range(len(images)):
            assert images[number]["image"].shape[-2:] == (1520, 912)

    return do


def images_screened(at: Place) -> Done:
    images = phantoms(at)
    listed = at.folder / "quarantine.csv", at.folder / "suspects.csv"
    return lambda: nothing(
        screen_images(images, listed[0], suspects_file=listed[1], max_bad_share=1, max_suspect_share=1)
    )


def images_hashed(at: Place) -> Done:
    images = phantoms(at)
    return lambda: nothing(images.fingerprint)


STEPS: dict[str, Callable[[Place], Done]] = {
    "table written": table_written,
    "table read": table_read,
    "places of one latent": places_of_a_latent,
    "activations of one latent": column_of_a_latent,
    "ranking": ranking,
    "sweep": swept,
    "evidence": evidence,
    "confounders": confounded,
    "neighbours": neighbours,
    "audit": audited,
    "findings written": findings_written,
    "findings staged": findings_staged,
    "Space built": space_built,
    "Space guarded": space_checked,
    "embeddings written": embeddings_written,
    "rows encoded": rows_encoded,
    "rows read": rows_read,
    "rows: evidence": rows_evidence,
    "rows: meaning": rows_meaning,
    "rows: one image retrieved": rows_retrieved,
    "rows: audit": rows_audited,
    "images decoded": images_decoded,
    "images screened": images_screened,
    "images hashed": images_hashed,
}


def n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured(folder: Path, step: str, size: Sequence[int]) -> dict[str, float] | None:
    """Do a step in a process of its own, which has all that is imported here from the beginning; None if it failed."""
    context = multiprocessing.get_context("fork")
    read, write = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(folder, step, size, write))
    child.start()
    write.close()
    found: dict[str, float] | None = None
    with contextlib.suppress(EOFError):
        found = read.recv()
    child.join()
    return found


def _measure(folder: Path, step: str, size: Sequence[int], to: Any) -> None:
    found = {"memory_before_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    do = STEPS[step](Place(folder, *size))
    Uncounted.seconds, start, clock = 0.0, time.process_time(), time.perf_counter()
    written = do()
    found |= {"cpu_s": time.process_time() - start - Uncounted.seconds, "wall_s": time.perf_counter() - clock}
    found["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    to.send(found | ({} if written is None else {"disk_mb": n_bytes(written) / 1e6}))
