"""The published rules on the fourteen workloads, each beside the figure of the scheduling study.

Rule: the study's figures are of its own traces and its own re-makings of the same papers, five
seeds; ours are in the same manner, not the same. What agrees is the order of the rules and their
rough level; where one is off by more than `FAR`, it is marked, and DESIGN.md says why.
"""

from collections.abc import Callable, Mapping, Sequence

from tritonsched.sim.campaign import Plan, execute
from tritonsched.sim.experiment import Trace
from tritonsched.sim.studies import STUDIES

FAR = 0.05  # of the bound: more than any interval of the study
STUDY: Mapping[str, tuple[str, Sequence[float]]] = {
    "lookahead": (
        "udr",
        (.972, .969, .904, .892, .865, .894, .935, .997, .975, .955, .994, .970, .993, .851),
    ),
    "lite": (
        "lite",
        (.978, .914, .894, .876, .856, .840, .903, .994, .834, .950, .992, .960, .975, .847),
    ),
    "slackfit": (
        "slackfit",
        (.485, .851, .878, .838, .776, .637, .908, .964, .964, .692, .993, .947, .905, .855),
    ),
    "disbatcher": (
        "deeprt, early release and drop",
        (.935, .792, .820, .818, .782, .621, .820, .936, .784, .744, .990, .933, .960, .851),
    ),
    "nexus": (
        "nexus, early drop",
        (.975, .964, .872, .826, .775, .502, .834, .980, .651, .376, .992, .935, .972, .853),
    ),
    "clockwork": (
        "clockwork",
        (.506, .877, .848, .744, .723, .636, .792, .986, .720, .504, .994, .916, .980, .855),
    ),
    "symphony": (
        "symphony",
        (.468, .850, .706, .587, .622, .629, .684, .924, .708, .488, .794, .792, .902, .809),
    ),
    "clipper": (
        "clipper, AIMD and drop",
        (.917, .720, .695, .551, .517, .112, .606, .728, .314, .013, .934, .798, .888, .799),
    ),
}  # fmt: skip
"""By our name: the study's name, and utility as a share of its bound on W1 to W14 (section 4.1)."""
PUBLISHED = ("cikm", "clipper", "clockwork", "nexus", "sedf", "slackfit", "symphony")
"""Rules that are here to be compared with."""


def table(
    *, seeds: int, length: int, jobs: int, tick: Callable[[Trace], None]
) -> tuple[str, list[list[str]]]:
    """A line a workload, a column a rule: ours, and the study's figure in brackets."""
    plan = Plan(list(STUDIES), [*STUDY, "cikm", "sedf"], seeds=seeds, length=length)
    at = {
        (row.contender, row.workload): row.mean["value"]
        for row in execute(plan, jobs=jobs, tick=tick)
    }
    ours = {rule: [at[rule, name] for name in STUDIES] for rule in plan.contenders}
    return _title(plan), lines(ours)


def _title(plan: Plan) -> str:
    return (
        f"Published rules: utility / clairvoyant bound (the study's), {plan.seeds} seeds, about "
        f"{plan.length} requests a trace; ! more than {FAR} apart"
    )


def lines(ours: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """The table of these figures, W1 to W14 each."""
    found = [["workload", *ours]]
    for number, name in enumerate(STUDIES):
        found.append([name, *(_cell(rule, ours[rule][number], number) for rule in ours)])
    found.append(["mean", *(_mean_cell(rule, ours[rule]) for rule in ours)])
    found.append(["in the study", *(STUDY[rule][0] if rule in STUDY else "" for rule in ours)])
    return found


def _cell(rule: str, value: float, number: int) -> str:
    if rule not in STUDY:
        return f"{value:.3f}"
    theirs = STUDY[rule][1][number]
    return f"{value:.3f} ({theirs:.3f}){'!' if abs(value - theirs) > FAR else ''}"


def _mean_cell(rule: str, values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if rule not in STUDY:
        return f"{mean:.3f}"
    theirs = STUDY[rule][1]
    return f"{mean:.3f} ({sum(theirs) / len(theirs):.3f})"
