"""Web: fetch a URL within limits of size and time, from public addresses only.

The host is resolved once, all of its addresses must be public, and the connection goes to the address that was
checked (so a name cannot change its meaning in between); at every redirect anew. `allow_private=True` lifts that rule
(a file server in one's own network) and uses the environment's proxies, which resolve names by themselves.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from processors.limits import Limits, MediaError, too_big

if TYPE_CHECKING:
    import httpx

_REDIRECTS = 5


def url_name(url: str) -> str:
    """Host and path, for messages: no password, no signed query."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or ''}{parts.path}"[:200]
    except ValueError:
        return "<URL>"


def download(url: str, limits: Limits) -> bytes:
    """The content of an http(s) URL, in memory.

    Raises MediaError where URLs are off, and for addresses, answers, sizes and times that are not allowed.
    """
    name = url_name(url)
    if not limits.allow_http:
        raise MediaError(f"media: {name}: URLs are off; pass Limits(allow_http=True), or download it and pass the path")
    import httpx

    # A thread of its own: the caller may stand in an event loop, and only asyncio bounds the time of the whole.
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(asyncio.run, _download(url, name, limits)).result()
        except TimeoutError as error:
            raise MediaError(
                f"media: {name}: not here within {limits.timeout:g} s; raise Limits.timeout or download it first"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
            why = str(error) or type(error).__name__
            raise MediaError(f"media: {name}: cannot be fetched ({why}); check the URL") from error


async def _download(url: str, name: str, limits: Limits) -> bytes:
    import httpx

    target = httpx.URL(url)
    async with (
        asyncio.timeout(limits.timeout),
        httpx.AsyncClient(timeout=None, trust_env=limits.allow_private) as client,
    ):
        for _ in range(_REDIRECTS + 1):
            response = await _send(client, target, name, limits)
            try:
                if response.has_redirect_location:
                    target = target.join(response.headers["location"])
                    continue
                return await _body(response, name, limits)
            finally:
                await response.aclose()
    raise MediaError(f"media: {name}: more than {_REDIRECTS} redirects; pass the file's own URL")


async def _send(client: httpx.AsyncClient, url: httpx.URL, name: str, limits: Limits) -> httpx.Response:
    """The head of the answer; each address of the host is tried in turn."""
    import httpx

    if url.scheme not in ("http", "https") or not url.host:
        raise MediaError(f"media: {name}: leads to {url.scheme}://; only http and https are fetched")
    headers = {"Accept-Encoding": "identity", "User-Agent": "omni"}
    if limits.allow_private:
        return await client.send(client.build_request("GET", url, headers=headers), stream=True)
    port = url.port or (443 if url.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(url.host, port, proto=socket.IPPROTO_TCP)
    addresses = [str(entry[4][0]) for entry in found]
    if not all(_is_public(address) for address in addresses):
        raise MediaError(
            f"media: {name}: {url.host} is a private or local address; pass Limits(allow_private=True) if you trust it"
        )
    headers["Host"] = url.netloc.decode("ascii")
    for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
        request = client.build_request(
            "GET",
            url.copy_with(host=address),
            headers=headers,
            extensions={"sni_hostname": url.raw_host.decode("ascii")},  # the certificate is the name's
        )
        try:
            return await client.send(request, stream=True)
        except httpx.ConnectError:
            if not left:
                raise
    raise MediaError(f"media: {name}: {url.host} has no address; check the URL")


def _is_public(address: str) -> bool:
    """No private, local, reserved or multicast address, also not inside an IPv6 one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast


async def _body(response: httpx.Response, name: str, limits: Limits) -> bytes:
    if response.status_code != 200:
        raise MediaError(f"media: {name}: the server answered {response.status_code}; check the URL")
    length = response.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.max_bytes:
        raise too_big(name, limits)
    held = io.BytesIO()
    async for part in response.aiter_bytes():
        held.write(part)
        if held.tell() > limits.max_bytes:
            raise too_big(name, limits)
    return held.getvalue()
