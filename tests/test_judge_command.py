"""`mammosae name --judge`: names are judged, what that costs is told first, and no answer is asked for twice."""

import json

import pandas as pd
import pytest
from helpers_language import judging_at_random, language_server
from typer.testing import CliRunner

from mammosae_plugin.cli import app
from mammosae_plugin.schema.names_of_latents import JUDGED

NAMES = ["--split", "test", "-n", "6", "--min-groups", "3", "--alpha", "1", "--min-excess", "0", "--check", "none"]
JUDGING = ["--judge-split", "training", "--judge-images", "5"]


def run(*arguments: object):
    done = CliRunner().invoke(app, ["name", *map(str, arguments)])
    return done, " ".join(done.output.split())


def test_names_are_judged_by_labels_and_the_scores_are_printed_first_and_written(encoded, tmp_path):
    output = tmp_path / "named"
    done, said = run(encoded.folder, *NAMES, "--judge", "labels", *JUDGING, "-o", output)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("judged by labels in split training: ")
    for line, words in zip(
        lines[1:6], ("detection (balanced accuracy): 0.", "the same among look-alikes: 0."), strict=False
    ):
        assert line.startswith(words) and "latents), shuffled names 0." in line and line.endswith(", chance 0.50")
    assert "intruder found: 0." in said and "no ranking: too few names with different texts" in said
    frame = pd.read_csv(output / "names.csv")
    assert {column.name for column in JUDGED} <= {*frame.columns} and (frame["judge"].dropna() == "labels").all()
    told = json.loads((output / "names.json").read_text())
    assert told["about"]["check"] == "none"  # no split is left that neither made nor judges them
    assert told["about"]["judging"]["split"] == "training" and set(told["columns"]) == {*frame.columns}
    assert {row["reason"] == "" for row in told["latents"] if row["abstained"]} <= {False}


def test_a_model_judges_with_its_cost_told_first_and_is_not_asked_twice(encoded, phantom_root, tmp_path):
    output = tmp_path / "named"
    with language_server(judging_at_random()) as server:
        model = [
            "--judge",
            "guess",
            "--judge-endpoint",
            server.url,
            "--set",
            f"data.root={phantom_root}",
            "--set",
            "data.image_size=[96, 64]",
        ]
        common = [encoded.folder, *NAMES, *JUDGING, *model, "--latents", "6,13,28,51,52,55", "--judge-set", "10"]
        tried, said = run(*common, "--dry-run", "--price-in", "2", "--price-out", "5")
        assert tried.exit_code == 0, tried.output
        assert "questions to guess on this machine, with" in said and "a price of" in said and server.n_calls == 1
        refused, said = run(*common)
        assert refused.exit_code == 2 and "name a folder with -o" in said and server.n_calls == 1
        done, said = run(*common, "-o", output)
        assert done.exit_code == 0, done.output
        n_calls, names = server.n_calls, (output / "names.csv").read_bytes()
        lines = (output / "judging.jsonl").read_text().splitlines()
        assert n_calls == 1 + len(lines) and said.index("questions to guess") < said.index("judged by guess")
        again, _ = run(*common, "-o", output)
        assert again.exit_code == 0 and server.n_calls == n_calls and (output / "names.csv").read_bytes() == names
    assert pd.read_csv(output / "names.csv")["name"].isna().all()


def test_what_a_model_sees_is_judged_by_another_model_in_one_command(encoded, phantom_root, tmp_path):
    guess = judging_at_random()

    def answer(asked):
        if "in_common" not in asked.system:
            return guess(asked)
        return json.dumps({"seen": "tissue", "in_common": True, "name": f"a dark rim {len(asked.files) + asked.seed}"})

    output = tmp_path / "seen"
    with language_server(answer) as server:
        common = [
            *(encoded.folder, "--by", "model", "--model", "namer", "--endpoint", server.url, *JUDGING, "-o", output),
            *("--set", f"data.root={phantom_root}", "--set", "data.image_size=[96, 64]", "--min-groups", "3"),
            *("--split", "test", "--latents", "6,13,51", "--judge-set", "10"),
        ]
        refused, said = run(*common, "--judge", "namer")
        assert refused.exit_code == 2 and "namer would judge its own names" in said and server.n_calls == 0
        done, said = run(*common, "--judge", "guess")
        assert done.exit_code == 0, done.output
        assert {asked.model for asked in server.asked} == {"namer", "guess"}
        n_calls = server.n_calls
        again, _ = run(*common, "--judge", "guess")
        assert again.exit_code == 0 and server.n_calls == n_calls
    frame = pd.read_csv(output / "names.csv")
    assert said.index("questions to namer") < said.index("questions to guess") < said.index("judged by guess")
    assert (frame["score"] == frame["detection"]).all() and (frame["chance"] == 0.5).all() and frame["abstained"].all()
    assert frame["reason"].str.startswith("the name does not tell where it fires; A dark rim").all()
    assert {path.name for path in output.glob("*.jsonl")} == {"answers.jsonl", "judging.jsonl"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--judge", "medgemma"], "--judge medgemma needs either its server's --judge-endpoint URL or --judge-local"),
        (["--judge", "labels", "--judge-local"], "--judge-local is for --judge NAME, a language model"),
        (["--same-judge"], "--same-judge and --judge-split are for --judge WHO"),
        (["--text", "x.tar"], "--text is for --by texts or direction"),
        (["--judge", "labels", "--set", "data.root=x"], "--set is for --by model"),
        (["--judge", "texts"], "--judge texts needs a text encoder"),
        (["--judge", "labels", "--judge-split", "test"], "the names were made in split test"),
        (["--judge", "labels", "--judge-split", "validation"], "no split 'validation'"),
    ],
)
def test_bad_options_are_refused_in_a_line(encoded, options, said):
    done, told = run(encoded.folder, *NAMES, *options)
    assert done.exit_code == 2 and said in told, done.output
