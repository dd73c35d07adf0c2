import json
import logging
import re
import shutil

import pytest
from builders import make_profile
from typer.testing import CliRunner

import precalloc
from precalloc import demo_model
from precalloc.cli import app
from precalloc.cli.terminal import Terminal
from precalloc.console import standard_console
from precalloc.hardware import Hardware

MODEL = "precalloc.demo_model:build"


@pytest.fixture
def folder(tmp_path):
    make_profile(hardware=Hardware.load("homodyne-1550nm")).save(tmp_path / "profile.npz")
    return tmp_path


def run(*arguments, **environment):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def allocate(folder, *options, **environment):
    arguments = ["--profile", folder / "profile.npz", "--budget", "15x", "--out", folder / "out"]
    return run("allocate", *arguments, *options, **environment)


def test_json_is_one_line_with_headline_and_paths(folder):
    result = allocate(folder, "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    record, kmap = json.loads(line), json.loads((folder / "out" / "kmap.json").read_text())
    assert record["allocated"]["predicted"] == kmap["predicted"]
    assert record["uniform"]["energy_joule"] == kmap["uniform"]["energy_joule"]
    assert (record["saving"], record["gap"]) == (kmap["saving"], kmap["gap"])
    assert sorted(record["files"]) == sorted(str(path) for path in (folder / "out").iterdir())


def test_sites_and_validate_speak_json(folder):
    sites = json.loads(run("sites", MODEL, "--data", demo_model.CALIBRATION, "--json").stdout)
    assert sites["sites"][0]["name"] == "stem.conv"
    profile = precalloc.Profile.load(folder / "profile.npz")
    precalloc.Report.of(precalloc.allocate(profile, "15x")).save(folder)
    result = run("validate", MODEL, "--data", demo_model.EVALUATION, "--kmap", folder / "kmap.json", "--json")
    assert (result.exit_code, result.stdout) == (2, "")  # a K map of another network: errors stay on standard error
    assert "another network" in result.stderr


def test_quiet_prints_nothing_and_still_works(folder):
    result = allocate(folder, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (folder / "out" / "report.html").exists()
    shutil.rmtree(folder / "out")
    result = run("allocate", "--profile", folder / "none.npz", "--budget", "1x", "--out", folder / "out", "--quiet")
    assert (result.exit_code, "does not exist" in result.stderr) == (2, True)


def test_verbose_logs_on_standard_error_and_only_then(folder):
    result = allocate(folder, "--verbose", "--json")
    assert len(result.stdout.splitlines()) == 1
    assert re.search(r"^\d\d:\d\d:\d\d precalloc\.allocator: 15x: damage [\d.e-]+, lower bound", result.stderr, re.M)
    assert allocate(folder).stderr == ""
    assert logging.getLogger("precalloc").handlers == []


def test_coming_work_is_announced_on_a_terminal(folder, capsys, monkeypatch):
    arguments = ["profile", MODEL, "--data", demo_model.EVALUATION, "--hardware", "crossbar-thermal"]
    arguments += ["--out", folder / "new.npz"]
    result = run(*arguments, FORCE_COLOR="1")
    assert result.exit_code == 0
    assert "Profiling for thermal noise: one pass over 500 examples." in result.stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    Terminal(quiet=True).announce("work")
    assert capsys.readouterr().err == ""


def test_every_part_of_the_demo_is_announced_in_order(tmp_path):
    result = run("demo", "--out", tmp_path / "out", FORCE_COLOR="1")
    assert result.exit_code == 0
    parts = (
        "Profiling for shot noise",
        "Calibrating predictions",
        "Compensating the allocation and uniform K.",
        "Refining: 12 noisy passes of 12 examples with gradients, and a comparison on up to 256 held-out ones.",
        "Comparing the allocation with uniform K",
        "Simulating",
    )
    told = " ".join(result.stderr.split())
    places = [told.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(("environment", "coloured"), [({"NO_COLOR": "1"}, False), ({}, True)])
def test_colour_is_for_terminals_that_want_it(environment, coloured, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"FORCE_COLOR": "1", "TERM": "xterm-256color"} | environment).items():
        monkeypatch.setenv(name, value)
    assert standard_console().no_color is not coloured
    assert standard_console().is_terminal


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_offered(shell):
    assert "--install-completion" in run("--help").stdout
    result = CliRunner().invoke(app, [], prog_name="precalloc", env={"_PRECALLOC_COMPLETE": f"source_{shell}"})
    assert "_PRECALLOC_COMPLETE" in result.stdout
