"""Names of latents: planted ones are found, random ones have none, and no name stands without its score."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from scipy.stats import hypergeom
from typer.testing import CliRunner

from mammosae_plugin.cli import app
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation import name_by_labels, name_by_labels_of
from mammosae_plugin.interpretation.attributes import attributes_of
from mammosae_plugin.interpretation.by_labels import tail_of_share
from mammosae_plugin.interpretation.named_files import check_names, read_names
from mammosae_plugin.interpretation.names import COLUMNS

N_PATIENTS, N_PLANTED, N_RANDOM = 240, 24, 100
SHARES = {"mass": 0.25, "calcification": 0.2, "distortion": 0.15, "clip": 0.3}


def images(seed: int = 0) -> pd.DataFrame:
    """Two images of each patient; findings are the patient's, the view and the clip the image's."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(N_PATIENTS), 2)
    found = pd.DataFrame({"patient_id": patients, "view": ["CC", "MLO"] * N_PATIENTS})
    for name, share in SHARES.items():
        own = rng.random(N_PATIENTS if name != "clip" else len(patients)) < share
        found[name] = (own if name == "clip" else own[patients]).astype(float)
    found["age"] = rng.integers(35, 85, N_PATIENTS)[patients].astype(float)
    found["split"] = np.where(patients < 160, "training", "test")
    return found.assign(image_id=[f"{row}.png" for row in range(len(found))])


def planted(frame: pd.DataFrame, seed: int = 1) -> tuple[np.ndarray, list[str]]:
    """Latents that fire where an image has an attribute, weakly anywhere else, and now and then strongly; then latents
    that fire at random in a share of the images that is like a finding's."""
    rng = np.random.default_rng(seed)
    names = [*SHARES, "view=MLO", "view=CC"]
    has = {**{name: frame[name] == 1 for name in SHARES}, **{f"view={v}": frame["view"] == v for v in ("MLO", "CC")}}
    of = [names[number % len(names)] for number in range(N_PLANTED)]
    columns = []
    for name in of:
        own = has[name].to_numpy() & (rng.random(len(frame)) < 0.8)
        elsewhere = rng.random(len(frame)) < 0.03
        columns.append(own * rng.uniform(1, 3, len(frame)) + elsewhere * rng.uniform(0, 2, len(frame)))
    columns += [(rng.random(len(frame)) < 0.2) * rng.exponential(size=len(frame)) for _ in range(N_RANDOM)]
    return np.stack(columns, axis=1), of


@pytest.fixture(scope="module")
def table():
    """What naming reads of a latents table."""
    frame = images()
    codes, _ = planted(frame)
    vocabulary = Vocabulary([Concept(name) for name in SHARES if name != "clip"])
    return SimpleNamespace(
        images=frame, vocabulary=vocabulary, concepts=tuple(vocabulary), splits=("training", "test"),
        folder=Path("TABLE"), d_sae=codes.shape[1], mean_latents=csr_array(codes), max_latents=csr_array(codes),
        live_latents=lambda split: np.arange(codes.shape[1]),
    )  # fmt: skip


def test_planted_latents_are_named_and_random_ones_are_not(table):
    _, truth = planted(table.images)
    found = name_by_labels(table)
    names = found.latents.set_index("latent")["name"]
    assert np.mean(names[:N_PLANTED].to_numpy() == np.array(truth)) >= 0.9
    assert (names[N_PLANTED:] != "").mean() <= 0.05
    assert list(found.latents.columns[: len(COLUMNS)]) == list(COLUMNS)
    right = found.latents[:N_PLANTED].query("not abstained")
    assert (right["q"] <= 0.05).all() and (right["check_low"] > 0.5).all() and (right["check_n"] == 160).all()
    assert ((right["low"] <= right["score"]) & (right["score"] <= right["high"])).all()
    assert (right["score"] == right["n_with"] / right["n"]).all()
    assert right["column"].tolist() == [
        "" if name in table.vocabulary else re.split("[= ]", name)[0] for name in right["name"]
    ]
    with_mass = table.images.query("split == 'training' and mass == 1")["patient_id"].nunique()
    of_mass = right[right["name"] == "mass"]
    assert set(of_mass["n_fewest"]) == {with_mass} and of_mass["check_fewest"].nunique() == 1
    assert set(found.about["tried"]) >= {*SHARES, "view=CC", "view=MLO"}
    assert sum(name.startswith("age ") for name in found.about["tried"]) == 2


def test_names_under_exchanged_labels_are_as_rare_as_the_rate_says(table):
    frame, rng = table.images, np.random.default_rng(5)
    codes, _ = planted(frame)
    order = rng.permutation(N_PATIENTS)
    exchanged = {name: frame[name].to_numpy().reshape(-1, 2)[order].ravel() for name in SHARES}
    found = name_by_labels_of(codes, exchanged, frame["patient_id"], min_excess=0)
    assert found.latents["abstained"].mean() >= 0.95


def test_a_name_never_stands_without_its_score(table):
    found = name_by_labels(table, ["mass", "calcification"], [])
    for latent in range(N_PLANTED + 10):
        row, said = found.latents.iloc[latent], found.told(latent)
        if row["abstained"]:
            assert row["name"] == "" and row["reason"] and said == f"no name: {row['reason']}"
        else:
            assert row["name"] in ("mass", "calcification") and row["reason"] == ""
            assert f"{row['name']} ({row['score']:.2f}" in said and "by chance 0." in said and "q " in said
    assert set(found.candidates["name"]) == {"mass", "calcification"}
    assert (found.candidates.groupby("latent")["p"].apply(lambda p: p.is_monotonic_increasing)).all()
    with pytest.raises(InputError, match="latent 500 was not asked for"):
        found.told(500)


def test_chance_is_exact_for_attributes_of_patients_and_of_images():
    of_patients = np.array([1.0] * 12 + [0.0] * 28)
    np.testing.assert_allclose(tail_of_share(of_patients, 8), hypergeom.sf(np.arange(9) - 1, 40, 12, 8), rtol=1e-9)
    shares, rng = np.array([0.5] * 10 + [1.0] * 4 + [0.25] * 16), np.random.default_rng(0)
    drawn = [(rng.random(9) < rng.choice(shares, 9, replace=False)).sum() for _ in range(20_000)]
    expected = [(np.array(drawn) >= k).mean() for k in range(10)]
    np.testing.assert_allclose(tail_of_share(shares, 9), expected, atol=0.012)


def test_images_of_one_patient_count_once():
    """A latent that fires in ten images of each of two patients says nothing of a finding that both have."""
    patients = np.repeat(np.arange(60), 10)
    mass = (patients < 15).astype(float)
    codes = np.zeros((600, 2))
    codes[patients < 2, 0] = np.linspace(1, 2, 20)
    codes[patients < 14, 1] = 1 + np.arange(140) % 7
    found = name_by_labels_of(codes, {"mass": mass}, patients)
    assert found.latents["name"].tolist() == ["", "mass"]
    assert found.latents["reason"][0] == "fires in too few groups; in 2, fewer than 10"
    assert found.latents["n"].tolist() == [0, 14]


def test_missing_labels_are_missing_and_rare_attributes_are_not_tried():
    rng = np.random.default_rng(0)
    mass = np.where(np.arange(200) % 2 == 0, 1.0, np.nan)
    mass[np.arange(200) % 4 == 1] = 0
    codes = np.stack([(np.arange(200) % 2 == 0) + 0.01 * rng.random(200), np.where(np.isnan(mass), 5, 0)], axis=1)
    rare = np.zeros(200)
    rare[:4] = 1
    found = name_by_labels_of(codes, {"mass": mass, "rare": rare}, np.arange(200))
    assert found.latents["name"].tolist() == ["mass", ""]  # the second fires where nothing is known
    assert found.latents["chance"][0] == pytest.approx(100 / 150)
    assert found.about["left_out"] == {"rare": "4 groups have it and 196 lack it, fewer than 10"}
    assert found.about["tried"] == ["mass"]


def test_names_are_read_back_as_they_were_written_and_only_for_their_table(table, tmp_path):
    found = name_by_labels(table)
    found.write(tmp_path)
    read = read_names(tmp_path)
    pd.testing.assert_frame_equal(read.latents, found.latents, check_dtype=False)
    assert read.method == found.method and read.about == json.loads(json.dumps(dict(found.about)))
    check_names(read, table, tmp_path)

    def other(**changed):
        return SimpleNamespace(**{**vars(table), **changed})

    with pytest.raises(InputError, match="holds names of the table TABLE, and this is ELSEWHERE"):
        check_names(read, other(folder=Path("ELSEWHERE")), tmp_path)
    with pytest.raises(InputError, match="names latent 123, and TABLE has 50"):
        check_names(read, other(d_sae=50), tmp_path)
    mine, theirs = (other(provenance={"inputs": {"sae": sha}}, folder=Path(sha)) for sha in ("one", "two"))
    check_names(replace(read, about={**read.about, "sae": "one"}), mine, tmp_path)  # whatever the folder is called
    with pytest.raises(InputError, match="of another SAE's latents"):
        check_names(replace(read, about={**read.about, "sae": "one"}), theirs, tmp_path)
    (tmp_path / "names.json").write_text('{"method": "labels", "latents": [{"latent": 1}]}')
    with pytest.raises(InputError, match="no file of names"):
        read_names(tmp_path)
    with pytest.raises(InputError, match="holds no names.json"):
        read_names(tmp_path / "nowhere")


def test_a_name_that_fails_in_the_other_split_is_taken_back(table):
    codes, _ = planted(table.images)
    codes[(table.images["split"] == "test").to_numpy()] = np.random.default_rng(3).random((160, codes.shape[1]))
    other = SimpleNamespace(**{**vars(table), "max_latents": csr_array(codes)})
    found = name_by_labels(other).latents[:N_PLANTED]
    assert found["abstained"].mean() > 0.8
    assert found["reason"].str.contains("does not hold in images of split test; .* has AUROC 0.").mean() > 0.8
    unchecked = name_by_labels(other, check="none").latents[:N_PLANTED]
    assert (~unchecked["abstained"]).mean() >= 0.9 and unchecked["check_auroc"].isna().all()


def test_of_two_classes_that_both_have_a_name_each_is_an_attribute(table):
    side = Concept("side", classes=("L", "R"))
    images = table.images.assign(side=[-1, 1, *[0] * (len(table.images) - 2)])
    other = SimpleNamespace(**{**vars(table), "images": images, "vocabulary": Vocabulary([Concept("mass"), side])})
    found = attributes_of(other, None, [], "training")
    assert [*found] == ["mass", "side=L", "side=R"]
    np.testing.assert_array_equal(found[["side=L", "side=R"]][:3], [[np.nan, np.nan], [0, 1], [1, 0]])


def test_numbers_become_thirds_or_levels_and_words_levels(table):
    found = attributes_of(table, [], ["age", "view", "clip"], "training")
    low, high = (name for name in found.columns if name.startswith("age"))
    assert 0.25 < found[low].mean() < 0.42 and 0.25 < found[high].mean() < 0.42
    assert not (found[low] * found[high]).any()
    assert [*found.columns] == [low, high, "view=CC", "view=MLO", "clip"]


def test_where_nothing_can_be_tried_nothing_is_named():
    groups = np.arange(40)
    found = name_by_labels_of(np.ones((40, 2)), {"rare": groups < 3}, groups)
    assert found.told(1) == "no name: no attribute could be tried in enough groups" and found.candidates.empty
    found = name_by_labels_of(np.zeros((40, 2)), {"odd": groups % 2}, groups)
    assert found.told(1) == "no name: fires in too few groups; in 0, fewer than 10"
    assert found.latents["n"].tolist() == [0, 0]
    assert name_by_labels_of(np.zeros((40, 0)), {"odd": groups % 2}, groups).latents.empty


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": ["masses"]}, "no label 'masses'; its concepts are mass"),
        ({"metadata": ["machine"]}, "no covariate 'machine'"),
        ({"labels": [], "metadata": []}, "no label and no metadata"),
        ({"split": "test", "check": "test"}, "cannot be checked there"),
        ({"split": "validation"}, "no split 'validation'"),
        ({"check": "validation"}, "no split 'validation'"),
        ({"latents": [500]}, "latents hold 500"),
        ({"n": 1}, "n is 1"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(table, arguments, said):
    with pytest.raises(InputError, match=said):
        name_by_labels(table, **arguments)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({}, "no attribute"),
        ({"mass": np.zeros(3)}, r"shape \(3,\)"),
        ({"mass": np.arange(20)}, "something else than 1, 0 or nothing"),
    ],
)
def test_bad_attributes_are_refused_in_a_line(attributes, said):
    with pytest.raises(InputError, match=said):
        name_by_labels_of(np.ones((20, 2)), attributes, np.arange(20))


def test_the_command_names_the_latents_of_a_table(encoded, tmp_path):
    output = tmp_path / "named"
    run = ["name", str(encoded.folder), "-o", str(output), "--min-groups", "3", "-n", "6"]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    assert "latents have a name; tried were" in done.output
    frame = pd.read_csv(output / "names.csv")
    assert len(frame) == len(encoded.live_latents("training"))
    told = json.loads((output / "names.json").read_text())
    assert set(COLUMNS) <= set(told["latents"][0]) == set(told["columns"]) == set(frame.columns)
    assert [row["latent"] for row in told["latents"]] == frame["latent"].tolist()
    first = (output / "names.csv").read_bytes()
    assert CliRunner().invoke(app, run).exit_code == 0
    assert (output / "names.csv").read_bytes() == first
    wrong = CliRunner().invoke(app, [*run, "--label", "Tumour"])
    assert wrong.exit_code == 2 and "no label 'Tumour'" in wrong.output
    assert (output / "names.csv").read_bytes() == first
