"""Hardware: presets, files, records, and what malformed ones are answered."""

import json
import math
import tomllib
from importlib import resources

import pytest

from precalloc.errors import HardwareError
from precalloc.hardware import AVERAGED_BY, Hardware, NoiseKind, NoiseTerm, Redundancy, Repetition

FILE = """\
schema = "precalloc/hardware"
version = 1
name = "lab"

[repetition]
redundancy = "time"
levels = "integer"
min = 1
max = 64

[energy]
per_mac = "0.5 pJ"
per_conversion = "2 pJ/conversion"

[[noise]]
kind = "thermal"
sigma = 0.02

[[noise]]
kind = "shot"
photons_per_mac = 3
"""


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "lab.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_presets_are_those_of_the_documentation():
    assert Hardware.presets() == (
        "broadcast-weight-1550nm",
        "crossbar-thermal",
        "crossbar-weight",
        "homodyne-1550nm",
    )


@pytest.mark.parametrize("name", Hardware.presets())
def test_presets_carry_their_name_and_a_source_for_every_number(name):
    hardware = Hardware.load(name)
    assert hardware.name == name
    assert hardware.description
    assert len(hardware.energy_source) > 20
    assert all(len(term.source) > 20 for term in hardware.noise)


@pytest.mark.parametrize("name", Hardware.presets())
def test_presets_spell_out_both_energies_and_the_smallest_k(name):
    tables = tomllib.loads((resources.files("precalloc") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
    assert {"per_mac", "per_conversion", "source"} <= tables["energy"].keys()
    assert "min" in tables["repetition"]


def test_homodyne_energy_is_that_of_one_photon():
    hardware = Hardware.load("homodyne-1550nm")
    planck, light, wavelength = 6.62607015e-34, 299792458, 1550e-9
    assert hardware.energy_per_mac_joule == pytest.approx(planck * light / wavelength, rel=5e-5)
    assert hardware.noise == (NoiseTerm(NoiseKind.SHOT, 1.0, AVERAGED_BY[NoiseKind.SHOT], hardware.noise[0].source),)
    assert hardware.repetition == Repetition(Redundancy.POWER, "continuous", 0.1, math.inf)
    assert hardware.is_averaged(hardware.noise[0])


@pytest.mark.parametrize(
    ("name", "kind", "level", "redundancy"),
    [
        ("crossbar-thermal", NoiseKind.THERMAL, 0.01, Redundancy.TIME),
        ("crossbar-weight", NoiseKind.WEIGHT, 0.1, Redundancy.SPACE),
    ],
)
def test_crossbars(name, kind, level, redundancy):
    hardware = Hardware.load(name)
    assert [(term.kind, term.level) for term in hardware.noise] == [(kind, level)]
    assert hardware.repetition == Repetition(redundancy, "integer", 1.0, math.inf)
    assert hardware.is_averaged(hardware.noise[0])
    operations_per_joule, operations_per_mac = 9.76e12, 2  # Le Gallo et al. 2023
    assert hardware.energy_per_mac_joule == pytest.approx(operations_per_mac / operations_per_joule, rel=1e-3)
    assert hardware.energy_per_conversion_joule == 0


def test_broadcast_and_weight_has_shot_and_thermal_noise():
    hardware = Hardware.load("broadcast-weight-1550nm")
    assert hardware.kinds == (NoiseKind.SHOT, NoiseKind.THERMAL)
    assert hardware.repetition == Repetition(Redundancy.TIME, "integer", 1.0, math.inf)
    assert all(hardware.is_averaged(term) for term in hardware.noise)


def test_a_file_by_path(write):
    path = write(FILE)
    expected = Hardware(
        name="lab",
        noise=(
            NoiseTerm(NoiseKind.THERMAL, 0.02, AVERAGED_BY[NoiseKind.THERMAL]),
            NoiseTerm(NoiseKind.SHOT, 3.0, AVERAGED_BY[NoiseKind.SHOT]),
        ),
        repetition=Repetition(Redundancy.TIME, "integer", 1.0, 64.0),
        energy_per_mac_joule=0.5e-12,
        energy_per_conversion_joule=2e-12,
    )
    assert Hardware.load(path) == expected
    assert Hardware.load(str(path)) == expected


def test_static_error_repeated_in_time_is_a_floor(write):
    hardware = Hardware.load(write(FILE.replace('"thermal"', '"weight"')))
    assert [hardware.is_averaged(term) for term in hardware.noise] == [False, True]


def test_a_file_may_say_what_averages_a_noise(write):
    hardware = Hardware.load(write(FILE.replace("sigma = 0.02", 'sigma = 0.02\naveraged_by = ["space"]')))
    assert hardware.noise[0].averaged_by == {Redundancy.SPACE}
    assert not hardware.is_averaged(hardware.noise[0])


def test_listed_levels_set_the_range(write):
    hardware = Hardware.load(write(FILE.replace('"integer"\nmin = 1\nmax = 64', "[1, 2, 4, 8]")))
    assert hardware.repetition == Repetition(Redundancy.TIME, (1.0, 2.0, 4.0, 8.0), 1.0, 8.0)


LISTED = FILE.replace('"integer"\nmin = 1\nmax = 64', "[0.5, 2, 4]")


@pytest.mark.parametrize("source", [*Hardware.presets(), FILE, LISTED], ids=lambda source: source[-20:].strip())
def test_toml_and_json_give_an_equal_hardware_back(source, write):
    hardware = Hardware.load(source if source in Hardware.presets() else write(source))
    assert Hardware.load(write(hardware.to_toml())) == hardware
    record = json.loads(json.dumps(hardware.to_dict(), allow_nan=False))
    assert Hardware.from_dict(record) == hardware


MISTAKES = [
    ("version = 1", "version = 2", ["version", "2", "must be 1"]),
    ("version = 1", "version = ", ["not valid TOML", "line 2"]),
    ('name = "lab"', 'nmae = "lab"', ["nmae", '"name"']),
    ("[energy]", "[enregy]", ["enregy", '"energy"']),
    ("per_mac =", "per_macs =", ["energy.per_macs", '"per_mac"']),
    ('"0.5 pJ"', "0.5", ["energy.per_mac", "0.5", "unit", '"0.5 pJ"']),
    ('"0.5 pJ"', '"0.5 pj"', ["energy.per_mac", "0.5 pj", "20 aJ/MAC"]),
    ('"0.5 pJ"', '"2 ns"', ["energy.per_mac", "2 ns", "20 aJ/MAC"]),
    ('"0.5 pJ"', '"-1 pJ"', ["energy.per_mac", "-1 pJ", "not negative"]),
    ('"2 pJ/conversion"', '"2 pJ/MAC"', ["energy.per_conversion", "2 pJ/MAC", "conversion"]),
    ('"0.5 pJ"\nper_conversion = "2 pJ/conversion"', '"0 J"', ["energy", "nothing to allocate"]),
    ('per_mac = "0.5 pJ"\n', "", ["energy.per_mac", "missing"]),
    ("sigma = 0.02", "sigma = -0.02", ["noise[0].sigma", "-0.02", "greater than 0"]),
    ("sigma = 0.02", 'sigma = "0.02"', ["noise[0].sigma", "0.02", "number"]),
    ("sigma = 0.02", "", ["noise[0]", "thermal", "sigma"]),
    ("photons_per_mac", "sigma", ["noise[1]", "shot", "photons_per_mac"]),
    ('"thermal"', '"termal"', ["noise[0].kind", "termal", "thermal"]),
    ('"shot"\nphotons_per_mac = 3', '"thermal"\nsigma = 1', ["thermal", "twice"]),
    ('"time"', '"tme"', ["repetition.redundancy", "tme", "time"]),
    ('"integer"', '"intger"', ["repetition.levels", "intger", "integer"]),
    ('"integer"', "[4, 2]", ["repetition.levels", "[4, 2]", "ascending"]),
    ('"integer"', "[]", ["repetition.levels", "[]", "ascending"]),
    ('"integer"', "[1, 2, 4]", ["repetition", "min and max"]),
    ("min = 1", "min = 0.5", ["repetition", "whole", "continuous"]),
    ("min = 1", "min = 65", ["repetition", "64", "65"]),
    ("min = 1", "min = nan", ["repetition.min", "nan", "finite"]),
]


@pytest.mark.parametrize(("right", "wrong", "words"), MISTAKES)
def test_mistakes_are_named_in_one_line(right, wrong, words, write):
    assert FILE.count(right) >= 1
    path = write(FILE.replace(right, wrong, 1))
    with pytest.raises(HardwareError) as caught:
        Hardware.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in [str(path), *words] if word not in message] == []


def test_unknown_presets_get_the_nearest_name_and_the_list():
    with pytest.raises(HardwareError, match=r'"homodyn".*Did you mean "homodyne-1550nm".*crossbar-thermal'):
        Hardware.load("homodyn")


def test_missing_and_unreadable_files(tmp_path, write):
    with pytest.raises(HardwareError, match=r"nowhere\.toml does not exist"):
        Hardware.load(tmp_path / "nowhere.toml")
    path = write("")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(HardwareError, match="cannot be read"):
        Hardware.load(path)


def test_records_are_checked_too():
    record = Hardware.load("crossbar-thermal").to_dict()
    del record["repetition"]
    with pytest.raises(HardwareError, match=r"kmap\.json.*repetition is missing"):
        Hardware.from_dict(record, where="of kmap.json")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.update(version=2), "version 2"),
        (lambda r: r["noise"].clear(), "noise is empty"),
        (lambda r: r["noise"][0].update(kind="termal"), "termal"),
        (lambda r: r["noise"][0].update(sigma=-1.0), r"sigma = -1\.0 must be a positive"),
        (lambda r: r["energy"].update(per_mac_joule=float("nan")), "per_mac_joule = nan"),
        (lambda r: r["repetition"].update(levels=[2, 1]), "ascending"),
        (lambda r: r["repetition"].update(levels="any"), "any.*integer"),
        (lambda r: r.update(energy=None), "of kmap"),
    ],
)
def test_malformed_records_are_refused(spoil, words):
    record = Hardware.load("crossbar-thermal").to_dict()
    spoil(record)
    with pytest.raises(HardwareError, match=words):
        Hardware.from_dict(record, where="of kmap.json")
