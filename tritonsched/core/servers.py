"""Which servers are up. Rule: what was said of each, and what that makes of all; a server of which
nothing was said is up. One sidecar may serve from several Tritons; a single one has no name.
"""

from tritonsched.core.variant import ServerState


class Servers:
    """The states of all servers, by name."""

    __slots__ = ("_states",)

    def __init__(self) -> None:
        self._states: dict[str, ServerState] = {}

    def know(self, server: str) -> None:
        """There is such a server; up, unless something else was said."""
        self._states.setdefault(server, ServerState.READY)

    def put(self, server: str, state: ServerState) -> None:
        """This is so from now on."""
        self._states[server] = state

    def is_up(self, server: str) -> bool:
        """It takes work; a sidecar that drains still sends what it has."""
        return self._states.get(server) is not ServerState.AWAY

    @property
    def overall(self) -> ServerState:
        """AWAY if all are; DRAINING, which is of the sidecar, whichever name it was said of."""
        states = self._states.values()
        if ServerState.DRAINING in states:
            return ServerState.DRAINING
        if states and all(state is ServerState.AWAY for state in states):
            return ServerState.AWAY
        return ServerState.READY

    def states(self) -> dict[str, ServerState]:
        """Each server's, in the order they were first heard of."""
        return dict(self._states)
