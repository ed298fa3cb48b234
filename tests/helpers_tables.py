"""An in-memory latents table made by a small real SAE on random features, so that all its numbers are consistent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.units import EvaluationRows, EvaluationUnit, grouped_rows

N_CLASS = {"Mass": 2, "Suspicious_Calcification": 2, "density": 4}
PLANTED = {"Mass": 3, "Suspicious_Calcification": 7}


class Readout(NamedTuple):
    offset: np.ndarray
    weight: np.ndarray


@dataclass
class MemoryTable:
    """The interface of `LatentTable`, and the features, SAE and heads that it was made from, for slow references."""

    features: np.ndarray  # (n_images, h, w, d) what the SAE reads
    latents: np.ndarray  # (n_images, h, w, d_sae)
    decoder: np.ndarray  # (d_sae, d)
    bias: np.ndarray  # (d,)
    head_weight: dict[str, np.ndarray]  # (d, n_out)
    head_bias: dict[str, np.ndarray]  # (n_out,)
    images: pd.DataFrame
    findings: pd.DataFrame
    image_size: tuple[int, int] = (40, 32)
    concepts: tuple[str, ...] = ("Mass", "Suspicious_Calcification")
    provenance: dict[str, object] = field(default_factory=dict)
    hook_name: str = "bn2.hook_out"
    readout_kind: str = "linear"
    gradcam_heads: tuple[str, ...] = ()

    @property
    def mean_channels(self) -> np.ndarray:
        return self.features.mean(axis=(1, 2)).astype(np.float32)

    def channel_maps(self, channels: np.ndarray, image_row: int) -> np.ndarray:
        return np.moveaxis(self.features[image_row][..., np.asarray(channels)], -1, 0).astype(np.float32)

    def gradcam(self, head: str, image_row: int) -> np.ndarray:
        weight = self.head_weight[head][:, 0]
        return np.maximum(self.features[image_row] @ weight, 0).astype(np.float32) / np.prod(self.grid)

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.head_weight)

    @property
    def d_sae(self) -> int:
        return self.latents.shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        return self.latents.shape[1:3]

    @property
    def mean_latents(self) -> csr_array:
        return csr_array(self.latents.mean(axis=(1, 2)).astype(np.float32))

    @property
    def max_latents(self) -> csr_array:
        return csr_array(self.latents.max(axis=(1, 2)).astype(np.float32))

    def read_out(self, feature_map: np.ndarray, head: str) -> np.ndarray:
        """Logits of feature maps (..., h, w, d), the way the network computes them: average pool, linear head."""
        return feature_map.mean(axis=(-3, -2)) @ self.head_weight[head] + self.head_bias[head]

    def logits(self, head: str) -> np.ndarray:
        return self.read_out(self.features, head)

    def logits_with_sae(self, head: str) -> np.ndarray:
        return self.read_out(self.latents @ self.decoder + self.bias, head)

    def readout(self, head: str) -> Readout:
        return Readout(
            offset=self.bias @ self.head_weight[head] + self.head_bias[head],
            weight=self.decoder @ self.head_weight[head],
        )

    def classes(self, concept: str) -> tuple[int, ...]:
        return tuple(range(N_CLASS[concept]))

    def rows(self, concept: str, *, split: str, unit: str = "image") -> EvaluationRows:
        if (counted := EvaluationUnit.named(unit)).has_several_images:
            kind = "binary" if N_CLASS[concept] == 2 else "graded"
            known = Concept(concept, kind, tuple(map(str, range(N_CLASS[concept]))))
            chosen = (self.images["split"] == split).to_numpy()
            return grouped_rows(self.images, known, chosen=chosen, unit=counted, where="TABLE")
        if unit == "image":
            image_rows = np.flatnonzero(self.images["split"] == split)
            labels = self.images[concept].to_numpy()[image_rows]
        else:
            image_rows = self.findings["image_row"].to_numpy()
            kept = (self.images["split"] == split).to_numpy()[image_rows]
            image_rows, labels = image_rows[kept], self.findings[concept].to_numpy()[kept]
        return EvaluationRows(image_rows, labels, self.images["patient_id"].to_numpy(dtype=object)[image_rows])

    def live_latents(self, split: str = "training") -> np.ndarray:
        return np.flatnonzero((self.latents[self.images["split"] == split] > 0).any(axis=(0, 1, 2)))

    def map_latents(self, image_row: int) -> np.ndarray:  # noqa: ARG002
        return np.arange(self.d_sae)

    def maps(self, latents: np.ndarray, image_row: int) -> np.ndarray:
        if max(latents, default=0) >= self.d_sae:
            raise InputError(f"the table keeps no map of latent {np.max(latents)}")
        return np.moveaxis(self.latents[image_row][..., np.asarray(latents, dtype=np.int64)], -1, 0).astype(np.float32)

    def boxes(self, image_row: int, concept: str) -> np.ndarray:
        own = self.findings[(self.findings["image_row"] == image_row) & (self.findings[concept] == 1)]
        return own[["xmin", "ymin", "xmax", "ymax"]].dropna().to_numpy(dtype=np.float32)

    def reconstruction_sums(self, split: str) -> dict[str, object]:
        chosen = (self.images["split"] == split).to_numpy()
        d = len(self.bias)
        features, latents = self.features[chosen].reshape(-1, d), self.latents[chosen].reshape(-1, self.d_sae)
        return {
            "n_positions": len(features),
            "sse": np.square(latents @ self.decoder + self.bias - features).sum(axis=0),
            "sum": features.sum(axis=0),
            "sum_sq": np.square(features).sum(axis=0),
            "l0": int((latents > 0).sum()),
        }


def make_table(*, n_patients: int = 24, d: int = 6, d_sae: int = 40, n_dead: int = 8, seed: int = 0) -> MemoryTable:
    """A table of four images per patient, a third of the patients in the test split, and a last block of dead latents.

    The image of a concept has a feature switched on at some positions; one latent, `PLANTED`, stands for that feature.
    Every image has a row of findings; an image with both findings has a row for each, and a third of the positive
    images have a second box.
    """
    rng = np.random.default_rng(seed)
    n_images, grid = 4 * n_patients, (5, 4)
    images = pd.DataFrame(
        {
            "image_id": [f"image{i}" for i in range(n_images)],
            "patient_id": [f"patient{i // 4}" for i in range(n_images)],
            "split": ["test" if i // 4 % 3 == 0 else "training" for i in range(n_images)],
            "Mass": rng.integers(2, size=n_images),
            "Suspicious_Calcification": (rng.random(n_images) < 0.3).astype(int),
            "density": rng.integers(4, size=n_images),
        }
    )
    features = rng.normal(size=(n_images, *grid, d)) + rng.normal(size=(n_images, 1, 1, d)) / 4
    somewhere = rng.random((n_images, *grid)) < 0.4
    features[..., 0] += 2 * somewhere * images["Mass"].to_numpy()[:, None, None]
    features[..., 1] += 2 * somewhere * images["Suspicious_Calcification"].to_numpy()[:, None, None]

    decoder = rng.normal(size=(d_sae, d))
    decoder[:, :2] /= 3
    decoder[PLANTED["Mass"]] = np.eye(d)[0]
    decoder[PLANTED["Suspicious_Calcification"]] = np.eye(d)[1]
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    bias = rng.normal(size=d) / 4
    thresholds = rng.uniform(1, 3, size=d_sae)
    thresholds[d_sae - n_dead :] = np.inf
    latents = np.maximum((features - bias) @ decoder.T - thresholds, 0)

    heads = {concept: rng.normal(size=(d, 1 if n == 2 else n)) / 4 for concept, n in N_CLASS.items()}
    heads["Mass"][0] += 2
    heads["Suspicious_Calcification"][1] += 2
    return MemoryTable(
        features=features,
        latents=latents,
        decoder=decoder,
        bias=bias,
        head_weight=heads,
        head_bias={concept: rng.normal(size=weight.shape[1]) / 4 for concept, weight in heads.items()},
        images=images,
        findings=_findings(images, rng),
    )


def _findings(images: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    records = []
    for row, image in images.iterrows():
        present = [concept for concept in ("Mass", "Suspicious_Calcification") if image[concept]]
        for concept in [*present, *present[: int(rng.random() < 1 / 3)]] or [None]:
            x, y = rng.uniform(0, 20), rng.uniform(0, 28)
            box = (x, y, x + rng.uniform(4, 12), y + rng.uniform(4, 12)) if concept else (np.nan,) * 4
            labels = {name: int(name == concept) for name in ("Mass", "Suspicious_Calcification")}
            records.append(
                {
                    "image_id": image["image_id"],
                    "image_row": row,
                    "density": image["density"],
                    **labels,
                    **dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
                }
            )
    return pd.DataFrame.from_records(records)


class CodesTable:
    """What analyses ask of a `LatentTable` of rows, made of plain arrays.

    Args:
        codes: (n, d_sae).
        labels: class numbers (n,) of each concept, -1 where one is missing; more than two are multi-class.
        patients: (n,) the patient of each row.
        embeddings: (n, d) the rows themselves, of a table that keeps them.
        split: the split of all rows, or (n,).
    """

    def __init__(
        self,
        codes: np.ndarray | csr_array,
        labels: Mapping[str, np.ndarray],
        patients: np.ndarray,
        *,
        embeddings: np.ndarray | None = None,
        split: str | np.ndarray = "test",
    ) -> None:
        self.folder = "TABLE"
        self.is_of_rows = embeddings is None
        self.max_latents = self.mean_latents = csr_array(codes)
        self.d_sae = self.max_latents.shape[1]
        self.mean_channels = embeddings
        known = {"image_id": [f"image{i}" for i in range(self.max_latents.shape[0])], "patient_id": patients}
        self.images = pd.DataFrame({**known, "split": split, **labels})
        self.splits = tuple(dict.fromkeys(self.images["split"]))
        self.vocabulary = Vocabulary(
            Concept(name)
            if max(values) < 2
            else Concept(name, "multiclass", tuple(f"c{number}" for number in range(int(max(values)) + 1)))
            for name, values in labels.items()
        )

    def classes(self, concept: str) -> tuple[int, ...]:
        return tuple(range(self.vocabulary[concept].n_classes))

    def rows(self, concept: str, *, split: str, unit: str = "image") -> EvaluationRows:  # noqa: ARG002
        chosen = np.flatnonzero((self.images["split"] == split) & (self.images[concept] >= 0))
        return EvaluationRows(
            chosen, self.images[concept].to_numpy()[chosen], self.images["patient_id"].to_numpy(dtype=object)[chosen]
        )
