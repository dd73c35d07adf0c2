"""The command line; each command joins a few calls and shows their result."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from precalloc.errors import BudgetError, ModelError, PrecallocError
from precalloc.objective import Granularity

if TYPE_CHECKING:
    from precalloc.allocation import Allocation

# Uniform K visibly loses accuracy at this budget on the demo's network, and the allocation does not.
DEMO_BUDGET = "8x"
DEFAULT_HARDWARE = "homodyne-1550nm"


class _Group(TyperGroup):
    """Commands whose anticipated errors are a line on standard error and exit code 2, and whose interruption is 130."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the type of click's context depends on typer's release
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PrecallocError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("Interrupted. Run the same command again to resume its measurement.", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Choose how often an analog accelerator repeats each layer of a trained network.",
)
hardware_app = typer.Typer()
app.add_typer(hardware_app, name="hardware")


@hardware_app.callback(invoke_without_command=True)
def list_by_default(context: typer.Context) -> None:
    """List the hardware presets, or show one as a TOML file to start from."""
    if context.invoked_subcommand is None:
        list_hardware()


Model = Annotated[str, typer.Argument(help="path/file.py:factory, package.module:factory, .pt2 file or model folder")]
OptionalModel = Annotated[str | None, typer.Argument(help="As for 'profile'; not needed with --profile.")]
Weights = Annotated[str | None, typer.Option(help="Weights to load into the model (.safetensors or .pt).")]
DataOption = Annotated[str, typer.Option(help="Calibration data: .npz, .safetensors or module:factory.")]
HardwareOption = Annotated[str, typer.Option(help="Preset name or TOML file; see 'precalloc hardware'.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples at a time; bounds the memory.")]
NoiseSeeds = Annotated[int, typer.Option("--seeds", min=1, help="Noise draws per example in simulations.")]
AllowUncovered = Annotated[bool, typer.Option("--allow-uncovered", help="Go on where MACs belong to no site.")]
OutFolder = Annotated[Path, typer.Option(help="Folder for the results.")]


@app.command()
def demo(
    out: OutFolder = Path("precalloc-demo"),
    hardware: HardwareOption = DEFAULT_HARDWARE,
    budget: Annotated[str, typer.Option(help="As for 'allocate'.")] = DEMO_BUDGET,
    granularity: Annotated[Granularity, typer.Option(help="One K per layer or per channel.")] = Granularity.LAYER,
    seed: Seed = 0,
) -> None:
    """Run the whole flow on a bundled network for handwritten digits."""
    from precalloc import demo_model, workflow
    from precalloc.allocator import allocate as choose
    from precalloc.console import progress_bars
    from precalloc.hardware import Hardware

    chosen = Hardware.load(hardware)
    model, calibration = demo_model.build(), workflow.load_examples(str(demo_model.CALIBRATION))
    with progress_bars() as progress:
        effort, kept = workflow.Effort(seed=seed, progress=progress), out / workflow.PROFILE_FILE
        profile = workflow.measure(model, "precalloc demo", calibration, chosen, effort, workflow.checkpoint_of(kept))
        profile.save(kept)
        allocation = choose(profile, budget, hardware=chosen, granularity=granularity, seed=seed)
        evaluation = workflow.load_examples(str(demo_model.EVALUATION))
        allocation = workflow.validate_both(model, evaluation, allocation, effort, kept.parent)
    _finish(allocation, out)


@app.command()
def sites(model: Model, data: DataOption, weights: Weights = None) -> None:
    """List the sites of a model, and what is not covered."""
    from precalloc import workflow
    from precalloc.console import sites_table, standard_console
    from precalloc.figures import count
    from precalloc.network.sites import discover

    report = discover(workflow.load(model, weights), workflow.load_examples(data))
    console = standard_console()
    console.print(sites_table(report.sites))
    for entry in report.uncovered:
        typer.echo(f"not covered: {entry.name} ({entry.operator}, {count(entry.macs)} MACs)")
    for name in report.never_called:
        typer.echo(f"never called: {name}")
    if report.folded:
        typer.echo(f"{len(report.folded)} batch norms are folded into the product before them")


@app.command()
def profile(
    model: Model,
    data: DataOption,
    hardware: HardwareOption,
    out: Annotated[Path, typer.Option(help="Profile file to write (.npz).")],
    weights: Weights = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    allow_uncovered: AllowUncovered = False,
) -> None:
    """Measure how much noise on each layer costs; run again after an interruption to resume."""
    from precalloc import workflow
    from precalloc.console import progress_bars
    from precalloc.hardware import Hardware

    chosen = Hardware.load(hardware)
    network, examples = workflow.load(model, weights), workflow.load_examples(data)
    with progress_bars() as progress:
        effort = workflow.Effort(seed, batch_size, allow_uncovered=allow_uncovered, progress=progress)
        measured = workflow.measure(network, model, examples, chosen, effort, workflow.checkpoint_of(out))
    measured.save(out)
    typer.echo(f"{len(measured.sites)} sites of {measured.provenance.examples} examples: {out}")


@app.command()
def allocate(
    hardware: HardwareOption,
    out: OutFolder,
    model: OptionalModel = None,
    data: Annotated[str | None, typer.Option(help="Calibration data, to profile MODEL first.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Profile that 'precalloc profile' wrote.")] = None,
    weights: Weights = None,
    budget: Annotated[str | None, typer.Option(help="'3 nJ', '20 aJ/MAC', '15x' or '40% of 15x'.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Instead of a budget: 0.02 is two points.")] = None,
    granularity: Annotated[Granularity, typer.Option(help="One K per layer or per channel.")] = Granularity.LAYER,
    validate: Annotated[str | None, typer.Option(help="Other data to simulate on; needs MODEL.")] = None,
    seeds: NoiseSeeds = 8,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    allow_uncovered: AllowUncovered = False,
) -> None:
    """Choose K within a budget, or at the least energy for an accuracy, and write the K map and a report."""
    from precalloc import workflow
    from precalloc.allocator import allocate as choose
    from precalloc.console import progress_bars
    from precalloc.hardware import Hardware
    from precalloc.profiles import Profile

    _check_request(budget, max_drop, model, data, profile, validate)
    chosen = Hardware.load(hardware)
    network = workflow.load(model, weights) if model and (validate or not profile) else None
    with progress_bars() as progress:
        effort = workflow.Effort(seed, batch_size, seeds, allow_uncovered, progress)
        if profile is not None:
            measured = Profile.load(profile)
        else:
            calibration, kept = workflow.load_examples(str(data)), out / workflow.PROFILE_FILE
            assert network is not None
            measured = workflow.measure(network, str(model), calibration, chosen, effort, workflow.checkpoint_of(kept))
            measured.save(kept)
        allocation = choose(measured, budget, max_drop=max_drop, hardware=chosen, granularity=granularity, seed=seed)
        if validate is not None:
            assert network is not None
            allocation = workflow.validate_both(network, workflow.load_examples(validate), allocation, effort, out)
    _finish(allocation, out)


@app.command()
def validate(
    model: Model,
    data: Annotated[str, typer.Option(help="Evaluation data: .npz, .safetensors or module:factory.")],
    kmap: Annotated[Path, typer.Option(help="kmap.json that 'precalloc allocate' wrote.")],
    weights: Weights = None,
    seeds: NoiseSeeds = 8,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
) -> None:
    """Simulate the accuracy of a K map under noise."""
    from precalloc import workflow
    from precalloc.console import progress_bars, simulation_table, standard_console
    from precalloc.kmaps import KMap

    repetitions = KMap.load(kmap)
    network, examples = workflow.load(model, weights), workflow.load_examples(data)
    with progress_bars() as progress:
        effort = workflow.Effort(seed, batch_size, seeds, progress=progress)
        simulated = workflow.simulate(network, examples, repetitions, effort, workflow.checkpoint_of(kmap))
    standard_console().print(simulation_table(simulated))


@hardware_app.command("list")
def list_hardware() -> None:
    """List the presets."""
    from precalloc.console import hardware_table, standard_console
    from precalloc.hardware import Hardware

    standard_console().print(hardware_table({name: Hardware.load(name) for name in Hardware.presets()}))


@hardware_app.command("show")
def show_hardware(name: Annotated[str, typer.Argument(help="Preset name or TOML file.")]) -> None:
    """Show a hardware as TOML: a file to start your own from."""
    from precalloc.hardware import Hardware

    typer.echo(Hardware.load(name).to_toml(), nl=False)


def _check_request(
    budget: str | None,
    max_drop: float | None,
    model: str | None,
    data: str | None,
    profile: Path | None,
    validate: str | None,
) -> None:
    if (budget is None) == (max_drop is None):
        raise BudgetError("Give either --budget, such as '15x', or --max-drop, such as 0.02.")
    if profile is None and (model is None or data is None):
        raise ModelError("Give MODEL and --data to profile a model, or --profile with a saved profile.")
    if profile is not None and data is not None:
        raise ModelError("Give either --profile or --data: the profile already holds what calibration data tells.")
    if validate is not None and model is None:
        raise ModelError("--validate simulates the model: give MODEL as well.")


def _finish(allocation: Allocation, out: Path) -> None:
    """Write the results and show them."""
    from precalloc import workflow
    from precalloc.console import kmap_table, standard_console, summary_table
    from precalloc.reporting import warnings

    written = workflow.write_results(allocation, out, shlex.join(["precalloc", *sys.argv[1:]]))
    console = standard_console()
    console.print(kmap_table(allocation))
    console.print(summary_table(allocation))
    for warning in warnings(allocation):
        typer.echo(f"Note: {warning}")
    typer.echo(f"Written to {out}: {', '.join(path.name for path in written)}")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
