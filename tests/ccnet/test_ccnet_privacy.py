"""Addresses of people: what is replaced, and what is left alone."""

import ipaddress

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnet.privacy import PATTERNS, mask

KINDS = tuple(PATTERNS)


def masked(text: str, *kinds: str) -> str:
    return str(mask(pa.array([text]), kinds or KINDS)[0][0].as_py())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Write to Jane.Doe+x@mail.example.co.uk.", "Write to email@example.com."),
        ("<a_b-c@x.org>,d@y.de", "<email@example.com>,email@example.com"),
        ("mailto:jörg@bücher.example", "mailto:email@example.com"),
        ("邮箱foo@x.org请", "邮箱email@example.com请"),
        ("user@localhost, @handle, a @ b.c, price@100", "user@localhost, @handle, a @ b.c, price@100"),
        ("from 10.0.0.255:80 to 255.255.255.255", "from 192.0.2.1:80 to 192.0.2.1"),
        ("256.1.1.1, 1.2.3 and 3.14159", "256.1.1.1, 1.2.3 and 3.14159"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334", "2001:db8::1"),
        ("fe80:0:1::1 std::vector a::b 12:30:45", "2001:db8::1 std::vector a::b 12:30:45"),
        ("Call +49 30 1234 5678 or +1-212-555-0187.", "Call 555-0100 or 555-0100."),
        ("(212) 555-0187 and 212.555.0187", "555-0100 and 555-0100"),
        ("in 1999 2000 people, 1,234,567 and 2020-11-24", "in 1999 2000 people, 1,234,567 and 2020-11-24"),
        ("ISBN 978-3-16-148410-0", "ISBN 978-3-16-148410-0"),
        ("", ""),
    ],
)
def test_what_is_replaced(text: str, wanted: str) -> None:
    assert masked(text) == wanted
    assert masked(wanted) == wanted or "555-0100" in wanted


def test_only_what_is_wanted_and_counted() -> None:
    text = pa.array(["a@b.org 10.0.0.1", "c@d.org e@f.org +49 30 1234 5678", "none"])
    found, counts = mask(text, ["email"])
    assert found.to_pylist() == ["email@example.com 10.0.0.1", "email@example.com email@example.com +49 30 1234 5678", "none"]
    assert counts == {"email": 3}
    assert mask(text, KINDS)[1] == {"email": 3, "ip": 1, "phone": 1}
    assert mask(pa.array([], pa.string()), KINDS)[1] == {"email": 0, "ip": 0, "phone": 0}


@given(st.ip_addresses(v=4))
def test_every_ip_address_goes(address: ipaddress.IPv4Address) -> None:
    assert masked(f"x {address} y", "ip") == "x 192.0.2.1 y"


@given(st.ip_addresses(v=6))
def test_every_long_ipv6_address_goes(address: ipaddress.IPv6Address) -> None:
    assert masked(f"x {address.exploded} y", "ip") == "x 2001:db8::1 y"


@given(st.emails(domains=st.sampled_from(["a.org", "b-c.co.uk", "x.y.z.museum"])))
def test_e_mail_addresses_go(address: str) -> None:
    name = address.rpartition("@")[0]
    if name.replace(".", "").replace("-", "").replace("_", "").replace("+", "").isalnum() and name[0].isalnum():
        assert masked(f"({address})", "email") == "(email@example.com)"


@given(st.text())
def test_no_text_makes_it_fail(text: str) -> None:
    text = text.encode(errors="replace").decode()
    assert isinstance(masked(text), str)
