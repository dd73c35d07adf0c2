"""Replay of an exported graph within the module calls that it was traced from.

`ExportedProgram.module()` runs one flat graph. Here its nodes run inside (empty) modules of the original names, entered
and left as the original's were, so that hooks, and with them the names of sites, see the original structure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._pytree import tree_flatten_spec
from torch.fx.node import map_arg
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._pytree import TreeSpec, tree_unflatten

_ATEN = torch.ops.aten
_CONVOLUTIONS = tuple(getattr(_ATEN, f"conv{d}d").default for d in (1, 2, 3))
_TRANSPOSED = (_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input)
_GROUPS_OF_TRANSPOSED = 6  # position of the argument


class Scope(nn.Module):
    """Holds what a module of the original held; runs what is to run inside of it."""

    def forward(self, run: Callable[[], None]) -> None:
        """Run within this module's hooks."""
        run()


class Replay(nn.Module):
    """An exported program as a module of the original's structure, batch norms folded into the products before them."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__()
        exported: Any = program  # its attributes are typed as modules or tensors
        self._in_spec: TreeSpec = exported._in_spec
        self._out_spec: TreeSpec = exported._out_spec
        self.signature = inspect.signature(program.forward)
        _adopt(program, self)
        self._graph = _copied(program.graph)
        fold_batch_norms(self, self._graph)
        self._last_use = _last_uses(self._graph)
        self._calls = self._call_paths()

    def _call_paths(self) -> list[tuple[fx.Node, tuple[tuple[str, str], ...]]]:
        """Every call with the modules (key of the call, path) that it runs in, outermost first."""
        calls: list[tuple[fx.Node, tuple[tuple[str, str], ...]]] = []
        current: tuple[tuple[str, str], ...] = ()
        for node in self._graph.nodes:
            if node.op != "call_function":
                continue
            stack = node.meta.get("nn_module_stack")
            if stack is not None:  # shape arithmetic belongs to whatever runs around it
                current = tuple((key, path.partition("@")[0]) for key, (path, _) in stack.items() if path)
            calls.append((node, current))
            for _, path in current:
                _scope_at(self, path)
        return calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        values = iter(tree_flatten_spec((args, kwargs), self._in_spec))
        env: dict[fx.Node, Any] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                env[node] = next(values)
            elif node.op == "get_attr":
                env[node] = fetch(self, str(node.target))
        self._run(self._calls, 0, env)
        (output,) = (node for node in self._graph.nodes if node.op == "output")
        found = map_arg(output.args[0], lambda node: env[node])
        return tree_unflatten(list(found), self._out_spec)

    def _run(self, calls: Sequence[Any], depth: int, env: dict[fx.Node, Any]) -> None:
        for inner, group in groupby(calls, lambda call: call[1][depth] if depth < len(call[1]) else None):
            members = list(group)
            if inner is not None:
                self.get_submodule(inner[1])(lambda members=members: self._run(members, depth + 1, env))
                continue
            for node, _ in members:
                args, kwargs = map_arg((node.args, node.kwargs), lambda used: env[used])
                env[node] = node.target(*args, **kwargs)
                for used in self._last_use.get(node, ()):
                    del env[used]


def _copied(graph: fx.Graph) -> fx.Graph:
    """Copy the nodes: folding leaves the program as it is."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def is_exported(model: nn.Module) -> bool:
    """Whether this is what `ExportedProgram.module()` gives."""
    specs = (getattr(model, name, None) for name in ("_in_spec", "_out_spec"))
    return isinstance(model, fx.GraphModule) and all(isinstance(spec, TreeSpec) for spec in specs)


def replayed(model: nn.Module) -> nn.Module:
    """Give an exported program's module as a `Replay`, which shares its parameters, and any other model as it is."""
    return Replay(model) if isinstance(model, fx.GraphModule) and is_exported(model) else model


def _adopt(module: nn.Module, into: nn.Module) -> None:
    """Take over parameters, buffers, constants and submodules."""
    for name, child in module.named_children():
        if isinstance(child, fx.GraphModule):  # the body of a higher-order operator
            into.add_module(name, child)
        elif name != "_guards_fn":
            scope = Scope()
            _adopt(child, scope)
            into.add_module(name, scope)
    into._parameters.update(module._parameters)
    into._buffers.update(module._buffers)
    into._non_persistent_buffers_set |= module._non_persistent_buffers_set
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            setattr(into, name, value)


def _scope_at(root: nn.Module, path: str) -> None:
    """Add what is missing of a path: modules without parameters are not part of a program."""
    module = root
    for name in path.split("."):
        if name not in module._modules:
            module.add_module(name, Scope())
        module = module.get_submodule(name)


def fetch(root: nn.Module, path: str) -> Any:
    """Attribute at a dotted path."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Which values each call is the last to use."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    grouped: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        grouped.setdefault(node, []).append(used)
    return grouped


def fold_batch_norms(root: nn.Module, graph: fx.Graph) -> None:
    """Fold every batch norm whose only input is a convolution or linear layer with parameters of its own."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is _ATEN.batch_norm.default and _is_foldable(node):
            _fold(root, graph, node)


def _is_foldable(norm: fx.Node) -> bool:
    arguments: Any = norm.args
    layer, statistics, training = arguments[0], arguments[3:5], arguments[5]
    if training or None in statistics or not isinstance(layer, fx.Node) or len(layer.users) > 1:
        return False
    if layer.target in _TRANSPOSED and len(layer.args) > _GROUPS_OF_TRANSPOSED:
        if layer.args[_GROUPS_OF_TRANSPOSED] != 1:
            return False  # torch's fusion knows no groups here
    elif layer.target not in (*_CONVOLUTIONS, *_TRANSPOSED, _ATEN.linear.default):
        return False
    own: Any = layer.args[1:3]
    return all(arg is None or (arg.op == "get_attr" and len(arg.users) == 1) for arg in own)


def _values(root: nn.Module, nodes: Sequence[Any]) -> Any:
    return (None if node is None else fetch(root, node.target) for node in nodes)


def _fold(root: nn.Module, graph: fx.Graph, norm: fx.Node) -> None:
    arguments: Any = norm.args
    layer: Any = arguments[0]
    weight_node, bias_node = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    nodes = (weight_node, bias_node, *arguments[3:5], *arguments[1:3])
    weight, bias, mean, variance, scale, shift = _values(root, nodes)
    if layer.target is _ATEN.linear.default:
        fused = fuse_linear_bn_weights(weight, bias, mean, variance, arguments[7], scale, shift)
    else:
        transposed = layer.target in _TRANSPOSED
        fused = fuse_conv_bn_weights(weight, bias, mean, variance, arguments[7], scale, shift, transposed)
    path, _, name = weight_node.target.rpartition(".")
    owner = root.get_submodule(path)
    owner.register_parameter(name, fused[0])
    owner.register_parameter("bias", fused[1])
    if bias_node is None:
        with graph.inserting_before(layer):
            bias_node = graph.create_node("get_attr", f"{path}.bias" if path else "bias")
        layer.args = (*layer.args[:2], bias_node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph.erase_node(norm)
