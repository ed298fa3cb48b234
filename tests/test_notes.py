"""Notes by people: what is written stays, several readers' notes come together, and agreement is the textbook's."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_results import synthetic_results, write_study
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.note_tables import add_notes
from mammosae_plugin.findings.notes import (
    add_note,
    agreement,
    cohen_kappa,
    fleiss_kappa,
    merge_notes,
    read_notes,
    withdraw_notes,
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "study")


def make_study(folder: Path, *, sae: str = "5ae" * 21 + "0") -> Path:
    """A study's folder with results of two layers, of which layer_10 is the primary one."""
    results = synthetic_results(layers=("layer_6", "layer_10"))
    inner, final = (
        {**results, "layer": {"name": name, "primary": "layer_10"}, "sae": {**results["sae"], "sha256": sha256}}
        for name, sha256 in (("layer_6", sae[::-1]), ("layer_10", sae))
    )
    return write_study(inner, folder, final)


def test_a_table_of_notes_is_added_once_and_whole_or_not_at_all(study, tmp_path):
    table = tmp_path / "notes.csv"
    table.write_text("latent;label;text;author;confidence\n7;Mass;;BC;\n8;;a fold, below;;5\n7;Mass;;BC;\n")
    with pytest.raises(InputError, match=r"notes.csv, line 3: a note needs an author.*no note was added"):
        add_notes(study, table)
    assert read_notes(study) == []
    added = add_notes(study, table, author="AB")
    assert [(note.latent, note.author, note.label, note.confidence) for note in added] == [
        (7, "BC", "Mass", None),
        (8, "AB", None, 5),
    ]
    assert {*read_notes(study)} == {*added}
    table.write_text(table.read_text() + "9;Mass;;;\n")
    assert [note.latent for note in add_notes(study, table, author="AB")] == [9] and len(read_notes(study)) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label\nMass\n", "has no column latent"),
        ("latent,label,site\n1,Mass,here\n", "has the column 'site'"),
        ("latent,label\n1.5,Mass\n", "line 2: latent is '1.5'; give a whole number"),
        ("latent,label\n,Mass\n", "line 2: latent is empty"),
        ("latent,label\n1,Mass\n99999999,Mass\n", "line 3: layer layer_10 has the latents 0 to"),
        ("latent,label,layer\n1,Mass,layer_99\n", "line 2: .*layer_99"),
        ("latent,label,confidence\n1,Mass,9\n", "line 2: confidence is 9"),
        ("latent,text\n1,call 555-123-4567 for /home/ada/scan.png\n", "line 2: "),
    ],
)
def test_what_is_wrong_with_a_table_of_notes_is_one_line(study, tmp_path, text, said):
    (tmp_path / "notes.csv").write_text(text)
    result = CliRunner().invoke(
        app, ["note", "--from", str(tmp_path / "notes.csv"), "--study", str(study), "--author", "AB"]
    )
    assert result.exit_code == 2 and re.search(said, result.stderr) and read_notes(study) == []


def test_a_note_is_read_back_as_it_was_given(study):
    given = add_note(
        study,
        7,
        " a round mass ",
        author="Dr. Ada Ü",
        encoder="finetuned/Mass",
        concept="Mass",
        label="Mass",
        confidence=4,
    )
    (note,) = read_notes(study)
    assert note == given
    assert (note.author, note.text, note.layer, note.label, note.confidence) == (
        *("Dr. Ada Ü", "a round mass", "layer_10", "Mass", 4),
    )
    assert note.created.endswith("+00:00")
    assert [path.name for path in (study / "notes").iterdir()] == ["Dr.-Ada-.jsonl"]


def test_notes_are_only_ever_added(study):
    add_note(study, 7, "edge of the breast", author="ada")
    before = (study / "notes" / "ada.jsonl").read_bytes()
    add_note(study, 7, "no, a mass", author="ada", layer="layer_6")
    assert (study / "notes" / "ada.jsonl").read_bytes().startswith(before)
    assert [note.text for note in read_notes(study)] == ["edge of the breast", "no, a mass"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"latent": 512}, "layer layer_10 has the latents 0 to 511, but the note is on 512"),
        ({"latent": -1}, "has the latents 0 to 511"),
        ({"layer": "layer_9"}, "has no layer 'layer_9'; it has layer_6, layer_10"),
        ({"encoder": "finetuned"}, "the study has no encoder 'finetuned'; it has pretrained/Mass"),
        ({"concept": "mass"}, "the study has no concept 'mass'; it has Mass, Suspicious_Calcification"),
        ({"confidence": 6}, "confidence is 6; give a whole number from 1"),
        ({"author": " "}, "a note needs an author"),
        ({"text": " "}, "a note says something"),
        ({"author": "A\nB\n\n# Hello"}, "the note's author has a line break or control character; write it on one"),
        ({"author": "A\u2028B"}, "the note's author has a line break"),
        ({"label": "Mass\r\nMass"}, "the note's label has a line break"),
        ({"author": "a" * 81}, "the note's author has 81 characters; 80 are the most"),
        ({"label": "ab " * 50}, "the note's label has 149 characters; 120 are the most"),
        ({"text": "ab " * 700}, "the note's text has 2099 characters; 2000 are the most"),
        (
            {"text": "call 617-555-0199"},
            "^the note's text: it holds a phone number; take it out: 'call 617.* --allow",
        ),
        ({"author": "jane@clinic.example"}, "the note's author: it holds an e-mail address"),
        ({"label": "MRN 00123456"}, "the note's label: it holds an id of a patient"),
        ({"text": "see /scans/a.png"}, "the note's text: it holds a path of a file"),
        ({"text": "Müller^Eva"}, "the note's text: it holds a person's name"),
    ],
)
def test_a_note_that_cannot_be_is_refused_in_one_line_and_nothing_is_written(study, changed, message):
    arguments = {"latent": 7, "text": "a mass", "author": "ada", **changed}
    latent, text = arguments.pop("latent"), arguments.pop("text")
    with pytest.raises(InputError, match=message) as error:
        add_note(study, latent, text, **arguments)
    assert "\n" not in str(error.value)
    assert not (study / "notes").exists()


def test_a_note_of_the_greatest_length_is_taken(study):
    add_note(study, 7, "ab " * 666 + "ab", author="a " * 39 + "ab", label="c " * 59 + "cd")
    assert [len(note.text) for note in read_notes(study)] == [2000]


def test_a_note_with_an_id_of_the_study_is_refused_at_once(study):
    table = study / "work" / "latents" / "finetuned-0a" / "test"
    table.mkdir(parents=True)
    add_note(study, 7, "seen in P-00417", author="ada")
    pd.DataFrame({"image_id": ["a.png"], "patient_id": ["P_00417"]}).to_parquet(table / "images.parquet")
    with pytest.raises(InputError, match="the note's text: it holds an id of a patient, an image or a study") as error:
        add_note(study, 7, "seen in P-00417", author="ada")
    assert "00417" not in str(error.value)
    assert len(read_notes(study)) == 1


def test_withdrawn_notes_count_no_more_but_stay_in_the_file(study):
    for author, text in (("ada", "first"), ("ada", "second"), ("ben", "his")):
        add_note(study, 7, text, author=author, label="Mass")
    add_note(study, 8, "another latent", author="ada")
    add_note(study, 7, "another layer", author="ada", layer="layer_6")
    before = (study / "notes" / "ada.jsonl").read_bytes()
    assert withdraw_notes(study, 7, author="ada") == 2
    assert sorted(note.text for note in read_notes(study)) == ["another latent", "another layer", "his"]
    assert (study / "notes" / "ada.jsonl").read_bytes().startswith(before)
    assert agreement(read_notes(study)).readers == ("ben",)
    with pytest.raises(InputError, match="ada has no note on latent 7 of layer layer_10"):
        withdraw_notes(study, 7, author="ada")
    add_note(study, 7, "after all", author="ada")
    assert "after all" in {note.text for note in read_notes(study)}


def test_notes_on_one_encoder_are_withdrawn_alone(study):
    for encoder in (None, "finetuned/Mass", "pretrained/Mass"):
        add_note(study, 7, str(encoder), author="ada", encoder=encoder)
    assert withdraw_notes(study, 7, author="ada", encoder="finetuned/Mass") == 1
    assert [note.text for note in read_notes(study)] == ["None", "pretrained/Mass"]
    assert withdraw_notes(study, 7, author="ada") == 2


def test_a_withdrawal_is_merged_like_a_note(study, tmp_path):
    add_note(study, 7, "mine", author="ada")
    other = make_study(tmp_path / "other")
    merge_notes(other, [study])
    withdraw_notes(other, 7, author="ada")
    assert merge_notes(study, [other]) == 1
    assert read_notes(study) == []
    assert merge_notes(study, [other]) == 0


def test_a_folder_without_a_study_takes_no_note(tmp_path):
    with pytest.raises(InputError, match="holds no finished study"):
        add_note(tmp_path, 7, "a mass", author="ada")


WRITER = """
import sys
from mammosae_plugin.findings.notes import add_note
for number in range(100000):
    add_note(sys.argv[1], number % 512, f"note {number} " + "x " * 990, author="ada")
    print(number, flush=True)
"""


def test_a_killed_writer_loses_no_note_that_it_had_reported(study):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(study)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    reported = 1 + len([line for line in process.stdout.read().split("\n") if line])
    process.wait()
    add_note(study, 3, "after the kill", author="ada")
    texts = [note.text.split(" x")[0] for note in read_notes(study)]
    assert texts[:reported] == [f"note {number}" for number in range(reported)]
    assert texts[-1] == "after the kill"
    assert len(texts) - 1 - reported in (0, 1)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_an_unfinished_line_is_passed_over_and_swallows_no_other(study, cut, caplog):
    for text in ("first", "torn"):
        add_note(study, 7, text, author="ada")
    file = study / "notes" / "ada.jsonl"
    os.truncate(file, file.stat().st_size - 1 - cut)
    add_note(study, 7, "last", author="ada")
    assert [note.text for note in read_notes(study)] == ["first", "last"]
    assert "line 2 of" in caplog.text


def test_a_line_that_lost_only_its_end_of_line_is_still_a_note(study):
    add_note(study, 7, "first", author="ada")
    file = study / "notes" / "ada.jsonl"
    os.truncate(file, file.stat().st_size - 1)
    add_note(study, 7, "last", author="ada")
    assert [note.text for note in read_notes(study)] == ["first", "last"]


def test_notes_written_at_the_same_time_are_all_kept(study):
    def write(name: str) -> None:
        for number in range(25):
            add_note(study, number, name + str(number) + " x" * 990, author="ada")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert len({note.text for note in read_notes(study)}) == 100


def test_notes_of_several_readers_are_merged_once(study, tmp_path):
    add_note(study, 7, "mine", author="ada")
    for reader in ("ben", "cleo"):
        other = make_study(tmp_path / reader)
        add_note(other, 7, f"{reader}'s", author=reader)
        add_note(other, 8, "both wrote here", author="dan" if reader == "ben" else "ada")
    assert merge_notes(study, [tmp_path / "ben", tmp_path / "cleo" / "notes"]) == 4
    assert sorted((note.author, note.text) for note in read_notes(study)) == [
        *(
            ("ada", "both wrote here"),
            ("ada", "mine"),
            ("ben", "ben's"),
            ("cleo", "cleo's"),
            ("dan", "both wrote here"),
        ),
    ]
    assert merge_notes(study, [tmp_path / "ben", tmp_path / "cleo"]) == 0
    assert len(read_notes(study)) == 5


def test_notes_on_another_sae_are_not_merged_and_no_longer_shown(study, tmp_path, caplog):
    other = make_study(tmp_path / "other", sae="0" * 64)
    add_note(other, 7, "a mass", author="ben")
    with pytest.raises(InputError, match="1 notes on an SAE that .* does not use at layer layer_10"):
        merge_notes(study, [other])
    assert read_notes(study) == []
    make_study(other)  # the study was run again with another SAE
    assert read_notes(other) == []
    assert "a note of ben on latent 7 at layer layer_10 is about an SAE that the study no longer uses" in caplog.text


def test_merging_a_folder_without_notes_is_an_error(study, tmp_path):
    with pytest.raises(InputError, match="has no notes"):
        merge_notes(study, [make_study(tmp_path / "other")])


def label(study: Path, author: str, labels: str, *, start: int = 0) -> None:
    """One note per letter, on one latent after the other."""
    for latent, letter in enumerate(labels, start=start):
        if letter != "-":
            add_note(study, latent, "", author=author, label=letter)


def test_two_readers_agree_as_scikit_learn_says(study):
    label(study, "ada", "MMMAANNNMA-M")
    label(study, "ben", "MMAAANNMMA" + "N-")
    found = agreement(read_notes(study))
    assert found.statistic == "Cohen's kappa"
    assert found.kappa == cohen_kappa_score(list("MMMAANNNMA"), list("MMAAANNMMA"))
    assert found.observed == pytest.approx(0.8)
    assert (found.n_items, found.n_left_out, found.labels, found.readers) == (10, 2, ("A", "M", "N"), ("ada", "ben"))


def test_cohens_kappa_of_a_table_worked_by_hand():
    # 50 items: both yes 20, only a 5, only b 10, both no 15. p_o = 0.7; p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa = 0.4.
    a = "y" * 20 + "y" * 5 + "n" * 10 + "n" * 15
    b = "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)


def test_a_readers_last_label_counts(study):
    label(study, "ada", "MMAA")
    label(study, "ben", "MAAM")
    label(study, "ben", "M", start=1)
    label(study, "ben", "A", start=3)
    assert agreement(read_notes(study)).kappa == 1


def test_latents_of_different_layers_are_different_items(study):
    for latent, (in_a, in_b) in enumerate(["MA", "AM", "MM"]):
        add_note(study, latent, "", author="ada", label=in_a, layer="layer_10")
        add_note(study, latent, "", author="ben", label=in_b, layer="layer_6")
    assert agreement(read_notes(study)).n_items == 0


DIAGNOSES = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
"""Fleiss (1971), Table 1: 30 patients, each diagnosed by 6 psychiatrists, in 5 categories; each row's five counts."""


def test_fleiss_kappa_is_that_of_his_own_example():
    counts = np.array([[int(digit) for digit in row] for row in DIAGNOSES.split()])
    assert counts.sum(0).tolist() == [26, 26, 30, 55, 43]
    assert fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)


def test_three_readers_agree_as_fleiss_says(study):
    for author, labels in {"ada": "MMAN", "ben": "MAAN", "cleo": "MMNN"}.items():
        label(study, author, labels)
    found = agreement(read_notes(study))
    # By hand: P = (1 + 1/3 + 1/3 + 1) / 4 = 2/3; shares M 5/12, A 3/12, N 4/12; P_e = 50/144; kappa = 23/47.
    assert found.statistic == "Fleiss' kappa"
    assert found.kappa == pytest.approx((2 / 3 - 50 / 144) / (1 - 50 / 144))
    assert found.observed == pytest.approx(2 / 3)
    assert found.pairs[["reader_a", "reader_b"]].to_numpy().tolist() == [
        ["ada", "ben"],
        ["ada", "cleo"],
        ["ben", "cleo"],
    ]
    assert found.pairs["kappa"].tolist() == [
        cohen_kappa_score(list(a), list(b)) for a, b in (("MMAN", "MAAN"), ("MMAN", "MMNN"), ("MAAN", "MMNN"))
    ]


def test_fleiss_kappa_of_two_readers_observes_what_cohen_does(study):
    label(study, "ada", "MMMAANNN")
    label(study, "ben", "MMAAANMM")
    assert agreement(read_notes(study)).observed == pytest.approx(5 / 8)


def test_kappa_is_undefined_and_said_so_where_there_is_one_label(study):
    label(study, "ada", "MM")
    label(study, "ben", "MM")
    found = agreement(read_notes(study))
    assert np.isnan(found.kappa) and found.observed == 1
    assert "undefined" in found.as_text()
    assert np.isnan(fleiss_kappa([[3, 0], [3, 0]]))


@pytest.mark.parametrize("counts", [[[3, 0], [2, 0]], [[1, 0], [0, 1]], [3, 0], np.zeros((0, 2))])
def test_fleiss_kappa_wants_equally_many_labels_for_every_item(counts):
    with pytest.raises(InputError, match="the same number of labels"):
        fleiss_kappa(counts)


def test_agreement_without_labels_or_common_latents_says_what_is_missing(study):
    assert "two readers or more" in agreement([]).as_text()
    label(study, "ada", "M")
    label(study, "ben", "-M")
    assert "no latent has a label of all 2 readers (ada, ben)" in agreement(read_notes(study)).as_text()


def test_notes_are_ordered_by_time_even_where_files_are_not(study):
    for author, text in (("zoe", "first"), ("ada", "second")):
        add_note(study, 7, text, author=author)
    file = study / "notes" / "zoe.jsonl"
    old = replace(next(note for note in read_notes(study) if note.author == "zoe"), created="2020-01-01T00:00:00+00:00")
    file.write_text(json.dumps(vars(old)) + "\n")
    assert [note.text for note in read_notes(study)] == ["first", "second"]


def command(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["note", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_command_notes_merges_and_lists_with_agreement(study, tmp_path):
    other = make_study(tmp_path / "other")
    for folder, author, labels in ((study, "ada", "MA"), (other, "ben", "MM")):
        for latent, one in enumerate(labels):
            code, said = command(latent, "seen twice", "--author", author, "--label", one, "--study", folder)
            assert (code, said) == (0, f"noted on latent {latent} of layer layer_10, by {author}\n")
    code, said = command("--merge", other, "--list", "--study", study)
    assert code == 0
    assert said.startswith("2 notes added\n")
    assert "layer_10 latent 1: [A] seen twice (ada, " in said
    assert "Cohen's kappa of ada, ben: 0.000; equal labels 50%, on 2 latents" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a latent and a text, or --from a table, or --merge a folder, or --list the notes"),
        ([600, "a mass", "--author", "ada"], "has the latents 0 to 511, but the note is on 600"),
        ([7, "a mass"], "a note needs an author"),
        ([7, "a mass", "--author", "A\n\n# B"], "the note's author has a line break"),
        ([7, "mrn=1234567", "--author", "ada"], "the note's text: it holds an id of a patient"),
        ([7, "--withdraw", "--author", "ada"], "ada has no note on latent 7 of layer layer_10"),
        ([7, "--withdraw"], "a note needs an author"),
        (["--withdraw", "--list"], "to withdraw notes give the latent and --author"),
        ([7, "a mass", "--withdraw", "--author", "ada"], "to withdraw notes give the latent and --author"),
    ],
)
def test_the_command_ends_with_2_and_one_line_on_bad_input(study, arguments, message):
    code, said = command(*arguments, "--study", study)
    assert code == 2
    assert message in said and said.count("\n") == 1


def test_the_command_withdraws(study):
    for text in ("one", "two"):
        command(7, text, "--author", "ada", "--study", study)
    said = command(7, "--withdraw", "--author", "ada", "--study", study)
    assert said == (0, "withdrawn: 2 notes of ada on latent 7\n")
    assert command("--list", "--study", study) == (0, "no notes yet\n")


def test_the_command_lists_no_notes_where_there_are_none(study):
    assert command("--list", "--study", study) == (0, "no notes yet\n")
