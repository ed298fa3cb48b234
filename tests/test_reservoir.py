import gc
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from helpers_stores import labelled_store, numbered_blocks

from mammosae_plugin.activations import reservoir, store
from mammosae_plugin.activations.reservoir import shuffled_batches
from mammosae_plugin.errors import InputError

LENGTHS = [5, 5, 3, 5, 5, 1, 5, 5, 5, 4]  # 43 rows: shards end in shorter blocks


def rows_of(batches):
    return torch.cat(list(batches))[:, 0].int().tolist()


@pytest.mark.parametrize("reservoir_rows", [2, 14, 20, 86, 1000])
@pytest.mark.parametrize("batch_size", [1, 7, 43, 60])
def test_every_row_comes_exactly_once_per_epoch_and_every_batch_has_one_size(batch_size, reservoir_rows):
    blocks, _ = numbered_blocks(LENGTHS)
    batches = shuffled_batches(blocks, batch_size, seed=1, reservoir_rows=reservoir_rows)
    taken = list(islice(batches, -(-3 * 43 // batch_size)))
    assert {tuple(batch.shape) for batch in taken} == {(batch_size, 1)}
    values = rows_of(taken)
    for epoch in range(3):
        assert sorted(values[43 * epoch : 43 * (epoch + 1)]) == list(range(43))


def test_every_epoch_and_every_seed_has_its_own_order():
    blocks, _ = numbered_blocks(LENGTHS)
    orders = [rows_of(islice(shuffled_batches(blocks, 43, seed=s, reservoir_rows=20), 2)) for s in (0, 1)]
    epochs = [order[place : place + 43] for order in orders for place in (0, 43)]
    assert len({tuple(order) for order in epochs}) == 4
    assert orders[0] == rows_of(islice(shuffled_batches(blocks, 43, seed=0, reservoir_rows=20), 2))


@pytest.mark.parametrize("reservoir_rows", [14, 30, 1000])
def test_a_stream_from_any_batch_equals_the_stream_from_the_start(reservoir_rows):
    blocks, _ = numbered_blocks(LENGTHS)
    whole = [rows_of([b]) for b in islice(shuffled_batches(blocks, 6, seed=3, reservoir_rows=reservoir_rows), 24)]
    for start in range(22):
        resumed = shuffled_batches(blocks, 6, seed=3, start=start, reservoir_rows=reservoir_rows)
        assert [rows_of([batch]) for batch in islice(resumed, 2)] == whole[start : start + 2]


def test_going_on_far_into_the_data_reads_two_fillings_and_not_what_came_before():
    blocks, reads = numbered_blocks([10] * 100)
    next(shuffled_batches(blocks, 10, seed=0, start=1234, reservoir_rows=80))
    time.sleep(0.05)  # the second filling is read ahead
    assert len(reads) <= 2 * 4


def test_memory_is_bounded_by_the_setting(monkeypatch):
    """Buffers for the rows that are given out and for those read ahead, together never above reservoir_rows."""
    sizes, alive, most = {}, set(), 0
    empty = torch.empty

    def noted(*shape, **settings):
        nonlocal most
        made = empty(*shape, **settings)
        if len(shape) == 2 and shape[0] > 32:  # a batch has 32
            sizes[id(made)] = shape[0]
            alive.add(id(made))
            weak.append(__import__("weakref").finalize(made, alive.discard, id(made)))
            most = max(most, sum(sizes[key] for key in alive))
        return made

    weak = []
    monkeypatch.setattr(reservoir.torch, "empty", noted)
    blocks, _ = numbered_blocks([10] * 200)
    list(islice(shuffled_batches(blocks, 32, seed=0, reservoir_rows=400), 300))
    assert 300 < most <= 400


def test_memory_is_used_again_only_when_nobody_holds_it():
    """A view of a batch is enough to hold it; a batch that was dropped gives its memory to a later one."""
    blocks, _ = numbered_blocks([5] * 20)
    whole = [batch.clone() for batch in islice(shuffled_batches(blocks, 10, seed=0, reservoir_rows=20), 40)]
    views = [batch[2:4] for batch in islice(shuffled_batches(blocks, 10, seed=0, reservoir_rows=20), 40)]
    assert all(torch.equal(view, batch[2:4]) for view, batch in zip(views, whole, strict=True))
    batches = shuffled_batches(blocks, 10, seed=0, reservoir_rows=20)
    assert len({next(batches).data_ptr() for _ in range(40)}) <= 2


def test_an_epoch_can_end_early_and_go_on_exactly():
    blocks, _ = numbered_blocks([5] * 20)
    settings = {"seed": 2, "reservoir_rows": 30, "epoch_rows": 37}
    values = rows_of(islice(shuffled_batches(blocks, 37, **settings), 3))
    epochs = [values[start : start + 37] for start in (0, 37, 74)]
    assert all(len(set(epoch)) == 37 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) == 3
    assert rows_of(islice(shuffled_batches(blocks, 10, start=5, **settings), 5)) == values[50:100]


def test_an_error_while_reading_ahead_is_raised_and_no_thread_is_left():
    blocks, _ = numbered_blocks([5] * 20)

    def breaks(block):
        raise InputError(f"block {block} is damaged")

    with pytest.raises(InputError, match="is damaged"):
        next(
            shuffled_batches(
                reservoir.BlockReader(blocks.lengths, breaks, 1, torch.float32), 4, seed=0, reservoir_rows=20
            )
        )
    batches = shuffled_batches(blocks, 4, seed=0, reservoir_rows=20)
    next(batches)
    del batches
    gc.collect()
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("reservoir")]:
        thread.join(600)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"start": -1}, "start is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"reservoir_rows": 1}, "reservoir_rows is 1"),
        ({"epoch_rows": 44}, "from 1 to the number of rows, 43"),
    ],
)
def test_an_impossible_setting_is_refused_before_the_first_batch(settings, message):
    blocks, _ = numbered_blocks(LENGTHS)
    with pytest.raises(InputError, match=message):
        shuffled_batches(blocks, **{"batch_size": 4, "seed": 0, "reservoir_rows": 20} | settings)


def mean_entropy(batches):
    """Mean over batches of the entropy in nats of the images in a batch; column 0 of the rows is the image."""
    found = []
    for batch in batches:
        shares = np.unique(batch[:, 0].numpy(), return_counts=True)[1] / len(batch)
        found.append(-(shares * np.log(shares)).sum())
    return np.mean(found)


def test_the_images_of_a_batch_are_mixed_nearly_as_in_a_full_shuffle(tmp_path, monkeypatch):
    """640 images in shards of 16; the reservoir holds 5 % of the rows, in blocks of 10."""
    monkeypatch.setattr(store, "BLOCK_BYTES", 10 * 16)
    rows = labelled_store(tmp_path, n_images=640, n_positions=40, images_per_shard=16)
    n_batches = rows.n_rows // 256
    mixed = mean_entropy(islice(rows.batches(256, reservoir_rows=rows.n_rows // 20), n_batches))
    order = np.random.default_rng(0).permutation(rows.n_rows)
    everything = rows.rows_of(range(640))[torch.from_numpy(order)]
    full = mean_entropy(everything.split(256)[:n_batches])
    assert mixed > 0.95 * full
    in_order = mean_entropy(rows.rows_of(range(640)).split(256))
    assert in_order < 0.5 * full  # so that the measure can fail
