import math
import re
from dataclasses import replace

import numpy as np
import pytest
from builders import make_hardware, make_profile

from precalloc import figures
from precalloc.accuracy import SimulatedAccuracy, SimulatedLoss
from precalloc.allocator import allocate
from precalloc.console import kmap_table, progress_bars, simulation_table, standard_console, summary_table
from precalloc.errors import BudgetError
from precalloc.hardware import NoiseKind, Redundancy
from precalloc.refinements import Refinement
from precalloc.reporting import report_markdown, warnings


def outcomes(share, seed=0):
    correct = np.random.default_rng(seed).random((8, 400)) < share
    return SimulatedAccuracy.from_outcomes(correct, np.ones(400, bool))


def test_report_states_the_figures():
    allocation = allocate(make_profile(), "15x", hardware=make_hardware())
    text = report_markdown(allocation, "precalloc allocate --budget 15x")
    assert f"| predicted accuracy | {100 * allocation.predicted.accuracy:.1f} % [" in text
    assert f"**Energy saved at equal accuracy: {100 * allocation.saving:.1f} %.**" in text
    assert "uniform K = 15 |" in text
    assert "    precalloc allocate --budget 15x" in text
    assert "Not simulated yet" in text
    for entry in allocation:
        assert re.search(rf"\| {re.escape(entry.site.name)} \| conv2d \|.* {entry.repetitions[0]:g} \|", text)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_report_without_prediction_and_with_simulation():
    allocation = allocate(make_profile(margins=False), "15x", hardware=make_hardware())
    assert "no margins per layer" in report_markdown(allocation)
    text = report_markdown(allocation.with_simulation(outcomes(0.9), outcomes(0.8)))
    assert "(400 examples, 8 noise seeds)" in text
    assert "Not simulated yet" not in text


def test_floor_is_said():
    noise = ((NoiseKind.THERMAL, 0.1), (NoiseKind.WEIGHT, 0.2))
    allocation = allocate(make_profile(), "15x", hardware=make_hardware(noise, Redundancy.TIME))
    (floor,) = (warning for warning in warnings(allocation) if "floor" in warning)
    assert floor.startswith("Weight noise is a floor")
    assert f"{allocation.floor:.3g}" in floor
    assert "no: floor" in report_markdown(allocation)


def test_a_failure_to_help_is_said():
    allocation = allocate(make_profile(), "15x", hardware=make_hardware())
    assert any("Do not use" in w for w in warnings(allocation.with_simulation(outcomes(0.5), outcomes(0.9))))
    assert any("disagree" in w for w in warnings(allocation.with_simulation(outcomes(0.5))))
    agreeing = allocation.with_simulation(outcomes(1 - allocation.predicted.drop))
    assert not any("disagree" in w for w in warnings(agreeing))


@pytest.mark.parametrize(("share", "told"), [(1.0, True), (0.5, False)])
def test_a_refined_allocation_may_do_better_than_predicted(share, told):
    allocation = allocate(make_profile(), "2x", hardware=make_hardware())
    seen = Refinement(True, 0.2, 0.1, 0.3, 0.01, 0.0, 0.02, steps=24, examples=100, draws=1)
    for plan, refined in ((allocation, False), (replace(allocation, refinement=seen), True)):
        (warning,) = (w for w in warnings(plan.with_simulation(outcomes(share))) if "disagree" in w)
        assert ("what refinement wins" in warning) == (told and refined)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_tables_fit_80_columns_without_colour(granularity, capsys):
    allocation = allocate(make_profile(), "15x", hardware=make_hardware(), granularity=granularity)
    allocation = allocation.with_simulation(outcomes(0.9), outcomes(0.8))
    console = standard_console()
    for table in (kmap_table(allocation), summary_table(allocation), simulation_table(outcomes(0.9))):
        console.print(table)
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    for entry in allocation:
        assert entry.site.name in text
    assert f"{100 * allocation.predicted.accuracy:.1f} %" in text
    assert "energy saved at equal predicted accuracy" in text


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    with progress_bars() as progress:
        progress(1, 2, "profiling")
        progress(2, 2, "profiling")
    assert capsys.readouterr() == ("", "")


def losses(increase, task, score=""):
    rng = np.random.default_rng(0)
    clean = rng.exponential(1.0, 200)
    noisy = clean + increase * (1.0 + rng.standard_normal((4, 200)))
    loss = SimulatedLoss.from_losses(noisy, clean)
    rows = np.full((4, 200), np.nan) if not score else rng.random((4, 200))
    return SimulatedAccuracy.from_outcomes(rows, rows[0], loss=loss, task=task, score=score)


@pytest.mark.parametrize("task", ["regression", "language-model"])
def test_tasks_without_accuracy_are_told_by_their_loss(task, capsys):
    profile = make_profile(margins=False)
    score = "token accuracy" if task == "language-model" else ""
    profile = replace(profile, provenance=replace(profile.provenance, task=task, score=score))
    allocation = allocate(profile, "15x", hardware=make_hardware())
    assert allocation.predicted_loss == pytest.approx(0.2 + allocation.objective)
    assert allocation.uniform.predicted_loss >= allocation.predicted_loss
    text = report_markdown(allocation)
    assert f"| predicted loss | {figures.predicted_loss(allocation, task)} |" in text
    assert figures.predicted_loss(allocation, task).endswith("]")
    unknown = replace(profile, clean_loss_error=math.nan)
    told = figures.predicted_loss(allocate(unknown, "15x", hardware=make_hardware()), task)
    assert told == figures.loss(allocation.predicted_loss, task)
    assert ("predicted accuracy" in text, "no margins" in text) == (False, False)
    assert ("perplexity" in text) == (task == "language-model")
    simulated = losses(allocation.objective, task, score)
    both = allocation.with_simulation(simulated, losses(allocation.uniform.damage, task, score))
    found = simulated.loss.increase, simulated.loss.increase_low, simulated.loss.increase_high
    assert "{:.4f} [{:.4f}, {:.4f}]".format(*found) in report_markdown(both)
    assert "outside the 95 %" not in report_markdown(both)
    assert "outside the 95 %" in report_markdown(allocation.with_simulation(losses(5.0 * allocation.objective, task)))
    with pytest.raises(BudgetError, match=f"this profile is of {task}"):
        allocate(profile, max_drop=0.1, hardware=make_hardware())
    for table in (summary_table(both), simulation_table(simulated)):
        standard_console().print(table)
        printed = capsys.readouterr().out
        assert max(len(line) for line in printed.splitlines()) <= 80
        assert f"{simulated.loss.clean_loss:.4f}" in printed
