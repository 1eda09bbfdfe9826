"""`/admin/tuning`, `/admin/freeze` and `/admin/unfreeze` on the operator's port.

Rule: what feedback has set, within which bounds, and why; admin_guard says who may ask. A freeze
holds until `unfreeze` or until a policy file is taken into use, whose `feedback.freeze` then holds.
"""

from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from tritonsched.core.feedback import FIELDS, Feedback
from tritonsched.core.scheduler import Scheduler
from tritonsched.frontend.admin_guard import as_json, guarded


@dataclass(frozen=True, slots=True)
class Tuned:
    """What is shown and frozen."""

    scheduler: Scheduler
    feedback: Feedback

    def state(self) -> dict[str, Any]:
        """Values and bounds (times in ns), the speed of each device, the last changes in order."""
        settings, tuning = self.feedback.settings, self.scheduler.tuning
        knobs = {
            knob: {
                "value": getattr(tuning, field),
                "field": field,
                "min": settings.bounds[knob].low,
                "max": settings.bounds[knob].high,
                "active": knob in settings.knobs,
            }
            for knob, field in FIELDS.items()
        }
        return {
            "frozen": self.feedback.frozen,
            "learning": tuning.learning,
            "miss_ratio_max": settings.miss_ratio_max,
            "knobs": knobs,
            "devices": {
                name: {"speed": speed.factor, "changes": speed.changes}
                for name, speed in self.scheduler.speeds().items()
            },
            "changes": [asdict(change) for change in self.feedback.log()],
        }


def add_tuning_routes(app: web.Application, tuned: Tuned, token: str | None) -> None:
    """Routes for operators. token: None lets in loopback alone."""

    async def show(_: web.Request) -> web.Response:
        return as_json(tuned.state())

    async def freeze(_: web.Request) -> web.Response:
        tuned.feedback.frozen = True
        return as_json({"frozen": True})

    async def unfreeze(_: web.Request) -> web.Response:
        tuned.feedback.frozen = False
        return as_json({"frozen": False})

    app.router.add_get("/admin/tuning", guarded(show, token))
    app.router.add_post("/admin/freeze", guarded(freeze, token))
    app.router.add_post("/admin/unfreeze", guarded(unfreeze, token))
