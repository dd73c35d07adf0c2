"""Examples that evaluation and calibration data have in common are left out, whatever form the data has."""

import pytest
import torch
from networks import normal

from precalloc.errors import DataError
from precalloc.network.data import as_data
from precalloc.network.overlap import unseen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_what_is_left_is_what_is_new_in_order(dtype, batch_size):
    codes = torch.arange(60)
    x = ((codes[:, None] >> torch.arange(6)) & 1).to(dtype)
    known = as_data({"x": x[[3, 20, 21, 39, 59]]})
    whole = as_data({"x": x[:40], "y": codes[:40]})
    left = unseen(whole, known)
    labels = torch.cat([batch.labels for batch in left.batches(batch_size)])
    assert labels.tolist() == [code for code in whole.order.tolist() if code not in (3, 20, 21, 39)]
    assert (left.examples, left.left_out, left.labelled) == (36, 4, True)
    starts = [batch.start for batch in left.batches(batch_size)]
    assert starts[0] == 0
    assert sorted(set(starts)) == starts


def test_inputs_count_together_and_labels_do_not():
    one, other = normal(0, 4, 3), normal(1, 4, 2)
    known = as_data({"a": one, "b": other, "y": torch.zeros(4)})
    mixed = as_data({"a": one, "b": other.flip(0)})
    assert unseen(mixed, known) is mixed
    with pytest.raises(DataError, match="All validation examples"):
        unseen(as_data({"a": one[:2], "b": other[:2]}), known)
