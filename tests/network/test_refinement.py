"""Local sensitivities against analytic damage and slopes; refinement where curvature is blind and where it is not."""

import dataclasses

import numpy as np
import pytest
import torch
from networks import (
    CPU,
    KINDS,
    SHOT,
    THERMAL,
    WEIGHT,
    ConvNet,
    EagerAttention,
    LinearSoftmax,
    Perceptron,
    hardware,
    initialised,
    normal,
)
from torch import nn
from torch.nn import functional as F

from precalloc import allocate, compensate, profile, refine
from precalloc.accuracy import paired_difference
from precalloc.errors import DataError, ProfileError
from precalloc.kmaps import KMap
from precalloc.network import refinement
from precalloc.network.batches import Batch
from precalloc.network.comparison import Comparison
from precalloc.network.criteria import Regression
from precalloc.network.curvature import ChannelSlots
from precalloc.network.data import as_data
from precalloc.network.descent import Chance, LogDescent, RunningMean, ScaleDescent, Schedule, on_budget
from precalloc.network.noise import NoiseInjector
from precalloc.network.operating_point import Judged, batch_slopes, noisy_values
from precalloc.network.preparation import TaskChoices, prepared
from precalloc.network.rectifiers import integrated_slopes
from precalloc.network.splitting import hold_out
from precalloc.network.tasks import Task
from precalloc.objective import Granularity, Objective
from solvers import Problem, solve

Z = 4.5


class Pooled(nn.Module):
    """Many positions behind a rectifier that is mostly off, pooled: noise averages away, its mean shift does not."""

    def __init__(self):
        super().__init__()
        self.filters, self.hidden, self.head = nn.Conv1d(1, 6, 5), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        pooled = F.relu(self.filters(x) - 1.0).mean(2)
        return 6.0 * self.head(torch.tanh(self.hidden(4.0 * pooled)))


class Straight(Pooled):
    """The same with outputs that go straight into the rectifier: their noise is integrated out."""

    def forward(self, x):
        pooled = F.relu(self.filters(x)).mean(2)
        return 6.0 * self.head(torch.tanh(self.hidden(4.0 * pooled)))


def slots_of(found):
    return ChannelSlots.of_sites({site.name: site.channels for site in found.sites})


def with_k(found, k, chip):
    allocation = allocate(found, "10x", hardware=chip)
    return dataclasses.replace(allocation.kmap(), repetitions={site.name: np.array([k]) for site in found.sites})


@pytest.mark.parametrize("kind", KINDS)
def test_weak_noise_has_the_damage_of_linear_softmax(kind):
    """Curvature of the cross-entropy is exact there: s_i = 1/2 mean v_i p_i (1 - p_i), whatever the labels."""
    model, x = initialised(LinearSoftmax(), seed=3), normal(4, 200, 5)
    chip = hardware((kind,))
    profiles = [profile(model, x, chip, seed=seed, batch_size=16, margins=0) for seed in range(40)]
    damage = np.array([Objective.of(p, chip, Granularity.CHANNEL).damage for p in profiles])
    kmap, slots = with_k(profiles[0], 3000.0, chip), slots_of(profiles[0])
    judged = Judged.of(model, Task(), Batch({"x": x}, None))
    local = np.array([batch_slopes(model, Task(), judged, kmap, slots, seed).sensitivity / 200 for seed in range(300)])
    error = np.hypot(local.std(0) / len(local) ** 0.5, damage.std(0) / len(damage) ** 0.5)
    assert np.all(error < 0.1 * damage.mean(0)), "the comparison would say nothing"
    assert np.all(np.abs(local.mean(0) - damage.mean(0)) < Z * error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_local_sensitivity_is_the_slope_of_the_noisy_loss(name, kind):
    """Under the same noise, strong as it is: s_u = -K dL/d log K, by differences in double precision."""
    model, shape = {"attention": (EagerAttention(), (3, 4)), "convolutions": (ConvNet(), (2, 6, 6))}[name]
    model, x = initialised(model, seed=1, scale=1.5).double(), normal(2, 24, *shape).double()
    found, chip = profile(model, x, hardware(KINDS), margins=0), hardware((kind,))
    slots, judged, step = slots_of(found), Judged.of(model, Task(), Batch({"x": x}, None)), 1e-5
    kmap = with_k(found, 0.7, chip)
    local = slots.sum_sites(batch_slopes(model, Task(), judged, kmap, slots, seed=5).sensitivity)

    def loss(site, k):
        moved = dataclasses.replace(kmap, repetitions=kmap.repetitions | {site: np.array([k])})
        return sum(graph_loss(model, judged, moved, sign) for sign in (1.0, -1.0)) / 2

    for index, site in enumerate(found.sites):
        slope = (loss(site.name, 0.7 * np.exp(step)) - loss(site.name, 0.7 * np.exp(-step))) / (2 * step)
        np.testing.assert_allclose(local[index], -0.7 * slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_in_corrections_are_those_of_the_noisy_loss(kind):
    """Of analog sites and digital ones, by differences in double precision under the same noise."""
    model, x = initialised(ConvNet(), seed=1, scale=1.5).double(), normal(2, 24, 2, 6, 6).double()
    found, chip = profile(model, x, hardware(KINDS), margins=0), hardware((kind,))
    slots, judged, step = slots_of(found), Judged.of(model, Task(), Batch({"x": x}, None)), 1e-5
    first, *others = (site.name for site in found.sites)
    kmap = with_k(found, 0.7, chip)
    analog = {name: kmap.repetitions[name] for name in others}
    channels = slots.channels
    kmap = dataclasses.replace(kmap, repetitions=analog, digital=(first,))
    rng = np.random.default_rng(6)
    corrections = {name: 0.1 * rng.normal(size=channels[name]) for name in (first, others[-1])}
    slots = ChannelSlots.of_sites({name: channels[name] for name in others})
    slopes = batch_slopes(model, Task(), judged, kmap.compensated(corrections), slots, seed=5).corrections
    assert slopes.keys() == corrections.keys()

    def loss(site, place, move):
        moved = corrections[site] + move * (np.arange(channels[site]) == place)
        at = kmap.compensated(corrections | {site: moved})
        return sum(graph_loss(model, judged, at, sign) for sign in (1.0, -1.0)) / 2

    for site, found_slopes in slopes.items():
        assert np.abs(found_slopes).max() > 1e-3
        for place, slope in enumerate(found_slopes):
            seen = (loss(site, place, step) - loss(site, place, -step)) / (2 * step)
            np.testing.assert_allclose(slope, seen, rtol=1e-4, atol=1e-7)


def graph_loss(model, judged, kmap, sign):
    """Loss with gradients on: without them torch lays out some products otherwise, and noise falls elsewhere."""
    from precalloc.network.interception import intercept

    with intercept(model, NoiseInjector.of(kmap, 5, CPU, sign)):
        return float(F.cross_entropy(model(judged.batch.inputs["x"]), judged.reference, reduction="sum").detach())


def noisy_loss(model, x, plan, draws=60):
    judged = Judged.of(model, Task(), Batch({"x": x}, None))
    kmap = plan if isinstance(plan, KMap) else plan.kmap()
    return np.array(
        [noisy_values(model, Task(), judged, NoiseInjector.of(kmap, 900 + s, CPU))[0].mean() for s in range(draws)]
    )


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_refinement_wins_where_noise_shifts_means(granularity):
    """Several profiles' allocations: some starts are good by luck."""
    model, x, fresh = initialised(Pooled(), seed=2), normal(3, 480, 1, 68), normal(4, 300, 1, 68)
    chip = hardware((THERMAL,), levels={THERMAL: 0.3})
    gains = []
    for seed in range(3):
        found = profile(model, x, chip, margins=0, seed=seed)
        start = allocate(found, "4x", hardware=chip, granularity=granularity)
        refined = refine(model, x, found, start)
        assert refined.energy_joule <= start.budget_joule * (1 + 1e-9)
        assert refined.refinement.kept or refined.by_site == start.by_site
        assert "20 steps" in refined.refinement.describe()
        gains.append(noisy_loss(model, fresh, start) - noisy_loss(model, fresh, refined))
    gain = np.concatenate(gains)
    assert gain.mean() > Z * gain.std() / len(gain) ** 0.5


def test_a_start_that_is_as_good_is_kept():
    """One layer has all of the budget: there is nowhere to go."""
    model, x = initialised(LinearSoftmax(), seed=1, scale=1.5), normal(3, 300, 5)
    chip = hardware((SHOT,))
    found = profile(model, x, chip, margins=0)
    start = allocate(found, "4x", hardware=chip)
    refined = refine(model, x, found, start)
    assert not refined.refinement.kept
    assert "already as good" in refined.refinement.describe()
    assert refined.by_site == start.by_site


@pytest.mark.parametrize("task", ["labels", "regression"])
def test_labels_and_other_losses(task):
    model, x = initialised(Pooled(), seed=2), normal(3, 240, 1, 68)
    y = model(x).detach() if task == "regression" else model(x).argmax(1)
    chip, data = hardware(KINDS), {"x": x, "y": y}
    found = profile(model, data, chip, margins=0)
    refined = refine(model, data, found, allocate(found, "3x", hardware=chip), steps=6)
    assert np.isfinite([refined.refinement.gain_low, refined.refinement.gain_high]).all()
    assert np.isnan(refined.refinement.score_gain) == (task == "regression")


@pytest.mark.parametrize("during", ["refining", "comparing"])
@pytest.mark.parametrize("compensated", [False, True])
def test_an_interrupted_refinement_goes_on_bit_for_bit(compensated, during, tmp_path):
    model, x = initialised(Straight(), seed=2), normal(3, 240, 1, 68)
    chip = dataclasses.replace(hardware(KINDS), digital_biases=True)
    found = profile(model, x, chip, margins=0)
    start, kept = allocate(found, "3x", hardware=chip, granularity="channel"), tmp_path / "kept"
    if compensated:
        start = compensate(model, x, start, check=False)
    whole = refine(model, x, found, start, steps=10)

    def stop(done, _, what):
        if what.startswith(during) and done >= 7:
            raise KeyboardInterrupt

    told = []

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        refine(model, x, found, start, steps=10, progress=stop, checkpoint=kept)
    assert kept.is_file()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    resumed = refine(model, x, found, start, steps=10, progress=lambda *each: told.append(each), checkpoint=kept)
    assert not kept.exists()
    assert sum(what == "refining" for *_, what in told) == (3 if during == "refining" else 0)
    assert told[-1] == (80, 80, f"comparing {4 if compensated else 2} K maps")
    assert np.array_equal(resumed.repetitions, whole.repetitions)
    assert resumed.refinement == whole.refinement
    assert resumed.bias_corrections.keys() == whole.bias_corrections.keys() == start.bias_corrections.keys()
    assert all(np.array_equal(resumed.bias_corrections[name], c) for name, c in whole.bias_corrections.items())


@pytest.mark.parametrize(
    ("granularity", "compensated", "wanted"), [("layer", False, 0), ("layer", True, 4), ("channel", False, 4)]
)
def test_noise_is_integrated_per_channel_and_with_corrections(granularity, compensated, wanted, monkeypatch):
    model, x, seen = initialised(Straight(), seed=2), normal(3, 60, 1, 68), []

    def counted(*arguments):
        found = integrated_slopes(*arguments)
        seen.append(found.excess)
        return found

    monkeypatch.setattr(refinement, "integrated_slopes", counted)
    chip = dataclasses.replace(hardware((THERMAL,)), digital_biases=True)
    found = profile(model, x, chip, margins=0)
    start = allocate(found, "3x", hardware=chip, granularity=granularity)
    if compensated:
        start = compensate(model, x, start, check=False)
    refine(model, x, found, start, steps=4)
    assert len(seen) == wanted
    first = slots_of(found).of(found.sites[0].name)
    assert all(np.all(excess[first] != 0.0) for excess in seen)


def test_data_model_and_allocation_must_be_the_profiles():
    model, x = initialised(Perceptron(), seed=1), normal(3, 60, 6)
    chip = hardware((SHOT,))
    found = profile(model, x, chip, margins=0)
    start = allocate(found, "20x", hardware=chip)
    with pytest.raises(DataError, match="same calibration data"):
        refine(model, normal(4, 60, 6), found, start)
    with pytest.raises(ProfileError, match="its weights differ"):
        refine(initialised(Perceptron(), seed=2), x, found, start)
    with pytest.raises(DataError, match="too few"):
        refine(model, x, found, start, steps=2)
    few = profile(model, x[:4], chip, margins=0)
    with pytest.raises(DataError, match="too few to hold some out"):
        refine(model, x[:4], few, allocate(few, "20x", hardware=chip))


def test_held_out_examples_are_disjoint_and_all_there():
    data = as_data({"x": torch.arange(50).float()[:, None], "y": torch.arange(50)})
    chosen, held_out = hold_out(data)
    for batch_size in (1, 4, 7, 100):
        parts = [torch.cat([batch.labels for batch in part.batches(batch_size)]) for part in (chosen, held_out)]
        assert [len(part) for part in parts] == [chosen.examples, held_out.examples] == [34, 16]
        assert sorted(torch.cat(parts).tolist()) == list(range(50))


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (1.0, 40.0), (9.0, np.array([11.0] * 25 + [40.0] * 25))])
def test_k_are_scaled_to_the_budget(bounds):
    """All that are within bounds by one factor, as far as bounds allow."""
    rng = np.random.default_rng(4)
    k, share = np.exp(rng.normal(size=50)), rng.random(50) / 300.0
    found = on_budget(k, share, bounds)
    assert share @ found == pytest.approx(1.0, rel=1e-14)
    inside = (found > bounds[0]) & (found < bounds[1])
    assert inside.sum() > 0
    assert np.ptp(np.log(found / k)[inside]) < 1e-13


@pytest.mark.parametrize(("bounds", "expected"), [((1.0, 2.0), 2.0), ((60.0, 90.0), 60.0)])
def test_a_budget_beyond_bounds_leaves_k_at_them(bounds, expected):
    found = on_budget(np.array([1.0, 3.0, 5.0]), np.full(3, 0.01), bounds)
    assert found.tolist() == [expected] * 3


def test_descent_reaches_the_optimum_of_separable_damage_within_bounds_and_ties():
    damage, cost = np.array([1.0, 4.0, 9.0, 0.01, 1.0, 1.0]), np.array([1.0, 1.0, 2.0, 1.0, 0.5, 1.5])
    problem = Problem(damage, cost, 20.0, 0.5, 8.0, "continuous", ties=np.array([-1, -1, -1, -1, 0, 0]))
    descent = LogDescent(problem, 20.0, np.full(6, 2.0), Schedule(300, 0.1), np.array([0, 0, 0, 1, 1, 1]))
    for _ in range(300):
        descent.step(damage)
        assert cost @ descent.k == pytest.approx(20.0)
    best = solve(problem)
    np.testing.assert_allclose(descent.k, best.k, rtol=1e-2)
    multiplier = np.mean(damage / best.k) * 6
    np.testing.assert_allclose(descent.optimal_damage(0.0), multiplier * cost * descent.k**2 / 20.0, rtol=0.1)


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_share_that_is_no_chance_is_that_of_the_signal(steps):
    """The share is what running means are best shrunk by, the regression of true means on them, in every block."""
    rng, blocks = np.random.default_rng(4), np.repeat(np.arange(60), 300)
    signal, ones, chance = rng.normal(size=len(blocks)), np.ones(len(blocks)), Chance(blocks)
    weights = 0.8 ** np.arange(steps)[::-1]
    gradients = signal + 2.0 * rng.normal(size=(steps, len(blocks)))
    for step in range(1, steps + 1):
        mean = weights[-step:] @ gradients[:step] / weights[-step:].sum()
        damping = chance.damping(gradients[step - 1], mean, ones)
    assert all(np.ptp(damping[blocks == block]) == 0.0 for block in range(60))
    wrong = damping[::300] ** 2 - np.bincount(blocks, signal * mean) / np.bincount(blocks, mean**2)
    error = wrong.std(ddof=1) / 60**0.5
    assert error < 0.02
    assert 0.25 < np.mean(damping**2) < 0.9, "the comparison would say nothing"
    assert abs(wrong.mean()) < Z * error


def test_units_alone_in_their_blocks_are_taken_together():
    gradients, directions = np.random.default_rng(6).normal(size=(2, 5, 6))
    alone, together = Chance(np.array([0, 1, 1, 5, 1, 7])), Chance(np.array([0, 1, 1, 0, 1, 0]))
    for gradient, direction in zip(gradients, directions, strict=True):
        found = [chance.damping(gradient, direction, np.ones(6)) for chance in (alone, together)]
        np.testing.assert_array_equal(*found)
    assert 0.0 < found[0][0] < 1.0


def test_channels_without_a_signal_stay_where_they_are(monkeypatch):
    """Those of the first site are worth their energy; of the second, one half is worth more and the other less."""
    blocks = np.repeat([0, 1], 1000)
    damage = np.where(blocks == 0, 1.0, np.tile([0.25, 1.75], 1000))
    problem = Problem(damage, np.ones(2000), 20_000.0, 0.1, 100.0, "continuous")

    def descend(seed):
        rng = np.random.default_rng(seed)
        descent = LogDescent(problem, 20_000.0, np.full(2000, 10.0), Schedule(40, 0.16), blocks)
        for _ in range(40):
            descent.step(damage + rng.normal(size=2000))
        low, high = np.log(descent.k[1000::2]), np.log(descent.k[1001::2])
        return np.log(descent.k[:1000]).std(), high.mean() - low.mean()

    held = np.array([descend(seed) for seed in range(20)])
    monkeypatch.setattr(Chance, "damping", lambda self, gradient, *rest: np.ones(len(gradient)))  # noqa: ARG005
    free = np.array([descend(seed) for seed in range(20)])
    (wandering, apart), error = (held / free).mean(0), (held / free).std(0, ddof=1) / 20**0.5
    assert wandering + Z * error[0] < 0.5
    assert apart - Z * error[1] > 0.8
    assert np.all(free[:, 1] > 0.5), "the comparison would say nothing"


def test_scales_reach_what_corrections_are_worth():
    """Loss sum_l |t_l - a_l c_l|^2 / 2, of which noise blurs the slopes: a_l = t_l . c_l / |c_l|^2."""
    rng = np.random.default_rng(8)
    corrections = {"first": rng.normal(size=5), "second": rng.normal(size=3)}
    wanted = {"first": 1.6 * corrections["first"], "second": -0.4 * corrections["second"]}
    descent = ScaleDescent(corrections, Schedule(400, 0.1))
    for _ in range(400):
        at = descent.corrections
        descent.step({site: at[site] - wanted[site] + 0.1 * rng.normal(size=len(at[site])) for site in at})
    np.testing.assert_allclose(descent.scales, [1.6, -0.4], atol=0.05)
    assert all(
        np.array_equal(descent.corrections[site], a * corrections[site])
        for a, site in zip(descent.scales, corrections, strict=True)
    )


def test_running_mean_of_few_is_the_mean_and_of_many_fades():
    mean = RunningMean(2, memory=2)
    for values in ([1.0, 4.0], [3.0, 0.0]):
        mean.take(np.array(values))
    np.testing.assert_allclose(mean.mean, [2.0, 2.0])
    mean.take(np.array([6.0, 2.0]))
    np.testing.assert_allclose(mean.mean, [4.0, 2.0])
    other = RunningMean(2, memory=2)
    other.restore(mean.state())
    for each in (mean, other):
        each.take(np.array([0.0, 0.0]))
    np.testing.assert_array_equal(other.mean, mean.mean)


class Averaged(nn.Module):
    """One site, nothing nonlinear: noise shifts no mean, and all of the energy is that site's."""

    def __init__(self):
        super().__init__()
        self.filters = nn.Conv1d(1, 6, 5)

    def forward(self, x):
        return self.filters(x).mean(2)


@pytest.mark.parametrize("factor", [0.0, 2.5])
def test_corrections_are_scaled_where_k_has_nowhere_to_go(factor):
    """Corrections by hand: without any is best, or 2.5 times as much, as the target is moved."""
    model, x, fresh = initialised(Averaged(), seed=2), normal(3, 300, 1, 20), normal(4, 300, 1, 20)
    chip = dataclasses.replace(hardware((THERMAL,), levels={THERMAL: 0.02}), digital_biases=True)
    correction = {"filters": np.array([0.2, -0.1, 0.3, 0.1, -0.2, 0.15])}
    moved = model(x).detach() + factor * torch.tensor(correction["filters"], dtype=torch.float32)
    data = {"x": x, "y": moved}
    found = profile(model, data, chip, margins=0)
    start = allocate(found, "4x", hardware=chip).with_bias_corrections(correction, {})
    refined = refine(model, data, found, start, steps=40)
    assert not refined.refinement.kept
    assert refined.by_site == start.by_site
    if factor == 0.0:
        assert "bias corrections raised the loss" in refined.notes[0]
        assert not refined.bias_corrections
    else:
        assert "each site's by what they were seen to be worth" in refined.notes[0]
        scale = refined.bias_corrections["filters"] / correction["filters"]
        np.testing.assert_allclose(scale, scale[0])
        assert 2.0 < scale[0] < 3.0
    wanted = model(fresh).detach() + factor * torch.tensor(correction["filters"], dtype=torch.float32)
    task, judged = Task(Regression()), Judged(Batch({"x": fresh}, None), wanted, torch.ones(300))
    before, after = (
        np.mean(noisy_values(model, task, judged, NoiseInjector.of(plan.kmap(), 7, CPU))[0])
        for plan in (start, refined)
    )
    assert after < before


def test_a_compensated_start_is_refined_with_its_corrections_at_work():
    """Noise is strong here: in twelve steps it depends on the seed what is won, in forty it is not."""
    model, x, fresh = initialised(Pooled(), seed=2), normal(3, 480, 1, 68), normal(4, 300, 1, 68)
    chip = dataclasses.replace(hardware((THERMAL,), levels={THERMAL: 0.2}), digital_biases=True)
    data = {"x": x, "y": model(x).detach()}  # squared error surely gains from means that are right
    found = profile(model, data, chip, margins=0)
    start = compensate(model, data, allocate(found, "4x", hardware=chip, granularity="channel"))
    assert start.bias_corrections
    assert refinement.schedule_of(start).steps == 12
    refined = refine(model, data, found, start, steps=40, draws=8)
    assert refined.refinement.kept
    assert refined.refinement.steps == 40
    assert refined.bias_corrections.keys() == start.bias_corrections.keys()
    assert not refined.notes
    for name, correction in start.bias_corrections.items():
        scale = (refined.bias_corrections[name] @ correction) / (correction @ correction)
        np.testing.assert_allclose(refined.bias_corrections[name], scale * correction)
    task, judged = Task(Regression()), Judged(Batch({"x": fresh}, None), model(fresh).detach(), torch.ones(300))
    before, after = (
        [noisy_values(model, task, judged, NoiseInjector.of(plan.kmap(), seed, CPU))[0].mean() for seed in range(40)]
        for plan in (start, refined)
    )
    gain = np.subtract(before, after)
    assert gain.mean() > Z * gain.std() / len(gain) ** 0.5


def test_corrections_that_raise_the_loss_are_dropped_with_what_was_refined_for_them():
    """`compensate` did not look: the comparison on held-out examples does. Four steps cannot scale them away."""
    model, x = initialised(LinearSoftmax(), seed=1, scale=1.5), normal(3, 300, 5)
    chip = dataclasses.replace(hardware((SHOT,)), digital_biases=True)
    found = profile(model, x, chip, margins=0)
    bare = allocate(found, "4x", hardware=chip)
    harmful = {site.name: np.arange(site.channels) == 0 for site in found.sites}
    start = bare.with_bias_corrections({name: 5.0 * c for name, c in harmful.items()}, harmful)
    refined = refine(model, x, found, start, steps=4)
    assert not refined.bias_corrections
    assert refined.uniform.bias_corrections == harmful
    assert refined.by_site == bare.by_site
    assert not refined.refinement.kept
    assert "bias corrections raised the loss" in refined.notes[0]
    useful = bare.with_bias_corrections({name: 0.0 * c for name, c in harmful.items()}, {})
    assert refine(model, x, found, useful).bias_corrections.keys() == harmful.keys()


def test_a_few_examples_share_a_device_and_intervals_know_it():
    """Errors of weights are common to a device's examples: taken for their own, intervals would be far too narrow."""
    model, x = initialised(Pooled(), seed=5), as_data(normal(8, 256, 1, 64))
    found = profile(model, x, hardware((WEIGHT,)), margins=0)
    plan = allocate(found, "2x")
    kmaps, draws = (plan.uniform_kmap(), plan.kmap()), 80
    with prepared(model, x, plan.kmap(), TaskChoices(), 32) as ready:
        seen = [Comparison.of(ready, x, kmaps, [seed], 32) for seed in range(draws)]
    gains = [each.gain(1, over=0) for each in seen]
    mean = np.mean([gain for gain, _, _ in gains])
    covered = sum(low < mean < high for _, low, high in gains)
    assert all(each.loss.shape == (2, 1, 256) for each in seen)
    assert abs(covered - 0.95 * draws) < Z * (0.95 * 0.05 * draws) ** 0.5


def test_devices_count_by_their_examples_however_many_they_have():
    """Groups of unlike sizes, weights and all, against the mean over examples and the interval of weighted devices."""
    rng = np.random.default_rng(4)
    loss, score, weight = rng.normal(size=(2, 2, 9)), rng.normal(size=(2, 2, 9)), rng.integers(1, 4, 9).astype(float)
    starts = np.array([0, 4, 5, 7])
    parts = [slice(0, 4), slice(4, 5), slice(5, 7), slice(7, 9)]
    of_device = np.array([weight[part].sum() for part in parts])
    means = [
        np.array([np.average(values[:, :, part], axis=2, weights=weight[part]) for part in parts]).transpose(1, 2, 0)
        for values in (loss, score)
    ]
    seen = Comparison(loss, score, weight, starts)
    assert seen.gain(1, over=0) == pytest.approx(paired_difference(means[0][0], means[0][1], of_device))
    assert seen.score_gain(1, over=0) == pytest.approx(paired_difference(means[1][1], means[1][0], of_device))
    assert seen.gain(1, over=0)[0] == pytest.approx(np.average(loss[0] - loss[1], axis=1, weights=weight).mean())
    assert seen.mean_loss(0) == pytest.approx(np.average(loss[0], axis=1, weights=weight).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_batch_sizes_leave_the_comparison_as_it_is(kind):
    """Devices change after as many examples whatever the batches."""
    model, x = initialised(Perceptron(), seed=5), normal(8, 60, 6)
    found = profile(model, x, hardware((kind,)), margins=0)
    small, large = (refine(model, x, found, allocate(found, "10x"), steps=4, batch_size=n) for n in (3, 64))
    assert small.refinement.draws == 1
    assert small.refinement.gain == pytest.approx(large.refinement.gain, rel=1e-4)
    assert small.refinement.gain_high == pytest.approx(large.refinement.gain_high, rel=1e-4)
    with pytest.raises(DataError, match=r"0 noise draws .* at least 1"):
        refine(model, x, found, allocate(found, "10x"), draws=0)
