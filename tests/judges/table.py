"""Print precalloc's simulation beside those of the judges: `make judges`, figures of docs/judges.md."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec

from aihwkit_judge import aihwkit_network
from analogvnn_judge import thermal_network, weight_network
from judging import Outcomes, Sites, allocated, differences, ours, repeated, theirs
from torch import nn

ROW = "{:28} {:>9} {:>9} {:>18} {:>9} {:>9} {:>20}"
CASES: list[tuple[str, str, str, Callable[[Sites, float], nn.Module]]] = [
    ("aihwkit", "crossbar-thermal", "layer", aihwkit_network),
    ("aihwkit", "crossbar-thermal", "channel", aihwkit_network),
    ("analogvnn", "crossbar-thermal", "layer", thermal_network),
    ("analogvnn", "crossbar-weight", "layer", weight_network),
]


def row(name: str, own: Outcomes, judged: Outcomes) -> str:
    """Means of both, and their difference with its 95 % interval over seeds: accuracy in points, loss in nats."""
    cells = []
    for mine, other, test, scale, digits in zip(own, judged, differences(own, judged), (100, 1), (1, 3), strict=True):
        low, high = (scale * end for end in test.confidence_interval(0.95))
        difference = f"{scale * (mine.mean() - other.mean()):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        cells += [f"{scale * mine.mean():.{digits}f}", f"{scale * other.mean():.{digits}f}", difference]
    return ROW.format(name, *cells)


def main() -> None:
    """Print a row for every judge, noise and granularity, and one with twice the repetitions in precalloc alone."""
    warnings.filterwarnings("ignore", message="To copy construct from a tensor")  # AnalogVNN
    print(ROW.format("", "accuracy", "judge's", "difference", "loss", "judge's", "difference"))
    for package, preset, granularity, build in CASES:
        if find_spec(package) is None:
            print(f"{package} is not installed")
            continue
        plan = allocated(preset, granularity)
        judged, kind = theirs(plan, build), preset.removeprefix("crossbar-")
        print(row(f"{package}, {kind}, {granularity}", ours(plan), judged))
        print(row("  at 2 K in precalloc alone", ours(repeated(plan, 2)), judged), flush=True)


if __name__ == "__main__":
    main()
