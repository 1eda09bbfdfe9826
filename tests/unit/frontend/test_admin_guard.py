"""Who is on this machine. Who may steer is asked of a whole server in test_admin_policy.py."""

import pytest

from tritonsched.frontend.admin_guard import is_loopback


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
        (None, False),
    ],
)
def test_loopback_is_known_in_all_its_forms(remote: str | None, expected: bool) -> None:
    assert is_loopback(remote) is expected
