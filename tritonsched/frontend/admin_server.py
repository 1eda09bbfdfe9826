"""The operator's port (8002): metrics, with Triton's appended, and health.

`/metrics` is Prometheus text: the sidecar's own `tritonsched_*`, then Triton's `nv_*` as Triton
gives them. `/healthz/live`: the process answers. `/healthz/ready` (and `/healthz`): it can serve;
503 with the reason in words otherwise. `/admin/…`: see admin_policy, admin_tuning, admin_events.
`/`: the page (admin_page).
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from tritonsched.errors import StartupError
from tritonsched.frontend.admin_events import Audience, add_event_routes
from tritonsched.frontend.admin_page import add_page_routes
from tritonsched.frontend.admin_policy import add_policy_routes
from tritonsched.frontend.admin_servers import States, add_server_routes
from tritonsched.frontend.admin_tuning import Tuned, add_tuning_routes
from tritonsched.metrics import CONTENT_TYPE
from tritonsched.proxy.reload import Reloader


class AdminView(Protocol):
    """What this port shows."""

    def metrics(self) -> bytes:
        """The sidecar's own exposition text."""

    async def triton_metrics(self) -> bytes:
        """Triton's exposition text; empty if it cannot be had. Never raises."""

    def why_not_ready(self) -> str:
        """Empty if it can serve, else the reason in words."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """aiohttp on its own port. Raises StartupError if the port is taken."""

    def __init__(
        self,
        view: AdminView,
        *,
        host: str,
        port: int,
        reloader: Reloader | None = None,
        tuned: Tuned | None = None,
        audience: Audience | None = None,
        servers: States | None = None,
        token: str | None = None,
    ) -> None:
        self._view = view
        self._host = host
        self._port = port
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._ready)
        app.router.add_get("/healthz/live", self._live)
        app.router.add_get("/healthz/ready", self._ready)
        if reloader is not None:
            add_policy_routes(app, reloader, token)
        if tuned is not None:
            add_tuning_routes(app, tuned, token)
        if servers is not None:
            add_server_routes(app, servers, token)
        if audience is not None:
            add_event_routes(app, audience, token)
            add_page_routes(app)
        self._runner = web.AppRunner(app, access_log=None)

    @property
    def port(self) -> int:
        """The port really bound."""
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            raise StartupError(
                f"metrics port {self._host}:{self._port}: {error.strerror}; choose another with "
                "--metrics-port"
            ) from error

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = self._view.metrics() + await self._view.triton_metrics()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _live(self, _request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        reason = self._view.why_not_ready()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)
