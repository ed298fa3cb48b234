"""What is published of a study, attacked: nobody is told by order, counts or differences, and no folder by its name."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from attack_published import attack
from helpers_study import random_sae

from mammosae_plugin.errors import InputError
from mammosae_plugin.hub.findings import KEY_FILE, Findings, stage_findings
from mammosae_plugin.hub.guard import load_or_make_key
from mammosae_plugin.hub.saes import origins_of, stage_saes
from mammosae_plugin.hub.small_groups import Firing, hidden_latents, rare_rows
from mammosae_plugin.hub.space import build_space
from mammosae_plugin.study import Study
from mammosae_plugin.study_folder import StudyFolder

FOLDER = "Klinik-Meier-2021"


@pytest.fixture(scope="module")
def study_folder(finished_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(finished_study.output, tmp_path_factory.mktemp("attacked") / FOLDER))
    (folder / KEY_FILE).write_text("5e" * 32 + "\n")  # else the order of the hashes is another one each time
    return folder


@pytest.fixture(scope="module")
def staged(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "findings"
    return stage_findings(study_folder, folder, licence="mit", examples=True, min_group=2)


@pytest.mark.parametrize("min_group", [2, 3, 5])
def test_no_table_tells_of_few_patients(study_folder: Path, min_group: int) -> None:
    study = StudyFolder(study_folder)
    found = Findings.of_study(study_folder, min_group=min_group)
    assert not any(attack(study, found, min_group=min_group).values())
    bare = attack(study, Findings.of_study(study_folder, min_group=1), min_group=min_group)
    assert bare["sums of few patients"] > 0 and bare["activity of few patients"] > 0


def test_no_image_of_the_examples_is_told_by_order_or_counts(study_folder: Path, staged: Path) -> None:
    study, key = StudyFolder(study_folder), load_or_make_key(study_folder / KEY_FILE)
    found = Findings.load(staged)
    assert found.examples is not None and found.examples["image"].nunique() > 0
    assert not any(attack(study, found, min_group=2, key=key).values())


def test_the_attack_tells_examples_that_are_in_the_datasets_order(study_folder: Path) -> None:
    from mammosae_plugin.hub import findings_tables
    from mammosae_plugin.hub.guard import hash_ids

    study, key = StudyFolder(study_folder), load_or_make_key(study_folder / KEY_FILE)
    examples = findings_tables.examples_table(study, lambda ids: hash_ids(ids, key), min_group=1).to_pandas()
    table = next(iter(study.layers[0].encoders.values())).table
    order = {one: place for place, one in enumerate(hash_ids(table.images["image_id"], key))}
    as_before = examples.sort_values("image", key=lambda column: column.map(order), kind="stable")
    whole = Findings.of_study(study_folder, min_group=1)
    told = attack(study, dataclasses.replace(whole, examples=as_before), min_group=5, key=key)
    assert told["images by order"] == examples["image"].nunique() > 5
    assert told["images by counts"] > 0


def test_the_name_of_a_folder_on_this_machine_reaches_no_published_file(
    study_folder: Path, staged: Path, tmp_path: Path
) -> None:
    space = build_space(Findings.of_study(study_folder), tmp_path / "space", compare=Findings.of_study(study_folder))
    source = tmp_path / FOLDER / "runs"
    random_sae(8, 12).save_model(source)
    saes = tmp_path / "staged"
    stage_saes(origins_of(source), saes, licence="mit")
    assert [path.name for path in saes.iterdir()] == ["bn2"]
    for folder in (staged, space, saes):
        for file in folder.rglob("*"):
            assert FOLDER not in file.relative_to(folder).as_posix()
            assert not file.is_file() or FOLDER.encode() not in file.read_bytes(), file
    sae = random_sae(8, 12)
    sae.cfg.metadata.hook_name = None
    sae.save_model(tmp_path / FOLDER / "unnamed")
    with pytest.raises(InputError, match="names no layer; say how it is to be called"):
        origins_of(tmp_path / FOLDER / "unnamed")


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
    assert hidden_latents(firing(*fires_in), {"Mass": classes}, 2)["Mass"].tolist() == [hidden]


def test_of_two_concepts_that_differ_by_one_patient_the_later_is_hidden() -> None:
    sums = {
        "Mass": [weights(0, 1, 2), weights(3, 4, 5)],
        "Calcification": [weights(0, 1), weights(2, 3, 4, 5)],  # less the mass: the third patient
        "Asymmetry": [weights(0, 3, 4), weights(1, 2, 5)],
    }
    hidden = hidden_latents(firing(0, 1, 2, 3, 4, 5), sums, 2)
    assert {name: bool(mask[0]) for name, mask in hidden.items()} == {
        "Mass": False,
        "Calcification": True,
        "Asymmetry": False,
    }


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
