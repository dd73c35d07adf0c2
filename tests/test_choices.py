"""What the user decides holds in the allocation, in the uniform one beside it, in files and in messages."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from builders import CHANNELS, MACS, make_hardware, make_profile, make_sites
from hypothesis import given, settings
from hypothesis import strategies as st

from precalloc import Choices, allocate, sweep
from precalloc.errors import BudgetError, ChoiceError, UnitError
from precalloc.hardware import Hardware
from precalloc.kmap_files import kmap_json
from precalloc.kmaps import KMap
from precalloc.objective import Objective, parse_granularity
from precalloc.reporting import report_markdown, warnings
from precalloc.uniform import affordable_uniform, within_bounds

NAMES = [f"block{i}.conv" for i in range(4)]


def allocated(choices, budget="8x", granularity="layer", **hardware):
    return allocate(
        make_profile(), budget, hardware=make_hardware(**hardware), granularity=granularity, choices=choices
    )


def test_default_choices_change_nothing():
    plain = allocate(make_profile(), "8x", hardware=make_hardware())
    chosen = allocated(Choices())
    assert np.array_equal(plain.repetitions, chosen.repetitions)
    assert plain.uniform == chosen.uniform
    assert chosen.digital == ()
    assert chosen.digital_energy_joule == 0.0


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_excluded_sites_are_digital(granularity):
    choices = Choices(exclude=("block1*",), digital_energy_per_mac_joule=2e-12)
    result = allocated(choices, granularity=granularity)
    assert list(result.by_site) == [NAMES[0], NAMES[2], NAMES[3]]
    assert [entry.site.name for entry in result.digital] == [NAMES[1]]
    assert result.digital_energy_joule == pytest.approx(MACS[1] * 2e-12)
    assert result.macs == sum(MACS) - MACS[1]
    # Without its noise the network is that of the other sites alone: no damage, and nothing in the prediction.
    profile = make_profile()
    keep = np.array([True, False, True, True])
    alone = allocate(profile.select(keep), "8x", hardware=make_hardware(), granularity=granularity)
    assert np.array_equal(result.repetitions, alone.repetitions)
    assert result.objective == alone.objective
    assert result.predicted == alone.predicted
    assert result.predicted.accuracy > allocated(Choices(), granularity=granularity).predicted.accuracy


def test_include_keeps_only_what_matches_and_kinds_select():
    assert list(allocated(Choices(include=("block[02].*",))).by_site) == [NAMES[0], NAMES[2]]
    sites = tuple(replace(s, kind="matmul") if i == 2 else s for i, s in enumerate(make_sites()))
    result = allocate(
        make_profile(sites=sites), "8x", hardware=make_hardware(), choices=Choices(exclude=("kind:mat*",))
    )
    assert NAMES[2] not in result.by_site


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_fixed_bounded_and_tied(granularity):
    choices = Choices(
        fixed={"position:first": 5.0, "position:last": 9.0}, k_min={"block1*": 7.0}, k_max={"block2*": 3.0}
    )
    result = allocated(choices, granularity=granularity)
    k = result.by_site
    assert set(k[NAMES[0]]) == {5.0}
    assert set(k[NAMES[3]]) == {9.0}
    assert (k[NAMES[1]] >= 7.0).all()
    assert (k[NAMES[2]] <= 3.0).all()
    tied = allocated(Choices(ties=("block[13]*",)), granularity=granularity).by_site
    assert len(set(tied[NAMES[1]]) | set(tied[NAMES[3]])) == 1
    assert tied[NAMES[0]].size == (1 if granularity == "layer" else CHANNELS[0])


def test_tied_allocation_is_the_best_tied_one():
    """Against every integer K of the three units that are left, by enumeration."""
    result = allocated(Choices(ties=("block[01]*",)), budget="3x")
    profile, hardware = make_profile(), make_hardware()
    objective = Objective.of(profile, hardware, parse_granularity("layer"))
    best = math.inf
    for a in range(1, 40):
        for b in range(1, 40):
            for c in range(1, 200):
                k = np.array([a, a, b, c], dtype=float)
                if objective.energy_joule(k) <= 3 * objective.cost_at_k1 * (1 + 1e-12):
                    best = min(best, objective.damage_at(k))
                else:
                    break
    assert result.objective == pytest.approx(best, rel=1e-9)


LEVELS = [("integer", math.inf), ("continuous", 40.0), ((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), 32.0)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    levels=st.sampled_from(LEVELS),
    granularity=st.sampled_from(["layer", "channel"]),
    fixed=st.dictionaries(st.sampled_from(NAMES[:2]), st.sampled_from([2.0, 4.0, 16.0]), max_size=2),
    k_min=st.dictionaries(st.sampled_from(NAMES[2:]), st.sampled_from([1.5, 3.0, 6.0]), max_size=2),
    k_max=st.dictionaries(st.sampled_from(NAMES[2:]), st.sampled_from([8.0, 9.5, 30.0]), max_size=2),
    tied=st.booleans(),
    excluded=st.sampled_from([(), (NAMES[1],)]),
    budget=st.sampled_from(["6.5x", "11x", "23x", "200x"]),
)
def test_never_worse_than_uniform_under_the_same_choices(
    levels, granularity, fixed, k_min, k_max, tied, excluded, budget
):
    fixed = {name: k for name, k in fixed.items() if name not in excluded}
    choices = Choices(exclude=excluded, fixed=fixed, k_min=k_min, k_max=k_max, ties=("block[23]*",) if tied else ())
    try:
        result = allocated(choices, budget, granularity, levels=levels[0], k_max=levels[1])
    except BudgetError:
        return  # what is fixed takes more than the budget
    except ChoiceError:
        if tied:
            return  # bounds of the tied sites exclude each other
        raise
    uniform = result.uniform
    assert result.objective <= uniform.damage
    assert uniform.energy_joule <= result.budget_joule * (1 + 1e-9)
    assert result.energy_joule <= result.budget_joule * (1 + 1e-9)
    assert result.lower_bound <= result.objective
    for kmap in (result.kmap(), result.uniform_kmap()):
        for name, k in kmap.repetitions.items():
            assert (k == fixed[name]).all() if name in fixed else True
            assert (k >= k_min.get(name, 1.0)).all()
            assert (k <= k_max.get(name, math.inf)).all()
            assert (np.isin(k, levels[0]) if isinstance(levels[0], tuple) else k == k).all()
        if tied:
            assert len(np.unique(np.concatenate([kmap.repetitions[name] for name in NAMES[2:]]))) == 1
        assert kmap.digital == set(excluded)


def test_uniform_k_is_the_largest_that_fits():
    hardware, rng = make_hardware(), np.random.default_rng(0)
    for _ in range(50):
        cost = rng.uniform(0.1, 3.0, 6)
        lower = rng.integers(1, 6, 6).astype(float)
        upper = lower + rng.choice([0.0, 3.0, 10.0, math.inf], 6)
        energy = float(cost @ lower) * rng.uniform(1.0, 4.0)
        k = affordable_uniform(energy, cost, lower, upper, hardware.repetition)
        assert cost @ within_bounds(k, lower, upper) <= energy * (1 + 1e-9)
        more = within_bounds(k + 1.0, lower, upper)
        assert cost @ more > energy or np.array_equal(more, within_bounds(k, lower, upper))


@pytest.mark.parametrize(
    ("choices", "pattern"),
    [
        (Choices(exclude=("blok1.conv",)), r"'blok1\.conv' of 'exclude' matches no site\. Near it are 'block1\.conv'"),
        (Choices(include=("zzz*",)), r"'zzz\*' of 'include' matches no site\. There are 'block0\.conv'"),
        (
            Choices(exclude=("kind:conv3d",)),
            r"'kind:conv3d' of 'exclude' matches no kind of site\. Near it are 'conv2d'",
        ),
        (Choices(fixed={"head": 3.0}), r"'head' of 'fix' matches no site"),
        (Choices(ties=("conv?",)), r"'conv\?' of 'tie' matches no site\. Near it are 'block"),
        (Choices(k_min={"x": 2.0}), r"'x' of 'k-min'"),
        (Choices(k_max={"x": 2.0}), r"'x' of 'k-max'"),
        (Choices(exclude=("*",)), r"No site is left.*Exclude fewer"),
        (Choices(fixed={"block0*": 2.5}), r"cannot repeat 'block0\*' 2\.5 times\. Fix K at 2 or 3"),
        (Choices(fixed={"block0*": 0.5}), r"cannot repeat 'block0\*' 0\.5 times\. Fix K at 1"),
        (Choices(fixed={"block0*": 2.0}, k_min={"*": 4.0}), r"'block0\.conv' is left no K.*at least 4 and at most 2"),
        (Choices(fixed={NAMES[0]: 2.0, NAMES[1]: 3.0}, ties=("block[01]*",)), r"'block0\.conv' is left no K.*tied"),
    ],
)
def test_choices_that_match_nothing_or_contradict(choices, pattern):
    with pytest.raises(ChoiceError, match=pattern) as error:
        allocated(choices)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("k", [0.0, -1.0, math.inf, math.nan, "2"])
def test_k_must_be_a_positive_number(k):
    with pytest.raises(ChoiceError, match="must be a positive number"):
        Choices(fixed={"a": k})


def test_budget_below_what_is_fixed():
    with pytest.raises(BudgetError, match=r"and of the choices, takes .*Give at least"):
        allocated(Choices(fixed={"block1*": 50.0}), "4x")


def test_least_energy_for_an_accuracy_obeys_choices():
    choices = Choices(exclude=("block2*",), fixed={"block0*": 60.0})
    result = allocate(make_profile(examples=2000), max_drop=0.03, hardware=make_hardware(), choices=choices)
    assert result.predicted.drop_high <= 0.03
    assert result.by_site[NAMES[0]] == 60.0
    assert result.matching_uniform.held == {NAMES[0]: 60.0}
    with pytest.raises(BudgetError, match="the largest K that is allowed"):
        allocate(
            make_profile(), max_drop=0.001, hardware=make_hardware(k_max=64.0), choices=Choices(k_max={"block0*": 1.0})
        )


def test_sweep_takes_choices():
    frame = sweep(make_profile(), "4x,8x", hardware=make_hardware(), choices=Choices(exclude=("block1*",)))
    result = allocated(Choices(exclude=("block1*",)))
    assert frame["damage"].iloc[1] == result.objective


def test_files_and_report(tmp_path):
    choices = Choices(exclude=("block1*",), fixed={"block0*": 5.0}, digital_energy_per_mac_joule=1e-12)
    result = allocated(choices)
    record = json.loads(kmap_json(result))
    schema = json.loads((Path(__file__).parents[1] / "precalloc/schemas/kmap.schema.json").read_text())
    jsonschema.validate(record, schema)
    (digital,) = record["digital"]
    assert (digital["name"], digital["kind"], digital["macs"]) == (NAMES[1], "conv2d", 8000)
    assert digital["energy_joule"] == pytest.approx(8e-9)
    assert record["digital_energy_joule"] == pytest.approx(8e-9)
    assert record["choices"]["exclude"] == ["block1*"]
    assert record["uniform"]["held"] == {NAMES[0]: 5}
    path = tmp_path / "kmap.json"
    path.write_text(kmap_json(result))
    assert KMap.load(path).digital == {NAMES[1]}
    assert any("1 sites with 8k MACs stay digital by choice; they take 8 nJ" in note for note in warnings(result))
    assert any("Uniform K obeys the same choices" in note for note in warnings(result))
    report = report_markdown(result)
    assert "## Digital" in report
    assert "| block1.conv | conv2d | 8k | 8 nJ |" in report
    unknown = allocated(Choices(exclude=("block1*",)))
    assert unknown.digital_energy_joule is None
    assert json.loads(kmap_json(unknown))["digital_energy_joule"] is None


def test_toml_files(tmp_path):
    path = tmp_path / "choices.toml"
    path.write_text(
        'exclude = ["kind:matmul"]\ntie = ["a*"]\ndigital_energy = "1 pJ/MAC"\n[fix]\nstem = 8\n[k_min]\n"*" = 2\n'
    )
    loaded = Choices.load(path)
    assert loaded == Choices((), ("kind:matmul",), {"stem": 8}, ("a*",), {"*": 2}, {}, 1e-12)
    joined = loaded.joined(Choices(exclude=("b",), fixed={"stem": 4.0}))
    assert joined.exclude == ("kind:matmul", "b")
    assert joined.fixed == {"stem": 4.0}
    assert joined.digital_energy_per_mac_joule == 1e-12
    path.write_text("exclud = ['a']")
    with pytest.raises(ChoiceError, match=r"choices\.toml: 'exclud' is unknown"):
        Choices.load(path)
    path.write_text("exclude = 'a'")
    with pytest.raises(ChoiceError, match="'exclude' is unknown or of the wrong form"):
        Choices.load(path)
    path.write_text("= 3")
    with pytest.raises(ChoiceError, match="cannot be read as TOML"):
        Choices.load(path)
    with pytest.raises(ChoiceError, match=r"absent\.toml cannot be read"):
        Choices.load(tmp_path / "absent.toml")
    path.write_text('digital_energy = "1 pJ"')
    with pytest.raises(UnitError, match="does not fit here"):
        Choices.load(path)


def test_command_line(tmp_path):
    from typer.testing import CliRunner

    from precalloc.cli import app

    make_profile().save(tmp_path / "profile.npz")
    arguments = ["allocate", "--profile", str(tmp_path / "profile.npz"), "--hardware", "homodyne-1550nm"]
    arguments += ["--budget", "8x", "--out", str(tmp_path / "plan")]
    chosen = ["--exclude", "block1*", "--fix", "position:last=4", "--tie", "block[02]*", "--k-max", "*=30"]
    result = CliRunner().invoke(app, [*arguments, *chosen, "--digital-energy", "1 pJ/MAC"])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "plan" / "kmap.json").read_text())
    k = {site["name"]: site["repetitions"] for site in record["sites"]}
    assert k[NAMES[3]] == 4
    assert k[NAMES[0]] == k[NAMES[2]]
    assert record["digital_energy_joule"] == pytest.approx(8e-9)
    assert "stay digital by choice" in " ".join(result.output.split())
    wrong = CliRunner().invoke(app, [*arguments, "--fix", "block1"])
    assert wrong.exit_code == 2
    assert "--fix 'block1' must be PATTERN=K" in " ".join(wrong.output.split())


def test_sweep_on_the_command_line(tmp_path):
    """Options and a file of choices act on every point, as they do in Python; what matches nothing stops the run."""
    from typer.testing import CliRunner

    from precalloc.cli import app

    make_profile().save(tmp_path / "profile.npz")
    (tmp_path / "choices.toml").write_text('tie = ["block[02]*"]\n[fix]\n"position:last" = 4\n')
    arguments = ["sweep", "--profile", str(tmp_path / "profile.npz"), "--hardware", "homodyne-1550nm", "--no-pictures"]
    arguments += ["--budgets", "4x,8x", "--granularity", "layer", "--out", str(tmp_path / "out")]
    chosen = ["--exclude", "block1*", "--k-max", "*=30", "--digital-energy", "1 pJ/MAC"]
    result = CliRunner().invoke(app, [*arguments, *chosen, "--choices", str(tmp_path / "choices.toml")])
    assert result.exit_code == 0, result.output
    choices = Choices(
        exclude=("block1*",), fixed={"position:last": 4.0}, ties=("block[02]*",), k_max={"*": 30.0},
        digital_energy_per_mac_joule=1e-12,
    )  # fmt: skip
    expected = sweep(make_profile(), "4x,8x", hardware=Hardware.load("homodyne-1550nm"), choices=choices)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "curve.csv"), expected)
    free = sweep(make_profile(), "4x,8x", hardware=Hardware.load("homodyne-1550nm"))
    assert (expected["damage"] != free["damage"]).all()
    kept = CliRunner().invoke(app, [*arguments, "--include", "block[02]*"])
    assert kept.exit_code == 0, kept.output
    for option, value in (("--include", "blok1*"), ("--fix", "blok1*=4"), ("--k-min", "blok1*=2")):
        wrong = CliRunner().invoke(app, [*arguments, option, value])
        assert (wrong.exit_code, "block1.conv" in wrong.stderr) == (2, True)
