"""Small networks of the benchmark: MACs against torch's flop counter, every difference explained."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import zoo
from precalloc import sites

EXAMPLES = 2


def counted(name):
    inputs = zoo.ZOO[name].inputs(np.random.default_rng(0), EXAMPLES)
    batch = {key: torch.from_numpy(value) for key, value in inputs.items()}
    model = getattr(zoo, name)()
    report = sites(model, batch)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*batch.values())
    assert report.uncovered == report.digital == report.never_called == ()
    return report.sites, counter.get_total_flops() / 2 / EXAMPLES


@pytest.mark.parametrize("name", ["dlrm", "gcn", "shufflenet_v2"])
def test_macs_are_those_of_the_flop_counter(name):
    if name == "shufflenet_v2":
        pytest.importorskip("pytorchcv.models.shufflenetv2", reason="pytorchcv is not installed")
    found, macs = counted(name)
    assert sum(site.macs for site in found) == macs


def test_macs_of_the_recurrent_tagger_are_those_of_its_weights():
    """The flop counter does not look into the LSTM kernel: it counts the head alone."""
    found, macs = counted("lstm_tagger")
    lstm = zoo.lstm_tagger().lstm
    weights = sum(value.numel() for name, value in lstm.named_parameters() if name.startswith("weight"))
    assert macs == 40 * 512 * 17
    assert sum(site.macs for site in found) == macs + 40 * weights
