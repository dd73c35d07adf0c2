"""Time and memory of profiling a causal decoder of 1e8 parameters: GPT-2 small with random weights.

Prints parameters, sites, MACs, seconds of the profile beside seconds of noiseless forward passes over the same tokens
(both in this process), and the peak of resident memory. Random weights serve for structure, speed and memory; the loss
is that of guessing.
"""

import argparse
import math
import resource
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from precalloc import Hardware, profile


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--hardware", default="homodyne-1550nm")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    tokens = {"input_ids": torch.randint(0, model.config.vocab_size, (chosen.examples, chosen.tokens))}
    loaded = peak_gib()
    started = time.perf_counter()
    with torch.no_grad():
        for row in tokens["input_ids"].split(chosen.batch_size):
            model(input_ids=row, use_cache=False)
    forward = time.perf_counter() - started
    started = time.perf_counter()
    found = profile(model, tokens, Hardware.load(chosen.hardware), batch_size=chosen.batch_size)
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"GPT-2 small, {chosen.examples} x {chosen.tokens} tokens, batch {chosen.batch_size}, {chosen.hardware}")
    print(f"parameters {parameters:,}; sites {len(found.sites)}; MACs per inference {found.macs:.4g}")
    print(
        f"loss per token {found.clean_loss:.3f} nats (log of the vocabulary: {math.log(model.config.vocab_size):.3f})"
    )
    print(f"noiseless forward {forward:.1f} s; profile {seconds:.1f} s, {seconds / forward:.1f} times")
    print(f"peak resident memory {peak_gib():.2f} GiB; with the model alone {loaded:.2f} GiB")


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
