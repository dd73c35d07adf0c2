"""Registry of multiply-accumulate operators, by the name that `operator_name` gives."""

from __future__ import annotations

from collections.abc import Callable

from precalloc.network.contractions import (
    parse_addbmm,
    parse_addmm,
    parse_einsum,
    parse_inner,
    parse_matmul,
    parse_rmatmul,
    parse_tensordot,
)
from precalloc.network.convolutions import parse_conv, parse_conv_transpose, parse_linear
from precalloc.network.operators import Call, Product

PARSERS: dict[str, Callable[[Call], Product | None]] = {
    "linear": parse_linear,
    "conv1d": parse_conv,
    "conv2d": parse_conv,
    "conv3d": parse_conv,
    "conv_transpose1d": parse_conv_transpose,
    "conv_transpose2d": parse_conv_transpose,
    "conv_transpose3d": parse_conv_transpose,
    "matmul": parse_matmul,
    "mm": parse_matmul,
    "bmm": parse_matmul,
    "mv": parse_matmul,
    "dot": parse_matmul,
    "vdot": parse_matmul,
    "__rmatmul__": parse_rmatmul,
    "addmm": parse_addmm,
    "addmv": parse_addmm,
    "baddbmm": parse_addmm,
    "addbmm": parse_addbmm,
    "inner": parse_inner,
    "tensordot": parse_tensordot,
    "einsum": parse_einsum,
}

_SAME = {"__matmul__": "matmul", "linalg_matmul": "matmul"}


def canonical_name(name: str) -> str:
    """Registered name of an operator: of its aliases, and of the variant that works in place."""
    name = _SAME.get(name, name)
    in_place = name.endswith("_") and not name.endswith("__") and name[:-1] in PARSERS
    return name[:-1] if in_place else name


def parse_product(call: Call) -> Product | None:
    """Bring a call into canonical form; None where it is no supported product of dense real numbers."""
    parser = PARSERS.get(call.name)
    return None if parser is None else parser(call)
