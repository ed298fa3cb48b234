"""The audit of SAEs on real images that packages bring along: the tables of docs/scores.md.

    python benchmarks/audit.py digits
    python benchmarks/audit.py brain --output audit-brain

digits: the pixels of scikit-learn's 1,797 handwritten digits, 64 numbers each; labels are the digits, and every image
is a group of its own, as the writers are not told. brain: every second slice along three axes of the MNI152 template
that nilearn brings along, as pooled vectors of a small vision transformer with random weights; labels are the axis and
which tissues are in the slice, groups are slabs of ten neighbouring slices. Each trains a batch top-k SAE with seed 0
and audits it.
"""

import argparse
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

from mammosae_plugin.activations import ActivationStore, extract_activations, write_store
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.study.audit import audit_sae
from mammosae_plugin.training import SAETraining, train_sae

SETTINGS = {"architecture": "batchtopk", "batch_size": 256, "lr": 2e-3, "dead_feature_window": 50}
SIDE = 64


def digits(folder: Path) -> tuple[ActivationStore, pd.DataFrame, Vocabulary, SAETraining]:
    pixels, digit = load_digits(return_X_y=True)
    n = len(pixels)
    images = pd.DataFrame({"image_id": [f"digit_{number:04d}" for number in range(n)], "split": "training"})
    images["patient_id"], images["digit"] = images["image_id"], digit
    described = {"image_ids": images["image_id"].tolist(), "patients": list(range(n)), "splits": ["training"]}
    described |= {"hook_name": "pixels", "model": "none", "architecture": "pixels", "source": {}, "image_size": [8, 8]}
    described |= {"dataset": "digits", "dataset_name": "digits"}
    numbers = torch.arange(n)
    rows = torch.tensor(pixels / 16, dtype=torch.float32)
    store = write_store(folder / "rows", [(rows, numbers, torch.zeros_like(numbers))], described)
    concept = Concept("digit", "multiclass", tuple(map(str, range(10))))
    more = {"k": 8, "d_sae": 128, "epochs": 60, "normalize_activations": "expected_average_only_in"}
    return store, images, Vocabulary([concept]), SAETraining(**SETTINGS, **more)


def brain(folder: Path) -> tuple[ActivationStore, pd.DataFrame, Vocabulary, SAETraining]:
    import nibabel
    from timm.models.vision_transformer import VisionTransformer

    from mammosae_plugin.adapters import HookedVisionModel
    from mammosae_plugin.datasets import Slicing, VolumeFolder

    def template(kind: str) -> Any:
        name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        return nibabel.load(str(files("nilearn") / "datasets" / "data" / name))

    image, place = template("t1"), folder / "volumes"
    (place / "masks" / "mni152").mkdir(parents=True, exist_ok=True)
    nibabel.save(image, place / "mni152.nii.gz")
    for name, kind in (("grey_matter", "gm"), ("white_matter", "wm")):
        mask = (np.asarray(template(kind).dataobj) > 127).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), place / "masks" / "mni152" / f"{name}.nii.gz")
    slicing = Slicing(axes=("x", "y", "z"), window=None)
    every = VolumeFolder(place, modality="mri", masks="masks/{id}/{label}.nii.gz", slicing=slicing, image_size=SIDE)
    slices = every.select(image_ids=every.images["image_id"][::2].tolist())
    about = slices.metadata()
    images = slices.images.assign(split="training", axis=about["slice_orientation"].map({"x": 0, "y": 1, "z": 2}))
    images["patient_id"] = about["slice_orientation"] + (about["slice_idx"].astype(int) // 10).astype(str)
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
    with HookedVisionModel(VisionTransformer(**sizes, num_classes=0, global_pool="avg"), ["fc_norm"]) as model:
        store = extract_activations(model, slices, folder / "rows", hook_name="fc_norm", batch_size=16)
    concepts = [Concept("axis", "multiclass", ("x", "y", "z")), *slices.vocabulary.values()]
    more = {"k": 6, "d_sae": 96, "epochs": 300, "normalize_activations": "expected_average_only_in"}
    return store, images, Vocabulary(concepts), SAETraining(**SETTINGS, **more)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=["digits", "brain"])
    parser.add_argument("--output", type=Path, help="keep everything there")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        store, images, vocabulary, settings = {"digits": digits, "brain": brain}[arguments.images](folder)
        sae = train_sae(store, folder / "sae", settings)
        start, cpu = time.time(), time.process_time()
        card = audit_sae(sae, store, folder / "audit", images=images, vocabulary=vocabulary, seeds=arguments.seeds)
        print(card.as_text())
        print(f"audited in {time.time() - start:.0f} s, of which {time.process_time() - cpu:.0f} s of processor time")
