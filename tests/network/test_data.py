"""Data of every kind and of any nesting: the same examples in canonical order, in batches of any size."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from networks import KINDS, SHOT, WEIGHT, Perceptron, hardware, initialised, normal
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from precalloc import allocate, profile, sites, validate
from precalloc.errors import DataError, DependencyError
from precalloc.network import keeping
from precalloc.network.data import ArrayData, UnjoinedData, as_data, canonical_order, data_hash, labels_of
from precalloc.network.data_files import load_data
from precalloc.network.images import ImageOptions, image_folder, read_image

X, Y = normal(1, 11, 6), torch.arange(11) % 4
LOADER = DataLoader(TensorDataset(X, Y), batch_size=3)
SAME = {
    "arrays": {"x": X, "labels": Y},
    "pair": (X.numpy(), Y.numpy()),
    "loader": LOADER,
    "shuffling loader": DataLoader(list(zip(X, Y, strict=True)), batch_size=4, shuffle=True),
    "list of batches": [(X[:7], Y[:7]), (X[7:8], Y[7:8]), (X[8:], Y[8:])],
    "generator": ({"x": X[i : i + 2], "y": Y[i : i + 2]} for i in range(0, 11, 2)),
}


def joined(data, size):
    batches = list(data.batches(size))
    assert [batch.size for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert [batch.start for batch in batches] == list(range(0, data.examples, size))
    return torch.cat([b.inputs["x"] for b in batches]), torch.cat([b.labels for b in batches])


@pytest.mark.parametrize("name", SAME)
def test_examples_come_in_the_same_order_in_whatever_form(name):
    data, order = as_data(SAME[name]), as_data((X, Y)).order
    assert (data.examples, data.labelled) == (11, True)
    for size in (1, 3, 4, 5, 11, 20):
        x, y = joined(data, size)
        assert torch.equal(x, X[order])
        assert torch.equal(y, Y[order])
    assert data_hash(data) == data_hash(ArrayData({"x": X}, Y))


def test_order_is_of_values_and_not_of_labels_or_names():
    order = as_data((X, Y)).order
    assert sorted(order) == list(range(11))
    assert list(order) != list(range(11))
    for same in (X, {"input": X}, (X, Y.to(torch.uint8)), {"a": X[:, :2], "b": X[:, 2:], "y": Y.flip(0)}):
        assert as_data(same).order.tolist() == order.tolist()
    assert data_hash(as_data((X, Y.to(torch.uint8)))) == data_hash(as_data((X, Y)))
    assert len({data_hash(as_data(each)) for each in (X, {"input": X}, (X, Y), (X, Y.flip(0)), (X[1:], Y[1:]))}) == 5


def test_equal_inputs_are_ordered_by_their_labels():
    same = torch.ones(11, 6)
    labels = [joined(as_data((same, y)), 11)[1].tolist() for y in (Y, Y.flip(0))]
    assert labels[0] == labels[1]


class Counting:
    """A data set that counts what is read of it."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.reads += 1
        return X[index], Y[index]


def noisy(rows):
    return torch.stack([x + torch.rand(()) for x, _ in rows]), torch.stack([y for _, y in rows])


class OwnData:
    """Data of the user's own, in an order of its own."""

    examples, labelled = 11, True

    def batches(self, batch_size):
        return ArrayData({"x": X}, Y).batches(batch_size)


@pytest.mark.parametrize("room", [0, 150, 2**30])  # bytes in memory; the examples are 352
def test_loaders_are_read_once_and_kept_in_memory_or_in_files(room, monkeypatch, tmp_path):
    monkeypatch.setattr(keeping, "KEPT_BYTES", room)
    monkeypatch.setattr(keeping.tempfile, "tempdir", str(tmp_path))
    source = Counting()
    data = as_data(DataLoader(source, batch_size=3))
    order = canonical_order((X, Y))
    for size in (4, 20):
        x, y = joined(data, size)
        assert torch.equal(x, X[order])
        assert torch.equal(y, Y[order])
    assert source.reads == 11
    assert not any(tmp_path.iterdir())  # files have no name any more
    assert canonical_order(data).tolist() == order.tolist()
    assert torch.cat(list(labels_of(data))).tolist() == Y.tolist()
    shuffled = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    for other in (data, shuffled, OwnData(), iter([(X, Y)])):
        assert data_hash(as_data(other)) == data_hash(as_data((X, Y)))
    changing = as_data(DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=noisy))
    assert torch.equal(joined(changing, 5)[0], joined(changing, 11)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int8, torch.complex64])
def test_files_hold_values_of_every_type(dtype, monkeypatch):
    monkeypatch.setattr(keeping, "KEPT_BYTES", 0)
    monkeypatch.setattr(keeping, "_WRITTEN_BYTES", 0)  # a file each
    x, empty = normal(3, 6, 5).round().to(dtype), torch.zeros(6, 0)
    kept = as_data({"x": x[i : i + 1], "empty": empty[i : i + 1], "y": Y[i : i + 1]} for i in range(6))
    (batch,) = kept.batches(6)
    assert batch.inputs["x"].dtype == dtype
    assert torch.equal(batch.inputs["x"], x[canonical_order({"x": x, "empty": empty})])
    assert batch.inputs["empty"].shape == (6, 0)


def test_no_room_for_files_is_the_users_to_mend(monkeypatch):
    class Full:
        def __init__(self, **_):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "KEPT_BYTES", 0)
    monkeypatch.setattr(keeping.tempfile, "NamedTemporaryFile", Full)
    with pytest.raises(DataError, match=r"no room in .* beyond 0 GiB \(No space left.*Set TMPDIR"):
        as_data(iter([(X, Y)]))
    assert as_data([(X, Y)]).examples == 11  # a list is in memory already


class Tagger(nn.Module):
    """Classes of every token, of examples of any length."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(9, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(torch.tanh(self.embed(x)))


def test_batches_of_unlike_lengths_are_not_joined():
    batches = [(torch.arange(4 * n).view(4, n) % 9, torch.arange(4 * n).view(4, n) % 3) for n in (6, 5, 6)]
    rows = [(x, y) for xs, ys in batches for x, y in zip(xs, ys, strict=True)]
    swapped = [(x.flip(0), y.flip(0)) for x, y in (batches[1], batches[0], batches[2])]
    measured = []
    for size, data in (4, batches), (3, DataLoader(batches, batch_size=None)), (9, DataLoader(rows, 4)), (4, swapped):
        taken = as_data(data)
        assert isinstance(taken, UnjoinedData)
        assert sorted(tuple(batch.inputs["x"].shape) for batch in taken.batches(5)) == [(4, 5), (4, 6), (4, 6)]
        assert [batch.start for batch in taken.batches(3)] == [0, 3, 4, 7, 8, 11]
        source = [row for x, y in data for row in zip(x, y, strict=True)]
        found = [x for batch in taken.batches(2) for x in batch.inputs["x"]]
        assert all(torch.equal(source[n][0], x) for n, x in zip(canonical_order(taken), found, strict=True))
        measured.append(profile(initialised(Tagger()), taken, hardware((SHOT, WEIGHT)), batch_size=size))
        plan = allocate(measured[-1], "1000x")
        assert validate(initialised(Tagger()), taken, plan, batch_size=size, seeds=1).examples == 12
    assert len({each.provenance.data_hash for each in measured}) == 1
    for kind in (SHOT, WEIGHT):
        damages = [each.damage[kind] for each in measured]
        np.testing.assert_allclose(damages, [damages[0]] * 4, rtol=1e-4)
    longer = [*batches, (torch.zeros(4, 60, dtype=torch.int64), torch.zeros(4, 60, dtype=torch.int64))]
    assert next(as_data(longer).batches(4)).inputs["x"].shape == (4, 60)  # ranges are sized for the largest
    assert profile(initialised(Tagger()), longer, hardware((SHOT,)), range_percentile=90.0).provenance.examples == 16


class Nested(nn.Module):
    """Takes a dict, a pair and a keyword."""

    def __init__(self):
        super().__init__()
        self.body = initialised(Perceptron(), seed=1)

    def forward(self, features, pair, *, scale=None):
        x = torch.cat([features["a"]["left"], features["b"], *pair], 1)
        return self.body(x if scale is None else x * scale[:, None])


def test_nested_inputs_are_those_of_the_flat_network():
    nested = {"features": {"a": {"left": X[:, :2]}, "b": X[:, 2:3]}, "pair": (X[:, 3:4], X[:, 4:]), "y": Y}
    assert as_data(nested).order.tolist() == as_data(X).order.tolist()
    flat = profile(Nested().body, (X, Y), hardware(), batch_size=4)
    found = profile(Nested(), nested, hardware(), batch_size=4)
    scaled = nested | {"scale": torch.ones(11)}
    assert [site.macs for site in sites(Nested(), scaled).sites] == [site.macs for site in found.sites]
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
    assert labels.tolist() == [int(place >= 3) for place in data.order]
    assert pixels.shape == (6, 3, 16, 16)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - 0.5) / torch.tensor([0.5, 0.25, 0.1])
    first = pixels[data.order == 0][0]
    torch.testing.assert_close(first, expected[:, None, None].expand(3, 16, 16))
    assert data_hash(data) == data_hash(load_data(f"{photos}?size=16&resize=20&mean=0.5&std=0.5,0.25,0.1"))
    assert data_hash(data) == data_hash(as_data((pixels.flip(0), labels.flip(0))))


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
    assert torch.equal(pixels, X[data.order])
    assert torch.equal(labels, Y[data.order])
    assert data_hash(data) == data_hash(as_data((X, Y)))
    assert torch.cat(list(labels_of(data))).tolist() == Y.tolist()
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
