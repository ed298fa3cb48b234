"""Which images are shown for a latent, and what is drawn of them, where it is known what is right."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_array

from mammosae_plugin.analysis import choose_examples, example_maps
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.visualization import draw_example


def table_of(values, patients, **labels):
    """A table of one latent, 2, with these maxima in test images; a training image, last, has the largest of all."""
    n = len(values)
    images = pd.DataFrame({"patient_id": [*patients, "other"], "split": ["test"] * n + ["training"]})
    for name, own in labels.items():
        images[name] = [*own, 0]
    codes = np.zeros((n + 1, 4), dtype=np.float32)
    codes[:, 2] = [*values, 100]
    codes[:, 1] = 1
    known = [Concept(name, "graded", tuple("abc")) if name == "density" else Concept(name) for name in labels]
    codes = csr_array(codes)
    return SimpleNamespace(images=images, max_latents=codes, mean_latents=codes, d_sae=4, vocabulary=Vocabulary(known))


def shown(examples, kind):
    return [one.image for one in examples if one.kind == kind]


def test_the_strongest_are_of_as_many_patients_and_say_how_strong_they_are():
    table = table_of([5, 9, 8, 0, 1, -3], ["a", "b", "b", "c", "d", "e"], Mass=[1, 0, 0, 0, None, 0])
    examples = choose_examples(table, 2, n_strongest=2, n_range=0)
    first, second = (one for one in examples if one.kind == "strongest")
    assert (first.image, first.rank, first.activation, first.quantile) == (1, 1, 9, 1.0)
    assert (second.image, second.rank, second.activation, second.quantile) == (0, 2, 5, 0.5)  # 1, 5, 8, 9 fire
    assert first.classes == {"Mass": 0} and second.classes == {"Mass": 1}
    assert shown(choose_examples(table, 2), "strongest") == [1, 0, 4]  # fewer than eight fire
    assert choose_examples(table, 0) == []


def test_the_range_is_even_and_of_other_patients_than_the_strongest():
    values = np.arange(1, 101)
    table = table_of(values, [f"p{number}" for number in range(100)], Mass=[0] * 100)
    examples = choose_examples(table, 2, n_strongest=3, n_range=4)
    assert [round(one.quantile, 2) for one in examples if one.kind == "range"] == pytest.approx(
        [0.13, 0.38, 0.63, 0.88]
    )
    assert not set(shown(examples, "range")) & set(shown(examples, "strongest"))
    same = table_of(values, ["a"] * 50 + ["b"] * 50, Mass=[0] * 100)
    examples = choose_examples(same, 2, n_strongest=1, n_range=4)
    assert shown(examples, "strongest") == [99] and shown(examples, "range") == [12]  # nobody is left but a


def test_a_missing_label_makes_no_image_healthy_and_a_grade_no_image_ill():
    labels = {"Mass": [0, 0, -1, 1, 0, 0], "Calc": [0, np.nan, 0, 0, 0, 0], "density": [2, 0, 0, 0, None, 1]}
    table = table_of([1, 9, 8, 7, 2, 0], list("abcdef"), **labels)
    healthy = [one for one in choose_examples(table, 2) if one.kind == "healthy"]
    assert [one.image for one in healthy] == [4, 0]  # the last is healthy, but the latent is silent there
    assert healthy[0].classes == {"Mass": 0, "Calc": 0, "density": None}
    assert shown(choose_examples(table, 2, concepts=["Mass"]), "healthy") == [1, 4, 0]
    assert shown(choose_examples(table, 2, concepts=["density"]), "healthy") == []


def test_equals_come_in_an_order_that_the_seed_decides_and_the_file_does_not():
    table = table_of([3.0] * 40, [f"p{number}" for number in range(40)], Mass=[0] * 40)
    orders = {tuple(shown(choose_examples(table, 2, seed=seed), "strongest")) for seed in range(4)}
    assert len(orders) == 4 and tuple(range(8)) not in orders
    assert choose_examples(table, 2, seed=1) == choose_examples(table, 2, seed=1)


def test_what_is_not_there_is_refused():
    table = table_of([1.0], ["a"], Mass=[0])
    for wrong in ({"latent": 4}, {"latent": 2, "split": "validation"}, {"latent": 2, "concepts": ["Cyst"]}):
        with pytest.raises(InputError):
            choose_examples(table, **wrong)


def test_images_of_which_no_map_was_kept_show_their_peaks(encoded: LatentTable):
    latent = 3
    rows = [one.image for one in choose_examples(encoded, latent)]
    maps = example_maps(encoded, latent, rows)
    whole = {row for row in rows if latent in encoded.map_latents(row)}
    assert whole and whole < set(rows) == set(maps)
    for row in rows:
        values, is_whole = maps[row]
        assert is_whole == (row in whole) and values.shape == encoded.grid
        assert values.max() == pytest.approx(encoded.max_latents[row, latent], rel=1e-6)
    assert example_maps(encoded, 40, rows[:2]).keys() <= set(rows[:2])  # of a latent whose maps were never kept


def test_heat_and_boxes_lie_where_they_should_and_the_crop_round_the_peak():
    gray = np.full((400, 240), 90, dtype=np.uint8)
    values = np.zeros((20, 12))
    values[15, 3] = 2.0  # its centre is at x 70, y 310
    drawn = draw_example(gray, values, [[20, 40, 80, 100]])
    painted = np.asarray(drawn.whole).astype(int)
    assert drawn.whole.size == (240, 400) and drawn.crop is not None and drawn.crop.size == (100, 100)
    coloured = np.ptp(painted, axis=2) > 30
    y, x = np.nonzero(coloured[200:])
    assert abs(x.mean() - 70) < 3 and abs(y.mean() + 200 - 310) < 3
    assert painted[40, 50].tolist() == [255, 42, 42] and painted[38, 50].tolist() == [0, 0, 0]
    assert (painted[5:30] == 90).all()  # elsewhere the image is as it was
    crop = np.asarray(drawn.crop).astype(int)
    assert (np.ptp(crop, axis=2) == 0).all() and (crop == 255).any() and (crop == 0).any()  # no heat, but its outline
    y, x = np.nonzero((crop != 90).any(axis=2))
    assert abs(x.mean() - 50) < 3 and abs(y.mean() - 50) < 3


def test_large_images_are_made_smaller_and_a_place_at_the_edge_is_cropped_inside():
    gray = Image.fromarray(np.zeros((1520, 912), dtype=np.uint8))
    values = np.zeros((48, 29))
    values[0, 28] = 1.0
    drawn = draw_example(gray, values, crop_side=0.5, longest=600)
    assert max(drawn.whole.size) == 600 and drawn.crop is not None and drawn.crop.size == (600, 600)


@pytest.mark.parametrize("nowhere", [None, np.ones((1, 1)), np.zeros((4, 4))])
def test_without_a_place_the_image_is_shown_whole_with_its_boxes(nowhere):
    drawn = draw_example(np.zeros((40, 40), dtype=np.uint8), nowhere, [[5, 5, 20, 20]])
    assert drawn.crop is None and (np.asarray(drawn.whole)[5, 10] == (255, 42, 42)).all()


@pytest.mark.parametrize(
    "given",
    [
        (np.zeros((4, 4)), None, ()),
        (np.zeros((4, 4, 3), dtype=np.uint8), None, ()),
        (np.zeros((4, 4), dtype=np.uint8), np.full((2, 2), np.nan), ()),
        (np.zeros((4, 4), dtype=np.uint8), np.zeros(4), ()),
        (np.zeros((4, 4), dtype=np.uint8), None, [1, 2, 3]),
    ],
)
def test_what_cannot_be_drawn_is_refused(given):
    with pytest.raises(InputError):
        draw_example(*given)
