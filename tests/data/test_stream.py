"""The stream of batches against a naive walk through the epochs: any start, any steps a call, any processes."""

import os
import threading

import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.data.arrays import Options
from experiments.data.load import load
from experiments.data.stream import batches, order, positions

N, BATCH, STEPS = 54, 8, 20


@pytest.fixture(params=[False, True], ids=["memory", "disk"])
def data(request, tmp_path):
    """60 examples, each its own number, of which 54 train."""
    np.save(tmp_path / "a.npy", np.arange(60.0)[:, None] + [0.0, 0.5])
    return load(f"npy:{tmp_path / 'a.npy'}", options=Options(in_memory_gib=0 if request.param else 2))


def naive(data, seed):
    """All batches of the run, one example at a time."""
    sequence = [i for epoch in range(STEPS * BATCH // N + 1) for i in order(seed, epoch, N)]
    rows = [sequence[step * BATCH : (step + 1) * BATCH] for step in range(STEPS)]
    return np.stack([np.stack([data.train[i : i + 1][0] for i in row]) for row in rows])


def stream(data, **changes):
    arguments = {"seed": 3, "step": 0, "total": STEPS, "steps_per_call": 4, "batch": BATCH} | changes
    return list(batches(data, **arguments))


@pytest.mark.parametrize("steps_per_call", [1, 4, 7, 50])
def test_batches_walk_through_the_epochs(data, steps_per_call):
    calls = stream(data, steps_per_call=steps_per_call)
    assert [len(call) for call in calls[:-1]] == [steps_per_call] * (len(calls) - 1)
    np.testing.assert_array_equal(np.concatenate(calls), naive(data, 3))


def test_a_position_is_a_step(data):
    """From any step on, whatever went before, the same batches follow."""
    whole = naive(data, 3)
    for step in (1, 6, 13, 19):
        np.testing.assert_array_equal(np.concatenate(stream(data, step=step, steps_per_call=5)), whole[step:])
    assert stream(data, step=STEPS) == []


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_batches(data, processes):
    parts = [np.concatenate(stream(data, process_index=p, process_count=processes)) for p in range(processes)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), naive(data, 3))


def test_every_epoch_is_a_permutation_of_its_own():
    visits = positions(N, 5, 0, 10 * N).reshape(10, N)
    np.testing.assert_array_equal(np.sort(visits, axis=1), np.broadcast_to(np.arange(N), (10, N)))
    assert len({tuple(v) for v in visits}) == 10
    np.testing.assert_array_equal(positions(N, 5, 3 * N + 7, 20), visits[3, 7:27])
    assert (positions(N, 6, 0, N) != visits[0]).any()
    mean = np.mean([order(seed, 1, N) for seed in range(400)], axis=0)
    assert np.abs(mean - (N - 1) / 2).max() < 5 * np.sqrt((N**2 - 1) / 12 / 400)


def test_masks_come_with_their_examples(tmp_path):
    rows = [f"{i}.5,{'' if i % 3 == 0 else i / 7}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b", *rows]))
    data = load(f"csv:{tmp_path / 't.csv'}", options=Options(missing="mask"))
    call = stream(data)[0]
    assert call["x"].shape == call["mask"].shape == (4, BATCH, 2)
    np.testing.assert_array_equal(call["mask"][..., 1], np.round(call["x"][..., 0] - 0.5) % 3 != 0)


def test_mistakes_reach_the_consumer_and_threads_end(tmp_path):
    from PIL import Image

    for i in range(20):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"{i:02d}.png")
    data = load(f"images:{tmp_path}", options=Options(in_memory_gib=0))
    with pytest.raises(InputError, match="--batch 8 cannot be shared by 3 processes"):
        stream(data, process_count=3)
    before = threading.active_count()
    endless = batches(data, seed=0, step=0, total=10**9, steps_per_call=2, batch=4)
    for _ in range(3):
        next(endless)
    endless.close()
    assert threading.active_count() <= before + (os.cpu_count() or 1)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"\.png cannot be read \(.*No such file"):
        stream(data)
