"""Images for a text on planted latents: the truth finds all it should, shuffled names what chance finds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_search import MEANINGS, N_RANDOM, PER_NAME, PLANTED, fires, names_of, oracle_names, planted_table
from sklearn.metrics import average_precision_score

from mammosae_plugin.adapters.text_towers import ClipText
from mammosae_plugin.datasets import TotalSegmentator
from mammosae_plugin.datasets.slices import organ_regions
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation import ByText, ByWords, Queries, Query, load_queries, search_images, search_scores
from mammosae_plugin.interpretation.name_matching import UnansweredError
from mammosae_plugin.interpretation.queries import label_values
from mammosae_plugin.interpretation.search_quality import EACH, SEARCH_COLUMNS, WHOLE, _precisions, _resampled
from mammosae_plugin.interpretation.text_search import ScaledLatents

EXAMPLES = Path(__file__).parent.parent / "examples"
QUERIES = (
    Query("a mass in a dense breast", {"Mass": 1, "density": "D"}),
    Query("suspicious calcification in a fatty breast", {"Suspicious_Calcification": 1, "density": ["A"]}),
    Query("mass, craniocaudal view", {"Mass": 1, "view": "CC"}),
)
SETTINGS = {"split": "test", "n_draws": 60, "n_bootstrap": 100}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return planted_table(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def by_text():
    return ByText()


@pytest.fixture(scope="module")
def scores(table, by_text):
    return search_scores(table, Queries(QUERIES, MEANINGS), oracle_names(), by_text, **SETTINGS)


def of(scores, label, source, measure="precision", query=""):
    rows = scores[(scores["query"] == query) & (scores["label"] == label) & (scores["source"] == source)]
    assert len(rows) == 1
    return rows[measure].iloc[0]


def test_images_have_what_is_asked_for_and_say_which_latent_adds_what(table, by_text):
    found = search_images(
        table, "a mass in a dense breast", oracle_names(), by_text, meanings=MEANINGS, n=10, split="test"
    )
    assert sorted(found.latents["latent"]) == [0, 1, 6, 7] and (found.latents["weight"] == 0.25).all()
    hits = found.hits
    assert (hits["Mass"] == 1).all() and (hits["density"] == 3).all() and (hits["split"] == "test").all()
    assert hits["patient_id"].is_unique and hits["score"].is_monotonic_decreasing and len(hits) == 10
    np.testing.assert_allclose(hits["score"], [sum(own) for own in hits["contributions"]])
    codes = table.max_latents.toarray()
    latents = found.latents["latent"].tolist()
    assert hits["activations"].tolist()[3] == pytest.approx(codes[hits["row"][3]][latents])
    again = search_images(
        table, "a mass in a dense breast", oracle_names(), by_text, meanings=MEANINGS, n=10, split="test"
    )
    pd.testing.assert_frame_equal(again.hits, hits)


def test_scores_are_what_the_formulas_say():
    codes = np.array([[0, 2.0], [1, 2], [2, 0], [4, 8], [-3, 0]])
    strength = ScaledLatents(codes)
    expected = np.log1p(10 * np.maximum(codes, 0) / [2, 2]) / np.log(11)
    weights, both = np.array([0.75, 0.25]), np.arange(2)
    np.testing.assert_allclose(strength.contributions(both, weights).toarray(), expected * weights, atol=1e-12)
    np.testing.assert_allclose(strength.scores(both, weights), expected @ weights, atol=1e-12)
    assert strength.n_active.tolist() == [3, 3]
    fired = np.maximum(codes, 0)
    lengths = np.linalg.norm(fired, axis=1)
    cosines = np.divide(fired.sum(axis=1), lengths * np.sqrt(2), out=np.zeros(5), where=lengths > 0)
    np.testing.assert_allclose(ScaledLatents(codes, "cosine").scores(both, weights), cosines, atol=1e-12)
    np.testing.assert_allclose(ScaledLatents(codes, "cosine").scores(both[:1], weights[:1]), fired[:, 0] / 4)


def test_a_text_that_no_name_says_finds_no_image(table, by_text):
    found = search_images(table, "a bicycle", oracle_names(), by_text, meanings=MEANINGS)
    assert found.latents.empty and found.hits.empty and "weight" in found.latents


def test_the_truth_is_precise_and_random_latents_and_shuffled_names_are_not(scores):
    assert list(scores.columns) == [*SEARCH_COLUMNS]
    for query in QUERIES:
        whole = of(scores, WHOLE, "names", query=query.text)
        assert whole == 1 and of(scores, WHOLE, "names", "n_right", query.text) >= 10
        assert of(scores, WHOLE, "names", "p_random", query.text) < 0.05
    base = np.mean([of(scores, WHOLE, "random images", query=query.text) for query in QUERIES])
    rates = [of(scores, WHOLE, "names", "n_right", query.text) / 120 for query in QUERIES[:2]]
    assert abs(of(scores, WHOLE, "random images", query=QUERIES[0].text) - rates[0]) < 0.05
    assert of(scores, WHOLE, "random images") == pytest.approx(base)
    assert of(scores, WHOLE, "names") == of(scores, EACH, "names") == 1
    low, high = (of(scores, WHOLE, "random latents", f"precision{end}") for end in ("_low", "_high"))
    assert low <= base <= high and high < 1
    assert of(scores, WHOLE, "shuffled names") < 0.5
    assert of(scores, "Mass", "names", "n_queries") == 2 and of(scores, "density", "names", "n_queries") == 2


def test_shuffled_names_and_untrained_latents_are_as_good_as_random_images(table, by_text):
    """Names of the planted dealt out wrongly, and names on latents that fire at random."""
    first_random = len(PLANTED) * PER_NAME
    wrong = names_of({first_random + place: name for place, name in enumerate(PLANTED)})
    found = search_scores(table, Queries(QUERIES, MEANINGS), wrong, by_text, **SETTINGS)
    low, high = (of(found, EACH, "random images", f"precision{end}") for end in ("_low", "_high"))
    assert low - 0.05 <= of(found, EACH, "names") <= high + 0.05
    assert of(found, EACH, "names", "p_random") > 0.05
    assert of(found, EACH, "shuffled names") == pytest.approx(of(found, EACH, "random images"), abs=0.08)
    assert first_random + N_RANDOM == table.d_sae


def test_queries_that_match_nothing_count_as_random_images_and_none_is_dropped(table, by_text):
    queries = [
        *QUERIES,
        Query("a bicycle", {"Mass": 1}),
        Query("a mass on an old machine", {"Mass": 1, "machine": "old"}),
    ]
    queries += [Query("a mass of class E", {"density": "E"}), Query("nobody is that old", {"age": ">= 200"})]
    found = search_scores(table, Queries(tuple(queries), MEANINGS), oracle_names(), by_text, **SETTINGS)
    assert set(found["query"]) == {"", *(query.text for query in queries)}
    assert of(found, WHOLE, "names", "reason", "a bicycle") == "no named latent matches"
    assert np.isnan(of(found, WHOLE, "names", query="a bicycle"))
    random = of(found, WHOLE, "random images", query="a bicycle")
    assert of(found, WHOLE, "names") == pytest.approx((3 + random) / 4)
    assert (of(found, WHOLE, "names", "n_queries"), of(found, WHOLE, "names", "n_answered")) == (4, 3)
    old = queries[4].text
    assert of(found, WHOLE, "names", "reason", old) == "the table has no column machine"
    assert of(found, "Mass: 1", "names", query=old) == 1
    assert "has no class E" in of(found, WHOLE, "names", "reason", "a mass of class E")
    assert of(found, WHOLE, "names", "reason", "nobody is that old") == "no image that is searched has it"


def test_a_query_to_which_a_matcher_has_no_answer_counts_as_random_images_with_the_reason(table):
    class Mute(ByWords):
        name = "mute"

        def match(self, query, texts, n):
            if "fatty" in query:
                raise UnansweredError("no answer that counts")
            return super().match(query, texts, n)

    found = search_scores(table, Queries(QUERIES, MEANINGS), oracle_names(), Mute(), **SETTINGS)
    assert of(found, WHOLE, "names", "reason", QUERIES[1].text) == "no answer that counts"
    assert (of(found, WHOLE, "names", "n_queries"), of(found, WHOLE, "names", "n_answered")) == (3, 2)


def test_a_text_encoder_of_the_images_stands_beside_the_latents(table):
    """Images embedded so that one coordinate is mass, and a text that asks for it."""
    features = np.stack([fires(table.images, "Mass"), ~fires(table.images, "Mass")], axis=1) + 0.1

    class Tower(ClipText):
        def __init__(self):
            super().__init__(lambda texts: None, None)

        def embed_texts(self, texts):
            return np.array([[1.0, 0.0] if "mass" in text else [0.0, 1.0] for text in texts], dtype=np.float32)

    found = search_scores(
        table, Queries(QUERIES[:2], MEANINGS), oracle_names(), ByWords(), tower=Tower(), embeddings=features, **SETTINGS
    )
    assert of(found, "Mass: 1", "text encoder", query=QUERIES[0].text) == 1
    assert of(found, "density: D", "text encoder", query=QUERIES[0].text) < 0.8
    assert of(found, "Mass: 1", "text encoder", "p_random", QUERIES[0].text) < 0.3


def test_precision_and_average_precision_are_those_of_scikit_learn_also_in_resamples():
    rng = np.random.default_rng(0)
    for _ in range(20):
        right = rng.random(60) < 0.3
        falling = -np.arange(60)
        precision, average = _precisions(right, int(right.sum()), 10)
        assert precision == right[:10].mean()
        assert average == pytest.approx(average_precision_score(right, falling))
        weights = rng.integers(0, 4, (3, 60)).astype(float)
        for own, (of_first, of_all) in zip(
            weights, _resampled(right, weights, (weights * right).sum(axis=1), 10), strict=True
        ):
            repeated = np.repeat(right, own.astype(int))
            assert of_first == pytest.approx(repeated[:10].mean())
            assert of_all == pytest.approx(average_precision_score(right, falling, sample_weight=own))
    assert _precisions(np.zeros(5, bool), 3, 10) == (0, 0)  # right images that the ranking does not choose are missed


@pytest.mark.parametrize(
    ("column", "wanted", "expected"),
    [
        ("Mass", 1, [1, 0, np.nan, 1]),
        ("density", "D", [0, 1, np.nan, 0]),
        ("density", ["A", "D"], [1, 1, np.nan, 0]),
        ("view", "MLO", [0, 1, 0, np.nan]),
        ("age", ">= 60", [0, 1, 1, np.nan]),
        ("age", "< 60", [1, 0, 0, np.nan]),
        ("age", 60, [0, 1, 0, np.nan]),
    ],
)
def test_labels_are_what_columns_say_and_unknown_where_they_say_nothing(table, column, wanted, expected):
    images = pd.DataFrame(
        {
            "Mass": [1, 0, -1, 1],
            "density": [0, 3, -1, 1],
            "view": ["CC", "MLO", "CC", None],
            "age": [59, 60, 61, np.nan],
        }
    )
    few = type("Few", (), {"images": images, "vocabulary": table.vocabulary})
    values, reason = label_values(few, column, wanted)
    np.testing.assert_array_equal(values, expected)
    assert reason == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("queries: []", "has no list of queries"),
        ("- a mass", "no file of queries"),
        ("queries: [{text: a mass}]", "query 1 of .* needs `text` and `labels`"),
        ("queries: [{text: '', labels: {Mass: 1}}]", "the text of a query"),
        ("queries: [{text: a mass, labels: {}}]", "has no labels"),
        ("queries: [{text: a mass, labels: {Mass: {a: 1}}}]", "give a word, a number or a list"),
        ("queries: [{text: a, labels: {b: 1}}, {text: a, labels: {b: 1}}]", "asks 'a' twice"),
        ("meanings: {Mass: 1}\nqueries: [{text: a, labels: {b: 1}}]", "meanings that are no text"),
        ("question: [a]", "no file of queries"),
        ("queries: [", "not valid YAML"),
    ],
)
def test_files_of_queries_that_are_wrong_are_refused_in_a_line(tmp_path, content, said):
    (tmp_path / "queries.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        load_queries(tmp_path / "queries.yaml")


def test_the_example_for_mammograms_asks_for_labels_that_its_dataset_has(phantoms):
    """Phantoms are in VinDr-Mammo's form, with its concepts and columns."""
    queries = load_queries(EXAMPLES / "queries_mammography.yaml")
    assert len(queries.queries) == 12
    for query in queries.queries:
        for column, wanted in query.labels.items():
            values, reason = label_values(phantoms, column, wanted)
            assert reason == "" and set(values) <= {0, 1}, (query.text, column)
    known = {f"{name}={one}" for name, concept in phantoms.vocabulary.items() for one in concept.classes}
    assert set(queries.meanings) <= known | {"view=CC", "view=MLO", "laterality=L", "laterality=R"}


def test_the_example_for_ct_and_mri_asks_for_labels_that_its_dataset_has(tmp_path):
    """Two tiny volumes in TotalSegmentator's layout, with the organs that are asked for and nothing in them."""
    nibabel = pytest.importorskip("nibabel")
    queries = load_queries(EXAMPLES / "queries_ct_mri.yaml")
    assert len(queries.queries) == 12
    organs = {column for query in queries.queries for column in query.labels} & organ_regions().keys()
    assert len(organs) >= 10
    rng = np.random.default_rng(0)
    for modality in ("ct", "mri"):
        folder = tmp_path / modality / "s0000"
        (folder / "segmentations").mkdir(parents=True)

        def save(values, place):
            nibabel.save(nibabel.Nifti1Image(values, np.diag([1.5, 1.5, 1.5, 1])), place)

        save(rng.integers(0, 500, (8, 8, 8)).astype(np.int16), folder / f"{modality}.nii.gz")
        for organ in organs if modality == "ct" else organs & {"liver"}:
            save(np.ones((8, 8, 8), dtype=np.uint8), folder / "segmentations" / f"{organ}.nii.gz")
        meta = "image_id;age;gender;institute;study_type\ns0000;65;f;A;ct abdomen\n"
        (tmp_path / modality / "meta.csv").write_text(meta)
    data = TotalSegmentator(tmp_path / "ct", tmp_path / "mri", image_size=16)
    data = type("Table", (), {"images": data.images, "vocabulary": data.vocabulary})
    asked = set()
    for query in queries.queries:
        for column, wanted in query.labels.items():
            values, reason = label_values(data, column, wanted)
            assert reason == "" and set(values[~np.isnan(values)]) <= {0, 1}, (query.text, column)
            asked.add(column)
            if column in organs or wanted in ("x", "y", "z", "ct", "mri", "f"):
                assert (values == 1).any(), (query.text, column)
    assert asked == {*organs, "gender", "age", "slice_orientation", "modality"}
    for name in queries.meanings:
        column, _, level = name.partition("=")
        assert column in data.images and (column == "gender" or level in set(data.images[column].astype(str)))
