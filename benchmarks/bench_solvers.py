"""Figures of the solvers, side by side in one run: `python -m benchmarks.bench_solvers [--quick]`.

Needs the extra `bench` (OR-tools, PuLP). Each table gives median, minimum and maximum over instances or repeats; ratios
are of medians in the same run. Timings depend on machine and load; what they solve does not.
"""

import argparse
import time
import tracemalloc

import numpy as np

from solvers import Problem, solve, sweep


def timed(run, repeats=1):
    """Seconds of each repeat, and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        begin = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - begin)
    return seconds, result


def row(label, seconds, note=""):
    """Print one line of a table, times in milliseconds."""
    ms = 1e3 * np.array(seconds)
    print(f"{label:<44} {np.median(ms):>10.2f} {ms.min():>10.2f} {ms.max():>10.2f}   {note}", flush=True)


def table(title):
    """Print the head of a table."""
    print(f"\n{title}\n{'':<44} {'median ms':>10} {'min ms':>10} {'max ms':>10}", flush=True)


def random_instance(rng, n, **more):
    """Lognormal damage and cost, ten times the cheapest cost as budget."""
    damage, cost = rng.lognormal(0, 1, n), rng.lognormal(0, 1, n)
    return Problem(damage, cost, 10.0 * cost.sum(), **more)


def numpy_bisection(damage, cost, budget):
    """Bisect the multiplier in plain numpy, 60 steps: what one writes without a library."""
    low, high = 1e-12, 1e12
    for _ in range(60):
        middle = np.sqrt(low * high)
        k = np.maximum(np.ceil(np.sqrt(damage / (middle * cost) + 0.25) - 0.5), 1.0)
        low, high = (low, middle) if (cost * k).sum() <= budget else (middle, high)
    k = np.maximum(np.ceil(np.sqrt(damage / (high * cost) + 0.25) - 0.5), 1.0)
    bound = (damage / k).sum() + high * ((cost * k).sum() - budget)
    return k, bound


def million_integers(repeats):
    """One budget, a million integers: certified gap, time, memory."""
    rng = np.random.default_rng(0)
    for spread in (1.0, 2.0):
        damage, cost = rng.lognormal(0, spread, 1_000_000), rng.lognormal(0, spread, 1_000_000)
        budget = 10.0 * cost.sum()
        table(f"1,000,000 integers, one budget, lognormal({spread:g}) (time includes Problem and all checks)")
        ours, found = timed(lambda: solve(Problem(damage, cost, budget)), repeats)  # noqa: B023 - used at once
        row("solvers.solve", ours, f"relative gap {found.relative_gap:.1e}, {found.status.value}")
        plain, (k, bound) = timed(lambda: numpy_bisection(damage, cost, budget), repeats)  # noqa: B023
        value = (damage / k).sum()
        row("numpy bisection, 60 steps", plain, f"relative gap {(value - bound) / value:.1e}")
        tracemalloc.start()
        solve(Problem(damage, cost, budget))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"ratio of medians {np.median(plain) / np.median(ours):.1f}; peak memory {peak / 8e6:.2f} arrays of n")


def continuous_against_clarabel(repeats):
    """Solve a hundred thousand continuous variables beside cvxpy with Clarabel."""
    import cvxpy as cp

    n = 100_000
    problem = random_instance(np.random.default_rng(1), n, levels="continuous")
    table(f"{n:,} continuous, one budget")
    ours, found = timed(lambda: solve(problem), max(repeats, 5))
    row("solvers.solve", ours, f"objective {found.objective:.12g}, {found.status.value}")
    damage, cost, budget = problem.damage, problem.costs[0], float(problem.budget)

    def clarabel():
        k = cp.Variable(n)
        model = cp.Problem(cp.Minimize(damage @ cp.inv_pos(k)), [cost @ k / budget <= 1, k >= 1])
        model.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        return model.value

    theirs, value = timed(clarabel, min(repeats, 3))
    row("cvxpy + Clarabel", theirs, f"objective {value:.12g}, differs by {abs(value / found.objective - 1):.1e}")
    print(f"ratio of medians {np.median(theirs) / np.median(ours):.0f}")


def with_highs(problem, limit):
    """HiGHS through scipy on one binary a level; its absolute gap of 1e-6 cannot be changed."""
    found = solve(problem, "milp", time_limit=limit)
    return found.objective, found.relative_gap < 1e-5


def with_cpsat(problem, levels, limit):
    """OR-tools CP-SAT on one Boolean a level; damage and cost rounded to integers (cost up), so it may lose 1e-6."""
    from ortools.sat.python import cp_model

    model, cost_unit, damage_unit = cp_model.CpModel(), 1e-9 * problem.budgets, 1e-9 * problem.damage.max()
    picks = [[model.new_bool_var("") for _ in levels] for _ in range(problem.n)]
    for choice in picks:
        model.add_exactly_one(choice)
    for spent, unit, budget in zip(problem.costs, cost_unit, problem.budgets, strict=True):
        weights = np.ceil(np.outer(spent, levels) / unit).astype(int)
        terms = [int(w) * z for ws, zs in zip(weights, picks, strict=True) for w, z in zip(ws, zs, strict=True)]
        model.add(sum(terms) <= int(budget / unit))
    worth = np.round(np.outer(problem.damage, 1.0 / levels) / damage_unit).astype(int)
    model.minimize(sum(int(w) * z for ws, zs in zip(worth, picks, strict=True) for w, z in zip(ws, zs, strict=True)))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers, solver.parameters.max_time_in_seconds = 1, limit
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return np.nan, False
    k = np.array([levels[[solver.value(z) for z in zs].index(1)] for zs in picks])
    return problem.value(k), status == cp_model.OPTIMAL


def with_cbc(problem, levels, limit):
    """PuLP with CBC on one binary a level."""
    import pulp

    model = pulp.LpProblem("allocation", pulp.LpMinimize)
    z = [[pulp.LpVariable(f"z_{u}_{i}", cat="Binary") for i in range(levels.size)] for u in range(problem.n)]
    worth = np.outer(problem.damage, 1.0 / levels)
    model += pulp.lpSum(worth[u, i] * z[u][i] for u in range(problem.n) for i in range(levels.size))
    for choice in z:
        model += pulp.lpSum(choice) == 1
    for spent, budget in zip(problem.costs, problem.budgets, strict=True):
        weight = np.outer(spent, levels) / budget
        model += pulp.lpSum(weight[u, i] * z[u][i] for u in range(problem.n) for i in range(levels.size)) <= 1.0
    model.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=limit, gapRel=0.0, gapAbs=0.0, threads=1))
    k = np.array([levels[int(np.argmax([variable.value() for variable in zs]))] for zs in z])
    feasible = np.all(problem.costs @ k <= problem.budgets * (1 + 1e-6))
    return problem.value(k), pulp.LpStatus[model.status] == "Optimal" and bool(feasible)


def against_exact_solvers(title, problems, levels, limit):
    """All exact solvers on the same instances, and whether they agree."""
    table(title)
    ours = [timed(lambda p=p: solve(p)) for p in problems]
    best = np.array([found.objective for _, found in ours])
    seconds = np.concatenate([s for s, _ in ours])
    proven = sum(found.gap == 0.0 for _, found in ours)
    row("solvers.solve", seconds, f"{proven}/{len(problems)} proven")
    others = {
        "HiGHS MILP (scipy)": lambda p: with_highs(p, limit),
        "OR-tools CP-SAT, 1 worker": lambda p: with_cpsat(p, levels, limit),
        "PuLP + CBC": lambda p: with_cbc(p, levels, limit),
    }
    for name, run in others.items():
        results = [timed(lambda p=p, run=run: run(p)) for p in problems]
        times = np.concatenate([s for s, _ in results])
        values, done = np.array([v for _, (v, _) in results]), np.array([d for _, (_, d) in results])
        off = values / best - 1.0
        note = (
            f"{done.sum()}/{len(problems)} claim the optimum; objective against ours {off.min():+.1e}..{off.max():+.1e}"
        )
        row(name, times, f"{note}, {np.median(times) / np.median(seconds):.0f}x")


def layer_sized(instances, limit):
    """Up to 200 integers, one budget: proof."""
    rng, levels = np.random.default_rng(2), np.arange(1.0, 33.0)
    for n in (20, 54, 100, 200):
        problems = []
        for _ in range(instances):
            damage, cost = rng.lognormal(0, 1, n), rng.lognormal(0, 1, n)
            problems.append(Problem(damage, cost, 5.0 * cost.sum(), k_max=32))
        against_exact_solvers(f"{n} integers in 1..32, one budget, {instances} instances", problems, levels, limit)


def blocks_and_head(instances):
    """A transformer's layers, many of equal energy beside a tiny one: proofs are out of reach, gaps are not."""
    cost = np.r_[1.0, np.repeat([1152.0, 9216.0, 36864.0], [12, 24, 12])]
    rng = np.random.default_rng(5)
    problems = [Problem(rng.lognormal(0, 1.4, 49), cost, 15.3 * cost.sum()) for _ in range(instances)]
    table(f"49 integers, three energies and a tiny one, one budget, {instances} instances")
    for label, method in (("solvers.solve", "auto"), ("without search", "lagrangian")):
        runs = [timed(lambda p=p, method=method: solve(p, method)) for p in problems]
        gaps = np.array([found.relative_gap for _, found in runs])
        note = f"{(gaps == 0.0).sum()}/{instances} proven, largest relative gap {gaps.max():.1e}"
        row(label, np.concatenate([seconds for seconds, _ in runs]), note)


def three_budgets(instances, limit):
    """54 layers by 3 noise kinds, listed K, energy, latency and area."""
    levels = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    for n, meaning in ((54, "54 layers, one noise kind each"), (162, "54 layers x 3 noise kinds, one K each")):
        problems, rng = [], np.random.default_rng(3)
        for _ in range(instances):
            damage, cost = rng.lognormal(0, 2, n), rng.lognormal(0, 1, (3, n))
            problems.append(Problem(damage, cost, np.array([8.0, 9.0, 10.0]) * cost.sum(axis=1), levels=levels))
        title = f"3 budgets, {meaning}, K in powers of two up to 64, {instances} instances"
        against_exact_solvers(title, problems, levels, limit)


def sweeps(repeats):
    """Two hundred budgets against one solve."""
    for n in (54, 162, 1000):
        for levels in ("continuous", "integer", [1, 2, 4, 8, 16, 32, 64]):
            problem = random_instance(np.random.default_rng(4), n, levels=levels)
            budgets = np.geomspace(1.5, 40.0, 200) * problem.costs[0].sum()
            table(f"sweep of 200 budgets, n = {n}, {levels if isinstance(levels, str) else 'powers of two'}")
            each, _ = timed(lambda p=problem, b=budgets: [solve(p.with_budget(x)) for x in b])
            whole, points = timed(lambda p=problem, b=budgets: sweep(p, b), repeats)
            one, _ = timed(lambda p=problem: solve(p), repeats)
            fast, _ = timed(lambda p=problem: solve(p, "lagrangian"), repeats)
            gap = max(point.relative_gap for point in points)
            row("sweep", whole, f"largest relative gap {gap:.1e}")
            row("one solve", one, f"sweep costs {np.median(whole) / np.median(one):.1f} of them")
            row("one solve without proof", fast, f"sweep costs {np.median(whole) / np.median(fast):.1f} of them")
            share = 200 * np.median(whole) / each[0]
            row("200 solves", each, f"mean {5 * each[0]:.2f} ms a budget, sweep costs {share:.1f} of that")


def main():
    """Run all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer instances and repeats")
    quick = parser.parse_args().quick
    million_integers(3 if quick else 11)
    continuous_against_clarabel(1 if quick else 3)
    layer_sized(3 if quick else 11, 20.0)
    blocks_and_head(3 if quick else 11)
    three_budgets(2 if quick else 5, 20.0)
    sweeps(3 if quick else 11)


if __name__ == "__main__":
    main()
