"""Percentile ranges of a stream, from its tails, against ``numpy.percentile`` of all values."""

import numpy as np
import pytest
import torch
from networks import normal, numpy_rng

from precalloc.errors import DataError
from precalloc.network.ranges import TailRange, flat_view

PERCENTILES = (99.99, 99.9, 97.0, 75.0, 100.0)


def expected_range(values, p):
    values = np.asarray(values, dtype=np.float64).ravel()
    return np.percentile(values, p) - np.percentile(values, 100.0 - p)


def found_range(chunks, p, expected=None):
    tails = TailRange(p, sum(chunk.numel() for chunk in chunks) if expected is None else expected)
    for chunk in chunks:
        tails.update(chunk)
    return tails.value()


def assert_exact(chunks, p):
    flat = torch.cat([chunk.flatten() for chunk in chunks]).double().numpy()
    assert found_range(chunks, p) == pytest.approx(expected_range(flat, p), rel=1e-9, abs=1e-10)  # the rank rounds


@pytest.mark.parametrize("p", PERCENTILES)
@pytest.mark.parametrize("size", [1, 2, 7, 100, 9999, 10001, 30000])
def test_any_size(p, size):
    assert_exact([normal(size, size)], p)


@pytest.mark.parametrize("p", PERCENTILES)
@pytest.mark.parametrize("seed", range(5))
def test_streams_of_uneven_chunks(p, seed):
    rng = numpy_rng(seed)
    values = torch.from_numpy(rng.standard_t(3, 5000).astype(np.float32))
    cuts = np.sort(rng.choice(np.arange(1, 5000), 12, replace=False))
    assert_exact(list(torch.tensor_split(values, torch.from_numpy(cuts))), p)


@pytest.mark.parametrize("p", PERCENTILES)
@pytest.mark.parametrize("order", [1, -1])
def test_sorted_streams(p, order):
    """Every chunk lies beyond the last: the worst case for tails."""
    values = torch.from_numpy(np.sort(numpy_rng(0).normal(size=4000))[::order].astype(np.float32).copy())
    assert_exact(list(values.split(128)), p)


@pytest.mark.parametrize("p", PERCENTILES)
def test_ties(p):
    few = torch.from_numpy(numpy_rng(1).integers(-2, 3, 4000).astype(np.float32))
    assert_exact(list(few.split(333)), p)
    assert_exact([torch.full((50,), 3.5), torch.full((70,), 3.5)], p)
    mostly_zero = torch.zeros(20000)
    mostly_zero[[3, 8000, 15000]] = torch.tensor([5.0, -1.0, 2.0])
    assert_exact(list(mostly_zero.split(1000)), p)


@pytest.mark.parametrize("p", PERCENTILES)
def test_shapes_layouts_and_types(p):
    images = normal(1, 4, 3, 9, 8)
    chunks = [
        images.to(memory_format=torch.channels_last),
        images.transpose(1, 3),
        images[:, :, ::2, 1:],
        images[:1].expand(2, 3, 9, 8),
        torch.tensor(2.5),
        normal(2, 5, 6).requires_grad_(),
    ]
    assert_exact([chunk.detach() for chunk in chunks], p)
    assert found_range(chunks, p) == found_range([chunk.detach() for chunk in chunks], p)
    double = normal(3, 500).double()
    assert found_range([double], p) == pytest.approx(expected_range(double.float(), p), rel=1e-9)


def test_room_for_somewhat_more_than_expected():
    chunks = list(normal(5, 11000).split(1000))
    assert found_range(chunks, 99.0, expected=10000) == pytest.approx(expected_range(torch.cat(chunks), 99.0), rel=1e-9)


@pytest.mark.parametrize("p", [99.9, 75.0])  # with tails that are full at once, and that are not until the third chunk
@pytest.mark.parametrize("cut", [0, 1, 3, 6])
def test_goes_on_from_its_state(cut, p):
    chunks = list(normal(6, 7000).split(1000))
    first = TailRange(p, 7000)
    for chunk in chunks[:cut]:
        first.update(chunk)
    second = TailRange(p, 7000)
    second.restore(*first.state())
    for chunk in chunks[cut:]:
        second.update(chunk)
    assert second.value() == found_range(chunks, p)


def test_nothing_seen_has_no_range():
    assert TailRange(99.99, 100).value() == 0.0


def test_flat_view_shares_memory_of_channels_last():
    images = normal(1, 2, 3, 4, 5).to(memory_format=torch.channels_last)
    flat = flat_view(images)
    assert flat.data_ptr() == images.data_ptr()
    assert torch.equal(flat.sort().values, images.flatten().sort().values)


def test_many_more_values_than_expected_are_refused():
    with pytest.raises(DataError, match=r"larger than those of the first batch.*Pad"):
        found_range([normal(0, 1000)], 90.0, expected=100)
