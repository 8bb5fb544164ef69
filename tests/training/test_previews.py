"""What is shown while a model trains: sheets of samples from the same noise, and event files of the same numbers."""

import sys
import types

import numpy as np
import pytest
from PIL import Image
from small import save_run

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.cli.keys import stream
from experiments.figures import panels, report
from experiments.training import previews
from experiments.training.fit import Plan
from experiments.training.previews import watch


def test_a_sheet_is_drawn_whenever_so_many_steps_have_passed(tmp_path):
    config, data, model = save_run(tmp_path / "run", sample_every=100)
    state = model.init()
    on_state, _ = watch(Plan.of(config), data, model, 0)
    for step in (50, 100, 150, 210, 250):
        on_state(step, state)
    folder = tmp_path / "run" / "figures" / "steps"
    assert sorted(path.name for path in folder.iterdir()) == ["00000100.png", "00000210.png"]
    key = stream(config.seed, "previews")
    table = ss.best_solver(model.sde, 20)
    x = data.from_model(ss.sample(key, model.score(state.ema), table, (36, 8, 8, 1)))
    expected = panels.grid(np.repeat(panels.pixels(x, 0, 16), 3, axis=-1), 6, 8)
    for name in ("00000100.png", "00000210.png"):  # the same noise: only the average may differ
        with Image.open(folder / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected)
    watch(Plan.of(config), data, model, 100)[0](150, state)  # resumed
    assert len(list(folder.iterdir())) == 2


def test_the_report_shows_a_few_sheets_and_the_last(tmp_path):
    sheets = [tmp_path / f"{step:08d}.png" for step in range(100, 1100, 100)]
    intro, shown = report._progress(sheets)
    assert shown.count("![step") == 4 and "![step 1000](figures/steps/00001000.png)" in shown
    assert "100" in intro and "1,000 steps" in intro and report._progress([]) == []


class Writer:
    def __init__(self, folder, purge_step):
        self.seen, self.flushed = [(folder, purge_step)], 0
        Writer.last = self

    def add_scalar(self, name, value, step):
        self.seen.append((name, value, step))

    def flush(self):
        self.flushed += 1


def test_event_files_hold_the_numbers_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(previews, "find_spec", lambda name: name == "tensorboardX" or None)
    config, data, model = save_run(tmp_path / "run", tensorboard=True)
    _, on_entry = watch(Plan.of(config), data, model, 50)
    on_entry({"step": 100, "loss": 0.5, "grad_norm": None, "skipped": 0})
    folder = str(tmp_path / "run" / "tensorboard")
    assert Writer.last.seen == [(folder, 50), ("loss", 0.5, 100), ("skipped", 0, 100)] and Writer.last.flushed == 1


def test_without_a_writer_it_says_what_to_install(tmp_path, monkeypatch):
    config, data, model = save_run(tmp_path / "run", tensorboard=True)
    for installed in ((), ("tensorboard", "tensorflow")):  # tensorboard would load TensorFlow
        monkeypatch.setattr(previews, "find_spec", lambda name, installed=installed: name in installed or None)
        with pytest.raises(InputError, match="pip install tensorboardX"):
            watch(Plan.of(config), data, model, 0)
