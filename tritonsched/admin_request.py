"""How a command asks a running sidecar at its admin port. Rule: one default address, one form of
the token, http alone.
"""

import urllib.request

DEFAULT_ADMIN = "127.0.0.1:8002"


def admin_request(admin: str, path: str, token: str | None) -> urllib.request.Request:
    """A GET of `path`. admin: HOST:PORT or URL. Raises ValueError if it is neither."""
    base = (admin if "://" in admin else f"http://{admin}").rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise ValueError("not an address; use HOST:PORT or http://HOST:PORT")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return urllib.request.Request(base + path, headers=headers)  # noqa: S310  # just checked
