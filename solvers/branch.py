"""One budget, discrete k: branch and bound on the dual, which closes the gap or says how much of it is left.

Each subproblem (the problem with tighter bounds) is relaxed by its multiplier. What the bound leaves open, the core, is
enumerated: its variables are split into two halves, each half's combinations are listed without those whose penalty
exceeds the gap and those that another one dominates, and the best pair that fits the budget is found by one sorted
search (Horowitz and Sahni, J. ACM 21(2), 1974, on the core of Pisinger, European J. Oper. Res. 83(2), 1995). A core
too large to list is cut at some penalty, to which alone the bound then rises; such a subproblem is branched on the step
that straddles the budget.
"""

from __future__ import annotations

import copy
import heapq
import itertools
from dataclasses import dataclass

import numpy as np

from solvers.arithmetic import excess, fits
from solvers.core import Departures, departures
from solvers.integer import Relaxed, solve_discrete
from solvers.presolve import least_cost, presolve
from solvers.problem import IntArray, Problem
from solvers.relaxation import Relaxation
from solvers.solution import PROOF_TOLERANCE
from solvers.terms import FloatArray

Extended = np.ndarray[tuple[int, ...], np.dtype[np.longdouble]]

_ROUNDS = ((24, 1_000), (200, 10_000))  # core departures, states a half


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


def close_gap(root: Relaxed, node_limit: int) -> Closed:
    """Improve the allocation and bound of `root` until they meet or `node_limit` subproblems were enumerated.

    Best first: of the subproblems left, that of least bound is enumerated, and split if that leaves it open.
    """
    problem, k = root.relaxation.problem, root.k
    best, open_bound, ticket = problem.value(k), np.inf, itertools.count()
    heap: list[tuple[float, int, Relaxed]] = [(root.bound, next(ticket), root)]
    nodes = 0
    while heap and nodes < node_limit:
        tolerance = 0.25 * PROOF_TOLERANCE * abs(best - problem.floor)
        if best - min(heap[0][0], open_bound) <= tolerance:
            break
        bound, _, node = heapq.heappop(heap)
        nodes += 1
        improved, proven = _enumerate_core(node, best, tolerance)
        candidates = [improved] if improved is not None else []
        if proven < best - tolerance:
            children = _children(node) if node.split is not None and nodes < node_limit else None
            if children is None:
                open_bound = min(open_bound, max(bound, proven))
            for child in children or []:
                candidates.append(child.k)
                heapq.heappush(heap, (max(child.bound, bound, proven), next(ticket), child))
        for candidate in candidates:
            if (value := problem.value(candidate)) < best:
                k, best = candidate, value
    return Closed(k, min(open_bound, best, heap[0][0] if heap else np.inf), nodes)


def _children(node: Relaxed) -> list[Relaxed]:
    """Relax the two subproblems in which the straddling step is, and is not, taken."""
    assert node.split is not None
    (u, before, after), problem = node.split, node.relaxation.problem
    found = []
    for name, bound in (("upper", before), ("lower", after)):
        child, bounds = copy.copy(problem), getattr(problem, name).copy()
        bounds[u] = bound
        child.__dict__[name] = bounds
        relaxed = _relax(child, float(np.log(node.at.multiplier[0])))
        if relaxed is not None:
            found.append(relaxed)
    return found


def _relax(problem: Problem, start: float) -> Relaxed | None:
    """Relax a subproblem; None if it is infeasible."""
    decided = presolve(problem, least_cost(problem))
    relaxation = Relaxation(problem)
    if decided is None:
        return solve_discrete(relaxation, start)
    if not decided.status.is_usable:
        return None
    at = relaxation.evaluate(np.zeros(1))
    return Relaxed(relaxation, decided.k, decided.lower_bound, at, None)


def _enumerate_core(node: Relaxed, best: float, tolerance: float) -> tuple[FloatArray | None, float]:
    """Best allocation of a subproblem's core if it beats `best`, and what all its allocations are at least worth."""
    relaxation, price, bound = node.relaxation, node.at.multiplier, node.bound
    found_k, base = None, relaxation.minimiser(price) if node.split is not None else node.k
    for most, width in _ROUNDS:
        gap = best - node.bound + tolerance
        if gap <= 2.0 * tolerance or node.split is None:
            return found_k, max(bound, min(best, node.bound))
        found = departures(relaxation.problem, base, price, gap, most)
        improved, proven_below = _search(relaxation.problem, base, found, price, gap, width)
        if improved is not None and (value := relaxation.problem.value(improved)) < best:
            found_k, best = improved, value
        bound = max(bound, min(best, node.bound + proven_below - tolerance))
        if bound >= best - 2.0 * tolerance:
            break
    return found_k, bound


def _search(
    problem: Problem, base: FloatArray, found: Departures, price: FloatArray, gap: float, width: int
) -> tuple[FloatArray | None, float]:
    """Best allocation within the core, and the excess over the dual bound below which there is no better one."""
    row, budget = problem.costs[0], float(problem.budgets[0])
    extra = row[found.variable].astype(np.longdouble) * (found.level - base[found.variable])
    variables, first = np.unique(found.variable, return_index=True)
    order = variables[np.argsort(found.penalty[first], kind="stable")]
    half = [_list_states(found, extra, order[side::2], float(price[0]), gap, width) for side in (0, 1)]
    proven_below = min(found.complete_below, half[0].cut, half[1].cut)
    left, error = _leftover(row, base, budget, extra)
    for room in (left + error, left - error):
        pair = _best_pair(half[0], half[1], room)
        if pair is None:
            continue
        k, chosen = base.copy(), half[0].chosen(pair[0]) + half[1].chosen(pair[1])
        k[found.variable[chosen]] = found.level[chosen]
        if fits(row, k, budget):
            return k, proven_below
        gain = half[0].damage[pair[0]] + half[1].damage[pair[1]]
        proven_below = min(proven_below, float(gain + price[0] * left))
    return None, proven_below


def _leftover(row: FloatArray, base: FloatArray, budget: float, extra: Extended) -> tuple[np.longdouble, np.longdouble]:
    """Budget that base leaves, negative if it exceeds it, and a bound on the rounding of that and of sums of `extra`."""
    leading = excess(row, base, budget)
    left = -(np.longdouble(leading) + excess(row, base, budget, leading))
    error = 64.0 * np.finfo(np.longdouble).eps * (abs(left) + np.abs(extra).sum())
    return left, error


def _list_states(
    found: Departures, extra: Extended, variables: IntArray, price: float, gap: float, width: int
) -> _Half:
    """List the combinations of departures of `variables` with penalty at most gap, one departure a variable at most."""
    cost, damage = np.zeros(1, np.longdouble), np.zeros(1)
    trail, cut = [], np.inf
    for u in variables:
        options = np.flatnonzero(found.variable == u)
        penalty = damage + price * cost.astype(np.float64)
        allowed = penalty[:, None] + np.append(found.penalty[options], 0.0) <= min(gap, cut)
        parent, choice = np.nonzero(allowed)
        taken = np.append(options, -1)[choice]
        cost = cost[parent] + np.append(extra[options], np.longdouble(0.0))[choice]
        damage = damage[parent] + np.append(found.damage[options], 0.0)[choice]
        penalty = damage + price * cost.astype(np.float64)
        kept = _nondominated(cost, damage)
        if kept.size > width:
            cut = min(cut, float(np.partition(penalty[kept], width)[width]))
            kept = kept[penalty[kept] < cut]
        cost, damage = cost[kept], damage[kept]
        trail.append((parent[kept], taken[kept]))
    return _Half(cost, damage, trail, cut)


def _nondominated(cost: Extended, damage: FloatArray) -> IntArray:
    """Positions, by increasing cost, of the states to which no other is at least as cheap and as little damaging."""
    order = np.lexsort((damage, cost))
    sorted_damage = damage[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], sorted_damage[:-1]]))
    return order[sorted_damage < best_before]


def _best_pair(a: _Half, b: _Half, room: np.longdouble) -> tuple[int, int] | None:
    """Pair of states of least damage whose extra cost fits into `room`."""
    match = np.searchsorted(b.cost, room - a.cost, side="right") - 1
    fitting = np.flatnonzero(match >= 0)
    if fitting.size == 0:
        return None
    best = int(fitting[np.argmin(a.damage[fitting] + b.damage[match[fitting]])])
    return best, int(match[best])
