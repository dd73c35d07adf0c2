"""The committed notebooks: run whole, without errors, logic or traces of a machine; `make notebooks` runs them anew."""

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Absolute paths of common systems; 'src="/..."' or a fraction such as '1/2' is none.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|work|mnt|Users|private)/|[A-Z]:\\\\Users")


def code_cells(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in record["cells"] if cell["cell_type"] == "code"]


def test_the_four_notebooks_are_there():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"quickstart", "energy_accuracy_sweep", "your_hardware", "transformer"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_without_complaint(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_logic_in_notebooks(path):
    logic = ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.If, ast.Try
    for cell in code_cells(path):
        assert not [node for node in ast.walk(ast.parse("".join(cell["source"]))) if isinstance(node, logic)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_paths_of_a_machine(path):
    found = MACHINE_PATH.findall(path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks(path):
    targets = re.findall(r"\]\(([^)]*\.ipynb)\)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).is_file()] == []
