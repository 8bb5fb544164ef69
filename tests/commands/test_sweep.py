"""experiments.sweep: its cells, its claims, its table and figures; slowly the whole command, killed and continued."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from experiments import sweep
from experiments.cli.errors import InputError
from experiments.cli.machine import versions
from experiments.sweeps import cells, workers
from experiments.sweeps import figures as sweep_figures
from experiments.sweeps import table as sweep_table
from experiments.sweeps.workers import Place

ROOT = Path(__file__).parents[2]
TINY = {"width": 16, "depth": 1, "steps": 100, "samples": 8, "likelihood_examples": 6, "likelihood_evaluations": 4}
TINY |= {"likelihood_probes": 1, "likelihood_repeats": 1, "evaluations": 4}


def expand(*grid, seeds=(0,), listed=()):
    return cells.expand(list(listed), cells.parse_axes(grid), list(seeds))


def words(settings):
    return [f"{name}={value}" for name, value in settings.items()]


# Cells


def test_a_grid_is_the_product_of_its_axes_and_seeds():
    found = expand("sde=vp,ve", "prediction=noise,data", "steps=7", seeds=(0, 4))
    assert [(c.config.sde, c.config.objective.prediction, c.config.seed) for c in found] == [
        (sde, prediction, seed) for sde in ("vp", "ve") for prediction in ("noise", "data") for seed in (0, 4)
    ]
    assert {c.config.optimiser.steps for c in found} == {7}
    assert found[0].asked == {"sde": "vp", "prediction": "noise", "steps": 7, "seed": 0}
    assert len({c.trained for c in found}) == 8 and len({c.program for c in found}) == 4


def test_cells_are_told_apart_by_content_and_not_by_how_they_were_asked():
    (plain,) = expand("sde=vp")
    (filled,) = expand("sde=vp", f"steps={plain.config.optimiser.steps}", "solver=best", "learning-rate=2e-3")
    assert (plain.trained, plain.measured) == (filled.trained, filled.measured)
    assert len(expand("steps=5,5")) == 1
    for other in ("weight=noise", "prediction=noise", "t_min=1e-4", "ema_decay=0.9", "network=unet", "batch=64"):
        (changed,) = expand("sde=vp", other)
        assert changed.trained != plain.trained, other
    for other in ("solver=ddim", "evaluations=7", "tolerance=1e-2", "samples=9", "raw=true", "likelihood_probes=3"):
        (changed,) = expand("sde=vp", other)
        assert changed.trained == plain.trained and changed.measured != plain.measured, other
    for same in ("evaluation_batch=7", "sample_every=3"):
        (changed,) = expand("sde=vp", same)
        assert (changed.trained, changed.measured) == (plain.trained, plain.measured), same


PLAIN = """
def f(x):
    return 2 * x

class A:
    n: int = 3
"""
EXPLAINED = '''"""Doubles."""

def f(x):  # twice
    "Of a number."
    return (2 * x)

class A:
    """An A."""
    n: int = 3
    """Its number."""
'''


def test_code_is_told_apart_by_what_it_does_and_by_the_versions_that_compute(monkeypatch, tmp_path):
    def digest(source, **others):
        """Of scoresde/sde.py and other files, name by name."""
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in ({"scoresde__sde": source} | others).items():
            file = root / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return cells.code_digest(root)

    plain = digest(PLAIN)
    assert plain == digest(EXPLAINED) == digest(PLAIN, experiments__benchmarks__speed="x = 1")
    others = [digest(PLAIN.replace(*change)) for change in (("2", "3"), ("* x", "+ x"), ("n:", "m:"), ("int", "float"))]
    others += [digest(PLAIN, experiments__run="x = 1"), digest(PLAIN, experiments__run="x = 2")]
    for name in ("jax", "flax"):
        with monkeypatch.context() as patch:
            patch.setattr(cells, "versions", lambda name=name: versions() | {name: "99.0"})
            others.append(digest(PLAIN))
    assert len({plain, *others}) == 1 + len(others)


def test_a_list_of_settings_has_the_seeds_and_the_grid_too(tmp_path):
    (tmp_path / "a.json").write_text('[{"sde": "ve", "flip": false}, {"weight": "noise", "steps": 5}]')
    (tmp_path / "b.csv").write_text("sde,steps\nve,\n,5\n")
    listed = cells.read_list(tmp_path / "a.json")
    assert listed == [{"sde": "ve", "flip": False}, {"weight": "noise", "steps": 5}]
    assert cells.read_list(tmp_path / "b.csv") == [{"sde": "ve"}, {"steps": 5}]
    assert len(expand("prediction=noise,data", seeds=(0, 1), listed=listed)) == 8


def test_values_with_commas_come_from_a_list(tmp_path):
    (tmp_path / "a.json").write_text('[{"ema_lengths": "0.05,0.10", "ema_length": 0.07}]')
    (cell,) = cells.expand(cells.read_list(tmp_path / "a.json"), {}, [0])
    assert cell.config.optimiser.ema_lengths == "0.05,0.10" and cell.measurement.ema_length == 0.07


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["sdee=vp"], "'sdee' is no flag that a sweep can vary; did you mean sde?"),
        (["workdir=x"], "'workdir' is no flag that a sweep can vary"),
        (["seed=1,2"], "the seed is not an axis: give --seeds"),
        (["sde"], "--grid takes NAME=VALUE,VALUE"),
        (["sde=vp", "sde=ve"], "--grid names sde twice"),
        (["sde=vp,vq"], "--sde must be one of vp, subvp, ve, cosine, flow, got 'vq'"),
        (["prediction=eps"], "--prediction must be one of velocity, noise, data, score, karras"),
        (["solver=heun", "evaluations=0"], "--evaluations must be at least 1"),
        (["solver=ddim", "snr=0.1"], "--snr has no meaning for --solver ddim; it is for predictor-corrector"),
        (["solver=predictor-corrector", "evaluations=1"], "predictor-corrector takes at least"),
        (["measure=fid"], "--measure takes some of likelihood+bound+samples"),
        (["t_min=2"], "--sde vp --t-min 2.0"),
        (["guidance=2"], "--guidance is for models trained with --condition class"),
        (["ema_length=0.1"], "--ema-length is for trainings with --ema-lengths"),
        (["flip=maybe"], "--flip is true or false"),
        (["data=nowhere"], "nowhere"),
        (["weight=learned", "times=adaptive"], "--weight learned balances the levels"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_before_anything_compiles(grid, message):
    with pytest.raises(InputError) as caught:
        expand(*grid)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_text_that_the_flag_cannot_read_is_one_line():
    with pytest.raises(InputError, match="^--steps: invalid literal .* 'many'") as caught:
        expand("steps=many")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give --grid"),
        ({"grid": ("sde=vp",), "seeds": "0"}, "--seeds is a number of them"),
        ({"grid": ("sde=vp",), "seeds": "a,b"}, "--seeds is a number of them"),
        ({"grid": ("sde=vp",), "jobs": 0}, "--jobs must be at least 1"),
        ({"grid": ("sde=vp",), "cluster": "pbs"}, "--cluster must be one of"),
        ({"grid": ("sde=vp",), "cluster_options": ("a=1",)}, "--cluster-options are for"),
        ({"cells": Path("absent.json")}, "cannot read --cells absent.json"),
        ({"grid": ("sde=vp",), "code": "12345678"}, "--code 12345678 is not in"),
    ],
)
def test_flags_that_cannot_be(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        sweep.program(sweep.Flags(out=tmp_path, **flags), Console(file=io.StringIO()))


def test_no_figure_has_the_name_of_a_setting():
    figures = sweep_table.row({}, None, "")
    assert not set(figures) & set(cells.DEFAULTS) and "seed" not in figures


def test_every_axis_is_listed_with_its_default():
    listed = sweep.listing()
    assert "sde (default vp)" in listed and "evaluations (default 20)" in listed and "snr (default None)" in listed
    assert not any(line.startswith(("seed ", "workdir ", "target ")) for line in listed)


# Work


def work_with(monkeypatch, done, found, root, places):
    def do(cell, root, builder):
        done.append((threading.get_ident(), cell.asked))
        time.sleep(0.01)
        return {"asked": cell.asked}

    monkeypatch.setattr(workers, "do", do)
    monkeypatch.setattr(workers, "WAIT_SECONDS", 0.01)
    threads = [threading.Thread(target=workers.work, args=(found, root, place)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_workers_share_the_cells_and_do_each_once(monkeypatch, tmp_path):
    found, done = expand("sde=vp,ve,flow", "evaluations=5,6", seeds=(0, 1)), []
    work_with(monkeypatch, done, found, tmp_path, [Place(i, 3) for i in range(3)])
    assert len({worker for worker, _ in done}) == 3
    assert sorted(map(str, (asked for _, asked in done))) == sorted(str(cell.asked) for cell in found)
    assert all(cell.result(tmp_path) == {"asked": cell.asked} for cell in found)
    work_with(monkeypatch, done, found, tmp_path, [Place()])
    assert len(done) == len(found)


def test_a_training_that_another_process_is_at_is_left_to_it(monkeypatch, tmp_path):
    found, done = expand("sde=vp,ve"), []
    code = "import sys; from pathlib import Path; from experiments.sweeps.workers import claim\n"
    code += "with claim(Path(sys.argv[1])) as mine:\n    print(mine, flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(found[0].folder(tmp_path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        with workers.claim(found[0].folder(tmp_path)) as mine:
            assert not mine
        other.kill()  # what it claimed is free again
        other.wait()
    work_with(monkeypatch, done, found, tmp_path, [Place()])
    assert len(done) == 2


def test_cells_of_one_program_follow_each_other_and_workers_begin_apart():
    found = expand("evaluations=5,6", "sde=vp,ve", seeds=(0, 1))
    order = workers.in_order(found, 0.0)
    assert [cell.config.sde for cell in order] == ["vp"] * 4 + ["ve"] * 4
    assert [cell.trained for cell in order[:4]] == [order[0].trained] * 2 + [order[2].trained] * 2
    assert [cell.config.sde for cell in workers.in_order(found, 0.5)] == ["ve"] * 4 + ["vp"] * 4


def test_a_cell_that_fails_says_why_and_the_others_go_on(monkeypatch, tmp_path):
    def train(config, console, program, *, build):
        raise InputError("no such luck") if config.sde == "ve" else ZeroDivisionError("what\nnow")

    monkeypatch.setattr(workers, "train", train)
    found = expand("sde=vp,ve")
    workers.work(found, tmp_path, Place())
    assert found[1].result(tmp_path) == {"error": "no such luck"}
    assert found[0].result(tmp_path) == {"error": "ZeroDivisionError: what now"}
    assert "Traceback" in found[0].path(tmp_path).with_suffix(".traceback").read_text()


# Table and figures


def made_rows():
    rng = np.random.default_rng(0)
    rows = []
    for sde, steps in [("vp", 5), ("vp", 10), ("vp", 20), ("ve", 5), ("ve", 10)]:
        for seed in range(3):
            figures = {"likelihood": 2 + steps / 10 + rng.normal() / 10, "unit": "bits/dim", "held_out": 7}
            rows.append(sweep_table.row({"sde": sde, "steps": steps, "seed": seed}, {}, "x") | figures)
    return rows


def test_the_interval_is_students():
    x = np.random.default_rng(0).normal(size=5)
    mean, half_width, values = sweep_table.estimate(x)
    low, high = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high)) and values == tuple(x)
    assert math.isnan(sweep_table.estimate([1.0]).half_width)


def test_settings_are_compared_with_the_best_seed_by_seed():
    rows = made_rows()
    assert sweep_table.varied(rows, ["sde", "steps", "seed"]) == ["sde", "steps"]
    compared = {entry.settings: entry for entry in sweep_table.compare(rows, ["sde", "steps"], sweep_table.METRICS[0])}
    best = min(compared.values(), key=lambda entry: entry.estimate.mean)
    assert best.difference is None and len(compared) == 5
    by = {key: [r["likelihood"] for r in rows if (r["sde"], str(r["steps"])) == key] for key in compared}
    other = compared["vp", "20"]
    paired = stats.ttest_rel(by["vp", "20"], by[best.settings]).confidence_interval(0.95)
    assert other.difference.mean == pytest.approx(np.mean(paired))
    assert other.difference.half_width == pytest.approx((paired.high - paired.low) / 2)
    text = sweep_table.summary(rows, ["sde", "steps"])
    assert text.count("| best |") == 1 and "95 % interval over 3 seeds" in text


def test_nats_are_better_when_larger():
    rows = [row | {"unit": "nats"} for row in made_rows()]
    compared = sweep_table.compare(rows, ["steps"], sweep_table.METRICS[0])
    assert [entry.settings for entry in compared if entry.difference is None] == [("20",)]


def test_the_table_is_tidy_and_its_figures_are_drawn(tmp_path):
    rows = made_rows()
    sweep_table.write(tmp_path, rows)
    with (tmp_path / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["sde"] for row in read] == [row["sde"] for row in rows]
    assert [float(row["likelihood"]) for row in read] == [row["likelihood"] for row in rows]
    (path,) = sweep_figures.draw_all(tmp_path / "figures", rows, ["sde", "steps"], "digits.")
    with Image.open(path) as picture:
        assert picture.width > 600 and len(np.unique(np.asarray(picture.convert("L")))) > 10


@pytest.mark.parametrize("names", [[], ["sde"], ["steps"], ["steps", "sde"], ["sde", "unit", "steps"]])
def test_a_figure_of_any_settings(names):
    rows = made_rows() if len(names) > 1 else [row for row in made_rows() if row["sde"] == "vp"]
    compared = sweep_table.compare(rows, names, sweep_table.METRICS[0])
    page = sweep_figures.figure(compared, names, sweep_table.METRICS[0], rows[0], "digits.")
    assert any("95 % interval" in text.get_text() for text in page.texts)
    page.draw_without_rendering()


# The command


def command(out, *more, **settings):
    grid = words(TINY | settings)
    return [sys.executable, "-m", "experiments.sweep", "--out", str(out), "--seeds", "2", *more, "--grid", *grid]


def run(out, *more, **settings):
    done = subprocess.run(command(out, *more, **settings), capture_output=True, text=True, cwd=ROOT, timeout=900)
    return done


def table(out):
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("train_seconds", "measure_seconds"):
            row.pop(name)
    return rows


@pytest.mark.slow
def test_a_killed_sweep_continues_with_the_same_bits(tmp_path):
    settings = {"sde": "vp,ve", "solver": "ddim,unipc", "steps": 1500, "measure": "likelihood+bound+samples"}
    whole = run(tmp_path / "whole", "--jobs", "2", **settings)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    for least in (1, 2):
        with subprocess.Popen(command(out, **settings), cwd=ROOT, start_new_session=True) as process:
            while not len(list(out.glob("cells/*/*/*.json"))) > 3 * least:
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGKILL)
    stopped = subprocess.Popen(command(out, **settings), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(15)
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode in (0, 130), said
    assert run(out, **settings).returncode == 0
    assert table(out) == table(tmp_path / "whole")
    assert {path.name for path in (out / "figures").iterdir()} == {
        "likelihood.png", "discrete_bound.png", "distance_ratio.png",
    }  # fmt: skip
    again = run(out, **settings)
    assert "8 cells, 8 of them done" in again.stdout
    more = run(out, **settings | {"sde": "vp"})
    assert "4 cells, 4 of them done" in more.stdout and len(table(out)) == 4


@pytest.mark.slow
def test_a_cell_is_what_the_other_commands_say(tmp_path):
    done = run(tmp_path / "sweep", "--seeds", "3,5", sde="ve", measure="likelihood+samples", raw="true,false")
    assert done.returncode == 0, done.stderr
    rows = {(row["seed"], row["raw"]): row for row in table(tmp_path / "sweep")}
    assert len(rows) == 4 and rows["3", "True"]["likelihood"] != rows["3", "False"]["likelihood"]
    flags = [f"--{name.replace('_', '-')}={TINY[name]}" for name in ("width", "depth", "steps", "samples")]
    flags += ["--likelihood-examples=6", "--likelihood-probes=1", "--likelihood-repeats=1", "--sde=ve", "--seed=5"]
    one = [sys.executable, "-m", "experiments.run", *flags, f"--workdir={tmp_path / 'run'}"]
    subprocess.run(one, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert float(rows["5", "False"]["final_loss"]) == json.loads(lines[-1])["loss"]


@pytest.mark.slow
def test_failed_cells_are_named_and_tried_again(tmp_path):
    settings = {"measure": "samples", "learning_rate": "1e-3,1e30", "skip_limit": 1}
    done = run(tmp_path, **settings)
    assert done.returncode == 2 and "2 of 4 cells failed, the first: " in done.stderr
    assert "Traceback" not in done.stderr and len([row for row in table(tmp_path) if row["error"]]) == 2
    assert "4 cells, 2 of them done" in run(tmp_path, **settings).stdout


@pytest.mark.slow
def test_jobs_by_submitit(tmp_path):
    pytest.importorskip("submitit")
    done = run(tmp_path, "--cluster", "local", "--jobs", "2", "--cluster-options", "timeout_min=10", measure="samples")
    assert done.returncode == 0, done.stderr
    assert all(not row["error"] and row["distance_ratio"] for row in table(tmp_path))
    bad = run(tmp_path / "bad", "--cluster", "local", "--cluster-options", "nonsense=1", measure="samples")
    assert bad.returncode == 2 and len(bad.stderr.splitlines()) == 1
