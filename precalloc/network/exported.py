"""Programs of `torch.export`, saved as ``.pt2``, without running anything that a file could smuggle in.

`torch.export.load` warns that it unpickles. A file is therefore looked through first: its weights must be stored as
plain bytes and its sample inputs must unpickle with tensors alone (``weights_only``), its symbolic sizes must be
arithmetic, and its graph may call operators only. What `torch.export.save` writes of a network satisfies all of it.
"""

from __future__ import annotations

import inspect
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from precalloc.errors import ModelError
from precalloc.network.replay import Replay

# sympy evaluates these texts as Python. Its own names begin with a capital letter and symbols end in a number;
# functions of Python, attributes and longer strings find no way in.
_ARITHMETIC = re.compile(r"(?:[A-Z]\w*|[a-z]+\d+|[a-z]+=(?=True|False)|'\w+'|\d+|[\s+\-*/%(),<>=&|~!])*")
_OPERATOR_MODULES = ("_operator", "math")


def load_exported(path: Path) -> nn.Module:
    """Load a program that `torch.export.save` wrote.

    Raises
    ------
    ModelError
        If the file is missing or no such program, or would run more than operators of torch.
    """
    if not path.is_file():
        raise ModelError(f"Exported program {path} does not exist. Check the path.")
    content = path.read_bytes()
    try:
        _require_plain(path, zipfile.ZipFile(io.BytesIO(content)))
        program = torch.export.load(io.BytesIO(content))
    except ModelError:
        raise
    except Exception as error:  # zip, JSON, schema and torch's own errors alike
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ModelError(
            f"{path} cannot be read as an exported program ({reason}). Export and save it anew."
        ) from error
    _require_operators(path, program)
    return as_module(program)


def as_module(program: ExportedProgram) -> nn.Module:
    """Give the program as a module of the original's structure, batch norms folded."""
    # Guards are code that a file could bring along, and more than a model needs to run.
    options = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    graph = program.module(**options)
    assert isinstance(graph, fx.GraphModule)
    return Replay(graph)


def _require_plain(path: Path, archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        folder = name.partition("/")[2]
        if folder.startswith(("data/weights/", "data/constants/")) and name.endswith("_config.json"):
            entries = json.loads(archive.read(name))["config"]
            pickled = [key for key, entry in entries.items() if entry["use_pickle"]]
            if pickled:
                raise ModelError(f"{path} holds pickled objects ({', '.join(pickled[:3])}), which are not read.")
        elif folder.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
            raise ModelError(f"{path} is of an old format with pickled weights, which are not read. Export it anew.")
        elif folder.startswith("data/sample_inputs/"):
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        elif folder.startswith("models/"):
            for expression in _expressions(json.loads(archive.read(name))):
                if not _ARITHMETIC.fullmatch(expression):
                    raise ModelError(f"{path} has a size '{expression[:40]}' that is no arithmetic. Export it anew.")
    if not any(name.partition("/")[2].startswith("models/") for name in archive.namelist()):
        raise ModelError(f"{path} holds no exported program. Save one with torch.export.save of PyTorch 2.8 or later.")


def _expressions(node: Any) -> Iterator[str]:
    """All symbolic expressions of a serialised program."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "expr_str":
                yield str(value)
            else:
                yield from _expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from _expressions(value)


def _require_operators(path: Path, program: ExportedProgram) -> None:
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            target = node.target
            if node.op != "call_function" or isinstance(target, torch._ops.OperatorBase):
                continue
            if getattr(target, "__module__", None) not in _OPERATOR_MODULES and target not in _SYMBOLIC:
                raise ModelError(f"{path} calls '{target}', which is no operator of torch. It is not run.")


_SYMBOLIC = (torch.sym_int, torch.sym_float, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_ite)
