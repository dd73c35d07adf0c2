"""Compensation: corrections against closed forms, residual shifts under fresh noise, deep networks, and refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import CPU, KINDS, SHOT, THERMAL, WEIGHT, EagerAttention, SharedLayer, hardware, initialised, normal
from scipy.stats import t as student
from torch import nn
from torch.nn import functional as F

from precalloc import Choices, Hardware, KMap, allocate, compensate, demo_model, profile, validate
from precalloc.errors import DataError, HardwareError, KMapError, ModelError
from precalloc.kmap_files import kmap_json, kmap_record
from precalloc.network.compensation import Effort
from precalloc.network.compensation import estimate as estimate_with
from precalloc.network.data_files import load_data
from precalloc.network.interception import intercept
from precalloc.network.noise import NoiseInjector
from precalloc.network.preparation import TaskChoices
from precalloc.network.shifts import channel_mean

Z = 4.5


class Rectifier(nn.Module):
    """One ReLU between two linear layers: the shift is known in closed form."""

    def __init__(self, features=6, hidden=8, classes=4):
        super().__init__()
        self.first, self.second = nn.Linear(features, hidden), nn.Linear(hidden, classes)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


class Separable(nn.Module):
    """A depthwise-separable stack of 27 convolutions, without normalisation that could hide a growing shift."""

    def __init__(self, channels=8, classes=4, blocks=13):
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1),
                nn.ReLU(),
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, channels=8, blocks=6, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2 * blocks))
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for first, second in zip(self.inner[::2], self.inner[1::2], strict=True):
            x = F.relu(x + 0.5 * second(F.relu(first(x))))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self, features=16, blocks=3, classes=4):
        super().__init__()
        layer = nn.TransformerEncoderLayer(features, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(features, classes)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def centred(model, x, scale=1.0):
    """Fill all parameters, and scale each layer so that its outputs have unit variance on x, as trained networks do."""
    model = initialised(model, 3)

    def normalise(_, product):
        y = product.apply(product.x, product.w)
        if product.is_static:
            with torch.no_grad():
                product.w.mul_(scale / y.std())
            y = product.apply(product.x, product.w)
        return y

    with torch.no_grad(), intercept(model, normalise):
        model(x)
    return model


def estimate(model, data, kmap, draws=8, batch_size=32, seed=0, **options):
    effort = Effort(draws, seed, examples=512, batch_size=batch_size)
    return estimate_with(model, data, kmap, TaskChoices(), effort, **options)


def chip(kinds=KINDS):
    return hardware(kinds, digital_biases=True)


def uniform_map(model, x, k, kinds=KINDS):
    chip_ = chip(kinds)
    found = allocate(profile(model, {"x": x}, chip_, margins=0), f"{k}x", hardware=chip_)
    return found.uniform_kmap()


def shifts(model, x, kmap, pairs=64, seed=77):
    """Mean shift of every channel of every static site under fresh noise, and its standard error over pairs."""
    clean, noisy = {}, {}

    def measure(into, handler):
        def note(site, product):
            y = product.apply(product.x, product.w) if handler is None else handler(site, product)
            if product.is_static:
                into.setdefault(site, []).append(channel_mean(y, product))
            return y

        with torch.no_grad(), intercept(model, note):
            model(x)

    measure(clean, None)
    for pair in range(pairs):
        halves = [{}, {}]
        for half, sign in zip(halves, (1.0, -1.0), strict=True):
            measure(half, NoiseInjector.of(kmap, seed + pair, CPU, sign))
        for site, means in halves[0].items():
            both = torch.stack([torch.stack(means).mean(0), torch.stack(halves[1][site]).mean(0)]).mean(0)
            noisy.setdefault(site, []).append(both - torch.stack(clean[site]).mean(0))
    stacked = {site: torch.stack(values).numpy() for site, values in noisy.items()}
    return {site: (v.mean(0), v.std(0, ddof=1) / math.sqrt(pairs)) for site, v in stacked.items()}


def rms(values):
    return math.sqrt(float(np.concatenate([mean**2 for mean, _ in values.values()]).mean()))


def test_correction_behind_a_relu_is_that_of_a_rectified_gaussian():
    model, x = initialised(Rectifier(), 1, 2.0), normal(2, 200, 6)
    kmap = uniform_map(model, x, 2, (THERMAL,))
    found = estimate(model, {"x": x}, kmap, draws=40, batch_size=200)
    weights = model.first.weight.detach()
    sigma = 0.05 / math.sqrt(2) * math.sqrt(6) * kmap.ranges["first"].input * (weights.amax(1) - weights.amin(1))
    y = model.first(x).detach()
    normal_of = torch.distributions.Normal(0.0, 1.0)
    rectified = y * normal_of.cdf(y / sigma) + sigma * normal_of.log_prob(y / sigma).exp()
    shift = (rectified - F.relu(y)).mean(0) @ model.second.weight.detach().T
    assert np.abs(found.corrections["first"]).max() < 1e-6  # opposite noise cancels where all is linear
    measured = shifts(model, x, kmap, 80)["second"]
    assert np.abs(measured[0] - shift.numpy()).max() < Z * measured[1].max()
    # As many examples and pairs as the estimate has, so the same standard error, a little more for its weights.
    error = measured[1] * math.sqrt(80 / 20) * 1.5
    assert (np.abs(found.corrections["second"] + shift.numpy()) < Z * error).all()
    assert np.abs(shift.numpy()).max() > 10 * error.max()


DEEP = {
    "separable": (Separable, (16, 2, 4, 4)),
    "residual": (Residual, (16, 2, 4, 4)),
    "transformer": (Transformer, (16, 6, 16)),
}


@pytest.mark.parametrize(
    ("network", "kind", "k"),
    [
        ("separable", WEIGHT, 4),
        ("separable", SHOT, 2),
        ("residual", SHOT, 2),
        ("transformer", SHOT, 2),
    ],
)
def test_shifts_shrink_on_deep_networks(network, kind, k):
    build, shape = DEEP[network]
    x = normal(5, *shape)
    model = centred(build(), x)
    kmap = uniform_map(model, x, k, (kind,))
    found = estimate(model, {"x": x}, kmap, draws=32)  # a device each pair: there is one step
    before, after = shifts(model, x, kmap, 12), shifts(model, x, kmap.compensated(found.corrections), 12)
    noise = rms({site: (error, error) for site, (_, error) in after.items()})
    assert rms(before) > 2.0 * noise
    assert rms(after) < max(0.35 * rms(before), 2.0 * noise)


def test_it_raises_the_accuracy_of_a_trained_network():
    model, chip_ = demo_model.build(), Hardware.load("homodyne-1550nm")
    calibration, evaluation = (load_data(str(path)) for path in (demo_model.CALIBRATION, demo_model.EVALUATION))
    found = allocate(profile(model, calibration, chip_, margins=0), "2x", hardware=chip_)
    corrected = compensate(model, calibration, found, examples=100, batch_size=50)
    assert corrected.is_compensated
    assert corrected.notes == ()
    for before, after in ((found.kmap(), corrected.kmap()), (found.uniform_kmap(), corrected.uniform_kmap())):
        low, high = (np.array(validate(model, evaluation, kmap, seeds=4).per_seed) for kmap in (before, after))
        gain = high - low
        assert gain.mean() - student.ppf(0.975, 3) * gain.std(ddof=1) / 2.0 > 0.0


def test_corrections_that_raise_the_loss_are_left_out_and_the_allocation_says_so():
    x = normal(5, 24, 2, 5, 5)
    model, chip_ = centred(Separable(), x), chip((SHOT,))
    noisy = NoiseInjector.of(uniform_map(model, x, 1, (SHOT,)), 1, CPU)
    with torch.no_grad(), intercept(model, noisy):
        favoured = model(x).mean(0).argmax()  # the class that the shift pushes every example to
    data = {"x": x, "y": favoured.expand(24)}
    found = allocate(profile(model, data, chip_, margins=0), "1x", hardware=chip_)
    refused = compensate(model, data, found, batch_size=12)
    assert not refused.is_compensated
    assert refused.by_site == found.by_site
    assert "not compensated" in refused.notes[0]
    assert "raised the loss" in refused.notes[0]
    unchecked = compensate(model, data, found, batch_size=12, check=False)
    assert unchecked.is_compensated
    assert not unchecked.uniform.bias_corrections  # nobody looks at them later
    assert len(unchecked.notes) == 1
    assert "the uniform K map" in unchecked.notes[0]
    assert compensate(model, data, found.kmap(), batch_size=12, check=False).bias_corrections
    assert not compensate(model, data, found.kmap(), batch_size=12).bias_corrections


@pytest.mark.parametrize(("kinds", "unchecked"), [((THERMAL, SHOT), 64), (KINDS, 128)])
def test_half_the_examples_serve_corrections_that_refinement_scales(kinds, unchecked):
    """Those of the uniform map stay as they are, and errors of weights need every device that there is."""
    x = normal(5, 200, 2, 5, 5)
    model = centred(Separable(), x)
    found, totals = allocate(profile(model, x, chip(kinds), margins=0), "3x"), []

    def note(done, total, _):
        if done == total:
            totals.append(total // 2)

    for plan, check in ((found, True), (found, False), (found.kmap(), True), (found.kmap(), False)):
        compensate(model, x, plan, check=check, progress=note)
    assert totals == [128, 128, unchecked, 128, 128, unchecked]
    compensate(model, x, found.kmap(), check=False, examples=100, progress=note)
    assert totals[-1] == 100


def test_a_site_that_is_called_twice_has_one_correction():
    model, x = initialised(SharedLayer(), 1, 2.0), normal(2, 64, 6)
    kmap = uniform_map(model, x, 2, (SHOT,))
    found = estimate(model, {"x": x}, kmap, draws=64)
    assert list(found.corrections) == ["shared", "head"]
    before, after = shifts(model, x, kmap, 32), shifts(model, x, kmap.compensated(found.corrections), 32)
    assert rms(after) < 0.35 * rms(before)


def test_products_of_activations_have_no_correction():
    model, x = initialised(EagerAttention(), 1, 2.0), normal(2, 32, 5, 4)
    found = estimate(model, {"x": x}, uniform_map(model, x, 4), draws=2)
    assert list(found.corrections) == ["qkv", "head"]


def test_digital_sites_shift_nothing_and_their_biases_are_corrected_too(tmp_path):
    """Before the first noise there is nothing to correct; a digital head takes away what reaches it."""
    model, x = initialised(Separable(blocks=3), 3), normal(2, 32, 2, 5, 5)
    model, chip_ = centred(model, x), chip((SHOT,))
    measured = profile(model, {"x": x}, chip_, margins=0)
    found = allocate(measured, "2x", hardware=chip_, choices=Choices(exclude=("stem", "blocks.0.*", "head")))
    bare, corrections = found.kmap(), estimate(model, {"x": x}, found.kmap()).corrections
    assert not any(corrections[site].any() for site in ("stem", "blocks.0.0", "blocks.0.2"))
    before, after = (shifts(model, x, kmap, 12) for kmap in (bare, bare.compensated(corrections)))
    assert not before["blocks.0.2"][0].any()
    assert rms(after) < 0.5 * rms(before)
    assert rms({"head": after["head"]}) < 0.5 * rms({"head": before["head"]})
    path = tmp_path / "kmap.json"
    path.write_text(kmap_json(found.with_bias_corrections(corrections, {})))
    assert KMap.load(path).digest == bare.compensated(corrections).digest


class InterruptionError(Exception):
    pass


def test_an_interrupted_estimate_goes_on_to_the_same_result(tmp_path):
    model, x = initialised(Rectifier(), 1, 2.0), normal(2, 40, 6)
    kmap, path = uniform_map(model, x, 2), tmp_path / "kept"

    def stop(done, total, _):
        if done > total * 0.6:
            raise InterruptionError

    whole = estimate(model, {"x": x}, kmap, seed=3)
    with pytest.raises(InterruptionError):
        estimate(model, {"x": x}, kmap, seed=3, progress=stop, checkpoint=path)
    assert path.is_file()
    resumed = estimate(model, {"x": x}, kmap, seed=3, checkpoint=path)
    assert not path.exists()
    assert resumed.losses == whole.losses
    for site, correction in whole.corrections.items():
        assert np.array_equal(correction, resumed.corrections[site])


def test_the_file_holds_the_corrections_and_what_does_not_fit_is_refused():
    model, x = initialised(Rectifier(), 1, 2.0), normal(2, 40, 6)
    chip_ = chip((SHOT,))
    found = allocate(profile(model, {"x": x}, chip_, margins=0), "2x", hardware=chip_)
    corrections = {"second": np.array([0.5, -0.25, 0.0, 1.0])}
    record = kmap_record(found.with_bias_corrections(corrections, {}))
    assert [site["bias_correction"] for site in record["sites"]] == [None, [0.5, -0.25, 0.0, 1.0]]
    kmap = KMap.from_record(record, "the test")
    assert list(kmap.bias_corrections) == ["second"]
    quiet = replace(kmap, repetitions={name: np.array([1e12]) for name in kmap.repetitions})
    with torch.no_grad():
        expected = (model(x) + torch.tensor(corrections["second"])).argmax(1)
    assert validate(model, {"x": x, "y": expected}, quiet, seeds=1).accuracy == 1.0
    with pytest.raises(KMapError, match="'second' has 4 channels, but 3 bias corrections"):
        validate(model, {"x": x}, kmap.compensated({"second": np.zeros(3)}))
    record["sites"][1]["bias_correction"] = ["a"]
    with pytest.raises(KMapError, match="malformed"):
        KMap.from_record(record, "the test")


def test_refusals_name_the_remedy():
    model, x = initialised(Rectifier(), 1, 2.0), normal(2, 40, 6)
    chip_ = chip((SHOT,))
    found = allocate(profile(model, {"x": x}, chip_, margins=0), "2x", hardware=chip_)
    with pytest.raises(DataError, match="calibration data of the profile"):
        compensate(model, {"x": x + 1.0}, found)
    with pytest.raises(ModelError, match="not the one that was profiled"):
        compensate(initialised(Rectifier(), 2), {"x": x}, found)
    analog = allocate(profile(model, {"x": x}, hardware((SHOT,)), margins=0), "2x", hardware=hardware((SHOT,)))
    with pytest.raises(HardwareError, match=r"\[digital\] biases = true"):
        compensate(model, {"x": x}, analog)
