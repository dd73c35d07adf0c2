"""What an installed package must hold, and what importing it must not cost."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_by(code):
    """Names of the top-level modules that are loaded after running ``code`` in a fresh interpreter."""
    report = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("module", ["precalloc", "precalloc.hardware", "precalloc.profiles"])
def test_value_types_start_without_heavy_imports(module):
    assert imported_by(f"import {module}").isdisjoint({"torch", "cvxpy", "pandas", "scipy", "pint", "pydantic"})


def test_presets_load_without_torch():
    code = "from precalloc.hardware import Hardware; Hardware.load('homodyne-1550nm')"
    loaded = imported_by(code)
    assert "pint" in loaded  # the probe sees what is imported inside functions
    assert loaded.isdisjoint({"torch", "cvxpy", "pandas"})  # pint imports scipy's top level, which is quick


def test_solvers_know_neither_torch_nor_precalloc():
    assert imported_by("import solvers").isdisjoint({"torch", "precalloc"})


@pytest.fixture(scope="module")
def wheel_contents(tmp_path_factory):
    """Files that setuptools puts into the packages, built from a copy since it leaves traces where it builds."""
    copy = tmp_path_factory.mktemp("source")
    for package in ("precalloc", "solvers"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").touch()
    subprocess.run(
        [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "build_py", "--build-lib", "built"],
        cwd=copy, check=True, capture_output=True,
    )  # fmt: skip
    built = copy / "built"
    return {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()}


@pytest.mark.parametrize("package", ["precalloc", "solvers"])
def test_packages_are_typed(package, wheel_contents):
    assert f"{package}/py.typed" in wheel_contents


@pytest.mark.parametrize("package", ["precalloc", "solvers"])
def test_every_file_of_a_package_is_in_the_wheel(package, wheel_contents):
    files = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    present = {str(path.relative_to(ROOT)) for path in files}
    assert {Path(name).suffix for name in present} - {".py"}
    assert present - wheel_contents == set()


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", entry)[0].lower().replace("_", "-") for entry in wanted} - {"precalloc"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names - pinned == set()
