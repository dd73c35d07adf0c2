"""Results are the same for the same examples: to the last bit in any order and form, to rounding in any batches."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from networks import ConvNet, hardware, initialised, normal
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from precalloc import allocate, calibrate, compensate, profile, refine, safeguard, sites, validate
from precalloc.network import compensation, images
from precalloc.network.batches import Batch
from precalloc.network.compensation import Effort, estimate
from precalloc.network.data import as_data
from precalloc.network.data_files import load_data
from precalloc.network.layouts import Layout
from precalloc.network.overlap import unseen
from precalloc.network.preparation import TaskChoices, prepared
from precalloc.network.shifts import ShiftAverages
from precalloc.network.sites import count_sites

CHIP = hardware(digital_biases=True)
X, Y = normal(2, 70, 2, 6, 6), (torch.arange(70) * 4) // 70  # sorted by class
ORDER = torch.randperm(70, generator=torch.Generator().manual_seed(1))
FORMS = {
    "other order": (X[ORDER], Y[ORDER]),
    "arrays by name": {"labels": Y.flip(0).int().numpy(), "x": X.flip(0).numpy()},
    "loader": DataLoader(TensorDataset(X, Y), batch_size=9),
    "shuffling loader": DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True),
    "list of batches": [(X[50:], Y[50:]), (X[:1], Y[:1]), (X[1:50], Y[1:50])],
}


def saved(found, path):
    """All that a profile holds."""
    found.save(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def same(one, two):
    """Whether two profiles are equal; a standard error of one block of weight noise is NaN."""
    return one.keys() == two.keys() and all(
        np.array_equal(one[k], two[k], equal_nan=one[k].dtype != np.uint8) for k in one
    )


def planned(model, data, path):
    """Everything that is measured, chosen and simulated, on parts of the data too."""
    measured = calibrate(model, data, profile(model, data, CHIP, margins=2), points=1, draws=2, examples=24)
    plan = allocate(measured, "4x", granularity="channel")
    corrected = compensate(model, data, plan, examples=24)
    refined = refine(model, data, measured, plan, steps=4)
    kept = safeguard(model, data, measured, corrected, draws=2, examples=20)
    kmaps = [each.kmap().digest for each in (plan, corrected, refined, kept)]
    return saved(measured, path), kmaps, refined.refinement, kept.notes, validate(model, data, corrected, seeds=2)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return planned(initialised(ConvNet(), seed=1), (X, Y), tmp_path_factory.mktemp("order") / "profile.npz")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_depends_on_order_or_form(form, expected, tmp_path):
    data = as_data(FORMS[form])  # a shuffling loader gives the order of one pass
    tables, *others = planned(initialised(ConvNet(), seed=1), data, tmp_path / "profile.npz")
    assert others == list(expected[1:])
    assert same(tables, expected[0])


def test_batches_change_nothing_but_rounding():
    model = initialised(ConvNet(), seed=1)
    measured = profile(model, (X, Y), CHIP, margins=2)
    plan = allocate(measured, "4x", granularity="channel")
    found = []
    for size in (1, 19, 70):
        points = calibrate(model, (X, Y), measured, points=1, draws=2, examples=40, batch_size=size).calibration
        shifts = estimate(model, (X, Y), plan.kmap(), TaskChoices(), Effort(2, 0, 64, size), check=False).corrections
        corrected = plan.with_bias_corrections(shifts, shifts)
        kept = safeguard(model, (X, Y), measured, corrected, draws=2, examples=60, batch_size=size)
        simulated = validate(model, (X, Y), corrected, seeds=2, batch_size=size)
        seen = refine(model, (X, Y), measured, plan, steps=4, batch_size=size).refinement
        gains = [seen.gain, seen.gain_low, seen.gain_high]
        gains += [point.gain for response in points.responses.values() for point in response.points]
        found.append(
            [
                *gains,
                *np.concatenate([*shifts.values()]),
                len(kept.notes),
                simulated.accuracy,
                simulated.loss.loss,
                simulated.loss.loss_high,
            ]
        )
    assert len(found[0]) > 10
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-4, atol=1e-6)


class TimeFirst(nn.Module):
    """Recurrence, attention of two heads in one product and of separate ones, with time as the first axis."""

    def __init__(self):
        super().__init__()
        self.embed, self.recur = nn.Linear(4, 8), nn.LSTM(8, 8)
        self.encode = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.query, self.key, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        y = self.encode(self.recur(self.embed(x.transpose(0, 1)))[0])
        q, k = self.query(y).unflatten(-1, (2, 4)), self.key(y).unflatten(-1, (2, 4))
        attention = torch.einsum("tbhd,sbhd->tsbh", q, k).softmax(1)
        return self.head(torch.einsum("tsbh,sbhd->tbhd", attention, k).flatten(2).mean(0))


def test_batches_change_nothing_but_rounding_where_time_comes_first():
    model, data = initialised(TimeFirst(), seed=1), (normal(3, 12, 6, 4), torch.arange(12) % 4)
    found = []
    for size in (12, 5, 1):
        measured = profile(model, data, CHIP, margins=2, batch_size=size)
        kmap = allocate(measured, "4x").kmap()
        shifts = estimate(model, data, kmap, TaskChoices(), Effort(2, 0, 12, size), check=False).corrections
        loss = validate(model, data, kmap, seeds=2, batch_size=size).loss
        tables = [*measured.damage.values(), *measured.margins.site_covariance.values(), *shifts.values()]
        found.append([np.concatenate([table.ravel() for table in tables]), loss.loss, loss.loss_high])
    for other in found[1:]:
        np.testing.assert_allclose(found[0][0], other[0], rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(found[0][1:], other[1:], rtol=1e-5)


@pytest.mark.parametrize("room", [2**26, 700])  # values of a product at a time: eight examples a device, or fewer
def test_corrections_move_on_in_steps_that_the_batch_size_does_not_change(room, monkeypatch):
    monkeypatch.setattr(compensation, "_STEP_VALUES", room)
    model = initialised(ConvNet(), seed=1)
    kmap = allocate(profile(model, (X, Y), CHIP, margins=0), "4x").kmap()
    largest = []
    expect = ShiftAverages.expect
    monkeypatch.setattr(ShiftAverages, "expect", lambda s, m, b, f: largest.append(b.size) or expect(s, m, b, f))
    efforts = [Effort(2, 0, 24, size) for size in (1, 9, 24)]
    found = [estimate(model, (X, Y), kmap, TaskChoices(), each, check=False).corrections for each in efforts]
    most = max(site.outputs for site in sites(model, X).sites)
    assert set(largest) == ({8} if room == 2**26 else {room // most, 24 % (room // most)} - {0})
    for site, correction in found[0].items():
        for other in found[1:]:
            np.testing.assert_allclose(correction, other[site], rtol=1e-4, atol=1e-7)


class Escalating(nn.Module):
    """A second look at batches that hold something loud."""

    def __init__(self, loud):
        super().__init__()
        self.embed, self.again, self.head, self.loud = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3), loud

    def forward(self, x):
        y = self.embed(x).relu()
        return self.head(self.again(y).relu() + y if x.abs().max() > self.loud else y)


def test_a_site_that_few_examples_call_for_is_found_on_the_whole_first_batch():
    x = as_data(normal(3, 40, 4))
    batch = next(x.batches(32))
    few = batch.take(3)
    model = initialised(Escalating(float(few.inputs["x"].abs().max())), seed=1)
    kmap = allocate(profile(model, x, CHIP, margins=0), "4x").kmap()
    assert set(kmap.repetitions) == {"embed", "again", "head"}
    assert set(count_sites(model, few, TaskChoices().forward)[1]) == {"embed", "head"}
    with prepared(model, x, kmap, TaskChoices(), 32) as ready:
        assert ready.layouts.keys() == {"embed", "again", "head"}
        assert (ready.values, ready.all_values) == (8, 19)


class OneAtATime(ConvNet):
    """Takes a single example."""

    def forward(self, x):
        if len(x) != 1:
            raise ValueError("one at a time")
        return super().forward(x)


def test_models_that_take_single_examples_only():
    model, many = initialised(OneAtATime(), seed=1), initialised(ConvNet(), seed=1)
    found, expected = (profile(each, (X[:8], Y[:8]), CHIP, batch_size=1) for each in (model, many))
    for kind, damage in expected.damage.items():
        np.testing.assert_array_equal(found.damage[kind], damage)
    plan = allocate(found, "4x")
    one, other = (validate(each, (X[:8], Y[:8]), plan, seeds=2, batch_size=1) for each in (model, many))
    assert one == other


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("outer", [True, False])
def test_values_of_examples_are_found_where_they_were_laid_out(axis, outer):
    layout, shape, rows = Layout(axis, outer), (6, 6, 6), normal(1, 3, 72)
    values, at = layout.split(layout.laid_out(rows, shape), 3)
    assert torch.equal(values.movedim(at, 0).reshape(3, -1).sort(1).values, rows.sort(1).values)
    assert layout.laid_out(rows, shape).shape == shape


def test_profiles_without_labels_and_in_blocks_of_several_batches(tmp_path):
    one, two = (
        saved(profile(initialised(ConvNet(), seed=1), x, CHIP, batch_size=7), tmp_path / "one.npz")
        for x in (X, X[ORDER])
    )
    assert same(one, two)


@pytest.fixture
def photos(tmp_path):
    """The same images of four classes in two folders, under other names."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        for folder, name in ((tmp_path / "one", index), (tmp_path / "two", 97 * index % 101)):
            (folder / f"class{index // 6}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"class{index // 6}" / f"{name:03}.png")
    return tmp_path


class Colours(ConvNet):
    """Takes the first two colours."""

    def forward(self, x):
        return super().forward(x[:, :2])


def test_image_folders_and_data_sets_are_as_their_shuffled_arrays(photos, tmp_path, monkeypatch):
    counted = []
    decode = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path, options: counted.append(path) or decode(path, options))
    one, two = (load_data(f"{photos / name}?size=8&resize=8") for name in ("one", "two"))
    model = initialised(Colours(), seed=1)
    assert len(sites(model, one, batch_size=3).sites) == 4
    assert len(counted) == 3  # no pass over all of them
    found = saved(profile(model, one, CHIP, batch_size=8), tmp_path / "one.npz")
    assert len(counted) == 3 + 24 + 8 + 24  # one pass to put them in order, the first batch, and the measurement
    assert len(set(next(one.batches(12)).labels.tolist())) > 1
    x, y = (torch.cat(parts) for parts in zip(*((b.inputs["x"], b.labels) for b in two.batches(9)), strict=True))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    Dataset.from_dict({"x": x.flip(0).numpy(), "label": y.flip(0).numpy()}).save_to_disk(tmp_path / "rows")
    for data in (two, (x[shuffled], y[shuffled]), load_data(str(tmp_path / "rows"))):
        assert same(saved(profile(model, data, CHIP, batch_size=8), tmp_path / "other.npz"), found)


def test_an_interrupted_run_goes_on_with_the_examples_in_another_order(tmp_path):
    model = initialised(ConvNet(), seed=1)

    def stop(done, *_):
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(model, (X, Y), CHIP, progress=stop, checkpoint=tmp_path / "kept")
    resumed = profile(model, (X[ORDER], Y[ORDER]), CHIP, checkpoint=tmp_path / "kept")
    whole = saved(profile(model, (X, Y), CHIP), tmp_path / "whole.npz")
    assert same(saved(resumed, tmp_path / "resumed.npz"), whole)


def test_what_is_left_of_an_overlap_is_the_same():
    model, plan = initialised(ConvNet(), seed=1), allocate(profile(initialised(ConvNet(), seed=1), X, CHIP), "4x")
    known = as_data(X[20:40])
    one, two = (validate(model, unseen(as_data(data), known), plan, seeds=1) for data in ((X, Y), (X[ORDER], Y[ORDER])))
    assert one == two
    assert one.examples == 50


class Images(nn.Module):
    """A network of images that notes in what order of memory they come; ``flatten`` makes rows of features."""

    def __init__(self, flatten):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(2, 3, 3), nn.Linear(48, 4)
        self.flatten, self.strides = flatten, []

    def forward(self, x):
        self.strides.append(x.stride())
        return self.head(self.flatten(torch.tanh(self.convolution(x))))


def test_memory_of_images_is_in_the_order_that_convolutions_are_fast_in_and_that_the_model_takes():
    measured = {}
    x = X.double()
    forms = {
        "any": lambda t: t.flatten(1),
        "view": lambda t: t.view(len(t), -1),
        "strides": lambda t: t.as_strided((len(t), 48), (48, 1)),
    }
    for name, flatten in forms.items():
        model = initialised(Images(flatten)).double()
        measured[name] = profile(model, (x, Y), CHIP, batch_size=32)
        assert x.is_contiguous()
        channels_last = [stride[1] == 1 for stride in model.strides]
        if name == "any":
            assert channels_last[-3:] == [True] * 3
        else:  # tried once
            assert channels_last.count(True) == 1
            assert channels_last[-3:] == [False] * 3
    expected = measured["any"]
    for usual in (measured["view"], measured["strides"]):
        for kind, damage in expected.damage.items():
            np.testing.assert_allclose(usual.damage[kind], damage, rtol=1e-10)
            covariance = expected.margins.site_covariance[kind]
            np.testing.assert_allclose(usual.margins.site_covariance[kind], covariance, rtol=1e-5)
        for one, other in zip(usual.sites, expected.sites, strict=True):
            assert one.output_range == pytest.approx(other.output_range, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_of_any_type_are_laid_out_anew_and_nothing_else(dtype):
    image, rest = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype), torch.ones(2, 7)
    laid_out = Batch({"x": [image, rest]}, torch.zeros(2), start=6).channels_last()
    assert laid_out.inputs["x"][0].stride() == (60, 1, 15, 3)
    assert torch.equal(laid_out.inputs["x"][0], image)
    assert laid_out.inputs["x"][1] is rest
    assert laid_out.start == 6
    text = Batch({"x": rest}, None)
    assert text.channels_last() is text
