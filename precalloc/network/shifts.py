"""Mean shift of every product under noise, against the same batch without noise, corrected as the pass goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from precalloc.network.batches import Batch
from precalloc.network.forward import Forward
from precalloc.network.interception import ProductHandler, intercept
from precalloc.network.operators import Product

# Polynomial-decay averaging (Shamir and Zhang, ICML 2013): forgets the first passes, whose upstream was unsettled.
_DECAY = 2.0


class ShiftAverages:
    """Running averages over noisy passes of how far the mean of every channel is shifted at each static weight.

    In the pass itself every product already has the average taken off, so later sites see a network whose earlier sites
    are corrected. A site that is called several times in a pass has one average for all calls.

    Parameters
    ----------
    average : site name -> (channels,)
        From earlier passes, to go on from.
    weight
        Examples in them.
    """

    def __init__(self, average: dict[str, Tensor] | None = None, weight: float = 0.0) -> None:
        self.average, self.weight = dict(average or {}), weight
        self._clean: dict[tuple[str, int], Tensor] = {}

    def expect(self, model: nn.Module, batch: Batch, forward: Forward) -> None:
        """Note the means of a batch without noise."""
        self._clean, calls = {}, Counter[str]()

        def note(site: str, product: Product) -> Tensor:
            y = product.apply(product.x, product.w)
            if product.is_static:
                self._clean[site, calls[site]] = channel_mean(y, product)
                calls[site] += 1
            return y

        with intercept(model, note):
            forward.run(model, batch)

    def measure(self, model: nn.Module, batch: Batch, forward: Forward, draws: Sequence[ProductHandler]) -> None:
        """Update the averages by noisy passes over the batch that was expected; the passes count alike."""
        self.weight += batch.size
        gain = (_DECAY + 1.0) * batch.size / (self.weight + _DECAY * batch.size)
        before, seen = dict(self.average), dict[str, list[Tensor]]()
        for noisy in draws:
            calls = Counter[str]()

            def correct(
                site: str, product: Product, noisy: ProductHandler = noisy, calls: Counter[str] = calls
            ) -> Tensor:
                y = noisy(site, product)
                clean = self._clean.get((site, calls[site]))
                if not product.is_static or clean is None:  # where noise decided that the site is called once more
                    return y
                calls[site] += 1
                shifts = seen.setdefault(site, [])
                shifts.append(channel_mean(y, product) - clean)
                shift = torch.stack(shifts).mean(0)
                self.average[site] = torch.lerp(before[site], shift, gain) if site in before else shift
                return y - product.per_channel(self.average[site].to(y.dtype), y)

            with intercept(model, correct):
                forward.run(model, batch)


def channel_mean(y: Tensor, product: Product) -> Tensor:
    """Mean of a product's output over everything but its channels, (channels,)."""
    others = product.other_axes(y)
    return (y.mean(others) if others else y).flatten().double()
