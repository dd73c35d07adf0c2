import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import precalloc

TORCH = {"profile", "sites", "validate"}


@pytest.mark.parametrize("name", sorted(set(precalloc.__all__) - TORCH))
def test_exports_exist(name):
    assert getattr(precalloc, name) is not None
    assert name in dir(precalloc)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = precalloc.nonsense


def test_importing_the_package_is_cheap():
    script = "import sys, precalloc; print([m for m in ('numpy', 'torch', 'pandas', 'pint') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert precalloc.__version__ == project["version"]
