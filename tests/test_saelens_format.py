import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, load_from_disk
from helpers_stores import labelled_rows, labelled_store
from helpers_training import rows_store
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore

from mammosae_plugin.activations import read_saelens_dataset, write_saelens_dataset, write_store
from mammosae_plugin.errors import InputError


def saelens_store(path, *, context_size, d_in, hook_name="layer.hook_out"):
    """SAELens's own store over a cached dataset, without a model."""
    return ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=hook_name,
        hook_head_index=None,
        context_size=context_size,
        d_in=d_in,
        n_batches_in_buffer=2,
        total_training_tokens=100,
        store_batch_size_prompts=3,
        train_batch_size_tokens=15,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(path),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saelens_reads_the_rows_of_a_store(tmp_path, dtype):
    store = labelled_store(tmp_path / "store", dtype=dtype)
    context = write_saelens_dataset(store, tmp_path / "dataset")
    assert context == 10
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    theirs = saelens_store(tmp_path / "dataset", context_size=context, d_in=4)
    raw = torch.cat([theirs.get_raw_llm_batch()[0] for _ in range(4)])
    assert torch.equal(raw, labelled_rows(12, 10))
    batch = next(iter(theirs))
    assert batch.shape == (15, 4)
    assert torch.equal(batch[:, 2:], torch.tensor([[2.0, 3.0]]).expand(15, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_store_goes_to_saelens_and_back_unchanged(tmp_path, dtype):
    """Sampled positions too: they are not 0, 1, 2, ..."""
    rows = labelled_rows(6, 10).reshape(6, 10, 4)[:, [1, 4, 7]].reshape(18, 4)
    image, position = torch.arange(6).repeat_interleave(3), torch.tensor([1, 4, 7]).repeat(6)
    parts = [(rows[a:b].to(dtype), image[a:b], position[a:b]) for a, b in ((0, 12), (12, 18))]
    described = {"hook_name": "h", "image_ids": [f"{n}.png" for n in range(6)], "patients": [0, 0, 1, 1, 2, 2]}
    store = write_store(tmp_path / "store", parts, described)
    write_saelens_dataset(store, tmp_path / "dataset")
    back = read_saelens_dataset(tmp_path / "dataset", tmp_path / "back")
    assert torch.equal(back.rows_of(range(6)), rows)
    assert back.dtype == dtype
    assert sorted(back.labels()[1].tolist()) == sorted(position.tolist())
    assert back.image_ids == store.image_ids
    assert back.manifest["patients"] == described["patients"]
    back.verify()


def their_dataset(folder, values, dtype="float32", **more):
    features = Features({name: Array2D(values.shape[1:], dtype) for name in ("blocks.1.hook_out", *more)})
    columns = dict.fromkeys(features, list(values))
    Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return folder


def test_a_dataset_that_only_saelens_knows_becomes_a_store(tmp_path):
    values = np.arange(5 * 3 * 2, dtype=np.float32).reshape(5, 3, 2)
    store = read_saelens_dataset(their_dataset(tmp_path / "theirs", values), tmp_path / "store")
    assert (store.n_rows, store.d_in, store.hook_name) == (15, 2, "blocks.1.hook_out")
    assert store.image_ids[4] == "sequence 4"
    assert torch.equal(store.rows_of([1]), torch.from_numpy(values[1]))


def test_what_is_no_dataset_of_activations_is_refused(tmp_path):
    values = np.zeros((2, 3, 2), dtype=np.float32)
    with pytest.raises(InputError, match="not a dataset that `save_to_disk` wrote"):
        read_saelens_dataset(tmp_path, tmp_path / "store")
    two = their_dataset(tmp_path / "two", values, another=None)
    with pytest.raises(InputError, match=r"has activations of blocks\.1\.hook_out, another; name one"):
        read_saelens_dataset(two, tmp_path / "store")
    assert read_saelens_dataset(two, tmp_path / "store", hook_name="another").hook_name == "another"
    wide = their_dataset(tmp_path / "wide", values.astype(np.float64), dtype="float64")
    with pytest.raises(InputError, match="type float64; a store holds float16 or float32"):
        read_saelens_dataset(wide, tmp_path / "other")
    values[1, 2, 0] = np.nan
    broken = their_dataset(tmp_path / "broken", values)
    with pytest.raises(InputError, match="not finite: image sequence 1, position 2"):
        read_saelens_dataset(broken, tmp_path / "other")


def test_images_with_different_numbers_of_rows_and_damaged_stores_are_refused(tmp_path):
    rows, image = labelled_rows(1, 5), torch.tensor([0, 0, 0, 1, 1])
    store = write_store(tmp_path / "store", [(rows, image, image)], {"hook_name": "h", "image_ids": ["a", "b"]})
    with pytest.raises(InputError, match="from 2 to 3 rows; SAELens needs as many of each"):
        write_saelens_dataset(store, tmp_path / "dataset")
    damaged = labelled_store(tmp_path / "damaged")
    path = damaged.folder / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # tensors are sorted by size of type, so the end of the file is the end of `rows` or `position`
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00002\.safetensors is damaged"):
        write_saelens_dataset(damaged, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
    assert not list(tmp_path.glob(".tmp-*"))
    write_saelens_dataset(labelled_store(tmp_path / "good"), tmp_path / "dataset")
    with pytest.raises(InputError, match="exists; name a folder that does not"):
        write_saelens_dataset(store, tmp_path / "dataset")
    assert load_from_disk(str(tmp_path / "dataset")).column_names == ["layer.hook_out", "image_id", "positions"]


EXAMPLE = Path(__file__).parent.parent / "examples" / "train_with_plain_saelens.py"
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not any(name.startswith("mammosae") for name in sys.modules)
"""


def test_the_example_trains_with_plain_saelens_on_exported_rows(tmp_path):
    store = rows_store(tmp_path / "rows", n_images=400, rows_per_image=1)  # one vector per image
    write_saelens_dataset(store, tmp_path / "dataset")
    given = [str(EXAMPLE), str(tmp_path / "dataset"), "--output", str(tmp_path / "sae"), "--rows", "6400"]
    ran = subprocess.run([sys.executable, "-c", RUN, *given], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "a jumprelu SAE of 16 x 64 at bn2.hook_out" in ran.stdout
    explained = float(re.search(r"([-\d.]+) is explained", ran.stdout)[1])
    assert explained > 0.3
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.metadata.training_architecture == "batchtopk" and sae.cfg.metadata.hook_name == "bn2.hook_out"
