"""Nothing of the user's is changed by a call, finished or not; an interrupted call goes on to the same result."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import precalloc
from precalloc.errors import ProfileError
from precalloc.hardware import AVERAGED_BY, Hardware, NoiseKind, NoiseTerm, Redundancy, Repetition

LEVELS = {NoiseKind.THERMAL: 0.01, NoiseKind.WEIGHT: 0.1, NoiseKind.SHOT: 1.0}
HARDWARE = Hardware(
    "all kinds",
    tuple(NoiseTerm(kind, level, AVERAGED_BY[kind]) for kind, level in LEVELS.items()),
    Repetition(Redundancy.SPACE),
    1e-15,
)


class Fails(nn.Module):
    """A network that can be told to fail at its nth forward pass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)
        self.left = 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of order")
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = Fails().train()
    network.body[3].eval()  # modes differ between modules
    network.head.bias.requires_grad_(False)
    network.head.register_forward_hook(lambda *_: None)
    return network


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(64, 1, 6, 6)).astype(np.float32), "y": rng.integers(0, 3, 64)}


def snapshot(model):
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "grad": [(p.requires_grad, p.grad) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "python": random.getstate(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    assert all(torch.equal(before["weights"][name], value) for name, value in after["weights"].items())
    assert torch.equal(before["torch"], after["torch"])
    assert np.array_equal(before["numpy"], after["numpy"])
    for key in ("modes", "grad", "hooks", "python", "fast path", "grad mode"):
        assert before[key] == after[key], key


def kmap_of(model, data):
    profile = precalloc.profile(model, data, HARDWARE, batch_size=16)
    return precalloc.allocate(profile, "4x", hardware=HARDWARE).kmap()


def test_calls_leave_no_trace(model, data):
    before = snapshot(model)
    precalloc.sites(model, data)
    kmap = kmap_of(model, data)
    precalloc.validate(model, data, kmap, seeds=2)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("passes", [0, 1, 3, 5, 7])
def test_failing_calls_leave_no_trace(model, data, passes):
    kmap = kmap_of(model, data)
    before = snapshot(model)
    for call in (
        lambda: precalloc.sites(model, data),
        lambda: precalloc.profile(model, data, HARDWARE, batch_size=16),
        lambda: precalloc.validate(model, data, kmap, batch_size=16),
    ):
        model.left = passes
        try:
            call()
        except precalloc.errors.DataError as error:
            assert "out of order" in str(error)  # noqa: PT017 - discovery needs fewer passes and may finish
        assert_same(before, snapshot(model))


class Interrupt:
    """Progress that stops the work once."""

    def __init__(self, at):
        self.at = at

    def __call__(self, done, total, what):
        assert done <= total
        assert what
        if done >= self.at:
            self.at = 10**9
            raise KeyboardInterrupt


def equal_profiles(one, other):
    arrays = ("damage", "damage_error", "site_damage_error", "noise_variance")
    tables = all(
        np.array_equal(getattr(one, name)[kind], getattr(other, name)[kind]) for name in arrays for kind in one.kinds
    )
    margins = np.array_equal(one.margins.margins, other.margins.margins)
    covariance = all(
        np.array_equal(one.margins.channel_covariance[kind], other.margins.channel_covariance[kind])
        for kind in one.kinds
    )
    return tables and margins and covariance and one.sites == other.sites


def test_interrupted_profile_resumes_to_the_same_bits(model, data, tmp_path):
    whole = precalloc.profile(model, data, HARDWARE, batch_size=16)
    checkpoint, progress = tmp_path / "run.npz", Interrupt(32)
    with pytest.raises(KeyboardInterrupt):
        precalloc.profile(model, data, HARDWARE, batch_size=16, progress=progress, checkpoint=checkpoint)
    assert checkpoint.is_file()
    with pytest.raises(ProfileError, match="another model, data or option"):
        precalloc.profile(model, data, HARDWARE, batch_size=16, seed=1, checkpoint=checkpoint)
    resumed = precalloc.profile(model, data, HARDWARE, batch_size=16, progress=progress, checkpoint=checkpoint)
    assert equal_profiles(whole, resumed)
    assert not checkpoint.exists()


def test_same_seed_same_bits_other_seed_other_bits(model, data):
    one, same, other = (precalloc.profile(model, data, HARDWARE, seed=seed) for seed in (0, 0, 1))
    assert equal_profiles(one, same)
    assert not equal_profiles(one, other)


def test_interrupted_validation_resumes_to_the_same_result(model, data, tmp_path):
    kmap = kmap_of(model, data)
    whole = precalloc.validate(model, data, kmap, seeds=4)
    checkpoint, progress = tmp_path / "run.npz", Interrupt(2 * 64 + 1)
    with pytest.raises(KeyboardInterrupt):
        precalloc.validate(model, data, kmap, seeds=4, progress=progress, checkpoint=checkpoint)
    assert precalloc.validate(model, data, kmap, seeds=4, progress=progress, checkpoint=checkpoint) == whole
    assert not checkpoint.exists()


def test_saved_profile_reads_back(model, data, tmp_path):
    profile = precalloc.profile(model, data, HARDWARE)
    read = precalloc.Profile.load(profile.save(tmp_path / "profile.npz"))
    assert equal_profiles(profile, read)
    assert read.provenance == profile.provenance
    assert [path.name for path in tmp_path.iterdir()] == ["profile.npz"]
