"""Localization lesion by lesion: FROC and its company, against formulas written out and detectors of known quality."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from mammosae_plugin.analysis import froc, froc_of
from mammosae_plugin.analysis.free_response import FPPI
from mammosae_plugin.analysis.lesion_froc import Operating, sensitivities
from mammosae_plugin.analysis.lesion_localization import SENSITIVITIES, froc_of_stages
from mammosae_plugin.analysis.spatial import box_region, cell_shares, energy_share_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.peaks import Peaks, cell_centres
from mammosae_plugin.measures.statistics import patient_bootstrap
from mammosae_plugin.measures.units import EvaluationRows

GRID, SIZE, N_PEAKS = (6, 5), (60, 50), 3


def slow_froc(predictions, truths, fppi=FPPI, counted=None):
    """Every threshold tried, in float64: the best sensitivity with at most f false positives per image that counts."""
    counted = [True] * len(truths) if counted is None else counted
    n = sum(map(int, counted))
    thresholds = sorted({float(score) for _, scores in predictions for score in scores}, reverse=True)
    found = np.zeros(len(fppi))
    for threshold in thresholds:
        hits = false = lesions = 0
        for (points, scores), boxes, counts in zip(predictions, truths, counted, strict=True):
            shown = [point for point, score in zip(points, scores, strict=True) if score >= threshold]
            lesions += len(boxes)
            hits += sum(any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for x, y in shown) for b in boxes)
            outside = [not any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes) for x, y in shown]
            false += sum(outside) if counts else 0
        for place, limit in enumerate(fppi):
            if false / n <= limit + 1e-12:
                found[place] = max(found[place], hits / lesions)
    return found


class MapsTable:
    """What `froc` asks of a table, made of maps (n_images, n_latents, h, w) and boxes of one finding."""

    mean_latents = None  # by which verbs know a table
    folder, d_in, image_size, gradcam_heads, concepts = "TABLE", 4, SIZE, (), ("Mass",)

    def __init__(self, maps, boxes, images, labels=None, group=None):
        self.all_maps, self.own_boxes, self.images = maps.astype(np.float32), boxes, images
        self.grid, self.d_sae = maps.shape[2:], maps.shape[1]
        self.labels = np.array([int(len(own) > 0) for own in boxes]) if labels is None else labels
        self.group = group or {}
        rows = [(row, *box) for row, own in enumerate(boxes) for box in own]
        self.findings = pd.DataFrame(rows, columns=["image_row", "xmin", "ymin", "xmax", "ymax"])

    def need(self, element):
        assert element == "peaks"

    def rows(self, concept, *, split):
        assert (concept, split) == ("Mass", "test")
        return EvaluationRows(
            np.arange(len(self.images)), self.labels, self.images["patient_id"].to_numpy(dtype=object)
        )

    def boxes(self, row, concept):  # noqa: ARG002
        return np.array(self.own_boxes[row], dtype=np.float32).reshape(-1, 4)

    def map_latents(self, row):  # noqa: ARG002
        return np.arange(self.d_sae)

    def maps(self, latents, row):
        return self.all_maps[row, latents]

    def map_groups(self, split):  # noqa: ARG002
        return {"best": self.group} if self.group else {}

    def _peaks_of(self, maps):
        found = []
        for row, of_image in enumerate(maps):
            for column, one in enumerate(of_image):
                highest = ndimage.maximum_filter(one, size=3, mode="constant", cval=-np.inf)
                cells = np.flatnonzero((one == highest) & (one > 0))
                cells = cells[np.argsort(-one.ravel()[cells], kind="stable")][:N_PEAKS]
                found += [(row, column, cell, one.ravel()[cell]) for cell in cells]
        rows, columns, cells, values = np.array(found).T
        cells = cells.astype(int)
        points = cell_centres(cells, self.grid, self.image_size)
        return Peaks(rows.astype(int), columns.astype(int), cells, points, values.astype(np.float32))

    def peaks(self, latents, *, split):  # noqa: ARG002
        return self._peaks_of(self.all_maps[:, latents])

    def group_peaks(self, name, *, split):  # noqa: ARG002
        return self._peaks_of(
            np.einsum("k,nkhw->nhw", list(self.group.values()), self.all_maps[:, list(self.group)])[:, None]
        )

    def predictions(self, latent):
        peaks = self.peaks([latent], split="test")
        own = [peaks.image_rows == row for row in range(len(self.images))]
        return [(peaks.points[one], peaks.values[one].astype(float)) for one in own]


def box_at(cell, half=6):
    x, y = cell_centres(np.array([cell]), GRID, SIZE)[0]
    return [x - half, y - half, x + half, y + half]


def made_table(n_patients=30, n_latents=4, seed=0, **more):
    """Two views of either side; a third of the breasts has one or two lesions, which latent 0 finds more often."""
    rng = np.random.default_rng(seed)
    images = pd.DataFrame(
        [
            {"image_id": f"{patient}{side}{view}", "patient_id": f"p{patient}", "laterality": side, "view": view}
            for patient in range(n_patients)
            for side in "LR"
            for view in ("CC", "MLO")
        ]
    )
    n = len(images)
    maps = np.maximum(np.round(rng.normal(size=(n, n_latents, *GRID)), 1), 0)
    boxes = []
    for row in range(n):
        cells = rng.choice(30, int(rng.integers(1, 3)), replace=False) if row // 2 % 3 == 0 else []
        boxes.append([box_at(cell) for cell in cells])
        for cell in cells:
            maps[row, 0].reshape(-1)[cell] += 1.5 * rng.random()
    return MapsTable(maps, boxes, images, **more)


@pytest.fixture(scope="module")
def table():
    return made_table(group={0: 1.0, 1: 0.2})


@pytest.fixture(scope="module")
def found(table):
    return froc(table, [0, 1, 2], "Mass", groups=["best"], n_bootstrap=200)


@pytest.mark.parametrize("seed", range(4))
def test_froc_of_is_the_best_over_all_thresholds(seed):
    made = made_table(8, 1, seed)
    predictions = made.predictions(0)  # scores are rounded, so many are equal
    result = froc_of(predictions, made.own_boxes)
    np.testing.assert_allclose(result.sensitivity, slow_froc(predictions, made.own_boxes), atol=1e-12)
    assert result.cpm == pytest.approx(result.sensitivity.mean())


def test_of_a_table_it_is_the_same_and_on_healthy_images_false_peaks_are_counted_there_alone(table, found):
    healthy = [not len(own) for own in table.own_boxes]
    for row in found.rows.head(3).to_dict("records"):
        predictions = table.predictions(row["latent"])
        np.testing.assert_allclose(row["all_sensitivity"], froc_of(predictions, table.own_boxes).sensitivity)
        np.testing.assert_allclose(
            row["healthy_sensitivity"], slow_froc(predictions, table.own_boxes, counted=healthy), atol=1e-6
        )
        assert row["all_cpm"] == pytest.approx(np.mean(row["all_sensitivity"]))
    assert found.counts["n_images"] == 120 and found.counts["n_healthy"] == sum(healthy)
    assert found.counts["n_lesions"] == found.counts["n_reachable"] == sum(map(len, table.own_boxes))
    assert found.counts["n_breasts"] == 20
    assert found.to_frame()["n_lesion_patients"].eq(found.counts["n_lesion_patients"]).all()


def test_a_breast_is_found_where_any_of_its_lesions_is(table, found):
    predictions = table.predictions(0)
    breasts = table.images["patient_id"] + table.images["laterality"]
    best, false = {}, []
    for (points, scores), boxes, breast in zip(predictions, table.own_boxes, breasts, strict=True):
        for point, score in zip(points, scores, strict=True):
            hit = [b for b in boxes if b[0] <= point[0] <= b[2] and b[1] <= point[1] <= b[3]]
            if hit:
                best[breast] = max(score, best.get(breast, 0))
            else:
                false.append(score)
        if boxes:
            best.setdefault(breast, -np.inf)
    levels = np.array(list(best.values()))
    expected = []
    for limit in FPPI:
        allowed = [t for t in levels if t > -np.inf and (np.array(false) >= t - 1e-9).sum() <= limit * len(predictions)]
        expected.append((levels >= min(allowed, default=np.inf)).mean())
    np.testing.assert_allclose(found.rows["breast_sensitivity"][0], expected, atol=1e-6)


def test_a_resample_of_patients_is_the_froc_of_their_images_repeated(table):
    predictions, names = table.predictions(0), np.unique(table.images["patient_id"])
    draws = patient_bootstrap(names, 3, seed=5)
    patient = np.searchsorted(names, table.images["patient_id"])
    best, of_lesion, false = [], [], np.full((len(predictions), N_PEAKS), -np.inf, dtype=np.float32)
    for row, ((points, scores), boxes) in enumerate(zip(predictions, table.own_boxes, strict=True)):
        inside = [[b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes] for x, y in points]
        for number in range(len(boxes)):
            hits = [score for score, one in zip(scores, inside, strict=True) if one[number]]
            best.append(max(hits, default=-np.inf))
            of_lesion.append(patient[row])
        outside = [score for score, one in zip(scores, inside, strict=True) if not any(one)]
        false[row, : len(outside)] = outside
    operating = Operating(patient, np.ones(len(patient), bool), np.array(FPPI))
    got = sensitivities(np.array(best, np.float32), false, np.array(of_lesion), operating, draws.astype(np.float32))
    for draw, sensitivity in zip(draws, got, strict=True):
        rows = np.repeat(np.arange(len(patient)), draw[patient])
        expected = slow_froc([predictions[row] for row in rows], [table.own_boxes[row] for row in rows])
        np.testing.assert_allclose(sensitivity, expected, atol=1e-6)


def detector(kind, n_patients=150):
    """A map with one place per image, which has one lesion: in the lesion, anywhere, or never in it."""
    rng = np.random.default_rng(3)
    images = pd.DataFrame(
        {"image_id": [f"i{i}" for i in range(n_patients)], "patient_id": [f"p{i}" for i in range(n_patients)]}
    )
    maps, boxes = np.zeros((n_patients, 1, *GRID)), []
    for row in range(n_patients):
        cell = int(rng.integers(30))
        place = {"perfect": cell, "random": int(rng.integers(30)), "shifted": (cell + 2) % 30}[kind]
        maps[row, 0].reshape(-1)[place] = rng.random() + 0.1
        boxes.append([box_at(cell, half=5.5)])  # of 30 centres it holds one
    return MapsTable(maps, boxes, images)


@pytest.mark.parametrize(
    ("kind", "expected", "error"), [("perfect", 1, 0), ("random", 1 / 30, 0.05), ("shifted", 0, 0)]
)
def test_perfect_random_and_shifted_detectors_give_one_the_share_of_the_area_and_nothing(kind, expected, error):
    found = froc(detector(kind), [0], "Mass", n_bootstrap=100).rows.iloc[0]
    assert found["all_sensitivity"][-1] == pytest.approx(expected, abs=error)
    assert found["pointing"] == pytest.approx(expected, abs=error)
    assert found["pointing_chance"] == pytest.approx(1 / 30, abs=0.02)
    assert found["all_sensitivity_chance"][-1] == pytest.approx(1 / 30, abs=0.02)
    assert (found["p"] <= 0.01) == (kind == "perfect")
    assert np.isnan(found["healthy_cpm"])  # no image is healthy
    assert np.isnan(found["breast_cpm"])  # sides are not known
    if kind == "random":
        assert found["pointing_low"] <= found["pointing"] <= found["pointing_high"]
    else:  # where all patients say the same, no interval can be told
        assert np.isnan(found["pointing_low"])


def test_what_finds_lesions_is_told_from_what_does_not(found):
    rows = found.rows
    assert rows["p"][0] < 0.01 and rows["p_adjusted"][0] < 0.05
    assert (rows["p"][1:3] > 0.05).all()
    assert rows["all_cpm_low"][0] > rows["all_cpm_chance"][0]
    assert rows["all_cpm_low"][0] < rows["all_cpm"][0] < rows["all_cpm_high"][0]
    assert rows["rank"].tolist() == [1, 2, 3, 1] and rows["method"].tolist() == ["latent"] * 3 + ["group"]


@pytest.mark.parametrize("n_patients", [9, 20])
def test_noise_is_rarely_called_significant(n_patients):
    """With 9 patients each image has two others to borrow from: luck with one lesion must not look like more."""
    ps = [froc(made_table(n_patients, 6, seed), [1, 2, 3, 4, 5], "Mass", n_bootstrap=0).rows["p"] for seed in range(12)]
    assert (np.concatenate(ps) <= 0.05).mean() <= 0.1


def test_chance_is_what_the_lesions_of_other_patients_of_the_same_side_and_view_would_have(table, found):
    predictions, images = table.predictions(0), table.images
    boxed = [row for row, boxes in enumerate(table.own_boxes) if boxes]
    for kind, counted in (("all", range(len(images))), ("healthy", sorted(set(range(len(images))) - set(boxed)))):
        false = [
            score
            for row in counted
            for (x, y), score in zip(*predictions[row], strict=True)
            if not any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in table.own_boxes[row])
        ]
        limits = [int(np.floor(limit * len(counted))) for limit in FPPI]
        levels = np.array([sorted(false)[::-1][at] if at < len(false) else -np.inf for at in limits])
        shares, weights, missed = [], [], {}
        for row in boxed:
            one = images.iloc[row]
            lenders = [
                other
                for other in boxed
                if images["patient_id"][other] != one["patient_id"]
                and (images["laterality"][other], images["view"][other]) == (one["laterality"], one["view"])
            ]
            hits = []
            for other in lenders:
                best = [
                    max((s for (x, y), s in zip(*predictions[row], strict=True)
                         if b[0] <= x <= b[2] and b[1] <= y <= b[3]), default=-np.inf)
                    for b in table.own_boxes[other]
                ]  # fmt: skip
                hits.append(np.array(best)[:, None] > levels)
            shares.append(np.mean([own.mean(axis=0) for own in hits], axis=0))
            weights.append(len(table.own_boxes[row]))
            breast = missed.setdefault((one["patient_id"], one["laterality"]), [])
            breast.append(1 - np.mean([own.any(axis=0) for own in hits], axis=0))
        expected = np.average(shares, axis=0, weights=weights)
        np.testing.assert_allclose(found.rows[f"{kind}_sensitivity_chance"][0], expected)
        assert found.rows[f"{kind}_cpm_chance"][0] == pytest.approx(expected.mean())
        if kind == "all":
            by_breast = np.mean([1 - np.prod(own, axis=0) for own in missed.values()], axis=0)
            np.testing.assert_allclose(found.rows["breast_sensitivity_chance"][0], by_breast)
            assert len(missed) < len(boxed), "some breast has lesions in two images"
    curves = found.curves().query("method == 'latent' and latent == 0")
    assert curves["chance"].tolist() == [
        v for kind in SENSITIVITIES for v in found.rows[f"{kind}_sensitivity_chance"][0]
    ]


def test_stages_are_judged_as_maps_of_a_table_are(table, found):
    stages = {"before": table.peaks([1], split="test"), "after": table.peaks([0], split="test")}
    told = froc_of_stages(table, "Mass", stages, n_bootstrap=200).set_index("stage")
    for stage, row in (("before", found.rows.iloc[1]), ("after", found.rows.iloc[0])):
        for end in ("", "_low", "_high", "_chance"):
            np.testing.assert_allclose(told.loc[stage, f"sensitivity{end}"], row[f"all_sensitivity{end}"])
            assert told.loc[stage, f"cpm{end}"].iloc[0] == pytest.approx(row[f"all_cpm{end}"])
        assert told.loc[stage, "p"].iloc[0] == row["p"]
    change = told.loc["after"].iloc[0]
    assert change["cpm_change"] == pytest.approx(found.rows["all_cpm"][0] - found.rows["all_cpm"][1])
    assert 0 < change["cpm_change_low"] < change["cpm_change"] < change["cpm_change_high"]
    assert told.loc["before", "cpm_change"].isna().all()


def test_energy_is_the_share_of_the_map_in_the_lesions(table, found):
    boxed = [row for row, boxes in enumerate(table.own_boxes) if boxes]
    regions = np.stack([cell_shares(box_region(table.own_boxes[row], SIZE), GRID) for row in boxed])
    for latent in (0, 1):
        own, _ = energy_share_of(table.all_maps[boxed, latent], regions)
        assert found.rows["energy"][latent] == pytest.approx(np.nanmean(own), abs=0.01)  # counted on 8 x 8 points
    assert found.rows["energy"][0] > found.rows["energy_chance"][0]


def test_a_group_is_held_against_its_best_member(table, found):
    group = found.rows.iloc[3]
    assert (group["latent"], group["name"], group["n_latents"], group["best_member"]) == (-1, "best", 2, 0)
    assert group["gain"] == pytest.approx(group["all_cpm"] - found.rows["all_cpm"][0])
    assert group["gain_low"] <= group["gain"] <= group["gain_high"]
    assert found.rows["gain"][:3].isna().all()
    # The sum of a latent alone is that latent.
    same = froc(made_table(group={0: 2.0}), [0], "Mass", groups=["best"], n_bootstrap=50).rows
    assert same["gain"][1] == 0 and same["all_cpm"][0] == same["all_cpm"][1]


def test_masks_take_the_place_of_boxes(table):
    """A mask of two parts is two lesions, and only points in them find them."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    boxes = dict(zip(table.images["image_id"], table.own_boxes, strict=True))

    def of_boxes(image_id):
        return box_region(np.array(boxes[image_id]), SIZE)

    by_masks = froc(table, [0, 1], "Mass", masks=of_boxes, n_bootstrap=0)
    apart = [n for own in table.own_boxes if own for n in [ndimage.label(box_region(own, SIZE), np.ones((3, 3)))[1]]]
    assert by_masks.counts["n_lesions"] == sum(apart)
    discs = froc(table, [0], "Mass", masks=lambda _: (x - 25) ** 2 + (y - 25) ** 2 < 16, n_bootstrap=0)
    assert discs.counts["n_lesions"] == discs.counts["n_lesion_images"] == discs.counts["n_reachable"] == 40
    assert froc(table, [0], "Mass", masks=lambda _: None, n_bootstrap=0).counts["n_lesions"] == sum(
        map(len, table.own_boxes)
    )
    with pytest.raises(InputError, match=r"the mask of image row 0 has shape \(3, 3\): expected \(60, 50\)"):
        froc(table, [0], "Mass", masks=lambda _: np.ones((3, 3)))


def test_lesions_between_the_centres_of_cells_are_counted_and_images_without_a_box_left_out():
    made = made_table(12)
    labels = made.labels.copy()
    labels[np.flatnonzero(labels == 0)[:3]] = 1  # the finding, but nobody says where
    small = [[[b[0] + 7, b[1] + 7, b[0] + 9, b[1] + 9] for b in own] for own in made.own_boxes]
    found = froc(MapsTable(made.all_maps, small, made.images, labels), [0], "Mass", n_bootstrap=0)
    assert found.counts["n_reachable"] == 0 and found.rows["all_cpm"][0] == 0
    assert found.counts["n_unlocated"] == 3 and found.counts["n_images"] == 45


def test_few_patients_have_no_interval_and_curves_list_every_point(table, found):
    few = froc(made_table(6), [0], "Mass", n_bootstrap=50)
    assert np.isnan(few.rows["all_cpm_low"][0]) and np.isnan(few.rows["energy_high"][0])
    assert np.isnan(few.rows["all_sensitivity_low"][0]).all()
    curves = found.curves()
    assert len(curves) == 4 * 3 * len(FPPI)
    first = curves[(curves["method"] == "latent") & (curves["latent"] == 0) & (curves["kind"] == "all")]
    assert first["sensitivity"].tolist() == found.rows["all_sensitivity"][0]
    assert first["sensitivity"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ["other"]}, "has no group 'other' in split test; it has best; encode with it in map_groups"),
        ({"fppi": ()}, "fppi is empty"),
        ({"fppi": [-1]}, "fppi is -1"),
        ({"concept": "Cyst"}, "'Cyst' is not a finding with boxes: choose one of Mass"),
        ({"latents": [99]}, "99"),
    ],
)
def test_what_cannot_be_judged_is_told(table, settings, message):
    with pytest.raises(InputError, match=message):
        froc(table, **{"latents": [0], "concept": "Mass", **settings})
