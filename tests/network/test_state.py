"""Every public call leaves the model and the global random states as they were; interrupted runs resume bit for bit."""

import copy
import random

import numpy as np
import pytest
import torch
from networks import KINDS, Perceptron, hardware, initialised, normal
from torch import nn
from torch.nn import functional as F

from precalloc import profile, sites, validate
from precalloc.errors import ProfileError
from precalloc.kmaps import KMap, SiteRanges
from precalloc.objective import Granularity

CHIP = hardware()


class Interrupted(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


class Calls:
    """Counts forward passes, of copies of the model as well, and fails in a chosen one."""

    def __init__(self):
        self.count, self.fail_at = 0, None

    def __deepcopy__(self, memo):
        return self

    def another(self):
        self.count += 1
        if self.count == self.fail_at:
            raise Interrupted


class Mixed(nn.Module):
    """Batch norm (to be folded), dropout, attention, an in-place activation, a frozen parameter, and odd modes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.calls = Calls()

    def forward(self, x):
        self.calls.another()
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        return self.head(self.layer(x.flatten(2).mT).mean(1))


def mixed():
    model = initialised(Mixed(), seed=1)
    model.train()
    model.layer.eval()
    model.layer.dropout.train()
    model.head.bias.requires_grad_(False)
    model.norm.running_mean.copy_(normal(3, 4))
    model.head.register_forward_hook(lambda *_: None)
    return model


def hook_tables(module):
    names = [name for name in vars(module) if "hooks" in name]
    return {name: dict(getattr(module, name)) for name in names if getattr(module, name) is not None}


def snapshot(model):
    """Everything that a call might leave behind."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (numpy_state[1].tobytes(), *numpy_state[2:]),
        "python": random.getstate(),
        "tensors": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "identity": {name: id(value) for name, value in model.named_parameters()},
        "gradients": {name: value.grad for name, value in model.named_parameters()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "types": {name: type(module) for name, module in model.named_modules()},
        "hooks": {name: hook_tables(module) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "gradients enabled": torch.is_grad_enabled(),
        "modes of functions": torch.overrides._len_torch_function_stack(),
    }


def kmap_of(report, k=2.0):
    ranges = {site.name: SiteRanges(3.0, 2.0) for site in report.sites}
    return KMap(Granularity.LAYER, CHIP, {name: np.array([k]) for name in ranges}, ranges)


DATA = (normal(2, 20, 2, 3, 3), torch.arange(20) % 3)
KMAP = kmap_of(sites(mixed(), DATA))


def run_sites(model, **_):
    sites(model, DATA, batch_size=5)


def run_profile(model, **options):
    return profile(model, DATA, CHIP, batch_size=5, **options)


def run_validate(model, **options):
    return validate(model, DATA, KMAP, batch_size=5, seeds=3, **options)


@pytest.mark.parametrize("call", [run_sites, run_profile, run_validate])
def test_nothing_is_left_behind(call):
    model = mixed()
    before = snapshot(model)
    call(model)
    assert model.calls.count > 0
    assert snapshot(model) == before


@pytest.mark.parametrize("fast_path", [True, False])
def test_fast_path_stays_as_it_was(fast_path):
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        for call in (run_sites, run_profile, run_validate):
            call(mixed())
            assert torch.backends.mha.get_fastpath_enabled() is fast_path
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("call", [run_sites, run_profile, run_validate])
def test_nothing_is_left_behind_by_a_forward_that_raises(call):
    counting = mixed()
    call(counting)
    for fail_at in range(1, counting.calls.count + 1):
        model = mixed()
        model.calls.fail_at = fail_at
        before = snapshot(model)
        with pytest.raises(Interrupted):
            call(model)
        assert snapshot(model) == before


@pytest.mark.parametrize("call", [run_profile, run_validate])
def test_nothing_is_left_behind_by_a_progress_that_raises(call):
    model = mixed()
    before = snapshot(model)
    with pytest.raises(Interrupted):
        call(model, progress=stop_after(2))
    assert snapshot(model) == before


@pytest.mark.parametrize("call", [run_profile, run_validate])
def test_global_random_states_do_not_matter(call):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(call(mixed()))
    assert_equal(*results)


def stop_after(calls, error=Interrupted):
    left = [calls]

    def progress(done, total, what):  # noqa: ARG001
        left[0] -= 1
        if left[0] == 0:
            raise error

    return progress


def assert_equal(one, other):
    """Profiles bit for bit, or equal simulated accuracies."""
    if not hasattr(one, "damage"):
        assert one == other
        return
    assert one.sites == other.sites
    assert (one.clean_accuracy, one.clean_loss) == (other.clean_accuracy, other.clean_loss)
    assert np.array_equal(one.margins.margins, other.margins.margins)
    for name in ("damage", "damage_error", "site_damage_error", "noise_variance"):
        assert all(
            np.array_equal(getattr(one, name)[kind], getattr(other, name)[kind], equal_nan=True) for kind in KINDS
        ), name
    for name in ("site_covariance", "channel_covariance"):
        tables = [getattr(found.margins, name) for found in (one, other)]
        assert all(np.array_equal(tables[0][kind], tables[1][kind]) for kind in KINDS), name


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("call", [run_profile, run_validate])
def test_interrupted_runs_resume_bit_for_bit(call, after, error, tmp_path):
    checkpoint, model, seen = tmp_path / "run.ckpt", mixed(), []
    # A profile goes on after the last batch (of 5), a simulation after the last finished seed (of 4 batches).
    after, start = (3 * after, (3 * after - 1) // 4 * 20) if call is run_validate else (after, 5 * after)
    with pytest.raises(error):
        call(model, progress=stop_after(after, error), checkpoint=checkpoint)
    assert checkpoint.is_file()
    resumed = call(model, checkpoint=checkpoint, progress=lambda done, _, __: seen.append(done))
    assert seen[0] == start + 5
    assert not checkpoint.exists()
    assert list(tmp_path.iterdir()) == []
    assert_equal(resumed, call(mixed()))


def test_interrupted_twice(tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_profile(mixed(), progress=stop_after(1), checkpoint=checkpoint)
    assert_equal(run_profile(mixed(), checkpoint=checkpoint), run_profile(mixed()))


def other_model():
    model = mixed()
    with torch.no_grad():
        model.head.weight[0, 0] += 1.0
    return model


@pytest.mark.parametrize(
    ("model", "changes"),
    [(mixed(), {"seed": 1}), (mixed(), {"margins": 1}), (other_model(), {}), (mixed(), {"range_percentile": 99.0})],
)
def test_checkpoint_of_another_profile_is_refused(model, changes, tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(Interrupted):
        run_profile(mixed(), progress=stop_after(2), checkpoint=checkpoint)
    with pytest.raises(ProfileError, match=r"run\.ckpt is of another model, data or option\. Delete it"):
        run_profile(model, checkpoint=checkpoint, **changes)
    assert checkpoint.is_file()


def test_checkpoint_of_other_data_or_k_is_refused(tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(Interrupted):
        run_validate(mixed(), progress=stop_after(6), checkpoint=checkpoint)
    for changes in ({"data": (DATA[0] + 1.0, DATA[1])}, {"plan": kmap_of(sites(mixed(), DATA), k=3.0)}, {"seed": 1}):
        arguments = {"data": DATA, "plan": KMAP, "seed": 0} | changes
        with pytest.raises(ProfileError, match="Delete it"):
            validate(mixed(), **arguments, batch_size=5, seeds=3, checkpoint=checkpoint)


def test_damaged_checkpoint_is_refused(tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    checkpoint.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ProfileError, match=r"run\.ckpt cannot be read"):
        run_profile(mixed(), checkpoint=checkpoint)


def test_more_seeds_extend_a_simulation():
    """Outcomes of a seed do not depend on how many there are."""
    model = initialised(Perceptron(), seed=1)
    data = (normal(2, 30, 6), torch.arange(30) % 4)
    kmap = kmap_of(sites(model, data))
    few, more = (validate(copy.deepcopy(model), data, kmap, seeds=seeds) for seeds in (2, 4))
    assert more.per_seed[:2] == few.per_seed
