"""What the terminal shows: tables of at most 80 columns and progress bars; plain text where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from precalloc.hardware import Hardware
from precalloc.profiles import Site
from precalloc.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from precalloc.accuracy import SimulatedAccuracy
    from precalloc.allocation import Allocation, UniformAllocation
    from precalloc.prediction import Prediction

WIDTH = 80


def standard_console() -> Console:
    """Where results go: standard output, in colour only on a terminal."""
    return _console(stderr=False)


def error_console() -> Console:
    """Where progress and errors go: standard error."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    # A pipe has no width: tables are laid out as on a common terminal.
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show one bar for each thing that reports progress; nothing where standard error is no terminal."""
    console = error_console()
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def show(done: int, total: int, what: str) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(escape(what), total=total)
        bars.update(tasks[what], completed=done, total=total)

    with bars:
        yield show


def summary_table(allocation: Allocation) -> Table:
    """Tabulate accuracy at this energy, allocated and uniform, and the energy saved at equal accuracy."""
    from precalloc import figures
    from precalloc.units import format_energy

    a, uniform = allocation, allocation.uniform
    saving = None if a.saving is None else f"energy saved at equal predicted accuracy: {figures.percent(a.saving)}"
    table = Table(title=escape(f"{a.hardware.name}, {a.request}"), caption=saving, title_justify="left")
    classifies = a.provenance.task == "classification"
    for heading in ("", "accuracy predicted" if classifies else "loss predicted", "simulated"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_column("energy", justify="right", no_wrap=True)
    table.add_row("clean", *(_clean_accuracy(a) if classifies else _clean_loss(a)), "")
    rows: tuple[tuple[str, Allocation | UniformAllocation], ...] = (
        (f"uniform, K = {figures.repetitions(uniform)}", uniform),
        (f"allocated per {a.granularity}", a),
    )
    for name, entry in rows:
        if classifies:
            numbers = figures.accuracy(entry.predicted), figures.accuracy(entry.simulated)
        else:
            numbers = figures.predicted_loss(entry, a.provenance.task), figures.simulated_loss(entry.simulated)
        table.add_row(name, *numbers, format_energy(entry.energy_joule))
    return table


def _clean_accuracy(a: Allocation) -> tuple[str, str]:
    from precalloc import figures

    return figures.percent(_clean(a.predicted)), figures.percent(_clean(a.simulated))


def _clean_loss(a: Allocation) -> tuple[str, str]:
    from precalloc import figures

    simulated = None if a.simulated is None else a.simulated.loss
    return (
        figures.loss(a.clean_loss, a.provenance.task),
        "-" if simulated is None else figures.loss(simulated.clean_loss, a.provenance.task),
    )


def _clean(value: Prediction | SimulatedAccuracy | None) -> float | None:
    return None if value is None else value.clean_accuracy


def kmap_table(allocation: Allocation) -> Table:
    """Tabulate K, energy and noise bits by site."""
    from precalloc import figures
    from precalloc.units import format_energy

    table = Table(title="K map", title_justify="left")
    table.add_column("site", overflow="fold", ratio=1)
    for heading in ("MACs", "K", "energy", "damage", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in allocation:
        numbers = format_energy(entry.energy_joule), f"{entry.damage:.2g}", f"{entry.noise_bits:.1f}"
        table.add_row(escape(entry.site.name), figures.count(entry.site.macs), figures.repetitions(entry), *numbers)
    return table


def sites_table(sites: tuple[Site, ...]) -> Table:
    """Tabulate sites with kind, channels, fan-in and MACs."""
    from precalloc import figures

    total = sum(site.macs for site in sites)
    table = Table(title=f"{len(sites)} sites, {figures.count(total)} MACs per inference", title_justify="left")
    table.add_column("site", overflow="fold", ratio=1)
    table.add_column("kind", overflow="fold")
    for heading in ("channels", "fan-in", "MACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for site in sites:
        table.add_row(
            escape(site.name), site.kind, str(site.channels), figures.count(site.fan_in), figures.count(site.macs)
        )
    return table


def hardware_table(presets: dict[str, Hardware]) -> Table:
    """Tabulate hardware presets."""
    from precalloc.units import format_energy_per_mac

    table = Table(title="hardware presets", title_justify="left")
    for heading in ("name", "noise", "repetition", "energy per MAC at K = 1"):
        table.add_column(heading, overflow="fold")
    for name, hardware in presets.items():
        noise = ", ".join(f"{term.kind} {term.level:g}" for term in hardware.noise)
        levels = hardware.repetition.levels if isinstance(hardware.repetition.levels, str) else "listed"
        energy = format_energy_per_mac(hardware.energy_per_mac_joule)
        table.add_row(name, noise, f"{levels}, {hardware.repetition.redundancy}", energy)
    return table


def landmarks_tables(marks: pd.DataFrame) -> list[Table]:
    """Tabulate the knees and the least energies of a sweep, by hardware."""
    return [_landmarks_table(str(name), rows) for name, rows in marks.groupby("hardware", sort=False)]


def _landmarks_table(name: str, rows: pd.DataFrame) -> Table:
    from precalloc import figures
    from precalloc.marking import KNEE
    from precalloc.units import format_energy_per_mac

    table = Table(title=escape(name), title_justify="left")
    for heading in ("", "curve"):
        table.add_column(heading, no_wrap=True)
    for heading in ("mean K", "energy", "accuracy", "drop, points"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        mark = row["mark"] if row["mark"] == KNEE else f"drop below {row['mark']}"
        energy = format_energy_per_mac(row["energy_per_mac_joule"])
        numbers = f"{row['mean_repetitions']:.3g}", energy, figures.percent(row["accuracy"]), f"{100 * row['drop']:.1f}"
        table.add_row(mark, row["curve"], *numbers)
    return table


def prediction_table(predicted: Mapping[str, Prediction], tabled: int, examples: int) -> Table:
    """Tabulate predictions, by the name of the K map, for those of given examples whose margins are tabled."""
    from precalloc import figures

    of_them = "" if tabled == examples else f" of {examples}"
    table = Table(title=f"predicted for {tabled}{of_them} examples", title_justify="left")
    for heading in ("", "clean", "under noise", "difference"):
        table.add_column(heading, justify="right")
    for name, each in predicted.items():
        clean, drop = figures.percent(each.clean_accuracy), f"drop {figures.drop(each)}"
        table.add_row(name, clean, figures.accuracy(each), drop)
    return table


def simulation_table(simulated: SimulatedAccuracy) -> Table:
    """Tabulate a simulated score and loss."""
    from precalloc import figures

    table = Table(title=f"{simulated.examples} examples, {simulated.seeds} noise seeds", title_justify="left")
    for heading in ("", "clean", "under noise", "difference"):
        table.add_column(heading, justify="right")
    if simulated.score:
        noisy, lost = figures.accuracy(simulated), f"drop {figures.drop(simulated)}"
        table.add_row(simulated.score, figures.percent(simulated.clean_accuracy), noisy, lost)
    if simulated.loss is not None:
        clean = figures.loss(simulated.loss.clean_loss, simulated.task)
        table.add_row("loss", clean, figures.simulated_loss(simulated), figures.loss_increase(simulated))
    return table
