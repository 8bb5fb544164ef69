"""The notebooks: made from their sources, readable as notebooks, and every cell runs and says the truth."""

import json
import math
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from experiments.notebooks import build

SOURCES = build.sources()
QUICKSTART = build.FOLDER / "quickstart.py"
ROOT = Path(__file__).parents[2]

# Runs the code cells of a notebook's JSON as a kernel would, in one namespace, then prints its facts.
KERNEL = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), "cell " + cell["id"], "exec"), names)
print(json.dumps(names["facts"] | {"figures": len(names["plt"].get_fignums())}))
"""


def code_cells(path: Path) -> list[str]:
    return [text for kind, text in build.cells(path) if kind == "code"]


def test_the_quickstart_is_a_source():
    assert QUICKSTART in SOURCES


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_the_committed_notebook_is_what_its_source_makes(path):
    committed = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert committed == build.notebook(path), "run python -m experiments.notebooks.build"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_the_notebook_is_of_its_format_and_has_no_outputs(path):
    made = nbformat.read(path.with_suffix(".ipynb"), as_version=nbformat.NO_CONVERT)
    nbformat.validate(made)  # ids that come twice are a warning, and warnings are errors here
    assert (made.nbformat, made.nbformat_minor) == (4, 5)
    assert made.metadata.kernelspec.name == "python3"
    assert made.metadata.colab.name == path.with_suffix(".ipynb").name
    assert {cell.cell_type for cell in made.cells} == {"code", "markdown"}
    assert all(cell.source.strip() and not cell.metadata for cell in made.cells)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in made.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_the_cells_hold_every_line_of_the_source(path):
    """Nothing of the source after its first marker is lost on the way: read back, the notebook is the source. In the
    install cell, which the shared cells replace, stands nothing but the import of what they define."""
    shared = build.cells(build.INSTALL)
    made = [("".join(c["source"]).split("\n"), c["cell_type"]) for c in json.loads(build.notebook(path))["cells"]]
    lines = []
    for text, kind in made[:1] + made[1 + len(shared) :]:
        lines += ["# %%", *text] if kind == "code" else ["# %% [markdown]", *(f"# {line}".rstrip() for line in text)]
    source = path.read_text(encoding="utf-8")
    first, rest = source[source.index("# %%") :].split("# %% [install]\n")
    install, rest = rest[: rest.index("# %%")], rest[rest.index("# %%") :]
    assert [line for line in lines if line] == [line for line in (first + rest).split("\n") if line]
    assert re.fullmatch(r"from experiments\.notebooks\.install import [\w, ]+\n\n# isort: split\n\n", install)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_the_second_cell_is_the_badge_of_this_notebook(path):
    (kind, text), (_, install) = build.cells(path)[1:3]
    badge, _, sentence = text.partition("\n")
    assert kind == "markdown" and "REPOSITORY" not in text + install and sentence.strip()
    assert badge.endswith(
        f"(https://colab.research.google.com/github/{build.REPOSITORY}/blob/main/experiments/notebooks/{path.stem}.ipynb)"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_the_code_imports_nothing_that_the_wheel_leaves_out(path):
    """In Colab the installed wheel is all there is."""
    code = "\n".join(code_cells(path))
    imported = re.findall(r"^(?:from|import) (experiments\S*)(?: import (.*))?", code, re.MULTILINE)
    assert not any({"benchmarks", "notebooks"} & set(re.split(r"[., ]+", " ".join(names))) for names in imported)


def test_an_edited_cell_leaves_the_ids_of_the_others_alone(tmp_path):
    path = tmp_path / "some.py"

    def ids(source: str) -> list[str]:
        path.write_text(f'"""A source."""\n\n{source}')
        return [cell["id"] for cell in json.loads(build.notebook(path))["cells"]]

    before = ids("# %% [markdown]\n# # Title\n\n# %%\nx = 1\n\n# %%\nx = 1\n")
    after = ids("# %% [markdown]\n# # Another title\n\n# %%\nx = 1\n\n# %%\nx = 1\n")
    assert before[1:] == after[1:] and before[0] != after[0] and len(set(before)) == 3


def run_first_cell(monkeypatch) -> list[tuple[list[str], dict]]:
    """The commands that the first code cell would run; nothing is run."""
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append((command, options)))
    exec(compile(code_cells(QUICKSTART)[0], "first cell", "exec"), {"__name__": "__main__"})
    return commands


def test_in_colab_the_first_cell_installs_beside_its_jax(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    ((command, options),) = run_first_cell(monkeypatch)
    assert command[:6] == [sys.executable, "-m", "pip", "install", "-q", "-c"]
    assert command[7:] == [f"scoresde[experiments,interop] @ git+https://github.com/{build.REPOSITORY}"]
    pinned = Path(command[6]).read_text().split()
    assert pinned == [f"jax=={version('jax')}", f"jaxlib=={version('jaxlib')}"]
    assert options == {"check": True}  # a failed installation stops the notebook where it failed


def test_outside_colab_the_first_cell_installs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)  # not importable
    assert run_first_cell(monkeypatch) == []


def check_quickstart(facts):
    assert facts["figures"] == 6
    # The density of the model is a density: on exact samples it cannot beat the exact one by more than its error.
    assert facts["kl"] > -4 * facts["kl_error"]
    assert facts["kl"] == pytest.approx(facts["exact_mean"] - facts["model_mean"], abs=1e-4)
    assert facts["kl"] < 0.7  # untrained it is above 1
    assert 1.5 < facts["bits_mean"] < 4.0 and 0 < facts["bits_error"] < 0.2  # 17 levels alone: log2 17 = 4.09

    ablation = {(sde, solver): (mean, error) for sde, solver, mean, error in facts["ablation"]}
    sdes, solvers = ("VP", "sub-VP", "VE", "cosine", "flow"), ("euler_maruyama", "predictor_corrector", "ddim")
    assert set(ablation) == {(sde, solver) for sde in sdes for solver in solvers}
    assert all(0 < error < mean < 0.2 for mean, error in ablation.values())
    for sde in sdes:  # the claims of the text that a few seeds can decide
        assert abs(ablation[sde, "euler_maruyama"][0] - facts["floor"]) < 0.05
        mean, error = ablation[sde, "predictor_corrector"]
        assert mean - 2 * error > ablation[sde, "euler_maruyama"][0]
    for solver in ("predictor_corrector", "ddim"):
        assert min(sdes, key=lambda sde: ablation[sde, solver][0]) == "VE"


def check_anomalies(facts):
    assert facts["figures"] == 4
    assert facts["above_the_mode"][-1] == pytest.approx(500, abs=5)  # D/2 nats in 1000 dimensions
    for point, p in facts["p_values"].items():
        mode = point.endswith("the mode")
        assert p["surprise"] == 1 if mode else p["surprise"] > 0.2  # the density calls the mode the most normal point
        assert p["typicality"] < 0.01 if mode else p["typicality"] > 0.2
        assert (p["score norms"] < 0.01) == (mode or point.startswith("flat"))
    assert 0 <= facts["normal_called_atypical"] < 0.3
    for statistic, row in facts["areas"].items():
        assert row["noise"][0] > 0.95, statistic
        assert all(0 <= area <= 1 and error < 0.1 for area, error in row.values())
    temple, flower = (facts["photograph_bits"][name] for name in ("the temple", "the flower"))
    assert 3 < flower[0] < temple[0] < 9  # the photograph that it has not seen is the more probable one
    assert facts["photograph_areas"]["surprise"][0] < 0.35 < 0.5 < facts["photograph_areas"]["typicality"][0]
    assert facts["groups_called_atypical"]["the flower"] > 0.5 > facts["groups_called_atypical"]["the temple"]


def check_inverse_problems(facts):
    assert facts["figures"] == 3
    found = {name: dict(zip(("far", "error", "modes", "share", "share_error"), row, strict=True))
             for name, row in facts["posterior"].items()}  # fmt: skip
    exact, twisted = found["exact"], found["twisted_smc"]
    assert exact["modes"] < 0.08 and abs(exact["share"] - 0.8) < 5 * exact["share_error"]
    assert twisted["modes"] < 0.15 and abs(twisted["far"] - exact["far"]) < 0.15
    approximate = set(found) - {"exact", "twisted_smc"}
    assert all(found[name]["far"] > exact["far"] + 0.05 for name in approximate)
    assert found["tmpd"]["far"] == pytest.approx(found["mmps"]["far"], abs=0.02)  # the same V, inverted in two ways
    assert set(facts["restored"]) == {"in-painting mmps", "super-resolution mmps"}
    for row in facts["restored"].values():
        assert row["error"] < row["before"] and row["error"] < row["error_of_one"]
        assert row["residual"] < 1.5 and 0.2 < row["calibration"] < 3


def check_public_checkpoint(facts):
    assert facts["figures"] == 3
    assert not facts["published"]  # nothing is downloaded with the smoke budget
    assert facts["gap"] < 1e-5 and facts["round_trip"] < 1e-5
    assert facts["evaluations"] == 20 and facts["scheduler"] == "DDPMScheduler"
    assert {"model_index.json", "config.json", "diffusion_pytorch_model.safetensors"} <= set(facts["files"])
    assert 0 < facts["floor"] < facts["distance"] < 0.3
    for mean, error, *others in (facts["flow"], facts["bound"]):
        assert 1.5 < mean < 4.5 and 0 < error < 0.3 and all(0 <= other < 0.2 for other in others)


def check_your_data(facts):
    assert facts["figures"] == 4 and "column 1 (name) holds the text 'anna'" in facts["refused"]
    below = {name: mean for name, (mean, _) in facts["below"].items()}
    errors = {name: error for name, (_, error) in facts["below"].items()}
    assert below["the truth"] == 0
    # the truth is the truth: no model beats it on its own rows by more than chance
    assert all(below[name] >= -5 * errors[name] for name in below)
    assert below["score network"] < below["Gaussian"] and below["Gaussian of unskewed columns"] < below["Gaussian"]
    assert facts["report"][0] == pytest.approx(facts["network_mean"], abs=1e-3)
    assert facts["python"][0] == pytest.approx(facts["report"][0], abs=0.05)  # the same training, twice
    fills = {name: mean for name, (mean, _) in facts["fill_errors"].items()}
    assert max(fills["exact"], fills["score network"]) < fills["median of the column"]
    assert 0.4 < facts["covered"][0] <= 1
    assert facts["sample_medians"] == pytest.approx(facts["row_medians"], abs=0.5)


def check_from_zero(facts):
    assert facts["figures"] == 5
    # What the notebook writes by hand is what the library computes, up to rounding or the tolerance of a solver.
    for name in ("kernel_difference", "score_difference", "loss_difference", "table_difference"):
        assert facts[name] < 1e-5, name
    assert facts["flow_difference"] < 1e-3 and facts["likelihood_difference"] < 1e-3
    # And both are true: moments of the walkers (Euler's own error of 1e-3 beside them), the identity of denoising score
    # matching, the density under the exact score.
    assert max(abs(z) for pair in facts["kernel_z"] for z in pair) < 5.5
    assert abs(facts["gap"]) < 5 * facts["gap_error"] < 0.03
    assert facts["true_error"] < 0.1
    assert facts["score_error"] < 0.1 * facts["score_error_of_wrong"]  # the network has learned
    assert max(facts["distances"]) < 0.2 and -5 * facts["kl_error"] < facts["kl"] < 0.3


def check_solvers(facts):
    assert facts["figures"] == 3 and facts["reference_error"] < 1e-6
    for name, stated, measured in facts["orders"]:  # between 192 and 384 evaluations some are not yet at their order
        assert abs(measured - stated) < 0.6, name
    errors = {name: values for name, *values in facts["errors"]}
    assert all(values[-1] < values[1] for values in errors.values())
    assert min(errors, key=lambda name: errors[name][-1]) in ("UniPC 3", "Adams 3", "LMS 4")
    for name, stated, measured in facts["law_orders"]:
        if (
            name != "predictor–corrector"
        ):  # a corrector of fixed strength takes the law to its own, not to the exact one
            assert abs(measured - stated) < 0.6, name
    for _, proposed, ddim in facts["proposed"][1:]:
        assert proposed < ddim
    floor, floor_error = facts["floor"]
    for _name, *rows in facts["sampled"]:
        assert rows[-1][0] > floor - 5 * (floor_error + rows[-1][1])  # no sampler is nearer to the truth than the truth


def check_likelihood(facts):
    assert facts["figures"] == 3 and facts["after"] < min(0.02, facts["before"])

    def covers(coverage, count, slack=0.0):
        """95 %, up to five standard errors of a share of ``count`` and ``slack`` for intervals that are approximate."""
        return 0.95 - slack - 5 * math.sqrt(0.95 * 0.05 / count) < coverage

    assert len(facts["coverage"]) == 3
    assert all(covers(coverage, facts["points"], 0.03) for _, coverage in facts["coverage"])
    assert covers(facts["mean_coverage"], facts["batches"], 0.02)
    assert covers(facts["bound_coverage"], facts["points"], 0.03)
    assert covers(facts["budget_coverage"], facts["points"], 0.05)
    assert facts["solver_bounded"] > 0.9
    medians = [median for median, _, _ in facts["solver_errors"]]
    assert medians[0] > 10 * medians[-1]  # a tighter tolerance pays
    assert abs(facts["uniform_bits"] - 8) < 1e-5
    raw, repaired = ([row[k] for row in facts["truncation"]] for k in (1, 2))
    assert raw[0] > 10 * raw[-1] and all(r < u for u, r in zip(raw[1:], repaired[1:], strict=True))
    plain, weighted = ([row[k] for row in facts["gaps"]] for k in (1, 2))
    for (mean, error), (closer, closer_error) in zip(plain, weighted, strict=True):
        assert mean > -5 * error and closer > -5 * closer_error - 1e-3  # both are bounds
    assert weighted[-1][0] < 0.5 * plain[-1][0]  # and draws inside the logarithm come closer
    assert abs(facts["lost"][0]) < 5 * facts["lost"][1] + 0.02
    assert abs(facts["bias"][0]) < 0.5 * abs(facts["raw_bias"])


def check_ablation(facts):
    assert facts["figures"] == 1 and len(facts["table"]) == 27
    for values in facts["kl"].values():
        for row in values:
            assert min(row) > -0.05  # a divergence; the held-out points are the same for all
    logs = {tuple(names): mean for *names, mean, half in facts["table"] if half > 0}
    assert len(logs) == 27 and min(logs.values()) < math.log(1000)  # of thousandths of a nat, after 200 steps
    # Theory: the loss of VE is the same under both weights; under weights of the log-SNR the SDEs are one problem.
    for prediction in ("noise", "data", "velocity"):
        assert abs(logs["VE", prediction, "simple"] - logs["VE", prediction, "bound"]) < 0.05
    for weight in ("bound", "EDM"):
        few = [logs[sde, "velocity", weight] for sde in ("VP", "VE", "flow")]
        assert max(few) - min(few) < 0.3
    assert 0 <= sum(facts["shares"].values()) <= 1 + 1e-6


def check_predictor_corrector(facts):
    assert facts["figures"] == 3 and len(facts["result"]) == 20
    result = {tuple(names): (mean, error) for *names, mean, error in facts["result"]}
    for sde in ("VE", "VP"):
        (few, few_error), (both, both_error) = (result[sde, "probability flow", each] for each in ("P, 24", "PC, 24"))
        assert few - 5 * few_error > both + 5 * both_error  # a corrector repairs Euler's probability flow
    poor, good = (result["VE", each, "P, 24"] for each in ("probability flow", "reverse diffusion"))
    assert poor[0] - 5 * poor[1] > good[0] + 5 * good[1]  # which is poor for VE
    alone, _ = result["VE", "corrector only", "C, 48"]
    assert alone > 2 * poor[0]  # and correctors alone are worse than anything


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}


def test_the_facts_of_every_notebook_are_checked():
    assert set(CHECKS) == {path.stem for path in SOURCES}


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_every_cell_runs_and_the_numbers_are_true(path, tmp_path):
    environment = os.environ | {
        "SCORESDE_BUDGET": "smoke",
        "MPLBACKEND": "Agg",
        "XLA_FLAGS": os.environ["GIVEN_XLA_FLAGS"],  # with its optimisations, as a user has it
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    command = [sys.executable, "-c", KERNEL, str(path.with_suffix(".ipynb"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # the notebook leaves no files behind
    CHECKS[path.stem](json.loads(done.stdout.splitlines()[-1]))
