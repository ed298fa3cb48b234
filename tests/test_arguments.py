"""Public functions and values that they cannot use: one line of ours, and nothing is computed."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from helpers_tables import make_table

from mammosae_plugin import distributed
from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.analysis import froc_of
from mammosae_plugin.analysis.intervention import intervene, latent_group, single_ablations, sweep, sweep_controls
from mammosae_plugin.analysis.localization import (
    Threshold,
    heatmap,
    heatmap_boxes,
    localize,
    localize_baselines,
    localize_thresholds,
)
from mammosae_plugin.analysis.probing import (
    RankedLatents,
    best_single_latent,
    class_mean_latents,
    rank_channels,
    rank_latents,
)
from mammosae_plugin.analysis.reconstruction import auroc_cost, reconstruction_metrics, reconstruction_quality
from mammosae_plugin.analysis.roles import latent_roles
from mammosae_plugin.arguments import entries, indices, numbers, whole
from mammosae_plugin.datasets import make_phantoms
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.measures.boxes import average_precision
from mammosae_plugin.measures.statistics import Resamples, classification_metrics, patient_bootstrap, settled

TABLE = make_table(n_patients=12, d_sae=12, n_dead=2)
RANKING = rank_latents(class_mean_latents(TABLE, "Mass"))
MAP = np.random.default_rng(0).random((12, 10)).astype(np.float32)
BOX = np.array([[0.0, 0.0, 5.0, 5.0]])
LABELS, PATIENTS = np.array([0, 1] * 10), np.arange(20) // 2
LOGITS = np.linspace(0, 1, 20)[:, None]

SMALL = {"n_bootstrap": 2, "min_patients": 1}
SWEPT = {"ranking": RANKING, "concept": "Mass", "ks": [1], "modes": ["activate"], "n_controls": 1}
CALLS = {
    class_mean_latents: {"table": TABLE, "concept": "Mass", "split": "training", "unit": "image", "score": "mean"},
    rank_channels: {"table": TABLE, "concept": "Mass", "split": "training", "unit": "image", "score": "mean"},
    rank_latents: {"class_scores": RANKING.scores},
    RankedLatents: {"indices": RANKING.indices, "scores": RANKING.scores},
    best_single_latent: {"table": TABLE, "concept": "Mass", "statistic": "max", "unit": "image", "seed": 0, **SMALL},
    latent_group: {"ranking": RANKING, "k": 2},
    intervene: {
        "table": TABLE,
        "group": [1],
        "mode": "activate",
        "head": "Mass",
        "error_term": False,
        "image_rows": [0],
        "passes": None,
        "alpha": None,
    },
    sweep: {"table": TABLE, **SWEPT, "split": "test", "error_term": False, "seed": 0, "alpha": None, **SMALL},
    sweep_controls: {"table": TABLE, **SWEPT, "split": "test", "error_term": False, "seed": 0, "alpha": None},
    heatmap: {"latent_map": MAP, "image_size": (20, 20)},
    heatmap_boxes: {
        "heatmap": MAP,
        "percentile": 95,
        "relative": None,
        "min_area": 1,
        "box_score": "sum",
        "contours": "all",
    },
    average_precision: {"predictions": [(BOX, [0.5])], "ground_truth": [BOX], "iou_threshold": 0.5},
    localize: {"table": TABLE, "latents": [1], "concept": "Mass", "split": "test", "relative": None},
    localize_thresholds: {
        "table": TABLE,
        "latents": [1],
        "concept": "Mass",
        "thresholds": [Threshold()],
        "iou_thresholds": [0.5],
    },
    localize_baselines: {"table": TABLE, "concept": "Mass", "channels": [1], "thresholds": [Threshold()]},
    reconstruction_metrics: {"table": TABLE, "concept": "Mass", "split": "test", "unit": "image", "seed": 0, **SMALL},
    auroc_cost: {"table": TABLE, "concept": "Mass"},
    reconstruction_quality: {"table": TABLE, "split": "test"},
    latent_roles: {"table": TABLE, "ranking": RANKING, "concept": "Mass", "top": 1, "n_controls": 1, "n_bootstrap": 2},
    settled: {"scores": LOGITS, "error": 0.0},
    classification_metrics: {"logits": LOGITS, "labels": LABELS},
    patient_bootstrap: {"patient_ids": PATIENTS, "n_bootstrap": 2, "seed": 0},
    Resamples: {"labels": LABELS, "patient_ids": PATIENTS, "n_bootstrap": 2, "seed": 0, "min_patients": 2},
}
# For every argument nonsense: no number, no name, no list of either, no table.
NONSENSE = (object(), 1j, float("nan"), b"x", {"a": 1}, [[1], [2, 3]], [object()], np.full((2, 2), np.nan))


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_nonsense_is_refused_in_one_line(function):
    function(**CALLS[function])
    for name in CALLS[function]:
        for value in NONSENSE:
            with pytest.raises(InputError) as error:
                function(**CALLS[function] | {name: value})
            assert "\n" not in str(error.value), (name, value)


@pytest.mark.parametrize(
    ("compute", "settings", "columns"),
    [
        (
            lambda: best_single_latent(**CALLS[best_single_latent]),
            {"concept", "statistic", "unit"},
            {"latent", "auroc_low"},
        ),
        (
            lambda: localize_thresholds(**CALLS[localize_thresholds]),
            {"concept", "split", "box_score"},
            {"average_precision"},
        ),
        (
            lambda: localize_baselines(**CALLS[localize_baselines]),
            {"concept", "split", "min_area"},
            {"method", "threshold"},
        ),
        (reconstruction_quality, {"split"}, {"split", "l0", "dead_share"}),
        (lambda: single_ablations(TABLE, [1, 2], head="Mass", image_rows=[0, 1]), {"head"}, {"latent", "loss_random"}),
        (lambda: froc_of([([[5, 5]], [0.5])], [BOX]), {"cpm", "fppi"}, {"fppi", "sensitivity"}),
        (lambda: RANKING, set(), {"class", "rank", "latent", "score"}),
    ],
    ids=["single", "localized", "baselines", "quality", "ablations", "froc", "ranking"],
)
def test_results_tell_the_settings_that_their_numbers_depend_on_and_give_a_frame(compute, settings, columns):
    result = compute(**CALLS.get(compute, {}))
    frame = result.to_frame()
    assert len(frame) and columns <= set(frame.columns)
    told = repr(result)
    assert all(f"{name}=" in told for name in settings) and len(told) < 2000
    with pytest.raises(FrozenInstanceError):
        setattr(result, next(iter(settings | {"scores"})), None)


@pytest.mark.parametrize(
    ("function", "argument", "value"),
    [
        (sweep, "ks", 5),
        (sweep, "ks", "5"),
        (sweep, "ks", []),
        (sweep, "ks", [1.5]),
        (sweep, "ks", [True]),
        (sweep, "modes", []),
        (sweep, "modes", "activate"),
        (sweep, "error_term", 1),
        (sweep, "alpha", True),
        (intervene, "passes", 5),
        (intervene, "group", [-1]),
        (intervene, "group", [True, False]),
        (intervene, "error_term", None),
        (intervene, "table", "results/latents"),
        (localize_thresholds, "thresholds", [0.3]),
        (localize_thresholds, "thresholds", Threshold()),
        (localize_thresholds, "iou_thresholds", 0.3),
        (localize, "latents", [1, 2, 1]),
        (localize, "latents", ["1"]),
        (localize_baselines, "channels", [0, 0]),
        (average_precision, "predictions", 5),
        (average_precision, "iou_threshold", True),
        (heatmap_boxes, "relative", 0),
        (heatmap_boxes, "relative", 1),
        (heatmap_boxes, "relative", True),
        (heatmap_boxes, "percentile", 100),
        (heatmap_boxes, "min_area", True),
        (latent_roles, "top", 0),
        (latent_roles, "top", -1),
        (patient_bootstrap, "patient_ids", "patient"),
        (patient_bootstrap, "n_bootstrap", 10**30),
        (settled, "scores", ["0.5"]),
        (classification_metrics, "labels", ["0", "1"] * 10),
    ],
)
def test_what_only_looks_like_a_value_is_refused(function, argument, value):
    with pytest.raises(InputError):
        function(**CALLS[function] | {argument: value})


def test_scalars_and_arrays_of_numpy_and_torch_are_numbers():
    assert whole(np.int64(3), "k", least=0) == whole(torch.tensor(3), "k", least=0) == 3
    assert sweep(**CALLS[sweep] | {"ks": np.array([1, 2])})["k"].tolist() == [1, 2]
    assert entries(torch.tensor([1, 2]), "ks") == [1, 2]
    for kind in (torch.bfloat16, torch.float64):
        np.testing.assert_array_equal(numbers(torch.ones(2, dtype=kind, requires_grad=True), "scores"), [1, 1])
    np.testing.assert_array_equal(indices(torch.tensor([2, 1]), "rows", 3), [2, 1])
    boxes, _ = heatmap_boxes(MAP, relative=np.float32(0.5))
    np.testing.assert_array_equal(boxes, heatmap_boxes(torch.from_numpy(MAP), relative=0.5)[0])


def test_a_ranking_of_lists_is_one_of_arrays():
    ranking = RankedLatents([[1, 0]], [[2, 1]])
    assert latent_group(ranking, 1).tolist() == [1]


def test_thresholds_given_twice_count_once():
    twice = localize_thresholds(**CALLS[localize_thresholds] | {"thresholds": [Threshold(), Threshold()]}).rows
    once = localize_thresholds(**CALLS[localize_thresholds]).rows
    assert len(twice) == len(once) == 1 and twice.equals(once)


def test_no_latents_give_an_empty_table():
    assert len(localize(TABLE, [], "Mass")) == 0


@pytest.mark.parametrize("path", [None, 5, "", ["folder"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InputError, match="a path is wanted"):
        LatentTable(path)


@pytest.mark.parametrize("device", ["gpu", None, 1.5, "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError), evaluation(torch.nn.Linear(1, 1), device=distributed.place(device)):
        pass


@pytest.mark.parametrize(
    "wrong", [{"n_patients": 1.5}, {"n_patients": True}, {"seed": None}, {"image_size": 96}, {"test_share": "half"}]
)
def test_impossible_phantoms_are_refused(wrong, tmp_path):
    with pytest.raises(InputError):
        make_phantoms(tmp_path / "phantoms", **{"n_patients": 1, "image_size": (96, 64)} | wrong)
    assert not (tmp_path / "phantoms").exists()


def test_what_has_no_hook_points_is_refused(tmp_path):
    with pytest.raises(InputError, match="wrap it"):
        extract_activations(torch.nn.Linear(1, 1), None, tmp_path / "store")
