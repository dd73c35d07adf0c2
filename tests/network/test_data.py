"""Data of every kind and of any nesting: the same examples in the same order, in batches of any size."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from networks import KINDS, Perceptron, hardware, initialised, normal
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from precalloc import profile, sites
from precalloc.errors import DataError, DependencyError
from precalloc.network.data import ArrayData, StreamedData, as_data, data_hash
from precalloc.network.data_files import load_data
from precalloc.network.images import ImageOptions, image_folder, read_image

X, Y = normal(1, 11, 6), torch.arange(11) % 4
LOADER = DataLoader(TensorDataset(X, Y), batch_size=3)
SAME = {
    "arrays": {"x": X, "labels": Y},
    "pair": (X.numpy(), Y.numpy()),
    "loader": LOADER,
    "shuffling loader": DataLoader(
        list(zip(X, Y, strict=True)), batch_size=4, sampler=torch.utils.data.SubsetRandomSampler(range(11))
    ),
    "list of batches": [(X[:7], Y[:7]), (X[7:8], Y[7:8]), (X[8:], Y[8:])],
    "generator": ({"x": X[i : i + 2], "y": Y[i : i + 2]} for i in range(0, 11, 2)),
}


def joined(data, size):
    batches = list(data.batches(size))
    assert [batch.size for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert [batch.start for batch in batches] == list(range(0, data.examples, size))
    return torch.cat([b.inputs["x"] for b in batches]), torch.cat([b.labels for b in batches])


@pytest.mark.parametrize("name", SAME)
def test_examples_come_in_the_same_order_whatever_the_batch_size(name):
    data = as_data(SAME[name])
    assert (data.examples, data.labelled) == (11, True)
    first = joined(data, 4)
    for size in (1, 3, 5, 11, 20):
        assert all(torch.equal(one, other) for one, other in zip(joined(data, size), first, strict=True))
    order = torch.cdist(first[0], X).argmin(1)
    assert sorted(order.tolist()) == list(range(11))
    assert torch.equal(first[1], Y[order])
    if name != "shuffling loader":
        assert torch.equal(first[0], X)
        assert data_hash(data) == data_hash(ArrayData({"x": X}, Y))


class Counting:
    """A data set that counts what is read of it."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.reads += 1
        return X[index], Y[index]


def test_loaders_are_read_anew_and_not_kept():
    source = Counting()
    data = as_data(DataLoader(source, batch_size=3))
    assert isinstance(data, StreamedData)
    source.reads = 0
    next(data.batches(2))
    assert source.reads == 3
    fingerprint = data_hash(data)
    read = source.reads
    assert data_hash(data) == fingerprint
    assert source.reads == read


def test_data_that_change_between_passes_are_refused():
    def noisy(rows):
        return torch.stack([x + torch.rand(()) for x, _ in rows]), torch.stack([y for _, y in rows])

    data = as_data(DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=noisy))
    with pytest.raises(DataError, match=r"The data loader gives other examples on every pass.*augmentation"):
        profile(initialised(Perceptron()), data, hardware())


class Nested(nn.Module):
    """Takes a dict, a pair and a keyword."""

    def __init__(self):
        super().__init__()
        self.body = initialised(Perceptron(), seed=1)

    def forward(self, features, pair, *, scale=None):
        x = torch.cat([features["a"]["left"], features["b"], *pair], 1)
        return self.body(x if scale is None else x * scale[:, None])


def test_nested_inputs_are_those_of_the_flat_network():
    ones = torch.ones(11)
    nested = {
        "features": {"a": {"left": X[:, :2]}, "b": X[:, 2:3]},
        "pair": (X[:, 3:4], X[:, 4:]),
        "scale": ones,
        "y": Y,
    }
    flat = profile(Nested().body, (X, Y), hardware(), batch_size=4)
    found = profile(Nested(), nested, hardware(), batch_size=4)
    positional = profile(Nested(), [((nested["features"], nested["pair"]), Y)], hardware(), batch_size=4)
    for other in (found, positional):
        assert [site.name for site in other.sites] == ["body.first", "body.second"]
        for kind in KINDS:
            np.testing.assert_allclose(other.damage[kind], flat.damage[kind], rtol=1e-5)
    with pytest.raises(DataError, match=r"features\['b'\]\": 5"):
        as_data(nested | {"features": {"a": {"left": X[:, :2]}, "b": X[:5, :1]}})
    with pytest.raises(DataError, match=r"does not take inputs \{'features': \[\(11, 2\), \(11, 1\)\]"):
        sites(Nested(), {"features": {"a": {"left": X[:, :2]}, "b": X[:, :1]}, "pair": ()})


def test_batch_encodings_of_tokenizers():
    tokens = BatchEncoding(
        {"input_ids": torch.ones(3, 5, dtype=torch.int64), "labels": torch.zeros(3, dtype=torch.int64)}
    )
    data = as_data(tokens)
    assert (data.examples, data.labelled) == (3, True)
    assert list(next(data.batches(2)).inputs) == ["input_ids"]


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        ([(X[:4], Y[:4]), {"x": X[4:]}], r"Some batches carry labels and some do not"),
        ([(X, X, Y)], r"A batch of type tuple cannot be read.*several inputs in a tuple of their own"),
        ({"x": 3.0}, r"holds no inputs"),
        ({"x": X[0, 0]}, r"holds no examples"),
        (DataLoader(TensorDataset(X[:0])), r"yielded no batch"),
    ],
)
def test_data_that_cannot_be_read(data, pattern):
    with pytest.raises(DataError, match=pattern):
        as_data(data)


@pytest.fixture
def photos(tmp_path):
    """Two classes of unlike sizes; the first image is of one colour."""
    generator = np.random.default_rng(0)
    for label, (name, shape) in enumerate((("cats", (40, 60, 3)), ("dogs", (90, 50, 3)))):
        (tmp_path / name).mkdir()
        for index in range(3):
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            if label == index == 0:
                pixels[:] = (255, 0, 51)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    return tmp_path


def test_image_folders_give_a_class_a_subfolder(photos):
    data = load_data(f"{photos}?size=16&resize=20&mean=0.5&std=0.5,0.25,0.1")
    assert (data.examples, data.labelled) == (6, True)
    pixels, labels = joined(data, 4)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert pixels.shape == (6, 3, 16, 16)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - 0.5) / torch.tensor([0.5, 0.25, 0.1])
    torch.testing.assert_close(pixels[0], expected[:, None, None].expand(3, 16, 16))
    assert data_hash(data) == data_hash(load_data(f"{photos}?size=16&resize=20&mean=0.5&std=0.5,0.25,0.1"))


def test_images_are_scaled_and_cropped_at_the_centre(tmp_path):
    """A 90 x 50 image that is a ramp from top to bottom, at its own scale: the middle 40 rows remain."""
    ramp = np.repeat(np.arange(90, dtype=np.uint8)[:, None, None], 50, 1).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    found = read_image(tmp_path / "ramp.png", ImageOptions(40, 50, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    np.testing.assert_allclose(found[1, :, 7] * 255.0, np.arange(25, 65), atol=1e-4)
    assert read_image(tmp_path / "ramp.png", ImageOptions()).shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ("?shape=3", r"Image option 'shape' is unknown\. There are: size, resize, mean, std"),
        ("?size=wide", r"size='wide' is no number of pixels"),
        ("?mean=1,2", r"mean='1,2' is not one number or three"),
        ("?mean=red", r"mean='red' is not one number or three"),
        ("?nothing", r"Image option 'nothing' is unknown"),
        ("?size=32&resize=16", r"resize at least size"),
        ("?std=0", r"size and std must be positive"),
    ],
)
def test_image_options_that_do_not_fit(photos, options, pattern):
    with pytest.raises(DataError, match=pattern):
        load_data(f"{photos}{options}")


def test_folders_that_hold_no_images(photos, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no subfolders with images"):
        load_data(str(tmp_path / "empty"))
    (photos / "cats" / "torn.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"torn\.png cannot be read as an image"):
        list(image_folder(photos).batches(8))
    with pytest.raises(DataError, match=r"is no \.npz or \.safetensors file, no folder that exists"):
        load_data(str(tmp_path / "nowhere"))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DependencyError, match=r"pip install 'precalloc\[images\]'"):
        image_folder(photos)


def test_saved_data_sets_are_read_from_disk(tmp_path):
    rows = Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()})
    rows.save_to_disk(tmp_path / "rows")
    data = load_data(str(tmp_path / "rows"))
    pixels, labels = joined(data, 4)
    torch.testing.assert_close(pixels.float(), X)
    assert torch.equal(labels, Y)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"several splits\. Name one of them: .*splits/test, .*splits/train"):
        load_data(str(tmp_path / "splits"))


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        ({"text": ["a", "b"]}, r"Column 'text' of .* holds text.*remove_columns\(\['text'\]\)"),
        ({"ids": [[1, 2], [3]]}, r"Column 'ids' of .* holds rows of several lengths\. Pad it"),
    ],
)
def test_saved_data_sets_of_other_than_numbers(columns, pattern, tmp_path):
    Dataset.from_dict(columns).save_to_disk(tmp_path / "rows")
    with pytest.raises(DataError, match=pattern):
        list(load_data(str(tmp_path / "rows")).batches(4))


def test_damaged_data_sets_and_a_missing_library(tmp_path, monkeypatch):
    Dataset.from_dict({"x": [1.0]}).save_to_disk(tmp_path / "rows")
    (tmp_path / "rows" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"rows is no saved data set"):
        load_data(str(tmp_path / "rows"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DependencyError, match=r"pip install 'precalloc\[huggingface\]'"):
        load_data(str(tmp_path / "rows"))
