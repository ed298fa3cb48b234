"""A real brain, the MNI152 template that nilearn brings along, from NIfTI to a table of latents."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from mammosae_plugin.activations import ActivationStore, extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets import Slicing, VolumeFolder
from mammosae_plugin.latents import encode_rows
from mammosae_plugin.training import SAETraining, train_sae

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("nilearn")

TISSUES = ("grey_matter", "white_matter")
SIDE = 32


def template(kind: str) -> Any:
    """A volume (197, 233, 189) of 1 mm: "t1", or how much of 255 is grey ("gm") or white matter ("wm")."""
    name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    return nibabel.load(str(files("nilearn") / "datasets" / "data" / name))


@pytest.fixture(scope="module")
def masks() -> dict[str, Any]:
    return {name: np.asarray(template(kind).dataobj) > 127 for name, kind in zip(TISSUES, ("gm", "wm"), strict=True)}


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory, masks: dict[str, Any]) -> VolumeFolder:
    """Every seventh slice along three axes."""
    folder = tmp_path_factory.mktemp("brains")
    image = template("t1")
    nibabel.save(image, folder / "mni152.nii.gz")
    (folder / "masks" / "mni152").mkdir(parents=True)
    for name, mask in masks.items():
        nibabel.save(
            nibabel.Nifti1Image(mask.astype(np.uint8), image.affine), folder / "masks" / "mni152" / f"{name}.nii.gz"
        )
    slicing = Slicing(axes=("x", "y", "z"), window=None)
    whole = VolumeFolder(folder, modality="mri", masks="masks/{id}/{label}.nii.gz", slicing=slicing, image_size=SIDE)
    assert len(whole.quarantine) == 0 and set(whole.concepts) == set(TISSUES)
    return whole.select(image_ids=whole.images["image_id"][::7].tolist())


@pytest.fixture(scope="module")
def embeddings(brain: VolumeFolder, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Pooled vectors of a small vision transformer with random weights."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0, global_pool="avg"
    )
    with HookedVisionModel(network, ["fc_norm"]) as model:
        return extract_activations(model, brain, tmp_path_factory.mktemp("rows"), hook_name="fc_norm", batch_size=8)


def test_slices_and_their_tissues_are_those_of_the_volume(brain: VolumeFolder, masks: dict[str, Any]) -> None:
    voxels = np.asarray(template("t1").dataobj).astype(np.float64)
    low, high = np.percentile(voxels[voxels > 0], [1, 99])
    about = brain.metadata()
    assert about["slice_orientation"].value_counts().min() > 15 and set(about["slice_orientation"]) == set("xyz")
    for row in range(0, len(brain), 11):
        axis, number = "xyz".index(about["slice_orientation"][row]), int(about["slice_idx"][row])
        plane = voxels.take(number, axis)
        side = min(plane.shape)
        square = tuple(slice((length - side) // 2, (length - side) // 2 + side) for length in plane.shape)
        for name in TISSUES:
            assert brain.images[name][row] == int(masks[name].take(number, axis)[square].any())
        gray = ((plane[square].clip(low, high) - low) / (high - low) * 255).astype(np.uint8)
        picture = np.rot90(np.asarray(Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
        expected = picture[:, ::-1] if axis < 2 else picture
        assert np.abs(brain.gray(row).astype(int) - expected.astype(int)).max() <= 1
    both = brain.images[list(TISSUES)].sum(axis=1)
    assert (both == 2).mean() > 0.5


def test_a_table_of_a_nested_sae_on_their_embeddings(
    brain: VolumeFolder, embeddings: ActivationStore, tmp_path: Path
) -> None:
    assert embeddings.n_rows == len(brain)
    nested = SAETraining(
        matryoshka_widths=(8, 48), d_sae=48, k=4, epochs=60, batch_size=32, lr=5e-3, normalize_activations="unit_l2",
        dead_feature_window=20, evaluate_every=10_000,
    )  # fmt: skip
    sae = train_sae(embeddings, tmp_path / "sae", nested)
    table = encode_rows(embeddings, sae, tmp_path / "table", images=brain)
    assert table.grid == (1, 1) and table.header["input_normalization"] == "unit_l2"
    rows = torch.nn.functional.normalize(embeddings.rows_of(range(len(brain))), dim=1)
    with torch.no_grad():
        expected = sae.encode(rows).numpy()
    np.testing.assert_allclose(table.codes().toarray(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table.codes(8).toarray(), expected[:, :8], rtol=1e-4, atol=1e-5)
    assert 2 < (expected != 0).sum(1).mean() < 8
    assert table.images["patient_id"].unique().tolist() == ["mri/mni152"]
    shown = table.images.set_index("image_id")
    for name in TISSUES:
        assert shown[name].to_dict() == brain.images.set_index("image_id")[name].to_dict()
