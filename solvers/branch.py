"""Discrete k: branch and bound on the dual, which closes the gap or says how much of it is left.

Each subproblem (the problem with tighter bounds) is relaxed by its multiplier. What the bound leaves open, the core, is
enumerated: its variables are split into two halves, each half's combinations are listed without those whose penalty
exceeds the gap and those that another one dominates, and the best pair that fits the budget is found by one sorted
search (Horowitz and Sahni, J. ACM 21(2), 1974, on the core of Pisinger, European J. Oper. Res. 83(2), 1995). A core
too large to list is cut at some penalty, to which alone the bound then rises; such a subproblem is branched on the
departure of least penalty.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from solvers.arithmetic import doubled_excess, fits_all
from solvers.core import Departures, departures
from solvers.cutting import solve_several
from solvers.integer import Relaxed, solve_discrete
from solvers.presolve import least_cost, presolve
from solvers.problem import IntArray, Problem
from solvers.relaxation import Relaxation
from solvers.solution import PROOF_TOLERANCE
from solvers.terms import FloatArray

Extended = np.ndarray[tuple[int, ...], np.dtype[np.longdouble]]

ROUNDS = ((24, 1_000), (100, 3_000))  # core departures, states a half

_PAIRS = 1_000_000
_NEGLIGIBLE = 1e-5


@dataclass(frozen=True, eq=False)
class Closed:
    """An improved allocation and bound, and how many subproblems and states it took."""

    k: FloatArray
    bound: float
    nodes: int


@dataclass(frozen=True, eq=False)
class _Half:
    """Nondominated combinations of some variables' departures, by increasing extra cost."""

    cost: Extended
    damage: FloatArray
    trail: list[tuple[IntArray, IntArray]]  # a layer: parent state, departure taken (-1: none)
    cut: float

    def chosen(self, state: int) -> list[int]:
        """Departures that lead to a state."""
        found = []
        for parent, departure in reversed(self.trail):
            if departure[state] >= 0:
                found.append(int(departure[state]))
            state = int(parent[state])
        return found


def close_gap(root: Relaxed, node_limit: int, proof_limit: int) -> Closed:
    """Improve the allocation and bound of `root` until they meet or `node_limit` subproblems were enumerated.

    After `proof_limit` subproblems it is enough that they meet but for a hundred-thousandth. Best first: of the
    subproblems left, that of least bound is enumerated, and split if that leaves it open.
    """
    problem, k = root.relaxation.problem, root.k
    best, open_bound, ticket = problem.value(k), np.inf, itertools.count()
    heap: list[tuple[float, int, Relaxed]] = [(root.bound, next(ticket), root)]
    nodes = 0
    while heap and nodes < node_limit:
        tolerance = 0.25 * PROOF_TOLERANCE * abs(best - problem.floor)
        enough = _NEGLIGIBLE * abs(best - problem.floor) if nodes >= proof_limit else tolerance
        if best - min(heap[0][0], open_bound) <= enough:
            break
        bound, _, node = heapq.heappop(heap)
        nodes += 1
        improved, proven, split = _enumerate_core(node, best, tolerance)
        candidates = [improved] if improved is not None else []
        if proven < best - tolerance:
            children = _children(node, split) if split is not None and nodes < node_limit else None
            if children is None:
                open_bound = min(open_bound, max(bound, proven))
            for child in children or []:
                candidates.append(child.k)
                heapq.heappush(heap, (max(child.bound, bound, proven), next(ticket), child))
        for candidate in candidates:
            if (value := problem.value(candidate)) < best:
                k, best = candidate, value
    return Closed(k, min(open_bound, best, heap[0][0] if heap else np.inf), nodes)


def _children(node: Relaxed, split: tuple[int, float, float]) -> list[Relaxed]:
    """Relax the two subproblems in which a variable stays at or below one level, or at or above the next."""
    (u, before, after), problem = split, node.relaxation.problem
    found = []
    for name, bound in (("upper", before), ("lower", after)):
        bounds = {"lower": problem.lower, "upper": problem.upper}
        bounds[name] = bounds[name].copy()
        bounds[name][u] = bound
        relaxed = _relax(problem.with_bounds(**bounds), node)
        if relaxed is not None:
            found.append(relaxed)
    return found


def _relax(problem: Problem, parent: Relaxed) -> Relaxed | None:
    """Relax a subproblem; None if it is infeasible."""
    decided = presolve(problem, least_cost(problem))
    relaxation = Relaxation(problem)
    if decided is None:
        start = float(np.log(parent.at.multiplier[0])) if problem.m == 1 else None
        return solve_discrete(relaxation, start) if problem.m == 1 else solve_several(relaxation)
    if not decided.status.is_usable:
        return None
    return Relaxed(relaxation, decided.k, decided.lower_bound, relaxation.evaluate(np.zeros(problem.m)))


def _enumerate_core(
    node: Relaxed, best: float, tolerance: float
) -> tuple[FloatArray | None, float, tuple[int, float, float] | None]:
    """Best allocation of a subproblem's core if it beats `best`, what all its allocations are worth, where to split."""
    problem, price, bound = node.relaxation.problem, node.at.multiplier, node.bound
    found_k: FloatArray | None = None
    split: tuple[int, float, float] | None = None
    if best - bound <= 2.0 * tolerance:
        return None, bound, None
    base = node.relaxation.minimiser(price)

    def keeps(k: FloatArray) -> bool:
        return fits_all(problem.costs, k, problem.budgets)

    for most, width in ROUNDS:
        gap = best - node.bound + tolerance
        found = departures(problem, base, price, gap, most)
        if 0.0 < found.complete_below < np.inf and most > ROUNDS[0][0]:
            break  # a core this large is branched on, not listed
        core = _core(problem, base, found, price, problem.budgets - node.relaxation.spendable)
        chosen, proven_below = search_core(core, base, gap, width, keeps)
        if chosen is not None:
            departed = found.depart(base, chosen)
            if (value := problem.value(base)) < best:
                best = value
                found_k = base.copy() if found_k is None else _overwrite(found_k, base)
            base[found.variable[chosen]] = departed
        bound = max(bound, min(best, node.bound + proven_below - tolerance))
        if bound >= best - 2.0 * tolerance or found.variable.size == 0:
            break
        u, level = int(found.variable[0]), float(found.level[0])
        split = (u, min(float(base[u]), level), max(float(base[u]), level))
    return found_k, bound, split


@dataclass(frozen=True, eq=False)
class Core:
    """Departures from a base, what they are worth and use, and what the base leaves of each limit (m,).

    `worth` (E,) changes the objective, `extra` (m, E) what is limited; `left` is known within `error`, and the dual
    bound counts on `spare` of it never being spent.
    """

    departures: Departures
    worth: FloatArray
    extra: Extended
    penalty: FloatArray
    price: FloatArray
    left: Extended
    error: Extended
    spare: FloatArray


def _core(problem: Problem, base: FloatArray, found: Departures, price: FloatArray, spare: FloatArray) -> Core:
    extra = problem.costs[:, found.variable].astype(np.longdouble) * (found.level - base[found.variable])
    left, error = _leftover(problem, base, extra)
    return Core(found, found.damage, extra, found.penalty, price, left, error, spare)


def _overwrite(target: FloatArray, source: FloatArray) -> FloatArray:
    target[:] = source
    return target


def search_core(
    core: Core, base: FloatArray, gap: float, width: int, accepts: Callable[[FloatArray], bool]
) -> tuple[IntArray | None, float]:
    """Find the best departures within the core, and the excess over the dual bound below which nothing is better.

    Parameters
    ----------
    base : (n,) what is departed from; restored before this returns.
    gap : largest penalty of interest.
    width : states a half.
    accepts : whether an allocation keeps the limits, exactly.
    """
    found = core.departures
    distinct, first = np.unique(found.variable, return_index=True)
    order = distinct[np.argsort(core.penalty[first], kind="stable")]
    half = [_list_states(core, order[side::2], gap, width) for side in (0, 1)]
    proven_below = min(found.complete_below, half[0].cut, half[1].cut)
    for room in (core.left + core.error, core.left - core.error):
        most = gap - float(core.price @ (core.left - core.spare))
        pair = _best_pair(half[0], half[1], room, most, core.price)
        if pair is None:
            continue
        chosen = half[0].chosen(pair[0]) + half[1].chosen(pair[1])
        variables, before = found.variable[chosen], base[found.variable[chosen]]
        base[variables] = found.level[chosen]
        accepted = accepts(base)
        base[variables] = before
        if accepted:
            return np.array(chosen, dtype=np.intp), proven_below
        gain = half[0].damage[pair[0]] + half[1].damage[pair[1]]
        proven_below = min(proven_below, float(gain + core.price @ (core.left - core.spare)))
    return None, proven_below


def _leftover(problem: Problem, base: FloatArray, extra: Extended) -> tuple[Extended, Extended]:
    """Give what base leaves of each budget (m,), negative where it exceeds it, and a bound on the rounding of it."""
    sums = np.abs(extra).sum(axis=1)
    left, error = np.empty(problem.m, np.longdouble), np.empty(problem.m, np.longdouble)
    for j, (row, limit) in enumerate(zip(problem.costs, problem.budgets, strict=True)):
        high, low, doubt = doubled_excess(row, base, float(limit))
        left[j] = -(np.longdouble(high) + low)
        error[j] = doubt + 64.0 * np.finfo(np.longdouble).eps * (abs(left[j]) + sums[j])
    return left, error


def _list_states(core: Core, variables: IntArray, gap: float, width: int) -> _Half:
    """List the combinations of departures of `variables` with penalty at most gap, one departure a variable at most."""
    m = core.price.size
    cost, damage = np.zeros((m, 1), np.longdouble), np.zeros(1)
    penalty, trail, cut = np.zeros(1), [], np.inf
    for u in variables:
        options = np.flatnonzero(core.departures.variable == u)
        allowed = penalty[:, None] + np.append(core.penalty[options], 0.0) <= min(gap, cut)
        parent, choice = np.nonzero(allowed)
        taken = np.append(options, -1)[choice]
        cost = cost[:, parent] + np.append(core.extra[:, options], np.zeros((m, 1)), axis=1)[:, choice]
        damage = damage[parent] + np.append(core.worth[options], 0.0)[choice]
        penalty = penalty[parent] + np.append(core.penalty[options], 0.0)[choice]
        kept = _nondominated(cost[0], damage) if m == 1 else np.arange(damage.size)
        if kept.size > width:
            cut = min(cut, float(np.partition(penalty[kept], width)[width]))
            kept = kept[penalty[kept] < cut]
        cost, damage, penalty = cost[:, kept], damage[kept], penalty[kept]
        trail.append((parent[kept], taken[kept]))
    return _Half(cost, damage, trail, cut)


def _nondominated(cost: Extended, damage: FloatArray) -> IntArray:
    """Positions, by increasing cost, of the states to which no other is at least as cheap and as little damaging."""
    order = np.lexsort((damage, cost))
    sorted_damage = damage[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], sorted_damage[:-1]]))
    return order[sorted_damage < best_before]


def _best_pair(a: _Half, b: _Half, room: Extended, most: float, price: FloatArray) -> tuple[int, int] | None:
    """Pair of states of least damage, at most `most`, whose extra costs fit into `room`."""
    if room.size > 1:
        return _best_pair_of_several(a, b, room, most, price)
    match = np.searchsorted(b.cost[0], room[0] - a.cost[0], side="right") - 1
    fitting = np.flatnonzero(match >= 0)
    if fitting.size == 0:
        return None
    best = int(fitting[np.argmin(a.damage[fitting] + b.damage[match[fitting]])])
    return best, int(match[best])


def _best_pair_of_several(a: _Half, b: _Half, room: Extended, most: float, price: FloatArray) -> tuple[int, int] | None:
    """Several budgets: only pairs that leave less of one budget than the gap pays for can be better.

    That budget is the one that separates the states best; b's states are sorted by it.
    """
    if a.damage.size == 0 or b.damage.size == 0:
        return None
    slack = float(most + price @ room)  # the damage that a pair may add, priced: its unspent budgets and penalties
    with np.errstate(divide="ignore"):
        windows = np.where(price > 0.0, slack / price, np.inf)
    spread = np.array([np.ptp(row.astype(np.float64)) for row in b.cost])
    with np.errstate(over="ignore"):
        j = int(np.argmin(windows / np.maximum(spread, 1e-300)))
    order = np.argsort(b.cost[j], kind="stable")
    sorted_cost = b.cost[:, order]
    stop = np.searchsorted(sorted_cost[j], room[j] - a.cost[j], side="right")
    start = np.searchsorted(sorted_cost[j], room[j] - a.cost[j] - windows[j], side="left")
    best: tuple[int, int] | None = None
    for part in _chunks(np.maximum(stop - start, 0)):
        lengths = np.maximum(stop[part] - start[part], 0)
        first = np.repeat(np.arange(part.start, part.stop), lengths)
        second = (
            np.arange(first.size) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(start[part], lengths)
        )
        gain = a.damage[first] + b.damage[order[second]]
        near = np.flatnonzero(gain < most)
        first, second = first[near], second[near]
        fitting = np.flatnonzero(np.all(a.cost[:, first] + sorted_cost[:, second] <= room[:, None], axis=0))
        if fitting.size:
            i = fitting[np.argmin(gain[near][fitting])]
            best, most = (int(first[i]), int(order[second[i]])), float(gain[near][i])
    return best


def _chunks(lengths: IntArray) -> Iterator[slice]:
    """Slices whose lengths add up to about a million each."""
    ends = np.unique(np.searchsorted(np.cumsum(lengths), np.arange(0, lengths.sum() + _PAIRS, _PAIRS), side="right"))
    ends = np.unique(np.concatenate([[0], ends, [lengths.size]]))
    return (slice(int(i), int(j)) for i, j in itertools.pairwise(ends))
