import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from builders import make_hardware, make_profile
from typer.testing import CliRunner

from benchmarks.bench_startup import synthetic_profile
from precalloc.allocation import Allocation
from precalloc.cli import app
from precalloc.example_prediction import predict
from precalloc.hardware import Hardware
from precalloc.kmaps import KMap
from precalloc.profiles import Profile

HEAVY = ("torch", "pandas", "cvxpy", "scipy.stats", "scipy.optimize", "matplotlib")


@pytest.fixture
def profile_file(tmp_path):
    return make_profile().save(tmp_path / "profile.npz")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def allocate(profile_file, *arguments, hardware="homodyne-1550nm"):
    out = profile_file.parent / "out"
    return run("allocate", "--profile", profile_file, "--hardware", hardware, "--out", out, *arguments), out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--budget", "15x"),
        ("--budget", "20 aJ/MAC"),
        ("--max-drop", "0.05"),
        ("--budget", "15x", "--granularity", "channel"),
    ],
)
def test_allocate_writes_its_results(profile_file, arguments):
    result, out = allocate(profile_file, *arguments)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["kmap.csv", "kmap.json", "report.html", "report.md"]
    record = json.loads((out / "kmap.json").read_text())
    assert record["energy_joule"] <= record["budget_joule"] * (1 + 1e-12)
    assert set(KMap.load(out / "kmap.json").repetitions) == {f"block{i}.conv" for i in range(4)}
    assert "block0.conv" in result.output
    assert "allocated per" in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--budget", "0.01x"), "least K"),
        (("--budget", "3 parsec"), "3 parsec"),
        (("--max-drop", "0.000001"), "cannot be promised"),
        ((), "either --budget"),
        (("--budget", "15x", "--max-drop", "0.1"), "either --budget"),
        (("--budget", "15x", "--validate", "eval.npz"), "give MODEL"),
        (("--budget", "15x", "--data", "calib.npz"), "either --profile or --data"),
        (("--budget", "15x", "--compensate"), "--compensate simulates the model"),
        (("--budget", "15x", "--refine"), "--refine runs the model"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(profile_file, arguments, expected):
    result, out = allocate(profile_file, *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_hardware_is_that_of_the_profile_unless_named(profile_file):
    out = profile_file.parent / "out"
    result = run("allocate", "--profile", profile_file, "--budget", "15x", "--out", out)
    assert result.exit_code == 0, result.output
    assert KMap.load(out / "kmap.json").hardware == make_hardware()
    allocate(profile_file, "--budget", "15x")
    assert KMap.load(out / "kmap.json").hardware == Hardware.load("homodyne-1550nm")
    result = run("allocate", "net.py:build", "--data", "calib.npz", "--budget", "15x", "--out", out)
    assert (result.exit_code, "Give --hardware" in result.stderr) == (2, True)


def test_other_mistakes(profile_file):
    result, _ = allocate(profile_file, "--budget", "15x", hardware="homodyne")
    assert result.exit_code == 2
    assert "homodyne-1550nm" in result.stderr
    result = run(
        "allocate", "--profile", "nowhere.npz", "--hardware", "homodyne-1550nm", "--budget", "1x", "--out", "x"
    )
    assert (result.exit_code, "nowhere.npz does not exist" in result.stderr) == (2, True)
    assert run("allocate", "--hardware", "homodyne-1550nm", "--budget", "15x", "--out", "x").exit_code == 2
    assert run("allocate").exit_code == 2
    assert run("nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("profile", "net.py:build", "--data", "calib.npz", "--out", "p.npz"), "Missing option '--hardware'"),
        (("allocate", "--granularity", "row", "--out", "x"), "'row' is not one of 'layer', 'channel'"),
        (("allocate", "--bugdet", "3"), "--budget"),
        (("alocate",), "allocate"),
        (("hardware", "shw"), "show"),
    ],
)
def test_unreadable_options_are_one_line_too(arguments, expected):
    result = run(*arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "--help" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_interruption_exits_with_130(profile_file, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("precalloc.allocator.allocate", interrupted)
    result, _ = allocate(profile_file, "--budget", "15x")
    assert result.exit_code == 130
    assert "to resume" in result.stderr


def test_unexpected_errors_are_not_swallowed(profile_file, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr("precalloc.allocator.allocate", broken)
    result, _ = allocate(profile_file, "--budget", "15x")
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize("arguments", [("hardware",), ("hardware", "list")])
def test_hardware_lists_presets(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert "crossbar-thermal" in result.output


def test_hardware_shown_reads_back(tmp_path):
    result = run("hardware", "show", "crossbar-weight")
    (tmp_path / "mine.toml").write_text(result.output)
    assert Hardware.load(tmp_path / "mine.toml") == Hardware.load("crossbar-weight")


def test_allocating_from_a_profile_imports_nothing_heavy(tmp_path):
    """Of the network that `benchmarks/bench_startup.py` times."""
    profile_file = synthetic_profile().save(tmp_path / "profile.npz")
    arguments = ["allocate", "--profile", str(profile_file), "--budget", "15x"]
    arguments += ["--out", str(profile_file.parent / "out")]
    script = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from precalloc.cli import main\n"
        "try: main()\n"
        f"finally: print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


def test_errors_of_the_installed_program_have_no_traceback(tmp_path):
    script = "from precalloc.cli import main; main()"
    arguments = ["validate", "m.py:f", "--data", "x.npz", "--kmap", str(tmp_path / "none.json")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.json does not exist" in done.stderr


def test_predict_tells_what_python_tells(profile_file):
    out = allocate(profile_file, "--budget", "15x")[1]
    arguments = ("predict", "--kmap", out / "kmap.json", "--profile", profile_file)
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "predicted for 300 examples" in shown.output
    assert "linearised noise alone" in shown.output
    record = json.loads(run(*arguments, "--json").stdout)
    allocation, examples = Allocation.load(out / "kmap.json"), Profile.load(profile_file)
    for name in ("allocated", "uniform"):
        assert record[name] == asdict(predict(allocation, examples, uniform=name == "uniform"))
    assert record["allocated"]["drop"] > 0.01


def test_predict_refuses_examples_of_another_model_in_one_line(profile_file, tmp_path):
    out = allocate(profile_file, "--budget", "15x")[1]
    profile = make_profile()
    other = replace(profile, provenance=replace(profile.provenance, model_hash="other")).save(tmp_path / "other.npz")
    result = run("predict", "--kmap", out / "kmap.json", "--profile", other)
    assert result.exit_code == 2
    assert "another model" in result.stderr
    assert result.stderr.count("\n") == 1
