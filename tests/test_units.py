"""Quantities: parsing with units, refusals with remedies, formatting."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precalloc.errors import UnitError
from precalloc.units import (
    Quantity,
    format_energy,
    format_energy_per_mac,
    format_time,
    parse_energy,
    parse_energy_per_mac,
    parse_quantity,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "joule"),
    [
        ("20 aJ", 20e-18),
        ("3nJ", 3e-9),
        (" 0.205 pJ ", 0.205e-12),
        (".5 fJ", 0.5e-15),
        ("2 µJ", 2e-6),  # micro sign
        ("2 μJ", 2e-6),  # Greek mu
        ("2 uJ", 2e-6),
        ("1.5e-3 J", 1.5e-3),
        ("4 millijoule", 4e-3),
        ("2 eV", 2 * 1.602176634e-19),
        ("0 J", 0.0),
    ],
)
def test_parses_energies_to_the_nearest_float(text, joule):
    assert parse_energy(text) == joule


@pytest.mark.parametrize("text", ["20 aJ/MAC", "20aJ/mac", "20 aJ per MAC", "0.02 fJ / MAC", "20 aJ*MAC^-1"])
def test_parses_energy_per_mac(text):
    assert parse_energy_per_mac(text) == 20e-18


def test_parses_times():
    assert parse_time("5 ns") == 5e-9


def test_tells_which_accepted_unit_it_found():
    accepted = ("joule", "joule/MAC")
    assert parse_quantity("3 nJ", accepted) == Quantity(3e-9, "joule")
    assert parse_quantity("3 nJ/MAC", accepted) == Quantity(3e-9, "joule/MAC")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("20", "has no unit"),
        ("", "not a number with a unit"),
        ("J", "not a number with a unit"),
        ("nan J", "not a number with a unit"),
        ("2,5 nJ", "not a number with a unit"),
        ("20 aj", "does not know"),
        ("3 bananas", "does not know"),
        ("5 ns", "does not fit"),
        ("20 aJ/MAC", "does not fit"),
        ("3 J^2", "does not fit"),
        ("3 J/", "malformed"),
        ("3 (J", "malformed"),
        ("-3 nJ", "not negative"),
        ("1e400 J", "finite"),
        (5, "not a number with a unit"),
    ],
)
def test_refusals_name_value_problem_and_an_example_that_works(text, problem):
    with pytest.raises(UnitError) as caught:
        parse_energy(text)
    message = str(caught.value)
    assert str(text) in message
    assert problem in message
    assert "\n" not in message
    assert parse_energy(message.rsplit('"', 2)[1]) > 0


@pytest.mark.parametrize(
    ("joule", "text"),
    [
        (2.3e-9, "2.3 nJ"),
        (1.28158e-19, "0.128 aJ"),
        (999.96e-12, "1 nJ"),
        (123.4e-6, "123 µJ"),
        (0.0, "0 J"),
        (math.inf, "inf J"),
        (-2e-9, "-2 nJ"),
        (1.0, "1 J"),
    ],
)
def test_formats_energies(joule, text):
    assert format_energy(joule) == text


def test_formats_per_mac_and_time():
    assert format_energy_per_mac(20e-18) == "20 aJ/MAC"
    assert format_time(5e-9) == "5 ns"


@given(st.floats(min_value=1e-30, max_value=1e15))
def test_seventeen_digits_come_back_exactly(joule):
    assert parse_energy(format_energy(joule, digits=17)) == joule


@given(st.floats(min_value=1e-18, max_value=1e9))
def test_three_digits_come_back_to_half_a_unit_of_the_last(joule):
    assert parse_energy(format_energy(joule)) == pytest.approx(joule, rel=5.01e-3)
