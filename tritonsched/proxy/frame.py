"""One frame of the page and of `top`: everything that is shown, as plain JSON values. Rule: pure,
whole (a listener that missed the last frame misses nothing), bounded (every list has a named end),
units last.

"Recent" is the last RECENT_S seconds, or less where less is known. Lists that were cut say by how
much (`hidden`). The form is versioned by FRAME_VERSION; README.md, "Seeing it", describes it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tritonsched.core.ledger import Ledger
from tritonsched.core.request import NEVER_NS, Outcome, SloClass, Tenant
from tritonsched.core.reservation import Reservation
from tritonsched.core.tuning import Tuning
from tritonsched.proxy.overview import (
    RECENT_S,
    TIMES,
    Overview,
    Point,
    Run,
    Sample,
    Wait,
    Watched,
    Work,
)

FRAME_VERSION = 1
CHART_S = 2  # of batches on the devices
ROWS_MAX = 64  # models, classes, tenants, reservations, changes; the busiest or newest
RUNS_SHOWN_MAX = 1024  # over all devices

Json = dict[str, Any]
S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What the scheduler does not know. why_not_ready: empty if it can serve. notices: what an
    operator should read first. changes: of the tuning, oldest first. at_ms: wall clock.
    """

    at_ms: int
    uptime_s: float
    version: str
    rule: str
    why_not_ready: str = ""
    classes: Mapping[str, SloClass] = field(default_factory=dict)
    notices: Sequence[str] = ()
    changes: Sequence[str] = ()


def frame(
    overview: Overview, scheduler: Watched, ledger: Ledger, facts: Facts, now: int
) -> Iterator[tuple[str, Any]]:
    """The parts of the frame at `now`, after `overview.sample`: `dict` of them is the frame. One at
    a time, so that the event loop can turn in between: all together take it milliseconds. The part
    of the devices comes again with each of them.
    """
    recent = list(overview.recent)
    runs = {device: list(found) for device, found in sorted(overview.runs.items())}
    yield "sidecar", _sidecar(facts, scheduler)
    yield "totals", _totals(recent, ledger, scheduler)
    yield "classes", _cut(_classes(recent, ledger, facts.classes), "requests")
    yield "tenants", _cut(_tenants(recent, ledger, scheduler), "requests")
    yield "models", _cut(_models(recent, scheduler), "requests")
    devices: list[Json] = []
    yield "devices", {"chart_s": CHART_S, "rows": devices}
    for name, found in runs.items():
        devices.append(_device(name, found, len(runs), now))
        yield "devices", {"chart_s": CHART_S, "rows": devices}
    yield "prediction", _prediction(overview.predicted)
    yield "refusals", _cut(_refusals(recent, ledger), "count")
    yield "waits", _waits(recent)
    yield "tuning", _tuning(scheduler.tuning)
    yield "changes", list(facts.changes)[-ROWS_MAX:]
    streams = [_stream(*placed, now) for placed in scheduler.reservations()]
    yield "reservations", _cut(streams, "id")
    yield "history", _history(overview.history, now)


def _sidecar(facts: Facts, scheduler: Watched) -> Json:
    return {
        "frame": FRAME_VERSION,
        "at_ms": facts.at_ms,
        "recent_s": RECENT_S,
        "version": facts.version,
        "rule": facts.rule,
        "server": scheduler.server.value,
        "why_not_ready": facts.why_not_ready,
        "uptime_s": round(facts.uptime_s, 1),
        "notices": list(facts.notices)[:ROWS_MAX],
    }


def _span_s(recent: list[Sample]) -> float:
    return max(1.0, (recent[-1].at_ns - recent[0].at_ns) / 1e9) if recent else 1.0


def _cut(rows: list[Json], by: str) -> Json:
    kept = sorted(rows, key=lambda row: -row[by])[:ROWS_MAX] if len(rows) > ROWS_MAX else rows
    return {"rows": kept, "hidden": len(rows) - len(kept)}


def _since(recent: list[Sample], name: str) -> Counter[tuple[str, str]]:
    """How much the counts of the samples' field `name` grew."""
    if not recent:
        return Counter()
    return Counter(getattr(recent[-1], name)) - Counter(getattr(recent[0], name))


# -- totals, classes, refusals --------------------------------------------------------------------


def _totals(recent: list[Sample], ledger: Ledger, scheduler: Watched) -> Json:
    grown: Counter[str] = Counter()
    for (_, outcome), count in _since(recent, "outcomes").items():
        grown[outcome] += count
    span_s = _span_s(recent)
    return {
        "since_start": {outcome.value: ledger.total(outcome) for outcome in Outcome},
        "per_s": {outcome.value: round(grown[outcome.value] / span_s, 2) for outcome in Outcome},
        "requests_per_s": round(sum(grown.values()) / span_s, 2),
        "in_time_share": _share(grown[Outcome.SERVED], _judged(grown)),
        "waiting": sum(scheduler.queued().values()),
        "batches_out": len(scheduler.running()),
    }


def _judged(counts: Mapping[str, int]) -> int:
    """Requests that could have been served in time: all but those whose client left."""
    return sum(count for outcome, count in counts.items() if outcome != Outcome.CANCELLED)


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _busy(runs: list[Run], now: int) -> float:
    """Share of the last CHART_S that the device worked; overlaps count once."""
    from_ns = until_ns = now
    from_ns -= CHART_S * S
    busy_ns = 0
    for run in reversed(runs):
        start_ns, end_ns = max(run.start_ns, from_ns), min(run.end_ns or now, until_ns)
        if end_ns <= from_ns:
            break
        if end_ns > start_ns:
            busy_ns += end_ns - start_ns
            until_ns = start_ns
    return round(busy_ns / (CHART_S * S), 4)


def _classes(recent: list[Sample], ledger: Ledger, classes: Mapping[str, SloClass]) -> list[Json]:
    rows = []
    fared = _fared(recent, "outcomes", ledger.outcomes)
    for name in sorted({*ledger.submitted, *classes}):
        slo = classes.get(name)
        rows.append(
            {
                "name": name,
                "deadline_ms": _deadline_ms(slo),
                "weight": slo.weight if slo else 1.0,
                "requests": ledger.submitted[name],
                **fared(name),
            }
        )
    return rows


def _tenants(recent: list[Sample], ledger: Ledger, scheduler: Watched) -> list[Json]:
    """In the order of their names. boost: what fairness multiplies their weight by just now."""
    known, waiting = scheduler.tenancy()
    rows = []
    fared = _fared(recent, "tenants", ledger.tenants)
    for name in sorted({*known.rules, *(name for name, _ in ledger.tenants if name)}):
        rule = known.rules.get(name) or Tenant(name)
        how = fared(name)
        rows.append(
            {
                "name": name,
                "weight": rule.weight,
                "share": rule.share,
                "boost": round(known.boost(name), 3),
                "waiting": waiting.get(name, 0),
                "requests": sum(how["since_start"].values()),
                **how,
            }
        )
    return rows


def _fared(
    recent: list[Sample], field_name: str, totals: Mapping[tuple[str, Outcome], int]
) -> Callable[[str], Json]:
    """How the requests of a name left. field_name: of the samples; totals: since the start."""
    grown: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (name, outcome), count in _since(recent, field_name).items():
        grown[name][outcome] = count
    span_s = _span_s(recent)

    def fared(name: str) -> Json:
        return {
            "per_s": round(sum(grown[name].values()) / span_s, 2),
            "in_time_share": _share(grown[name][Outcome.SERVED], _judged(grown[name])),
            "since_start": {outcome.value: totals.get((name, outcome), 0) for outcome in Outcome},
            "recent": {outcome.value: grown[name][outcome.value] for outcome in Outcome},
        }

    return fared


def _deadline_ms(slo: SloClass | None) -> float | None:
    if slo is None or slo.relative_deadline_ns >= NEVER_NS:
        return None
    return slo.relative_deadline_ns / 1e6


def _refusals(recent: list[Sample], ledger: Ledger) -> list[Json]:
    grown = _since(recent, "reasons")
    return [
        {"class": name, "reason": reason, "count": count, "recent": grown[name, reason]}
        for (name, reason), count in sorted(ledger.reasons.items())
    ]


# -- models, devices, times -----------------------------------------------------------------------


def _models(recent: list[Sample], scheduler: Watched) -> list[Json]:
    span_s = _span_s(recent)
    rows = []
    for model, waiting in sorted(scheduler.queued().items()):
        done = _worked(recent, model)
        rows.append(
            {
                "name": model,
                "waiting": waiting,
                "requests": done.requests,
                "batches_per_s": round(done.batches / span_s, 2),
                "requests_per_batch": _share(done.requests, done.batches),
                "rows_per_batch": _share(done.rows, done.batches),
                "expected_ms": _mean_ms(done.expected_ns, done.measured),
                "measured_ms": _mean_ms(done.measured_ns, done.measured),
            }
        )
    return rows


def _worked(recent: list[Sample], model: str) -> Work:
    """What the model's batches came to recently."""
    if not recent:
        return Work()
    after = recent[-1].work.get(model, Work())
    before = recent[0].work.get(model, Work())
    if before.batches > after.batches:  # it was unloaded in between
        before = Work()
    names = [each.name for each in fields(Work)]
    return Work(*(getattr(after, name) - getattr(before, name) for name in names))


def _mean_ms(sum_ns: int, count: int) -> float | None:
    return round(sum_ns / count / 1e6, 3) if count else None


def _device(name: str, runs: list[Run], devices: int, now: int) -> Json:
    """Its batches of the last CHART_S: [model, from, to, rows, requests, state]; times in ms before
    now, negative in the past; a running batch ends at its predicted end. devices: that share the
    frame.
    """
    from_ns = now - CHART_S * S
    shown = runs[-(RUNS_SHOWN_MAX // devices) :]
    bars = [_bar(run, now) for run in shown if not run.end_ns or run.end_ns > from_ns]
    return {"name": name, "busy_share": _busy(runs, now), "runs": bars}


def _bar(run: Run, now: int) -> list[Any]:
    end_ns, state = run.end_ns, "failed" if run.failed else "done"
    if not end_ns:
        end_ns, state = max(now, run.start_ns + run.expected_ns), "running"
    from_ms, to_ms = (run.start_ns - now) // 10_000 / 100, (end_ns - now) // 10_000 / 100
    return [run.model, from_ms, to_ms, run.rows, run.requests, state]


def _prediction(predicted: Iterable[tuple[str, int, int]]) -> Json:
    """The last measured batches: [model, predicted ms, measured ms], and how far off they were as
    shares of the longer of both.
    """
    points = [[model, told / 1e6, took / 1e6] for model, told, took in predicted]
    off = sorted(abs(took - told) / max(took, told, 1) for _, told, took in predicted)
    return {"points": points, "error_p50": _quantile(off, 0.5), "error_p99": _quantile(off, 0.99)}


def _quantile(ordered: list[float], q: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 4) if ordered else None


def _waits(recent: list[Sample]) -> list[Json]:
    """The longest first."""
    spent: list[tuple[int, str, int]] = []
    for reason, wait in recent[-1].waits.items() if recent else ():
        before = recent[0].waits.get(reason, Wait())
        spent.append((wait.ns - before.ns, reason, wait.requests - before.requests))
    return [
        {"reason": reason, "requests": requests, "seconds": round(ns / 1e9, 3)}
        for ns, reason, requests in sorted(spent, reverse=True)
        if requests or ns
    ]


# -- tuning, streams, history ---------------------------------------------------------------------


def _tuning(tuning: Tuning) -> Json:
    """The tuning, times in ms."""
    fields = asdict(tuning)
    return {
        (f"{name[:-3]}_ms" if name.endswith("_ns") else name): (
            value / 1e6 if name.endswith("_ns") else value
        )
        for name, value in fields.items()
    }


def _stream(stream: Reservation, device: str, now: int) -> Json:
    return {
        "id": stream.id,
        "tenant": stream.tenant,
        "model": stream.model,
        "device": device,
        "period_ms": stream.period_ns / 1e6,
        "deadline_ms": stream.relative_deadline_ns / 1e6,
        "frames": stream.frames,
        "ends_in_s": round((stream.end_ns - now) / 1e9, 1),
    }


def _history(history: Iterable[Point], now: int) -> Json:
    """Seconds, oldest first. points: [seconds before now, requests since the start by outcome,
    requests waiting by model, times of the tuning in ns].
    """
    points = [[(at_ns - now) / 1e9, totals, waiting, ns] for at_ns, totals, waiting, ns in history]
    return {"outcomes": [*Outcome], "times": TIMES, "points": points}
