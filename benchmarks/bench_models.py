"""Every network of the zoo through `sites`, `profile`, `allocate` and `validate`; MACs, seconds and memory.

Each network runs in processes of its own. Prints: sites, MACs per inference, published MACs; what the flop counter of
torch counts beside (recurrent kernels, that it does not see, are negative); processor seconds of the profile, without
prediction tables and with them (3 margins, of classifications alone), over those of the clean forward of the same data
in the same batches (all once; processor time, since others may share the machine); resident memory before the profile
and at its peak; below it, why published counts differ.

Run: python -m benchmarks.bench_models [NAME ...]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HARDWARE = "homodyne-1550nm"
COMMAND_EXAMPLES = 4


def measure(name: str) -> dict[str, object]:
    """Measure one network in this process."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import zoo
    from precalloc import Hardware, profile, sites

    entry, model = zoo.ZOO[name], getattr(zoo, name)()
    inputs = entry.inputs(np.random.default_rng(1), entry.examples)
    batch = {key: torch.from_numpy(value) for key, value in inputs.items()}
    small = {key: value[:2] for key, value in batch.items()}
    report = sites(model, small)
    # Attention as its two products, which is how torch itself computes it without a fused kernel.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*small.values()) if "x" in small else model(**small)
    start = time.process_time()
    with torch.no_grad():
        for first in range(0, entry.examples, entry.batch_size):
            part = {key: value[first : first + entry.batch_size] for key, value in batch.items()}
            model(*part.values()) if "x" in part else model(**part)
    forward = time.process_time() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    chip, options = Hardware.load(HARDWARE), {"batch_size": entry.batch_size, "task": entry.task}
    measured = profile(model, inputs, chip, margins=0, **options)
    seconds = time.process_time() - start
    tables = None
    if entry.task == "classification":
        start = time.process_time()
        profile(model, inputs, chip, **options)
        tables = time.process_time() - start
    assert all(np.isfinite(values).all() for values in measured.damage.values())
    return {
        "sites": len(report.sites),
        "macs": sum(site.macs for site in report.sites),
        "counted": counter.get_total_flops() / 2 / 2,
        "digital": sum(item.macs for item in report.digital),
        "uncovered": [f"{item.operator} in {item.name}" for item in report.uncovered],
        "examples": entry.examples,
        "forward_seconds": forward,
        "profile_seconds": seconds,
        "tables_seconds": tables,
        "forward_gib": before,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def run_commands(name: str, folder: Path) -> None:
    """Run the four commands on a few examples, as a user would; stop where one fails."""
    from benchmarks import zoo

    entry = zoo.ZOO[name]
    for part, seed in (("calib", 1), ("eval", 2)):
        np.savez(folder / f"{part}.npz", **entry.inputs(np.random.default_rng(seed), COMMAND_EXAMPLES))
    model, calibration = f"{HERE / 'zoo.py'}:{name}", ("--data", str(folder / "calib.npz"))
    task, profile, plan = ("--task", entry.task), str(folder / "profile.npz"), folder / "plan"
    few = ("--batch-size", "2")
    commands = (
        ("sites", model, *calibration),
        ("profile", model, *calibration, "--hardware", HARDWARE, "--out", profile, *task, *few),
        ("allocate", "--profile", profile, "--budget", "20x", "--out", str(plan)),
        ("validate", model, "--data", str(folder / "eval.npz"), "--kmap", str(plan / "kmap.json"), *task, *few),
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "precalloc.cli", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}: precalloc {command[0]} failed: {done.stderr[-500:]}")


def row(name: str, found: dict[str, object]) -> str:
    """One line of the table, and one for what differs from the published count."""
    from benchmarks import zoo

    entry = zoo.ZOO[name]
    published = "-" if entry.published is None else f"{entry.published / 1e9:.3f}"
    counted = found["counted"] - found["macs"]
    forward = found["forward_seconds"]
    tables = "-" if found["tables_seconds"] is None else f"{found['tables_seconds'] / forward:.1f}"
    line = (
        f"{name:14} {found['sites']:5d} {found['macs'] / 1e6:10.3f} {published:>9} {counted / 1e6:+12.3f} "
        f"{found['examples']:4d} {forward:7.1f} {found['profile_seconds'] / forward:7.1f} {tables:>7} "
        f"{found['forward_gib']:6.2f} {found['peak_gib']:6.2f}  {entry.source}"
    )
    return f"{line}\n               {entry.difference}" if entry.difference else line


def main() -> None:
    """Measure the named networks, or all, and print the table."""
    from benchmarks import zoo

    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(json.dumps(measure(sys.argv[2])))
        return
    print(
        f"{'network':14} {'sites':>5} {'MMACs':>10} {'published':>9} {'counter +M':>12} {'n':>4} {'fwd s':>7} "
        f"{'profile':>7} {'+tables':>7} {'f GiB':>6} {'p GiB':>6}  source of the published GMACs"
    )
    for name in sys.argv[1:] or list(zoo.ZOO):
        with tempfile.TemporaryDirectory() as folder:
            run_commands(name, Path(folder))
        command = [sys.executable, "-m", "benchmarks.bench_models", "--one", name]
        one = subprocess.run(command, capture_output=True, text=True, check=False)
        if one.returncode:
            raise SystemExit(f"{name}: {one.stderr[-800:]}")
        found = json.loads(one.stdout.splitlines()[-1])
        print(row(name, found), *found["uncovered"], flush=True)


if __name__ == "__main__":
    main()
