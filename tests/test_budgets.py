import pytest

from precalloc.budgets import Budget, BudgetKind, parse_budgets
from precalloc.errors import BudgetError

COST, MACS = 2e-15, 1000.0  # one repetition everywhere, MACs per inference


@pytest.mark.parametrize(
    ("text", "joule"),
    [
        ("3 nJ", 3e-9),
        ("0.5pJ", 5e-13),
        ("20 aJ/MAC", 20e-15),
        ("15x", 30e-15),
        (" 1.5 x ", 3e-15),
        ("40% of 15x", 12e-15),
        ("40 % of 20 aJ/MAC", 8e-15),
        ("50% of 3 nJ", 1.5e-9),
    ],
)
def test_energy_of_every_unit(text, joule):
    assert Budget.parse(text).energy_joule(COST, MACS) == pytest.approx(joule, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "15", "x", "3 kg", "3 nJ/s", "-3x", "0x", "nan", "1e999x", "40%", "0% of 15x", "-1 nJ"]
)
def test_malformed_budgets_name_themselves_and_examples(text):
    with pytest.raises(BudgetError) as error:
        Budget.parse(text)
    assert repr(text) in str(error.value)
    assert "'15x'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["3 nJ", "20 aJ/MAC", "15x", "40% of 15x"])
def test_expressed_energy_suffices_when_typed_back(text):
    budget = Budget.parse(text)
    for energy in (1.23456789e-15, 9.99999e-12, 2e-15):
        typed = Budget.parse(budget.express(energy, COST, MACS)).energy_joule(COST, MACS)
        assert energy * (1 - 1e-12) <= typed <= energy * 1.002


def test_text_of_a_budget_reads_back():
    for text in ("3 nJ", "20 aJ/MAC", "15x", "40% of 15x"):
        assert str(Budget.parse(text)) == text


def test_ranges_are_even_in_logarithm():
    budgets = parse_budgets("2x:200x:5")
    assert [b.value for b in budgets] == pytest.approx([2, 2 * 10**0.5, 20, 20 * 10**0.5, 200])
    assert all(b.kind is BudgetKind.REPETITIONS for b in budgets)
    assert [b.value for b in parse_budgets("5x, 10x")] == [5.0, 10.0]


@pytest.mark.parametrize("text", ["2x:200x", "2x:200x:1", "2x:200x:a", "2x:3 nJ:4"])
def test_malformed_ranges(text):
    with pytest.raises(BudgetError, match=text):
        parse_budgets(text)
