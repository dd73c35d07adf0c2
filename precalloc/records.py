"""Values as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping


def plain(value: object) -> object:
    """Give dictionaries, lists and numbers as JSON holds them: tuples as lists, what is no finite number as None.

    >>> plain({"ends": (1.0, float("nan"))})
    {'ends': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
