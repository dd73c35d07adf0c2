"""The demo's network and data: what the package bundles is what the training script makes."""

import numpy as np
import pytest
import torch
from torch import nn

import precalloc
from benchmarks import train_demo
from precalloc import demo_model, demo_transformer

SPLITS = {"calibration": demo_model.CALIBRATION, "evaluation": demo_model.EVALUATION}


def load(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(("name", "size"), [("calibration", 400), ("evaluation", 500)])
def test_bundled_data_are_the_scripts_splits(name, size):
    bundled, made = load(SPLITS[name]), train_demo.split_digits()[name]
    assert bundled["images"].shape == (size, 1, 8, 8)
    assert bundled["images"].dtype == np.uint8
    assert bundled["images"].max() == 16
    assert bundled.keys() == made.keys()
    assert all(np.array_equal(bundled[key], made[key]) for key in made)


def test_splits_use_every_digit_image_once():
    from sklearn.datasets import load_digits

    splits = train_demo.split_digits()
    used = np.concatenate([split["images"] for split in splits.values()]).reshape(-1, 64)
    expected = load_digits().data.astype(np.uint8)
    assert np.array_equal(used[np.lexsort(used.T)], expected[np.lexsort(expected.T)])


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize(("build", "least"), [(demo_model.build, 0.98), (demo_transformer.build, 0.95)])
def test_unseen_digits_are_recognised(name, build, least):
    assert train_demo.accuracy(build(), load(SPLITS[name])) >= least


def test_batch_norms_are_left_for_the_product_to_fold():
    model = demo_model.build()
    assert not model.training
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 8
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 9


@pytest.mark.parametrize("module", [demo_model, demo_transformer])
def test_weights_are_small(module):
    assert module.WEIGHTS.stat().st_size < 300_000


@pytest.mark.parametrize("module", [demo_model, demo_transformer])
def test_building_leaves_the_random_state_alone(module):
    before = torch.get_rng_state()
    module.build()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("network", train_demo.NETWORKS.values())
def test_training_is_reproducible(network):
    split = train_demo.split_digits()["train"]
    with torch.random.fork_rng():
        first, second = (train_demo.train(split, network, epochs=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_shift_moves_by_at_most_one_pixel_and_fills_with_zero():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    shifted = train_demo.shift(images, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(images[:1], (1, 1, 1, 1))
    possible = {padded[0, 0, i : i + 8, j : j + 8].numpy().tobytes() for i in range(3) for j in range(3)}
    assert {image.numpy().tobytes() for image in shifted} == possible


def test_transformer_multiplies_activations():
    images = torch.from_numpy(load(demo_model.EVALUATION)["images"][:4])
    kinds = [site.kind for site in precalloc.sites(demo_transformer.build(), {"images": images}).sites]
    assert kinds.count("linear") == 10
    assert len(kinds) == 14  # two products of activations in each of two blocks
