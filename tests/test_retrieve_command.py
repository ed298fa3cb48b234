"""`mammosae retrieve` on a table of maps and on one of embeddings: what it prints, writes and refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers_adapters import DATA
from helpers_study import mammosae
from safetensors.torch import load_file

from mammosae_plugin.activations.embedding_files import write_vectors
from mammosae_plugin.adapters import load_vision_sae
from mammosae_plugin.analysis import retrieve
from mammosae_plugin.latents import encode_rows

SAIL = DATA / "sail" / "sae"


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """Files as SAIL leaves them, whose image_id repeats between modalities."""
    folder = tmp_path_factory.mktemp("embeddings")
    vectors = load_file(SAIL / "expected.safetensors")["embeddings_raw"].numpy()
    for words, chosen in (("train", slice(0, 16)), ("test", slice(16, 28))):
        numbers = range(len(vectors[chosen]))
        known = pd.DataFrame(
            {
                "image_id": [f"s{number % 4:04d}" for number in numbers],
                "modality": ["ct" if number % 8 < 4 else "mri" for number in numbers],
                "slice_orientation": "x",
                "slice_idx": [chosen.start + number for number in numbers],
                "liver": [number % 2 for number in numbers],
            }
        )
        write_vectors(folder / f"embeddings_{words}.parquet", known, [vectors[chosen]])
    return folder


@pytest.fixture(scope="module")
def table(embeddings, tmp_path_factory):
    return encode_rows(embeddings, load_vision_sae(SAIL / "last.ckpt"), tmp_path_factory.mktemp("tables") / "table")


def refused(*arguments):
    done = mammosae("retrieve", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("mammosae: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_an_image_of_a_table_of_maps_is_looked_up_and_drawn(encoded, phantom_root, tmp_path):
    out, image = tmp_path / "like", encoded.images["image_id"][3]
    data = ["--set", f"data.root={phantom_root}", "--set", "data.image_size=[96, 64]"]
    arguments = ["retrieve", encoded.folder, image, "-n", 3, "-k", 4, "-o", out, "--figure", *data]
    done = mammosae(*arguments)
    assert done.returncode == 0, done.stderr
    expected = retrieve(encoded, image, k=4, n=3)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Like {image} (row 3, ")
    first = expected.iloc[0]
    assert f"{first['shared'][0]} ({first['activations'][0]:.3g})" in done.stdout
    start = next(number for number, line in enumerate(lines) if line.startswith("rank"))
    assert [line.split()[1] for line in lines[start + 1 : start + 4]] == expected["image_id"].tolist()
    found = json.loads((out / "hits.json").read_text())
    assert found["query"]["image_id"] == image and len(found["query"]["latents"]) == 4
    assert [hit["likeness"] for hit in found["hits"]] == expected["likeness"].tolist()
    assert [[one["latent"] for one in hit["shared"]] for hit in found["hits"]] == expected["shared"].tolist()
    assert pd.read_csv(out / "hits.csv")["row"].tolist() == expected["row"].tolist()
    assert str(phantom_root) not in (out / "hits.json").read_text()
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert {path.name for path in before} >= {"hits.png", "hits.csv", "hits.json"}
    assert mammosae(*arguments).returncode == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (out / "hits.csv").write_text("mine")
    assert mammosae(*arguments[:3], "-o", out).returncode == 0
    assert (out / "hits.edited.csv").read_text() == "mine" and not (out / "hits.png").exists()


def test_every_method_gives_images_of_other_patients(encoded):
    own = encoded.images["patient_id"][0]
    for method in ("cosine", "bm25", "dense"):
        done = mammosae("retrieve", encoded.folder, "row:0", "--method", method, "--split", "training")
        rows = done.stdout.splitlines()[-5:]
        assert done.returncode == 0 and all(row.split()[3] == "training" and row.split()[2] != own for row in rows)


def test_slices_are_named_by_their_key_and_dense_vectors_by_their_files(table, embeddings):
    done = mammosae("retrieve", table.folder, "mri/s0000/x/4", "--method", "dense", "--rows", embeddings, "-n", 2)
    assert done.returncode == 0 and done.stdout.startswith("Like mri/s0000/x/0004 (row 4, training)")
    vectors = load_file(SAIL / "expected.safetensors")["embeddings_raw"].double().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[4]
    others = [row for row in range(28) if not (row % 4 == 0 and (row - 16 * (row >= 16)) % 8 >= 4)]
    assert f"{max(cosines[others]):.4f}" in done.stdout
    assert "/x/0004" not in "".join(done.stdout.splitlines()[4:])


def test_the_search_is_judged_by_labels_with_a_figure(table, embeddings, tmp_path):
    out = tmp_path / "judged"
    arguments = [
        "--evaluate",
        "--rows",
        embeddings,
        "--untrained",
        table.folder,
        "--label",
        "liver",
        "--label",
        "modality",
    ]
    done = mammosae("retrieve", table.folder, *arguments, "-k", 1, "-k", 3, "-n", 3, "-o", out)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(out / "retrieval_scores.csv")
    assert set(scores["source"]) == {"latents", "untrained", "dense", "random"} and (out / "k_sweep.png").exists()
    assert set(scores["k"]) == {0, 1, 3} and set(scores["label"]) == {"liver", "modality=ct", "modality=mri"}
    said = json.loads((out / "retrieval_scores.json").read_text())
    assert said["settings"]["split"] == "test" and said["settings"]["rows"] == embeddings.name
    assert len(said["scores"]) == len(scores)
    for words in (
        "modality=mri: ",
        "fingerprint, K = 3",
        "untrained SAE: BM25",
        "random images",
        "an interval needs 10",
    ):
        assert words in done.stdout
    without = mammosae("retrieve", table.folder, "--evaluate", "--split", "all", "-k", 1)
    assert "Without the dense vectors" in without.stdout and "dense vectors  " not in without.stdout


def test_what_names_no_image_or_several_is_refused(table):
    assert "the nearest are ct/s0001/x/0001, " in refused(table.folder, "ct/s0001/x/0001b")
    assert "'s0001' names 7 images" in refused(table.folder, "s0001")
    assert "mri/s0000/x/0004 (row:4, training)" in refused(table.folder, "s0000/x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the image that is asked for, or judge the search with --evaluate"),
        (["row:0", "--evaluate"], "leave out row:0"),
        (["row:0", "--figure"], "name it with -o"),
        (["row:0", "--config", "study.yaml"], "add --figure"),
        (["row:0", "-k", "1", "-k", "2"], "several are for --evaluate"),
        (["row:0", "--label", "liver"], "are for --evaluate"),
        (["--evaluate", "--method", "bm25"], "leave out --method"),
        (["--evaluate", "--figure"], "draws the K sweep"),
        (["--evaluate", "--label", "livr"], "has no label 'livr'"),
        (["--evaluate", "--split", "validation"], "it has training, test"),
        (["row:0", "--method", "dense"], "--rows"),
        (["row:0", "-n", "0"], "must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_ends_with_one_line(table, arguments, words):
    assert words in refused(table.folder, *arguments)


def test_a_wrong_place_or_wrong_data_is_refused_and_nothing_is_written(table, phantom_root, tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere", "x")
    assert mammosae("retrieve", table.folder.parent, "row:0").returncode == 0  # the only one there
    for name in ("a", "b"):
        (tmp_path / "study" / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "study" / "work" / name).symlink_to(table.folder)
    several = refused(tmp_path / "study", "x")
    assert f"holds 2 latents tables; name one: {tmp_path / 'study' / 'work' / 'a'}, " in several
    out = tmp_path / "out"
    wrong = ["--figure", "--set", f"data.root={phantom_root}", "--set", "data.image_size=[96, 64]"]
    assert "the data lack 6 of the 6 images" in refused(table.folder, "row:0", "-o", out, *wrong)
    assert not out.exists()
    write_vectors(
        tmp_path / "embeddings_test.parquet", pd.DataFrame({"image_id": ["a"]}), [np.ones((1, 24), np.float32)]
    )
    rows = tmp_path / "embeddings_test.parquet"
    assert "lacks 28 of the 28 images of the table" in refused(
        table.folder, "row:0", "--method", "dense", "--rows", rows
    )
