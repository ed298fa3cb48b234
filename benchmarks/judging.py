"""Do scores of names tell right names from wrong ones? On phantoms, with planted latents and judges of known worth.

    python benchmarks/judging.py [--seeds 3] [--patients 500] [--folder judged]

Phantoms as in `names.py`. Planted latents fire in a given share of the images that have one of seven attributes, and in
5 % of the others as strongly; beside them are as many latents that fire at random in 20 % of the images, which bear the
same names. Judges are labels (who know all), labels of which one answer in four is another, chance, and a text encoder:
the words of wordllama and a linear map from an encoder's mean channels, fitted on other phantoms. Names are judged in
the test split, by 10 or 40 images in which a latent fires and as many others. Prints a table: means over latents,
beside the names of other latents, and which names stay.

Then of the latents of an SAE that is trained on the encoder's map: names by labels, of the training split, that stay in
the test split by labels, as they are and with the latents' activations there dealt out among images.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from names import FINDINGS, MAP, PIXELS, SIZE, phantoms, taught
from scipy.sparse import csr_array

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.word_embeddings import load_word_embeddings
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.interpretation import LabelJudge, LatentNames, TextJudge, judge_names, name_by_labels
from mammosae_plugin.interpretation.attributes import attributes_of
from mammosae_plugin.interpretation.judges import Task
from mammosae_plugin.interpretation.names import COLUMNS
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.training import SAETraining, train_sae

WORDS = ("a mass", "calcifications", "architectural distortion")
HITS, N_PLANTED, WRONG, N_SHOWN = (1.0, 0.8, 0.6), 42, 0.25, (10, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("judged"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=12, help="of the encoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    of_sae: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        folder = options.folder / str(seed)
        images = phantoms(folder / "images", options.patients, 100 + seed, letters=True)
        classifier = taught(folder, options.patients, options.epochs, seed)
        network = classifier.network.features
        other = VinDrMammo(folder / "taught", image_size=SIZE).with_preprocessing(PIXELS)
        tower = Tower(channels(network, other), attributes(other.images))
        dense, has = channels(network, images), attributes(images.images)
        for hits in HITS:
            for n in N_SHOWN:
                found += judged(images.images, dense, has, tower, hits, n, seed)
        of_sae += trained(classifier, images, folder, seed)
        print(f"seed {seed} is done", flush=True)
    frame = pd.DataFrame(found)
    print(f"\n{frame.groupby(['judge', 'fires in', 'n'], sort=False).mean(numeric_only=True).round(3).to_string()}")
    print(f"\n{pd.DataFrame(of_sae).groupby(['activations', 'n'], sort=False).sum().to_string()}")


def attributes(images: pd.DataFrame) -> pd.DataFrame:
    """What names of planted latents can be."""
    found = {word: images[finding] for word, finding in zip(WORDS, FINDINGS, strict=True)}
    found |= {"a letter beside the breast": images["marker"], "an oblique view": images["view"] == "MLO"}
    found |= {"a right breast": images["laterality"] == "R", "dense tissue": images["density"] >= 2}
    return pd.DataFrame(found).astype(float)


@torch.inference_mode()
def channels(network: torch.nn.Module, images: VinDrMammo) -> np.ndarray:
    """(n, d) mean channels of the encoder's last map."""
    inputs = torch.stack([images[at]["image"] for at in range(len(images))])
    return np.concatenate([network(part).mean(dim=(2, 3)).numpy() for part in inputs.split(64)])


class Tower:
    """Texts by wordllama, and images by a linear map onto the sum of the texts of what they have."""

    def __init__(self, features: np.ndarray, has: pd.DataFrame) -> None:
        self._words = load_word_embeddings()
        texts = self.embed_texts(list(has.columns))
        present = has.to_numpy() - has.to_numpy().mean(axis=0)
        self._middle, self._spread = features.mean(axis=0), features.std(axis=0) + 1e-6
        standard = (features - self._middle) / self._spread
        ridge = standard.T @ standard + len(standard) * 0.01 * np.eye(standard.shape[1])
        self._map = np.linalg.solve(ridge, standard.T @ (present @ texts))

    def embed_texts(self, texts: Any) -> np.ndarray:
        return self._words.embed_texts(texts)

    def project(self, features: Any) -> np.ndarray:
        return (np.asarray(features, dtype=np.float64) - self._middle) / self._spread @ self._map


class Changed:
    """A judge of which a share of the answers is another one, at random."""

    def __init__(self, judge: Any, share: float, name: str, seed: int) -> None:
        self.name, self._judge, self._share, self._rng = name, judge, share, np.random.default_rng(seed)

    def unread(self, name: str) -> str:
        return self._judge.unread(name)

    def answer(self, tasks: dict[str, Task]) -> dict[str, Any]:
        found = dict(self._judge.answer(tasks))
        for key, task in tasks.items():
            if task.kind == "detection":
                turned = self._rng.random(len(task.rows)) < self._share
                found[key] = tuple(np.where(turned, 1 - np.array(found[key]), found[key]).tolist())
            elif self._rng.random() < self._share and task.kind == "intruder":
                found[key] = (int(self._rng.choice([place for place in range(5) if place != found[key][0]])),)
            elif self._rng.random() < self._share:
                found[key] = tuple(self._rng.permutation(len(task.names)).tolist())
        return found


class Guess:
    """Answers at random."""

    name = "chance"

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def unread(self, name: str) -> str:  # noqa: ARG002
        return ""

    def answer(self, tasks: dict[str, Task]) -> dict[str, Any]:
        made = {
            "detection": lambda task: self._rng.integers(0, 2, len(task.rows)),
            "intruder": lambda task: self._rng.integers(0, len(task.rows), 1),
            "ranking": lambda task: self._rng.permutation(len(task.names)),
        }
        return {key: tuple(made[task.kind](task).tolist()) for key, task in tasks.items()}


def judged(
    images: pd.DataFrame, dense: np.ndarray, has: pd.DataFrame, tower: Tower, hits: float, n: int, seed: int
) -> list[dict[str, Any]]:
    """What each judge says of planted and of random latents."""
    rng = np.random.default_rng(seed)
    truth = [has.columns[number % len(has.columns)] for number in range(N_PLANTED)]
    own = has[truth].to_numpy() == 1
    fires = np.where(own, rng.random(own.shape) < hits, rng.random(own.shape) < 0.05)
    at_random = rng.random((len(images), N_PLANTED)) < 0.2
    codes = csr_array(np.hstack([fires, at_random]) * rng.uniform(0.5, 2, (len(images), 2 * N_PLANTED)))
    table = SimpleNamespace(
        images=images, splits=("training", "test"), folder=Path("phantoms"), d_sae=codes.shape[1], is_of_rows=False,
        max_latents=codes, mean_latents=codes, mean_channels=dense,
    )  # fmt: skip
    labels = LabelJudge(has, seed=seed)
    judges = (
        labels,
        Changed(labels, WRONG, "labels, 1 in 4 wrong", seed),
        TextJudge(tower, dense, seed=seed),
        Guess(seed),
    )
    found = []
    for judge in judges:
        names = judge_names(by_hand([*truth, *truth]), table, None, judge, n=n, seed=seed)
        planted, random = names.latents[:N_PLANTED], names.latents[N_PLANTED:]
        columns = ["detection", "detection_hard", "intruder", "ranking_1", "ranking_2"]
        row: dict[str, Any] = {
            "judge": judge.name,
            "fires in": f"{hits:.0%}",
            "n": n,
            **planted[columns].mean().to_dict(),
        }
        row["shuffled"] = planted["detection_shuffled"].mean()
        row["random latents"] = random["detection"].mean()
        row |= {"kept": (~planted["abstained"]).mean(), "random kept": (~random["abstained"]).mean()}
        found.append(row)
    return found


def trained(classifier: Any, images: VinDrMammo, folder: Path, seed: int) -> list[dict[str, Any]]:
    """How many names by labels of an SAE's latents stay, and how many if the latents fired in other images."""
    with HookedVisionModel(classifier.network, [MAP]) as model:
        rows = extract_activations(
            model, images.select(split="training"), folder / "rows", hook_name=MAP, batch_size=16
        )
        settings: dict[str, Any] = {"architecture": "topk", "k": 4, "d_sae": 128, "lr": 2e-3}
        sae = train_sae(
            rows, folder / "sae", SAETraining(epochs=2, batch_size=512, dead_feature_window=100, **settings)
        )
        table = encode_latents(model, sae, images, folder / "table", heads={}, batch_size=16, peaks=0)
    names = name_by_labels(table, check="none")
    judge = LabelJudge(attributes_of(table, None, None, "training"), seed=seed)
    codes, test = table.max_latents.toarray(), np.flatnonzero(table.images["split"] == "test")
    dealt = codes.copy()
    dealt[test] = np.random.default_rng(seed).permuted(codes[test], axis=0)
    found = []
    for what, own in (("as they are", codes), ("dealt out", dealt)):
        changed = SimpleNamespace(
            images=table.images, splits=table.splits, folder=table.folder, d_sae=table.d_sae, is_of_rows=False,
            max_latents=csr_array(own), mean_latents=csr_array(own), mean_channels=table.mean_channels,
        )  # fmt: skip
        for n in N_SHOWN:
            stay = judge_names(names, changed, None, judge, n=n, seed=seed)
            counts = {"named": names.n_named, "stay": stay.n_named}
            everywhere = stay.about["judging"]["n_everywhere"]
            found.append({"activations": what, "n": n, **counts, "fire nearly everywhere": everywhere})
    return found


def by_hand(called: list[str]) -> LatentNames:
    """Names that were given in the training split."""
    latents = pd.DataFrame({"latent": range(len(called)), "name": called}).assign(
        method="by hand", score=1.0, low=np.nan, high=np.nan, chance=np.nan, p=np.nan, q=np.nan, n=0, abstained=False,
        reason="",
    )  # fmt: skip
    listed = pd.DataFrame({"latent": range(len(called)), "rank": 1, "name": called})
    return LatentNames("by hand", latents[list(COLUMNS)], listed, {"split": "training"})


if __name__ == "__main__":
    main()
