"""Every role of a study of phantoms held against the truth: what erasing the finding does to the latent.

    mammosae demo --output DEMO && python benchmarks/role_truth.py DEMO/study.yaml

The positive test images are drawn again without the concept, the same to the pixel elsewhere, and encoded by the same
network and SAE. A latent follows the finding when its mean activation falls by at least 10 % without it, and by at
least three standard errors of the paired differences. The table counts named latents by role and truth; `concept` for
one that does not follow, and `background` for one that does, are wrong, and make the exit code 1.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import preprocess
from mammosae_plugin.datasets.phantoms import draw_phantom
from mammosae_plugin.study import Study
from mammosae_plugin.study.images import TEST
from mammosae_plugin.study.inputs import ModelPair
from mammosae_plugin.study.layer import LayerStudy

LEAST_SHARE = 0.1
STANDARD_ERRORS = 3.0
WRONG = {("concept", False), ("background", True)}


def truths(study: Study) -> pd.DataFrame:
    """One row per named latent: layer, model, concept, latent, role, share (of its activation due to the finding) and
    follows."""
    rows = [row for layer in study.layers for pair in layer.study.pairs for row in _of_pair(layer, pair)]
    return pd.DataFrame(rows, columns=["layer", "model", "concept", "latent", "role", "share", "follows"])


def _of_pair(layer: LayerStudy, pair: ModelPair) -> list[dict[str, object]]:
    named = layer.named_latents().get(pair.key, [])
    if not named:
        return []
    latents = [row["latent"] for row in named]
    images = layer.study.split(TEST).images
    ids = images.loc[images[pair.concept] == 1, "image_id"]
    root = layer.config.data.root
    assert root is not None
    with HookedVisionModel(layer.study.classifier(pair), [layer.module]) as model:
        shown, erased = (
            np.stack([_means(layer, model, draw_phantom(root, one, without=without), one)[latents] for one in ids])
            for without in ((), (pair.concept,))
        )
    difference = shown - erased
    share = difference.mean(axis=0) / np.maximum(shown.mean(axis=0), 1e-12)
    error = difference.std(axis=0, ddof=1) / np.sqrt(len(difference))
    follows = (share >= LEAST_SHARE) & (difference.mean(axis=0) >= STANDARD_ERRORS * error)
    place = {"layer": layer.name, "model": pair.model, "concept": pair.concept}
    return [
        {**place, "latent": row["latent"], "role": row["role"], "share": round(float(part), 3), "follows": bool(does)}
        for row, part, does in zip(named, share, follows, strict=True)
    ]


@torch.inference_mode()
def _means(layer: LayerStudy, model: HookedVisionModel, pixels: np.ndarray, image_id: str) -> np.ndarray:
    value = model.read(preprocess(pixels, image_id)[None], layer.hook_name).value[0]
    means: np.ndarray = layer.sae.encode(value.reshape(-1, value.shape[-1])).double().mean(dim=0).numpy()
    return means


def confusion(found: pd.DataFrame) -> pd.DataFrame:
    """Named latents by role and truth."""
    truth = found["follows"].map({True: "follows the finding", False: "does not"})
    return pd.crosstab(found["role"], truth, rownames=["role"], colnames=["truth"])


def wrong(found: pd.DataFrame) -> pd.DataFrame:
    """The named latents whose role is not true."""
    return found[
        [(role, bool(follows)) in WRONG for role, follows in zip(found["role"], found["follows"], strict=True)]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path, help="the study.yaml of a study of phantoms, which has been run")
    found = truths(Study(load_config(parser.parse_args().config)))
    print(found.to_string(index=False), confusion(found), f"wrong: {len(wrong(found))} of {len(found)}", sep="\n\n")
    return int(len(wrong(found)) > 0)


if __name__ == "__main__":
    sys.exit(main())
