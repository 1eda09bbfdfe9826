"""Several Tritons' metrics in one scrape."""

import pytest

from tritonsched.frontend import fleet_metrics as module
from tritonsched.frontend.fleet_metrics import fleet_metrics, joined

LEFT = b"""# HELP nv_count Requests.
# TYPE nv_count counter
nv_count{model="m",version="1"} 3
nv_plain 1.5
"""
RIGHT = b"""# HELP nv_count Requests.
# TYPE nv_count counter
nv_count{model="m",version="1"} 4
# HELP nv_other Another.
# TYPE nv_other gauge
nv_other 7
not a sample
"""


def test_a_family_comes_once_and_each_sample_names_its_server() -> None:
    assert joined({"left": LEFT, "right": RIGHT}).decode().splitlines() == [
        "# HELP nv_count Requests.",
        "# TYPE nv_count counter",
        'nv_count{model="m",version="1",server="left"} 3',
        'nv_plain{server="left"} 1.5',
        'nv_count{model="m",version="1",server="right"} 4',
        "# HELP nv_other Another.",
        "# TYPE nv_other gauge",
        'nv_other{server="right"} 7',
    ]


async def test_a_server_that_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def told(address: str) -> bytes:
        return {"l:1": LEFT, "r:1": b""}[address]

    monkeypatch.setattr(module, "triton_metrics", told)
    found = await fleet_metrics({"left": "l:1", "right": "r:1"})
    assert b'server="left"' in found
    assert b"right" not in found
    assert await fleet_metrics({}) == b""
