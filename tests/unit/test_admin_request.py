"""What a command sends to a sidecar's admin port."""

import pytest

from tritonsched.admin_request import DEFAULT_ADMIN, admin_request


@pytest.mark.parametrize(
    ("admin", "url"),
    [
        (DEFAULT_ADMIN, "http://127.0.0.1:8002/admin/policy"),
        ("http://box:9/", "http://box:9/admin/policy"),
        ("https://box:9", "https://box:9/admin/policy"),
    ],
)
def test_an_address_or_a_url_will_do(admin: str, url: str) -> None:
    made = admin_request(admin, "/admin/policy", None)
    assert (made.full_url, made.headers) == (url, {})


def test_a_token_is_a_bearer_token() -> None:
    assert admin_request("a:1", "/", "s3").headers == {"Authorization": "Bearer s3"}


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="use HOST:PORT"):
        admin_request("file:///etc/passwd", "/", None)
