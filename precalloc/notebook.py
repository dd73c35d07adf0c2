"""Values as a notebook shows them: compact HTML tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precalloc.rendering import render

if TYPE_CHECKING:
    from precalloc.allocation import Allocation
    from precalloc.network.sites import SiteReport
    from precalloc.profiles import Profile


def profile_html(profile: Profile) -> str:
    """Tabulate the sites of a profile with their damage at unit noise and its standard error, by noise kind."""
    damage = {kind: profile.sum_channels(profile.damage[kind]) for kind in profile.kinds}
    return render("notebook_profile.html.j2", profile=profile, damage=damage)


def allocation_html(allocation: Allocation) -> str:
    """Tabulate an allocation beside uniform K, its certificate and its K map."""
    return render("notebook_allocation.html.j2", a=allocation)


def sites_html(report: SiteReport) -> str:
    """Tabulate the sites of a model, and what is not covered."""
    return render("notebook_sites.html.j2", report=report)
