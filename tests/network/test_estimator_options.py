"""`profile --estimator` and `allocate --refine` on a small network in a file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from precalloc import Hardware, Profile
from precalloc.cli import app
from precalloc.network.estimators import Learned, choose_estimator
from precalloc.refinements import is_promising

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
"""


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "net.py").write_text(NETWORK)
    np.savez(tmp_path / "calib.npz", x=rng.normal(size=(96, 6)).astype(np.float32), y=rng.integers(4, size=96))
    return tmp_path


def run(command, files, *arguments, hardware="homodyne-1550nm"):
    fixed = (command, f"{files / 'net.py'}:build", "--data", files / "calib.npz", "--hardware", hardware)
    return CliRunner().invoke(app, [str(argument) for argument in (*fixed, *arguments)])


def test_profile_by_name_of_the_estimator(files):
    out = files / "profile.npz"
    assert run("profile", files, "--out", out, "--estimator", "forward").exit_code == 0
    assert Profile.load(out).provenance.estimator == "forward (layer)"
    result = run("profile", files, "--out", out, "--estimator", "learned")
    assert (result.exit_code, "Learning is for one budget" in result.stderr) == (2, True)
    result = run("profile", files, "--out", out, "--estimator", "guess")
    assert (result.exit_code, "'guess' is unknown" in result.stderr) == (2, True)


def test_predictions_speak_of_as_many_examples_as_were_asked_for(files):
    out = files / "profile.npz"
    assert run("profile", files, "--out", out, "--prediction-examples", 40).exit_code == 0
    assert len(Profile.load(out).margins.margins) == 40
    arguments = ["allocate", "--profile", str(out), "--budget", "2x", "--out", str(files / "plan")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    predicted = CliRunner().invoke(app, ["predict", "--kmap", str(files / "plan/kmap.json"), "--profile", str(out)])
    assert "predicted for 40 of 96 examples" in predicted.output


@pytest.mark.parametrize("command", ["profile", "allocate"])
def test_learning_is_for_the_budget_and_the_granularity(files, command, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "precalloc.network.estimators.choose_estimator", lambda *given: asked.append(given) or "curvature"
    )
    learning = "--estimator", "learned", "--budget", "2x", "--granularity", "channel"
    assert run(command, files, "--out", files / "out", *learning).exit_code == 0
    assert asked == [("learned", "2x", "channel")]
    assert choose_estimator(*asked[0]) == Learned("2x", "channel")


@pytest.mark.parametrize(("compensation", "steps"), [("--compensate", 12), ("--no-compensate", 20)])
def test_allocate_refines_by_itself_and_says_what_that_won(files, compensation, steps):
    result = run("allocate", files, "--out", files / "out", "--budget", "2x", compensation)
    assert result.exit_code == 0, result.output
    report = (files / "out" / "report.md").read_text()
    assert "held-out calibration examples" in report
    assert f"{steps} steps" in report
    result = run("allocate", files, "--out", files / "plain", "--budget", "2x", compensation, "--no-refine")
    assert result.exit_code == 0, result.output
    report = (files / "plain" / "report.md").read_text()
    assert f"{steps} steps" not in report
    assert "efined" not in report
    record = json.loads((files / "out" / "kmap.json").read_text())
    assert record["energy_joule"] <= record["budget_joule"] * (1 + 1e-9)


@pytest.mark.parametrize(("asked", "refined"), [((), False), (("--refine",), True)])
def test_errors_of_weights_alone_are_refined_only_on_request(files, asked, refined):
    options = ("--out", files / "out", "--budget", "4x", "--no-compensate", "--no-calibrate", *asked)
    result = run("allocate", files, *options, hardware="crossbar-weight")
    assert result.exit_code == 0, result.output
    assert ("held-out calibration examples" in (files / "out" / "report.md").read_text()) == refined


def test_refinement_is_promising_wherever_some_noise_is_each_examples_own():
    weight, shot = (Hardware.load(name) for name in ("crossbar-weight", "homodyne-1550nm"))
    assert not is_promising(weight)
    assert is_promising(replace(weight, noise=weight.noise + shot.noise))


@pytest.mark.parametrize("command", ["allocate", "sweep"])
def test_validation_leaves_out_what_calibration_knows(files, command):
    known, rng = np.load(files / "calib.npz"), np.random.default_rng(1)
    fresh = rng.normal(size=(40, 6)).astype(np.float32)
    labels = rng.integers(4, size=45)
    np.savez(files / "eval.npz", x=np.concatenate([known["x"][7:12], fresh]), y=labels)
    budget = ("--budget", "2x") if command == "allocate" else ("--budgets", "2x,4x", "--no-pictures")
    options = (*budget, "--no-compensate", "--no-calibrate", "--seeds", "1", "--validate")
    result = run(command, files, "--out", files / "out", *options, files / "eval.npz")
    assert result.exit_code == 0, result.output
    told = result.output + "".join(path.read_text() for path in (files / "out").glob("report.md"))
    assert "5 of 45 validation examples are calibration examples too and are left out" in " ".join(told.split())
    np.savez(files / "all.npz", x=known["x"][:50], y=known["y"][:50])
    result = run(command, files, "--out", files / "out", *options, files / "all.npz")
    assert (result.exit_code, "All validation examples" in result.stderr) == (2, True)
