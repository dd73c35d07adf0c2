"""The examples of solvers/README.md run as written."""

import doctest
from pathlib import Path

import solvers


def test_the_examples_of_the_page_run():
    page = Path(solvers.__file__).parent / "README.md"
    outcome = doctest.testfile(str(page), module_relative=False)
    assert outcome.attempted >= 20
    assert outcome.failed == 0
