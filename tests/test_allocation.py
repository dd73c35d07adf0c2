import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from builders import CHANNELS, KINDS, MACS, make_hardware, make_profile

import precalloc
from precalloc.allocator import Allocator, allocate
from precalloc.errors import BudgetError, ProfileError
from precalloc.hardware import NoiseKind, Redundancy
from precalloc.objective import parse_granularity
from precalloc.prediction import Predictor

LEVELS = {"integer": math.inf, "continuous": math.inf, (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0): 64.0}
EVERY_LEVELS = pytest.mark.parametrize(("levels", "k_max"), LEVELS.items(), ids=["integer", "continuous", "listed"])
EVERY_GRANULARITY = pytest.mark.parametrize("granularity", ["layer", "channel"])


@EVERY_LEVELS
@EVERY_GRANULARITY
@pytest.mark.parametrize("budget", ["1x", "1.7x", "15x", "40% of 15x", "0.2 pJ", "9 aJ/MAC"])
def test_every_budget_is_kept_and_beats_uniform(levels, k_max, granularity, budget):
    hardware, profile = make_hardware(levels=levels, k_max=k_max), make_profile()
    result = allocate(profile, budget, hardware=hardware, granularity=granularity)
    assert result.energy_joule <= result.budget_joule * (1 + 1e-12)
    assert result.uniform.energy_joule <= result.budget_joule * (1 + 1e-12)
    assert result.objective <= result.uniform.damage
    assert result.lower_bound <= result.objective
    assert result.gap == pytest.approx(result.objective - result.lower_bound)
    k = result.repetitions
    assert k.size == (4 if granularity == "layer" else sum(CHANNELS))
    assert np.all((k >= 1.0) & (k <= k_max))
    if levels == "integer":
        assert np.array_equal(k, np.round(k))
    elif levels != "continuous":
        assert set(k) <= set(levels)


def test_figures_are_those_of_the_formulas():
    hardware, profile = make_hardware(((NoiseKind.SHOT, 2.0),), per_mac=3e-18, per_conversion=1e-17), make_profile()
    result = allocate(profile, "12x", hardware=hardware)
    k = result.repetitions
    damage = profile.sum_channels(profile.damage[NoiseKind.SHOT]) / 2.0 / k  # strength 1 / n_0
    cost = np.array(MACS) * 3e-18 + np.array(MACS) / 10.0 * 1e-17
    np.testing.assert_allclose([s.damage for s in result], damage)
    np.testing.assert_allclose([s.energy_joule for s in result], cost * k)
    assert result.objective == pytest.approx(damage.sum())
    assert result.energy_joule == pytest.approx(cost @ k)
    assert result.energy_per_mac_joule == pytest.approx(cost @ k / sum(MACS))
    assert result.mean_repetitions == pytest.approx(cost @ k / cost.sum())
    variance = profile.sum_channels(profile.noise_variance[NoiseKind.SHOT]) / np.array(CHANNELS) / 2.0 / k
    np.testing.assert_allclose([s.noise_bits for s in result], np.log2(4.0 / np.sqrt(12.0 * variance) + 1.0))
    assert result.uniform.repetitions == 12.0


def test_continuous_allocation_is_the_closed_form():
    profile = make_profile()
    result = allocate(profile, "50x", hardware=make_hardware(levels="continuous"))
    s, c = profile.sum_channels(profile.damage[NoiseKind.SHOT]), np.array(MACS) * 1e-18
    np.testing.assert_allclose(result.repetitions, np.sqrt(s / c) * 50.0 * c.sum() / np.sqrt(s * c).sum(), rtol=1e-9)


def test_integer_allocation_is_the_best_of_all():
    profile, hardware = make_profile(), make_hardware(k_max=7.0)
    result = allocate(profile, "3x", hardware=hardware)
    s, c = profile.sum_channels(profile.damage[NoiseKind.SHOT]), np.array(MACS)
    grid = np.array(list(itertools.product(range(1, 8), repeat=4)), dtype=float)
    best = (s / grid[grid @ c <= 3.0 * c.sum()]).sum(axis=1).min()
    assert result.lower_bound * (1 - 1e-12) <= best <= result.objective * (1 + 1e-12)
    assert result.objective <= best + result.gap * (1 + 1e-9) + 1e-12


def test_finer_granularity_does_no_more_damage():
    hardware = make_hardware(levels="continuous")
    layer, channel = (allocate(make_profile(), "10x", hardware=hardware, granularity=g) for g in ("layer", "channel"))
    assert channel.objective < layer.objective


def test_noise_that_is_not_averaged_is_a_floor():
    noise = ((NoiseKind.THERMAL, 0.5), (NoiseKind.WEIGHT, 0.2))
    profile = make_profile()
    timed = allocate(profile, "9x", hardware=make_hardware(noise, Redundancy.TIME))
    spaced = allocate(profile, "9x", hardware=make_hardware(noise, Redundancy.SPACE))
    floor = 0.04 * profile.damage[NoiseKind.WEIGHT].sum()
    assert timed.floor == pytest.approx(floor)
    assert spaced.floor == 0.0
    thermal = 0.25 * profile.sum_channels(profile.damage[NoiseKind.THERMAL])
    weight = 0.04 * profile.sum_channels(profile.damage[NoiseKind.WEIGHT])
    np.testing.assert_allclose([s.damage for s in timed], thermal / timed.repetitions + weight)
    np.testing.assert_allclose([s.damage for s in spaced], (thermal + weight) / spaced.repetitions)
    variance = 0.25 * profile.noise_variance[NoiseKind.THERMAL][:4] / timed.repetitions[0]
    variance = (variance + 0.04 * profile.noise_variance[NoiseKind.WEIGHT][:4]).mean()
    assert timed.sites[0].noise_bits == pytest.approx(math.log2(4.0 / math.sqrt(12.0 * variance) + 1.0))


@pytest.mark.parametrize(("budget", "least"), [("0.5x", "1x"), ("5 fJ", "13.3 fJ"), ("0.4 aJ/MAC", "1 aJ/MAC")])
def test_infeasible_budget_names_the_least_feasible_one(budget, least):
    with pytest.raises(BudgetError, match=f"short.* Give at least {least}") as error:
        allocate(make_profile(), budget, hardware=make_hardware())
    assert budget in str(error.value)
    assert allocate(make_profile(), least, hardware=make_hardware()).uniform.repetitions == 1.0


def test_least_share_of_a_uniform_allocation():
    with pytest.raises(BudgetError, match=r"Give at least 6\.667% of 15x"):
        allocate(make_profile(), "5% of 15x", hardware=make_hardware())


def test_either_budget_or_drop():
    for arguments in ({}, {"budget": "15x", "max_drop": 0.02}):
        with pytest.raises(BudgetError, match="either a budget"):
            allocate(make_profile(), **arguments, hardware=make_hardware())


def test_missing_noise_kind_is_named():
    hardware = make_hardware(((NoiseKind.WEIGHT, 0.1),), Redundancy.SPACE)
    with pytest.raises(ProfileError, match=r"shot noise.*weight noise.*Profile the model again"):
        allocate(make_profile(kinds=(NoiseKind.SHOT,)), "15x", hardware=hardware)


@pytest.mark.parametrize("call", [allocate, precalloc.sweep])
def test_hardware_is_that_of_the_profile_unless_named(call):
    own, other = make_hardware(per_mac=2e-18), make_hardware(((NoiseKind.THERMAL, 0.5),), levels="continuous")
    profile = make_profile(hardware=own)

    def energies(**hardware):
        found = call(profile, "7.3x", **hardware)
        return found.energy_joule.item() if call is precalloc.sweep else found.energy_joule

    assert energies() == energies(hardware=own) != energies(hardware=other)
    assert allocate(profile, "7.3x").hardware == own


def test_unknown_granularity_and_damage_that_is_no_number():
    with pytest.raises(ProfileError, match=r"'row'.*'layer' or 'channel'"):
        allocate(make_profile(), "15x", hardware=make_hardware(), granularity="row")
    damage = dict.fromkeys(KINDS, np.full(sum(CHANNELS), np.nan))
    with pytest.raises(ProfileError, match=r"block0\.conv.*not finite"):
        allocate(make_profile(damage=damage), "15x", hardware=make_hardware())


def test_without_margins_nothing_is_predicted():
    result = allocate(make_profile(margins=False), "15x", hardware=make_hardware())
    assert result.predicted is result.uniform.predicted is result.matching_uniform is result.saving is None
    with pytest.raises(ProfileError, match="no margins"):
        allocate(make_profile(margins=False), max_drop=0.02, hardware=make_hardware())


@EVERY_LEVELS
def test_energy_saved_at_equal_accuracy(levels, k_max):
    hardware, profile = make_hardware(levels=levels, k_max=k_max), make_profile()
    result = allocate(profile, "8x", hardware=hardware)
    matching, predictor = result.matching_uniform, Predictor.of(profile, hardware, result.granularity)
    assert matching.predicted.accuracy >= result.predicted.accuracy
    assert result.saving == pytest.approx(1.0 - result.energy_joule / matching.energy_joule)
    k = matching.repetitions
    below = {"integer": k - 1.0, "continuous": k * 0.998}.get(levels, k / 2.0)
    if below >= 1.0:  # the next smaller K does not reach it
        assert predictor.predict(below).accuracy < result.predicted.accuracy


@EVERY_LEVELS
@EVERY_GRANULARITY
def test_least_energy_for_an_accuracy(levels, k_max, granularity):
    hardware, profile = make_hardware(levels=levels, k_max=k_max), make_profile(examples=2000)
    result = allocate(profile, max_drop=0.03, hardware=hardware, granularity=granularity)
    assert result.predicted.drop_high <= 0.03
    assert result.matching_uniform.predicted.drop_high <= 0.03
    assert result.max_drop == 0.03
    a_little_less = f"99% of {result.budget_joule * 1e15} fJ"
    less = allocate(profile, a_little_less, hardware=hardware, granularity=granularity)
    assert less.predicted.drop_high > 0.03 or less.energy_joule == result.energy_joule


@EVERY_LEVELS
@EVERY_GRANULARITY
def test_quick_solutions_are_certified_as_well(levels, k_max, granularity):
    hardware, profile = make_hardware(levels=levels, k_max=k_max), make_profile()
    allocator = Allocator.of(profile, hardware, parse_granularity(granularity))
    for multiple in (1.0, 1.7, 5.0, 15.0):
        energy = multiple * allocator.objective.cost_at_k1
        (quick, found), (full, proven) = allocator.solve(energy, quick=True), allocator.solve(energy)
        damage = [allocator.objective.damage_at(k) for k in (quick, full)]
        assert allocator.objective.energy_joule(quick) <= energy * (1 + 1e-12)
        assert found.lower_bound * (1 - 1e-12) <= damage[1] <= damage[0] * (1 + 1e-12)
        assert damage[0] - proven.lower_bound <= found.gap + 1e-12 * damage[0]


def test_accuracy_out_of_reach_names_the_best_and_the_cause():
    noise = ((NoiseKind.THERMAL, 0.5), (NoiseKind.WEIGHT, 0.8))
    with pytest.raises(BudgetError, match=r"0\.5 points.*predicted drop is .* points.*weight noise is not averaged"):
        allocate(make_profile(), max_drop=0.005, hardware=make_hardware(noise, Redundancy.TIME))
    with pytest.raises(BudgetError, match="at K = 2 everywhere"):
        allocate(make_profile(), max_drop=0.03, hardware=make_hardware(k_max=2.0))


@pytest.mark.parametrize("max_drop", [0.0, -0.1, 2.0, float("nan")])
def test_drop_must_be_a_share(max_drop):
    with pytest.raises(BudgetError, match=r"two points are 0\.02"):
        allocate(make_profile(), max_drop=max_drop, hardware=make_hardware())


def test_same_seed_same_result_and_arrays_are_read_only():
    first, second = (allocate(make_profile(), "15x", hardware=make_hardware(), seed=3) for _ in range(2))
    assert first.predicted == second.predicted
    assert np.array_equal(first.repetitions, second.repetitions)
    with pytest.raises(ValueError, match="read-only"):
        first.sites[0].repetitions[0] = 1.0


def test_global_random_states_stay_as_they_were():
    def states():
        kind, words, *rest = np.random.get_state()  # noqa: NPY002
        return kind, words.tobytes(), rest, random.getstate()

    before, profile = states(), make_profile(examples=2000)
    allocate(profile, "15x")
    allocate(profile, max_drop=0.03, granularity="channel")
    precalloc.sweep(profile, "2x:50x:3")
    with pytest.raises(BudgetError):
        allocate(profile, "0.1x")
    assert states() == before


@EVERY_GRANULARITY
def test_sweep_rows_are_the_allocations(granularity):
    profile, hardware = make_profile(), make_hardware()
    frame = precalloc.sweep(profile, "2x:50x:4", hardware=hardware, granularities=(granularity,))
    assert len(frame) == 4
    assert frame["energy_joule"].is_monotonic_increasing
    assert frame["damage"].is_monotonic_decreasing
    assert (frame["damage"] <= frame["uniform_damage"]).all()
    last = allocate(profile, "50x", hardware=hardware, granularity=granularity)
    assert frame["accuracy"].iloc[-1] == last.predicted.accuracy
    assert frame["uniform_drop_high"].iloc[-1] == last.uniform.predicted.drop_high
    missing = frame.columns[frame.isna().any()]
    assert [name for name in missing if "simulated" not in name] in ([], ["saving"])
    assert frame.filter(like="simulated").isna().all(axis=None)


def test_the_predicted_loss_has_the_errors_of_clean_loss_and_damage():
    profile, chip = make_profile(), make_hardware()
    found = allocate(profile, "15x", hardware=chip)
    site_error = profile.site_damage_error[NoiseKind.SHOT] / found.repetitions
    error = profile.clean_loss_error + site_error.sum()
    assert found.loss_error == pytest.approx(error)
    low, high = found.predicted_loss_interval
    assert high - low == pytest.approx(2.0 * 1.96 * error, rel=1e-3)
    assert (low + high) / 2.0 == pytest.approx(found.predicted_loss)
    channels = allocate(profile, f"{found.uniform.repetitions}x", hardware=chip, granularity="channel").uniform
    assert channels.loss_error == pytest.approx(found.uniform.loss_error)
    unknown = replace(profile, site_damage_error={k: np.full(4, np.nan) for k in profile.kinds})
    assert np.isnan(allocate(unknown, "15x", hardware=chip).loss_error)
