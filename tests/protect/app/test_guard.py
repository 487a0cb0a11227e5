"""Who is let in: this computer's own page, and nobody who borrows the browser."""

import pytest

from protect.app.guard import refusal

OWN = {"host": "127.0.0.1:7860"}
LARGEST = 1000


def status(headers: dict[str, str], *, navigates: bool = False) -> int | None:
    refused = refusal(headers, navigates=navigates, largest_body=LARGEST)
    return None if refused is None else refused[0]


@pytest.mark.parametrize(
    "headers",
    [
        OWN,
        {"host": "localhost:7860"},
        {"host": "[::1]:7860"},
        OWN | {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"},
        OWN | {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        OWN | {"content-length": "1000"},
    ],
)
def test_the_page_itself_is_welcome(headers):
    assert status(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example:7860"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost@evil.example"},
        {"host": "[::1"},
        OWN | {"origin": "http://evil.example"},
        OWN | {"origin": "null"},
        OWN | {"origin": "http://127.0.0.1:7861"},
        OWN | {"origin": "http://127.0.0.1:7860.evil.example"},
        OWN | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        OWN | {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_strangers_are_refused(headers):
    assert status(headers) == 403


def test_a_link_from_elsewhere_opens_the_page_and_a_form_does_not():
    followed = OWN | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}

    assert status(followed, navigates=True) is None
    assert status(followed, navigates=False) == 403


@pytest.mark.parametrize("length", ["1001", "-1", "many", "1e3"])
def test_bodies_beyond_the_bound_or_of_no_length_are_refused(length):
    assert status(OWN | {"content-length": length}) == 413
