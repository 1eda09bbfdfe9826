"""Whose shared-memory region is it? Rule: pure; what is ours or Triton's own is not for clients.

Triton's shared memory has no owners: any client may open another process's region by its key, the
python backend's among them (CVE-2025-23319 began so), read it, or close everybody's. Keys are
compared as `shm_open` reads them: leading slashes do not count, the text ends at a NUL. To clients
a sidecar's pool is a region that nobody has registered.
"""

import re
from collections.abc import Iterable

from tritonsched.backend.shared_memory import is_region_name
from tritonsched.errors import GuardedName, GuardedUse

# A sidecar's pool and an embedded Triton's python backend; any other Triton's python backend.
_PREFIXES = ("tritonsched-", "triton_python_backend_shm_region_")
_IN_TEXT = re.compile(rb"(?:tritonsched-|triton_python_backend_shm_region_)[^\"]*")


class RegionGuard:
    """enabled: the policy file's `shield.guard_regions`; without it clients reach every region."""

    def __init__(self) -> None:
        self.enabled = True

    def is_hidden(self, name: str) -> bool:
        """A sidecar's pool: clients do not see it, and closing all regions leaves it."""
        return self.enabled and is_region_name(name)

    def require_free(self, *names: str) -> None:
        """Region names or keys of a client's call. Raises GuardedName."""
        for name in names:
            if self.enabled and name.lstrip("/").startswith(_PREFIXES):
                shown = name[:64]
                raise GuardedName(
                    f"shared memory region {shown!r} is not a client's; use another name"
                )

    def require_free_text(self, body: bytes) -> None:
        """The same for JSON that we could not read as Triton may. Raises GuardedName."""
        plain = re.sub(rb"\\u00([0-7][0-9a-fA-F])", lambda m: bytes([int(m[1], 16)]), body)
        if self.enabled and _IN_TEXT.search(plain):
            raise GuardedName(
                "this names a shared memory region that is not a client's; use another"
            )

    def require_unused(self, names: Iterable[str]) -> None:
        """The regions that an inference names. Raises GuardedUse, in Triton's words."""
        for name in names:
            if self.is_hidden(name):
                raise GuardedUse(f"Unable to find shared memory region: '{name}'")
