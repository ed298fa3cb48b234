"""The strongest local maxima of maps, and what a latents table keeps of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_study import random_sae
from scipy import ndimage

from mammosae_plugin.activations import capture
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.analysis import froc
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sealed, write_json
from mammosae_plugin.latents import LatentTable, encode_latents, peak_finder
from mammosae_plugin.latents.peak_finder import PeakFinder, peaks_of
from mammosae_plugin.latents.peaks import cell_centres


def reference(one_map: np.ndarray, n: int) -> list[tuple[int, float]]:
    """(position, value) of the strongest regions of equal values that no neighbour exceeds, by scipy."""
    highest = ndimage.maximum_filter(one_map, size=3, mode="constant", cval=-np.inf)
    regions, count = ndimage.label((one_map == highest) & (one_map > 0), np.ones((3, 3)))
    firsts = [int(np.flatnonzero(regions.ravel() == number)[0]) for number in range(1, count + 1)]
    return sorted(((first, float(one_map.ravel()[first])) for first in firsts), key=lambda peak: (-peak[1], peak[0]))[
        :n
    ]


def of_column(found, column: int) -> list[tuple[int, float]]:
    columns, positions, values = (part.tolist() for part in found)
    return [(p, v) for c, p, v in zip(columns, positions, values, strict=True) if c == column]


@pytest.fixture(params=[0, 2], ids=["whole columns", "where latents fire"])
def way(request, monkeypatch):
    """Whichever way the share of positions that fire would choose."""
    monkeypatch.setattr(peak_finder, "_SPARSE", request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["smooth", "plateaus"])
def test_peaks_are_those_of_scipy(kind):
    rng = np.random.default_rng(0)
    for _ in range(60):
        shape = tuple(rng.integers(1, 12, size=3))
        maps = rng.normal(size=shape) if kind == "smooth" else rng.integers(-2, 3, size=shape)
        maps = maps.astype(np.float32)
        found = peaks_of(torch.from_numpy(maps), 4)
        assert [of_column(found, column) for column in range(len(maps))] == [reference(one, 4) for one in maps]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("step", [1, 5, 7, 30, 1000])
def test_a_map_that_comes_some_positions_at_a_time_has_the_same_peaks(step):
    maps = torch.relu(torch.randn(6, 11, 7))
    maps[0, 2:9, 3] = 9  # one plateau over many rows
    maps[1] = 1
    maps[2] = 0
    finder = PeakFinder(5, 7)
    for start in range(0, 77, step):
        finder.add(maps.flatten(1).T[start : start + step])
    found = finder.found()
    assert [of_column(found, column) for column in range(6)] == [reference(one.numpy(), 5) for one in maps]
    assert of_column(found, 0)[0] == (2 * 7 + 3, 9)
    assert of_column(found, 1) == [(0, 1)] and of_column(found, 2) == []


def test_a_peak_lies_at_the_centre_of_its_cell():
    assert cell_centres(np.array([0, 5]), (2, 3), (20, 60)).tolist() == [[10, 5], [50, 15]]


@pytest.fixture(scope="module")
def made(phantoms, classifier, tmp_path_factory):
    """A table with peaks of everything, the images it was made of, and the maps of all of them."""
    torch.manual_seed(0)
    sae = random_sae(classifier.num_features)
    boxed = phantoms.images["image_id"].isin(phantoms.findings.dropna(subset=["xmin"])["image_id"])
    few = phantoms.select(image_ids=phantoms.images.groupby(["split", boxed]).head(4)["image_id"])
    settings = {"map_latents": [1, 2], "map_channels": [7, 3], "gradcam": True, "peaks": 3}
    with HookedVisionModel(classifier, ["bn2"]) as model:
        table = encode_latents(
            model,
            sae,
            few,
            tmp_path_factory.mktemp("peaks") / "table",
            heads={"Mass": classifier.classifier},
            map_groups=lambda before: {"Mass": {int(before.live_latents()[0]): 2.0, 4: -1.0, 30: 0.5}},
            shard_size=5,
            batch_size=2,
            **settings,
        )
        number_of = {image_id: number for number, image_id in enumerate(few.images["image_id"])}
        images = [few[number_of[image_id]]["image"] for image_id in table.images["image_id"]]
        with torch.inference_mode():
            maps = torch.cat([capture(model, "bn2.hook_out", image[None]) for image in images])
            latents = sae.encode(maps)
    return table, maps.numpy(), latents.numpy(), classifier.classifier.weight.detach().numpy()[0]


def check(peaks, table, rows, maps) -> None:
    """Peaks of columns of maps (n_images, h, w, k), row by row of the table."""
    frame = pd.DataFrame({"row": peaks.image_rows, "column": peaks.columns, "cell": peaks.cells, "value": peaks.values})
    for row in rows:
        for column in range(maps.shape[-1]):
            own = frame[(frame["row"] == row) & (frame["column"] == column)]
            expected = reference(maps[row, ..., column], 3)
            assert own["cell"].tolist() == [cell for cell, _ in expected]
            np.testing.assert_allclose(own["value"], [value for _, value in expected], rtol=1e-4, atol=1e-6)
    assert set(frame["row"]) <= set(rows)
    np.testing.assert_allclose(peaks.points, cell_centres(peaks.cells, table.grid, table.image_size))


@pytest.mark.parametrize("split", ["training", "test"])
def test_peaks_of_latents_are_kept_of_every_image(made, split):
    table, _, latents, _ = made
    rows = np.flatnonzero(table.images["split"] == split)
    chosen = table.live_latents()[[4, 0, 2]]
    check(table.peaks(chosen, split=split), table, rows, latents[..., chosen])
    boxed = set(table.findings.dropna(subset=["xmin"])["image_row"])
    assert set(rows) - boxed  # healthy ones are among them


def test_peaks_of_channels_gradcam_and_groups_are_kept_where_maps_were_asked_for(made):
    table, maps, latents, weight = made
    rows = np.flatnonzero(table.images["split"] == "test")
    check(table.channel_peaks([7, 3]), table, rows, maps[..., [7, 3]])
    check(table.channel_peaks([3]), table, rows, maps[..., [3]])
    cam = np.maximum(maps @ weight, 0)[..., None] / np.prod(table.grid)
    check(table.gradcam_peaks("Mass"), table, rows, cam)
    group = table.map_groups()["Mass"]
    assert group[4] == -1 and sorted(group.values()) == [-1, 0.5, 2]  # as text, 30 would come before 4
    check(
        table.group_peaks("Mass"), table, rows, (latents[..., list(group)] @ np.array(list(group.values())))[..., None]
    )
    assert table.map_groups("training") == {}


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda table: table.channel_peaks([7, 6]),
            "no peaks of channel 6 in split test; .* in map_channels",
        ),
        (lambda table: table.channel_peaks([7], split="training"), "no peaks of channel 7 in split training"),
        (lambda table: table.gradcam_peaks("density"), "no peaks of gradcam.density in split test; .* gradcam=True"),
        (lambda table: table.group_peaks("best"), "no peaks of group.best in split test; .* with it in map_groups"),
        (lambda table: table.peaks([1], split="validation"), "has no split 'validation'"),
    ],
)
def test_peaks_that_are_not_there_are_asked_for(made, read, message):
    with pytest.raises(InputError, match=message):
        read(made[0])


def test_a_table_without_peaks_is_read_and_says_so(made, phantoms, classifier, tmp_path):
    few = phantoms.select(image_ids=made[0].images["image_id"][:2])
    with HookedVisionModel(classifier, ["bn2"]) as model:
        sae = random_sae(classifier.num_features)
        none = encode_latents(model, sae, few, tmp_path / "table", heads={}, peaks=0)
        assert none.elements == {name: version for name, version in made[0].elements.items() if name != "peaks"}
        with pytest.raises(InputError, match="was made with peaks=0; encode again, into another folder"):
            none.peaks([1], split="training")
        some = encode_latents(model, sae, few, tmp_path / "other", heads={}, peaks=1)
        assert len(some.peaks(some.live_latents(), split=some.splits[0]).values)
        assert (some.mean_latents != none.mean_latents).nnz == 0
    # A table of before there were peaks, whose files are otherwise the same.
    header = {name: value for name, value in read_json(none.folder / "table.json").items() if name != "sha256"}
    del header["peaks"]
    write_json(none.folder / "table.json", sealed(header))
    old = LatentTable(none.folder)
    assert len(old.images) == 2
    with pytest.raises(InputError, match="was made when tables had no peaks of version 1 yet"):
        old.peaks([1], split=old.splits[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peaks": 256}, "peaks is 256: give a whole number, 0 to 255"),
        ({"map_groups": {"Mass": [1, 2]}}, "give the weight of each latent"),
        ({"map_groups": {"Mass": {99999: 1.0}}}, "99999"),
        ({"map_groups": {"Mass": {1: float("nan")}}}, "a weight of group Mass"),
    ],
)
def test_wrong_settings_are_refused(phantoms, classifier, tmp_path, settings, message):
    few = phantoms.select(image_ids=phantoms.images["image_id"][:1])
    with HookedVisionModel(classifier, ["bn2"]) as model, pytest.raises(InputError, match=message):
        encode_latents(
            model, random_sae(classifier.num_features), few, tmp_path, heads={}, map_splits=list(few.images["split"]),
            **settings,
        )  # fmt: skip


def test_lesions_are_looked_for_by_latents_channels_gradcam_and_groups_in_one_table(made):
    table = made[0]
    best = [latent for latent in table.live_latents().tolist() if latent != 1][:3]
    found = froc(table, [1, *best], "Mass", channels=[3, 7], groups=["Mass"], average_precision=True, n_bootstrap=5)
    rows = found.rows
    assert rows["method"].tolist() == ["latent"] * 4 + ["channel"] * 2 + ["grad_cam", "group"]
    assert rows["latent"].tolist() == [1, *best, 3, 7, -1, -1]
    assert rows["rank"].tolist() == [1, 2, 3, 4, 1, 2, 1, 1]
    boxed = rows["method"].isin(["channel", "grad_cam"]) | rows["latent"].isin([1, 2])  # whose maps were kept
    assert rows["average_precision"].notna().tolist() == boxed.tolist()
    assert rows["energy"].notna()[4:7].all() and rows["energy"][rows["method"] == "group"].isna().all()
    n_images = int((table.images["split"] == "test").sum())
    assert found.counts["n_images"] + found.counts["n_unlocated"] == n_images
    assert 0 < found.counts["n_healthy"] <= n_images - found.counts["n_lesion_images"]
    assert rows["all_cpm"].between(0, 1).all() and rows["all_cpm_low"].isna().all()
    assert not len(froc(table, [1], "Mass", gradcam=False, n_bootstrap=0).rows.query("method == 'grad_cam'"))
