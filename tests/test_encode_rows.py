"""A latents table of rows without a network, and the files of embeddings that it reads and writes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers_kills import ended
from helpers_sail import CKPT, SAIL, sail_embeddings
from helpers_study import mammosae, random_sae
from helpers_training import store_of
from safetensors.torch import load_file

from mammosae_plugin.activations.embedding_files import EmbeddingFile, read_sparse_features, write_vectors
from mammosae_plugin.activations.row_sources import write_embeddings
from mammosae_plugin.adapters import load_vision_sae
from mammosae_plugin.analysis import (
    class_mean_latents,
    latent_aurocs,
    latent_aurocs_of,
    linear_probes,
    localize,
    monosemanticity_of,
    nested_labels,
    rank_latents,
    splitting,
    sweep,
)
from mammosae_plugin.analysis.reconstruction import reconstruction_quality
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sealed, write_json
from mammosae_plugin.latents import LatentTable, encode_rows, write_sparse_features

LEVELS = (8, 16, 32, 64)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(SAIL / "sae" / "expected.safetensors")


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sail_embeddings(tmp_path_factory.mktemp("embeddings"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, embeddings: Path) -> LatentTable:
    return encode_rows(embeddings, load_vision_sae(CKPT), tmp_path_factory.mktemp("tables") / "table", shard_size=5)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_codes_of_sails_files_are_sails_at_every_level(table: LatentTable, expected: dict[str, torch.Tensor]) -> None:
    """Written order is train, valid, test; the table has training first and the other splits by name."""
    assert table.splits == ("training", "test", "validation") and table.levels == LEVELS and table.grid == (1, 1)
    order = [*range(12), *range(18, 28), *range(12, 18)]
    lengths = expected["embeddings_raw"].norm(dim=1, keepdim=True)
    for number, width in enumerate(LEVELS):
        codes = table.codes(width)
        wanted = expected[f"latents.{number}"][order].numpy()
        np.testing.assert_allclose(codes.toarray(), wanted, rtol=0, atol=1e-5)
        assert codes.nnz == np.count_nonzero(wanted)
        error = (expected[f"reconstruction.{number}"] * lengths - expected["embeddings_raw"])[:12].double()
        sums = table.level_sums("training")[width]
        np.testing.assert_allclose(sums["sse"], error.square().sum(0).numpy(), rtol=1e-4)
        assert sums["l0"] == int(torch.count_nonzero(expected[f"latents.{number}"][:12]))
    quality = reconstruction_quality(table, "training")
    assert quality.n_positions == 12 and quality.l0 == table.level_sums("training")[64]["l0"] / 12
    assert table.images["image_id"][0] == "ct/s0000/x/0000" and table.images["patient_id"][3] == "mri/s0000"
    with pytest.raises(InputError, match="no level of 9 latents; it has 8, 16, 32, 64"):
        table.codes(9)


def test_labels_are_what_holds_0_and_1_or_what_is_named(table: LatentTable, embeddings: Path, tmp_path: Path) -> None:
    assert table.concepts == ("liver", "spleen") and table.rows("liver", split="test").labels.tolist() == [0, 1] * 5
    named = encode_rows(embeddings, load_vision_sae(CKPT), tmp_path / "t", concepts=["gender", "liver"])
    assert named.vocabulary["gender"].classes == ("f", "m")
    assert named.images["gender"].tolist()[:5] == [0, 1, -1, 1, 0]


def test_what_needs_no_map_works_and_what_needs_one_says_so(table: LatentTable) -> None:
    means = class_mean_latents(table, "liver")
    assert rank_latents(means).indices.shape == (2, 64)
    found = monosemanticity_of(
        table.codes(), table.images[["liver", "spleen"]] == 1, table.images["patient_id"], n=(3,), min_groups=3
    )
    assert len(found) > 0
    for refused in (
        lambda: localize(table, [0], "liver"),
        lambda: table.maps([0], 0),
        lambda: table.channel_maps([0], 0),
        lambda: table.boxes(0, "liver"),
    ):
        with pytest.raises(
            InputError, match="made of rows, one vector per image, and so holds no .*maps; what needs"
        ) as e:
            refused()
        assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="holds no channels"):
        _ = table.mean_channels
    with pytest.raises(InputError, match="without the network behind them"):
        sweep(table, rank_latents(means), concept="liver")


def test_latents_that_a_level_adds_are_looked_at_as_parts_of_the_level_below(table: LatentTable) -> None:
    codes = table.codes().toarray()[:12]
    found = splitting(table, level=16, split="training", n_draws=0, within=0)
    assert found.latents["latent"].max() < 16 <= found.parts["part"].min() <= found.parts["part"].max() < 32
    others = [codes[:, other] for other in range(16, 32)]
    for latent, nearest, correlation in found.latents[["latent", "nearest", "correlation"]].to_numpy():
        expected = [np.corrcoef(codes[:, int(latent)], other)[0, 1] if np.ptp(other) else -1 for other in others]
        assert (nearest - 16, correlation) == (np.argmax(expected), pytest.approx(max(expected)))
    assert len(splitting(table, split="training").latents) == 0  # no latent of the first level fires in these rows
    with pytest.raises(InputError, match="no level above 64"):
        splitting(table, level=64)
    with pytest.raises(InputError, match="no level of 9 latents"):
        splitting(table, level=9)


def test_missing_labels_are_missing_to_probes_and_hierarchies(embeddings: Path, tmp_path: Path) -> None:
    """Of the ten test rows half have no gender, which is neither class."""
    table = encode_rows(embeddings, load_vision_sae(CKPT), tmp_path / "t", concepts=["gender", "liver"])
    known = table.images["gender"].to_numpy() >= 0
    in_test = (table.images["split"] == "test").to_numpy()
    assert 0 < (~known & in_test).sum() < in_test.sum()
    assert (nested_labels(table)["gender"].isna().to_numpy() == ~known[in_test]).all()
    dense = np.random.default_rng(0).normal(size=(len(table.images), 6))
    probed = linear_probes(table, ["gender", "liver"], embeddings=dense, ks=(2,), n_bootstrap=0)
    assert probed["arm"].unique().tolist() == ["codes", "channels", "pca", "kmeans"]
    n_rows = probed.groupby("concept")["n_rows"].max()
    assert n_rows.tolist() == [(known & in_test).sum(), in_test.sum()]
    assert linear_probes(table, ["liver"], ks=(2,), n_bootstrap=0)["arm"].tolist() == ["codes"]
    with pytest.raises(InputError, match=r"expected \(28, d\)"):
        linear_probes(table, ["liver"], embeddings=dense[:7])
    found = latent_aurocs(table, "gender", n_permutations=5)
    assert found["statistic"].unique().tolist() == ["code"]
    labels = np.where(known, table.images["gender"], np.nan)[in_test]
    groups = table.images["patient_id"].to_numpy()[in_test]
    assert found["auroc"].tolist() == latent_aurocs_of(table.codes()[in_test], labels, groups)["auroc"].tolist()


def test_a_table_made_without_the_normalisation_is_refused(table: LatentTable, tmp_path: Path) -> None:
    header = {k: v for k, v in read_json(table.folder / "table.json").items() if k != "input_normalization"}
    write_json(tmp_path / "table.json", sealed(header))
    for split in table.splits:
        (tmp_path / split).symlink_to(table.folder / split)
    with pytest.raises(InputError, match="made without the input_normalization 'unit_l2' that its SAE wants"):
        LatentTable(tmp_path)


def test_codes_written_as_sails_sparse_features_are_the_same_codes(table: LatentTable, tmp_path: Path) -> None:
    files = write_sparse_features(table, tmp_path)
    assert [file.name for file in files] == [f"sparse_features_{word}.parquet" for word in ("train", "test", "val")]
    known, codes = read_sparse_features(files[2])
    assert EmbeddingFile(files[2]).split == "validation"
    assert np.array_equal(codes.toarray(), table.codes()[22:].toarray())
    assert known["image_id"].tolist()[:2] == ["s0000", "s0001"] and "volume" not in known.columns


def test_embeddings_written_as_sails_files_give_the_same_table(
    table: LatentTable, embeddings: Path, tmp_path: Path
) -> None:
    files = write_embeddings(embeddings, tmp_path / "out", "dinov3")
    assert [file.name for file in files] == [f"dinov3_{word}.parquet" for word in ("test", "train", "valid")]
    assert (
        EmbeddingFile(files[0])
        .metadata()
        .equals(
            EmbeddingFile(next(embeddings.glob("*_test*")))
            .metadata()
            .drop(columns="split")[EmbeddingFile(files[0]).names]
        )
    )
    again = encode_rows(tmp_path / "out", load_vision_sae(CKPT), tmp_path / "table", shard_size=5)
    assert (again.codes() != table.codes()).nnz == 0 and again.images["image_id"].equals(table.images["image_id"])


@pytest.mark.parametrize("form", ["list", "fixed list", "large list", "npy", "store", "several row groups"])
def test_rows_in_any_form_give_the_same_codes(
    form: str, table: LatentTable, expected: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    rows = expected["embeddings_raw"][:12]
    ids = [f"image-{number}" for number in range(12)]
    source: Path = tmp_path / "rows.parquet"
    if form == "npy":
        source = tmp_path / "rows.npy"
        np.save(source, rows.numpy())
        pd.DataFrame({"image_id": ids, "liver": [0, 1] * 6}).to_csv(tmp_path / "rows.csv", index=False)
    elif form == "store":
        source = store_of(rows, tmp_path / "store", rows_per_image=1).folder
    elif form == "several row groups":
        known = pd.DataFrame({"image_id": ids})
        write_vectors(source, known, [rows[start : start + 5].numpy() for start in range(0, 12, 5)])
        assert EmbeddingFile(source)._parquet.metadata.num_row_groups == 3
    else:
        kinds = {
            "list": pa.list_(pa.float32()),
            "fixed list": pa.list_(pa.float32(), 24),
            "large list": pa.large_list(pa.float64()),
        }
        vectors = pa.array(rows.tolist(), type=kinds[form])
        pq.write_table(pa.table({"image_id": ids, "vector": vectors}), source)
    found = encode_rows(source, load_vision_sae(CKPT), tmp_path / "table", shard_size=5)
    np.testing.assert_array_equal(found.codes().toarray(), table.codes()[:12].toarray())
    assert found.images["image_id"].tolist() == ids and found.splits == ("training",)
    if form == "npy":
        assert found.concepts == ("liver",)


def test_splits_that_lie_mixed_are_each_encoded_from_the_same_rows(
    table: LatentTable, expected: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    known = pd.DataFrame({"image_id": [f"i{n}" for n in range(12)], "split": ["val", "train", "test"] * 4})
    write_vectors(tmp_path / "all.parquet", known, [expected["embeddings_raw"][:12].numpy()])
    found = encode_rows(tmp_path / "all.parquet", load_vision_sae(CKPT), tmp_path / "table", shard_size=3)
    order = [*range(1, 12, 3), *range(2, 12, 3), *range(0, 12, 3)]
    assert found.images["image_id"].tolist() == [f"i{n}" for n in order]
    np.testing.assert_allclose(found.codes().toarray(), table.codes()[order].toarray(), rtol=0, atol=1e-6)


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


VECTOR = np.ones(24, np.float32)
BAD = {
    "mixed dimensions": ({"embedding": [VECTOR.tolist(), [1.0]]}, "row 1, has a vector of 1 numbers, those before"),
    "mixed bytes": ({"embedding": [VECTOR.tobytes(), VECTOR[:2].tobytes()]}, "row 1, has a vector of 2 numbers"),
    "half a number": ({"embedding": [VECTOR.tobytes(), b"abc"]}, "row 1, has 3 bytes of float32"),
    "NaN": ({"embedding": [VECTOR.tolist(), [float("nan")] * 24]}, "row 1, has a value that is not finite"),
    "null in a list": ({"embedding": [VECTOR.tolist(), [None] * 24]}, "row 1, has a value that is not finite"),
    "a missing vector": ({"embedding": [VECTOR.tolist(), None]}, "row 1, has no embedding"),
    "no column": ({"image_id": ["a", "b"]}, "of columns with vectors there are none .it has image_id"),
    "two columns": ({"a": [[1.0]], "b": [[1.0]]}, "there are several .a, b.; name one"),
    "no row": ({"embedding": pa.array([], pa.list_(pa.float32()))}, "holds no row"),
    "another type": (
        {"embedding": [VECTOR.tobytes()], "embedding_dtype": ["int8"]},
        "row 0, says embedding_dtype 'int8'",
    ),
    "another shape": (
        {"embedding": [VECTOR.tobytes()], "embedding_shape": ["(3,)"]},
        "says embedding_shape '.3,.', but",
    ),
    "another width": ({"embedding": [[1.0, 2.0]]}, "the SAE takes vectors of width 24, but .* has rows of width 2"),
    "an image twice": ({"embedding": [VECTOR.tolist()] * 2, "image_id": ["a", "a"]}, "image a is twice in"),
    "a split that is none": ({"embedding": [VECTOR.tolist()], "split": ["half"]}, "'half' is no split"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_one_clear_line(case: str, tmp_path: Path) -> None:
    columns, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        encode_rows(write_parquet(tmp_path / "rows.parquet", **columns), load_vision_sae(CKPT), tmp_path / "table")
    assert "\n" not in str(caught.value) and not (tmp_path / "table" / "table.json").exists()


def test_what_is_no_such_source_is_one_clear_line(tmp_path: Path, embeddings: Path) -> None:
    sae = load_vision_sae(CKPT)
    store = store_of(torch.randn(20, 24), tmp_path / "map", rows_per_image=10)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no parquet")
    np.save(tmp_path / "lonely.npy", np.ones((2, 24), np.float32))
    np.save(tmp_path / "cube_test.npy", np.ones((2, 2, 24)))
    other = write_parquet(tmp_path / "other_test.parquet", embedding=[[1.0]])
    for source, message in (
        (store, "20 rows of 2 images; rows of one vector per image are wanted"),
        (tmp_path / "empty", "holds no activation store and no .parquet"),
        (tmp_path / "absent.parquet", "does not exist"),
        (tmp_path / "text.parquet", "is no parquet file"),
        (tmp_path / "lonely.npy", "lonely.csv does not exist"),
        (tmp_path / "cube_test.npy", "of shape .2, 2, 24."),
        ([next(embeddings.glob("*_train*")), other], "give files of one model"),
    ):
        with pytest.raises(InputError, match=message):
            encode_rows(source, sae, tmp_path / "table")
    with pytest.raises(InputError, match="'liver' holds no vectors"):
        encode_rows(embeddings, sae, tmp_path / "table", column="liver")
    with pytest.raises(InputError, match="there is no column 'lung'"):
        encode_rows(embeddings, sae, tmp_path / "table", concepts=["lung"])


def test_another_sae_is_refused_in_the_same_folder_and_the_same_changes_nothing(
    tmp_path: Path, embeddings: Path
) -> None:
    encode_rows(embeddings, load_vision_sae(CKPT), tmp_path / "table")
    before = contents(tmp_path / "table")
    encode_rows(embeddings, load_vision_sae(CKPT), tmp_path / "table")
    assert contents(tmp_path / "table") == before
    with pytest.raises(InputError, match="other settings"):
        encode_rows(embeddings, random_sae(24), tmp_path / "table")
    set_otherwise = load_vision_sae(CKPT)
    set_otherwise.cfg.apply_b_dec_to_input = not set_otherwise.cfg.apply_b_dec_to_input
    with pytest.raises(InputError, match="other settings"):
        encode_rows(embeddings, set_otherwise, tmp_path / "table")


def test_a_giant_row_group_is_streamed(tmp_path: Path) -> None:
    """pandas writes a million rows in one group; reading a few of them must not read them all."""
    rows = np.random.default_rng(0).standard_normal((40_000, 256)).astype(np.float32)
    path = write_parquet(tmp_path / "x.parquet", embedding=[row.tobytes() for row in rows])
    assert pq.ParquetFile(path).num_row_groups == 1
    before = pa.total_allocated_bytes()
    file, most = EmbeddingFile(path), 0
    seen = []
    for block in file.blocks(np.arange(0, 40_000, 2)):
        most = max(most, pa.total_allocated_bytes() - before)
        seen.append(block)
    assert np.array_equal(np.concatenate(seen), rows[::2])
    assert most < rows.nbytes / 4


def test_the_command_encodes_rows_without_a_study_and_says_what_the_table_holds(
    table: LatentTable, embeddings: Path, tmp_path: Path
) -> None:
    done = mammosae("encode", "--rows", embeddings, "--sae", CKPT, "-o", tmp_path / "table", "--concepts", "gender")
    assert done.returncode == 0, done.stderr
    first, training, *_ = done.stdout.splitlines()
    assert first == f"{tmp_path / 'table'}: 28 rows, 64 latents; gender"
    n_fire = [table.level_sums("training")[width]["l0"] / 12 for width in LEVELS]
    assert training == "training: 12 rows, latents active per row " + ", ".join(
        f"{n:.1f} of {width}" for n, width in zip(n_fire, LEVELS, strict=True)
    )
    found = LatentTable(tmp_path / "table")
    np.testing.assert_allclose(found.codes().toarray(), table.codes().toarray(), rtol=0, atol=1e-6)
    assert found.concepts == ("gender",)
    files = sorted(embeddings.glob("*_t*.parquet"))
    several = mammosae("encode", *(f"--rows={file}" for file in files), "--sae", CKPT, "-o", tmp_path / "two")
    assert several.returncode == 0 and LatentTable(tmp_path / "two").splits == ("training", "test"), several.stderr
    told = mammosae("encode", "--help").stdout
    assert all(word in told for word in ("--rows", "--sae", "--concepts", "--split", "embeddings.md", "--config"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "ROWS"], "--rows needs --sae"),
        (["--rows", "ROWS", "--sae", "SAE"], "--rows needs -o"),
        (["--sae", "SAE", "-o", "OUT"], "--sae goes with --rows"),
        (["--rows", "ROWS", "--sae", "SAE", "-o", "OUT", "--config", "s.yaml"], "--config is of a study"),
        (["--rows", "ROWS", "--sae", "SAE", "-o", "OUT", "--set", "seed=1"], "--set is of a study"),
        (["--rows", "ROWS", "--sae", "gone.ckpt", "-o", "OUT"], "gone.ckpt"),
        (["--rows", "ROWS", "--sae", "SAE", "-o", "OUT", "--device", "gpu"], "device is 'gpu': name one"),
        (["--rows", "ROWS", "--sae", "SAE", "-o", "OUT", "--concepts", "lung"], "there is no column 'lung'"),
        (["--rows", "ROWS", "--sae", "SAE", "-o", "OUT", "--column", "vector"], "the column 'vector' is missing"),
        *(
            (["--rows", case, "--sae", "SAE", "-o", "OUT"], BAD[case][1])
            for case in ("no column", "mixed dimensions", "NaN", "another width", "a split that is none")
        ),
    ],
)
def test_what_the_command_cannot_encode_is_one_line(
    arguments: list[str], message: str, embeddings: Path, tmp_path: Path
) -> None:
    for case in set(arguments) & set(BAD):
        write_parquet(tmp_path / f"{case}.parquet", **BAD[case][0])
    places = {"ROWS": str(embeddings), "SAE": str(CKPT), "OUT": str(tmp_path / "table")}
    places |= {case: str(tmp_path / f"{case}.parquet") for case in BAD}
    refused = mammosae("encode", *(places.get(one, one) for one in arguments))
    line = refused.stderr.replace("\r", "\n").strip().splitlines()[-1]  # behind a progress bar
    assert refused.returncode == 2 and line.startswith("mammosae: ") and re.search(message, line), line
    assert not (tmp_path / "table" / "table.json").exists()


KILLED = """
import sys
import torch
torch.set_num_threads(1)
from helpers_kills import killed_at
from mammosae_plugin.cli import app
from mammosae_plugin.latents import encode_rows, rows

source, sae, out = sys.argv[1:]
encode_rows.__kwdefaults__["shard_size"] = 5

def killed(moment):
    command = ["encode", "--rows", source, "--sae", sae, "-o", out]
    return killed_at(moment, lambda: app(command, standalone_mode=False), [(rows, "normalized")])

assert all(killed(moment) for moment in (2, 5, 9, 14, 20))
killed(None)
"""


def test_killed_outright_again_and_again_it_ends_with_the_same_bytes(
    table: LatentTable, embeddings: Path, tmp_path: Path
) -> None:
    ended(KILLED, embeddings, CKPT, tmp_path / "table")
    assert contents(tmp_path / "table") == contents(table.folder)


def test_an_image_without_a_label_is_no_row_of_that_concept(embeddings: Path, tmp_path: Path) -> None:
    table = encode_rows(embeddings, load_vision_sae(CKPT), tmp_path / "table", concepts=["gender", "liver"])
    in_split = table.images["split"] == "training"
    assert (table.images["gender"][in_split] == -1).sum() == 1
    rows = table.rows("gender", split="training")
    assert len(rows.image_rows) == len(rows.labels) == len(rows.patient_ids) == in_split.sum() - 1
    assert set(rows.labels.tolist()) == {0, 1} and len(table.rows("liver", split="training").labels) == in_split.sum()
