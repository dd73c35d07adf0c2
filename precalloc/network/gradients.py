"""Gradients of all products' outputs by one backward pass, of which none is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from precalloc.network.observation import Call

Visit = Callable[[int, Tensor], None]


def visit_gradients(
    target: Tensor, calls: Sequence[Call], weights: Sequence[Tensor], visit: Visit
) -> Sequence[Tensor | None]:
    """Call ``visit(index, gradient)`` with the gradient of every call's output as the backward pass comes upon it.

    No gradient is kept, so that their memory serves again and is still in the cache. Calls come in the order of the
    backward pass; those that have no influence do not come. Returns the gradients of ``weights``.
    """
    first = [] if weights else _entrances(calls)
    handles = [
        call.edge.node.register_prehook(_visiting(call, index, visit))
        for index, call in enumerate(calls)
        if index not in first
    ]
    targets: list[Any] = [*weights, *(calls[index].edge for index in first)]
    try:
        gradients = torch.autograd.grad(target, targets, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for index, gradient in zip(first, gradients[len(weights) :], strict=True):
        if gradient is not None:
            visit(index, gradient)
    return gradients[: len(weights)]


def _visiting(call: Call, index: int, visit: Visit) -> Callable[[tuple[Tensor | None, ...]], None]:
    def hook(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[call.edge.output_nr]
        if gradient is not None:
            visit(index, gradient)

    return hook


def _entrances(calls: Sequence[Call]) -> list[int]:
    """Calls from whose output no gradient goes on to an earlier call: a backward pass to them passes all others."""
    nodes, passed = {call.edge.node for call in calls}, set[Node]()
    return [index for index, call in enumerate(calls) if not _leads_to_any(call.edge.node, nodes, passed)]


def _leads_to_any(start: Node, nodes: set[Node], passed: set[Node]) -> bool:
    """Whether any of the nodes is upstream of ``start``; nodes that ``passed`` holds lead to none."""
    waiting, seen = [start], set[Node]()
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node in nodes:
                return True
            if node is not None and node not in passed and node not in seen:
                seen.add(node)
                waiting.append(node)
    passed |= seen
    return False
