"""How a product's values number the examples of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which axis numbers the examples, and whether examples are the outer index on it, or the inner one."""

    axis: int
    outer: bool

    def fits(self, shape: Sequence[int], examples: int) -> bool:
        """Whether values of that shape can number so many examples so."""
        return self.axis < len(shape) and shape[self.axis] % examples == 0

    def split(self, values: Tensor, examples: int) -> tuple[Tensor, int]:
        """Give values an axis of their own for the examples; return them and the axis."""
        sizes = (examples, -1) if self.outer else (-1, examples)
        return values.unflatten(self.axis, sizes), self.axis if self.outer else self.axis + 1

    def laid_out(self, rows: Tensor, shape: Sequence[int], order: Sequence[int] | None = None) -> Tensor:
        """Arrange values of every example, (examples, values of each), as a tensor of a shape.

        ``order`` lists the axes from the outermost to the innermost of an example's values; without it as they come.
        """
        others = [axis for axis in (order or range(len(shape))) if axis != self.axis]
        sizes = [shape[axis] for axis in others]
        if self.outer:
            merged = rows.view(shape[self.axis], *sizes)
        else:
            merged = rows.view(len(rows), shape[self.axis] // len(rows), *sizes).transpose(0, 1).flatten(0, 1)
        axes = [self.axis, *others]
        return merged.permute([axes.index(axis) for axis in range(len(shape))])


OUTERMOST = Layout(0, outer=True)


@dataclass(frozen=True)
class SiteLayout:
    """Layout of a site's outputs and, for products of two activations, of their programmed operands.

    None where no layout fits, because the model mixes the examples of a batch.
    """

    output: Layout | None = OUTERMOST
    operand: Layout | None = OUTERMOST


SiteLayouts = Mapping[str, SiteLayout]
