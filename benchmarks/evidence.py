"""Seconds and memory of the evidence on every latent: 4,000 test images, 16,384 latents of which 850 fire.

    python benchmarks/evidence.py [--images 4000 --training 4000 --live 850 --bootstrap 1000]

Random sparse codes of four images per patient, with a linear readout and six covariates; no maps. Printed are the
seconds of `latent_evidence` without resamples, of `confounders` beside it, of both kinds of resamples, and of
`group_performance`.
"""

import argparse
import resource
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import sparse

from mammosae_plugin.analysis import confounders, group_performance, latent_evidence
from mammosae_plugin.measures.units import EvaluationRows


class SyntheticTable:
    """What the analyses ask of a latents table."""

    concepts, heads, readout_kind, grid, is_of_rows = ("Mass",), ("Mass",), "linear", (1, 1), False
    folder = "TABLE"

    def __init__(self, n: int, n_training: int, d_sae: int, n_live: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.d_sae, total = d_sae, n + n_training
        patient = np.arange(total) // 4
        live = np.sort(rng.choice(d_sae, n_live, replace=False))
        share = rng.uniform(0.01, 0.6, n_live)
        codes = np.where(rng.random((total, n_live)) < share, rng.gamma(2, 0.5, (total, n_live)), 0).astype(np.float32)
        label = (rng.random(patient.max() + 1) < 0.08)[patient].astype(int)
        codes[:, :20] *= 1 + label[:, None]
        wide = sparse.csr_array(codes).tocoo()
        self.mean_latents = sparse.csr_array((wide.data, (wide.row, live[wide.col])), shape=(total, d_sae))
        self.max_latents = self.mean_latents * np.float32(3)
        weight = np.zeros((d_sae, 1))
        weight[live, 0] = rng.normal(size=n_live) / 10
        self._readout = SimpleNamespace(offset=np.zeros(1), weight=weight)
        self._logits = np.asarray(self.mean_latents @ weight)
        of_patient = {
            "age": rng.integers(40, 80, patient.max() + 1).astype(float),
            "density": rng.integers(0, 4, patient.max() + 1),
            "machine": rng.choice(["a", "b", "c"], patient.max() + 1),
            "site": rng.choice(["x", "y"], patient.max() + 1),
        }
        self.images = pd.DataFrame(
            {
                "image_id": [f"i{row}" for row in range(total)],
                "patient_id": [f"p{one}" for one in patient],
                "split": np.where(np.arange(total) < n, "test", "training"),
                "view": np.tile(["CC", "MLO"], total)[:total],
                "laterality": np.tile(["L", "L", "R", "R"], total)[:total],
                **{name: values[patient] for name, values in of_patient.items()},
                "Mass": label,
            }
        )
        self.findings = pd.DataFrame()

    def rows(self, concept: str, *, split: str, unit: str = "image") -> EvaluationRows:  # noqa: ARG002
        chosen = np.flatnonzero(self.images["split"] == split)
        patients = self.images["patient_id"].to_numpy(dtype=object)[chosen]
        return EvaluationRows(chosen, self.images[concept].to_numpy()[chosen], patients)

    def classes(self, concept: str) -> tuple[int, ...]:  # noqa: ARG002
        return (0, 1)

    def live_latents(self, split: str = "training") -> np.ndarray:
        return np.unique(self.mean_latents[np.flatnonzero(self.images["split"] == split)].indices).astype(np.int64)

    def logits(self, head: str) -> np.ndarray:  # noqa: ARG002
        return self._logits

    logits_with_sae = logits

    def readout(self, head: str) -> SimpleNamespace:  # noqa: ARG002
        return self._readout

    def reconstruction_sums(self, split: str) -> dict[str, object]:  # noqa: ARG002
        return {"n_positions": 10, "sse": np.ones(2), "sum": np.zeros(2), "sum_sq": 10 * np.ones(2), "l0": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--training", type=int, default=4000)
    parser.add_argument("--live", type=int, default=850)
    parser.add_argument("--bootstrap", type=int, default=1000)
    options = parser.parse_args()
    table = SyntheticTable(options.images, options.training, 16_384, options.live, 0)

    def timed(what: str, do: object) -> object:
        start = time.perf_counter()
        found = do()  # type: ignore[operator]
        print(f"{what:<58} {time.perf_counter() - start:6.1f} s")
        return found

    evidence = timed("latent_evidence, no resamples", lambda: latent_evidence(table, "Mass", n_bootstrap=0))
    timed(
        "confounders beside it (850 regressions, training split)", lambda: confounders(table, "Mass", evidence=evidence)
    )
    whole = f"latent_evidence with {options.bootstrap} resamples of everything"
    timed(whole, lambda: latent_evidence(table, "Mass", n_bootstrap=options.bootstrap))
    timed("group_performance, 6 covariates, 1,000 resamples", lambda: group_performance(table, "Mass"))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
