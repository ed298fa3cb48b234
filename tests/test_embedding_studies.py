"""A study of embeddings: the same verbs on one vector per image, from networks or from files, to a report."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers_kills import ended
from helpers_sail import CKPT, sail_embeddings
from helpers_study import mammosae, small_phantoms
from sklearn.metrics import roc_auc_score

from mammosae_plugin.activations import ActivationStore, store_embeddings
from mammosae_plugin.activations.embedding_files import write_vectors
from mammosae_plugin.activations.row_sources import RowSource, open_rows
from mammosae_plugin.analysis import probe_of
from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.embeddings import read_embedding_findings
from mammosae_plugin.hub import prepare_findings
from mammosae_plugin.study import open_study

CONCEPTS = ["Mass", "density", "view"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_phantoms(tmp_path_factory.mktemp("phantoms"), n_patients=40)


@pytest.fixture(scope="module")
def planted(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of vectors that tell a mass and nothing else, one per split, with labels."""
    folder = tmp_path_factory.mktemp("planted")
    images = VinDrMammo(phantoms, image_size=(96, 64)).images
    generator = np.random.default_rng(0)
    for split, word in (("training", "train"), ("test", "test")):
        own = images[images["split"] == split].reset_index(drop=True)
        vectors = generator.normal(size=(len(own), 16)).astype(np.float32)
        vectors[:, 0] += 12 * own["Mass"].to_numpy()
        known = own[["image_id", "patient_id", "Mass", "view"]].assign(density=own["density"].map("ABCD".__getitem__))
        write_vectors(folder / f"planted_{word}.parquet", known, [vectors])
    return folder


def settings(phantoms: Path, planted: Path) -> dict:
    return {
        "kind": "embeddings",
        "output": "out",
        "data": {"root": str(phantoms), "image_size": [96, 64], "phantom": True},
        "concepts": CONCEPTS,
        "models": [
            {"name": "random", "network": "tinynet_e", "weights": "random"},
            {"name": "planted", "embeddings": str(planted)},
        ],
        "sae": {
            "train": {"d_sae": 32, "k": 4, "epochs": 20, "batch_size": 16, "lr": 0.003, "dead_feature_window": 50},
            "grid": {"k": [2, 4]},
        },
        "analysis": {"n": [10], "ks": [1, 2], "n_bootstrap": 100, "n_permutations": 20, "n_queries": 10},
    }


def written(folder: Path, given: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(given))
    return folder / "study.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def study(phantoms: Path, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study, of which `study.yaml` lies beside."""
    file = written(tmp_path_factory.mktemp("study"), settings(phantoms, planted))
    done = mammosae("study", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "planted/k=4: L0 " in (done.stdout + done.stderr) and "report: " in (done.stdout + done.stderr)
    return file.parent / "out"


def told(folder: Path, **which: object) -> pd.DataFrame:
    rows = read_embedding_findings(folder / "results").tables["probes"]
    for name, value in which.items():
        rows = rows[rows[name] == value]
    return rows


def test_probes_find_what_was_planted_and_nothing_else(study):
    masses = told(study, model="planted", arm="codes", concept="Mass")
    assert set(masses["sae"]) == {"k=2", "k=4"}
    assert (masses["auroc"] > 0.7).all() and (masses[masses["uses_all"]]["auroc"] > 0.9).all()
    assert (masses["auroc_permuted"] < 0.85).all()
    others = told(study, model="planted", arm="dense", concept="view")
    assert ((others["auroc_low"] < 0.5) & (others["auroc_high"] > 0.5)).all()
    assert set(told(study, model="planted", concept="density")["class"]) == set("ABCD")
    recovered = read_embedding_findings(study / "results").tables["recovery"].query("model == 'planted'")
    assert (recovered.query("concept == 'Mass'")["k_50"] == 1).all()
    best = read_embedding_findings(study / "results").tables["aurocs"].query("model == 'planted' and concept == 'Mass'")
    strongest = best.loc[(best["auroc"] - 0.5).abs().idxmax()]
    assert abs(strongest["auroc"] - 0.5) > 0.3 and strongest["p_family"] < 0.1
    found = read_embedding_findings(study / "results").tables["retrieval"].query("model == 'planted'")
    found = found[found["concept"] == "Mass"].groupby("method")["precision"].mean()
    assert found["dense"] > found["random"] + 0.15  # of the codes only what fires counts


def test_saes_are_trained_on_the_training_split_alone_and_judged_per_level(study):
    quality = read_embedding_findings(study / "results").tables["quality"]
    assert set(quality["level"]) == {4, 8, 16, 32}
    lines = [line for file in (study / "work" / "sae").glob("planted-*/metrics.jsonl") for line in file.open()]
    assert any('"of": "validation"' in line for line in lines)  # the images of other splits are held out
    n_training = quality.query("split == 'training'")["n_images"].unique()
    (folder,) = (path for path in (study / "work" / "activations").glob("planted-*") if path.is_dir())
    store = ActivationStore(folder)
    assert store.n_rows > n_training[0] > 0


def test_the_report_says_the_numbers_of_the_findings(study):
    page = (study / "results" / "report.html").read_text()
    quality = read_embedding_findings(study / "results").tables["quality"]
    last = quality.query("model == 'planted' and sae == 'k=4' and split == 'test' and level == 32").iloc[0]
    assert f"gives back {100 * last['explained_variance']:.0f} % of the vectors" in page
    assert "weights are random" in page and "Research only" in page
    sources = re.findall('<img src="([^"]+)"', page)
    assert len(sources) == 4 and all((study / "results" / source).is_file() for source in sources)
    said = page.split('<ol class="found">')[1].split("</ol>")[0].split("<li>")[1:]
    assert len(said) == 5 and all(re.search(r"\d\.\d|^No latent could be scored", sentence) for sentence in said)
    assert "The SAE of model planted" in said[0] and "on permuted labels" in said[1]
    captions = re.findall("<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) > 10
    for caption in captions:
        assert re.search(r"\bn = \d[\d,]* \w+", caption), caption
    for name in ("probes", "quality", "retrieval"):
        assert (study / "results" / "tables" / f"{name}.csv").stat().st_size
    assert str(study.parent) not in page


def test_a_second_run_changes_no_byte_and_each_verb_runs(study):
    before = contents(study / "results")
    file = study.parent / "study.yaml"
    for verb, says in (
        ("extract", "extract: done"),
        ("train", "train: done"),
        ("encode", "encode: done"),
        ("probe", "auroc"),
        ("classify", "has no classifier"),
        ("intervene", "no classifier reads these vectors"),
        ("localize", "a vector has no places"),
        ("report", "report: "),
    ):
        done = mammosae(verb, "--config", str(file))
        assert done.returncode == 0 and says in (done.stdout + done.stderr), (verb, (done.stdout + done.stderr))
    assert contents(study / "results") == before


KILLED = """
import sys
from helpers_kills import killed_at
from mammosae_plugin.config import load_config
from mammosae_plugin.study import open_study

run = lambda: open_study(load_config(sys.argv[1])).run()
died = [killed_at(moment, run, []) for moment in (6, 14, 30, 45)]
run()
print(sum(died))
"""


def test_a_study_that_is_killed_continues_to_the_same_bytes(phantoms, planted, tmp_path):
    given = settings(phantoms, planted)
    given["models"] = given["models"][1:]
    del given["data"]
    whole, killed = written(tmp_path / "a" / "study", given), written(tmp_path / "b" / "study", given)
    open_study(load_config(whole)).run()
    assert int(ended(KILLED, killed)) == 4
    found, wanted = contents(killed.parent / "out" / "results"), contents(whole.parent / "out" / "results")
    assert found == wanted


def test_files_of_sail_make_a_study(tmp_path):
    embeddings = sail_embeddings(tmp_path / "embeddings")
    given = {
        "kind": "embeddings",
        "output": "out",
        "concepts": ["liver", "gender"],
        "models": [{"name": "dinov3", "embeddings": str(embeddings)}],
        "sae": {"files": {"dinov3": str(CKPT)}},
        "analysis": {"n": [10], "ks": [1], "n_bootstrap": 100, "n_permutations": 20},
    }
    done = mammosae("study", str(written(tmp_path, given)))
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out" / "results" / "report.html").read_text()
    assert "No latent could be scored" in page
    saes = read_embedding_findings(tmp_path / "out" / "results").facts["saes"]
    assert saes[0]["levels"] == [8, 16, 32, 64] and saes[0]["training"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "vectors"}, "kind must be one of maps, embeddings, not 'vectors'"),
        ({"data": None}, "`data` is missing: the images of which random makes vectors"),
        ({"concepts": ["Mass", "Mass"]}, "a concept is named twice"),
        ({"models": [{"name": "a"}]}, "give either `network`"),
        ({"sae": {"files": {"other": "x.ckpt"}}}, "sae.files has SAEs for other, but the models are random, planted"),
        ({"sae": {"grid": {"kk": [1]}}}, "SAETraining has no setting 'kk'"),
        ({"sae": {"grid": "published", "train": {"architecture": "topk", "k": 3}}}, "nested SAEs"),
        ({"layers": ["layer_6"]}, "unknown setting 'layers'"),
        ({"concepts": ["Mas"]}, "'Mas'"),
        ({"analysis": {"split": "validation"}}, "have no image in the split 'validation'"),
        ({"data": {"root": ".", "unit": "finding_row"}}, "a vector is of a whole image"),
        ({"unit": "breast"}, "write them below `data`"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_studied_is_one_line(phantoms, planted, tmp_path, change, message):
    given = {name: value for name, value in {**settings(phantoms, planted), **change}.items() if value is not None}
    given["models"] = given["models"] if "models" in change else [given["models"][1]] if "data" not in change and (
        "concepts" in change or "analysis" in change
    ) else given["models"]  # fmt: skip
    if given["models"][0]["name"] == "planted":
        del given["data"]
    done = mammosae("study", str(written(tmp_path, given)))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in " ".join((done.stdout + done.stderr).split()) and "Traceback" not in (done.stdout + done.stderr)


def test_what_has_no_maps_is_not_published_as_findings_and_says_so(study):
    with pytest.raises(InputError, match="holds a study of embeddings"):
        prepare_findings(study, "owner/name", licence="cc-by-4.0")


def test_stored_vectors_become_a_store_with_what_is_known_of_the_images(planted, tmp_path):
    store = store_embeddings(planted, tmp_path / "store", concepts=["Mass", "view"])
    table = pd.read_parquet(tmp_path / "store" / "images.parquet")
    assert store.n_rows == len(table) and store.d_in == 16
    assert set(table["split"]) == {"training", "test"}
    before = contents(tmp_path / "store")
    store_embeddings(planted, tmp_path / "store", concepts=["Mass", "view"])
    assert contents(tmp_path / "store") == before
    shutil.copytree(planted, tmp_path / "other")
    vectors = np.full((2, 16), np.nan, dtype=np.float32)
    write_vectors(tmp_path / "other" / "more_test.parquet", pd.DataFrame({"image_id": ["x", "y"]}), [vectors])
    with pytest.raises(InputError, match=r"more_test.parquet, row 0, has a value that is not finite"):
        store_embeddings(tmp_path / "other", tmp_path / "broken")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concepts": ["Mas"]}, r"no column 'Mas' .*nearest: Mass"),
        ({"sae": {"files": {"random": str(CKPT)}}}, r"takes vectors of width 24, but those of model random"),
        ({"analysis": {"split": "validation"}}, r"no image in the split 'validation'"),
        ({"concepts": ["birads", "image_id"]}, r"no column 'image_id'"),
        ({"unit": "exam"}, r"the table of model planted knows no exam_id of its images, which unit exam needs"),
    ],
    ids=["concept", "width", "split", "id", "unit"],
)
def test_what_does_not_fit_is_said_before_any_vector_is_made(phantoms, planted, tmp_path, change, message):
    given = {**settings(phantoms, planted), **change}
    given["models"] = given["models"][1:] if "unit" in change else given["models"][:1]
    if "unit" in change:
        del given["data"]
    with pytest.raises(InputError, match=message):
        open_study(load_config(written(tmp_path, given))).run()
    assert not list((tmp_path / "out").rglob("activations*"))


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"{number:03d}" for number in range(6)],
            "patient_id": list("aabbcc"),
            "split": ["train"] * 4 + ["Test"] * 2,
            "sign": [1, 0, -1, 1, 0, -1],
            "birads": [1.0, 2.0, np.nan, 3.0, 1.0, 2.0],
        }
    )


def beside(folder: Path, table: pd.DataFrame, concepts: list[str]) -> RowSource:
    vectors = np.eye(6, 4, dtype=np.float32)
    ids = pd.DataFrame({"image_id": [f"{number:03d}" for number in range(6)]})
    write_vectors(folder / "vectors.parquet", ids, [vectors])
    return open_rows(folder / "vectors.parquet", images=table, concepts=concepts)


def test_a_table_of_labels_may_spell_splits_as_files_do_and_says_minus_one_for_missing(table, tmp_path):
    rows = beside(tmp_path, table, ["sign", "birads"])
    assert rows.images["split"].tolist() == ["training"] * 4 + ["test"] * 2
    assert rows.vocabulary["sign"].is_binary and rows.images["sign"].tolist() == [1, 0, -1, 1, 0, -1]
    assert rows.vocabulary["birads"].classes == ("1", "2", "3")
    assert rows.images["birads"].tolist() == [0, 1, -1, 2, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(split=["train", None, *["test"] * 4]), r"has no split for 1 images \(001\)"),
        (lambda t: t.assign(patient_id=[None, *"abbcc"]), r"has no patient_id for 1 images \(000\)"),
        (lambda t: pd.concat([t, t.head(1).assign(sign=0)]), r"says two things of image 000"),
        (lambda t: t.assign(image_id=range(6)), r"lacks 6 of .*; its image_id are such as 0"),
        (lambda t: t.assign(sign="f"), r"the column 'sign' says 'f' of every image"),
    ],
    ids=["split", "patient", "twice", "numbers", "one_class"],
)
def test_a_table_of_labels_that_is_wrong_is_one_line(table, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as raised:
        beside(tmp_path, change(table), ["sign"])
    assert "\n" not in str(raised.value)


def test_a_study_may_count_breasts_as_pandas_and_scikit_learn_put_them_together(phantoms, planted, tmp_path):
    """Probes and single latents by unit, the rest by image; and the numbers of images where each unit has one."""
    given = settings(phantoms, planted)
    given["models"] = given["models"][:1]
    given["data"] |= {"unit": "breast", "unit_scores": "maximum"}
    given["sae"]["grid"] = {"k": [4]}
    file = load_config(written(tmp_path, {**given, "concepts": ["Mass", "density"]}))
    study = open_study(file)
    study.run()
    found = read_embedding_findings(tmp_path / "out" / "results")
    table = study.table(("random", "k=4"))
    test = np.flatnonzero((table.images["split"] == "test").to_numpy())
    own = table.images.iloc[test].reset_index(drop=True)
    keys = [own[name] for name in ("patient_id", "laterality")]
    labels = own.groupby(keys, sort=False)[["Mass", "density"]].max()
    codes = pd.DataFrame(table.codes()[test].toarray().astype(float)).groupby(keys, sort=False).max()
    alone = found.tables["aurocs"]
    assert len(labels) < len(own) and len(alone)
    for concept, name, truth in (("Mass", "present", labels["Mass"]), ("density", "C", labels["density"] == 2)):
        rows = alone[(alone["concept"] == concept) & (alone["class"] == name)]
        wanted = [roc_auc_score(truth, codes[latent]) for latent in rows["latent"]]
        assert rows["auroc"].to_numpy() == pytest.approx(wanted, abs=1e-6)
    probes = found.tables["probes"]
    assert set(probes["n_rows"]) == {len(labels)} and set(probes["n_groups"]) == {own["patient_id"].nunique()}
    assert set(probes[probes["concept"] == "Mass"]["n_positive"]) == {int(labels["Mass"].sum())}
    (dense,) = probes.query("arm == 'dense' and concept == 'Mass'").to_dict("records")
    vectors = pd.DataFrame(study.vectors(study.model("random")).astype(float)).groupby(keys, sort=False).max()
    by_hand = probe_of(
        vectors.to_numpy(), labels["Mass"], labels.index.get_level_values(0), ks=(None,), n_bootstrap=100
    ).iloc[0]
    assert dense["auroc"] == pytest.approx(by_hand["auroc"], abs=1e-9)
    assert dense["auroc_low"] == pytest.approx(by_hand["auroc_low"], abs=1e-9, nan_ok=True)
    assert set(found.tables["recovery"]["dense_auroc"].round(9)) >= {round(dense["auroc"], 9)}
    assert set(found.tables["quality"].query("split == 'test'")["n_images"]) == {len(own)}  # whatever the unit
    assert found.facts["data"]["unit"] == "breast by maximum"
    assert {row["n_units"] for row in found.facts["data"]["splits"] if row["split"] == "test"} == {len(labels)}
    page = (tmp_path / "out" / "results" / "report.html").read_text()
    assert "tell breasts apart: each has the maximum over its images" in page
    assert f"{len(labels)} breasts of {own['patient_id'].nunique()} groups" in page
