"""From a query to names: what is asked for is found part by part, and what is about something else finds nothing."""

import json

import numpy as np
import pytest
from helpers_language import language_server
from helpers_search import MEANINGS, names_of, oracle_names

from mammosae_plugin.adapters.language_models import Answer, openai_model
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.name_matching import (
    ByModel,
    ByText,
    ByWords,
    UnansweredError,
    as_words,
    match_names,
    named_latents,
)

TEXTS = [
    "mass", "suspicious calcification", "skin thickening", "dense breast", "fatty breast", "left breast",
    "craniocaudal view", "mediolateral oblique view", "metal clip", "lymph node",
]  # fmt: skip


@pytest.fixture(scope="module")
def by_text():
    return ByText()


def found(by, query, texts=TEXTS, n=4):
    return [texts[match.number] for match in by.match(query, texts, n)]


def test_every_part_of_a_query_finds_its_name_and_what_is_merely_near_does_not(by_text):
    assert set(found(by_text, "a spiculated mass in a dense breast")) == {"mass", "dense breast"}
    assert set(found(by_text, "thickened skin, mediolateral oblique view of the left breast")) == {
        "skin thickening", "left breast", "mediolateral oblique view",
    }  # fmt: skip
    assert found(by_text, "Microcalcifications") == ["suspicious calcification"]
    assert len(found(by_text, "a mass in a dense left breast with a metal clip", n=2)) == 2


def test_a_query_about_something_else_finds_no_name(by_text):
    nonsense = ["a bicycle", "stock market crash", "how to bake bread", "a city street at night", "fractured rib"]
    assert [found(by_text, query) for query in nonsense] == [[]] * len(nonsense)
    rng = np.random.default_rng(3)  # of queries at random few find any, whatever alpha promises about one
    queries = [" ".join(rng.choice(by_text.words, 3)) for _ in range(150)]
    assert np.mean([bool(found(by_text, query)) for query in queries]) <= 0.05


def test_nearness_is_the_cosine_to_the_whole_query_and_p_counts_all_names(by_text):
    match = by_text.match("a mass in a dense breast", TEXTS, 4)
    vectors = by_text._encoder.embed_texts(["a mass in a dense breast", *TEXTS]).astype(float)
    middle = by_text._prepared(tuple(TEXTS))[0]
    centred = vectors - middle
    cosines = centred[1:] @ centred[0] / np.linalg.norm(centred[1:], axis=1) / np.linalg.norm(centred[0])
    np.testing.assert_allclose([one.nearness for one in match], cosines[[one.number for one in match]], atol=1e-6)
    assert match[0].number == int(np.argmax(cosines))
    assert all(len(TEXTS) / 10_000 < one.p <= 0.02 for one in match)


def test_any_text_encoder_will_do_and_one_that_hears_nothing_finds_nothing(by_text):
    class Deaf:
        def embed_texts(self, texts):
            return np.ones((len(texts), 3))

    assert found(ByText(Deaf(), words=by_text.words), "a mass") == []
    assert found(ByText(by_text._encoder, words=by_text.words), "a mass") == ["mass"]
    with pytest.raises(InputError, match="no embed_texts"):
        ByText(object())
    with pytest.raises(InputError, match="100 different words"):
        ByText(words=["one", "two"])


def test_words_find_names_that_share_one_each_word_once():
    assert found(ByWords(), "a mass in the dense breast") == ["dense breast", "mass"]
    assert found(ByWords(), "Calcifications in a view") == ["suspicious calcification", "craniocaudal view"]
    assert found(ByWords(), "the a of in and") == found(ByWords(), "a bicycle") == []
    everywhere = [f"a mammogram of {one}" for one in TEXTS]
    assert found(ByWords(), "a mammogram", everywhere) == []
    assert found(ByWords(), "a mammogram of a clip", everywhere) == ["a mammogram of metal clip"]


class Scripted:
    """A model whose answers are given beforehand."""

    name, host = "scripted", None

    def __init__(self, answers):
        self._answers, self.n_asked = list(answers), 0

    def answer(self, question, *, seed):
        assert seed == self.n_asked and "1. " in question.parts[0]
        self.n_asked += 1
        return Answer(self._answers[self.n_asked - 1], 0.0)


CASES = [  # SAIL's answers and what they must mean (its released code takes the marked ones otherwise)
    (['{"latents": [2, 5, 1]}'], [2, 5, 1]),
    (['```json\n{"latents": [1, 2, 3]}\n```'], [1, 2, 3]),
    (['Here is the answer: {"latents": [8, 1, 2]}'], [8, 1, 2]),
    (['{"latents": ["4", "2", "1"]}'], [4, 2, 1]),
    (['{"latents": [4.0, 2.0, 1.0]}'], [4, 2, 1]),
    (['{"latents": [1, 2, 3], "reasoning": "because"}'], [1, 2, 3]),
    (["nothing", '{"latents": [5, 6, 7]}'], [5, 6, 7]),
    (["no", "no", '{"latents": [5, 6, 7]}'], [5, 6, 7]),
    (["no", "no", "no"], None),
    (['{"latents": [1, 2]}', '{"latents": [1, 2, 3]}'], [1, 2, 3]),
    (['{"latents": [1, 2]}'] * 3, None),
    (['{"latents": [1, 2, 9]}', '{"latents": [1, 2, 8]}'], [1, 2, 8]),
    (['{"latents": [0, 1, 2]}', '{"latents": [3, 1, 2]}'], [3, 1, 2]),
    (['{"latents": [1, 2, 17]}'] * 3, None),
    (['{"latents": [2, 2, 5]}', '{"latents": [2, 4, 5]}'], [2, 4, 5]),  # as released: one latent twice
    (['{"latents": [3, 3, 3]}'] * 3, None),  # as released: one latent three times
    (['{"latents": [1, 2, 3', '{"latents": [1, 2, 3]}'], [1, 2, 3]),
    (["{latents: [1, 2, 3]}", '{"latents": [1, 2, 3]}'], [1, 2, 3]),  # as released: an exception
    (['{"features": [1, 2, 3]}', '{"latents": [1, 2, 3]}'], [1, 2, 3]),  # as released: an exception
    (['{"latents": null}', '{"latents": [1, 2, 3]}'], [1, 2, 3]),
    (['{"latents": [1, 2, 3]} and {note}'], [1, 2, 3]),  # as released: an exception
    (['{"latents": ["liver", 2, 3]}', '{"latents": [4, 2, 3]}'], [4, 2, 3]),
    (['{"latents": [1.5, 2, 3]}', '{"latents": [4, 2, 3]}'], [4, 2, 3]),
    (["{broken}"] * 3, None),
    (['{"latents": [3, 4, 6]}'], [3, 4, 6]),
    (['{"latents": [true, 2, 3]}', '{"latents": [1, 2.5, 3]}', '{"latents": [1, 2, 3]}'], [1, 2, 3]),
]


@pytest.mark.parametrize(("answers", "expected"), CASES)
def test_a_models_answers_count_where_each_number_is_a_name_once(answers, expected):
    model = Scripted(answers)
    by = ByModel(model, exactly=True)
    if expected is None:
        with pytest.raises(UnansweredError, match="scripted gave no answer that counts"):
            by.match("a mass", TEXTS[:8], 3)
    else:
        assert [match.number + 1 for match in by.match("a mass", TEXTS[:8], 3)] == expected
    assert model.n_asked == len(answers)


def test_a_model_may_say_that_nothing_matches_and_its_answers_are_kept(tmp_path):
    numbers = {"a mass": [1], "a bicycle": []}

    def answer(asked):
        query = asked.texts[0].split("\n")[0].removeprefix("Query: ")
        return json.dumps({"latents": numbers[query]})

    with language_server(answer, ["429", "bad json"]) as server:
        for _ in range(2):
            by = ByModel(openai_model("m", server.url), journal=tmp_path / "answers.jsonl")
            assert found(by, "a mass") == ["mass"] and found(by, "a bicycle") == []
        assert server.n_calls == 4  # refused, nonsense, and one for each query
    assert "2. suspicious calcification" in server.asked[0].texts[0] and server.asked[0].files == []


def test_latents_come_name_by_name_surest_first_and_abstained_ones_never():
    names = oracle_names()
    names.latents.loc[1, "q"] = 0.001
    matched = match_names("a mass in a dense breast", names, ByWords(), meanings=MEANINGS)
    assert matched["latent"].tolist() == [1, 0, 6, 7] and matched["part"].tolist() == [1, 1, 2, 2]
    assert matched["text"].tolist() == ["Mass", "Mass", "dense breast", "dense breast"]
    assert {"method", "score", "chance", "q", "nearness", "p"} <= set(matched.columns)
    one = match_names("a mass in a dense breast", names, ByWords(), meanings=MEANINGS, per_name=1, n_names=1)
    assert one["latent"].tolist() == [1]
    assert match_names("a bicycle", names, ByWords()).empty
    two_methods = [names, names_of({0: "dense breast", 5: "a round mass"})]
    assert match_names("a dense breast", two_methods, ByWords(), meanings=MEANINGS)["latent"].tolist() == [0, 6, 7]
    assert len(named_latents(two_methods)) == 14
    assert as_words("Suspicious_Calcification") == "Suspicious calcification" and as_words("view=MLO") == "view MLO"


def test_an_empty_query_and_names_that_are_all_abstained_are_refused():
    for query in ("", "  ", None):
        with pytest.raises(InputError, match="the query is"):
            match_names(query, oracle_names(), ByWords())
    with pytest.raises(InputError, match="none of 36 latents has a name"):
        match_names("a mass", names_of({}), ByWords())


def test_what_names_share_carries_no_match_and_an_opposite_value_is_never_matched(by_text):
    meanings = {**MEANINGS, "laterality=R": "right breast", "laterality=L": "left breast"}
    names = names_of(dict(enumerate(["Mass", "density=A", "density=D", "view=CC", "view=MLO", "laterality=R"])))

    def matched(query, by):
        return set(match_names(query, names, by, meanings=meanings)["name"])

    nonsense = ["an obese person", "fat cat", "the", "view of the sea", "massive attack concert", "lump in the breast"]
    nonsense += ["thickened skin with a retracted nipple", "the left breast", "a breast"]
    right = {"right breast": {"laterality=R"}, "dense breast": {"density=D"}, "fatty breast": {"density=A"}}
    right |= {"MLO": {"view=MLO"}, "masses": {"Mass"}, "a mass in the left breast": {"Mass"}}
    right |= {"a mass, CC": {"Mass", "view=CC"}}
    for by in (by_text, ByWords()):
        assert [matched(query, by) for query in nonsense] == [set()] * len(nonsense)
        assert {query: matched(query, by) for query in right} == right
    assert "no counts for nothing" in match_names("no mass", names, ByWords()).attrs["notes"][0]
    assert match_names("a mass", names, ByWords()).attrs["notes"] == []


def test_a_query_between_two_values_of_a_column_matches_neither_and_says_so(by_text):
    class Sizes:
        """Unrelated words, but for those of sizes: moderate lies between tiny and huge, minute near tiny."""

        def _word(self, word):
            tiny, huge = np.eye(60)[:2]
            between = {"tiny": tiny, "huge": huge, "moderate": tiny + huge, "minute": 0.9 * tiny + 0.2 * huge}
            rest = np.random.default_rng(list(word.encode())).standard_normal(60)
            return between.get(word, rest * (np.arange(60) > 1))

        def embed_texts(self, texts):
            rows = np.array([sum(self._word(word) for word in text.split()) for text in texts])
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    names = names_of({0: "size=S", 1: "size=L", 2: "Mass"})
    meanings = {"size=S": "tiny", "size=L": "huge"}

    def matched(query):
        told = match_names(query, names, ByText(Sizes(), words=by_text.words), meanings=meanings)
        return set(told["name"]), told.attrs["notes"]

    assert matched("moderate") == (
        set(),
        ["'moderate' is about as near to several values of size: none of them is matched"],
    )
    assert matched("minute") == ({"size=S"}, []) and matched("huge") == ({"size=L"}, [])
