"""`profile --estimator` and `allocate --refine` on a small network in a file."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from precalloc import Profile
from precalloc.cli import app

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


def run(command, files, *arguments):
    fixed = (command, f"{files / 'net.py'}:build", "--data", files / "calib.npz", "--hardware", "homodyne-1550nm")
    return CliRunner().invoke(app, [str(argument) for argument in (*fixed, *arguments)])


def test_profile_by_name_of_the_estimator(files):
    out = files / "profile.npz"
    assert run("profile", files, "--out", out, "--estimator", "forward").exit_code == 0
    assert Profile.load(out).provenance.estimator == "forward (layer)"
    result = run("profile", files, "--out", out, "--estimator", "learned")
    assert (result.exit_code, "Learning is for one budget" in result.stderr) == (2, True)
    result = run("profile", files, "--out", out, "--estimator", "guess")
    assert (result.exit_code, "'guess' is unknown" in result.stderr) == (2, True)


def test_allocate_says_what_refinement_won(files):
    result = run("allocate", files, "--out", files / "out", "--budget", "2x", "--refine", "--no-compensate")
    assert result.exit_code == 0, result.output
    assert "held-out calibration examples" in (files / "out" / "report.md").read_text()
    record = json.loads((files / "out" / "kmap.json").read_text())
    assert record["energy_joule"] <= record["budget_joule"] * (1 + 1e-9)
