"""The roll-out compiled by numba. Rule: the one file of the core that may import numba and numpy
(extra `fast`), and it is absent without harm: `compiled()` is None, and `lookahead` chooses as
`lite` does.

There is one source: the functions of `forming.py` and `rollout.py` are compiled as they stand, with
each other's compiled forms in their namespace. Compiling takes some seconds; the result is kept
beside the source or in NUMBA_CACHE_DIR, from where it is there in half a second. Where neither can
be written to, it is made anew at each start. What is kept is named by a digest of both files and
this one, because numba looks at one function's own file only.
"""

import inspect
import mmap
import sys
from array import array
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from types import FunctionType
from typing import Any

from tritonsched.core.policies import forming, rollout
from tritonsched.core.policies.forming import FLOATS, Scene
from tritonsched.core.policies.rollout import Chosen, Terms

Choose = Callable[[Scene, Terms], Chosen]
# Those that are called come first.
FORMING = (
    "rewind", "in_time", "value", "worth_of", "shaped_worth", "left_of", "fill_up", "smaller",
    "densest", "take_dense", "take_heads", "head",
)  # fmt: skip
# The others allocate nothing, so that references need not be counted.
LISTS = ("offer_head", "candidates", "shortlist", "choose")
ROLLOUT = (
    "find_rates", "first_due", "worth", "soonest", "most", "lower", "best_pick", "drain", "score",
    *LISTS,
)  # fmt: skip
# "numpy": a division by zero is no error; there is none.
OPTIONS = {"no_cfunc_wrapper": True, "error_model": "numpy"}
WARM = Scene(
    due=[1], lane_low=[0], lane_high=[1], lane_weight=[1.0], line_lane=[0, 1], line_shaped=[0],
    line_head=[0], way_line=[0], way_worth=[1.0], times=[1, 1], table=[0], cap=[1], top=[0],
    free_ns=[0], born_ns=[], shape=[], shape_from=[0], point_share=[], point_value=[], spots=[0],
    clock=[0], rates=[0.0, 0.0],
)  # fmt: skip
"""Something to compile for."""


@cache
def compiled() -> Choose | None:
    """The compiled roll-out, ready to be called; None without numba, or where a process must not
    make code. The first call takes seconds, or half a second if it was compiled before.
    """
    if obstacle():
        return None
    import numba  # noqa: PLC0415  # optional, and slow to import

    try:
        choose = _compiled(numba.njit, keep=True)
    except RuntimeError:  # nowhere to keep it
        choose = _compiled(numba.njit, keep=False)
    choose(WARM, Terms(0, 0, 1, 0.0, 1))
    return choose


def obstacle() -> str:
    """Why there is no compiled form; empty if there is. Where memory that is written to must not be
    run (MemoryDenyWriteExecute of systemd) the compiler would end the process.
    """
    if find_spec("numba") is None:
        return "numba is missing (extra `fast`)"
    try:
        mmap.mmap(-1, 1, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError:
        return "this process must not make code (MemoryDenyWriteExecute)"
    return ""


def _compiled(njit: Callable[..., Any], *, keep: bool) -> Choose:
    import numpy as np  # noqa: PLC0415  # comes with numba

    text = "".join(map(inspect.getsource, (forming, rollout, sys.modules[__name__])))
    digest = blake2b(text.encode(), digest_size=8).hexdigest()
    names: dict[str, Any] = {**vars(forming), **vars(rollout)}
    for name in (*FORMING, *ROLLOUT):
        plain = FunctionType(names[name].__code__, names, name)
        plain.__qualname__ = f"{name}_{digest}"
        # All one function: a call hands over each array's seven words, half of the time was that.
        inner = name != "choose"
        kept = {"cache": keep, "no_cpython_wrapper": inner, "forceinline": inner}
        names[name] = njit(**kept, _nrt=name in LISTS, **OPTIONS)(plain)
    kinds = [np.float64 if field in FLOATS else np.int64 for field in Scene._fields]

    def choose(scene: Scene, terms: Terms) -> Chosen:
        flat: list[Any] = [
            np.frombuffer(part, kind) if isinstance(part, array) else np.array(part, kind)
            for part, kind in zip(scene, kinds, strict=True)
        ]
        chosen: Chosen = names["choose"](Scene(*flat), terms)
        return chosen

    return choose
