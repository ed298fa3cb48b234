"""Splits by group, held against SAIL's own, and what is no split."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammosae_plugin.datasets import age_bins, make_split, read_split, write_split
from mammosae_plugin.errors import InputError

SAIL = Path(__file__).parent / "data" / "sail" / "volumes" / "split_by_volume.csv"
SAILS = {"train": "training", "val": "validation", "test": "test"}
STRATA, SITES = ["modality", "gender", "age_bin"], {"institute": ["A", "D", "E"]}


def sails(closed="left"):
    table = pd.read_csv(SAIL)
    return table.assign(age_bin=age_bins(table["age"], closed=closed))


def people(n=200, seed=0):
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "patient_id": [f"p{number:03d}" for number in range(n)],
            "sex": draw.choice(["f", "m", None], n, p=[0.6, 0.3, 0.1]),
            "site": draw.choice(list("ABCD"), n),
        }
    )


@pytest.mark.parametrize(
    ("closed", "split", "bins"),
    [("left", "split_right_age_bins", "age_bin_right"), ("right", "split_as_released", "age_bin_as_released")],
)
def test_the_split_is_sails(closed, split, bins):
    table = sails(closed)
    pd.testing.assert_series_equal(table["age_bin"], table[bins], check_names=False, check_dtype=False)
    table = table[table[split].notna()]  # the others have no slice with an organ
    found = make_split(table, stratify=STRATA, held_out=SITES)
    both = table.merge(found, on=["image_id", "modality"], validate="one_to_one")
    assert both["split"].tolist() == both[split].map(SAILS).tolist()


def test_the_split_depends_neither_on_the_order_of_rows_nor_on_their_number_per_group():
    table = sails()
    slices = pd.concat([table, table]).sample(frac=1, random_state=3)
    expected = make_split(table, stratify=STRATA, held_out=SITES)
    pd.testing.assert_frame_equal(make_split(slices, stratify=STRATA, held_out=SITES), expected)
    other = make_split(table, stratify=STRATA, held_out=SITES, seed=1)
    assert (other["split"] != expected["split"]).any()


def test_strata_have_their_shares_and_sites_stay_whole():
    table = people()
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    split = make_split(table, by=["patient_id"], stratify=["sex"], shares=shares)
    counts = pd.crosstab(table["sex"].fillna("unknown"), split["split"].to_numpy(), normalize="index")
    for part, share in (("training", 0.6), ("validation", 0.2), ("test", 0.2)):
        np.testing.assert_allclose(counts[part], share, atol=0.06)
    held = make_split(table, by=["patient_id"], held_out={"site": ["B"]})
    assert set(held.loc[table["site"] == "B", "split"]) == {"test"}
    assert set(held.loc[table["site"] != "B", "split"]) == {"training", "validation"}
    assert sorted(held["patient_id"]) == sorted(table["patient_id"])


def test_strata_that_are_too_small_are_shuffled():
    table = people(12)
    table["rare"] = ["only one"] + ["many"] * 11
    split = make_split(table, by=["patient_id"], stratify=["rare"])
    assert split["split"].value_counts().to_dict() == {"training": 8, "validation": 4}  # 8 of 11, and 0 of 1
    alone = make_split(table, by=["patient_id"], stratify=["patient_id"])
    assert alone["split"].value_counts().to_dict() == {"training": 9, "validation": 3}


def test_bins_of_age_begin_with_their_number():
    expected = ["<40", "<40", "40-60", "40-60", "60-80", ">=80", ">=80", None]
    found = age_bins([0, 39.9, 40, 59, 60, 80, 120, None])
    assert [None if pd.isna(name) else name for name in found] == expected
    assert age_bins([40, 60, 80], closed="right").tolist() == ["<40", "40-60", "60-80"]
    assert age_bins(["7", "12"], edges=[10]).tolist() == ["<10", ">=10"]


@pytest.mark.parametrize("name", ["split.csv", "split.parquet"])
def test_a_split_is_read_as_it_was_written(tmp_path, name):
    split = make_split(sails(), stratify=STRATA, held_out=SITES)
    write_split(tmp_path / name, split)
    pd.testing.assert_frame_equal(read_split(tmp_path / name), split, check_dtype=False)


@pytest.mark.parametrize(
    "words", [("train", "valid", "test"), ("train", "val", "test"), ("Training", "validation", "TEST")]
)
def test_all_spellings_of_splits_are_read_and_ids_stay_text(tmp_path, words):
    rows = "".join(f"ct,00{number},{word}\n" for number, word in enumerate(words))
    (tmp_path / "s.csv").write_text(f"modality,image_id,split\n{rows}ct,009,\n")
    split = read_split(tmp_path / "s.csv")
    assert split["split"].tolist() == ["training", "validation", "test"]
    assert split["image_id"].tolist() == ["000", "001", "002"]  # 009 is in no split


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modality,image_id,split\nct,s1,train\nct,s1,test\n", "1 group is in two splits (such as ct/s1)"),
        ("modality,image_id,split\nct,s1,holdout\n", "'holdout' is no split: write training, validation, test"),
        ("modality,image_id\nct,s1\n", "must have the column split"),
        ("split\ntrain\n", "must have the column split and those that name groups"),
        ("modality,image_id,split\n", "has no rows"),
        ('image_id,split\ns1,train,7,8\ns2,train\n"', "line 2 has 4 cells"),
        ("", "is empty"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_split_ends_with_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError) as refused:
        read_split(tmp_path / "s.csv")
    assert message in str(refused.value) and "s.csv" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": ["patient"]}, "by names 'patient', which the table lacks (nearest: patient_id)"),
        ({"by": []}, "by is empty"),
        ({"stratify": ["age"]}, "stratify names 'age', which the table lacks"),
        ({"stratify": "sex"}, "stratify is 'sex': give a list"),
        ({"held_out": {"site": ["Z"]}}, "held_out names 'Z', which no row of site has"),
        ({"held_out": {"site": "A"}}, "give a list"),
        ({"shares": {"train": 0.7, "val": 0.2}}, "which add up to 1"),
        ({"shares": {"train": 0.5, "training": 0.5}}, "one for each part"),
        ({"shares": {"train": 1.2, "val": -0.2}}, "the share of train is 1.2"),
        ({"shares": {"rest": 1.0}}, "'rest' is no split"),
        ({"seed": -1}, "seed is -1"),
        ({"by": ["sex"]}, "some rows have no sex"),
        ({"by": ["site"], "stratify": ["sex"]}, " differ in sex: a group is split as one"),
    ],
)
def test_wrong_settings_end_with_one_line(settings, message):
    with pytest.raises(InputError) as refused:
        make_split(people(), **({"by": ["patient_id"]} | settings))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("ages", [["forty"], [-1]])
def test_what_is_no_age_ends_with_one_line(ages):
    with pytest.raises(InputError, match=r"\A1 value is no age[^\n]*\Z"):
        age_bins(ages)
