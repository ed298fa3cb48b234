import copy
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_adapters import calibrated_classifier
from safetensors import safe_open
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mammosae_plugin.adapters import load_mammo_clip, new_classifier, save_classifier
from mammosae_plugin.datasets import PREPROCESSING, VinDrMammo, Vocabulary
from mammosae_plugin.datasets.concepts import Concept
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.units import EvaluationUnit, grouped_rows
from mammosae_plugin.training import ClassifierTraining, augmentation, train_classifier
from mammosae_plugin.training import classifier as classifier_module
from mammosae_plugin.training.augmentation import Augmentation, EpochImages
from mammosae_plugin.training.held_out import hold_out_patients

BACKGROUND = -1.25
QUICK = ClassifierTraining(epochs=3, batch_size=12, lr=1e-3, validation_share=0.3, augmentation="mammo_clip")


@pytest.fixture(scope="module")
def training_images(phantoms):
    return phantoms.select(split="training")


@pytest.fixture(scope="module")
def few_images(training_images):
    """Eight patients with two images each, half of them with a mass."""
    images = training_images.images
    ill = images.groupby("patient_id")["Mass"].max()
    chosen = [patient for value in (0, 1) for patient in ill.index[ill == value][:4]]
    return training_images.select(image_ids=images["image_id"][images["patient_id"].isin(chosen)])


@pytest.fixture(scope="module")
def trained(few_images, classifier, tmp_path_factory):
    """A finetuned classifier with patients held out: (path, model)."""
    path = tmp_path_factory.mktemp("trained") / "m.safetensors"
    return path, train_classifier(classifier, few_images, "Mass", path, QUICK)


def relabelled(dataset, **labels):
    """A copy of the dataset with other labels in its table of images."""
    changed = dataset.select()
    for concept, values in labels.items():
        changed.images[concept] = values
    return changed


def assert_same_weights(model, other):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def log_of(path):
    return [json.loads(line) for line in path.with_name(f"{path.stem}.log.jsonl").read_text().splitlines()]


# The head alone


def test_logistic_regression_changes_the_head_alone_and_fits_its_images(few_images, classifier, tmp_path):
    config = ClassifierTraining(kind="pretrained", l2=1e-3)
    model = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    for name, tensor in classifier.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, model.state_dict()[name]), name
    with torch.inference_mode():
        logits = torch.stack([model(few_images[i]["image"][None])[0, 0] for i in range(len(few_images))])
    labels = torch.tensor(few_images.images["Mass"].to_numpy())
    assert logits[labels == 1].mean() > logits[labels == 0].mean() + 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_logistic_regression_leaves_out_the_patients_held_out_and_judges_on_them(few_images, classifier, tmp_path):
    config = ClassifierTraining(kind="pretrained", validation_share=0.3)
    model = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    labels = few_images.images[["Mass"]].to_numpy()
    sides = classifier_module._sides(few_images, labels, ["Mass"], config)
    kept = few_images.select(image_ids=few_images.images["image_id"][sides.training])
    same = train_classifier(classifier, kept, "Mass", tmp_path / "k.safetensors", ClassifierTraining(kind="pretrained"))
    torch.testing.assert_close(model.classifier.weight, same.classifier.weight, rtol=1e-3, atol=1e-5)
    assert auroc_on(model, few_images, "Mass", sides.validation) == pytest.approx(
        model.source["metadata"]["outcome"]["validation_auroc"]
    )


def auroc_on(model, dataset, concept, items):
    with torch.inference_mode():
        logits = np.array([model(dataset[int(i)]["image"][None])[0, 0].item() for i in items])
    return roc_auc_score(dataset.images[concept].to_numpy()[items], logits)


def test_killed_while_reading_features_logistic_regression_ends_the_same(few_images, classifier, tmp_path, monkeypatch):
    config = ClassifierTraining(kind="pretrained", batch_size=200)
    whole = train_classifier(classifier, few_images, "Mass", tmp_path / "whole.safetensors", config)
    monkeypatch.setattr(classifier_module, "LogisticRegression", None)
    with pytest.raises(TypeError):
        train_classifier(classifier, few_images, "Mass", tmp_path / "broken.safetensors", config)
    monkeypatch.undo()
    monkeypatch.setattr(type(few_images), "__getitem__", None)  # the features are there already
    continued = train_classifier(classifier, few_images, "Mass", tmp_path / "broken.safetensors", config)
    assert_same_weights(whole, continued)


def test_a_linear_probe_moves_nothing_but_the_head_not_even_batch_norm_statistics(few_images, classifier, tmp_path):
    config = ClassifierTraining(kind="linear_probe", epochs=4, batch_size=4, lr=1e-2, augmentation="none")
    model = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    for name, tensor in classifier.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, model.state_dict()[name]), name
    losses = [row["training_loss"] for row in log_of(tmp_path / "m.safetensors") if "training_loss" in row]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", ["pretrained", "linear_probe"])
@pytest.mark.parametrize(("concept", "n_class"), [("density", 4), ("birads", 5)])
def test_a_graded_concept_has_an_output_per_class(few_images, tmp_path, kind, concept, n_class):
    graded = relabelled(few_images, **{concept: np.arange(len(few_images)) % n_class})
    config = ClassifierTraining(kind=kind, epochs=1, batch_size=8, augmentation="none", validation_share=0.4, seed=1)
    path = tmp_path / "m.safetensors"
    model = train_classifier(calibrated_classifier(0), graded, concept, path, config)
    assert model.n_class == n_class
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, n_class)
    assert 0 <= model.source["metadata"]["outcome"]["validation_auroc"] <= 1


# The loss, the schedule, the metric


def test_finetuning_equals_a_plain_loop_written_with_torchs_own_parts(few_images, classifier, tmp_path):
    """And so the results of earlier versions: the flips are drawn as the transforms draw them."""
    config = ClassifierTraining(epochs=2, batch_size=6, lr=1e-3, augmentation="flips", warm_up=0.4, weight_decay=0.1)
    found = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)

    torch.manual_seed(0)
    model = classifier.with_head(1).train()
    labels = torch.tensor(few_images.images["Mass"].to_numpy()).float()[:, None]
    loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=(labels == 0).sum() / labels.sum())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    flips = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])
    step, total = 0, 6
    for epoch in range(2):
        order = torch.randperm(16, generator=classifier_module.torch_generator(0, epoch))
        torch.manual_seed(classifier_module.torch_generator(0, epoch, 1).initial_seed())
        for rows in DataLoader(order, batch_size=6):
            warm = 0.4 * total
            rate = (step + 1) / warm if step < warm else math.cos(math.pi / 2 * (step - warm) / (total - warm)) ** 2
            optimizer.param_groups[0]["lr"] = 1e-3 * rate
            images = torch.stack([flips(few_images[int(row)]["image"]) for row in rows])
            loss = loss_of(model(images), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_positives_count_negatives_over_positives_in_the_loss():
    generator = np.random.default_rng(0)
    labels = (generator.random((50, 3)) < [0.1, 0.5, 0.8]).astype(np.float64)
    logits = generator.normal(0, 3, (50, 3))
    weight = (1 - labels).sum(0) / labels.sum(0)
    p = 1 / (1 + np.exp(-logits))
    expected = -(weight * labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
    targets = torch.tensor(labels).float()
    found = classifier_module._loss(torch.tensor(logits), targets, classifier_module._class_weights(targets))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    plain = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
    assert classifier_module._loss(torch.tensor(logits), targets.double(), None).item() == pytest.approx(plain)


def test_classes_of_a_graded_concept_count_by_their_rarity():
    labels = np.array([0] * 10 + [1] * 5 + [2] * 3 + [3] * 2)
    weights = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(classifier_module._class_weights(torch.tensor(labels)), weights, rtol=1e-6)
    logits = np.random.default_rng(0).normal(size=(20, 4))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    of_item = weights[labels]
    expected = -(of_item * log_p[np.arange(20), labels]).sum() / of_item.sum()
    found = classifier_module._loss(torch.tensor(logits), torch.tensor(labels), torch.tensor(weights))
    assert found.item() == pytest.approx(expected)


def test_without_class_weights_every_image_counts_the_same(few_images, classifier, tmp_path):
    rare = relabelled(few_images, Mass=[1] + [0] * 15)
    losses = {}
    for weights in ("balanced", "none"):
        config = ClassifierTraining(
            kind="linear_probe", epochs=1, batch_size=16, augmentation="none", class_weights=weights
        )
        path = tmp_path / f"{weights}.safetensors"
        train_classifier(classifier, rare, "Mass", path, config)
        losses[weights] = log_of(path)[-1]["training_loss"]
    torch.manual_seed(0)
    model = classifier.with_head(1)
    with torch.inference_mode():
        p = np.array([model(rare[i]["image"][None]).double().sigmoid().item() for i in range(16)])
    each = -np.where(rare.images["Mass"] == 1, np.log(p), np.log(1 - p))
    assert losses["none"] == pytest.approx(each.mean(), rel=1e-4)
    assert losses["balanced"] == pytest.approx((each * np.array([15] + [1] * 15)).mean(), rel=1e-4)


@pytest.mark.parametrize(("warm_up", "total"), [(0.1, 200), (0.25, 7), (0.0, 30), (0.9, 10)])
def test_the_learning_rate_rises_in_a_line_and_falls_as_a_cosine(warm_up, total):
    config = ClassifierTraining(lr=3e-4, warm_up=warm_up)
    rates = np.array([classifier_module._rate(step, total, config) for step in range(total)])
    n = warm_up * total
    steps = np.arange(total, dtype=np.float64)
    cosine = np.cos(np.pi / 2 * (steps - n) / (total - n)) ** 2
    expected = 3e-4 * np.where(steps < n, (steps + 1) / max(n, 1e-9), cosine)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert rates.max() < 3e-4 * (1 + 1 / max(n, 1))


def test_aurocs_are_scikit_learns_one_against_the_rest_or_a_mean_over_findings():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(60, 4)), generator.integers(0, 4, (60, 1))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = roc_auc_score(labels[:, 0], p, multi_class="ovr", average="macro")
    assert classifier_module._auroc(logits, labels) == pytest.approx(expected)
    several = (generator.random((60, 4)) < 0.3).astype(int)
    expected = np.mean([roc_auc_score(several[:, m], logits[:, m]) for m in range(4)])
    assert classifier_module._auroc(logits, several) == pytest.approx(expected)
    assert classifier_module._auroc(logits[:, :1], several[:, :1]) == pytest.approx(
        roc_auc_score(several[:, 0], logits[:, 0])
    )


def test_the_epoch_with_the_best_validation_auroc_is_kept_the_first_of_equals(
    few_images, classifier, tmp_path, monkeypatch
):
    seen, judge = [], classifier_module._Run._validate

    def judged(self, epoch):
        seen.append(copy.deepcopy(self.model.state_dict()))
        return judge(self, epoch)[0], [0.6, 0.8, 0.8, 0.7][epoch]

    monkeypatch.setattr(classifier_module._Run, "_validate", judged)
    config = QUICK.model_copy(update={"epochs": 4, "augmentation": "none"})
    model = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    outcome = model.source["metadata"]["outcome"]
    assert (outcome["epoch"], outcome["validation_auroc"]) == (2, 0.8)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, seen[1][name]), name
    assert not torch.equal(seen[1]["classifier.weight"], seen[2]["classifier.weight"])
    rows = [row for row in log_of(tmp_path / "m.safetensors") if "validation_auroc" in row]
    assert [(row["epoch"], row["validation_auroc"], row["best_epoch"]) for row in rows] == [
        (1, 0.6, 1), (2, 0.8, 2), (3, 0.8, 2), (4, 0.7, 2)
    ]  # fmt: skip


def test_the_recorded_auroc_is_that_of_the_saved_weights_on_the_patients_held_out(trained, few_images):
    path, model = trained
    labels = few_images.images[["Mass"]].to_numpy()
    sides = classifier_module._sides(few_images, labels, ["Mass"], QUICK)
    outcome = model.source["metadata"]["outcome"]
    assert auroc_on(model, few_images, "Mass", sides.validation) == pytest.approx(outcome["validation_auroc"])
    patients = few_images.images["patient_id"].to_numpy()
    assert outcome["n_patients"] == {
        side: len(set(patients[getattr(sides, side)])) for side in ("training", "validation")
    }
    assert outcome["n_images"] == {"training": len(sides.training), "validation": len(sides.validation)}
    assert outcome["epoch"] == log_of(path)[-1]["best_epoch"]


@pytest.mark.parametrize("unit", ["patient", "patient by maximum"])
@pytest.mark.parametrize("kind", ["finetuned", "pretrained"])
def test_the_epoch_may_be_chosen_by_patient_as_pandas_and_scikit_learn_put_images_together(
    training_images, classifier, tmp_path, unit, kind
):
    config = ClassifierTraining(kind=kind, epochs=1, validation_share=0.5, augmentation="none")
    path = tmp_path / "m.safetensors"
    model = train_classifier(classifier, training_images, "Mass", path, config, unit=unit)
    held = classifier_module._sides(training_images, training_images.images[["Mass"]].to_numpy(), ["Mass"], config)
    known = training_images.images.iloc[held.validation]
    with torch.inference_mode():
        logits = torch.cat([model(training_images[i]["image"][None]) for i in held.validation])[:, 0].double()
    how = "max" if "maximum" in unit else "mean"
    own = pd.DataFrame({"p": torch.sigmoid(logits).numpy(), "label": known["Mass"].to_numpy()})
    together = own.groupby(known["patient_id"].to_numpy()).agg({"p": how, "label": "max"})
    assert len(together) < len(own)
    said = model.source["metadata"]
    assert said["outcome"]["validation_auroc"] == pytest.approx(roc_auc_score(together["label"], together["p"]))
    assert said["unit"] == unit
    with pytest.raises(InputError, match="holds a classifier of other settings"):
        train_classifier(classifier, training_images, "Mass", path, config)


def test_several_findings_or_classes_are_judged_by_their_units():
    generator = np.random.default_rng(0)
    images = pd.DataFrame({"patient_id": np.repeat(list("abcdefghij"), 3), "split": "training"})
    images["density"], images["Mass"] = generator.integers(0, 3, 30), (generator.random(30) < 0.2).astype(int)
    concept, unit = Concept("density", "graded", ("A", "B", "C")), EvaluationUnit("patient")
    rows = [
        grouped_rows(images, one, chosen=np.ones(30, dtype=bool), unit=unit, where="")
        for one in (concept, Concept("Mass"))
    ]
    logits = generator.normal(size=(30, 3))
    p = pd.DataFrame(softmax(logits, axis=1)).groupby(images["patient_id"]).mean().to_numpy()
    truth = images.groupby("patient_id")["density"].max().to_numpy()
    seen = [number for number in range(3) if (truth == number).any()]
    wanted = np.mean([roc_auc_score(truth == number, p[:, number]) for number in seen])
    assert classifier_module._auroc(logits, images[["density"]].to_numpy(), rows[:1]) == pytest.approx(wanted)
    both = classifier_module._auroc(logits[:, :2], images[["Mass", "Mass"]].to_numpy(), [rows[1], rows[1]])
    scores = pd.DataFrame(expit(logits[:, :2])).groupby(images["patient_id"]).mean().to_numpy()
    mass = images.groupby("patient_id")["Mass"].max()
    assert both == pytest.approx(np.mean([roc_auc_score(mass, scores[:, m]) for m in range(2)]))


def test_judging_the_patients_held_out_changes_nothing_in_the_training_of_the_others(few_images, classifier, tmp_path):
    config = QUICK.model_copy(update={"epochs": 1, "batch_size": 4})
    model = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    sides = classifier_module._sides(few_images, few_images.images[["Mass"]].to_numpy(), ["Mass"], config)
    others = few_images.select(image_ids=few_images.images["image_id"][sides.training])
    alone = config.model_copy(update={"validation_share": 0.0})
    assert_same_weights(train_classifier(classifier, others, "Mass", tmp_path / "o.safetensors", alone), model)


def test_without_patients_held_out_the_last_epoch_is_kept_and_none_is_judged(few_images, classifier, tmp_path):
    config = QUICK.model_copy(update={"validation_share": 0.0, "epochs": 2, "augmentation": "none"})
    model = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    assert model.source["metadata"]["outcome"] == {
        "n_patients": {"training": 8, "validation": 0},
        "n_images": {"training": 16, "validation": 0},
        "validation_auroc": None,
        "epoch": 2,
    }


# Patients held out


@pytest.mark.parametrize("seed", range(20))
def test_patients_are_held_out_whole_and_every_class_with_two_patients_is_on_both_sides(seed):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(20, 120))
    patients = [f"p{number}" for number in generator.integers(0, n // 3, n)]
    grade = generator.choice(5, n, p=[0.5, 0.3, 0.12, 0.05, 0.03])
    has_class = grade[:, None] == np.arange(5)
    held = hold_out_patients(patients, has_class, 0.25, seed)
    owner = np.array(patients)
    assert not set(owner[held]) & set(owner[~held])
    for grade in range(5):
        with_it = set(owner[has_class[:, grade]])
        assert not with_it or with_it & set(owner[~held])
        if len(with_it) >= 4:
            assert with_it & set(owner[held])
    share = len(set(owner[held])) / len(set(owner))
    assert 0.1 < share < 0.5


@pytest.mark.parametrize("seed", range(20))
def test_a_large_share_still_leaves_a_patient_of_every_class_in_training(seed):
    generator = np.random.default_rng(seed)
    patients = [f"p{number}" for number in range(12)]
    has_class = generator.random((12, 6)) < 0.3
    held = hold_out_patients(patients, has_class, 0.9, seed)
    assert (has_class[~held].any(axis=0) == has_class.any(axis=0)).all()
    assert held.sum() >= 4


def test_of_two_patients_with_a_class_one_is_held_out_whatever_the_share_and_a_single_one_never():
    patients = [f"p{number}" for number in range(50)]
    has_class = np.stack([np.arange(50) >= 0, np.arange(50) < 2, np.arange(50) == 7], axis=1)
    for seed in range(10):
        held = hold_out_patients(patients, has_class, 0.04, seed)
        assert held[:2].sum() == 1
        assert not held[7]
        assert held.sum() == 2


def test_the_share_held_out_is_that_asked_for_among_patients_with_and_without_a_finding():
    patients = [f"p{number // 4}" for number in range(1600)]
    positive = np.random.default_rng(0).random(1600) < 0.03
    held = hold_out_patients(patients, np.stack([~positive, positive], axis=1), 0.2, 0)
    owner = np.array(patients)
    for rows in (positive, np.ones(1600, dtype=bool)):
        share = len(set(owner[held & rows])) / len(set(owner[rows]))
        assert share == pytest.approx(0.2, abs=0.02)


def test_which_patients_are_held_out_depends_on_the_seed_and_not_on_the_order_of_images():
    patients = np.array([f"p{number // 2}" for number in range(80)])
    has_class = np.arange(80)[:, None] % 8 == np.arange(8)
    sets = []
    for seed, order in [(0, np.arange(80)), (0, np.random.default_rng(3).permutation(80)), (1, np.arange(80))]:
        held = hold_out_patients(patients[order], has_class[order], 0.3, seed)
        sets.append(set(patients[order][held]))
    assert sets[0] == sets[1] != sets[2]


# Augmentation


def square():
    """A square that is off the centre, with a gradient in it, on the background."""
    image = torch.full((3, 96, 64), BACKGROUND)
    image[:, 30:70, 10:50] = torch.linspace(1, 2, 40)
    return image


@pytest.mark.parametrize("warp", [augmentation.affine, lambda image, g: augmentation.elastic(image, g, 400, 8)])
def test_warps_keep_the_background_exactly_and_move_the_rest(warp):
    for seed in range(5):
        moved = warp(square(), np.random.default_rng(seed))
        assert moved.shape == (3, 96, 64)
        assert moved.min() == BACKGROUND
        assert (moved == BACKGROUND).float().mean() > 0.4
        assert moved.max() <= 2 + 1e-5
        assert (moved - square()).abs().max() > 0.5


def test_no_seam_appears_where_the_frame_ends():
    image = torch.full((1, 64, 64), BACKGROUND)
    image[0, 0, 0] = 5  # away from the borders that enter the image
    for seed in range(5):
        moved = augmentation.affine(image, np.random.default_rng(seed))
        assert ((moved != BACKGROUND).sum()) < 30


def test_affine_maps_are_drawn_from_the_released_ranges(monkeypatch):
    drawn = []
    monkeypatch.setattr(augmentation.v2, "affine", lambda image, **given: drawn.append(given) or image)
    for seed in range(300):
        augmentation.affine(square(), np.random.default_rng(seed))
    values = np.array(
        [[d["angle"], d["translate"][0] / 64, d["translate"][1] / 96, d["scale"], *d["shear"]] for d in drawn]
    )
    low, high = np.array([[-20, 20], [-0.1, 0.1], [-0.1, 0.1], [0.8, 1.2], [-20, 20], [-20, 20]]).T
    assert (values >= low).all() and (values <= high).all()
    assert (values.min(0) < low + 0.03 * (high - low)).all() and (values.max(0) > high - 0.03 * (high - low)).all()
    np.testing.assert_allclose(np.corrcoef(values.T) - np.eye(6), 0, atol=0.25)


def test_the_elastic_map_moves_pixels_by_alpha_times_blurred_noise():
    height, width, alpha, sigma = 60, 50, 30.0, 3.0
    noise = np.random.default_rng(5).uniform(-1, 1, (2, height, width))
    offsets = np.arange(-12, 13)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(noise, ((0, 0), (12, 12), (12, 12)), mode="symmetric")
    blurred = np.apply_along_axis(
        np.convolve, 1, np.apply_along_axis(np.convolve, 2, padded, kernel, "valid"), kernel, "valid"
    )
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    ramps = np.stack([columns, rows, columns]).astype(np.float32)
    moved = augmentation.elastic(torch.from_numpy(ramps), np.random.default_rng(5), alpha, sigma).numpy()
    inner = (slice(8, -8), slice(8, -8))
    np.testing.assert_allclose((moved - ramps)[0][inner], alpha * blurred[0][inner], atol=1e-3)
    np.testing.assert_allclose((moved - ramps)[1][inner], alpha * blurred[1][inner], atol=1e-3)
    assert np.abs(alpha * blurred).max() > 1


def test_mammo_clips_recipe_applies_each_map_to_half_of_the_images_and_fills_the_range_again(monkeypatch):
    calls = []
    dimmed = lambda name: lambda image, *given: calls.append(name) or 0.5 * image  # noqa: E731
    for name in ("fixed_affine", "three_points_moved", "elastic"):
        monkeypatch.setattr(augmentation, name, dimmed(name))
    change = Augmentation("mammo_clip")
    low = (0 - PREPROCESSING["mean"]) / PREPROCESSING["std"]
    high = (1 - PREPROCESSING["mean"]) / PREPROCESSING["std"]
    upright = 0
    for seed in range(400):
        image = change(square(), np.random.default_rng(seed))
        assert image.min().item() == pytest.approx(low) and image.max().item() == pytest.approx(high)
        upright += bool(image[0, 50, 45] > image[0, 50, 20])
    assert 160 < calls.count("fixed_affine") < 240
    assert 160 < calls.count("elastic") == calls.count("three_points_moved") < 240
    assert 160 < upright < 240
    calls.clear()
    for seed in range(20):
        Augmentation("mammo_clip", elastic_affine=0)(square(), np.random.default_rng(seed))
    assert "elastic" in calls and "three_points_moved" not in calls


def test_the_fixed_affine_map_is_that_of_albumentations_1_4_7():
    # Affine(rotate=20, translate_percent=0.1, scale=[0.8, 1.2], shear=20), drawn there for an image of 1520 x 912
    scale_x, scale_y = 1.0045098885474435, 0.9619736549801657
    expected = [[0.70442766, 0.65802873, -273.93962179], [-0.62899103, 0.78420811, 602.39935342]]
    np.testing.assert_allclose(augmentation.fixed_affine_matrix((1520, 912), scale_x, scale_y), expected, rtol=1e-7)
    rows, columns = np.mgrid[0:1520:8, 0:912:8]
    points = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    moves = []
    for seed in range(60):
        scales = np.random.default_rng(seed).uniform(0.8, 1.2, 2)
        moved = augmentation.fixed_affine_matrix((1520, 912), *scales) @ points
        inside = ((moved >= 0) & (moved < [[912], [1520]])).all(0)
        moves.append(np.hypot(*(moved - points[:2]))[inside].mean())
    assert np.mean(moves) == pytest.approx(329, abs=5)  # REFERENCE: the mean displacement of what stays in the frame


def test_the_affine_maps_move_pixels_where_their_matrices_say(monkeypatch):
    image = torch.full((3, 96, 64), BACKGROUND)
    image[:, 48, 32] = 4.0
    drawn = []
    for name in ("fixed_affine_matrix", "three_points_matrix"):
        original = getattr(augmentation, name)

        def kept(*given, original=original):
            drawn.append(original(*given))
            return drawn[-1]

        monkeypatch.setattr(augmentation, name, kept)
    for warp in (augmentation.fixed_affine, lambda image, g: augmentation.three_points_moved(image, g, 3.0)):
        moved = warp(image, np.random.default_rng(1))[0] - BACKGROUND
        x, y = drawn[-1] @ (32, 48, 1)
        rows, columns = np.mgrid[0:96, 0:64]
        weight = moved.double().numpy()
        assert (weight * columns).sum() / weight.sum() == pytest.approx(x, abs=0.3)
        assert (weight * rows).sum() / weight.sum() == pytest.approx(y, abs=0.3)
    scales = {tuple(np.random.default_rng(seed).uniform(*augmentation.SCALE, 2)) for seed in range(5)}
    assert all(x != y for x, y in scales)  # drawn independently


def test_the_three_points_of_the_elastic_map_move_by_at_most_its_reach():
    points = np.array([[48 + 21, 32 + 21], [48 + 21, 32 - 21], [48 - 21, 32 - 21]])  # of an image of 96 x 64
    moves = []
    for seed in range(200):
        matrix = augmentation.three_points_matrix((96, 64), np.random.default_rng(seed), 5.0)
        moves.append(np.column_stack([points, np.ones(3)]) @ matrix.T - points)
    assert np.abs(moves).max() == pytest.approx(5.0, abs=0.05)
    assert abs(np.mean(moves)) < 0.3


def test_the_reflection_enters_with_the_elastic_map_and_the_background_with_the_affine_one():
    image = torch.full((3, 96, 64), 1.0)
    image[:, 0, 0] = BACKGROUND
    reflected = augmentation.three_points_moved(image, np.random.default_rng(0), 20.0)
    assert (reflected > 0.9).float().mean() > 0.98
    # Tissue at the chest wall reaches the frame: nothing dark enters there.
    assert (augmentation.elastic(image, np.random.default_rng(0), 400, 8)[:, 40:] > 0.99).all()
    assert (augmentation.fixed_affine(image, np.random.default_rng(0)) == BACKGROUND).float().mean() > 0.1


# The recipe of Mammo-CLIP


def test_the_recipe_of_mammo_clip_is_that_of_its_scripts_and_any_setting_replaces_its_own():
    recipe = ClassifierTraining(recipe="mammo_clip")
    expected = {
        "epochs": 30,
        "batch_size": 8,
        "lr": 5e-5,
        "weight_decay": 1e-4,
        "class_weights": "balanced",
        "drop_connect": 0.2,
        "dropout": 0.4,
        "batch_norm_momentum": 0.01,
        "drop_last": True,
        "augmentation": "mammo_clip",
        "elastic_alpha": 10,
        "elastic_sigma": 15,
        "elastic_affine": 50,
        "warm_up_from_zero": True,
        "warm_up": 1 / 30,
        "autocast": "float16",
        "kind": "finetuned",
    }
    assert {name: getattr(recipe, name) for name in expected} == expected
    other = ClassifierTraining(recipe="mammo_clip", epochs=20, batch_size=6, elastic_affine=0.0)
    assert (other.epochs, other.batch_size, other.warm_up, other.dropout) == (20, 6, 1 / 20, 0.4)
    assert ClassifierTraining(**other.model_dump()) == other
    assert ClassifierTraining(recipe="mammo_clip", epochs="12") == ClassifierTraining(recipe="mammo_clip", epochs=12)
    assert ClassifierTraining().recipe == "mammosae"


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(30, 13), (7, 11), (20, 2048)])
def test_a_warm_up_from_zero_begins_with_rate_0_and_reaches_lr_after_one_epoch(epochs, steps_per_epoch):
    config = ClassifierTraining(recipe="mammo_clip", epochs=epochs)
    total = epochs * steps_per_epoch
    rates = np.array([classifier_module._rate(step, total, config) for step in range(total)])
    assert rates[0] == 0
    np.testing.assert_allclose(rates[:steps_per_epoch], 5e-5 * np.arange(steps_per_epoch) / steps_per_epoch)
    assert rates.argmax() == steps_per_epoch
    share = (np.arange(steps_per_epoch, total) - steps_per_epoch) / (total - steps_per_epoch)
    np.testing.assert_allclose(rates[steps_per_epoch:], 5e-5 * np.cos(share * np.pi / 2) ** 2, rtol=1e-9, atol=1e-20)


def test_regularisation_is_in_the_training_network_and_not_in_the_saved_one(few_images, classifier, tmp_path):
    model = classifier.with_head(1)
    config = ClassifierTraining(recipe="mammo_clip", epochs=1)
    classifier_module._regularise(model, config)
    blocks = [block for stage in model.blocks for block in stage]
    for number, block in enumerate(blocks):
        if hasattr(block, "drop_path"):
            assert block.drop_path.drop_prob == pytest.approx(0.2 * number / len(blocks))
    assert blocks[-1].drop_path.drop_prob > 0.15
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.01}
    images = torch.stack([few_images[row]["image"] for row in range(4)])
    torch.manual_seed(0)
    first, second = model.train()(images), model(images)
    assert not torch.equal(first, second)
    model.eval()
    with torch.inference_mode():
        assert torch.equal(model(images), model(images))
    path = tmp_path / "m.safetensors"
    saved = train_classifier(classifier, few_images, "Mass", path, config)
    assert saved.drop_rate == 0
    assert not any(type(module).__name__ == "DropPath" for module in saved.modules())
    assert path.with_name("m.log.jsonl").exists()


def test_the_ragged_last_batch_is_dropped_and_too_few_images_are_refused(few_images, classifier, tmp_path, monkeypatch):
    sizes = []
    step = classifier_module._Run._step
    monkeypatch.setattr(
        classifier_module._Run,
        "_step",
        lambda run, images, items: sizes.append(len(images)) or step(run, images, items),
    )
    config = ClassifierTraining(epochs=2, batch_size=6, augmentation="none", drop_last=True)
    train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    assert sizes == [6, 6, 6, 6]
    config = ClassifierTraining(epochs=2, batch_size=17, drop_last=True)
    with pytest.raises(InputError, match="the 16 training images are not one batch of 17, and drop_last leaves out"):
        train_classifier(classifier, few_images, "Mass", tmp_path / "n.safetensors", config)


def test_float16_without_a_gpu_is_float32_and_true_means_bfloat16(few_images, classifier, tmp_path):
    models = [
        train_classifier(
            *(classifier, few_images, "Mass", tmp_path / f"{autocast}.safetensors"),
            ClassifierTraining(epochs=1, augmentation="none", autocast=autocast),
        )
        for autocast in ("none", "float16")
    ]
    assert_same_weights(*models)
    assert ClassifierTraining(autocast=True).autocast == "bfloat16"
    assert ClassifierTraining(autocast=False).autocast == "none"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 training needs a GPU")
def test_float16_on_a_gpu_scales_its_gradients(few_images, classifier, tmp_path):
    config = ClassifierTraining(epochs=2, augmentation="none", autocast="float16")
    model = train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config, device="cuda")
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_kind_affine_warps_every_image_and_flips_warp_none(monkeypatch):
    calls = []
    monkeypatch.setattr(augmentation, "affine", lambda image, generator: calls.append(1) or image)
    seen = {
        kind: [Augmentation(kind)(square(), np.random.default_rng(s)) for s in range(20)]
        for kind in ("affine", "flips")
    }
    assert len(calls) == 20
    assert len({image.numpy().tobytes() for image in seen["flips"]}) == 4


def test_augmented_images_are_the_same_for_any_number_of_workers_and_any_order(few_images):
    n = len(few_images)
    change = Augmentation("mammo_clip", elastic_alpha=300.0, elastic_sigma=6.0)
    alone = EpochImages(few_images, range(n), change, seed=1, epoch=2)
    expected = torch.stack([alone[item] for item in range(n)])
    order = np.random.default_rng(0).permutation(n).tolist()
    for workers, batch_size in [(0, 5), (2, 3)]:
        shuffled = EpochImages(few_images, order, change, seed=1, epoch=2)
        found = torch.cat(list(DataLoader(shuffled, batch_size, num_workers=workers)))
        assert torch.equal(found, expected[order])
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        changed = EpochImages(few_images, range(n), change, **other)
        assert sum(torch.equal(changed[item], expected[item]) for item in range(n)) < n / 3


def test_flips_are_the_same_for_any_number_of_workers(few_images):
    images = EpochImages(few_images, range(16), Augmentation("flips"), seed=0, epoch=0)
    found = [torch.cat(list(DataLoader(images, 4, num_workers=workers))) for workers in (0, 2)]
    assert torch.equal(*found)


# Kills


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["finetuned", "linear_probe"])
def test_killed_at_any_step_and_continued_equals_the_undisturbed_run(
    few_images, classifier, tmp_path, monkeypatch, kind
):
    config = QUICK.model_copy(update={"kind": kind, "batch_size": 4, "checkpoint_every": 2})
    monkeypatch.setattr(classifier_module, "LOG_EVERY", 1)
    monkeypatch.setattr(classifier_module, "_auroc", lambda *given: 0.5)  # so that the first epoch stays best
    whole = train_classifier(classifier, few_images, "Mass", tmp_path / "whole.safetensors", config)
    step, calls = classifier_module._Run._step, []

    def dying(self, *args):
        calls.append(1)
        if len(calls) in (2, 6, 9, 13):
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(classifier_module._Run, "_step", dying)
    path, kills = tmp_path / "broken.safetensors", 0
    for workers in (0, 2, 0, 0, 0):
        try:
            continued = train_classifier(classifier, few_images, "Mass", path, config, num_workers=workers)
            break
        except Killed:
            kills += 1
            with path.with_name("broken.log.jsonl").open("a") as log:
                log.write('{"epoch": 1, "st')
    assert kills == 4
    assert_same_weights(whole, continued)
    assert whole.source["metadata"] == continued.source["metadata"]
    assert whole.source["metadata"]["outcome"]["epoch"] == 1
    assert log_of(tmp_path / "whole.safetensors") == log_of(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "broken.log.jsonl", "broken.safetensors", "whole.log.jsonl", "whole.safetensors"
    ]  # fmt: skip


CHILD = """
import os, signal, sys
from mammosae_plugin import files
from mammosae_plugin.adapters import load_mammo_clip
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.training import ClassifierTraining, train_classifier

replace, writes = os.replace, []

def dying(source, target):
    writes.append(target)
    if len([name for name in writes if "unfinished" in str(name)]) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
encoder, root, ids, path, config = sys.argv[1:]
dataset = VinDrMammo(root, image_size=(96, 64)).select(image_ids=ids.split(","))
train_classifier(load_mammo_clip(encoder), dataset, "Mass", path, ClassifierTraining.model_validate_json(config))
"""


@pytest.mark.slow
def test_a_process_killed_while_it_writes_its_state_is_continued_to_the_same_bits(
    few_images, phantom_root, classifier, tmp_path
):
    save_classifier(classifier, tmp_path / "encoder.safetensors", metadata={})
    encoder = load_mammo_clip(tmp_path / "encoder.safetensors")
    config = QUICK.model_copy(update={"batch_size": 4, "checkpoint_every": 1, "epochs": 2})
    path = tmp_path / "broken.safetensors"
    arguments = [tmp_path / "encoder.safetensors", phantom_root, ",".join(few_images.images["image_id"]), path]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments), config.model_dump_json()], capture_output=True
    )
    assert child.returncode == -9, child.stderr.decode()[-2000:]
    assert not path.exists()
    with safe_open(tmp_path / "broken.unfinished.safetensors", "pt") as state:
        assert json.loads(state.metadata()["progress"])["step"] == 4
    continued = train_classifier(encoder, few_images, "Mass", path, config)
    whole = train_classifier(encoder, few_images, "Mass", tmp_path / "whole.safetensors", config)
    assert_same_weights(whole, continued)
    assert whole.source["metadata"] == continued.source["metadata"]


def test_a_state_of_other_settings_and_a_damaged_one_are_refused(few_images, classifier, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    monkeypatch.setattr(classifier_module, "save_classifier", None)
    config = QUICK.model_copy(update={"augmentation": "none", "epochs": 2})
    with pytest.raises(TypeError):
        train_classifier(classifier, few_images, "Mass", path, config)
    with pytest.raises(InputError, match=r"other settings; delete it to start anew \(config\.\w+ is .* there and"):
        train_classifier(classifier, few_images, "Mass", path, config.model_copy(update={"lr": 2e-3}))
    state = tmp_path / "m.unfinished.safetensors"
    whole = state.read_bytes()
    for damaged in (whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1]), whole.replace(b'\\"step\\"', b'\\"stap\\"', 1)):
        assert damaged != whole
        state.write_bytes(damaged)
        with pytest.raises(InputError, match=r"m\.unfinished\.safetensors is damaged; delete it"):
            train_classifier(classifier, few_images, "Mass", path, config)


# What is saved


def test_finetuning_does_not_change_the_encoder_it_starts_from(few_images, tmp_path):
    encoder = new_classifier("tinynet_e", 0, seed=3)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    both = relabelled(few_images, Suspicious_Calcification=np.arange(16) % 2)
    model = train_classifier(
        encoder, both, ["Mass", "Suspicious_Calcification"], tmp_path / "m.safetensors",
        ClassifierTraining(epochs=1, batch_size=8, augmentation="flips", validation_share=0.25),
    )  # fmt: skip
    assert model.n_class == 2
    for name, tensor in before.items():
        assert torch.equal(tensor, encoder.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert not torch.equal(model.conv_head.weight, encoder.conv_head.weight)


def test_a_trained_classifier_says_what_it_is(few_images, classifier, tmp_path):
    path = tmp_path / "m.safetensors"
    config = ClassifierTraining(kind="pretrained")
    model = train_classifier(classifier, few_images, "Mass", path, config, metadata={"preprocessing": PREPROCESSING})
    said = load_mammo_clip(path).source["metadata"]
    assert said["concepts"] == ["Mass"]
    assert said["dataset"] == few_images.fingerprint
    assert said["preprocessing"] == PREPROCESSING
    assert ClassifierTraining(**said["config"]) == config
    again = train_classifier(classifier, few_images, "Mass", path, config, metadata={"preprocessing": PREPROCESSING})
    assert_same_weights(model, again)
    with pytest.raises(InputError, match="other settings"):
        train_classifier(classifier, few_images, "Mass", path, ClassifierTraining(kind="pretrained", l2=2.0))


def test_neither_file_nor_log_names_a_patient_or_an_image(trained, few_images):
    path, _ = trained
    with safe_open(path, "pt") as file:
        text = json.dumps(file.metadata()) + path.with_name("m.log.jsonl").read_text()
    for column in ("patient_id", "image_id"):
        assert not [name for name in few_images.images[column] if name in text]


def test_the_log_shows_steps_before_the_first_epoch_ends(few_images, classifier, tmp_path):
    config = ClassifierTraining(kind="linear_probe", epochs=1, batch_size=1, augmentation="none", warm_up=0.0)
    train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    first, last = log_of(tmp_path / "m.safetensors")
    assert (first["epoch"], first["step"], last["step"]) == (1, 10, 16)
    assert first["lr"] == pytest.approx(5e-5 * math.cos(math.pi / 2 * 9 / 16) ** 2)
    assert first["loss"] > 0 and last["training_loss"] > 0


def test_an_epochs_row_has_the_mean_loss_of_its_steps(few_images, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier_module, "LOG_EVERY", 1)
    config = ClassifierTraining(kind="linear_probe", epochs=2, batch_size=6, augmentation="none", lr=1e-2)
    train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
    rows = log_of(tmp_path / "m.safetensors")
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]
    for first in (0, 4):
        mean = np.mean([row["loss"] for row in rows[first : first + 3]])
        assert rows[first + 3]["training_loss"] == pytest.approx(mean)


def test_rows_of_findings_train_with_their_own_labels(phantom_root, classifier, tmp_path):
    rows = VinDrMammo(phantom_root, image_size=(96, 64), unit="finding_row").select(split="training")
    assert len(rows) > len(rows.images)
    path = tmp_path / "m.safetensors"
    config = ClassifierTraining(kind="linear_probe", epochs=1, augmentation="none", validation_share=0.3)
    model = train_classifier(classifier, rows, "Mass", path, config)
    n = model.source["metadata"]["outcome"]["n_images"]
    assert n["training"] + n["validation"] == len(rows)
    labels = classifier_module._labels(rows, ["Mass"])
    assert labels[:, 0].tolist() == [rows[item]["labels"]["Mass"] for item in range(len(rows))]
    assert classifier_module._item_patients(rows) == [rows[item]["patient_id"] for item in range(len(rows))]


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_autocast_trains_in_bfloat16_and_saves_float32(few_images, classifier, tmp_path, kind):
    heads = []
    for autocast in (False, True):
        config = ClassifierTraining(kind=kind, epochs=1, augmentation="none", autocast=autocast)
        model = train_classifier(classifier, few_images, "Mass", tmp_path / f"{autocast}.safetensors", config)
        heads.append(model.classifier.weight)
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert not torch.equal(*heads)
    torch.testing.assert_close(*heads, rtol=0, atol=0.3 * heads[0].abs().max().item())


# What is refused, before any image is read


@pytest.mark.parametrize(
    "settings",
    [
        {"warm_up": 1.0}, {"warm_up": -0.1}, {"validation_share": 1.0}, {"validation_share": -0.1}, {"epochs": 0},
        {"lr": 0.0}, {"batch_size": 0}, {"checkpoint_every": 0}, {"kind": "probe"}, {"augmentation": "elastic"},
        {"class_weights": "inverse"}, {"elastic_sigma": 0.0, "augmentation": "mammo_clip"}, {"epoch": 3},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        ClassifierTraining(**settings)


def test_settings_of_an_elastic_map_that_is_not_used_are_refused():
    with pytest.raises(InputError, match="elastic_alpha means nothing with augmentation 'affine'"):
        ClassifierTraining(elastic_alpha=300.0)
    assert ClassifierTraining(**ClassifierTraining().model_dump()) == ClassifierTraining()


@pytest.fixture
def unreadable(few_images, monkeypatch):
    monkeypatch.setattr(type(few_images), "__getitem__", None)
    return few_images


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("Suspicious_Lymph_Node", "no training image has class 1 of Suspicious_Lymph_Node"),
        ("Masss", r"the dataset phantom has no labels for 'Masss' \(nearest: Mass\)"),
        (["Mass", "density"], "density has 4 classes and needs a classifier of its own"),
        ([], "no concept is given"),
    ],
)
def test_a_concept_that_cannot_be_learnt_is_refused(unreadable, classifier, tmp_path, concept, message):
    with pytest.raises(InputError, match=message):
        train_classifier(classifier, unreadable, concept, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_concept_without_a_negative_image_is_refused(unreadable, classifier, tmp_path):
    with pytest.raises(InputError, match="no training image has class 0 of Mass"):
        train_classifier(classifier, relabelled(unreadable, Mass=1), "Mass", tmp_path / "m.safetensors")


def test_a_dataset_without_labels_for_the_concept_is_refused(unreadable, classifier, tmp_path):
    without = unreadable.select()
    without.images = without.images.drop(columns="Mass")
    without.vocabulary = Vocabulary(concept for name, concept in without.vocabulary.items() if name != "Mass")
    with pytest.raises(InputError, match="has no labels for 'Mass'"):
        train_classifier(classifier, without, "Mass", tmp_path / "m.safetensors")


def test_a_finding_of_one_patient_cannot_be_held_out(unreadable, classifier, tmp_path):
    first = unreadable.images["patient_id"] == unreadable.images["patient_id"][0]
    with pytest.raises(InputError, match="no image of the patients held out has class 1 of Mass"):
        train_classifier(
            classifier, relabelled(unreadable, Mass=first.astype(int)), "Mass", tmp_path / "m.safetensors", QUICK
        )


def test_a_buffer_of_nan_is_told_before_training_and_training_without_it_goes(few_images, classifier, tmp_path):
    config = ClassifierTraining(kind="pretrained", validation_share=0)
    network = copy.deepcopy(classifier)
    network.network.register_buffer("op_threshs", torch.tensor([0.5, torch.nan]))
    with pytest.raises(InputError, match=r"buffer op_threshs holds 1 of 2 values .* \(network\.op_threshs = None\)"):
        train_classifier(network, few_images, "Mass", tmp_path / "mass.safetensors", config)
    assert not (tmp_path / "mass.safetensors").exists()
    network.network.op_threshs = None
    assert train_classifier(network, few_images, "Mass", tmp_path / "mass.safetensors", config).n_class == 1


def test_a_loss_that_is_not_finite_ends_training(few_images, classifier, tmp_path):
    config = ClassifierTraining(epochs=2, lr=1e30, warm_up=0.0, batch_size=8, augmentation="none")
    with pytest.raises(InputError, match="training diverged in epoch 1: the loss is not finite; lower lr"):
        train_classifier(classifier, few_images, "Mass", tmp_path / "m.safetensors", config)
