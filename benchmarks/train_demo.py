"""Train the demo's networks on scikit-learn's digits and write their weights and data into the package.

Run with ``python -m benchmarks.train_demo`` from the repository's root. Two runs on one machine give the same files.
Neither the calibration nor the evaluation images take part in training, and the last epoch's weights are kept, so the
accuracies printed for them are those of unseen data.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from precalloc import demo_model, demo_transformer

NETWORKS = {
    demo_model.WEIGHTS.name: demo_model.DigitsNet,
    demo_transformer.WEIGHTS.name: demo_transformer.DigitsTransformer,
}
SEED = 0
SIZES = {"train": 897, "calibration": 400, "evaluation": 500}
EPOCHS = 80
BATCH = 64
PEAK_RATE = 5e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05

Split = dict[str, np.ndarray]


def main() -> None:
    """Split, train, write the files and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=demo_model.ASSETS, help="folder of the weights and data")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    splits = split_digits()
    np.savez_compressed(folder / demo_model.CALIBRATION.name, **splits["calibration"])
    np.savez_compressed(folder / demo_model.EVALUATION.name, **splits["evaluation"])
    for file, network in NETWORKS.items():
        model = train(splits["train"], network)
        save_file(model.state_dict(), folder / file)
        for name, split in splits.items():
            print(f"{file:32} {name:12} {len(split['y']):4} images, accuracy {accuracy(model, split):.2%}")


def split_digits() -> dict[str, Split]:
    """Split the 1797 images at random, with the same share of every digit in each part."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, np.newaxis]
    rest, labels = np.arange(len(images)), digits.target
    parts = {}
    for name in ("evaluation", "calibration"):
        rest, part = train_test_split(rest, test_size=SIZES[name], random_state=SEED, stratify=labels[rest])
        parts[name] = part
    parts["train"] = rest
    return {name: {"images": images[parts[name]], "y": labels[parts[name]].astype(np.int64)} for name in SIZES}


def train(split: Split, network: Callable[[], nn.Module] = demo_model.DigitsNet, epochs: int = EPOCHS) -> nn.Module:
    """Train with AdamW on a one-cycle schedule; every image is shifted by up to one pixel each time it is seen."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = network()
    images, labels = torch.from_numpy(split["images"]), torch.from_numpy(split["y"])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            logits = model(shift(images[batch], generator))
            loss = cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixel in both directions."""
    padded = pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(images), 1, 1), generator=generator)
    rows, columns = torch.arange(8).view(1, 8, 1) + down, torch.arange(8).view(1, 1, 8) + right
    return padded[torch.arange(len(images)).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of the images that the model has right."""
    predicted = model(torch.from_numpy(split["images"])).argmax(dim=1)
    return (predicted == torch.from_numpy(split["y"])).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in one order: the same weights on every run
    torch.use_deterministic_algorithms(True)
    main()
