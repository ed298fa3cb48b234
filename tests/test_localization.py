import numpy as np
import pandas as pd
import pytest
import torch
from helpers_tables import make_table
from scipy import ndimage
from torchmetrics.detection import MeanAveragePrecision

from mammosae_plugin.analysis import map_boxes
from mammosae_plugin.analysis.localization import (
    BOX_SCORES,
    MapBoxes,
    Threshold,
    heatmap,
    heatmap_boxes,
    localize,
    localize_baselines,
    localize_thresholds,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.boxes import average_precision


def flood_fill_boxes(values, threshold, min_area):
    """Regions above the threshold by walking to the eight neighbours, one pixel at a time."""
    open_pixels = {(int(y), int(x)) for y, x in zip(*np.nonzero(values > threshold), strict=True)}
    found = []
    while open_pixels:
        region, edge = set(), [open_pixels.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & open_pixels
            open_pixels -= near
            edge += near
        ys, xs = zip(*region, strict=True)
        box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        if (box[2] - box[0]) * (box[3] - box[1]) >= min_area:
            found.append((*box, max(float(values[pixel]) for pixel in region)))
    return sorted(found)


def found_boxes(*arguments, **keywords):
    boxes, scores = heatmap_boxes(*arguments, **keywords)
    assert boxes.shape == (len(scores), 4)
    return sorted((*map(int, box), float(score)) for box, score in zip(boxes, scores, strict=True))


@pytest.mark.parametrize("kind", ["dense", "sparse", "signed", "steps"])
def test_boxes_equal_those_of_a_flood_fill_above_the_percentile(kind):
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = ndimage.gaussian_filter(rng.normal(size=(37, 26)), 1.2).astype(np.float32)
        values = {
            "dense": np.abs(values),
            "sparse": np.maximum(values - 0.3, 0),
            "signed": values,
            "steps": np.round(np.abs(values), 1),
        }[kind]
        for percentile in (0, 50, 73.21, 95, 99.9, 99.99):
            threshold = np.percentile(values.astype(np.float64), percentile)
            expected = flood_fill_boxes(values, threshold, 6)
            assert found_boxes(values, percentile=percentile, min_area=6) == expected


def test_boxes_equal_those_of_a_flood_fill_above_a_share_of_the_maximum():
    rng = np.random.default_rng(1)
    for relative in (0.01, 0.3, 0.8):
        values = np.abs(ndimage.gaussian_filter(rng.normal(size=(37, 26)), 1.2)).astype(np.float32)
        assert found_boxes(values, relative=relative) == flood_fill_boxes(values, relative * values.max(), 10)


def test_a_box_ends_one_pixel_past_its_region_and_scores_its_maximum():
    values = np.zeros((20, 30), dtype=np.float32)
    values[4:8, 10:15] = 2
    values[5, 11] = 7
    boxes, scores = heatmap_boxes(values)
    assert boxes.tolist() == [[10, 4, 15, 8]]
    assert scores.tolist() == [7]
    assert boxes.dtype == np.float32


def test_regions_that_touch_at_a_corner_are_one():
    values = np.zeros((20, 20))
    values[2:6, 2:6] = values[6:10, 6:10] = 1
    assert found_boxes(values, percentile=90) == [(2, 2, 10, 10, 1.0)]


def test_pixels_at_the_threshold_are_not_above_it():
    values = np.zeros((20, 20))
    values[2:7, 2:7] = 1.0
    values[12:17, 12:17] = 0.25
    assert found_boxes(values, relative=0.25) == [(2, 2, 7, 7, 1.0)]
    assert len(found_boxes(values, relative=0.24)) == 2


def test_small_rectangles_are_dropped_by_their_area():
    values = np.zeros((20, 20))
    values[1:4, 1:4] = 1
    values[10:12, 3:8] = 2
    assert found_boxes(values, percentile=90) == [(3, 10, 8, 12, 2.0)]
    assert len(found_boxes(values, percentile=90, min_area=9)) == 2


def test_a_map_that_is_zero_or_constant_has_no_box():
    for relative in (None, 0.01, 0.3):
        assert found_boxes(np.zeros((20, 20)), relative=relative) == []
        assert found_boxes(np.full((20, 20), -1.0), relative=relative) == []
    assert found_boxes(np.ones((20, 20))) == []


def test_bad_heatmaps_and_thresholds_are_errors():
    for values in (np.zeros(4), np.zeros((0, 3)), np.full((4, 4), np.nan)):
        with pytest.raises(InputError, match="expected finite values"):
            heatmap_boxes(values)
    with pytest.raises(InputError, match="percentile is 101"):
        heatmap_boxes(np.zeros((4, 4)), percentile=101)
    with pytest.raises(InputError, match="relative is 30"):
        heatmap_boxes(np.zeros((4, 4)), relative=30)


def test_the_heatmap_is_the_bilinear_interpolation_between_pixel_centres():
    latent_map = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    result = heatmap(latent_map, (40, 28))
    y = np.clip((np.arange(40) + 0.5) * 5 / 40 - 0.5, 0, 4)
    x = np.clip((np.arange(28) + 0.5) * 4 / 28 - 0.5, 0, 3)
    expected = ndimage.map_coordinates(latent_map.astype(np.float64), np.meshgrid(y, x, indexing="ij"), order=1)
    assert result == pytest.approx(expected, abs=1e-6)
    assert result.dtype == np.float32
    for size in ((40, 28), (41, 33), (5, 4), (3, 2)):
        batch = torch.from_numpy(latent_map)[None, None]
        interpolated = torch.nn.functional.interpolate(batch, size=size, mode="bilinear", align_corners=False)
        assert np.array_equal(heatmap(latent_map, size), interpolated[0, 0].numpy())
    with pytest.raises(InputError, match=r"expected finite values \(h, w\)"):
        heatmap(np.zeros((1, 5, 4)), (40, 28))


def random_boxes(rng, n):
    """Boxes on a coarse grid, so that many overlap, some are equal, and IoUs tie."""
    corner, size = rng.integers(0, 12, size=(n, 2)), rng.integers(2, 10, size=(n, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float64)


def random_detections(rng, *, ties):
    n_images = rng.integers(1, 7)
    truth = [random_boxes(rng, rng.integers(0, 5)) for _ in range(n_images)]
    predictions = []
    for boxes in truth:
        n = rng.integers(0, 9)
        near = boxes[rng.integers(len(boxes), size=n)] + rng.integers(-2, 3, size=(n, 4)) if len(boxes) else None
        predicted = random_boxes(rng, n) if near is None else near
        predicted[:, 2:] = np.maximum(predicted[:, 2:], predicted[:, :2] + 1)
        scores = rng.integers(1, 4, size=n) / 4 if ties else rng.random(n)
        predictions.append((predicted, scores))
    return predictions, truth


def torchmetrics_average_precision(predictions, truth, iou_threshold):
    """The mean over recall thresholds between the steps of recall is the all-point interpolated AP."""
    n_truth = sum(len(boxes) for boxes in truth)
    metric = MeanAveragePrecision(
        iou_type="bbox",
        iou_thresholds=[iou_threshold],
        rec_thresholds=[(i + 0.5) / n_truth for i in range(n_truth)],
        max_detection_thresholds=[1, 10, 100],
    )
    metric.update(
        [
            {
                "boxes": torch.as_tensor(boxes, dtype=torch.float32),
                "scores": torch.as_tensor(scores, dtype=torch.float32),
                "labels": torch.zeros(len(boxes), dtype=torch.int64),
            }
            for boxes, scores in predictions
        ],
        [
            {"boxes": torch.as_tensor(boxes, dtype=torch.float32), "labels": torch.zeros(len(boxes), dtype=torch.int64)}
            for boxes in truth
        ],
    )
    return float(metric.compute()["map"])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.25, 0.5])
def test_average_precision_equals_torchmetrics_on_random_boxes(iou_threshold, ties):
    rng = np.random.default_rng(int(ties))
    values = []
    for _ in range(60):
        predictions, truth = random_detections(rng, ties=ties)
        if not sum(len(boxes) for boxes in truth):
            continue
        value = average_precision(predictions, truth, iou_threshold=iou_threshold)
        values.append(value)
        assert value == pytest.approx(torchmetrics_average_precision(predictions, truth, iou_threshold), abs=1e-6)
    assert len(values) > 50
    assert len(set(np.round(values, 6))) > 30


BOX = [[0.0, 0, 10, 10]]


def test_a_perfect_prediction_has_average_precision_one():
    assert average_precision([(BOX, [0.2])], [BOX]) == 1
    assert average_precision([(BOX, [0.2])], [BOX], iou_threshold=1.0) == 1


def test_an_iou_exactly_at_the_threshold_counts():
    quarter = [[0.0, 0, 5, 5]]
    assert average_precision([(quarter, [1.0])], [BOX], iou_threshold=0.25) == 1
    assert average_precision([(quarter, [1.0])], [BOX], iou_threshold=0.2501) == 0


def test_each_box_is_matched_once_and_in_the_order_of_scores():
    twice = [BOX[0], BOX[0]]
    assert average_precision([(twice, [0.9, 0.8])], [BOX]) == 1  # the double comes after full recall
    miss_first = [[50.0, 50, 60, 60], BOX[0]]
    assert average_precision([(miss_first, [0.9, 0.8])], [BOX]) == 0.5
    assert average_precision([(miss_first, [0.8, 0.9])], [BOX]) == 1


def test_equal_overlaps_take_the_later_box_as_pycocotools_does():
    truth = [[0.0, 0, 10, 10], [10, 0, 20, 10]]
    between, first_only, second_only = [5.0, 0, 15, 10], [0.0, 0, 5, 10], [15.0, 0, 20, 10]
    for other, value in ((first_only, 1), (second_only, 0.5)):
        predictions = [(np.array([between, other]), np.array([0.9, 0.8]))]
        assert average_precision(predictions, [truth]) == value
        assert torchmetrics_average_precision(predictions, [truth], 0.25) == pytest.approx(value)


def test_interpolation_takes_the_best_precision_at_this_recall_or_above():
    away = [50.0, 50, 60, 60]
    truth = [[0.0, 0, 10, 10], [20, 20, 30, 30], [80, 80, 90, 90]]
    predicted = [away, truth[0], truth[1]]
    # Hits at ranks 2 and 3: precisions 1/2 and 2/3, so 2/3 twice; the third box is never found.
    assert average_precision([(predicted, [3, 2, 1])], [truth]) == pytest.approx(2 * (2 / 3) / 3)


def test_images_compete_by_score_and_empty_images_count_their_false_alarms():
    none = np.zeros((0, 4))
    assert average_precision([(BOX, [0.5]), (BOX, [0.9])], [BOX, none]) == 0.5
    assert average_precision([(BOX, [0.5]), (none, [])], [BOX, none]) == 1
    assert average_precision([(none, []), (none, [])], [BOX, none]) == 0
    assert average_precision([([], [])], [BOX]) == 0


def test_average_precision_without_ground_truth_is_an_error():
    with pytest.raises(ValueError, match="undefined without a ground-truth box"):
        average_precision([(BOX, [0.5])], [np.zeros((0, 4))])
    with pytest.raises(ValueError, match="undefined without a ground-truth box"):
        average_precision([], [])


def test_misshapen_predictions_are_errors():
    with pytest.raises(InputError, match="2 images have predictions, but 1 have ground truth"):
        average_precision([(BOX, [1]), (BOX, [1])], [BOX])
    with pytest.raises(InputError, match="image 0 has predictions of shape"):
        average_precision([([[0, 0, 1]], [1])], [BOX])
    with pytest.raises(InputError, match="image 0 has 1 predicted boxes: give one score for each"):
        average_precision([(BOX, [1, 2])], [BOX])
    with pytest.raises(InputError, match="without NaN"):
        average_precision([(BOX, [np.nan])], [BOX])


@pytest.mark.parametrize("options", [{}, {"relative": 0.3}, {"percentile": 80.0, "min_area": 30.0}])
def test_localize_judges_each_latent_on_the_images_with_boxes(options):
    table = make_table()
    latents = [3, 30, 12]
    results = localize(table, latents, "Mass", iou_threshold=0.1, **options)
    assert results["rank"].tolist() == [1, 2, 3]
    assert results["latent"].tolist() == latents

    test = (table.images["split"] == "test").to_numpy()
    images = [row for row in np.flatnonzero(test) if table.images.loc[row, "Mass"] == 1]
    truth = [table.boxes(row, "Mass") for row in images]
    for row in results.itertuples():
        predictions = []
        for image in images:
            batch = torch.tensor(table.latents[image][..., row.latent], dtype=torch.float32)[None, None]
            upsampled = torch.nn.functional.interpolate(batch, size=table.image_size, mode="bilinear")[0, 0].numpy()
            predictions.append(heatmap_boxes(upsampled, **options))
        assert row.n_images == len(images)
        assert row.n_boxes == sum(map(len, truth)) > len(images)
        assert row.n_predictions == sum(len(boxes) for boxes, _ in predictions)
        assert row.average_precision == average_precision(predictions, truth, iou_threshold=0.1)
    assert (results["n_predictions"] > 0).all()


def test_several_thresholds_at_once_equal_one_at_a_time():
    table = make_table()
    thresholds = [Threshold(), Threshold(relative=0.3)]
    together = localize_thresholds(table, [3, 8], "Mass", thresholds=thresholds, iou_thresholds=[0.1, 0.25]).to_frame()
    assert len(together) == 8
    for name, options in (("percentile 95", {}), ("relative 0.3", {"relative": 0.3})):
        for iou_threshold in (0.1, 0.25):
            chosen = together[(together["threshold"] == name) & (together["iou_threshold"] == iou_threshold)]
            alone = localize(table, [3, 8], "Mass", iou_threshold=iou_threshold, **options)
            assert chosen[alone.columns].reset_index(drop=True).equals(alone)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_boxes_that_concepts_share_are_made_once_and_equal_those_of_each_alone(monkeypatch, num_workers):
    monkeypatch.setattr(map_boxes, "_FEW", 0)  # else so few would be made in this process
    table = make_table()
    table.gradcam_heads = ("Mass", "Suspicious_Calcification")
    asked = {"Mass": [3, 30, 12], "Suspicious_Calcification": [12, 8, 3]}
    options = {"thresholds": [Threshold(), Threshold(relative=0.3)], "iou_thresholds": [0.05, 0.1]}
    alone = [
        (localize_thresholds(table, latents, concept, **options), localize_baselines(table, concept, channels=[4, 0]))
        for concept, latents in asked.items()
    ]
    boxes, n_maps = MapBoxes(table, num_workers=num_workers), []
    read = table.maps
    if num_workers == 0:  # other processes would count for themselves
        monkeypatch.setattr(table, "maps", lambda chosen, row: n_maps.extend(chosen) or read(chosen, row))
    for (ours, baselines), (concept, latents) in zip(alone, asked.items(), strict=True):
        shared = localize_thresholds(table, latents, concept, boxes=boxes, **options)
        pd.testing.assert_frame_equal(shared.rows, ours.rows)
        # Grad-CAM is of a concept, so that the second one's must not be taken for the first's.
        pd.testing.assert_frame_equal(
            localize_baselines(table, concept, channels=[4, 0], boxes=boxes).rows, baselines.rows
        )
    if num_workers == 0:
        with_finding = [
            set(rows.image_rows[rows.labels == 1]) for rows in (table.rows(concept, split="test") for concept in asked)
        ]
        both = set.intersection(*with_finding)
        assert both
        assert len(n_maps) == 3 * sum(map(len, with_finding)) - 2 * len(both)  # both concepts ask for two of latents


def test_a_map_that_a_process_does_not_find_is_an_error_in_one_line(encoded, monkeypatch):
    monkeypatch.setattr(map_boxes, "_FEW", 0)
    line = r"^\S+ keeps no map of channel 3 for image row \d+; encode again with it in map_channels$"
    with pytest.raises(InputError, match=line):
        localize_baselines(encoded, "Mass", channels=[5, 3], boxes=MapBoxes(encoded, num_workers=2))


def test_boxes_of_another_table_are_an_error():
    with pytest.raises(InputError, match="the very table that is judged"):
        localize(make_table(), [3], "Mass", boxes=MapBoxes(make_table()))
    with pytest.raises(InputError, match="boxes are 3: give MapBoxes"):
        localize(make_table(), [3], "Mass", boxes=3)
    with pytest.raises(InputError, match="num_workers is -1"):
        MapBoxes(make_table(), num_workers=-1)


def test_positive_images_without_a_box_are_left_out():
    table = make_table()
    positive = table.rows("Mass", split="test")
    first = positive.image_rows[positive.labels == 1][0]
    before = localize(table, [3], "Mass")
    table.findings.loc[table.findings["image_row"] == first, ["xmin", "ymin", "xmax", "ymax"]] = np.nan
    assert localize(table, [3], "Mass")["n_images"][0] == before["n_images"][0] - 1


def test_a_latent_that_marks_the_boxes_localizes_and_a_dead_one_does_not():
    table = make_table()
    table.latents = np.zeros((len(table.images), *table.image_size, 2))
    for row in range(len(table.images)):
        for x0, y0, x1, y1 in table.boxes(row, "Mass").round().astype(int):
            table.latents[row, y0:y1, x0:x1, 0] = 1
    results = localize(table, [0, 1], "Mass", relative=0.3)
    assert results["average_precision"][0] > 0.6
    assert results["average_precision"][1] == 0
    assert results["n_predictions"][1] == 0


def test_nothing_to_localize_is_an_error():
    table = make_table()
    with pytest.raises(InputError, match="'density' is not a finding with boxes: choose one of Mass"):
        localize(table, [1], "density")
    with pytest.raises(InputError, match="the latents hold 99: give whole numbers from 0 to 39"):
        localize(table, [99], "Mass")
    table.findings["xmin"] = np.nan
    with pytest.raises(InputError, match="split 'test' has no image with a box of 'Mass'"):
        localize(table, [1], "Mass")


def test_localize_reads_an_encoded_table(encoded):
    results = localize(encoded, [1, 0, 3], "Mass", iou_threshold=0.05)
    own = encoded.findings[(encoded.findings["Mass"] == 1) & encoded.findings["xmin"].notna()]
    own = own[(encoded.images["split"] == "test").to_numpy()[own["image_row"]]]
    assert results["n_boxes"].tolist() == [len(own)] * 3
    assert results["n_images"].tolist() == [own["image_row"].nunique()] * 3
    assert results["n_predictions"][0] > 0
    assert results["n_predictions"][1] == 0  # a latent that never fires


def test_channels_and_grad_cam_are_judged_as_latents_are():
    """Latents that equal a channel, or the closed form of Grad-CAM, must get its numbers."""
    table = make_table()
    table.gradcam_heads = ("Mass",)
    options = {"thresholds": [Threshold(), Threshold(relative=0.3)], "iou_thresholds": [0.05, 0.1]}
    found = localize_baselines(table, "Mass", channels=[4, 0], **options).to_frame()
    same = make_table()
    cam = np.maximum(table.features @ table.head_weight["Mass"], 0) / np.prod(table.grid)
    same.latents = np.concatenate([table.features, cam], axis=-1)
    for method, latents, numbers in (("channel", [4, 0], [4, 0]), ("grad_cam", [table.features.shape[-1]], [-1])):
        expected = localize_thresholds(same, latents, "Mass", **options).to_frame()
        own = found[found["method"] == method].drop(columns="method").reset_index(drop=True)
        assert own["latent"].tolist() == numbers * 4
        assert own.drop(columns="latent").equals(expected.drop(columns="latent"))
    assert (found["average_precision"] > 0).all()
    assert set(found.columns) == {*expected.columns, "method"}


def test_baselines_leave_out_grad_cam_where_the_table_has_none():
    table = make_table()
    table.gradcam_heads = ("Suspicious_Calcification",)
    assert set(localize_baselines(table, "Mass", channels=[1]).rows["method"]) == {"channel"}
    assert set(localize_baselines(table, "Suspicious_Calcification", channels=[]).rows["method"]) == {"grad_cam"}
    with pytest.raises(InputError, match="'density' is not a finding with boxes"):
        localize_baselines(table, "density", channels=[1])


def ring_with_an_island():
    values = np.zeros((60, 60))
    values[5:35, 5:35] = 1
    values[9:31, 9:31] = 0
    values[15:25, 15:25] = 3  # inside the ring
    values[40:50, 40:50] = 2
    return values


def test_outer_contours_leave_out_an_island_inside_a_ring():
    values = ring_with_an_island()
    ring, island, beside = (5, 5, 35, 35, 1.0), (15, 15, 25, 25, 3.0), (40, 40, 50, 50, 2.0)
    assert found_boxes(values, relative=0.1) == sorted([ring, island, beside])
    assert found_boxes(values, relative=0.1, contours="outer") == sorted([ring, beside])
    values[4:8, 20] = 0  # a gap in the ring's edge: the island is reached from outside
    values[8, 20] = 0
    assert len(found_boxes(values, relative=0.1, contours="outer")) == 3


def reached_from_outside(above):
    """How many regions touch, by an edge, the background that edges join to the border of the image: a slow walk."""
    padded = np.pad(above, 1)
    labels, _ = ndimage.label(padded, structure=np.ones((3, 3)))
    seen, reached, edge = set(), set(), [(0, 0)]
    while edge:
        y, x = edge.pop()
        if (y, x) in seen or not (0 <= y < padded.shape[0] and 0 <= x < padded.shape[1]):
            continue
        if padded[y, x]:
            reached.add(int(labels[y, x]))
            continue
        seen.add((y, x))
        edge += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return len(reached)


def test_outer_contours_are_the_regions_that_the_outside_reaches():
    rng = np.random.default_rng(0)
    fewer = 0
    for _ in range(60):
        values = (rng.random((30, 26)) < 0.04).astype(float)
        for _ in range(4):  # frames, some of which enclose others
            y, x, size = rng.integers(0, 18), rng.integers(0, 16), rng.integers(3, 11)
            values[y, x : x + size] = values[y + size - 1, x : x + size] = 1
            values[y : y + size, x] = values[y : y + size, x + size - 1] = 1
        found = found_boxes(values, relative=0.5, min_area=0, contours="outer")
        assert len(found) == reached_from_outside(values > 0.5)
        fewer += len(found) < len(found_boxes(values, relative=0.5, min_area=0))
    assert fewer > 20


def test_a_box_can_be_scored_by_maximum_mean_sum_or_area_of_its_region():
    values = np.zeros((20, 30))
    values[4:8, 10:15] = 2
    values[5, 11] = 7
    values[7, 14] = 0  # a corner that the rectangle has and the region has not
    for rule, score in {"maximum": 7, "mean": (18 * 2 + 7) / 19, "sum": 18 * 2 + 7, "area": 19}.items():
        assert found_boxes(values, relative=0.1, box_score=rule) == [(10, 4, 15, 8, pytest.approx(score))]


def test_every_row_has_the_average_precision_under_each_box_score():
    table = make_table()
    images = [row for row in table.rows("Mass", split="test").image_rows if len(table.boxes(row, "Mass"))]
    truth = [table.boxes(row, "Mass") for row in images]
    rows = {
        rule: localize(table, [3, 12], "Mass", iou_threshold=0.1, percentile=80, box_score=rule) for rule in BOX_SCORES
    }
    seen = set()
    for place, latent in enumerate([3, 12]):
        for rule in BOX_SCORES:
            predictions = [
                heatmap_boxes(heatmap(table.maps([latent], row)[0], table.image_size), percentile=80, box_score=rule)
                for row in images
            ]
            expected = average_precision(predictions, truth, iou_threshold=0.1)
            assert rows[rule]["average_precision"][place] == pytest.approx(expected, abs=1e-12)
            for other in BOX_SCORES:
                assert rows[other][f"average_precision_{rule}"][place] == rows[rule]["average_precision"][place]
            seen.add(round(expected, 6))
    assert len(seen) > 2  # the rule matters


def test_localization_counts_images_whatever_the_unit_of_other_metrics():
    table = make_table()
    before = localize(table, [3], "Mass")
    twice = table.findings.loc[table.findings["Mass"] == 1].assign(xmin=np.nan, Mass=0)
    table.findings = pd.concat([table.findings, twice], ignore_index=True)  # more rows of the same images
    assert localize(table, [3], "Mass").equals(before)


IMPOSSIBLE_BOXES = [
    [20.0, 40, 17, 10],
    [20.0, 40, 37, 40],
    [20.0, 10, 17, 40],
    [0.0, 0, np.nan, 10],
    [0.0, 0, np.inf, 10],
    [np.nan] * 4,
]


@pytest.mark.parametrize("box", IMPOSSIBLE_BOXES)
def test_an_impossible_box_is_an_error_that_says_where_it_is(box):
    good = [0.0, 0, 10, 10]
    with pytest.raises(InputError, match="image 1 has predictions with an impossible box, number 1"):
        average_precision([([good], [1.0]), ([good, box], [1.0, 0.5])], [[good], [good]])
    with pytest.raises(InputError, match="image 0 has ground truth with an impossible box, number 0"):
        average_precision([([good], [1.0])], [[box]])


@pytest.mark.parametrize("threshold", [0, -0.1, 1.0001, 25, np.nan, np.inf, "half", None])
def test_an_iou_threshold_outside_0_to_1_is_an_error(threshold):
    with pytest.raises(InputError, match="iou_threshold is"):
        average_precision([(BOX, [1.0])], [BOX], iou_threshold=threshold)
    with pytest.raises(InputError, match="iou_threshold is"):
        localize(make_table(), [3], "Mass", iou_threshold=threshold)


@pytest.mark.parametrize(
    "settings",
    [
        {"percentile": np.nan}, {"percentile": -1}, {"percentile": 100.1}, {"percentile": "95"}, {"relative": np.nan},
        {"relative": -0.1}, {"min_area": -1}, {"min_area": np.nan}, {"box_score": "loudest"}, {"contours": "inner"},
    ],
)  # fmt: skip
def test_impossible_settings_of_boxes_are_errors_everywhere(settings):
    table = make_table()
    for call in (
        lambda: heatmap_boxes(np.ones((4, 4)), **settings),
        lambda: localize(table, [3], "Mass", **settings),
    ):
        with pytest.raises(InputError, match=f"{next(iter(settings))} is"):
            call()


def test_other_impossible_arguments_of_localization_are_errors():
    table = make_table()
    for latents in ([-1], [2.5], [np.nan], [[1, 2]], [True], ["a"]):
        with pytest.raises(InputError, match="the latents"):
            localize(table, latents, "Mass")
    with pytest.raises(InputError, match="the channels hold 6"):
        localize_baselines(table, "Mass", channels=[6])
    with pytest.raises(InputError, match="is empty"):
        localize_thresholds(table, [3], "Mass", thresholds=[])
    with pytest.raises(InputError, match="is empty"):
        localize_thresholds(table, [3], "Mass", iou_thresholds=[])
    for size in ((0, 4), (4.5, 4), (4, 4, 4), 4, (np.nan, 4)):
        with pytest.raises(InputError):
            heatmap(np.ones((2, 2)), size)
    for values in (np.full((2, 2), np.nan), np.zeros((0, 2)), np.array([["a"]])):
        with pytest.raises(InputError, match="expected finite values"):
            heatmap(values, (4, 4))
    with pytest.raises(InputError, match="scores of image 0 are not numbers"):
        average_precision([(BOX, ["high"])], [BOX])
    with pytest.raises(InputError, match="finite"):
        average_precision([(BOX, [np.inf])], [BOX])
