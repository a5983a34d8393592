"""What coordinator and node agents must agree on beyond the messages: version, names of the calls, token, addresses."""

from __future__ import annotations

import ipaddress
import socket
from importlib.metadata import version
from pathlib import Path

#: Of hosts.proto. Coordinator and nodes must have the same.
PROTOCOL = 1
SERVICE = "hyperlapse.coordinator.v1.Hosts"
JOIN, ATTEND = f"/{SERVICE}/Join", f"/{SERVICE}/Attend"

#: Real seconds: an answer to Join, a heartbeat, and the silence after which the other side counts as lost.
JOIN_LIMIT_S = 10.0
HEARTBEAT_S = 1.0
SILENCE_S = 10.0

#: Epochs of shared clocks are whole multiples of this, as those of `bench`.
EPOCH_STEP_NS = 100_000 * 10**9


class HostsError(RuntimeError):
    """Several hosts cannot share a clock; the message says what to do."""


def package_version() -> str:
    return version("hyperlapse")


def read_token(path: Path) -> str:
    """The shared secret: the file's text without surrounding blanks. Raises HostsError."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HostsError(f"cannot read the token file {path}: {error}") from None
    if len(token) < 16 or any(not "!" <= c <= "~" for c in token):
        raise HostsError(
            f"the token in {path} must be 16 or more printable characters without blanks; "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def parse_address(text: str) -> bytes:
    """An IP address as 16 bytes, IPv4 mapped. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def address_text(address: bytes) -> str:
    six = ipaddress.IPv6Address(address)
    return str(six.ipv4_mapped or six)


def connection_text(key: bytes) -> str:
    ports = int.from_bytes(key[32:34], "little"), int.from_bytes(key[34:36], "little")
    return f"{address_text(key[:16])}:{ports[0]} and {address_text(key[16:32])}:{ports[1]}"


def split_endpoint(text: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT. Raises HostsError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise HostsError(f"{text!r} is no HOST:PORT, e.g. 10.0.0.1:50051")
    return host, int(port)


def resolve(host: str, port: int) -> tuple[bytes, int]:
    """The first address of a host. Raises HostsError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HostsError(f"cannot resolve {host}: {error.strerror or error}") from None
    return parse_address(str(found[0][4][0])), port


def is_loopback(host: str) -> bool:
    address, _ = resolve(host, 0)
    six = ipaddress.IPv6Address(address)
    return (six.ipv4_mapped or six).is_loopback
