"""The composition root: config → scheduler → backend → driver → servers; start, drain, stop.

Rule: every object is built here and passed on; nothing is global, nothing registers itself on
import.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.config.schema import PolicyFile
from tritonsched.core.batch import Batch
from tritonsched.core.controllers import MEASURED
from tritonsched.core.feedback import Change
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import ServerState
from tritonsched.errors import BackendError, TritonschedError
from tritonsched.frontend.admin_events import Audience
from tritonsched.frontend.admin_server import AdminServer
from tritonsched.frontend.admin_tuning import Tuned
from tritonsched.frontend.fleet_metrics import fleet_metrics
from tritonsched.frontend.show import Seen, Show
from tritonsched.frontend.triton_metrics import triton_metrics
from tritonsched.metrics import Metrics
from tritonsched.options import Address, ServeOptions, greeting
from tritonsched.ports import Ports
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.driver import Driver
from tritonsched.proxy.feedback import Tuner
from tritonsched.proxy.held import Held
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.overview import Overview
from tritonsched.proxy.recorder import recorders
from tritonsched.proxy.recount import Recount
from tritonsched.proxy.reload import LivePolicy, Reload, Reloader, in_words
from tritonsched.proxy.reserving import Reservations
from tritonsched.proxy.rules import prepare
from tritonsched.proxy.seeding import Seeding
from tritonsched.proxy.service import Proxy
from tritonsched.proxy.shield import Shield
from tritonsched.proxy.tallies import Tallies
from tritonsched.proxy.timer import TimerFd, pause
from tritonsched.proxy.watch import FileWatch, signature
from tritonsched.upstreams import Upstreams

RTT_NS_MAX = 5_000_000  # a start-up hiccup must not become a permanent lead
TRITON_WAIT_S = 5.0  # for somebody else's Triton before we listen to say that it is not there
LINGER_S = (
    0.5  # after the last answer: requests already on the wire are told `draining`, not cut off
)
RESTART_PAUSE_S = 1.0  # between an embedded Triton's death and its restart


class Sidecar:
    """One running sidecar. say: tells the person at the terminal one line."""

    def __init__(self, options: ServeOptions, *, say: Callable[[str], None]) -> None:
        self.options = options
        self.ledger = Ledger()
        self.metrics_registry = Metrics()
        self.overview = Overview()
        self.tallies = Tallies()
        self._say = say
        self._stack = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._embedded: EmbeddedTriton | None = None
        self._stopping = False
        self.tuner = Tuner(
            options.policy.feedback_settings(), clock=time.monotonic_ns, told=self._tuned
        )
        self._told_apart: set[str] = set()

    # -- start --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up, in order; returns when Triton serves or, if it is somebody else's, at
        once.
        """
        policy = self.options.policy
        self.ports = Ports(self.options, self.metrics_registry, say=self._say)  # or why not
        prepare(policy.scheduler.policy, self._say)
        self.health = self.upstreams = Upstreams(await self._tritons(), policy, self._say)
        await self.upstreams.start(self._stack)
        self.backend = self.upstreams.backend
        self._build(policy)
        self._spawn(self.health.run())
        self._watch_policy()
        await self._listen()
        try:
            async with asyncio.timeout(None if self._embedded else TRITON_WAIT_S):
                await self.health.wait_up()
        except TimeoutError:
            where = self.upstreams.grpc.address
            self._say(f"Triton at {where} does not answer yet; requests get 503 until it does")
        self._announce()

    async def _tritons(self) -> Mapping[str, Address]:
        """Where to serve from: what is given, or an embedded Triton just started."""
        options = self.options
        given = options.addresses()
        if given:
            self._metrics_address = next(iter(given.values())).metrics
            return given
        self._say(f"starting the embedded Triton on {options.repository} …")
        config = EmbeddedConfig(
            repository=options.repository,
            environment=options.triton_env,
            run_dir=options.run_dir,
        )
        self._embedded = EmbeddedTriton(config)
        self._stack.push_async_callback(self._embedded.stop)
        await self._embedded.start()
        for note in self._embedded.notes:
            self._say(note)
        for model, reason in self._embedded.failed_models.items():
            self._say(f"model '{model}' could not be loaded: {reason}")
        self._metrics_address = options.triton_metrics or self._embedded.metrics_address
        self._spawn(self._supervise(self._embedded))
        return {"": Address(self._embedded.http_address, self._embedded.grpc_address)}

    def _build(self, policy: PolicyFile) -> None:
        self.recorders = recorders(self.options, say=self._say, stack=self._stack)
        observers = (self.ledger, self.metrics_registry, self.overview, self.tallies)
        self.scheduler = Scheduler(
            POLICIES[policy.scheduler.policy](),
            tuning=policy.tuning(),
            observers=(*observers, self.tuner.feedback, *self.recorders),
        )
        for server in self.upstreams.names:
            self.scheduler.set_server(ServerState.AWAY, time.monotonic_ns(), server)
        self.shield = Shield(self.metrics_registry.shielded)
        self.shield.adopt(**policy.shield.model_dump())
        self.regions = ClientRegions(is_local=self.backend.is_local, cuda=self.backend.cuda)
        self.recount = Recount(self.tallies, self.backend.request_counts)
        held = Held()
        self._make_driver(policy, held)
        self.upstreams.watch(
            connect=self._connect,
            tell=self._tell_server,
            changed=lambda: self._spawn(self.proxy.invalidate("")),  # it is made below
        )
        intake = self._make_intake(policy)
        self.proxy = Proxy(
            self.driver,
            self.backend,
            intake,
            held=held,
            tensor_bytes_max=policy.limits.tensor_bytes_max,
            triton_is_up=lambda: self.health.is_up,
            lost=self.health.lost,
            on_lone=self.metrics_registry.lone,
            regions=self.regions,
            recount=self.recount,
            shield=self.shield,
            reservations=self.reservations,
        )
        self.proxy.adopt_families(policy.families(), policy.accuracies())
        repository = self.options.repository if self._embedded else None
        self.seeding = Seeding(self.scheduler, repository, say=self._say)
        self.proxy.on_announce = self.seeding.announced
        self.proxy.homes.is_up = self.upstreams.is_server_up
        self._build_reloader(policy, intake)

    def _make_driver(self, policy: PolicyFile, held: Held) -> None:
        loop = asyncio.get_running_loop()
        self.driver = Driver(
            self.scheduler,
            self.backend,
            clock=time.monotonic_ns,
            held=held,
            make_timer=lambda fired: TimerFd(loop, fired),
            on_reply=self.tuner.replied,
            on_send=self.tuner.send.observe,
            on_lost=self.upstreams.lost,
            on_taken_apart=self._taken_apart,
            on_reserved=lambda said: self.reservations.decided(said),  # noqa: PLW0108  # built below
            resend_failed=policy.transport.resend_failed,
            resend_lost=policy.transport.resend_lost,
        )
        self._stack.callback(self.driver.close)
        self.tuner.drive(self.scheduler, self.driver)

    def _make_intake(self, policy: PolicyFile) -> Intake:
        self.reservations = Reservations(
            reserve=self.driver.reserve,
            release=self.driver.release,
            clock=time.monotonic_ns,
            heard=self.recorders,
            told=self._say,
        )
        self._stack.callback(self.reservations.close)
        return Intake(policy.slo_classes(), policy.class_of_model, self.reservations.of)

    def _build_reloader(self, policy: PolicyFile, intake: Intake) -> None:
        for recorder in self.recorders:
            recorder.watch(self.scheduler)
        rule = policy.scheduler.policy
        feedback = self.tuner.feedback
        live = LivePolicy(self.scheduler, self.driver, intake, self.proxy, rule, feedback=feedback)
        live.adopt_tenants(policy)
        self.reloader = Reloader(
            policy,
            read=lambda: asyncio.to_thread(self.options.read_policy),
            adopt=lambda new: live.adopt(new, time.monotonic_ns()),
            ledger=self.ledger,
            told=self._reloaded,
            pause=pause,
        )
        self._stack.callback(self.reloader.close)

    async def _listen(self) -> None:
        options = self.options
        self.http_server = self.ports.http(self.proxy, self.upstreams.http)
        self.grpc_server = self.ports.grpc(self.proxy, self.upstreams.grpc)
        self.admin_server = AdminServer(
            self,
            host=options.host,
            port=options.metrics_port,
            reloader=self.reloader,
            tuned=Tuned(self.scheduler, self.tuner.feedback),
            audience=self._show(),
            servers=self.upstreams.states,
            token=options.admin_token,
        )
        for server in (self.http_server, self.grpc_server, self.admin_server):
            self._stack.push_async_callback(server.stop)
            await server.start()

    def _show(self) -> Audience:
        seen = Seen(
            self.overview,
            self.scheduler,
            self.ledger,
            self.reloader,
            self.why_not_ready,
            changes=self.tuner.feedback.words,
            notices=self.upstreams.notices,
        )
        show = Show(seen, clock=time.monotonic_ns, wall_ns=time.time_ns)
        self._spawn(show.run(pause))
        return show.audience

    async def _connect(self, server: str) -> None:
        """A (new) Triton is up: shared memory, caches, round trip."""
        backend = await self.upstreams.connect(server)
        self.shield.connected(self.backend.version)
        if self.upstreams.is_up:  # another server: it goes on serving, and counting
            await self.proxy.refresh()
            await self.recount.look()
        else:
            self.proxy.reconnected()
            await self.recount.reconnected()
        if not self.upstreams.is_fleet:
            self.regions.forget()  # it may be another process; a fleet's are registered anew
        rtt_ns = min(RTT_NS_MAX, await backend.rtt_ns(time.monotonic_ns))
        self.upstreams.rtts_ns[server] = rtt_ns
        least_ns = min(self.upstreams.rtts_ns.values())
        self.driver.retune(replace(self.scheduler.tuning, rtt_ns=least_ns))
        far_ns = {name: ns - least_ns for name, ns in self.upstreams.rtts_ns.items()}
        self.driver.set_distances(far_ns)
        await self.seeding.adopt(self.reloader.policy.profile)
        what = f"server '{server}'" if server else "Triton"
        self._say(f"{what} is up: {backend.transport_info}, round trip {rtt_ns / 1e6:.2f} ms")

    def _tell_server(self, state: ServerState, server: str) -> None:
        self.driver.set_server(state, server)
        if server and state is ServerState.AWAY:
            self._say(f"server '{server}' does not answer; its work goes to the others")

    def _announce(self) -> None:
        ports = (self.http_server.port, self.grpc_server.port, self.admin_server.port)
        for line in greeting(self.options.host, *ports, tls=self.options.tls is not None):
            self._say(line)

    # -- while it runs ------------------------------------------------------------------------

    def _tuned(self, change: Change) -> None:
        self.metrics_registry.tuning_changed(change.knob, change.direction)
        if change.knob not in MEASURED:  # those move often; /admin/tuning has them all
            self._say(change.text)

    def _taken_apart(self, batch: Batch, error: BackendError) -> None:
        model = batch.model
        self.metrics_registry.merge_failed(model)
        self.tallies.taken_apart(batch, error)
        if model not in self._told_apart:  # once a model: the metric has the rest
            self._told_apart.add(model)
            self._say(f"model '{model}': a merged batch failed and is sent one by one: {error}")

    async def _supervise(self, embedded: EmbeddedTriton) -> None:
        """Start the embedded Triton again, on the same ports, when it dies by itself."""
        while not self._stopping:
            code = await embedded.wait()
            if self._stopping:
                return
            self._say(f"the embedded Triton ended with code {code}; starting it again")
            self.health.lost()
            try:
                await embedded.restart()
            except TritonschedError as error:
                self._say(f"{error}")
                await pause(RESTART_PAUSE_S)

    # -- the policy file ----------------------------------------------------------------------

    def reload_soon(self) -> None:
        """SIGHUP."""
        if hasattr(self, "reloader"):  # else it is being started and reads the file anyway
            self._spawn(self._reload())
            self.ports.reload_tls()

    async def _reload(self) -> None:
        await self.reloader.reload()

    def _watch_policy(self) -> None:
        path = self.options.policy_path
        if path is not None:
            watch = FileWatch(lambda: signature(path), self._policy_changed)
            self._spawn(watch.run(pause))

    async def _policy_changed(self) -> None:
        if self.reloader.policy.reload.watch:
            await self.reloader.reload()

    def _reloaded(self, made: Reload) -> None:
        self.metrics_registry.policy_reloaded(made.outcome, made.generation)
        self._say(in_words(made))
        self._spawn(self.seeding.adopt(self.reloader.policy.profile))
        for recorder in self.recorders:
            recorder.on_policy(self.reloader.policy)

    # -- AdminView ----------------------------------------------------------------------------

    def metrics(self) -> bytes:
        backend = self.backend
        self.metrics_registry.set_state(
            ready=self.proxy.is_ready,
            tensor_bytes=self.proxy.tensor_bytes,
            queued=self.scheduler.queued(),
        )
        self.metrics_registry.set_tuning(self.scheduler.tuning)
        self.metrics_registry.set_recordings(self.recorders)
        self.metrics_registry.set_connections(self.ports.connections())
        self.metrics_registry.set_speeds(self.scheduler.speeds())
        self.metrics_registry.set_servers(self.scheduler.servers())
        self.metrics_registry.set_tenants(*self.scheduler.tenancy())
        self.metrics_registry.set_backend(
            transport=backend.transport_word,
            cuda=backend.batches_cuda,
            system=backend.batches_shm,
            inline=backend.batches_inline,
            fallbacks=backend.fallbacks,
            malformed=backend.malformed,
        )
        return self.metrics_registry.render()

    async def triton_metrics(self) -> bytes:
        if hasattr(self, "upstreams") and self.upstreams.is_fleet:
            return await fleet_metrics(self.upstreams.metrics_addresses())
        if self._metrics_address is None:
            return b""
        return await triton_metrics(self._metrics_address)

    def why_not_ready(self) -> str:
        if self.proxy.is_draining:
            return "draining: the sidecar is shutting down"
        return "" if self.health.is_up else "Triton is not answering"

    # -- stop ---------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Refuse what is new, finish what was accepted, give everything back. Safe to call
        early.
        """
        self._stopping = True
        if hasattr(self, "proxy"):
            self.proxy.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.drain_s):
                    await self.proxy.drained()
                    await self.driver.drained()
            await pause(LINGER_S)
            self.health.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
