import re
from html import unescape

import pytest
from builders import make_hardware, make_profile, make_sites

import precalloc
from precalloc import figures


def rows(html):
    found = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)] for row in found]


def test_profile_table_holds_the_damages():
    profile = make_profile()
    head, *body = rows(profile._repr_html_())
    assert head[-3:] == ["thermal", "weight", "shot"]
    for index, (site, row) in enumerate(zip(profile.sites, body, strict=True)):
        assert row[0] == site.name
        damages = [profile.sum_channels(profile.damage[kind])[index] for kind in profile.kinds]
        assert [float(cell.split(" ± ")[0]) for cell in row[-3:]] == pytest.approx(damages, rel=5e-3)


@pytest.mark.parametrize("margins", [True, False])
def test_allocation_table_holds_the_kmap(margins):
    allocation = precalloc.allocate(make_profile(margins=margins), "15x", hardware=make_hardware())
    html = allocation._repr_html_()
    table = {row[0]: row for row in rows(html)}
    assert table["allocated"][4] == figures.accuracy(allocation.predicted)
    for entry in allocation:
        assert table[entry.site.name][3] == figures.repetitions(entry)
    assert (f"Energy saved at equal accuracy: {figures.percent(allocation.saving)}" in html) == margins


def test_names_are_escaped():
    sites = (make_sites()[0].__class__(**(vars(make_sites()[0]) | {"name": "<script>"})), *make_sites()[1:])
    html = make_profile(sites=sites)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_tables_are_fragments_without_scripts():
    for html in (
        make_profile()._repr_html_(),
        precalloc.allocate(make_profile(), "15x", hardware=make_hardware())._repr_html_(),
    ):
        assert html.count("<div") == html.count("</div>") == 1
        assert "<script" not in html
        assert "http" not in html
