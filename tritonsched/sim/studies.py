"""The study's fourteen workloads W1..W14: what real inference servers see, from calm to hopeless.

Rule: a workload is data (models, shares, deadlines, arrivals) and a load; the load 1.0 is the fluid
capacity: every batch as large as the model's deadline allows, no device ever idle. What can be
reached in practice is 0.3 to 0.9 of that. Source: the scheduling study, section 3.

Load = sum over models of rate x (device time a row at best), where several devices share a model in
proportion to their speeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tritonsched.core.request import SloClass
from tritonsched.sim.arrivals import (
    Arrivals,
    diurnal,
    gamma,
    mmpp,
    periodic,
    poisson,
    wandering,
    zipf,
)
from tritonsched.sim.tables import accuracy, cost_ns, exec_ns, ratio, scaled
from tritonsched.sim.workload import Stream, Workload
from tritonsched.sim.world import ExecNs, SimModel

S = 1_000_000_000
MS = 1_000_000
ROWS_MAX = 64
GPU = MappingProxyType({"gpu0": 1.0})
Process = Callable[[float, int], Arrivals]
"""Arrivals at a rate; the number of the model tells apart what alternates."""


@dataclass(frozen=True, slots=True)
class Service:
    """A model that is asked for. weights: (class name, weight); empty: one class, the model's own.

    share: of all requests, any positive scale. on: its times on each device.
    """

    name: str
    share: float
    slo_ms: float
    on: Mapping[str, ExecNs]
    weights: Sequence[tuple[str, float]] = ()
    rows_max: int = ROWS_MAX

    @property
    def cost_ns(self) -> float:
        """Time a request of the whole pool at best: the devices' rates add up."""
        limit_ns = round(self.slo_ms * MS)
        return 1.0 / sum(1.0 / cost_ns(t, self.rows_max, limit_ns) for t in self.on.values())

    def model(self) -> SimModel:
        devices = tuple(self.on)
        return SimModel(self.name, self.rows_max, self.on[devices[0]], devices, self.on)

    def classes(self) -> Sequence[tuple[SloClass, float]]:
        weights = self.weights or ((self.name, 1.0),)
        deadline_ns = round(self.slo_ms * MS)
        return [(SloClass(name, deadline_ns, weight), 1.0) for name, weight in weights]


@dataclass(frozen=True, slots=True)
class Study:
    """One workload of the study. load: the one it is reported at."""

    name: str
    title: str
    load: float
    services: Sequence[Service]
    process: Process = field(default=lambda rate, _: poisson(rate))

    def rate(self, load: float) -> float:
        """Requests a second at that load."""
        total = sum(service.share for service in self.services)
        cost = sum(service.share / total * service.cost_ns for service in self.services)
        return load * S / cost

    def workload(self, load: float | None = None) -> Workload:
        """At `load`, or at the one of the report."""
        rate = self.rate(self.load if load is None else load)
        total = sum(service.share for service in self.services)
        streams = [
            Stream(s.name, self.process(rate * s.share / total, number), s.classes())
            for number, s in enumerate(self.services)
        ]
        return Workload([s.model() for s in self.services], streams)


@dataclass(frozen=True, slots=True)
class Cameras(Study):
    """Each service is cameras: periodic, 5 to 30 frames a second, at random phases."""

    count: int = 38

    def workload(self, load: float | None = None) -> Workload:
        """Periods are scaled so that the load is met; deadlines stay."""
        filmed = [self.services[number % len(self.services)] for number in range(self.count)]
        frames = [5.0 + 25.0 * ((7 * n) % self.count) / self.count for n in range(self.count)]
        cost = sum(f * s.cost_ns for f, s in zip(frames, filmed, strict=True)) / S
        scale = (self.load if load is None else load) / cost
        streams = [
            Stream(s.name, periodic(round(S / (scale * f))), s.classes())
            for f, s in zip(frames, filmed, strict=True)
        ]
        return Workload([s.model() for s in self.services], streams)


@dataclass(frozen=True, slots=True)
class Varied(Study):
    """Each service is a family of variants, asked for by its name, with the times of the best."""

    def workload(self, load: float | None = None) -> Workload:
        """The same requests; its models are the variants."""
        models = [
            SimModel(name, ROWS_MAX, variant_times(name), accuracy=accuracy(name))
            for variants, _ in FAMILIES.values()
            for name in variants
        ]
        families = {family: variants for family, (variants, _) in FAMILIES.items()}
        return Workload(models, Study.workload(self, load).streams, families)


def _one(name: str) -> Mapping[str, ExecNs]:
    return {"gpu0": exec_ns(name)}


def _even(named: Mapping[str, float]) -> list[Service]:
    """Equal shares of the requests; a table and a deadline in ms each."""
    return [Service(name, 1.0, slo_ms, _one(name)) for name, slo_ms in named.items()]


def _popular(named: Mapping[str, float], exponent: float) -> list[Service]:
    """Shares by Zipf, in the order given."""
    shares = zipf(len(named), exponent)
    return [
        Service(name, share, slo_ms, _one(name.partition("#")[0]))
        for (name, slo_ms), share in zip(named.items(), shares, strict=True)
    ]


def _w1() -> Study:
    services = _even({"resnet50-1080ti": 50})
    return Study("W1", "one model, Poisson", 0.85, services)


def _w2() -> Study:
    ssd = scaled(exec_ns("ssd300-amp-v100"), ratio("ssd300-t4-of-v100"))
    efficient = scaled(exec_ns("efficientnet-b0-fp32-v100"), ratio("efficientnet-t4-of-v100"))
    services = [
        Service("resnet50", 1.0, 100, _one("resnet50-amp-t4")),
        Service("ssd300", 1.0, 500, {"gpu0": ssd}),
        Service("efficientnet-b0", 1.0, 250, {"gpu0": efficient}),
        Service("yolov5s", 1.0, 200, _one("yolov5s-t4")),
    ]
    return Cameras("W2", "38 cameras, 4 models", 0.9, services)


def _w3() -> Study:
    tight = {
        "bert-base-int8-s128-t4": 6.8,
        "bert-large-int8-s128-t4": 11,
        "bert-base-fp16-s384-t4": 16,
    }
    return Study("W3", "three BERTs, 3-4x their shortest time", 0.7, _even(tight))


EIGHT = MappingProxyType(
    {
        "mobilenetv2-t4": 12.6, "resnet18-t4": 14, "resnet34-t4": 20, "resnet50-t4": 25,
        "inceptionv3-t4": 35, "vgg16-t4": 40, "resnet101-t4": 40, "resnet152-t4": 56,
    }
)  # fmt: skip


def _w4() -> Study:
    bursty = _popular(EIGHT, 1.0)
    return Study("W4", "8 models, Zipf, bursts (Gamma, cv 3)", 0.9, bursty, _gamma(3.0))


SIXTEEN = MappingProxyType(
    {
        "resnet50-t4": 60, "mobilenetv2-t4": 20, "yolov5s-t4": 150, "resnet18-t4": 30,
        "inceptionv3-t4": 80, "yolov5n-t4": 50, "resnet101-t4": 120, "vgg16-t4": 100,
        "resnet34-t4": 40, "densenet121-t4": 200, "resnet152-t4": 300, "yolov5m-t4": 400,
        "bert-base-int8-s128-t4": 25, "bert-large-int8-s128-t4": 70, "unet-t4": 500,
        "yolov5l-t4": 450,
    }
)  # fmt: skip


def _w5() -> Study:
    services = _popular(SIXTEEN, 0.9)
    burst = 4.0, 0.2, 0.5

    def process(rate: float, _: int) -> Arrivals:
        factor, share, burst_s = burst
        return mmpp(rate, factor=factor, share=share, burst_s=burst_s)

    return Study("W5", "16 models, Zipf, bursts 4x for 20 % of the time", 1.0, services, process)


def _w6() -> Study:
    tenants = (("bronze", 1.0), ("silver", 2.0), ("gold", 4.0))
    named = {
        "resnet18-t4": 30, "resnet50-t4": 44, "inceptionv3-t4": 58,
        "vgg16-t4": 72, "yolov5s-t4": 86, "yolov5m-t4": 100,
    }  # fmt: skip
    services = [Service(name, 1.0, slo, _one(name), tenants) for name, slo in named.items()]
    return Study("W6", "6 models, 3 tenants worth 1, 2, 4; twice too much", 2.0, services)


def _w7() -> Study:
    named = dict(zip(list(SIXTEEN)[:10], (60, 30, 150, 40, 80, 50, 120, 100, 70, 200), strict=True))

    def process(rate: float, number: int) -> Arrivals:
        if number % 2 == 0:
            return diurnal(rate, low=0.2, high=1.8, day_s=10.0)
        return wandering(rate, step_s=0.5, spread=0.6, memory=0.8, spike=4.0, spike_share=0.03)

    services = _popular(named, 0.5)
    return Study("W7", "10 models, a day and cloud functions", 0.85, services, process)


def _w8() -> Study:
    half = 1.0 / ratio("v100-of-t4")
    t4 = {
        "resnet50": exec_ns("resnet50-amp-t4"),
        "se-resnext101": exec_ns("se-resnext101-amp-t4"),
        "efficientnet-b0": scaled(
            exec_ns("efficientnet-b0-fp32-v100"), ratio("efficientnet-t4-of-v100")
        ),
        "ssd300": scaled(exec_ns("ssd300-amp-v100"), ratio("ssd300-t4-of-v100")),
    }
    v100 = {
        "resnet50": exec_ns("resnet50-amp-v100"),
        "se-resnext101": scaled(t4["se-resnext101"], 1.0 / half),
        "efficientnet-b0": exec_ns("efficientnet-b0-fp32-v100"),
        "ssd300": exec_ns("ssd300-amp-v100"),
    }
    slos = {"resnet50": 80, "se-resnext101": 200, "efficientnet-b0": 150, "ssd300": 250}
    services = [
        Service(name, 1.0, slo, {"v100": v100[name], "t4": t4[name]}) for name, slo in slos.items()
    ]
    return Study("W8", "4 models on a T4 and a V100, Gamma cv 2", 0.85, services, _gamma(2.0))


FAMILIES: Mapping[str, tuple[Sequence[str], float]] = MappingProxyType(
    {
        "resnet": (("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), 60),
        "yolo": (("yolov5n", "yolov5s", "yolov5m", "yolov5l"), 120),
        "bert": (("bert-base", "bert-large"), 80),
    }
)
"""Variants of W9 from the cheapest to the most accurate, and the deadline in ms."""


def variant_times(name: str) -> ExecNs:
    """The times of a variant of W9 on its T4."""
    return exec_ns(f"{name}-int8-s128-t4" if name.startswith("bert") else f"{name}-t4")


def _w9() -> Study:
    """The load is as if all were served by the most accurate variant."""
    services = [
        Service(family, 1.0, slo, {"gpu0": variant_times(variants[-1])})
        for family, (variants, slo) in FAMILIES.items()
    ]

    def process(rate: float, _: int) -> Arrivals:
        return diurnal(rate, low=0.2, high=1.8, day_s=5.0)

    return Varied("W9", "variants of 3 families, rates swing 0.2-1.8x", 1.1, services, process)


def _w10() -> Study:
    named = {"mobilenetv2-t4": 8, "resnet18-t4": 12, "resnet50-t4": 18, "yolov5s-t4": 25}
    return Study("W10", "4 models, three times too much", 3.0, _even(named))


def _w11() -> Study:
    named = {"mobilenetv2-t4": 15, "resnet18-t4": 15, "resnet50-t4": 15}
    services = [Service(name, 1.0, slo, _one(name)) for name, slo in named.items()]
    services.append(Service("unet", 0.04, 400, _one("unet-t4"), rows_max=8))
    services.append(Service("yolov5m", 0.06, 200, _one("yolov5m-t4"), rows_max=8))
    return Study("W11", "tight models beside long batches", 0.35, services)


def _w12() -> Study:
    named = {
        "bert-base-int8-s128-a30": 25, "bert-large-int8-s128-a30": 60,
        "bert-base-fp16-s384-a30": 50,
    }  # fmt: skip
    return Study("W12", "three BERTs on an A30, Gamma cv 4", 0.9, _even(named), _gamma(4.0))


def _w13() -> Study:
    speeds = {
        "v100": ratio("v100-of-t4"), "t4a": 1.0, "t4b": 1.0, "xavier": ratio("xavier-of-t4"),
    }  # fmt: skip
    named = {
        "resnet50-t4": 20, "vgg16-t4": 40, "resnet152-t4": 60,
        "yolov5n-t4": 80, "yolov5s-t4": 100, "yolov5m-t4": 120,
    }  # fmt: skip
    services = [
        Service(name, 1.0, slo, {d: scaled(exec_ns(name), f) for d, f in speeds.items()})
        for name, slo in named.items()
    ]
    return Study("W13", "6 models on a V100, two T4, a Xavier", 0.9, services, _gamma(2.0))


def _w14() -> Study:
    named = {"vgg16-t4": 3.5, "yolov5n-t4": 4.0, "yolov5s-t4": 7.4}
    return Study("W14", "deadlines of 1.5-2x the shortest time", 0.25, _even(named))


def _gamma(cv: float) -> Process:
    return lambda rate, _: gamma(rate, cv=cv)


STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        study.name: study
        for study in (
            _w1(), _w2(), _w3(), _w4(), _w5(), _w6(), _w7(),
            _w8(), _w9(), _w10(), _w11(), _w12(), _w13(), _w14(),
        )
    }
)  # fmt: skip
