"""Names from texts: planted latents are named, random ones and those of distractors are not."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_adapters import DATA
from helpers_search import names_of
from helpers_study import random_sae
from scipy.sparse import csr_array
from scipy.special import softmax
from typer.testing import CliRunner

from mammosae_plugin.adapters import load_mammo_clip_text
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation import (
    Terms,
    load_terms,
    name_by_directions,
    name_by_texts,
    name_by_texts_of,
    parse_ranking,
)

N_PATIENTS, N_PLANTED, N_RANDOM, WIDTH, D_IN = 150, 24, 60, 24, 40
NAMES = [f"finding {number}" for number in range(10)]
WORDS = Terms({name: f"an image with {name}" for name in NAMES}, {"bicycle": "a bicycle", "dog": "a dog"})


class Tower:
    """Texts are random vectors, and images are projected from D_IN numbers with a bias."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.of_text = dict(zip(WORDS.texts, rng.normal(size=(12, WIDTH)), strict=True))
        self.weight, self.bias = rng.normal(size=(WIDTH, D_IN)), rng.normal(size=WIDTH)

    def embed_texts(self, texts):
        found = np.stack([self.of_text[text] for text in texts])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def project(self, features):
        return np.asarray(features) @ self.weight.T + self.bias

    def directions(self):
        """(12, D_IN) features whose projection points to each text."""
        return self.embed_texts(WORDS.texts) @ np.linalg.pinv(self.weight).T


@pytest.fixture(scope="module")
def planted():
    """Codes, features, groups and truth: two images of each patient, who has some findings; the last three planted
    latents are of a distractor."""
    rng, tower = np.random.default_rng(0), Tower()
    has = np.repeat(rng.random((N_PATIENTS, 12)) < 0.2, 2, axis=0)
    features = 2 * has @ tower.directions() + 0.3 * rng.normal(size=(len(has), D_IN)) / np.sqrt(D_IN)
    truth = [number % 10 for number in range(N_PLANTED - 3)] + [10] * 3
    fires = has[:, truth] & (rng.random((len(has), N_PLANTED)) < 0.8)
    at_random = rng.random((len(has), N_RANDOM)) < 0.2
    codes = np.hstack([fires, at_random]) * rng.uniform(1, 2, (len(has), N_PLANTED + N_RANDOM))
    return SimpleNamespace(
        codes=codes, features=features, groups=np.repeat(np.arange(N_PATIENTS), 2), tower=tower,
        truth=[WORDS.names[number] for number in truth],
    )  # fmt: skip


def similarity(planted):
    images = planted.tower.project(planted.features)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return images @ planted.tower.embed_texts(WORDS.texts).T


@pytest.mark.parametrize("score", ["soft_wpmi", "mean_difference"])
def test_planted_latents_are_named_and_random_ones_are_not(planted, score):
    found = name_by_texts_of(planted.codes, similarity(planted), WORDS, planted.groups, score=score)
    latents = found.latents
    names = latents["name"].to_numpy()
    assert np.mean(names[: N_PLANTED - 3] == np.array(planted.truth[:-3])) >= 0.9
    assert np.mean(names[N_PLANTED:] != "") <= 0.05
    assert (names[N_PLANTED - 3 : N_PLANTED] == "").all()
    assert (
        latents["reason"][N_PLANTED - 3 : N_PLANTED].str.startswith("a distractor fits best; nearest is bicycle").all()
    )
    assert found.about["n_best_is_distractor"] >= 3
    own = latents[names != ""]
    assert ((own["low"] <= own["high"]) & (own["low"] > own["chance"]) & (own["score"] > own["chance"])).all()
    assert set(WORDS.names) >= {*found.candidates["name"]}
    first = found.candidates[found.candidates["rank"] == 1]
    assert first["q"].notna().all() and found.candidates.loc[found.candidates["rank"] > 1, "q"].isna().all()


def test_scores_are_those_of_the_formulas(planted):
    values, column = similarity(planted), planted.codes[:, 0]
    rows = sorted({*range(0, 300, 2)}, key=lambda row: -max(column[row], column[row + 1]))[:20]
    rows = [row if column[row] >= column[row + 1] else row + 1 for row in rows]
    weights = np.linspace(1, 0, 21)[:20]
    p = softmax(10 * values, axis=1)
    expected = np.log(weights @ p[rows] / weights.sum()) - np.log(p.mean(axis=0))
    found = name_by_texts_of(planted.codes[:, :1], values, WORDS, planted.groups, top_k=12).candidates
    np.testing.assert_allclose(found.set_index("name").loc[WORDS.names, "score"], expected, rtol=1e-9)
    found = name_by_texts_of(
        planted.codes[:, :1], values, WORDS, planted.groups, score="mean_difference", top_k=12
    ).candidates
    expected = (values[rows].mean(axis=0) - values.mean(axis=0)) / values.std(axis=0)
    np.testing.assert_allclose(found.set_index("name").loc[WORDS.names, "score"], expected, rtol=1e-9)


def test_p_values_of_random_latents_are_spread_evenly():
    rng = np.random.default_rng(2)
    codes, values = rng.random((300, 400)) * (rng.random((300, 400)) < 0.3), rng.normal(size=(300, 12))
    p = name_by_texts_of(codes, values, WORDS, np.arange(300), n_draws=500).latents["p"].to_numpy()
    assert np.quantile(p, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.07)


def test_terms_that_tell_nothing_and_latents_that_hardly_fire_have_no_name(planted):
    values = similarity(planted)
    values[:, 3] = 0.2
    codes = planted.codes.copy()
    codes[16:, 0] = 0
    found = name_by_texts_of(codes, values, WORDS, planted.groups)
    assert "finding 3" not in set(found.latents["name"])
    fires = len(np.unique(planted.groups[codes[:, 0] > 0]))
    assert found.told(0) == f"no name: fires in too few groups; in {fires}, fewer than 10"
    assert found.latents.loc[0, ["score", "p", "q"]].isna().all() and found.latents.loc[0, "n"] == 0
    assert 0 not in set(found.candidates["latent"])


def test_a_table_is_named_by_its_own_channels(planted):
    frame = {"patient_id": planted.groups, "split": ["training"] * 300, "image_id": np.arange(300).astype(str)}
    table = SimpleNamespace(
        images=pd.DataFrame(frame), mean_channels=planted.features.astype(np.float32),
        max_latents=csr_array(planted.codes), d_sae=planted.codes.shape[1], folder=SimpleNamespace(name="TABLE"),
        readout_kind="linear",
        live_latents=lambda split: np.arange(planted.codes.shape[1]),
    )  # fmt: skip
    found = name_by_texts(table, planted.tower, WORDS, latents=[5, 40, 2])
    assert found.latents["latent"].tolist() == [5, 40, 2]
    assert found.latents["name"].tolist() == [planted.truth[5], "", planted.truth[2]]
    assert set(found.candidates["latent"]) == {2, 5, 40} and found.about["split"] == "training"
    inner = SimpleNamespace(**{**vars(table), "readout_kind": "network", "hook_name": "blocks.1.hook_out"})
    with pytest.raises(InputError, match=r"blocks\.1\.hook_out, an inner layer"):
        name_by_texts(inner, planted.tower, WORDS)
    given = name_by_texts(inner, planted.tower, WORDS, embeddings=planted.features, latents=[5]).latents
    assert given["name"].tolist() == [planted.truth[5]]


def test_decoder_rows_are_named_by_where_they_point(planted):
    rng, tower = np.random.default_rng(4), planted.tower
    noise = rng.normal(size=(N_PLANTED + N_RANDOM, D_IN))
    noise /= np.linalg.norm(tower.project(noise) - tower.bias, axis=1, keepdims=True)
    truth = [number % 10 for number in range(N_PLANTED - 2)] + [11, 11]
    decoder = 0.4 * noise
    decoder[:N_PLANTED] += tower.directions()[truth]
    found = name_by_directions(decoder, tower, WORDS)
    names = found.latents["name"].to_numpy()
    assert np.mean(names[: N_PLANTED - 2] == np.array(NAMES)[truth[:-2]]) >= 0.9
    assert np.mean(names[N_PLANTED:] != "") <= 0.05
    assert found.latents["reason"][N_PLANTED - 1].startswith("a distractor fits best; nearest is dog")
    pointed = decoder[0] @ tower.weight.T
    expected = pointed @ tower.embed_texts(WORDS.texts)[0] / np.linalg.norm(pointed)
    assert found.latents["score"][0] == pytest.approx(expected)
    assert found.latents[["low", "high"]].isna().all(axis=None) and (found.latents["n"] == 0).all()
    some = name_by_directions(decoder, tower, WORDS, latents=[3, 50, 7])
    assert some.latents["latent"].tolist() == [3, 50, 7]


@pytest.fixture
def checkpoint(encoded, tmp_path):
    """A pretraining checkpoint of Mammo-CLIP's form whose projection reads the table's channels, and a tokenizer."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mass", "clip", "dog"]
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    weights = transformers.BertModel(config).state_dict()
    model = {f"text_encoder.text_encoder.{key}": value for key, value in weights.items()}
    for name, width in (("text", 64), ("image", encoded.d_in)):
        model |= {f"{name}_projection.projection.weight": torch.randn(8, width) / width**0.5}
        model |= {f"{name}_projection.projection.bias": torch.zeros(8)}
    torch.save({"model": model, "config": {}}, tmp_path / "text.tar")
    (tmp_path / "terms.yaml").write_text("terms: [mass, clip]\ndistractors: [dog]")
    return ["--text", str(tmp_path / "text.tar"), "--tokenizer", str(folder), "--terms", str(tmp_path / "terms.yaml")]


def test_the_command_names_by_texts_and_by_direction(encoded, checkpoint, tmp_path):
    sae = random_sae(encoded.d_in)
    sae.save_model(tmp_path / "sae")
    run = ["name", str(encoded.folder), "-o", str(tmp_path / "named"), *checkpoint]
    for more in (["--by", "texts", "--min-groups", "3"], ["--by", "direction", "--sae", str(tmp_path / "sae")]):
        done = CliRunner().invoke(app, [*run, *more])
        assert done.exit_code == 0, done.output
        assert "latents have a name; tried were 2 terms and 1 distractors" in done.output
        assert "if texts meant nothing it would be 33% of them" in done.output
        frame = pd.read_csv(tmp_path / "named" / "names.csv")
        assert frame["latent"].tolist() == encoded.live_latents("training").tolist()
        assert frame["method"].unique().tolist() == ["texts, soft_wpmi" if "texts" in more else "direction"]
    written = json.loads((tmp_path / "named" / "names.json").read_text())
    expected = name_by_directions(
        sae.W_dec.detach(), load_mammo_clip_text(checkpoint[1], tokenizer=checkpoint[3]), load_terms(checkpoint[5]),
        latents=encoded.live_latents("training"),
    )  # fmt: skip
    assert [row["score"] for row in written["latents"]] == pytest.approx(expected.latents["score"].tolist())


def test_its_text_encoder_matches_names_and_ranks_images_beside_the_latents(encoded, checkpoint, tmp_path):
    live = encoded.live_latents("training").tolist()
    (tmp_path / "own").mkdir()
    names_of({live[0]: "mass", live[1]: "clip"}, n_latents=encoded.d_sae).write(tmp_path / "own")
    (tmp_path / "queries.yaml").write_text("queries: [{text: mass, labels: {Mass: 1}}]")
    run = ["search", str(encoded.folder), "--names", str(tmp_path / "own"), *checkpoint[:4], "--by", "clip"]
    run += ["--evaluate", str(tmp_path / "queries.yaml"), "-n", "3", "--n-draws", "5", "-o", str(tmp_path / "judged")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    scores = pd.read_csv(tmp_path / "judged" / "search_scores.csv").set_index(["query", "source"])
    assert scores.loc[("mass", "names"), "latents"] == live[0]
    tower = load_mammo_clip_text(checkpoint[1], tokenizer=checkpoint[3])
    rows = np.flatnonzero(encoded.images["split"] == "test")
    images = tower.project(encoded.mean_channels[rows])
    cosines = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ tower.embed_texts(["mass"])[0]
    about = encoded.images.iloc[rows].assign(cosine=cosines).sort_values("cosine", ascending=False)
    first = about.drop_duplicates("patient_id").head(3)
    assert scores.loc[("mass", "text encoder"), "precision"] == pytest.approx(first["Mass"].mean())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "texts"], "--by texts needs a text encoder"),
        (["--by", "direction", "--text", "x.tar"], "name the SAE with --sae"),
        (["--text", "x.tar"], "--text is for --by texts or direction"),
        (["--score", "soft_wpmi"], "--score is for --by texts"),
        (["--by", "texts", "--text", "x.tar", "--label", "Mass"], "--label is for --by labels"),
        (["--no-metadata", "--metadata", "view"], "give one of them"),
    ],
)
def test_options_of_another_method_are_refused_in_a_line(encoded, options, said):
    done = CliRunner().invoke(app, ["name", str(encoded.folder), *options])
    assert done.exit_code == 2 and said in " ".join(done.output.split())


def test_a_text_encoder_judges_names_but_not_its_own_unless_told(encoded, checkpoint, tmp_path):
    random_sae(encoded.d_in).save_model(tmp_path / "sae")
    run = ["name", str(encoded.folder), *checkpoint, "--judge", "texts", "--judge-split", "training"]
    loose = ["--alpha", "1", "--min-excess", "0"]
    own = [*run, *loose, "--by", "direction", "--sae", str(tmp_path / "sae"), "--judge-images", "5"]
    done = CliRunner().invoke(app, own)
    assert done.exit_code == 2 and "text encoder text.tar made these names" in done.output
    done = CliRunner().invoke(app, [*own, "--same-judge"])
    assert done.exit_code == 0 and done.output.startswith("judged by text encoder text.tar (wrote the names) in split")
    of_labels = [
        *run,
        *loose,
        "--split",
        "test",
        "-n",
        "6",
        "--min-groups",
        "3",
        "--check",
        "none",
        "--judge-images",
        "5",
    ]
    done = CliRunner().invoke(app, of_labels)
    assert done.exit_code == 0 and done.output.startswith("judged by text encoder text.tar in split training: ")


def test_an_sae_of_another_width_is_refused(encoded, checkpoint, tmp_path):
    random_sae(encoded.d_in, 16).save_model(tmp_path / "sae")
    run = ["name", str(encoded.folder), "--by", "direction", "--sae", str(tmp_path / "sae"), *checkpoint]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 2 and "has 16 latents" in done.output


def test_rankings_are_read_or_are_none():
    cases = json.loads((DATA / "sail" / "rankings.json").read_text())
    for answer, expected in cases:
        assert parse_ranking(answer) == (None if expected is None else list(expected)), answer
    assert len(cases) > 100 and 20 < sum(expected is None for _, expected in cases) < 100
    assert parse_ranking("C, A, B", 3) == ["C", "A", "B"] and parse_ranking("C, A, B") is None
    for answer, n, said in ((None, 5, "the answer is a NoneType"), ("A", 30, "n is 30")):
        with pytest.raises(InputError, match=said):
            parse_ranking(answer, n)


def test_the_vocabulary_that_ships_is_whole():
    words = load_terms()
    assert len(words.terms) > 50 and len(words.distractors) >= 10
    assert len({*words.texts}) == len(words.texts) and all(text == text.lower() for text in words.texts)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "terms: {a: b}\nwords: {}", "no vocabulary"),
        ("a.yaml", "terms: {}", "no terms"),
        ("a.yaml", "terms: {a: b}\ndistractors: {a: c}", "both a term and a distractor"),
        ("a.yaml", "terms: {a: 5}", "the text of a is 5"),
        ("a.yaml", "terms: mass", "neither names with texts nor a list"),
        ("a.txt", "mass\nmass\n", "a term twice"),
        ("a.txt", "\n", "no terms"),
    ],
)
def test_a_vocabulary_of_another_form_is_refused_in_a_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        load_terms(tmp_path / name)


def test_own_vocabularies_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("a mass\n\na clip\n")
    assert load_terms(tmp_path / "a.txt") == Terms({"a mass": "a mass", "a clip": "a clip"})
    (tmp_path / "a.yaml").write_text("terms: [a mass]\ndistractors: {dog: a dog}")
    assert load_terms(tmp_path / "a.yaml") == Terms({"a mass": "a mass"}, {"dog": "a dog"})
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    for file, said in ((tmp_path / "none.yaml", "cannot be read"), (tmp_path / "b.txt", "no UTF-8")):
        with pytest.raises(InputError, match=said):
            load_terms(file)


def test_bad_arguments_are_refused_in_a_line(planted):
    values = similarity(planted)
    for change, said in (
        ({"similarity": values[:, :5]}, r"shape \(300, 5\): expected \(300, 12\)"),
        ({"score": "pmi"}, "score is 'pmi'"),
        ({"scale": 0}, "scale is 0"),
        ({"n": 1}, "n is 1"),
    ):
        with pytest.raises(InputError, match=said):
            name_by_texts_of(
                planted.codes, **{"similarity": values, "terms": WORDS, "groups": planted.groups, **change}
            )
    for decoder, said in ((np.ones(4), r"shape \(4,\)"), (np.ones((1, D_IN)), "at least two")):
        with pytest.raises(InputError, match=said):
            name_by_directions(decoder, planted.tower, WORDS)
