"""Slices of volumes, held against SAIL's own on small synthetic volumes, and what is not as it should be."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_study import mammosae
from safetensors.numpy import load_file
from torch.utils.data import DataLoader

from mammosae_plugin.activations import ActivationStore, extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.config import StudyConfig, load_data, portable_config
from mammosae_plugin.datasets import (
    DatasetError,
    Slicing,
    TotalSegmentator,
    VolumeFolder,
    VolumeFolderSettings,
    collate,
    content,
    hounsfield_windows,
    is_study_dataset,
    open_dataset,
    organ_regions,
    slices,
    volume_files,
    volume_index,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.shared_study import shared_config
from mammosae_plugin.study.images import StudyImages
from mammosae_plugin.study.inputs import StudyInputs

nibabel = pytest.importorskip("nibabel")

SAIL = Path(__file__).parent / "data" / "sail" / "volumes"
EXPECTED = json.loads((SAIL / "expected.json").read_text())
ARRAYS = load_file(SAIL / "volumes.safetensors")
ONE_LINE = r"\A[^\n]*{}[^\n]*\Z"


def save(path, array, spacing=(1.0, 1.0, 1.0), affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0]) if affine is None else affine), path)


def box(shape, corners):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(low, high) for low, high in zip(*corners, strict=True))] = 1
    return mask


def spheres(n=3, side=10):
    """Volumes with a bright ball in each, and a mask of it."""
    at = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    for number in range(n):
        ball = ((at - side / 2) ** 2).sum(axis=0) < (2 + number) ** 2
        yield f"v{number}", (ball * 100 + at[0] + 1).astype(np.int16), ball.astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("totalsegmentator")
    for name, about in EXPECTED["volumes"].items():
        modality, image_id = name.split("/")
        image = ARRAYS[f"{modality}.{image_id}.image"]
        half = (*image.shape[:2], image.shape[2] // 2)
        save(folder / name / f"{modality}.nii.gz", image, about["spacing_mm"])
        for organ in EXPECTED["organs"][modality]:
            mask = np.zeros(image.shape, dtype=np.uint8)
            if organ in about["masks"]:
                mask = box(image.shape, about["masks"][organ])
            elif organ in about["half_depth_masks"]:
                mask = box(half, about["half_depth_masks"][organ])
            save(folder / name / "segmentations" / f"{organ}.nii.gz", mask, about["spacing_mm"])
    for modality in ("ct", "mri"):
        shutil.copy(SAIL / f"meta_{modality}.csv", folder / modality / "meta.csv")
    return folder


@pytest.fixture(scope="module")
def index(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    TotalSegmentator(root / "ct", root / "mri", image_size=48, index=folder, num_workers=2)
    return folder


@pytest.fixture(scope="module")
def everything(root, index):
    return TotalSegmentator(root / "ct", root / "mri", image_size=48, trim=False, keep_blank=True, index=index)


@pytest.fixture
def folder(tmp_path):
    for name, image, mask in spheres():
        save(tmp_path / f"{name}.nii.gz", image)
        save(tmp_path / "masks" / name / "ball.nii.gz", mask)
    return tmp_path


def open_folder(folder, *, axes=("z",), **settings):
    slicing = settings.pop("slicing", Slicing(axes=axes, window=None))
    return VolumeFolder(
        folder, modality="mri", masks="masks/{id}/{label}.nii.gz", slicing=slicing, image_size=16, **settings
    )


# Against SAIL


@pytest.mark.parametrize(("levels", "variant"), [("window", "fixed_window"), ("volume", "as_released")])
def test_pictures_are_sails(root, levels, variant):
    data = TotalSegmentator(
        root / "ct", root / "mri", levels=levels, image_size=48, trim=False, keep_blank=True, num_workers=0
    )
    compared = 0
    for name, expected in load_file(SAIL / "slices.safetensors").items():
        kind, modality, image_id, axis = name.split(".")
        own = data.images[["modality", "volume", "slice_orientation"]].eq([modality, image_id, axis]).all(axis=1)
        if kind == variant or (kind == "as_released" and modality == "mri"):  # MRI has no window but its percentiles
            found = np.stack([data.gray(row) for row in np.flatnonzero(own)[1::5]])
            assert np.array_equal(found, expected), name
            compared += 1
    assert compared == 9


def test_mri_is_resampled_and_clipped_as_sails():
    for name in ("s0001", "s0002", "s0003"):
        about = EXPECTED["volumes"][f"mri/{name}"]
        slicing = Slicing(axes="shortest", window=None, spacing="in_plane")
        found = slices.resampled(ARRAYS[f"mri.{name}.image"], tuple(about["spacing_mm"]), slicing)
        np.testing.assert_allclose(found, ARRAYS[f"mri.{name}.resampled"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.percentile(found[found > 0], [1, 99]), about["percentiles"], rtol=1e-6)
    assert Slicing(axes="shortest").axes_of((10, 10, 14)) == ("x",)


def test_metadata_and_organs_are_sails_but_unlabelled_organs_are_unknown(everything):
    expected = pd.read_parquet(SAIL / "metadata_rows.parquet")
    found = everything.metadata("data", missing_label=0)
    organs = found.columns[found.columns.get_loc("modality") + 1 :]
    assert organs.tolist() == sorted(organ_regions()) and len(organs) == 121
    assert [",".join(organs[row == 1]) for row in found[organs].to_numpy()] == expected["organs"].tolist()
    known = expected.columns[:-1]
    assert found.columns[: len(known)].tolist() == known.tolist()
    pd.testing.assert_frame_equal(found[known], expected[known], check_dtype=False)

    of_mri = everything.images["modality"] == "mri"
    assert everything.images.loc[of_mri, "skull"].isna().all() and not everything.images["liver"].isna().any()
    assert everything.metadata().loc[of_mri, "skull"].isna().all()
    assert "liver" in everything.concepts and "skull" not in everything.concepts
    assert everything.vocabulary["liver"].masks


def test_what_cannot_be_used_is_told_and_half_masks_are_stretched(everything, index):
    reasons = everything.quarantine.set_index(["modality", "image_id"])["reason"]
    assert reasons.to_dict() == {
        ("ct", "s0001"): "its voxels are no cubes (1.5 x 1.5 x 1.6 mm)",
        ("ct", "s0002"): "there is no window for its study type 'ct of something'",
    }
    pd.testing.assert_frame_equal(pd.read_csv(index / "quarantine.csv"), everything.quarantine)
    assert everything.mended.to_numpy().tolist() == [["ct", "s0000", "heart"]]
    assert set(zip(everything.volumes["modality"], everything.volumes["image_id"], strict=True)) == {
        ("ct", "s0000"),
        ("ct", "s0003"),
        ("mri", "s0001"),
        ("mri", "s0002"),
        ("mri", "s0003"),
    }


@pytest.mark.parametrize("study_type", EXPECTED["window_cases"])
def test_windows_are_sails_whatever_case_and_blanks(study_type):
    assert list(slices.window_of(study_type)) == EXPECTED["window_cases"][study_type]
    assert len(hounsfield_windows()) == 38
    for unknown in ("ct of something", "", None, float("nan")):
        with pytest.raises(BadImageError, match="study type"):
            slices.window_of(unknown)


def test_slices_are_kept_from_the_first_to_the_last_with_an_organ():
    table = pd.read_parquet(SAIL / "split_slices.parquet")
    organs = [name for name in table.columns if name.startswith("organ_")]
    for _, stack in table.groupby(["modality", "image_id", "slice_orientation"]):
        stack = stack.sort_values("slice_idx")
        found = slices.first_to_last(stack[organs].to_numpy(dtype=bool))
        assert found.tolist() == stack["kept_by_anatomy_filter"].tolist()


def test_by_default_slices_outside_of_the_organs_and_blank_ones_are_left_out(root, index, everything):
    data = TotalSegmentator(root / "ct", root / "mri", image_size=48, index=index)
    organs = [name for name in organ_regions() if name in data.images]
    stack = ["modality", "volume", "slice_orientation"]
    every = everything.images
    there = every[organs].fillna(0).max(axis=1).astype(bool)
    places = every.assign(place=every["slice_idx"].where(there))
    first, last = (places.groupby(stack)["place"].transform(of) for of in ("min", "max"))
    inside = every["slice_idx"].between(first, last)
    blank = np.array([everything.gray(row).min() == everything.gray(row).max() for row in range(len(every))])
    assert data.left_out == {"outside": int((~inside).sum()), "blank": int((inside & blank).sum())}
    assert blank.any() and (~inside).any() and len(data) < len(everything)
    assert data.images["image_id"].tolist() == every.loc[inside & ~blank, "image_id"].tolist()


# As a dataset


def test_it_is_a_dataset_whose_groups_are_volumes(everything):
    assert is_study_dataset(everything)
    row = int(np.flatnonzero(everything.images["liver"] == 1)[0])
    item = everything[row]
    assert item["image_id"] == "ct/s0000/x/0003" and item["patient_id"] == "ct/s0000"
    assert item["labels"]["liver"] == 1 and item["boxes"] == {} and set(item["labels"]) == set(everything.concepts)
    assert item["image"].shape == (3, 48, 48) and item["image"].dtype == torch.float32
    expected = (everything.gray(row)[10, 20] / 255 - 0.485) / 0.229
    assert item["image"][0, 10, 20].item() == pytest.approx(expected, abs=1e-5)
    assert everything.images["image_id"].is_unique
    assert set(everything.images.loc[everything.images["volume"] == "s0003", "patient_id"]) == {"ct/s0003", "mri/s0003"}
    assert collate([item, item])["image"].shape == (2, 3, 48, 48)
    with pytest.raises(IndexError):
        everything[len(everything)]


def test_a_network_sees_slices_as_other_images(folder, tmp_path):
    data = open_folder(folder)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, stride=4))
    with HookedVisionModel(network, ["0"]) as model:
        store = extract_activations(model, data, tmp_path / "rows", hook_name="0", batch_size=4)
    assert store.n_rows == len(data) * 16


def test_selections_keep_pictures_labels_and_order(everything):
    ids = everything.images["image_id"].tolist()
    last = max(row for row in range(len(ids)) if len(np.unique(everything.gray(row))) > 1)
    some = everything.select(image_ids=[ids[last], ids[3]], exclude=ids[5])
    assert some.images["image_id"].tolist() == [ids[3], ids[last]] == some.findings["image_id"].tolist()
    assert np.array_equal(some.gray(1), everything.gray(last))
    assert some[1]["labels"] == everything[last]["labels"]
    assert len({everything.fingerprint, some.fingerprint, everything.select(exclude=ids[5]).fingerprint}) == 3
    with pytest.raises(InputError, match="1 image ids are not in the dataset"):
        everything.select(image_ids=["x"])
    with pytest.raises(InputError, match="leaves no image"):
        everything.select(exclude=ids)


def test_a_split_of_sails_own_words_is_applied_by_modality_and_volume(everything, tmp_path):
    file = tmp_path / "totalseg_split_index.csv"
    file.write_text("modality,image_id,split\nct,s0000,train\nmri,s0001,val\nmri,s0003,test\nct,s0009,test\n")
    data = everything.with_split(file)
    by_volume = data.images.groupby("patient_id")["split"].unique().map(list).to_dict()
    assert by_volume == {"ct/s0000": ["training"], "mri/s0001": ["validation"], "mri/s0003": ["test"]}
    test = data.select(split="test")
    assert test[0]["split"] == "test" and set(test.images["patient_id"]) == {"mri/s0003"}
    file.write_text("image_id,split\ns0000,train\n")
    with pytest.raises(InputError, match="by modality and image_id"):
        everything.with_split(file)
    with pytest.raises(InputError, match="names none of the volumes"):
        everything.with_split(pd.DataFrame({"modality": ["ct"], "image_id": ["s1"], "split": ["test"]}))


def test_each_worker_reads_its_own_volumes_once_and_holds_one(folder, monkeypatch):
    data = open_folder(folder)
    order = data.batches(2, 2)
    assert sorted(sum(order, [])) == list(range(len(data)))
    assert data.batches(2, 0) == [list(range(at, min(at + 2, len(data)))) for at in range(0, len(data), 2)]
    reads = []
    read = volume_files.read_volume
    monkeypatch.setattr(
        volume_index, "read_volume", lambda *args, **kw: reads.append(args[0].name) or read(*args, **kw)
    )
    for worker in range(2):
        held = data.with_preprocessing(data.preprocessing)
        for batch in order[worker::2]:
            _ = [held.gray(row) for row in batch]
    assert len(reads) <= 4  # three volumes, and one that both share at the end
    for row in range(len(data)):
        data.gray(row)
    assert len(reads) <= 7
    loader = DataLoader(data, batch_sampler=order, num_workers=2, collate_fn=collate)
    loaded = {name: image for batch in loader for name, image in zip(batch["image_id"], batch["image"], strict=True)}
    assert all(torch.equal(loaded[item["image_id"]], item["image"]) for item in map(data.__getitem__, range(len(data))))


# The index and the files


def test_a_second_run_reads_the_index_and_a_changed_volume_again(folder, tmp_path, monkeypatch):
    first = open_folder(folder, index=tmp_path / "index")
    reads = []
    read = volume_files.read_volume
    monkeypatch.setattr(
        volume_index, "read_volume", lambda *args, **kw: reads.append(args[0].name) or read(*args, **kw)
    )
    again = open_folder(folder, index=tmp_path / "index")
    assert not reads and again.fingerprint == first.fingerprint
    pd.testing.assert_frame_equal(again.images, first.images)
    (tmp_path / "index" / "mri" / "v1.json").write_text("{")
    assert open_folder(folder, index=tmp_path / "index").fingerprint == first.fingerprint
    assert reads == ["v1.nii.gz", "ball.nii.gz"]
    name, image, _ = list(spheres())[2]
    save(folder / f"{name}.nii.gz", np.concatenate([image, image], axis=1))
    with pytest.raises(BadImageError, match=r"volume mri/v2: it has changed since it was indexed"):
        again.gray(len(again) - 1)
    changed = open_folder(folder, index=tmp_path / "index")
    assert changed.quarantine["reason"].tolist() == ["its mask of ball is 10 x 10 x 10 voxels, not 10 x 20 x 10"]
    assert open_folder(folder, axes=("x",), index=tmp_path / "index").images["slice_orientation"].unique() == ["x"]


def test_pictures_are_written_whole_and_a_killed_run_continues(folder, tmp_path, monkeypatch):
    data = open_folder(folder)
    out = tmp_path / "out"
    gray, written = data.gray, []

    def dies_in_the_middle(row):
        written.append(row)
        if len(written) > 7:
            raise KeyboardInterrupt
        return gray(row)

    monkeypatch.setattr(type(data), "gray", lambda self, row: dies_in_the_middle(row))
    with pytest.raises(KeyboardInterrupt):
        data.write_png(out)
    monkeypatch.undo()
    assert len(list(out.rglob("*.png"))) == 7 and not (out / "metadata.parquet").exists()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    table = data.write_png(out, num_workers=2)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    stored = pd.read_parquet(out / "metadata.parquet")
    assert stored["image_path"].tolist() == table["image_path"].tolist()
    for row, path in enumerate(stored["image_path"]):
        assert np.array_equal(slices.np.asarray(slices.Image.open(path)), data.gray(row))
    assert sorted(map(str, out.rglob("*.png"))) == sorted(stored["image_path"])
    with pytest.raises(InputError, match="holds the slices of other volumes or settings"):
        open_folder(folder, axes=("x",)).write_png(out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        data.write_png(tmp_path / "mine")


# Any folder


def test_patients_of_the_table_are_the_groups(folder):
    (folder / "people.csv").write_text("id,subject,age\nv0,007,40\nv1,007,40\nv2,,61\n")
    data = open_folder(folder, table="people.csv", id_column="id", patient="subject")
    assert data.images.groupby("volume")["patient_id"].unique().map(list).to_dict() == {
        "v0": ["mri/007"],
        "v1": ["mri/007"],
        "v2": ["mri/v2"],
    }
    assert data.volumes["age"].tolist() == [40, 40, 61] and data.images["age"].max() == 61


def test_volumes_stored_in_another_direction_are_turned_if_wanted(tmp_path):
    name, image, _ = next(spheres(1))
    save(tmp_path / "a" / f"{name}.nii", image)
    save(tmp_path / "b" / f"{name}.nii", np.flip(image, 0).transpose(1, 0, 2), affine=np.array(
        [[0, -1, 0, 9], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float))  # fmt: skip
    slicing = Slicing(window=None, canonical=True)
    stacks = [
        np.stack([data.gray(row) for row in range(len(data))])
        for data in (
            VolumeFolder(tmp_path / place, image="{id}.nii", slicing=slicing, image_size=10, keep_blank=True)
            for place in "ab"
        )
    ]
    assert np.array_equal(*stacks) and len(stacks[0]) == 30


def test_a_window_gives_one_value_one_gray_level_in_every_volume(tmp_path):
    for name, image, _ in spheres():
        save(tmp_path / f"{name}.nii.gz", image + (5 if name == "v0" else 0))
    for levels in ("window", "volume"):
        slicing = Slicing(axes=("z",), window=(60, 100), levels=levels)
        data = VolumeFolder(tmp_path, slicing=slicing, image_size=10, keep_blank=True)
        stacks = np.stack([data.gray(row) for row in range(len(data))]).reshape(3, 10, 10, 10)
        for found, (name, image, _) in zip(stacks, spheres(), strict=True):
            clipped = np.clip(image + (5 if name == "v0" else 0), 10, 110)
            low, high = (10, 110) if levels == "window" else (clipped.min(), clipped.max())
            expected = ((clipped - low) / (high - low) * 255).astype(np.uint8)
            assert np.array_equal(found, np.stack([np.rot90(expected[:, :, at]) for at in range(10)]))


BROKEN = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:120]),
    "no NIfTI": lambda path: path.write_bytes(gzip.compress(b"hello")),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "empty": lambda path: path.write_bytes(b""),
    "several": lambda path: save(path, np.ones((4, 4, 4, 2), dtype=np.int16)),
    "flat": lambda path: save(path, np.full((10, 10, 10), 7, dtype=np.int16)),
    "negative": lambda path: save(path, np.full((10, 10, 10), -7, dtype=np.int16)),
    "NaN": lambda path: save(path, np.full((10, 10, 10), np.nan, dtype=np.float32)),
    "no cubes": lambda path: save(path, np.arange(1000, dtype=np.int16).reshape(10, 10, 10), (1, 1, 2)),
    "missing": lambda path: path.unlink(),
}
REASONS = {
    "truncated": "cannot be read",
    "no NIfTI": "cannot be read",
    "text": "a pointer of Git LFS",
    "empty": "cannot be read",
    "several": "4 x 4 x 4 x 2, where one volume is expected",
    "flat": "all of it is 7",
    "negative": "no value above 0",
    "NaN": "1000 of its values are no numbers",
    "no cubes": "no cubes (1 x 1 x 2 mm)",
    "missing": "v1.nii.gz does not exist",
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_volume_is_quarantined_with_its_reason_and_no_path(folder, damage):
    BROKEN[damage](folder / "v1.nii.gz")
    data = open_folder(folder)
    assert data.quarantine["image_id"].tolist() == ["v1"] and set(data.volumes["image_id"]) == {"v0", "v2"}
    (reason,) = data.quarantine["reason"]
    assert REASONS[damage] in reason and str(folder) not in reason and "\n" not in reason


def test_masks_that_are_damaged_missing_empty_or_of_another_shape_are_told(folder):
    save(folder / "masks" / "v0" / "ball.nii.gz", np.ones((10, 9, 10), dtype=np.uint8))
    (folder / "masks" / "v1" / "ball.nii.gz").write_bytes(b"\x1f\x8b")
    data = open_folder(folder)
    reasons = dict(zip(data.quarantine["image_id"], data.quarantine["reason"], strict=True))
    assert reasons["v0"] == "its mask of ball is 10 x 9 x 10 voxels, not 10 x 10 x 10"
    assert reasons["v1"].startswith("ball.nii.gz cannot be read")
    (folder / "masks" / "v1" / "ball.nii.gz").unlink()
    save(folder / "masks" / "v0" / "ball.nii.gz", np.zeros((10, 10, 10), dtype=np.uint8))
    reasons = dict(zip(*[open_folder(folder).quarantine[name] for name in ("image_id", "reason")], strict=True))
    assert reasons == {
        "v0": "no slice of it has a label and more than one grey level",
        "v1": "1 mask is missing (such as ball)",
    }


def test_if_no_volume_can_be_used_the_reason_is_the_error(folder):
    for number in range(3):
        (folder / f"v{number}.nii.gz").write_bytes(b"no")
    with pytest.raises(DatasetError, match=ONE_LINE.format("3 volumes cannot be used .*cannot be read.*no other")):
        open_folder(folder)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda root: TotalSegmentator(), "as ct, that of its MRI as mri, or both"),
        (lambda root: TotalSegmentator(root / "none"), "none does not exist"),
        (lambda root: TotalSegmentator(mri=root / "ct"), "it holds ct.nii.gz: give it as ct="),
        (lambda root: TotalSegmentator(root / "ct", image_size=(48, 40)), "slices are squares"),
        (lambda root: TotalSegmentator(root / "ct", levels="range"), "levels is 'range': choose one of window, volume"),
        (lambda root: TotalSegmentator(root / "ct", axes=("x", "w")), "axes are"),
        (lambda root: TotalSegmentator(root / "ct", trim="yes"), "trim is 'yes'"),
        (lambda root: TotalSegmentator(root / "ct", num_workers=-1), "num_workers is -1"),
        (lambda root: VolumeFolder(root / "ct", image="ct.nii.gz"), "give a path under the folder with {id}"),
        (lambda root: VolumeFolder(root / "ct", image="{id}.nii.gz"), "there is no volume {id}.nii.gz under"),
        (lambda root: VolumeFolder(root / "ct", image="{id}/ct.nii.gz"), "must have a column 'study_type'"),
        (
            lambda root: VolumeFolder(root / "ct", image="{id}/ct.nii.gz", table="meta.csv", id_column="image"),
            "has no column 'image' (nearest: image_id",
        ),
        (lambda root: VolumeFolder(root / "ct", image="{id}/ct.nii.gz", table="no.csv"), "no.csv does not exist"),
        (lambda root: VolumeFolder(root / "ct", modality="a/b"), "modality is 'a/b'"),
        (lambda root: Slicing(window=(40, 0)), "give (center, width) in Hounsfield units"),
        (lambda root: Slicing(window="thorax"), "give (center, width) in Hounsfield units"),
        (lambda root: Slicing(spacing="in_plane"), "goes with one axis"),
    ],
)
def test_wrong_arguments_end_with_one_line(root, call, message):
    with pytest.raises(InputError) as refused:
        call(root)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id;age\nv0;1\nv0;2\n", "1 image id stands in several rows"),
        ("image_id;age;age\nv0;1;2\n", "names columns twice: age"),
        ("image_id;age\nv0;1;3\n", "line 2 has 3 cells, the header 2"),
        ("image_id;age\n;1\n", "line 2 has no image_id"),
        ("image_id;age\n", "has no rows of volumes"),
        ("image_id;\u00e4ge\nv0;1\n".encode("latin-1"), "no UTF-8 text"),
    ],
)
def test_a_wrong_table_ends_with_one_line(folder, text, message):
    (folder / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=ONE_LINE.format(f"({message})")):
        open_folder(folder, table="t.csv")


def test_ids_of_a_table_stay_text_whatever_separates_the_cells(tmp_path):
    for separator in ";,\t":
        (tmp_path / "t.csv").write_text(
            separator.join([" image_id", "age"]) + "\n" + separator.join(["007", "3"]) + "\n"
        )
        table = volume_files.read_table(tmp_path / "t.csv", "image_id")
        assert table.index.tolist() == ["007"] and table["age"].tolist() == [3]


def test_columns_that_are_numbers_in_one_table_and_text_in_another_become_text(root, tmp_path):
    for modality, age in (("ct", "65"), ("mri", "over 60")):
        shutil.copytree(root / modality / "s0003", tmp_path / modality / "s0003")
        (tmp_path / modality / "meta.csv").write_text(f"image_id;age;kvp;study_type\ns0003;{age};120;ct head\n")
    data = TotalSegmentator(tmp_path / "ct", tmp_path / "mri", image_size=8)
    assert data.volumes["age"].tolist() == ["65", "over 60"] and data.volumes["kvp"].tolist() == [120, 120]
    data.write_png(tmp_path / "out")
    assert set(pd.read_parquet(tmp_path / "out" / "metadata.parquet")["age"]) == {"65", "over 60"}


# From a study's YAML


def embed_from(file, out, *settings):
    given = [argument for one in settings for argument in ("--set", one)]
    return mammosae("embed", "test_resnet", "--weights", "random", "--config", file, "-o", out, *given)


def test_a_folder_of_volumes_in_yaml_is_embedded_with_its_split_and_labels(folder, tmp_path):
    (folder / "people.csv").write_text("image_id,sex\nv0,f\nv1,m\nv2,f\n")
    (folder / "split.csv").write_text("modality,image_id,split\nmri,v0,train\nmri,v1,test\n")
    file = tmp_path / "study.yaml"
    file.write_text(
        "data:\n  kind: volumes\n  root: .\n  modality: mri\n  masks: masks/{id}/{label}.nii.gz\n  table: people.csv\n"
        "  axes: z\n  window: null\n  image_size: 32\n  split_file: split.csv\n  index: index\n"
    )
    done = embed_from(file, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    store = ActivationStore(tmp_path / "out")
    known = pd.read_parquet(tmp_path / "out" / "images.parquet")
    wanted = open_folder(folder, table="people.csv").with_split(folder / "split.csv").images
    pd.testing.assert_frame_equal(known, wanted, check_dtype=False)
    assert (
        set(known["split"]) == {"training", "test"} and set(known["sex"]) == {"f", "m"} and store.n_rows == len(known)
    )
    assert (folder / "index" / "mri" / "v2.json").exists()


def test_a_folder_of_totalsegmentators_in_yaml_is_found_by_what_it_holds(root, tmp_path):
    file = tmp_path / "study.yaml"
    for data, modalities in (
        (f"root: {root}/ct\n  axes: [z]", {"ct"}),
        (f"root: {root}\n  ct: ct\n  mri: {root}/mri", {"ct", "mri"}),
    ):
        file.write_text(f"data:\n  kind: total-segmentator\n  {data}\n  image_size: [16, 16]\n")
        found = open_dataset(load_data(file))
        assert isinstance(found, TotalSegmentator) and set(found.images["modality"]) == modalities
        assert found.about.title == "TotalSegmentator" and found.image_size == (16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("image_size=[32, 48]",), "slices are squares, give one edge and not 32 x 48"),
        (("unit=finding_row",), "data.unit: volumes have slices and no rows of findings"),
        (("axes=[x, w]",), "axes are ('x', 'w'): give some of 'x', 'y', 'z'"),
        (("axes=3",), "data.axes: must be"),
        (("window=[40, 0]",), "give (center, width) in Hounsfield units"),
        (("window=thorax",), "data.window: must be"),
        (("image=/data/{id}.nii.gz",), "give it from the folder of the volumes"),
        (("masks=../{id}/{label}.nii.gz",), "give it from the folder of the volumes"),
        (("window=study_type",), "must have a column 'study_type'"),
        (("split_file=no.csv",), "no.csv does not exist"),
        (("table=no.csv",), "no.csv does not exist"),
        (("orientation=x",), "unknown setting 'data.orientation'"),
        (("kind=total-segmentator", "modality=mri"), "unknown setting 'data.modality'"),
        (("kind=total-segmentator",), "holds no s0000/ct.nii.gz or s0000/mri.nii.gz"),
        (("kind=total-segmentator", "ct=gone"), "gone does not exist"),
        (
            ("kind=volume",),
            "kind must be one of csv, images, vindr, total-segmentator, volumes, not 'volume' (did you mean",
        ),
        (
            ("max_bad_share=0.1",),
            "1 of 3 volumes cannot be used (such as: all of it is 7), more than max_bad_share 0.1",
        ),
    ],
)
def test_what_is_wrong_with_volumes_in_yaml_is_one_line(folder, tmp_path, settings, message):
    BROKEN["flat"](folder / "v1.nii.gz")
    file, given = tmp_path / "study.yaml", [f"data.{one}" for one in settings]
    plain = {"kind": "volumes", "root": str(folder), "modality": "mri", "window": None, "image_size": 32}
    plain = {"kind": "", "root": str(folder)} if "kind" in settings[0] else plain
    file.write_text(json.dumps({"data": plain}))
    refused = embed_from(file, tmp_path / "out", *given)
    assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    assert refused.stderr.strip().splitlines()[-1].startswith("mammosae: ")
    assert not (tmp_path / "out" / "activations.json").exists()


def test_a_study_reads_each_volume_once_to_tell_its_content(folder, tmp_path, monkeypatch):
    read, digest = [], content.sha256_of_file
    monkeypatch.setattr(content, "sha256_of_file", lambda path: read.append(path.name) or digest(path))
    settings = VolumeFolderSettings(root=folder, window=None, axes="z", image_size=16)
    assert len(StudyImages(settings, tmp_path / "work", 0).content) == 64
    assert sorted(read) == ["v0.nii.gz", "v1.nii.gz", "v2.nii.gz"]


def test_a_study_of_feature_maps_says_that_it_takes_no_volumes(folder):
    config = StudyConfig(
        output=folder / "out",
        data={"kind": "volumes", "root": folder, "window": None, "split_file": str(folder / "split.csv")},
        concepts=["ball"],
        models=[{"name": "m", "classifiers": {"ball": "x.pt"}}],
        sae={"path": "sae"},
    )
    with pytest.raises(InputError, match=ONE_LINE.format("a study of feature maps screens PNG files")):
        _ = StudyInputs(config).all_images
    shown = portable_config(config)
    assert str(folder) not in json.dumps(shown) and shown["data"]["split_file"] == "split.csv"
    assert shared_config(shown)["data"]["masks"] is None


def test_without_nibabel_one_line_names_the_extra(root, monkeypatch):
    monkeypatch.setattr(volume_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=ONE_LINE.format(r"pip install 'mammosae-plugin\[volumes\]'")):
        TotalSegmentator(root / "ct")
