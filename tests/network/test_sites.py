"""Sites, MACs and coverage of modules, functional calls and exported graphs; folding of batch norm."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from precalloc.errors import CoverageError
from precalloc.hardware import Hardware
from precalloc.network.folding import fold_batch_norm
from precalloc.network.profiling import profile
from precalloc.network.sites import discover

HARDWARE = Hardware.load("homodyne-1550nm")


class Everything(nn.Module):
    """Every kind of operator once, and one layer twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding="same", groups=4)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2, groups=2)
        self.shared = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)
        self.mix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        y = F.relu(self.up(F.relu(self.depthwise(self.conv(x)))))
        y = F.adaptive_avg_pool2d(y, 4).flatten(2)
        y = self.shared(torch.tanh(self.shared(y)))
        y = torch.einsum("nct,cd->ndt", y, self.mix)
        scores = torch.bmm(y, y.mT).softmax(-1)
        y = F.scaled_dot_product_attention(scores @ y, y, y)
        return self.head(y.mean(1))


@pytest.fixture
def everything():
    torch.manual_seed(0)
    return Everything().eval()


IMAGES = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def test_names_kinds_and_fan_in(everything):
    sites = {site.name: site for site in discover(everything, IMAGES).sites}
    assert {name: (site.kind, site.fan_in, site.channels) for name, site in sites.items()} == {
        "conv": ("conv2d", 18, 4),
        "depthwise": ("conv2d", 9, 4),
        "up": ("conv_transpose2d", 2, 4),
        "shared": ("linear", 16, 16),
        "einsum.0": ("einsum", 4, 4),
        "bmm.0": ("bmm", 16, 1),
        "matmul.0": ("matmul", 4, 1),
        "attention_scores.0": ("attention_scores", 16, 1),
        "attention_values.0": ("attention_values", 4, 1),
        "head": ("linear", 16, 3),
    }
    assert sites["shared"].macs == 2 * 4 * 16 * 16  # two calls, one site


def test_macs_are_half_the_flop_counters_flops(everything):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        everything(IMAGES)
    report = discover(everything, IMAGES)
    assert report.uncovered == ()
    assert sum(site.macs for site in report.sites) * len(IMAGES) * 2 == counter.get_total_flops()


def test_exported_program_has_the_same_sites(everything):
    exported = torch.export.export(everything, (IMAGES,)).module()
    sites, exported_sites = (discover(model, IMAGES).sites for model in (everything, exported))
    # Exported attention stays one operator, and weights keep their owners' names.
    assert [(site.name, site.macs) for site in exported_sites] == [(site.name, site.macs) for site in sites]


class WithUncovered(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y, _ = self.recurrent(x)
        y = torch.einsum("nt,ntc,nc->nc", y[..., 0], y, y[:, 0])
        return self.head(y)


def test_uncovered_and_unused_are_named_and_stop_the_profile():
    model, data = WithUncovered().eval(), torch.randn(4, 5, 4)
    report = discover(model, data)
    assert {(item.name, item.operator) for item in report.uncovered} == {("recurrent", "lstm"), ("", "einsum")}
    assert report.never_called == ("unused",)
    with pytest.raises(CoverageError, match=r"lstm in 'recurrent'.*allow"):
        profile(model, data, HARDWARE)
    assert [site.name for site in profile(model, data, HARDWARE, allow_uncovered=True).sites] == ["head"]


class Normalised(nn.Module):
    """Batch norms that can be folded, and ones that must not be."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv_norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4)
        self.grouped_up, self.grouped_norm = nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.BatchNorm2d(4)
        self.branch, self.branch_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.before, self.after = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.linear, self.linear_norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        y = F.relu(self.conv_norm(self.conv(x)), inplace=True)
        y = self.grouped_norm(self.grouped_up(F.relu(self.up_norm(self.up(y)))))
        branch = self.branch(y)
        y = self.after(self.before(F.relu(self.branch_norm(branch) + branch)))
        return self.linear_norm(self.linear(y.mean((2, 3))))


def test_batch_norm_is_folded_where_it_is_the_only_taker():
    torch.manual_seed(0)
    model = Normalised().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    before = copy.deepcopy(model.state_dict())
    folded, names = fold_batch_norm(model, lambda m: m(IMAGES))
    assert names == ("conv_norm", "up_norm", "linear_norm")
    with torch.no_grad():
        np.testing.assert_allclose(folded(IMAGES).numpy(), model(IMAGES).numpy(), atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert isinstance(model.conv_norm, nn.BatchNorm2d)
