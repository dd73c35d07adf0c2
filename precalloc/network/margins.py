"""First-order reach of noise into the class margins, example by example.

Independent noise of variance v_i on the outputs y_i moves the margins m(x) = z_ref - z_c by J_i = dm / dy_i to first
order, so their covariance is sum_i v_i J_i J_i^T: linear in 1 / K, and exact for the linearised network. For weight
noise, J delta is the response to a random change of the weights; a few drawn changes give an unbiased covariance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from precalloc.hardware import NoiseKind
from precalloc.network.curvature import ChannelSlots
from precalloc.network.layouts import Layout
from precalloc.network.observation import Call, output_gradients, output_terms, parts, per_example
from precalloc.network.operators import widened


def strongest_margins(logits: Tensor, reference: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logit of the reference class minus those of the ``count`` strongest others, nearest first.

    Returns
    -------
    margins : (examples, count)
    classes : (examples, 1 + count)
        The reference class, and the others.
    """
    reference = reference[:, None]
    others = logits.scatter(1, reference, -torch.inf).topk(count, dim=1)
    return logits.gather(1, reference) - others.values, torch.cat([reference, others.indices], dim=1)


def margin_covariance(
    margins: Tensor,
    calls: Sequence[Call],
    layouts: Mapping[str, Layout],
    slots: ChannelSlots,
    kinds: Sequence[NoiseKind],
) -> dict[NoiseKind, Tensor]:
    """Covariance of the margins per example and channel, without the channels' own constants.

    Parameters
    ----------
    margins : (examples, m)
        With their graph, which is kept.

    Returns
    -------
    kind -> (examples, channels, m * (m + 1) / 2)
        Upper triangle row by row.
    """
    examples, count = margins.shape
    gradients = [output_gradients(margins[:, t].sum(), calls, keep_graph=True) for t in range(count)]
    pairs = list(combinations_with_replacement(range(count), 2))
    result = {kind: torch.zeros(examples, slots.total, len(pairs)) for kind in kinds}
    for index, call in enumerate(calls):
        layout, place, reached = layouts[call.site], slots.of(call.site), [row[index] for row in gradients]
        for part in parts(call, layout, examples):
            own = [None if gradient is None else widened(part.of(gradient)) for gradient in reached]
            for column, (s, t) in enumerate(pairs):
                first, second = own[s], own[t]
                if first is None or second is None:
                    continue
                for kind, values in output_terms(first * second, part.of(call.shot), kinds):
                    result[kind][part.rows, place, column] += per_example(values, call, layout, part.count).cpu()
    if NoiseKind.WEIGHT in kinds:
        _add_weight_noise(result[NoiseKind.WEIGHT], gradients, calls, layouts, slots, pairs)
    return result


def _responses(gradient: Tensor, probe: Tensor, call: Call, layout: Layout, examples: int) -> Tensor:
    """Response of a margin to one change of the weights, (examples, channels)."""
    each = [
        per_example(widened(part.of(gradient)) * part.of(probe), call, layout, part.count)
        for part in parts(call, layout, examples)
    ]
    return torch.cat(each).cpu()


def _add_weight_noise(
    covariance: Tensor,
    gradients: Sequence[Sequence[Tensor | None]],
    calls: Sequence[Call],
    layouts: Mapping[str, Layout],
    slots: ChannelSlots,
    pairs: Sequence[tuple[int, int]],
) -> None:
    """Average the outer products of the margins' responses; calls that share an array respond together."""
    examples = len(covariance)
    sharing: dict[int, list[int]] = {}
    for index, call in enumerate(calls):
        sharing.setdefault(id(call.weight), []).append(index)
    for members in sharing.values():
        site, probes = calls[members[0]].site, len(calls[members[0]].probes)
        for probe in range(probes):
            responses = [
                sum(
                    _responses(gradient, calls[i].probes[probe], calls[i], layouts[calls[i].site], examples)
                    for i in members
                    if (gradient := row[i]) is not None
                )
                for row in gradients
            ]
            for column, (s, t) in enumerate(pairs):
                covariance[:, slots.of(site), column] += responses[s] * responses[t] / probes
