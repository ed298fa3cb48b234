"""`mammosae search` on a table with planted latents: what it prints, writes and refuses."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from helpers_language import language_server
from helpers_search import MEANINGS, PLANTED, names_of, oracle_names, planted_table
from helpers_study import mammosae

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.interpretation.name_matching import as_words
from mammosae_plugin.study.searching import _that_may_go

QUERY = "a mass in a dense breast"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return planted_table(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def named(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    done = mammosae("name", table.folder, "-o", folder, "-n", 10)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    file = tmp_path_factory.mktemp("queries") / "queries.yaml"
    asked = [{"text": QUERY, "labels": {"Mass": 1, "density": "D"}}, {"text": "left breast", "labels": {"side": "L"}}]
    file.write_text(yaml.safe_dump({"meanings": MEANINGS, "queries": asked}))
    return file


def refused(*arguments):
    done = mammosae("search", *arguments)
    assert done.returncode == 2 and done.stdout == "", done.stdout
    assert done.stderr.startswith("mammosae: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_latents_and_images_are_shown_written_and_drawn(table, named, queries, tmp_path):
    out = tmp_path / "found"
    arguments = ["search", QUERY, table.folder, "--names", named, "--meanings", queries, "-n", 5, "-o", out, "--figure"]
    done = mammosae(*arguments)
    assert done.returncode == 0, done.stderr
    for words in (
        "density=D (labels 1.00, chance 0.",
        "Mass (labels 1.00, chance 0.",
        "near the query",
        "dense breast",
    ):
        assert words in done.stdout
    hits = pd.read_csv(out / "found.csv")
    assert (hits["Mass"] == 1).all() and (hits["density"] == 3).all() and len(hits) == 5
    told = json.loads((out / "found.json").read_text())
    assert {row["name"] for row in told["latents"]} == {"Mass", "density=D"}
    assert [hit["image_id"] for hit in told["hits"]] == hits["image_id"].tolist()
    added = hits[[f"latent_{row['latent']}" for row in told["latents"]]].sum(axis=1)
    assert added.tolist() == pytest.approx(hits["score"].tolist())
    assert str(table.folder.parent) not in (out / "found.json").read_text()
    assert (out / "found.png").stat().st_size > 5000
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert mammosae(*arguments).returncode == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_text_that_no_name_says_is_told_so(table, named):
    for by in ("text", "words"):
        done = mammosae("search", "a bicycle", table.folder, "--names", named, "--by", by)
        assert done.returncode == 0 and done.stdout.startswith("no named latent matches 'a bicycle'")


def test_a_language_model_is_asked_once(table, named, tmp_path):
    def answer(asked):
        lines = asked.texts[0].splitlines()
        return json.dumps({"latents": [int(line.partition(".")[0]) for line in lines if line.endswith(". Mass")]})

    with language_server(answer) as server:
        arguments = ["search", "tumour", table.folder, "--names", named, "--by", "model", "--model", "m"]
        arguments += ["--endpoint", server.url, "--journal", tmp_path / "answers.jsonl"]
        for _ in range(2):
            done = mammosae(*arguments)
            assert done.returncode == 0, done.stderr
            assert "names matched by model (m)" in done.stdout and "density=D (" not in done.stdout
        assert server.n_calls == 1


def test_names_after_metadata_do_not_go_to_another_machine():
    labels = names_of({0: "Mass", 1: "site=a", 2: "view=CC"})
    labels = replace(labels, latents=labels.latents.assign(method="labels", column=["", "site", "view", *[""] * 33]))
    here, there = (SimpleNamespace(name="model", host=host) for host in (None, "example.org"))

    def sent(by, share=(), names=labels):
        kept, said = _that_may_go([names], by, share)
        rows = kept[0].latents
        return rows.loc[~rows["abstained"], "name"].tolist(), said

    assert sent(here) == (["Mass", "site=a", "view=CC"], ())
    assert sent(there)[0] == ["Mass"] and "2 names after metadata did not go to example.org" in sent(there)[1][0]
    assert sent(there, ["view"])[0] == ["Mass", "view=CC"]
    older = replace(labels, latents=labels.latents.drop(columns="column"))  # which does not say what they are of
    with pytest.raises(InputError, match="all 3 names are after metadata"):
        sent(there, names=older)
    assert len(sent(there, names=replace(older, latents=older.latents.assign(method="model")))[0]) == 3


def test_a_study_is_searched_by_its_own_names(finished_study, tmp_path):
    table = next(iter(finished_study.primary.tables.values()))  # of classifiers that share it
    row = next(row for row in StudyFolder(finished_study.output).results["names"] if row["name"])
    for place in ([table.folder], ["--study", finished_study.output]):
        done = mammosae("search", as_words(row["name"]), *place, "--by", "words", "-n", 3)
        assert done.returncode == 0, done.stderr
        assert f"{row['name']} ({row['method']} " in done.stdout and "rank  image_id" in done.stdout
    study, out = finished_study.output.parent / "study.yaml", tmp_path / "found"
    drawn = mammosae("search", row["name"], "--study", study, "--by", "words", "-n", 2, "-o", out, "--figure")
    assert drawn.returncode == 0 and drawn.stdout.splitlines()[:-1][:3] == done.stdout.splitlines()[:3]
    assert (out / "found.png").exists()
    assert "leave out TABLE, or --study" in refused("a mass", table.folder, "--study", study)


def test_queries_are_judged_and_what_cannot_be_is_listed(table, named, queries, tmp_path):
    out = tmp_path / "judged"
    done = mammosae(
        "search", table.folder, "--names", named, "--evaluate", queries, "--n-draws", 30, "-o", out, "--by", "words"
    )
    assert done.returncode == 0, done.stderr
    assert "among test images" in done.stdout and "random latents" in done.stdout
    assert "not judged: 'left breast': the table has no column side" in done.stdout
    scores = pd.read_csv(out / "search_scores.csv")
    whole = scores[(scores["query"] == QUERY) & (scores["label"] == "the whole query")].set_index("source")
    assert whole["precision"]["names"] == 1 and whole["precision"]["random images"] < 0.4
    told = json.loads((out / "search_scores.json").read_text())
    assert len(told["scores"]) == len(scores) and told["settings"]["n_draws"] == 30 and told["table"] == "table"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say what is looked for"),
        ([" ", "TABLE"], "the query is empty"),
        (["a mass"], "name the latents table that is searched"),
        (["a mass", "TABLE"], "and name that FOLDER with --names"),
        (["a mass", "TABLE", "--names", "nowhere"], "holds no names.json"),
        (["a mass", "TABLE", "--names", "OTHER"], "holds names of the table elsewhere"),
        (["a mass", "TABLE", "--names", "NONE"], "none of 36 latents has a name"),
        (["a mass", "TABLE", "--names", "NAMED", "--split", "validation"], "no split 'validation'"),
        (["a mass", "TABLE", "--names", "NAMED", "--by", "clip"], "--by clip needs a text encoder"),
        (["a mass", "TABLE", "--names", "NAMED", "--by", "model"], "--by model needs --model NAME"),
        (["a mass", "TABLE", "--names", "NAMED", "--model", "m"], "--model is for --by model"),
        (["a mass", "TABLE", "--names", "NAMED", "--figure"], "name it with -o"),
        (["a mass", "TABLE", "--names", "NAMED", "--text", "x"], "--text is for --by clip, or for --evaluate"),
        (["a mass", "TABLE", "--names", "NAMED", "--meanings", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["a mass", "TABLE", "--names", "NAMED", "--evaluate", "QUERIES"], "leave out 'a mass'"),
        (["TABLE", "--names", "NAMED", "--evaluate", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["a mass", "nowhere", "--names", "NAMED"], "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_ends_with_one_line(table, named, queries, tmp_path, arguments, words):
    for folder, names in (("OTHER", oracle_names()), ("NONE", names_of({}))):
        (tmp_path / folder).mkdir()
        names.write(tmp_path / folder)
    file = tmp_path / "OTHER" / "names.json"
    file.write_text(file.read_text().replace('"about": {}', '"about": {"table": "elsewhere"}'))
    given = {"TABLE": table.folder, "NAMED": named, "QUERIES": queries}
    given |= {name: tmp_path / name for name in ("OTHER", "NONE")}
    assert words in refused(*(given.get(one, one) for one in arguments))
    assert len(PLANTED) == 6 and Path(table.folder).name == "table"
