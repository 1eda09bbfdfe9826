"""A model's statistics as its clients would count them. Rule: pure; what Triton measured stays the
only source of how long anything took.

Triton counts each request of a batch that it has formed itself with the whole of the batch's
execution (core: `InferenceStatsAggregator::UpdateSuccess`, once a request). So the members that it
did not see get what it measured for a batch of that size (`batch_stats`), and its own queue and
overhead as the mean request had them; waiting in the sidecar is added to `queue`, and with it to
`success`. What it rejects from its queue, Triton counts in `fail`; so are the sidecar's refusals.
Means move, so an estimate may fall; what is told never does, because clients subtract.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tritonsched.proxy.tallies import Tally

COMPUTE = ("compute_input", "compute_infer", "compute_output")
PARTS = ("queue", *COMPUTE)
NAMES = ("success", "fail", *PARTS)
"""Members of `inference_stats` that are counted; the others stay as they are."""

Duration = tuple[int, int]
"""How often, and how many ns in all."""
Durations = Mapping[str, Duration]
_NONE: Duration = (0, 0)


@dataclass(frozen=True, slots=True)
class Counts:
    """One version's statistics. rows: `inference_count`. stats: of NAMES. batches: of COMPUTE, by
    rows of a batch.
    """

    rows: int
    stats: Durations
    batches: Mapping[int, Durations]


def as_clients_count(counts: Counts, tally: Tally) -> Counts:
    """The same statistics, with the tally's difference. No figure is below 0."""
    stats = dict(counts.stats)
    as_success, as_failure = _shares(counts, tally)
    added = dict(tally.added)
    for rows, number in tally.failed.items():
        added[rows] = added.get(rows, 0) + round(number * as_success)
    members = sum(added.values())
    computed = 0
    for name in COMPUTE:
        more = sum(n * _mean(_measured(counts, rows, name)) for rows, n in added.items())
        stats[name] = _plus(stats[name], members, more)
        computed += more
    queued = members * _mean(counts.stats["queue"]) + tally.wait_ns
    stats["queue"] = _plus(stats["queue"], members, queued)
    spent = computed + queued + members * _overhead_ns(counts.stats)
    stats["success"] = _plus(stats["success"], members, spent)
    failures = round(sum(tally.failed.values()) * as_failure)
    failed = _plus(stats["fail"], failures, failures * _mean(stats["fail"]))
    stats["fail"] = _plus(failed, tally.refused, tally.refused_ns)
    rows = counts.rows - tally.twice - round(tally.failed_rows * as_success)
    return Counts(max(0, rows), _grown(stats, tally.told), counts.batches)


def _grown(stats: Durations, told: Durations) -> dict[str, Duration]:
    """Each part, and what `success` has beside them, no smaller than it was told before."""
    grown = {}
    for name, (count, ns) in stats.items():
        before = told.get(name, _NONE)
        grown[name] = max(count, before[0]), max(ns, before[1])
    besides_ns = max(_besides_ns(stats), _besides_ns(told) if told else 0)
    grown["success"] = grown["success"][0], sum(grown[name][1] for name in PARTS) + besides_ns
    return grown


def _besides_ns(stats: Durations) -> int:
    """Of all requests: what is neither queue nor execution."""
    return stats["success"][1] - sum(stats[name][1] for name in PARTS)


def _shares(counts: Counts, tally: Tally) -> tuple[float, float]:
    """How many of the calls that failed Triton has counted, as success and as failure, of 1.

    It depends on the model: 2.51 counts a Python model's own error for a request as a success, an
    exception as a failure, and what it refuses itself not at all.
    """
    if not tally.uncertain:
        return 0.0, 0.0
    succeeded = counts.stats["success"][0] - tally.base[0] - tally.ok
    failed = counts.stats["fail"][0] - tally.base[1]
    as_failure = min(1.0, max(0, failed) / tally.uncertain)
    return min(1.0 - as_failure, max(0, succeeded) / tally.uncertain), as_failure


def _measured(counts: Counts, rows: int, name: str) -> Duration:
    """Batches of this size; all requests where Triton has had none (it batches them itself)."""
    count, ns = counts.batches.get(rows, {}).get(name, _NONE)
    return (count, ns) if count else counts.stats[name]


def _overhead_ns(stats: Durations) -> int:
    """Of the mean request: what is neither queue nor execution."""
    count = stats["success"][0]
    return max(0, _besides_ns(stats)) // count if count else 0


def _mean(duration: Duration) -> int:
    count, ns = duration
    return ns // count if count else 0


def _plus(duration: Duration, count: int, ns: int) -> Duration:
    return max(0, duration[0] + count), max(0, duration[1] + ns)
