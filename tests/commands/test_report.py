"""The report of a run from its folder alone: pictures show the arrays, tables repeat the figures, errors are a line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from experiments import report as command
from experiments.cli.errors import InputError
from experiments.figures import levels as level_curves
from experiments.figures import panels, report, run_figures

SOLVERS = ("euler_maruyama", "predictor_corrector", "probability_flow")
COMMAND = "python -m experiments.run --sde vp --steps 8000"


def digits():
    return load_digits().images.astype(np.uint8)


def make(folder, real, samples, *, levels=None, exact=None):
    """A run folder with figures drawn at random: no model made them, and none is needed."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    x, times = real[:12].astype(np.float32), np.linspace(0.001, 1, 9)
    forward = np.stack([x + 8 * t * rng.normal(size=x.shape) for t in times]).astype(np.float32)
    log_prob = rng.normal(2.1, 0.3, len(real))
    arrays = {"real": real, "forward": forward, "forward_times": times, "log_prob": log_prob}
    arrays |= {"reverse": forward[::-1], "reverse_times": times[::-1]}
    arrays |= {f"samples_{name}": samples for name in SOLVERS}
    if exact is not None:
        arrays["exact_log_prob"] = log_prob + exact
    np.savez(folder / "arrays.npz", **arrays)

    def distances():
        return {name: float(rng.random()) for name in ("sliced_wasserstein", "mmd", "energy_distance")}

    content = {
        "name": "some-run",
        "data": {"name": "x", "describe": "x: a|b", "event_shape": real.shape[1:], "levels": levels, "train": 1500},
        "sde": "VP(t_min=1e-05)",
        "network": {"name": "mlp", "parameters": 3100352},
        "training": {"steps": 8000, "seconds": 101.234, "steps_per_second": 79.1, "final_loss": 0.1123},
        "likelihood": {
            **{"unit": "nats" if levels is None else "bits/dim", "mean": 2.1234567, "std_error": 0.0198765},
            **{"examples": len(real), "repeats": 2, "probes": 4, "probe_std_error": 0.00345, "num_evals": 88.125},
            **{"failed": 0, "exact": None if exact is None else 2.1234567 + exact, "seconds": 45.6},
            "bound": levels
            and {"mean": 2.2345678, "std_error": 0.0045, "num_evals": 272, "seconds": 6.7}
            | {"discrete_mean": 2.0456789, "discrete_std_error": 0.0067}
            | {"discrete_sample_std_error": 0.0234, "sample_std_error": 0.0245, "examples": len(real)},
        },
        "real": distances() | {"examples": [297, 297]},
        "samples": {name: {"num_evals": 1000.0, "seconds": 3.21, "ratio": 12.3456} | distances() for name in SOLVERS},
    }
    entries = [{"step": i, "loss": 0.1 + 3 / i, "grad_norm": 1.0} for i in range(50, 8001, 50)]
    (folder / "report.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"sde": "vp", "steps": 8000, "data_dir": None}))
    (folder / "environment.json").write_text(json.dumps({"command": COMMAND, "versions": {"jax": "0.10.2"}, "seed": 0}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def leaves(content, prefix=""):
    for key, value in content.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


def rng_points(n):
    return np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    x = digits()
    return make(tmp_path_factory.mktemp("digits"), x[1500:], x[:100], levels=17)


@pytest.fixture
def points(tmp_path):
    return make(tmp_path / "points", rng_points(400), rng_points(300), exact=0.01)


def test_the_report_repeats_every_figure_at_full_precision(run):
    content = report.write(run)
    assert content == json.loads((run / "report.json").read_text())
    text = (run / "report.md").read_text()
    rows = dict(re.findall(r"^\| (\S+) \| (.*) \|$", text.split("## Every figure")[1], re.MULTILINE))
    for key, value in leaves(content):
        assert rows[key].replace("\\|", "|") == value if isinstance(value, str) else json.loads(rows[key]) == value, key
    assert f"```\n{COMMAND}\n```" in text and "| jax | 0.10.2 |" in text and "| steps | 8000 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| probability_flow |"))
    shown = [float(cell) for cell in line.strip("| ").split(" | ")[1:]]
    solver = content["samples"]["probability_flow"]
    keys = ("num_evals", "seconds", "sliced_wasserstein", "ratio", "mmd", "energy_distance")
    np.testing.assert_allclose(shown, [solver[key] for key in keys], rtol=1e-3)


def test_the_pictures_are_there_and_small_and_made_again_with_the_same_bytes(run, points):
    for folder in (run, points):
        report.write(folder)
        first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        links = re.findall(r"\]\((.*?)\)", (folder / "report.md").read_text())
        assert sorted(links) == [f"figures/{name}.png" for name in ("likelihood", "loss", "samples", "trajectory")]
        for link in links:
            with Image.open(folder / link) as picture:
                picture.verify()
            assert (folder / link).stat().st_size < 300_000, link
        assert sorted(p.name for p in (folder / "figures").iterdir()) == sorted(Path(link).name for link in links)
        assert not [p for p in folder.iterdir() if p.name.endswith(".tmp")]
    report.write(points)
    assert first == {path: path.read_bytes() for path in points.rglob("*") if path.is_file()}


def test_a_grid_holds_every_pixel_of_every_image():
    x = digits()[:13]
    tiles = panels.shades(x, 0, 16)
    picture = panels.grid(tiles, columns=5, scale=3, gap=2)
    assert picture.shape == (3 * 24 + 2 * 2, 5 * 24 + 4 * 2, 3)
    for i, image in enumerate(x):
        y, left = i // 5 * 26, i % 5 * 26
        tile = picture[y : y + 24, left : left + 24]
        np.testing.assert_array_equal(np.round(tile[1::3, 1::3, 0] / 255 * 16), image)
        np.testing.assert_array_equal(tile, np.kron(tile[1::3, 1::3], np.ones((3, 3, 1), np.uint8)))
    assert (picture[52:, 3 * 26 :] == 255).all()


def test_the_written_png_shows_the_samples_pixel_for_pixel(tmp_path):
    x = digits()
    samples = np.random.default_rng(1).permutation(x[:100])
    folder = make(tmp_path / "run", x[1500:], samples, levels=17)
    report.write(folder)
    with Image.open(folder / "figures" / "samples.png") as picture:
        page = np.asarray(picture.convert("RGB"))
    columns, scale = panels.grid_size(8)
    for shown, count in ((x[1500:], 1), (samples, len(SOLVERS))):
        expected = panels.grid(panels.shades(shown[: columns**2], 0, 16), columns, scale)
        assert found(page, expected) == count
    with Image.open(folder / "figures" / "trajectory.png") as picture:
        page = np.asarray(picture.convert("RGB"))
    forward = np.load(folder / "arrays.npz")["forward"]
    tiles = panels.shades(forward[:, :3].swapaxes(0, 1).reshape(-1, 8, 8), 0, 16)
    assert found(page, panels.grid(tiles, 9, 150 // 8, 6)) == 1
    backward = panels.shades(forward[::-1, :3].swapaxes(0, 1).reshape(-1, 8, 8), 0, 16)
    assert found(page, panels.grid(backward, 9, 150 // 8, 6)) == 1


def found(page, part):
    """How often `part` stands in `page`, exactly."""
    h, w = part.shape[:2]
    corners = np.lib.stride_tricks.sliding_window_view(page[: len(page) - h + 1, :, 0], w, axis=1)
    candidates = np.argwhere((corners == part[0, :, 0]).all(axis=-1))
    return sum(bool((page[y : y + h, x : x + w] == part).all()) for y, x in candidates)


def test_shades_of_colour_grey_and_large_images():
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3))
    np.testing.assert_array_equal(panels.shades(x, 0, 255), x)
    np.testing.assert_array_equal(panels.shades(np.array([[[-5.0, 0, 1, 9]]]), 0, 2)[0, 0, :, 0], [0, 0, 128, 255])
    large = np.kron(np.arange(4).reshape(1, 2, 2), np.ones((1, 150, 150)))
    small = panels.shades(large, 0, 3)
    assert small.shape == (1, 100, 100, 3)
    np.testing.assert_array_equal(small[0, ::50, ::50, 0], [[0, 85], [170, 255]])


@pytest.mark.parametrize(("width", "columns", "scale"), [(8, 8, 5), (28, 6, 2), (32, 5, 2), (64, 5, 1), (100, 3, 1)])
def test_grids_fill_their_panel(width, columns, scale):
    assert panels.grid_size(width) == (columns, scale)


def test_scatter_panels_hold_the_points(points):
    content, arrays = json.loads((points / "report.json").read_text()), dict(np.load(points / "arrays.npz"))
    axes = run_figures.samples(content, arrays).axes
    assert len(axes) == 1 + len(SOLVERS)
    for panel, name in zip(axes, ("real", *(f"samples_{solver}" for solver in SOLVERS)), strict=True):
        np.testing.assert_array_equal(panel.collections[0].get_offsets(), arrays[name][:300])
        assert panel.get_xlim() == axes[0].get_xlim() and panel.get_ylim() == axes[0].get_ylim()
    snapshots = run_figures.trajectory(content, arrays).axes
    np.testing.assert_array_equal(snapshots[3].collections[0].get_offsets(), arrays["forward"][3])
    np.testing.assert_array_equal(snapshots[9].collections[0].get_offsets(), arrays["reverse"][0])


def test_the_likelihood_is_the_histogram_of_the_values(points):
    content, arrays = json.loads((points / "report.json").read_text()), dict(np.load(points / "arrays.npz"))
    figure = run_figures.likelihood(content, arrays)
    assert sum(bar.get_height() for bar in figure.axes[0].containers[0]) == 400
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == pytest.approx([2.1234567, 2.1334567])
    words = " ".join(text.get_text() for text in figure.texts)
    assert "mean 2.123 ± 0.02 nats" in words and "exact mean (dashed) 2.133" in words


def test_the_loss_is_drawn_at_its_steps_and_smoothed_without_bias():
    entries = [{"step": i, "loss": 5.0 - i / 1700} for i in range(50, 8001, 50)]
    figure = run_figures.loss({"training": {"steps": 8000, "final_loss": 0.3}}, entries)
    raw, smooth = figure.axes[0].lines
    np.testing.assert_allclose(raw.get_xydata(), [(e["step"], e["loss"]) for e in entries])
    np.testing.assert_allclose(smooth.get_ydata()[3:-3], raw.get_ydata()[3:-3])
    assert figure.axes[0].get_yscale() == "log"
    assert run_figures.loss({"training": {"steps": 0, "final_loss": None}}, []).axes[0].lines[:] == []


def test_titles_are_neither_clipped_nor_on_top_of_each_other(run, points):
    for folder in (run, points):
        content, arrays = json.loads((folder / "report.json").read_text()), dict(np.load(folder / "arrays.npz"))
        long = "dpm_solver_of_order_three_with_churn_and_restarts"
        content["samples"] = {long: content["samples"]["euler_maruyama"]} | content["samples"]
        arrays[f"samples_{long}"] = arrays["samples_euler_maruyama"]
        for figure in (
            *(draw(content, arrays) for draw in (run_figures.samples, run_figures.trajectory, run_figures.likelihood)),
            run_figures.loss(content, [{"step": 50, "loss": 1.0}, {"step": 8000, "loss": 0.01}]),
        ):
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            labels = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label)]
            boxes = [text.get_window_extent(canvas.get_renderer()) for text in (*figure.texts, *labels)]
            boxes = [box for box in boxes if box.width > 1]
            for i, box in enumerate(boxes):
                assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
                assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("shape", [(1,), (5,), (40,), (30, 2), (6, 7), (16, 16, 3), (9, 9, 2), (2, 3, 4)])
def test_every_event_shape_has_pictures(tmp_path, shape):
    rng = np.random.default_rng(0)
    folder = make(tmp_path / "run", rng.normal(size=(30, *shape)), rng.normal(size=(20, *shape)))
    content, arrays = json.loads((folder / "report.json").read_text()), dict(np.load(folder / "arrays.npz"))
    arrays["samples_probability_flow"][:] = np.nan
    for number, draw in enumerate((run_figures.samples, run_figures.trajectory)):
        panels.save(draw(content, arrays), tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert 300 < picture.width < 2000 and len(picture.convert("L").getcolors()) > 10


def test_the_final_table_fits_80_columns_and_is_plain_text_in_a_pipe(run):
    content = json.loads((run / "report.json").read_text())
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(report.table(content), soft_wrap=True)
    text = capture.get()
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80
    assert "2.1235 bits/dim, standard error 0.0199" in text
    assert "variational bound 2.2346 ± 0.0245, of integers 2.0457 ± 0.0234, " in text
    del content["likelihood"]["bound"]  # of a run that has none
    assert "variational bound" not in report.markdown(content, {}, {"command": "x", "versions": {}})
    for name, solver in content["samples"].items():
        row = next(line for line in text.splitlines() if line.startswith(name)).split()
        assert row[1:3] == ["1000", "3.2"] and row[4] == "12.35"
        assert float(row[3]) == pytest.approx(solver["sliced_wasserstein"], rel=1e-3)
        assert float(row[5]) == pytest.approx(solver["mmd"], abs=1e-5)


def without(path, *keys):
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(content))


DAMAGE = {
    "config.json does not exist": lambda f: (f / "config.json").unlink(),
    "metrics.jsonl does not exist": lambda f: (f / "metrics.jsonl").unlink(),
    "report.json cannot be read": lambda f: (f / "report.json").write_text('{"name": "x", '),
    "environment.json holds a JSON list": lambda f: (f / "environment.json").write_text("[]"),
    "cannot write to": lambda f: (f / "figures").touch(),
    "has no command": lambda f: without(f / "environment.json", "command"),
    "has no likelihood.mean": lambda f: without(f / "report.json", "likelihood", "mean"),
    "has no samples.probability_flow.ratio": lambda f: without(
        f / "report.json", "samples", "probability_flow", "ratio"
    ),
    "metrics.jsonl line 161 has no step and loss": lambda f: (f / "metrics.jsonl").open("a").write("{}\n"),
    "metrics.jsonl cannot be read": lambda f: (f / "metrics.jsonl").write_text('{"step": 1, "lo'),
    "arrays.npz cannot be read": lambda f: (f / "arrays.npz").write_bytes((f / "arrays.npz").read_bytes()[:5000]),
    "no complete archive": lambda f: np.save((f / "arrays.npz").open("wb"), np.ones(3)),
    "has no array log_prob": lambda f: np.savez(f / "arrays.npz", **drop(f, "log_prob")),
    "reverse has 9 frames and 4 times": lambda f: np.savez(
        f / "arrays.npz", **drop(f, "reverse_times"), reverse_times=np.ones(4)
    ),
    "real is float64 (5, 3); expected": lambda f: np.savez(f / "arrays.npz", **drop(f, "real"), real=np.ones((5, 3))),
}


def drop(folder, name):
    with np.load(folder / "arrays.npz") as stored:
        return {key: stored[key] for key in stored.files if key != name}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_folder_is_one_line_and_keeps_its_report(points, capsys, monkeypatch, message):
    (points / "report.md").write_text("an earlier report")
    DAMAGE[message](points)
    with pytest.raises(InputError):
        report.write(points)
    monkeypatch.setattr(sys, "argv", ["report", str(points)])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert (points / "report.md").read_text() == "an earlier report"


def test_the_command_line(points, tmp_path, capsys, monkeypatch):
    for arguments, said in (([], "Folder of the run"), ([str(tmp_path / "none")], "does not exist")):
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        with pytest.raises(SystemExit, match="2"):
            command.main()
        assert said in capsys.readouterr().err
    root = Path(__file__).parents[2]
    code = (
        "import sys; from experiments import report; report.main(); "
        "assert not {'jax', 'scoresde', 'flax', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, points], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "predictor_corrector" in done.stdout and (points / "report.md").exists()


def test_noise_levels_are_drawn_where_they_were_logged(run, tmp_path):
    folder = tmp_path / "levels"
    shutil.copytree(run, folder)
    log_snr = np.linspace(-9, 9, 12)
    entries = []
    for step in (50, 100, 150, 200):
        explained = [None if i == 3 else float(1 - 40 / step / (1 + x**2)) for i, x in enumerate(log_snr)]
        entry = {"step": step, "log_snr": log_snr.tolist(), "loss": np.exp(-log_snr).tolist()}
        entries.append(entry | {"variance_explained": explained})
    (folder / "levels.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    report.write(folder)
    assert "](figures/levels.png)" in (folder / "report.md").read_text()
    left, right = level_curves.level_curves(entries).axes
    assert left.get_yscale() == "log" and right.get_ylim()[1] == 1
    assert [line.get_label() for line in right.get_lines()] == ["50", "100", "150", "200"]
    for line, entry in zip(right.get_lines(), entries, strict=True):
        kept = [v for v in entry["variance_explained"] if v is not None]
        np.testing.assert_array_equal(line.get_ydata(), kept)
        np.testing.assert_array_equal(line.get_xdata(), np.delete(log_snr, 3))
    assert not (run / "figures" / "levels.png").exists()
