"""Several Tritons' metrics as one exposition. Rule: a sample says which server it is of, a family
comes once, and a server that does not answer is left out.

Source: Prometheus' text format 0.0.4.
"""

import asyncio
import re
from collections.abc import Mapping

from tritonsched.frontend.triton_metrics import triton_metrics

_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(.*)\})?(\s+\S+(?:\s+-?\d+)?)\s*$")


async def fleet_metrics(addresses: Mapping[str, str]) -> bytes:
    """addresses: HOST:PORT by server. Never raises."""
    told = await asyncio.gather(*(triton_metrics(address) for address in addresses.values()))
    return joined(dict(zip(addresses, told, strict=True)))


def joined(texts: Mapping[str, bytes]) -> bytes:
    """The texts of all servers, by name."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for server, text in texts.items():
        seen: set[bytes] = set()
        family = b""
        for line in text.splitlines():
            if line.startswith((b"# HELP ", b"# TYPE ")):
                family = line.split(b" ", 3)[2]
                if family not in heads or family in seen:
                    heads.setdefault(family, []).append(line)
                    seen.add(family)
            elif made := _labelled(line, server):
                samples.setdefault(family, []).append(made)
    lines = [line for key, found in samples.items() for line in (*heads.get(key, ()), *found)]
    return b"\n".join(lines) + b"\n" if lines else b""


def _labelled(line: bytes, server: str) -> bytes:
    found = _SAMPLE.match(line)
    if found is None:
        return b""
    name, _, labels, rest = found.groups()
    own = b'server="' + server.encode() + b'"'
    return name + b"{" + (labels + b"," + own if labels else own) + b"}" + rest
