import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from builders import make_profile
from typer.testing import CliRunner

import precalloc
from precalloc import demo_model, workflow
from precalloc.cli import app
from precalloc.hardware import Hardware, NoiseKind
from precalloc.kmaps import KMap
from precalloc.sweep_runs import spread
from precalloc.sweeping import sweep_allocations

HARDWARE = "homodyne-1550nm"


def run(*arguments):
    return CliRunner().invoke(app, ["sweep", *(str(argument) for argument in arguments)])


@pytest.fixture
def profile_file(tmp_path):
    return make_profile(hardware=Hardware.load(HARDWARE)).save(tmp_path / "profile.npz")


def test_sweep_writes_curves_landmarks_and_pictures(profile_file, tmp_path):
    out = tmp_path / "out"
    result = run("--profile", profile_file, "--budgets", "2x:100x:6", "--out", out, "--parquet")
    assert result.exit_code == 0, result.output
    written = {"curve.csv", "curve.parquet", "curve.png", "curve.svg", "landmarks.csv"}
    assert {path.name for path in out.iterdir()} == written
    profile = precalloc.Profile.load(profile_file)
    expected = precalloc.sweep(profile, "2x:100x:6", granularities=("layer", "channel"))
    pd.testing.assert_frame_equal(pd.read_csv(out / "curve.csv"), expected)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "curve.parquet"), expected)
    pd.testing.assert_frame_equal(pd.read_csv(out / "landmarks.csv"), precalloc.landmarks(profile, expected))
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "curve.svg").read_text()
    assert "knee" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if "│" in line) <= 80


def test_several_hardware_share_one_plot(profile_file, tmp_path):
    options = ["--hardware", HARDWARE, "--hardware", "crossbar-thermal", "--granularity", "layer", "--no-pictures"]
    result = run("--profile", profile_file, "--budgets", "2x,8x", "--out", tmp_path / "out", *options, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    record = json.loads(line)
    assert record["rows"] == 4
    frame = pd.read_csv(tmp_path / "out" / "curve.csv")
    assert frame["hardware"].tolist() == [HARDWARE, HARDWARE, "crossbar-thermal", "crossbar-thermal"]
    assert not (tmp_path / "out" / "curve.png").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--hardware", HARDWARE, "--hardware", HARDWARE), "named 'homodyne-1550nm'"),
        (("--validate", "eval.npz"), "give MODEL"),
        (("--data", "calib.npz"), "either --profile or --data"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(profile_file, tmp_path, options, expected):
    result = run("--profile", profile_file, "--budgets", "2x,8x", "--out", tmp_path / "out", *options)
    assert (result.exit_code, expected in result.stderr) == (2, True)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_before_any_work(profile_file, tmp_path, monkeypatch):
    monkeypatch.setattr("precalloc.sweep_runs.find_spec", lambda _: None)
    for option, extra in (("--pictures", "precalloc[plots]"), ("--parquet", "precalloc[parquet]")):
        options = (option,) if option == "--pictures" else (option, "--no-pictures")
        result = run("--profile", profile_file, "--budgets", "2x", "--out", tmp_path / "out", *options)
        assert (result.exit_code, extra in result.stderr) == (2, True)
    assert run("--profile", profile_file, "--budgets", "2x", "--out", tmp_path / "o", "--no-pictures").exit_code == 0


def test_predicting_from_a_profile_starts_without_torch(profile_file, tmp_path):
    arguments = ["sweep", "--profile", str(profile_file), "--budgets", "2x,8x", "--out", str(tmp_path / "out")]
    script = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from precalloc.cli import main\n"
        "try: main()\n"
        "finally: print('LOADED', [m for m in ('torch', 'cvxpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "LOADED []" in done.stdout, done.stderr


def test_simulated_points_are_spread_over_the_budgets():
    allocations = sweep_allocations(make_profile(), "1x:100x:7", granularities=("layer", "channel"))
    assert spread(allocations, 3) == [0, 3, 6, 7, 10, 13]
    assert spread(allocations, 1) == [0, 7]
    assert spread(allocations, 50) == list(range(14))


def demo_arguments(out):
    arguments = ["precalloc.demo_model:build", "--data", demo_model.CALIBRATION, "--validate", evaluation(out.parent)]
    arguments += ["--hardware", HARDWARE, "--hardware", "crossbar-weight", "--budgets", "4x,16x", "--points", "1"]
    return [*arguments, "--granularity", "layer", "--seeds", "1", "--out", out, "--no-pictures"]


def evaluation(folder):
    with np.load(demo_model.EVALUATION) as file:
        np.savez(folder / "eval.npz", **{name: file[name][:40] for name in file.files})
    return folder / "eval.npz"


def test_a_model_is_profiled_once_and_points_are_simulated_once(tmp_path, monkeypatch):
    out, simulated, measured = tmp_path / "out", [], []
    simulate, measure = workflow.simulate, workflow.measure
    monkeypatch.setattr(workflow, "simulate", lambda *a: simulated.append(a[2]) or simulate(*a))
    monkeypatch.setattr(workflow, "measure", lambda *a: measured.append(a[1]) or measure(*a))
    result = run(*demo_arguments(out))
    assert result.exit_code == 0, result.output
    assert len(simulated) == 4  # two hardware, allocated and uniform
    profile = precalloc.Profile.load(out / "profile.npz")
    assert set(profile.kinds) == {NoiseKind.SHOT, NoiseKind.WEIGHT}
    assert profile.hardware == Hardware.load(HARDWARE)
    frame = pd.read_csv(out / "curve.csv")
    assert frame["simulated_accuracy"].notna().tolist() == [True, False, True, False]
    first = frame[frame["simulated_accuracy"].notna()]
    for row, kmap in zip(first.to_dict("records"), simulated[::2], strict=True):
        again = precalloc.validate(demo_model.build(), np.load(tmp_path / "eval.npz"), kmap, seeds=1, batch_size=32)
        assert row["simulated_accuracy"] == again.accuracy
    assert run(*demo_arguments(out)).exit_code == 0
    assert (len(simulated), len(measured)) == (4, 1)
    pd.testing.assert_frame_equal(pd.read_csv(out / "curve.csv"), frame)
    next((out / ".simulated").iterdir()).write_text("{")
    assert "Delete it" in run(*demo_arguments(out)).stderr
    assert len(measured) == 1
    run(*demo_arguments(out), "--seed", 1)
    assert len(measured) == 2


def test_simulated_accuracies_read_back():
    outcomes = np.random.default_rng(0).random((3, 50)) < 0.8
    for score in (outcomes, np.full((3, 50), np.nan)):
        simulated = precalloc.SimulatedAccuracy.from_outcomes(score, np.ones(50))
        record = json.loads(json.dumps(simulated.to_record(), allow_nan=False))
        assert str(precalloc.SimulatedAccuracy.from_record(record)) == str(simulated)
    with pytest.raises(KeyError):
        precalloc.SimulatedAccuracy.from_record({})


def test_digest_is_the_same_in_every_process(profile_file):
    script = (
        "import sys, precalloc; profile = precalloc.Profile.load(sys.argv[1]);"
        "hardware = precalloc.Hardware.load('crossbar-thermal');"
        "print(precalloc.allocate(profile, '9x', hardware=hardware).kmap().digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, profile_file], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "123"
    }  # fmt: skip
    assert len(digests) == 1


def test_digest_tells_kmaps_apart():
    profile = make_profile()
    kmaps = [precalloc.allocate(profile, budget).kmap() for budget in ("9x", "10x")]
    digests = {kmap.digest for kmap in kmaps}
    other = KMap(kmaps[0].granularity, Hardware.load("crossbar-thermal"), kmaps[0].repetitions, kmaps[0].ranges)
    assert len(digests | {other.digest}) == 3
