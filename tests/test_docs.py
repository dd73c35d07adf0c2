"""Every command and code block of the README and the documentation runs, on the bundled network and its data."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import precalloc.errors
import solvers
from docs.extensions.generated import command_line, public_names
from precalloc import demo_model
from precalloc.cli import app

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
GENERATED = ROOT / "docs" / "reference" / "cli.md"
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path != GENERATED)]
NET = "from precalloc.demo_model import build as build\n"

BLOCK = re.compile(r"^```(?P<language>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# Of the site's builder, which checks them itself.
MARKUP = {"{toctree}", "{eval-rst}", "{include} ../../solvers/README.md", "{glossary}"}


class Block(NamedTuple):
    language: str
    text: str
    where: str


def blocks(page):
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["language"].strip(), match["text"], f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}")
        for match in BLOCK.finditer(text)
    ]


def commands(block):
    lines = (line.partition("#")[0].strip() for line in block.text.splitlines())
    return [shlex.split(line) for line in lines if line]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the pages start from: the bundled network and some of its data under their names there, profiled once."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    # Fewer calibration images than this cannot promise the drop of two points that the pages ask for.
    for name, source, size in (("calib", demo_model.CALIBRATION, 120), ("eval", demo_model.EVALUATION, 40)):
        np.savez(folder / f"{name}.npz", **{key: values[:size] for key, values in np.load(source).items()})
    hardware = precalloc.Hardware.load("homodyne-1550nm")
    precalloc.profile(demo_model.build(), dict(np.load(folder / "calib.npz")), hardware).save(folder / "profile.npz")
    return folder


@pytest.fixture
def workplace(measured, tmp_path, monkeypatch):
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    yield tmp_path
    sys.modules.pop("net", None)


def run_command(command, where):
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", MAKEFILE, re.MULTILINE), f"{where}: the Makefile has no such target"
        return
    assert command[0] == "precalloc", f"{where}: {command} is no command that can be tested"
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, f"{where}: {command}: {result.output} {result.exception!r}"


def run_block(block, namespace, capsys):
    match block.language:
        case "sh":
            for command in commands(block):
                run_command(command, block.where)
        case "python":
            capsys.readouterr()
            exec(compile(block.text, block.where, "exec"), namespace)
            assert capsys.readouterr().out, f"{block.where} shows nothing"
        case "toml":
            Path("hardware.toml").write_text(block.text, encoding="utf-8")
            precalloc.Hardware.load("hardware.toml")
        case "{code-block} python":
            assert block.text == f":caption: net.py\n\n{NET}", f"{block.where} is not the file that the pages use"
        case _:
            assert block.language in MARKUP, f"{block.where}: blocks of {block.language!r} are not tested"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("workplace")
def test_blocks_run_in_their_order(page, capsys):
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        run_block(block, namespace, capsys)


def test_readme_opens_with_the_two_commands():
    first = next(block for block in blocks(PAGES[0]) if block.language == "sh")
    assert [command[:2] for command in commands(first)] == [["make", "demo"], ["make", "test"]]


def test_demo_target_runs_the_demo(workplace, monkeypatch):
    monkeypatch.setattr(demo_model, "CALIBRATION", workplace / "calib.npz")
    monkeypatch.setattr(demo_model, "EVALUATION", workplace / "eval.npz")
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/(.*)$", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    result = CliRunner().invoke(app, shlex.split(recipe.group(1))[1:])
    assert result.exit_code == 0, result.output
    assert "allocated per layer" in result.output
    assert {"kmap.json", "kmap.csv", "report.md"} <= {path.name for path in (workplace / "precalloc-demo").iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_and_make_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert [target for target in missing if (page.parent / target).resolve() != GENERATED] == []
    assert [name for name in re.findall(r"`make ([a-z]+)`", text) if f"\n{name}:" not in MAKEFILE] == []


def walk(command, path):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}")


def test_command_line_reference_covers_every_command_and_option():
    page = command_line()
    described = list(walk(typer.main.get_command(app), "precalloc"))
    assert len(described) >= 9
    for path, command in described[1:]:
        section = re.search(rf"^#+ `{path}`\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, path
        for parameter in command.params:
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
            assert all(re.search(rf"^\* `[^`]*{name}\b", section[1], re.MULTILINE) for name in names), (path, names)
            assert (parameter.help or "") in section[1], (path, names)


@pytest.mark.parametrize("package", [precalloc, solvers], ids=lambda package: package.__name__)
def test_api_reference_covers_every_public_name(package):
    pages = ("api.md", "solvers.md")
    text = public_names() + "".join((ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") for page in pages)
    documented = set(re.findall(rf"^\.\. auto\w+:: {package.__name__}\.(\w+)$", text, re.MULTILINE))
    errors = {name for name in vars(precalloc.errors) if "automodule:: precalloc.errors" in text}
    assert {name for name in package.__all__ if not name.startswith("__")} <= documented | errors
