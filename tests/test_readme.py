"""Every command and code block of the README runs, on the bundled network under the names that the README uses."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from precalloc import demo_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = (line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines())
    return [shlex.split(line) for line in lines if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "net.py").write_text("from precalloc.demo_model import build as build\n", encoding="utf-8")
    shutil.copy(demo_model.CALIBRATION, folder / "calib.npz")
    shutil.copy(demo_model.EVALUATION, folder / "eval.npz")
    return folder


def run(arguments, folder):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_readme_opens_with_the_two_commands():
    assert [command[:2] for command in commands()[:2]] == [["make", "demo"], ["make", "test"]]


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_demo_target_runs_the_demo(workplace):
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    assert recipe.group(1) == "precalloc demo"
    result = run(["-m", "precalloc.cli", "demo"], workplace)
    assert result.returncode == 0, result.stderr
    assert "allocated per layer" in result.stdout


def test_commands_run_in_their_order(workplace):
    shown = [command[1:] for command in commands() if command[0] == "precalloc"]
    assert len(shown) >= 7
    for command in shown:
        result = run(["-m", "precalloc.cli", *command], workplace)
        assert result.returncode == 0, (command, result.stderr)
    assert {path.name for path in (workplace / "plan").iterdir()} >= {"kmap.json", "kmap.csv", "report.md"}


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, workplace):
    result = run(["-c", code], workplace)
    assert result.returncode == 0, result.stderr
    assert result.stdout
