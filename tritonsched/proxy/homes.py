"""Which of several servers a sequence or a stream is at home at. Rule: chosen when it begins, kept
until it ends; the server with the fewest of them, of those that are up and have the model.

Triton keeps a sequence's state between its calls, and a stream is one connection. When a server is
lost, so is what it knew: a call of such a sequence is refused (`triton-unavailable`) until its
client starts it anew, elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Hashable

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.tensors import InferCall

HOMES_MAX = 65_536  # sequences remembered; beyond, the oldest is taken for a new one


class Homes:
    """is_up: whether that server takes work. With a single server there is nothing to choose."""

    def __init__(self, is_up: Callable[[str], bool] = lambda _: True) -> None:
        self.is_up = is_up
        self._of: dict[Hashable, str] = {}
        self._chosen: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._of)

    def settle(
        self, call: InferCall, info: ModelInfo, key: Hashable | None, *, is_stream: bool
    ) -> None:
        """Give the call its server, unless it has one or any will do. key: of its sequence."""
        if call.server or not info.servers or (key is None and not is_stream):
            return
        if key is None:
            call.server = self._choose(info)
            return
        home = self._of.get(key, "")
        if not home or call.parameters.get("sequence_start"):
            home = self._choose(info)
            self._keep(key, home)
        if call.parameters.get("sequence_end"):
            self._of.pop(key, None)
        call.server = home

    def _choose(self, info: ModelInfo) -> str:
        """The first one if none is up: the call is refused then."""
        names = tuple(dict.fromkeys(info.servers))
        up = [name for name in names if self.is_up(name)] or names[:1]
        home = min(up, key=lambda name: self._chosen[name])
        self._chosen[home] += 1
        return home

    def _keep(self, key: Hashable, home: str) -> None:
        while len(self._of) >= HOMES_MAX:
            del self._of[next(iter(self._of))]
        self._of[key] = home
