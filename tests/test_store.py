import json
import pickle
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_stores import labelled_rows, labelled_store
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from mammosae_plugin.activations import ActivationStore, merge_stores, store, write_store
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sealed, sha256_of_file, write_json


def as_read(rows: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back_with_their_images_and_positions(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_BYTES", 7 * 4 * dtype.itemsize)  # blocks of 7 rows in shards of 40
    found = labelled_store(tmp_path, dtype=dtype)
    assert (found.n_rows, found.d_in, found.dtype, found.hook_name) == (120, 4, dtype, "layer.hook_out")
    expected = labelled_rows(12, 10)
    assert torch.equal(found.rows_of(range(12)), expected)
    assert torch.equal(found.rows_of([7, 3]), torch.cat([expected[30:40], expected[70:80]]))
    images, positions = found.labels()
    taken = found.take(np.array([119, 0, 55, 56]))
    assert taken.dtype == torch.float32
    assert taken[:, 0].tolist() == images[[119, 0, 55, 56]].tolist()
    assert taken[:, 1].tolist() == positions[[119, 0, 55, 56]].tolist()
    for number, (rows, image, position) in enumerate(found.shards()):
        assert torch.equal(rows.float(), expected[number * 40 : number * 40 + 40])
        assert image.tolist() == rows[:, 0].tolist()
        assert position.tolist() == rows[:, 1].tolist()


def test_a_shard_is_plain_safetensors_and_its_rows_lie_in_random_order(tmp_path):
    """What docs/activations.md promises to readers without this package."""
    found = labelled_store(tmp_path)
    shard = load_file(tmp_path / "shard-00001.safetensors")
    assert sorted(shard) == ["crc32", "image", "position", "rows"]
    assert (shard["image"].dtype, shard["position"].dtype, shard["crc32"].dtype) == (
        torch.int32,
        torch.int32,
        torch.int64,
    )
    assert torch.equal(shard["rows"][:, 0], shard["image"].float())
    assert len(set(shard["image"][:8].tolist())) > 2  # not image by image
    manifest = read_json(tmp_path / "activations.json")
    assert manifest["n_rows"] == sum(entry["rows"] for entry in manifest["shards"]) == found.n_rows
    for entry in manifest["shards"]:
        assert entry["sha256"] == sha256_of_file(tmp_path / entry["name"])
        assert entry["bytes"] == (tmp_path / entry["name"]).stat().st_size
    assert manifest["rows_per_block"] == 2**20 // (4 * 4)


def test_writing_the_same_rows_again_gives_the_same_bytes(tmp_path):
    folders = [labelled_store(tmp_path / name).folder for name in ("one", "two")]
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_are_float32_and_hold_every_row_once(tmp_path, dtype):
    found = labelled_store(tmp_path, dtype=dtype)
    batches = list(islice(found.batches(15, seed=4, reservoir_rows=64), 8))
    assert {batch.dtype for batch in batches} == {torch.float32}
    assert as_read(torch.cat(batches)) == as_read(labelled_rows(12, 10))
    resumed = found.batches(15, seed=4, start=5, reservoir_rows=64)
    assert torch.equal(next(resumed), batches[5])


def test_batches_of_some_images_hold_their_rows_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_BYTES", 7 * 16)
    found = labelled_store(tmp_path)
    rows = torch.cat(list(islice(found.batches(10, images=[0, 5, 11]), 6)))
    expected = labelled_rows(12, 10)[[*range(10), *range(50, 60), *range(110, 120)]]
    assert as_read(rows[:30]) == as_read(rows[30:]) == as_read(expected)
    resumed = found.batches(10, images=[0, 5, 11], start=4)
    assert torch.equal(next(resumed), rows[40:50])


def test_an_unknown_image_number_is_refused(tmp_path):
    found = labelled_store(tmp_path)
    for ask in (lambda: found.rows_of([12]), lambda: found.batches(2, images=[-1])):
        with pytest.raises(InputError, match="there is no image .* has the images 0 to 11"):
            ask()
    with pytest.raises(InputError, match="no row to read"):
        found.batches(2, images=[])


def test_a_folder_that_is_not_what_its_manifest_says_is_refused(tmp_path):
    found = labelled_store(tmp_path / "store")
    whole = {path.name: path.read_bytes() for path in found.folder.iterdir()}

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            ActivationStore(found.folder)
        for path in found.folder.iterdir():
            path.unlink()
        for name, content in whole.items():
            (found.folder / name).write_bytes(content)
        ActivationStore(found.folder)

    shard = found.folder / "shard-00001.safetensors"
    shard.unlink()
    refused(r"lacks shard-00001\.safetensors, which its manifest lists; extract again")
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(r"shard-00001\.safetensors has \d+ bytes instead of \d+")
    (found.folder / "shard-00007.safetensors").write_bytes(b"")
    refused(r"holds shard-00007\.safetensors, which its manifest does not list")
    (found.folder / "done.json").unlink()
    refused(r"is not complete \(no done\.json\)")
    (found.folder / "activations.json").unlink()
    refused(r"is not a complete activation store \(no activations\.json\)")
    write_json(found.folder / "activations.json", sealed(found.manifest | {"n_rows": 121}))
    refused("n_rows is not the sum")
    for damaged in ([], None):
        write_json(found.folder / "activations.json", damaged)
        refused("is damaged")
    write_json(found.folder / "activations.json", sealed({"format_version": 3}))
    refused(r"activations\.json is damaged \(KeyError\('n_rows'\)\)")
    write_json(found.folder / "activations.json", found.manifest | {"format_version": 1})
    refused("has activation format 1; this version reads format 3")
    shards = [entry | {"sha256": "0" * 64} for entry in found.manifest["shards"]]
    write_json(found.folder / "activations.json", sealed(found.manifest | {"shards": shards}))
    refused(r"activations\.json and done\.json do not belong together")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hook_name", "blocks.1.hook_out"),
        ("model", "0" * 64),
        ("patients", [7] * 12),
        ("image_ids", [f"{number:03d}.png" for number in reversed(range(12))]),
        ("dataset_name", "other"),
        ("layout", {"kind": "tokens", "grid": [1, 10], "prefix_tokens": 0}),
        ("seed", 1),
        ("format_version", 2),  # no way round the checksum
        ("added", "by hand"),
        ("sha256", "0" * 64),
    ],
)
def test_an_edit_of_anything_that_the_manifest_says_is_refused(tmp_path, field, value):
    found = labelled_store(tmp_path / "store")
    before = (found.folder / "activations.json").read_bytes()
    write_json(found.folder / "activations.json", found.manifest | {field: value})
    with pytest.raises(InputError, match=r"activations\.json was changed after it was written"):
        ActivationStore(found.folder)
    labelled_store(tmp_path / "store")  # made again, it is put right
    assert (found.folder / "activations.json").read_bytes() == before
    write_json(found.folder / "activations.json", {k: v for k, v in found.manifest.items() if k != "sha256"})
    with pytest.raises(InputError, match="was changed"):
        ActivationStore(found.folder)


def _exchange(first, second):
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def test_shards_that_were_exchanged_or_copied_are_named_and_made_again(tmp_path):
    found = labelled_store(tmp_path / "store")
    other = labelled_store(tmp_path / "other", rows=labelled_rows(12, 10) + 1)
    whole = {path.name: path.read_bytes() for path in found.folder.iterdir()}
    first, second, third = sorted(found.folder.glob("shard-*"))
    assert first.stat().st_size == second.stat().st_size
    for spoil, match in [
        (lambda: _exchange(first, second), r"shard-00000\.safetensors holds what shard-00001\.safetensors should"),
        (lambda: shutil.copy(first, third), r"shard-00002\.safetensors holds what shard-00000\.safetensors should"),
        (lambda: shutil.copy(other.folder / second.name, second), r"shard-00001\.safetensors is .* of another job"),
    ]:
        spoil()
        for ask in (lambda: ActivationStore(found.folder), lambda: merge_stores([found.folder], tmp_path / "merged")):
            with pytest.raises(InputError, match=match):
                ask()
        labelled_store(tmp_path / "store")
        assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == whole


def test_shards_exchanged_before_the_end_do_not_get_into_the_seal(tmp_path):
    found = labelled_store(tmp_path / "store")
    whole = {path.name: path.read_bytes() for path in found.folder.iterdir()}
    for name in ("activations.json", "done.json"):
        (found.folder / name).unlink()
    _exchange(*sorted(found.folder.glob("shard-*"))[:2])
    labelled_store(tmp_path / "store")
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == whole


def test_a_store_of_format_2_is_still_read_and_says_what_it_cannot_notice(tmp_path, caplog):
    found = labelled_store(tmp_path / "store")
    rows = found.rows_of(range(12))
    for shard in found.folder.glob("shard-*"):
        save_file(load_file(shard), shard, {"tensors_sha256": "as it was"})
    digests = {path.name: sha256_of_file(path) for path in sorted(found.folder.glob("shard-*"))}
    write_json(found.folder / "done.json", {"shards": digests})
    shards = [
        entry | {"sha256": digests[entry["name"]], "bytes": (found.folder / entry["name"]).stat().st_size}
        for entry in found.manifest["shards"]
    ]
    manifest = {key: value for key, value in found.manifest.items() if key != "sha256"}
    write_json(found.folder / "activations.json", manifest | {"format_version": 2, "shards": shards})
    old = ActivationStore(found.folder)
    old.verify()
    assert torch.equal(old.rows_of(range(12)), rows)
    assert "activation format 2: its rows are read as before, but exchanged shards" in caplog.text


def test_a_store_of_other_settings_is_refused_with_what_differs(tmp_path):
    labelled_store(tmp_path / "store")
    with pytest.raises(InputError, match=r"other settings \(described\.hook_name is \"\w+\.* there and"):
        labelled_store(tmp_path / "store", hook_name="other.hook_out")
    with pytest.raises(InputError, match=r'\(dtype is "float32" there and "float16" here\); name another folder'):
        labelled_store(tmp_path / "store", dtype=torch.float16)


def test_a_shard_of_another_width_or_type_is_refused_when_it_is_read(tmp_path):
    found = labelled_store(tmp_path / "store")
    write_json(found.folder / "activations.json", sealed(found.manifest | {"d_in": 5}))
    with pytest.raises(InputError, match=r"shard-0000.\.safetensors is damaged \(rows is F32 \[40, 4\], not what"):
        next(ActivationStore(found.folder).batches(4))


def test_what_no_store_can_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="no rows to write"):
        write_store(tmp_path, [], {})
    with pytest.raises(InputError, match=r"rows are torch\.float64; a store holds float32, float16, bfloat16"):
        labelled_store(tmp_path, rows=labelled_rows(12, 10).double(), dtype=torch.float64)


@pytest.fixture
def parts(tmp_path: Path) -> list[ActivationStore]:
    return [
        labelled_store(tmp_path / "one", n_images=4, splits=["test"]),
        labelled_store(tmp_path / "two", n_images=7, first_id=4),
    ]


def test_merging_keeps_every_row_with_its_image(parts, tmp_path):
    merged = merge_stores([part.folder for part in parts], tmp_path / "merged")
    assert merged.image_ids == tuple(f"{number:03d}.png" for number in range(11))
    assert merged.manifest["patients"] == [number // 2 for number in range(11)]
    assert merged.manifest["splits"] == ["test", "training"]
    assert torch.equal(merged.rows_of(range(4)), parts[0].rows_of(range(4)))
    assert torch.equal(merged.rows_of(range(4, 11)), parts[1].rows_of(range(7)))
    merged.verify()
    before = {path.name: path.read_bytes() for path in merged.folder.iterdir()}
    (merged.folder / "shard-00002.safetensors").unlink()
    merge_stores([part.folder for part in parts], tmp_path / "merged")
    assert {path.name: path.read_bytes() for path in merged.folder.iterdir()} == before


def test_stores_that_do_not_belong_together_are_not_merged(parts, tmp_path):
    other = labelled_store(tmp_path / "other", first_id=20, hook_name="elsewhere.hook_out")
    with pytest.raises(InputError, match=r"do not belong together: hook_name is 'elsewhere\.hook_out' and 'layer"):
        merge_stores([parts[0].folder, other.folder], tmp_path / "merged")
    with pytest.raises(InputError, match=r"image 000\.png is in more than one"):
        merge_stores([parts[0].folder, parts[0].folder], tmp_path / "merged")
    with pytest.raises(InputError, match="name the stores to merge"):
        merge_stores([], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_command_line_tells_checks_and_merges(parts, tmp_path):
    run = CliRunner().invoke
    told = run(app, ["activations", "info", str(parts[1].folder)])
    assert told.exit_code == 0
    assert "layer.hook_out" in told.stdout
    assert "70 rows of 4 float32" in told.stdout
    assert "7 images" in told.stdout
    as_json = json.loads(run(app, ["activations", "info", str(parts[1].folder), "--json"]).stdout)
    assert as_json["n_rows"] == 70
    merged = run(app, ["activations", "merge", str(parts[0].folder), str(parts[1].folder), "-o", str(tmp_path / "m")])
    assert merged.exit_code == 0
    assert run(app, ["activations", "verify", str(tmp_path / "m")]).exit_code == 0
    path = tmp_path / "m" / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    plan = (tmp_path / "m" / "plan.json").read_bytes()
    (tmp_path / "m" / "plan.json").write_bytes(plan[:-3])
    damaged = run(app, ["activations", "verify", str(tmp_path / "m")])
    assert damaged.exit_code == 2 and "plan.json is missing or was changed" in damaged.output.replace("\n", " ")
    (tmp_path / "m" / "plan.json").write_bytes(plan)
    damaged = run(app, ["activations", "verify", str(tmp_path / "m")])
    assert damaged.exit_code == 2
    assert "shard-00001.safetensors is damaged (its SHA-256 is not the recorded one)" in damaged.stderr.replace(
        "\n", ""
    )
    assert run(app, ["activations", "info", str(tmp_path)]).exit_code == 2


# -- for other trainers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_store_is_a_dataset_of_torch(tmp_path, dtype):
    store = labelled_store(tmp_path / "store", dtype=dtype)
    image, position = store.labels()
    expected = torch.stack([torch.from_numpy(image), torch.from_numpy(position)], 1).float()
    assert len(store) == store.n_rows == 120 and isinstance(store, torch.utils.data.Dataset)
    assert store[7].shape == (4,) and torch.equal(store[7][:2], expected[7]) and store[-1].dtype == torch.float32
    assert torch.equal(store[:][:, :2], expected) and torch.equal(store[-1], store[119])
    chosen = [3, 119, 41, 3, -2]
    for index in (chosen, np.array(chosen), torch.tensor(chosen)):
        assert torch.equal(store[index][:, :2], expected[chosen])
    assert torch.equal(store[100:20:-30][:, :2], expected[[100, 70, 40]])
    assert torch.equal(store[image == 2][:, :2], expected[image == 2]) and store[[]].shape == (0, 4)
    for outside in (120, -121):
        with pytest.raises(IndexError, match="it has 120"):
            store[outside]
    with pytest.raises(InputError, match="rows are named by"):
        store["image-1"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_every_row_once_per_epoch(tmp_path, workers):
    store = labelled_store(tmp_path / "store")
    _ = store[5]  # what is mapped here is not sent to the workers
    loader = DataLoader(store, 16, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(0))
    for _epoch in range(2):
        found = torch.cat(list(loader))
        assert torch.equal(found[:, :2].unique(dim=0), store[:][:, :2].unique(dim=0)) and len(found) == 120
    assert len(pickle.dumps(store)) < 20_000 and torch.equal(pickle.loads(pickle.dumps(store))[5], store[5])


def test_a_damaged_block_is_found_before_one_of_its_rows_is_given(tmp_path):
    store = labelled_store(tmp_path / "store")
    path = store.folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start:] = bytes(byte ^ 1 for byte in content[start:])
    path.write_bytes(content)
    damaged = ActivationStore(store.folder)
    assert len(damaged[:40]) == 40
    with pytest.raises(InputError, match=r"shard-00001\.safetensors is damaged"):
        damaged[45]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"), [(50, False, [50] * 4 + [40]), (50, True, [50] * 4), (60, False, [60] * 4)]
)
def test_batches_end_after_so_many_epochs(tmp_path, shuffle, batch_size, drop_last, sizes):
    store = labelled_store(tmp_path / "store")
    settings = {"shuffle": shuffle, "seed": 3, "epochs": 2, "drop_last": drop_last, "reservoir_rows": 60}
    found = list(store.batches(batch_size, **settings))
    assert [len(batch) for batch in found] == sizes
    endless = store.batches(batch_size, shuffle=shuffle, seed=3, reservoir_rows=60)
    assert all(torch.equal(batch, next(endless)[: len(batch)]) for batch in found)
    assert all(map(torch.equal, store.batches(batch_size, start=2, **settings), found[2:]))
    halves = [list(store.batches(batch_size, part=(number, 2), **settings)) for number in (0, 1)]
    assert torch.equal(
        torch.cat([row for half in halves for row in half]).unique(dim=0), torch.cat(found).unique(dim=0)
    )
    if not drop_last:
        assert torch.equal(torch.cat(found).unique(dim=0), store[:].unique(dim=0))
    if not shuffle:
        assert torch.equal(torch.cat(found), torch.cat([store[:], store[:]])[: sum(sizes)])


def test_batches_come_in_the_order_type_and_choice_that_is_asked_for(tmp_path):
    store = labelled_store(tmp_path / "store")
    one = next(store.batches(8, shuffle=False, dtype=torch.bfloat16, device="cpu"))
    assert one.dtype == torch.bfloat16 and torch.equal(one.float(), store[:8])
    of_two = torch.cat(list(store.batches(8, shuffle=False, images=[3, 5], epochs=1)))
    assert set(of_two[:, 0].tolist()) == {3, 5} and len(of_two) == 20
    short = torch.cat(list(store.batches(8, shuffle=False, epoch_rows=12, epochs=2)))
    assert torch.equal(short, torch.cat([store[:12], store[:12]]))
    for settings, said in (
        ({"epochs": 0}, r"epochs \(None is without end\) is 0: give a whole number, 1 or more"),
        ({"epochs": 1.5}, "is 1.5: give a whole number"),
        ({"seed": None}, "seed is None: give a whole number"),
        ({"batch_size": 2.5}, "batch_size is 2.5: give a whole number"),
        ({"dtype": "float16"}, "dtype is .float16.: give one of torch's, such as torch.float16"),
    ):
        with pytest.raises(InputError, match=said):
            store.batches(**{"batch_size": 8, **settings})
