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


def part_of(source, folder, name, size):
    with np.load(source) as file:
        np.savez(folder / name, **{key: file[key][:size] for key in file.files})
    return folder / name


def demo_arguments(out, *hardware):
    """Demo network on few images, with one of two budgets simulated."""
    calibration = part_of(demo_model.CALIBRATION, out.parent, "calib.npz", 48)
    evaluation = part_of(demo_model.EVALUATION, out.parent, "eval.npz", 40)
    arguments = ["precalloc.demo_model:build", "--data", calibration, "--validate", evaluation]
    for name in hardware:
        arguments += ["--hardware", name]
    arguments += ["--budgets", "4x,16x", "--points", "1", "--granularity", "layer", "--seeds", "1"]
    return [*arguments, "--out", out, "--no-pictures"]


@pytest.fixture
def small(tmp_path):
    return demo_arguments(tmp_path / "out", HARDWARE)


def recorded(monkeypatch, name):
    """Calls of a function of ``workflow``, which still does its work."""
    calls, original = [], getattr(workflow, name)
    monkeypatch.setattr(workflow, name, lambda *a: calls.append(a) or original(*a))
    return calls


def test_a_model_is_profiled_once_and_points_are_simulated_once(tmp_path, monkeypatch):
    out, arguments = tmp_path / "out", demo_arguments(tmp_path / "out", HARDWARE, "crossbar-weight")
    simulated, measured = recorded(monkeypatch, "simulate"), recorded(monkeypatch, "measure")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert len(simulated) == 4  # two hardware, allocated and uniform
    profile = precalloc.Profile.load(out / "profile.npz")
    assert set(profile.kinds) == {NoiseKind.SHOT, NoiseKind.WEIGHT}
    assert profile.hardware == Hardware.load(HARDWARE)
    frame = pd.read_csv(out / "curve.csv")
    assert frame["simulated_accuracy"].notna().tolist() == [True, False, True, False]
    first = frame[frame["simulated_accuracy"].notna()]
    for row, call in zip(first.to_dict("records"), simulated[::2], strict=True):
        again = precalloc.validate(demo_model.build(), np.load(tmp_path / "eval.npz"), call[2], seeds=1, batch_size=32)
        assert row["simulated_accuracy"] == again.accuracy
    assert run(*arguments).exit_code == 0
    assert (len(simulated), len(measured)) == (4, 1)
    pd.testing.assert_frame_equal(pd.read_csv(out / "curve.csv"), frame)
    next((out / ".simulated").iterdir()).write_text("{")
    assert "Delete it" in run(*arguments).stderr
    assert len(measured) == 1
    run(*arguments, "--seed", 1, "--no-calibrate", "--no-compensate")
    assert len(measured) == 2


def test_curves_are_calibrated_and_points_compensated_as_by_allocate_before_it_refines(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    simulated, calibrated = recorded(monkeypatch, "simulate"), recorded(monkeypatch, "calibrate")
    result = run(*small)
    assert result.exit_code == 0, result.output
    assert "linearised noise alone" not in result.stdout
    row = pd.read_csv(out / "curve.csv").iloc[0]
    given = [*small[:7], "--budget", "4x", "--no-refine", *small[-5:-1]]  # model, data, hardware; seeds and out
    given[given.index(out)] = tmp_path / "alone"
    alone = CliRunner().invoke(app, ["allocate", *map(str, given)])
    assert alone.exit_code == 0, alone.output
    allocation = precalloc.Allocation.load(tmp_path / "alone" / "kmap.json")
    assert len(calibrated) == 2  # once for both budgets, and once by 'allocate'
    assert (row["accuracy"], row["accuracy_low"]) == (allocation.predicted.accuracy, allocation.predicted.accuracy_low)
    assert [each[2].digest for each in simulated[:2]] == [each[2].digest for each in simulated[2:]]
    assert simulated[0][2].bias_corrections
    assert row["simulated_accuracy"] == allocation.simulated.accuracy


def test_nothing_is_calibrated_or_compensated_twice(small, tmp_path, monkeypatch):
    assert run(*small).exit_code == 0
    before = pd.read_csv(tmp_path / "out" / "curve.csv")
    calls = [recorded(monkeypatch, name) for name in ("calibrate", "simulate")]
    monkeypatch.setattr("precalloc.network.compensation.compensate", None)
    assert run(*small).exit_code == 0
    assert calls == [[], []]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "curve.csv"), before)


def test_options_leave_calibration_and_compensation_out(small, tmp_path, monkeypatch):
    simulated = recorded(monkeypatch, "simulate")
    result = run(*small, "--no-calibrate", "--no-compensate")
    assert result.exit_code == 0, result.output
    assert all(not each[2].bias_corrections for each in simulated)
    assert "linearised noise alone" in result.stdout
    profile = precalloc.Profile.load(tmp_path / "out" / "profile.npz")
    expected = precalloc.sweep(profile, "4x,16x", hardware=Hardware.load(HARDWARE))
    assert pd.read_csv(tmp_path / "out" / "curve.csv")["accuracy"].tolist() == expected["accuracy"].tolist()
    result = run(*small, "--calibrate", "--no-compensate")
    assert "linearised noise alone" not in result.stdout
    (kept,) = (tmp_path / "out" / ".calibrated").iterdir()
    assert json.loads(kept.read_text())["result"]["compensated"] is False


def test_other_data_than_the_profiles_is_refused(small, tmp_path):
    assert run(*small, "--no-calibrate", "--no-compensate").exit_code == 0
    other = ["--profile", tmp_path / "out" / "profile.npz", *small]
    other[other.index(tmp_path / "calib.npz")] = demo_model.CALIBRATION
    for option in ("--no-calibrate", "--no-compensate"):
        result = run(*other, option)
        assert (result.exit_code, "profile" in result.stderr) == (2, True)


@pytest.mark.parametrize("option", ["--calibrate", "--compensate"])
def test_a_profile_alone_cannot_be_calibrated_or_compensated(profile_file, tmp_path, option):
    result = run("--profile", profile_file, "--budgets", "2x", "--out", tmp_path / "out", option)
    assert (result.exit_code, f"{option} simulates the model" in result.stderr) == (2, True)


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


def test_simulated_points_without_calibration_data_say_that_they_are_not_compensated(small, tmp_path):
    assert run(*small, "--no-calibrate", "--no-compensate").exit_code == 0
    without = [each for each in small if each not in ("--data", tmp_path / "calib.npz")]
    result = run(*without, "--profile", tmp_path / "out" / "profile.npz")
    assert result.exit_code == 0, result.output
    assert "Note: 2 of 2 simulated K maps are not compensated" in result.stdout
