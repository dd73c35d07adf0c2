import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from builders import make_profile
from test_kmap_files import allocations
from typer.testing import CliRunner

import precalloc
from precalloc import figures
from precalloc.accuracy import SimulatedAccuracy
from precalloc.charts import BARS_LONGEST, BARS_SHORTEST, Scale, bars
from precalloc.choices import Choices
from precalloc.cli import app
from precalloc.errors import KMapError, ProfileError
from precalloc.hardware import Hardware
from precalloc.kmap_files import kmap_json
from precalloc.report_charts import charts
from precalloc.units import format_energy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
]  # fmt: skip
EVERY_ALLOCATION = pytest.mark.parametrize("allocation", allocations().values(), ids=allocations().keys())


def outcomes(share, seed=0):
    correct = np.random.default_rng(seed).random((8, 400)) < share
    return SimulatedAccuracy.from_outcomes(correct, np.ones(400, bool))


@pytest.fixture(scope="module")
def profile():
    return make_profile(hardware=Hardware.load("homodyne-1550nm"))


@pytest.fixture(scope="module")
def allocation(profile):
    return precalloc.allocate(profile, "15x").with_simulation(outcomes(0.9), outcomes(0.8))


@pytest.fixture(scope="module")
def report(allocation, profile):
    return precalloc.Report.of(allocation, profile, "precalloc allocate --budget '15x' --out <plan>")


class Elements(HTMLParser):
    """Tags with their attributes, and whether every tag is closed."""

    VOID = frozenset({"meta", "link", "br", "rect", "path", "circle"})

    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def rows(html, table):
    body = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)[table]
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in body.split("<tr>")[1:]]


@EVERY_ALLOCATION
def test_pages_are_well_formed_and_fetch_nothing(allocation):
    html = precalloc.Report.of(allocation).html
    elements = Elements(html)
    assert elements.open == []
    for tag, attributes in elements.found:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert attributes.get(name, "data:,").startswith("data:"), (tag, attributes)
        assert tag not in {"iframe", "object", "embed", "img"}
        assert tag != "svg" or "aria-label" in attributes or attributes.get("aria-hidden") == "true"
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html
    assert not re.search(r">\s*(nan|inf|None)\b", html)


def test_headline_and_table_are_the_allocations(report, allocation):
    html = report.html
    for accuracy in (allocation.simulated, allocation.uniform.simulated):
        assert f"<b>{figures.percent(accuracy.accuracy)}</b>" in html
        assert figures.accuracy(accuracy) in html
    assert f"<b>{figures.percent(allocation.simulated.clean_accuracy)}</b>" in html
    assert f"<b>{figures.percent(allocation.saving)}</b>" in html
    assert f"<b>{100 * allocation.gap / allocation.objective:.2g} %</b>" in html
    table = rows(html, 1)
    assert [row[1] for row in table] == [entry.site.name for entry in allocation]
    assert [row[5] for row in table] == [figures.repetitions(entry) for entry in allocation]
    energies = [float(value) for value in re.findall(r'data-value="([^"]*e-1\d)"', html)]
    assert energies == [entry.energy_joule for entry in allocation]
    assert "precalloc allocate --budget &#39;15x&#39; --out &lt;plan&gt;" in html
    assert allocation.provenance.model_hash in html
    for kind in allocation.hardware.noise:
        assert str(kind.kind) in html


def test_curve_is_the_predictors(report, allocation, profile):
    curve = charts(allocation, profile).curve
    assert curve is not None
    energies = [point.energy_joule for point in curve.points]
    assert energies == sorted(energies)
    assert energies[0] == pytest.approx(allocation.energy_joule / 8)
    assert energies[-1] == pytest.approx(allocation.energy_joule * 8)
    for point in curve.points[::4]:
        again = precalloc.allocate(profile, f"{point.energy_joule / allocation.macs * 1e18!r} aJ/MAC")
        assert point.predicted.accuracy == pytest.approx(again.predicted.accuracy, abs=1e-9)
        assert point.uniform.predicted.accuracy == pytest.approx(again.uniform.predicted.accuracy, abs=1e-9)
    table = rows(report.html, 0)
    assert [row[1] for row in table] == [figures.accuracy(point.predicted) for point in curve.points]
    chosen, allocated, uniform = curve.marks
    heights = [100 * value for value in (allocation.predicted.accuracy, allocation.simulated.accuracy)]
    heights.append(100 * allocation.uniform.simulated.accuracy)
    slope, offset = np.polyfit(heights, [mark.middle for mark in (chosen, allocated, uniform)], 1)
    assert slope < 0  # higher is further up
    middle = [slope * height + offset for height in heights]
    assert [mark.middle for mark in (chosen, allocated, uniform)] == pytest.approx(middle, abs=0.02)


def test_bars_are_proportional(allocation, profile):
    found = charts(allocation, profile)
    macs, energy = found.by_site[1], found.energy
    assert [fraction for (fraction,) in macs.fractions] == pytest.approx(
        [entry.site.macs / 8000.0 for entry in allocation], abs=1e-4
    )
    new = np.array([fractions[1] for fractions in energy.fractions])
    assert new / new.sum() == pytest.approx([e.energy_joule / allocation.energy_joule for e in allocation], abs=1e-4)
    old = np.array([fractions[0] for fractions in energy.fractions])
    assert old.sum() / new.sum() == pytest.approx(allocation.uniform.energy_joule / allocation.energy_joule, abs=1e-3)
    sensitivity = found.by_site[2]
    assert sensitivity.title.startswith("Sensitivity")
    damage = [entry.damage * entry.repetitions[0] for entry in allocation]
    assert [float(text) for text in sensitivity.texts] == pytest.approx(damage, rel=5e-3)
    assert charts(allocation, None).by_site[2].title == "Damage at this K"


def test_scales_and_ticks():
    assert [tick.text for tick in Scale(0.0, 10.0, 0.0, 100.0).ticks()] == ["0", "2", "4", "6", "8", "10"]
    log = Scale(0.3, 60.0, 0.0, 100.0, log=True)
    assert [tick.text for tick in log.ticks()] == ["0.5", "1", "2", "5", "10", "20", "50"]
    assert (log(0.3), log(60.0), log(1e9)) == (0.0, 100.0, 100.0)
    assert [tick.text for tick in Scale(1e-3, 1e4, 0.0, 1.0, log=True).ticks()][:3] == ["0.001", "0.01", "0.1"]


def test_bars_of_nothing_have_no_length():
    chart = bars("", ["a", "b", "c"], [(0.0,), (np.inf,), (4.0,)], ["", "", ""], log=True)
    assert [fraction for (fraction,) in chart.fractions] == [0.0, 0.0, 1.0]


def test_choices_and_notes_read_back(profile, tmp_path):
    choices = Choices(exclude=("block2*",), fixed={"block0*": 5.0}, digital_energy_per_mac_joule=1e-15)
    allocation = replace(precalloc.allocate(profile, "9x", choices=choices), notes=("a note",))
    report = precalloc.Report.of(allocation, profile)
    report.save(tmp_path)
    again = precalloc.Allocation.load(tmp_path / "kmap.json")
    assert (again.choices, again.digital[0].site.name, again.notes) == (choices, "block2.conv", ("a note",))
    assert precalloc.Report.of(again, profile).html == report.html
    energy = charts(allocation, profile).energy
    assert energy.texts[0].startswith(format_energy(5 * 1000 * profile.hardware.energy_per_mac_joule))
    assert "a note" in report.html


@EVERY_ALLOCATION
def test_allocations_read_back_from_their_file(allocation, tmp_path):
    (tmp_path / "kmap.json").write_text(kmap_json(allocation), encoding="utf-8")
    again = precalloc.Allocation.load(tmp_path / "kmap.json")
    assert kmap_json(again) == kmap_json(allocation)
    assert precalloc.Report.of(again).html == precalloc.Report.of(allocation).html


def test_half_a_kmap_is_a_users_error(allocation, tmp_path):
    record = json.loads(kmap_json(allocation))
    del record["uniform"]
    (tmp_path / "kmap.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(KMapError, match=r"malformed.*uniform"):
        precalloc.Allocation.load(tmp_path / "kmap.json")


def test_another_profile_is_refused(allocation, profile):
    other = replace(profile, provenance=replace(profile.provenance, data_hash="other"))
    with pytest.raises(ProfileError, match="not made from this profile"):
        precalloc.Report.of(allocation, other)


def test_command_makes_the_report_again(report, profile, tmp_path):
    report.save(tmp_path / "plan")
    profile.save(tmp_path / "profile.npz")
    arguments = ["report", "--kmap", tmp_path / "plan" / "kmap.json", "--profile", tmp_path / "profile.npz"]
    result = CliRunner().invoke(
        app, [str(argument) for argument in [*arguments, "--out", tmp_path / "again", "--json"]]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["allocated"]["simulated"]["accuracy"] == report.allocation.simulated.accuracy
    for name in ("kmap.json", "kmap.csv"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "plan" / name).read_text()
    made = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    assert made.split("<p>To repeat it:</p>")[0] == report.html.split("<p>To repeat it:</p>")[0]


def test_notebook_shows_the_figures_and_the_warnings(allocation):
    html = precalloc.Report.of(replace(allocation, simulated=None))._repr_html_()
    assert figures.accuracy(allocation.predicted) in html
    assert "Not simulated yet" in html


@pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium to render the page in")
def test_a_browser_renders_without_errors_and_sorts(report, allocation, tmp_path):
    click = "<script>document.querySelectorAll('th button')[5].click()</script></body>"
    (tmp_path / "page.html").write_text(report.html.replace("</body>", click), encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    ordered = sorted(allocation, key=lambda entry: entry.mean_repetitions)
    assert [row[1] for row in rows(done.stdout, 1)] == [entry.site.name for entry in ordered]
    assert 'aria-sort="ascending"' in done.stdout


def test_bars_leave_room_for_their_texts_and_keep_a_length():
    def longest(text):
        return bars("K", ["site"], [(1.0,)], [text]).longest

    assert longest("8") == BARS_LONGEST
    assert BARS_SHORTEST < longest("456.1 (96.4..755.0)") < BARS_LONGEST
    assert longest("x" * 60) == BARS_SHORTEST
