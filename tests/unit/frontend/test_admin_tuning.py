"""What feedback has set can be read, and held."""

import json
import math

from tests.helpers import MS, S, request
from tests.unit.frontend.http_client import Reply, connected
from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import HOST
from tritonsched.core.feedback import Feedback
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import Variant
from tritonsched.frontend.admin_server import AdminServer
from tritonsched.frontend.admin_tuning import Tuned


def tuned() -> Tuned:
    """Safety was raised once; a device was found to be twice as slow."""
    feedback = Feedback()
    scheduler = Scheduler(POLICIES["lite"]())
    scheduler.set_variant(Variant("m", 8, ("gpu0",)), 0)
    for number in range(1000):
        outcome = Outcome.SERVED if number % 10 else Outcome.LATE
        feedback.on_outcomes((request(number, deadline=S + MS),), outcome, "", S)
    tuning = feedback.step(scheduler.tuning, S)
    assert tuning is not None
    scheduler.retune(tuning, S)
    for _ in range(3):
        scheduler.speeds()["gpu0"].observe(math.log(2), "m")
    return Tuned(scheduler, feedback)


async def ask(made: Tuned, method: str, path: str, *, token: str | None = None) -> Reply:
    server = AdminServer(View(), host=HOST, port=0, tuned=made, token=token)
    await server.start()
    try:
        async with connected(server.port) as client:
            client.ask(method, path, "Host: x")
            return await client.reply()
    finally:
        await server.stop()


async def test_values_bounds_speeds_and_changes_are_shown() -> None:
    shown = json.loads((await ask(tuned(), "GET", "/admin/tuning")).body)
    assert shown["frozen"] is False
    assert shown["knobs"]["safety"] == {
        "value": 1.25, "field": "safety", "min": 1.0, "max": 2.0, "active": True,
    }  # fmt: skip
    assert shown["knobs"]["window"]["active"] is False
    assert shown["devices"]["gpu0"]["changes"] == 1
    assert abs(shown["devices"]["gpu0"]["speed"] - 2) < 0.01
    (change,) = shown["changes"]
    assert (change["knob"], change["old"], change["new"], change["at_ns"]) == (
        "safety", 1.0, 1.25, S,
    )  # fmt: skip
    assert change["text"].startswith("safety 1→1.25: missed 100 of 1000, slack p10")


async def test_freeze_holds_until_unfreeze() -> None:
    made = tuned()
    assert json.loads((await ask(made, "POST", "/admin/freeze")).body) == {"frozen": True}
    assert made.feedback.frozen
    assert json.loads((await ask(made, "GET", "/admin/tuning")).body)["frozen"] is True
    assert json.loads((await ask(made, "POST", "/admin/unfreeze")).body) == {"frozen": False}
    assert not made.feedback.frozen


async def test_who_has_not_the_token_neither_reads_nor_freezes() -> None:
    made = tuned()
    for method, path in (("GET", "tuning"), ("POST", "freeze"), ("POST", "unfreeze")):
        assert (await ask(made, method, f"/admin/{path}", token="secret")).status == 403
    assert not made.feedback.frozen
