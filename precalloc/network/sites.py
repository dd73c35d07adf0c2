"""Discovery of sites: which products a model computes on real inputs, and what does MACs without being one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from precalloc.errors import CoverageError, DataError, ModelError, NondeterministicModelError
from precalloc.network.batches import Batch
from precalloc.network.data import as_data, sample
from precalloc.network.flops import FlopCount
from precalloc.network.folding import fold_batch_norm
from precalloc.network.forward import Forward, ForwardFn
from precalloc.network.interception import intercept
from precalloc.network.models import as_model
from precalloc.network.naming import PRODUCT_MODULES
from precalloc.network.operators import Product
from precalloc.network.state import untouched
from precalloc.profiles import Site


@dataclass(frozen=True)
class Uncovered:
    """MACs per inference that belong to no site.

    Where the operator is not ``understood`` (its kernel is not looked into), one MAC an output element: a lower bound,
    or none at all.
    """

    name: str
    operator: str
    macs: float
    understood: bool = True


@dataclass(frozen=True)
class DigitalProduct:
    """Product that is none of the accelerator's, with its MACs per inference and the reason."""

    name: str
    operator: str
    macs: float
    reason: str


@dataclass(frozen=True)
class SiteReport:
    """What was found in one batch.

    Parameters
    ----------
    sites
        In order of first execution.
    uncovered
        MACs that belong to no site and should.
    digital
        Products that stay digital by their nature: of weights alone, without a sum, or of integers.
    never_called
        Modules with products that did not run.
    folded
        Batch norms that were folded into the product before them.
    """

    sites: tuple[Site, ...]
    uncovered: tuple[Uncovered, ...] = ()
    digital: tuple[DigitalProduct, ...] = ()
    never_called: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        from precalloc.notebook import sites_html

        return sites_html(self)


@dataclass
class SiteCounts:
    """Running counts of one site over calls."""

    kind: str
    channels: int
    static: bool
    macs: float = 0.0
    outputs: int = 0
    inputs: int = 0
    operands: int = 0

    def add(self, product: Product, y: Tensor) -> None:
        """Count one call."""
        self.macs += product.macs_per_output(y) * y.numel()
        self.outputs += y.numel()
        self.inputs += product.x.numel()
        self.operands += 0 if self.static else product.w.numel()

    def site(self, name: str, examples: int) -> Site:
        """The site with its counts per inference."""
        return Site(
            name=name,
            kind=self.kind,
            macs=self.macs / examples,
            outputs=self.outputs / examples,
            fan_in=self.macs / self.outputs,
            channels=self.channels,
        )


def count_call(counts: dict[str, SiteCounts], name: str, product: Product, y: Tensor) -> None:
    """Add one call to its site's counts, a new site's if it is the first."""
    if name not in counts:
        channels = len(product.rows(product.w)) if product.rows is not None else 1
        counts[name] = SiteCounts(product.operator, channels, product.is_static)
    counts[name].add(product, y)


def discover(
    model: nn.Module, data: object, *, batch_size: int = 32, forward_fn: ForwardFn | None = None
) -> SiteReport:
    """Run the model on one batch of ``data`` and list its sites and what is not covered.

    ``forward_fn(model, inputs)`` runs it in the place of its own call.

    Raises
    ------
    ModelError, DataError
        If the model cannot be intercepted, or does not take the data.
    """
    batch, forward = sample(as_data(data), batch_size), Forward(forward_fn)
    model = as_model(model)
    with untouched(model), torch.no_grad():
        ready, folded = fold_batch_norm(model, lambda m: forward.run(m, batch))
        found = survey(ready, batch, forward)
    sites = tuple(count.site(name, batch.size) for name, count in found.counts.items())
    return SiteReport(sites, found.uncovered, found.digital, found.never_called, folded)


@dataclass(frozen=True)
class Found:
    """Result of `survey`: what the model returned, and the fields of `SiteReport`, counts by site name in order."""

    output: Any
    counts: dict[str, SiteCounts]
    uncovered: tuple[Uncovered, ...]
    digital: tuple[DigitalProduct, ...]
    never_called: tuple[str, ...]


def survey(model: nn.Module, batch: Batch, forward: Forward) -> Found:
    """Count the products of one forward pass, and attribute every FLOP outside them to a module and an operator."""
    run = _Survey(FlopCount())
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: run.called.add(name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad(), run.flops, intercept(model, run.on_product, run.on_other):
            output = forward.run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    hidden = run.flops.total - run.seen_flops
    if hidden > 0:
        run.macs["", "code outside torch functions", None] = hidden / 2
    each = [(name, operator, macs / batch.size, reason) for (name, operator, reason), macs in run.macs.items()]
    return Found(
        output,
        run.counts,
        tuple(
            Uncovered(name, operator, macs, operator not in run.opaque)
            for name, operator, macs, reason in each
            if reason is None
        ),
        tuple(DigitalProduct(name, operator, macs, reason) for name, operator, macs, reason in each if reason),
        _never_called(model, run),
    )


def count_sites(model: nn.Module, batch: Batch, forward: Forward) -> tuple[Any, dict[str, SiteCounts]]:
    """Count the products of one forward pass and nothing else; what the model returned comes first."""
    counts: dict[str, SiteCounts] = {}

    def on_product(name: str, product: Product) -> Tensor:
        y = product.apply(product.x, product.w)
        count_call(counts, name, product, y)
        return y

    with torch.no_grad(), intercept(model, on_product):
        return forward.run(model, batch), counts


@dataclass
class _Survey:
    flops: FlopCount
    counts: dict[str, SiteCounts] = field(default_factory=dict)
    macs: dict[tuple[str, str, str | None], float] = field(default_factory=dict)
    seen_flops: int = 0
    called: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)

    def on_product(self, name: str, product: Product) -> Tensor:
        before = self.flops.total
        y = product.apply(product.x, product.w)
        self.seen_flops += self.flops.total - before
        count_call(self.counts, name, product, y)
        return y

    def on_other(self, path: str, operator: str, call: partial[Any], reason: str | None) -> Any:
        before = self.flops.total
        result = call()
        seen = self.flops.total - before
        self.seen_flops += seen
        macs = seen / 2
        if seen == 0 and reason is None and _is_opaque(operator):
            macs = _output_elements(result)
            self.opaque.add(operator)
        if macs or reason:
            key = (path, operator, reason)
            self.macs[key] = self.macs.get(key, 0) + macs
        return result


def _is_opaque(operator: str) -> bool:
    """Whether the flop counter cannot look into an operator: a kernel of torch's, or any of another library."""
    return operator in OPAQUE_OPERATORS or "::" in operator


def _output_elements(result: Any) -> float:
    """One MAC per element of a real-valued output, a lower bound; indices and counts take none."""
    first = result[0] if isinstance(result, tuple | list) else result
    return float(first.numel()) if isinstance(first, Tensor) and not _is_integer(first) else 0.0


def _is_integer(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex())


# Operators that do MACs in one kernel, which the flop counter does not count.
OPAQUE_OPERATORS = frozenset(
    {
        "cdist",
        "conv_tbc",
        "_int_mm",
        "_grouped_mm",
        "_weight_int4pack_mm",
        "_weight_int8pack_mm",
        "_sparse_mm",
        "sspaddmm",
        "hspmm",
        "smm",
        "lstm",
        "gru",
    }
)


def _never_called(model: nn.Module, run: _Survey) -> tuple[str, ...]:
    """Modules with products that neither ran nor lent their weight to a functional product."""
    kinds = (*PRODUCT_MODULES, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and name not in run.called and name not in run.counts
    )


def require_coverage(counts: Mapping[str, SiteCounts], uncovered: tuple[Uncovered, ...], allow_uncovered: bool) -> None:
    """Stop where there is nothing to allocate, or where MACs would silently be left out.

    Raises
    ------
    ModelError
        If the model has no sites.
    CoverageError
        If MACs belong to no site, unless ``allow_uncovered``.
    """
    if not counts:
        raise ModelError("The model has no sites: no convolution, linear layer or matrix product ran on the data.")
    if uncovered and not allow_uncovered:
        named = ", ".join(_named(item) for item in uncovered[:5])
        raise CoverageError(
            f"{len(uncovered)} operators do MACs that no site covers, or are not understood: {named}. "
            "Rewrite them as supported products, or allow them (--allow-uncovered): they then count as digital."
        )


def _named(item: Uncovered) -> str:
    where = f"{item.operator} in '{item.name or 'the model'}'"
    return where if item.understood else f"{where} (its kernel is not looked into)"


def require_finite(output: Tensor) -> None:
    """Refuse outputs with which nothing can be measured.

    Raises
    ------
    ModelError
        If they are not finite.
    """
    if not bool(output.isfinite().all()):
        raise ModelError("The model's output has NaN or infinite values on the data. Check weights and input scaling.")


def require_deterministic(model: nn.Module, batch: Batch, forward: Forward) -> Tensor:
    """Run the model twice on one batch; return its output.

    Raises
    ------
    NondeterministicModelError
        If the outputs differ.
    """
    with torch.no_grad():
        first, second = forward(model, batch), forward(model, batch)
    if not _is_same(first, second):
        raise NondeterministicModelError(
            f"The model gives different outputs on the same input (by {float((first - second).abs().max()):.3g}). "
            "Switch off what is random in its forward (dropout with training=True, sampling)."
        )
    return first


def runs_channels_last(model: nn.Module, batch: Batch, forward: Forward, output: Tensor) -> bool:
    """Whether a model on a CPU gives the same ``output`` from images with channels last in memory.

    Convolutions are faster then. Some models ask for views that only the usual order of memory has, or read memory by
    strides of their own.
    """
    images = batch.channels_last()
    if images is batch or output.device.type != "cpu":
        return False
    with torch.no_grad(), suppress(DataError):
        return _is_same(output, forward(model, images))
    return False


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two outputs differ by no more than rounding."""
    scale = float(first.abs().max()) or 1.0
    return float((first - second).abs().max()) <= 1e-4 * scale
