"""A language model as the judge of names, behind a server: one that knows, one that guesses, and one that fails."""

import json
import re
from typing import Any

import numpy as np
import pytest
from helpers_language import LabelledPictures, judging_at_random, judging_oracle, language_server
from test_judging import KINDS, OF_RANDOM, TRUE, a_table, called, scores

from mammosae_plugin.adapters.language_models import openai_model
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation import judge_names, told_scores
from mammosae_plugin.interpretation.judging import CHANCE

FEW = {**{latent: TRUE[latent] for latent in range(8)}, **{latent: OF_RANDOM[latent] for latent in range(24, 36)}}
CHEAP: dict[str, Any] = {"set_size": 20, "n_intruder": 1}


@pytest.fixture(scope="module")
def table():
    return a_table()


@pytest.fixture(scope="module")
def pictures(table):
    has = table.images[KINDS].to_numpy() == 1
    return LabelledPictures([frozenset(np.array(KINDS)[row]) for row in has])


def judge(server, **settings):
    return openai_model("judge", server.url, retries=1, **settings)


def test_an_oracle_behind_a_server_scores_1_shuffled_names_score_chance_and_random_latents_fall(table, pictures):
    with language_server(judging_oracle(pictures)) as server:
        found = judge_names(called(FEW), table, pictures, judge(server), **CHEAP, seed=1)
    right = found.latents.set_index("latent").loc[range(8)]
    assert (right[["detection", "detection_hard", "intruder", "ranking_1", "ranking_2"]] == 1).all(axis=None)
    assert not right["abstained"].any() and found.n_named == 8
    for name, one in scores(found).items():
        assert one["shuffled_low"] <= CHANCE[name] <= one["shuffled_high"], name
    assert server.n_calls == found.about["judging"]["n_questions"] == 20 * 2 * 3
    assert {len(asked.files) for asked in server.asked} == {5, 20}
    said = {text for asked in server.asked for text in asked.texts}
    assert not re.search(r"latent|\d\.png|fire|activation", " ".join(said))


def test_a_guessing_model_scores_chance_and_keeps_no_name(table, pictures):
    with language_server(judging_at_random(1)) as server:
        found = judge_names(called(TRUE), table, pictures, judge(server), **CHEAP)
    for name, one in scores(found).items():
        assert one["low"] <= CHANCE[name] <= one["high"], name
        assert one["shuffled_low"] <= CHANCE[name] <= one["shuffled_high"], name
    assert found.n_named == 0 and (found.latents["n_failed"] == 0).all()


def test_a_model_that_never_parses_scores_nothing_and_says_so(table, pictures):
    names = {latent: TRUE[latent] for latent in range(6)}
    with language_server(lambda _: "I would rather not say.") as server:
        found = judge_names(called(names), table, pictures, judge(server), **CHEAP)
    assert all(one["mean"] == 0 for one in scores(found).values()) and found.n_named == 0
    assert (found.latents["n_failed"] == 3).all()
    assert told_scores(found)[-1] == (
        "36 of 36 answers do not count, and are wrong answers (the first: no whole JSON object)"
    )


def test_a_faulty_server_is_asked_again_and_what_was_answered_is_never_asked_twice(table, pictures, tmp_path):
    names, journal = called({latent: TRUE[latent] for latent in range(6)}), tmp_path / "answers.jsonl"
    oracle = judging_oracle(pictures)

    class Killed(BaseException):
        pass

    faults = ("429", "bad json", "", "truncated", "wrong schema", "500", "", "prose", "fence", "empty")
    with language_server(oracle, faults) as server:
        model = judge(server)
        whole_run = judge_names(names, table, pictures, model)
        assert {one["mean"] for one in scores(whole_run).values()} == {1.0}

        class Dies:
            name, host, settings = model.name, model.host, model.settings

            def answer(self, question, *, seed):
                if server.n_calls - before == 30:
                    raise Killed
                return model.answer(question, seed=seed)

        before = server.n_calls
        with pytest.raises(Killed):
            judge_names(names, table, pictures, Dies(), journal=journal)
        found = judge_names(names, table, pictures, model, journal=journal)
        assert server.n_calls - before == found.about["judging"]["n_questions"] == 84
        again = judge_names(names, table, pictures, model, journal=journal)
        assert server.n_calls - before == 84
    assert found.latents.equals(again.latents) and found.latents.equals(whole_run.latents)
    assert len(journal.read_text().splitlines()) == 84
    json.dumps(found.about, allow_nan=False)


def test_who_wrote_the_names_does_not_judge_them_unless_told(table, pictures):
    written = called({latent: TRUE[latent] for latent in range(6)}, model="judge")
    with language_server(judging_oracle(pictures)) as server:
        with pytest.raises(InputError, match="judge made these names"):
            judge_names(written, table, pictures, judge(server))
        assert server.n_calls == 0
        found = judge_names(written, table, pictures, judge(server), same_judge=True, **CHEAP)
    assert (found.latents["judge"] == "judge (wrote the names)").all()
    assert told_scores(found)[0].startswith("judged by judge (wrote the names) in split test")


def test_a_name_is_shown_on_one_line_without_underscores(table, pictures):
    names = {latent: f"Odd_name {letter}\n\nDescription: all" for latent, letter in enumerate("abcdef")}
    with language_server(judging_at_random()) as server:
        judge_names(called(names), table, pictures, judge(server), **CHEAP)
    first = [asked.texts[0] for asked in server.asked]
    assert all("Odd name " in said and "Odd_name" not in said and "\nDescription: all" not in said for said in first)
