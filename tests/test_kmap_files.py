import csv
import io
import json
from dataclasses import replace
from importlib import resources

import jsonschema
import numpy as np
import pytest
import torch
from builders import CHANNELS, make_hardware, make_profile

from precalloc.accuracy import SimulatedAccuracy, SimulatedLoss
from precalloc.allocator import allocate
from precalloc.errors import KMapError, PrecallocError
from precalloc.hardware import NoiseKind, Redundancy
from precalloc.kmap_files import kmap_csv, kmap_json, kmap_record
from precalloc.kmaps import KMap
from precalloc.network.data import as_data, data_hash
from precalloc.network.models import model_hash
from precalloc.output_files import write_files
from precalloc.workflow import doubts

SCHEMA = json.loads((resources.files("precalloc") / "schemas" / "kmap.schema.json").read_text(encoding="utf-8"))


def simulated():
    rng = np.random.default_rng(0)
    loss = SimulatedLoss.from_losses(rng.random((4, 50)), rng.random(50))
    return SimulatedAccuracy.from_outcomes(rng.random((4, 50)) < 0.8, rng.random(50) < 0.95, loss=loss)


def language_model():
    """A language model's allocation, simulated, without any score."""
    profile = make_profile(margins=False)
    profile = replace(profile, provenance=replace(profile.provenance, task="language-model"))
    rng = np.random.default_rng(0)
    loss = SimulatedLoss.from_losses(rng.random((4, 50)), rng.random(50), rng.integers(1, 9, 50).astype(float))
    missing = np.full((4, 50), np.nan)
    scoreless = SimulatedAccuracy.from_outcomes(missing, missing[0], loss=loss, task="language-model", score="")
    return allocate(profile, "15x", hardware=make_hardware()).with_simulation(scoreless, scoreless)


def allocations():
    profile, shot = make_profile(), make_hardware()
    floor = make_hardware(((NoiseKind.THERMAL, 0.1), (NoiseKind.WEIGHT, 0.2)), Redundancy.TIME, "continuous")
    layer = allocate(profile, "15x", hardware=shot)
    return {
        "layer": layer,
        "channel": allocate(profile, "15x", hardware=shot, granularity="channel"),
        "floor": allocate(profile, "7x", hardware=floor),
        "unpredicted": allocate(make_profile(margins=False), "7x", hardware=shot),
        "max_drop": allocate(make_profile(examples=2000), max_drop=0.03, hardware=shot),
        "simulated": layer.with_simulation(simulated(), simulated()),
        "language model": language_model(),
    }


EVERY_ALLOCATION = pytest.mark.parametrize("allocation", allocations().values(), ids=allocations().keys())


@EVERY_ALLOCATION
def test_json_follows_its_schema_and_reads_back(allocation, tmp_path):
    record = json.loads(kmap_json(allocation))
    jsonschema.Draft202012Validator(SCHEMA, format_checker=None).validate(record)
    assert record == json.loads(json.dumps(kmap_record(allocation)))
    (path,) = write_files(tmp_path, {"kmap.json": kmap_json(allocation)})
    kmap = KMap.load(path)
    assert kmap.granularity == allocation.granularity
    assert kmap.hardware == allocation.hardware
    assert list(kmap.repetitions) == [entry.site.name for entry in allocation]
    for name, k in allocation.by_site.items():
        assert np.array_equal(kmap.repetitions[name], k)


def test_the_schema_itself_is_sound_and_strict():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    record = json.loads(kmap_json(allocations()["layer"]))
    for spoil in (
        lambda r: r.pop("lower_bound"),
        lambda r: r.update(version=2),
        lambda r: r["sites"][0].update(repetitions=0),
        lambda r: r["predicted"].update(accuracy=89.0),
    ):
        spoiled = json.loads(json.dumps(record))
        spoil(spoiled)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoiled, SCHEMA)


def test_json_holds_the_figures_of_the_allocation():
    allocation = allocations()["simulated"]
    record = json.loads(kmap_json(allocation))
    assert record["energy_joule"] == pytest.approx(sum(site["energy_joule"] for site in record["sites"]))
    assert record["objective"] == pytest.approx(sum(site["damage"] for site in record["sites"]))
    assert record["predicted"]["accuracy"] == allocation.predicted.accuracy
    assert record["simulated"]["drop"] == allocation.simulated.drop
    assert record["uniform"]["repetitions"] == 15
    assert record["uniform"]["simulated"]["seeds"] == 4
    assert all(isinstance(site["repetitions"], int) for site in record["sites"])


def test_json_holds_loss_and_perplexity():
    allocation = allocations()["language model"]
    record = json.loads(kmap_json(allocation))
    assert record["predicted_loss"] == pytest.approx(0.2 + record["objective"])
    assert record["predicted_perplexity"] == pytest.approx(np.exp(record["predicted_loss"]))
    assert record["simulated"]["accuracy"] is None
    assert record["simulated"]["per_seed"] == [None] * 4
    assert record["simulated"]["loss"]["increase"] == allocation.simulated.loss.increase
    assert "predicted_perplexity" not in json.loads(kmap_json(allocations()["layer"]))


def test_unknown_entries_are_ignored():
    record = json.loads(kmap_json(allocations()["channel"]))
    record["stopping_threshold"] = 0.5
    record["sites"][0]["range"] = [0, 1]
    assert KMap.from_record(record, "a test").repetitions["block0.conv"].shape == (4,)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.update(schema="x"), "is no K map"),
        (lambda r: r.update(version=9), "version 9"),
        (lambda r: r.pop("sites"), "malformed"),
        (lambda r: r.update(granularity="row"), "malformed"),
        (lambda r: r["sites"][1].update(repetitions=-1), r"block1\.conv.*positive"),
        (lambda r: r["sites"][1].update(repetitions="many"), "malformed"),
        (lambda r: r["sites"][1].update(repetitions=[1, 2]), "2 repetitions at granularity 'layer'"),
        (lambda r: r["sites"][1].update(name="block0.conv"), "twice"),
        (lambda r: r["hardware"].pop("noise"), "noise"),
    ],
)
def test_malformed_maps_are_refused_by_name(spoil, message):
    record = json.loads(kmap_json(allocations()["layer"]))
    spoil(record)
    with pytest.raises(KMapError, match=message) as error:
        KMap.from_record(record, "some.json")
    assert "some.json" in str(error.value)


def test_missing_files_and_other_files(tmp_path):
    with pytest.raises(KMapError, match="does not exist"):
        KMap.load(tmp_path / "kmap.json")
    (tmp_path / "kmap.json").write_text("{")
    with pytest.raises(KMapError, match="not JSON"):
        KMap.load(tmp_path / "kmap.json")
    with pytest.raises(KMapError, match="is no K map"):
        KMap.from_record([], "a list")


@pytest.mark.parametrize("name", ["layer", "channel"])
def test_csv_rows_add_up(name):
    allocation = allocations()[name]
    rows = list(csv.DictReader(io.StringIO(kmap_csv(allocation))))
    assert len(rows) == (len(CHANNELS) if name == "layer" else sum(CHANNELS))
    assert [float(row["repetitions"]) for row in rows] == list(allocation.repetitions)
    assert sum(float(row["energy_joule"]) for row in rows) == pytest.approx(allocation.energy_joule)
    assert sum(float(row["macs"]) for row in rows) == pytest.approx(allocation.macs)


def test_files_appear_together_or_not_at_all(tmp_path):
    write_files(tmp_path, {"a": "old"})
    with pytest.raises(UnicodeEncodeError):
        write_files(tmp_path, {"a": "new", "b": "\ud800"})  # the second cannot be encoded
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrecallocError, match=r"Cannot write to .*file"):
        write_files(tmp_path / "file", {"a": "x"})


def test_simulating_on_another_model_or_on_the_calibration_data_is_said():
    network, calibration = torch.nn.Linear(2, 2), {"x": np.ones((3, 2), np.float32), "y": np.zeros(3, int)}
    kmap = replace(
        allocations()["layer"].kmap(), model_hash=model_hash(network), data_hash=data_hash(as_data(calibration))
    )
    weights, data = doubts(kmap, torch.nn.Linear(2, 2), calibration)
    assert "--weights" in weights
    assert "chosen on" in data
    assert doubts(kmap, network, calibration | {"y": np.ones(3, int)}) == ()
    unknown = replace(kmap, model_hash="", data_hash="")
    assert doubts(unknown, torch.nn.Linear(2, 2), calibration) == ()
