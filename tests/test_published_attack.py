"""What is published of a study, attacked: nobody is told by order, counts or differences, and no secret leaves."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_inference as inference
import numpy as np
import pytest
from attack_published import ATTACKS, Case, left, publish
from helpers_findings import whole_study
from helpers_publishing import FOLDER, REPOS, Sent, Upload
from PIL import Image

from mammosae_plugin.findings import tables as findings_tables
from mammosae_plugin.hub.findings import Findings
from mammosae_plugin.privacy.guard import hash_ids
from mammosae_plugin.privacy.small_groups import Differences, Firing, rare_rows
from mammosae_plugin.study import Study

OF_TABLES = (
    "sums of few patients",
    "activity of few patients",
    "maxima beside what gives them away",
    "gaps in the ranks",
    "bins of few patients",
)
MIN_GROUP, FEW = 2, 5
"""What the small study is published with, and of how many patients some of its classes are fewer."""


@pytest.fixture(scope="module")
def sent(finished_study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[list[Sent], list[Sent]]]:
    study = whole_study(finished_study, tmp_path_factory.mktemp("attacked") / "study")
    return study, publish(study, tmp_path_factory.mktemp("sent"), min_group=MIN_GROUP)


@pytest.fixture(scope="module")
def case(sent: Any, phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    study, (whole, _) = sent
    images = sorted(phantom_root.rglob("*.png"))
    return Case.of(study, whole, tmp_path_factory.mktemp("arrived"), min_group=MIN_GROUP, images=images)


@pytest.mark.parametrize("what", ATTACKS)
def test_nothing_that_is_published_tells_of_a_patient_or_an_image(what: str, case: Case) -> None:
    assert case.findings.examples is not None and case.findings.examples["image"].nunique() > 0
    assert ATTACKS[what](case) == 0


@pytest.mark.parametrize("min_group", [3, FEW])
def test_no_table_tells_of_few_patients(case: Case, min_group: int) -> None:
    found = Findings.of_study(case.study.folder, min_group=min_group)
    assert not any(ATTACKS[what](dataclasses.replace(case, findings=found, min_group=min_group)) for what in OF_TABLES)


# Each attack finds what it is for


def without_rule(case: Case) -> Case:
    return dataclasses.replace(case, findings=case.bare)


def no_maxima(case: Case) -> Case:
    latents = case.findings.latents.assign(max_activation=np.nan)
    return dataclasses.replace(case, findings=dataclasses.replace(case.findings, latents=latents))


def gap_in_ranks(case: Case) -> Case:
    concepts = case.findings.concepts.assign(rank=lambda frame: frame["rank"].where(frame["rank"] != 2, 3))
    return dataclasses.replace(case, findings=dataclasses.replace(case.findings, concepts=concepts))


def in_the_datasets_order(case: Case) -> Case:
    examples = findings_tables.examples_table(case.study, lambda ids: hash_ids(ids, case.key), min_group=1).to_pandas()
    table = next(iter(case.study.layers[0].encoders.values())).table
    order = {one: place for place, one in enumerate(hash_ids(table.images["image_id"], case.key))}
    examples = examples.sort_values("image", key=lambda column: column.map(order), kind="stable")
    return dataclasses.replace(case, findings=dataclasses.replace(case.findings, examples=examples))


def writes(path: str, text: Callable[[Case], str]) -> Callable[[Case], Case]:
    """A line more in a file that arrived."""

    def leak(case: Case) -> Case:
        with (case.folders[path.partition("/")[0]].parent / path).open("a") as file:
            file.write(text(case) + "\n")
        return case

    return leak


def evaluates(number: Callable[[Case], float]) -> Callable[[Case], Case]:
    """Another number in an evaluation."""

    def leak(case: Case) -> Case:
        file = case.folders["sae"] / "layer_10" / "evaluation.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "mse": number(case)}))
        return case

    return leak


def small_count(case: Case) -> str:
    (concept, _), counts = next(iter(inference.small_classes(case.study, case.min_group).items()))
    return f"| {concept.replace('_', ' ')} | {min(counts)} images |"


def hidden_mean(case: Case) -> float:
    return float(case.bare.concepts["class_mean"][case.findings.concepts["class_mean"].isna()].max())


def an_activation(case: Case) -> float:
    table = next(iter(case.study.layers[0].encoders.values())).table
    return float(np.sort(table.mean_latents.data)[-1])


def an_image_as_a_figure(case: Case) -> Case:
    Image.open(case.images[0]).resize((128, 192), Image.Resampling.NEAREST).save(
        case.folders["findings"] / "figures" / "x.png"
    )
    return case


LEAKS: dict[str, Callable[[Case], Case]] = {
    "images by order": in_the_datasets_order,
    "images by counts": in_the_datasets_order,
    "sums of few patients": without_rule,
    "activity of few patients": without_rule,
    "maxima beside what gives them away": no_maxima,
    "gaps in the ranks": gap_in_ranks,
    "bins of few patients": without_rule,
    "counts that stand elsewhere": without_rule,
    "counts hidden in the findings, in any part": writes("model/README.md", small_count),
    "numbers hidden in the findings, in any part": evaluates(hidden_mean),
    "numbers of one image or patient": evaluates(an_activation),
    "ids": writes("space/README.md", lambda case: case.ids[0].replace("_", "-")),
    "hashes without the key": writes("sae/README.md", lambda case: hashlib.md5(case.ids[0].encode()).hexdigest()),
    "paths, folders and hosts": writes("findings/README.md", lambda _: f"from {FOLDER}"),
    "pixels of images": an_image_as_a_figure,
}


@pytest.mark.parametrize("what", ATTACKS)
def test_an_attack_tells_what_it_is_for(what: str, case: Case, tmp_path: Path) -> None:
    folders = {part: Path(shutil.copytree(folder, tmp_path / part)) for part, folder in case.folders.items()}
    found = Findings.of_study(case.study.folder, min_group=FEW)
    clean = dataclasses.replace(case, folders=folders, findings=found, min_group=FEW)
    before = ATTACKS[what](clean)
    assert ATTACKS[what](LEAKS[what](clean)) > before


@pytest.mark.parametrize(
    ("of", "key", "tells"), [("batch", "mse_loss", 0), ("batch", "mse", 1), ("training", "loss", 1)]
)
def test_a_batchs_loss_equals_an_activation_by_chance_and_nothing_else_does(
    of: str, key: str, tells: int, case: Case, tmp_path: Path
) -> None:
    folders = {part: Path(shutil.copytree(folder, tmp_path / part)) for part, folder in case.folders.items()}
    row = {"step": 1, "of": of, key: an_activation(case), "inner_mse_loss_16": 0.12345678}
    (folders["sae"] / "layer_10" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert ATTACKS["numbers of one image or patient"](dataclasses.replace(case, folders=folders)) == tells


@pytest.mark.parametrize(("aside", "tells"), [(0, 1), (1, 0)])
def test_a_number_beside_another_latent_equals_its_activation_by_chance(
    aside: int, tells: int, case: Case, tmp_path: Path
) -> None:
    folders = {part: Path(shutil.copytree(folder, tmp_path / part)) for part, folder in case.folders.items()}
    table = next(iter(case.study.layers[0].encoders.values())).table.mean_latents.tocoo()
    row = {"latent": int(table.col[table.data.argmax()]) + aside, "own": [{"mean": an_activation(case)}]}
    (folders["sae"] / "layer_10" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert ATTACKS["numbers of one image or patient"](dataclasses.replace(case, folders=folders)) == tells


# What people write


def test_no_planted_secret_leaves_and_no_harmless_text_is_stopped(sent: Any) -> None:
    whole, planted = sent[1]
    assert [(one.upload.part, one.code) for one in whole] == [(part, 0) for part in REPOS]
    assert len({text for one in planted for texts in one.upload.texts.values() for text in texts}) > 50
    assert not [(one.upload, left(one)) for one in planted if left(one)]


@pytest.mark.parametrize(
    ("code", "found", "files", "expected"),
    [
        (2, [("clinical", "README.md", "pt 88213"), ("contacts", "README.md", "pacs01")], {}, []),
        (2, [("clinical", "README.md", "pt 88213")], {}, ["pacs01"]),
        (2, [], {}, ["see pt 88213", "pacs01"]),  # for another reason
        (0, [], {"README.md": b""}, ["see pt 88213", "pacs01"]),
        (2, [("private values", "README.md", None)], {}, []),
    ],
)
def test_a_secret_that_a_persons_word_for_others_would_let_out_counts_as_left(
    code: int, found: Any, files: Any, expected: list[str]
) -> None:
    upload = Upload("sae", {"--author": ["see pt 88213", "pacs01"]}, "someone/saes")
    assert left(Sent(upload, code, "", found, files)) == expected


# The rule, on sums that are known


def weights(*images: int) -> np.ndarray:
    return np.isin(np.arange(6), images).astype(np.int64)


def firing(*images: int) -> Firing:
    """One latent, in six images of six patients."""
    from scipy.sparse import csr_array

    return Firing(csr_array(weights(*images)[:, None].astype(float)), list("abcdef"))


@pytest.mark.parametrize(
    ("fires_in", "classes", "hidden"),
    [
        ((0, 1, 2, 3, 4, 5), [weights(0, 1, 2), weights(3, 4, 5)], False),
        ((0, 1, 2), [weights(0, 1, 2), weights(3, 4, 5)], False),  # nothing is told of nobody
        ((0, 1, 2, 3), [weights(0, 1, 2), weights(3, 4, 5)], True),  # one patient's mean in the second class
        ((0,), [weights(0, 1, 2), weights(3, 4, 5)], True),
        ((), [weights(0, 1, 2), weights(3, 4, 5)], False),
    ],
)
def test_a_class_mean_is_hidden_where_a_latent_fires_in_few_of_its_patients(
    fires_in: tuple[int, ...], classes: list[np.ndarray], hidden: bool
) -> None:
    assert Differences.of(firing(*fires_in), {"Mass": classes}).hidden(2)["Mass"].tolist() == [hidden]


def test_of_two_concepts_that_differ_by_one_patient_the_later_is_hidden() -> None:
    sums = {
        "Mass": [weights(0, 1, 2), weights(3, 4, 5)],
        "Calcification": [weights(0, 1), weights(2, 3, 4, 5)],  # less the mass: the third patient
        "Asymmetry": [weights(0, 3, 4), weights(1, 2, 5)],
    }
    hidden = Differences.of(firing(0, 1, 2, 3, 4, 5), sums).hidden(2)
    assert {name: bool(mask[0]) for name, mask in hidden.items()} == {
        "Mass": False,
        "Calcification": True,
        "Asymmetry": False,
    }


@pytest.mark.parametrize(
    ("first", "second", "hidden"),
    [
        # The classes' total, less the second sum, is the last patient.
        ([weights(0, 1, 2), weights(3, 4, 5)], [weights(0, 1, 2, 3, 4)], [False, True]),
        # The first patient is hidden already, so that the second sum gives nobody away.
        ([weights(0), weights(1, 2, 3, 4, 5)], [weights(0, 1), weights(2, 3, 4, 5)], [True, False]),
    ],
)
def test_a_total_counts_as_shown_and_what_is_hidden_does_not(
    first: list[np.ndarray], second: list[np.ndarray], hidden: list[bool]
) -> None:
    found = Differences.of(firing(0, 1, 2, 3, 4, 5), {"first": first, "second": second}).hidden(2)
    assert [bool(mask[0]) for mask in found.values()] == hidden


def test_the_images_of_one_patient_count_as_one() -> None:
    from scipy.sparse import csr_array

    fires = Firing(csr_array(np.ones((6, 1))), ["a", "a", "a", "b", "b", "c"])
    assert fires.n_patients(weights(0, 1, 2) > 0).tolist() == [1]
    assert fires.n_patients(weights(2, 3, 5) > 0).tolist() == [3]
    half = Firing(csr_array(weights(0, 1, 2, 3)[:, None].astype(float)), ["a", "a", "a", "b", "b", "c"])
    assert half.n_silent_patients().tolist() == [2]


def test_patients_who_look_like_no_other_are_left_out() -> None:
    patients = ["a", "a", "b", "b", "c", "d", "d"]
    labels = [(0,), (1,), (1,), (0,), (1,), (1,), (1,)]
    assert rare_rows(patients, labels, 2).tolist() == [False] * 4 + [True] * 3
    assert not rare_rows(patients, labels, 1).any()
