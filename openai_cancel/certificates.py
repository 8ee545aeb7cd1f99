"""The certificate authorities that are trusted, and what to do about a certificate that is not."""

import os
import ssl
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import aiohttp

# See `openssl errstr` and X509_V_ERR_… in https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/.
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST, _OTHER_ADDRESS = 9, 10, 62, 64

_Version: TypeAlias = tuple[int, int, int, int] | None
_State: TypeAlias = tuple[tuple[str, str, _Version], ...]


def trusted_authorities() -> ssl.SSLContext | None:
    """Return a TLS context with the authorities in `SSL_CERT_FILE` and `SSL_CERT_DIR`, or None if neither is set.

    aiohttp reads them as it is imported, which may be before a program loads its `.env` file. The same context is
    returned until a variable or a file changes.
    """
    state = tuple((variable, path, _version(path)) for variable, path in _locations())
    return _context(state) if state else None


def advise(error: Exception, *, own_client: bool, of_proxy: bool = False) -> str:
    """Return what to do about a certificate that is not trusted.

    Args:
        error: aiohttp's error.
        own_client: whether the client is ours. A caller's client has its own authorities.
        of_proxy: whether it is the certificate of the proxy.
    """
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "Check the fingerprint that the aiohttp.ClientSession expects."
    code = getattr(getattr(error, "certificate_error", None), "verify_code", None)
    if code in (_NOT_YET_VALID, _EXPIRED):
        return "Renew it, or set the clock of this machine."
    if code in (_OTHER_HOST, _OTHER_ADDRESS):
        return f"Use a host in the {'URL of the proxy' if of_proxy else 'base URL'} that the certificate names."
    issued = "If a proxy or a private authority issued it,"
    if not own_client:
        return f"{issued} pass an ssl context with that authority's certificates to your client's connector."
    for variable, path in _locations():
        fault = "" if os.access(path, os.R_OK) else "cannot be read"
        if not fault and variable == "SSL_CERT_FILE" and not _has_certificates(path):
            fault = "has no certificates"
        if fault:
            return f"{variable} is set to {path}, which {fault}: correct it, and open another session."
    return f"{issued} set SSL_CERT_FILE to a file with that authority's certificates, and open another session."


def _locations() -> list[tuple[str, str]]:
    """Return each variable that is set with a path in it. A directory variable may have several."""
    file, *directories = os.environ.get("SSL_CERT_FILE", ""), *os.environ.get("SSL_CERT_DIR", "").split(os.pathsep)
    found = [("SSL_CERT_FILE", file), *(("SSL_CERT_DIR", path) for path in directories)]
    return [(variable, path) for variable, path in found if path]


def _version(path: str) -> _Version:
    """Return what differs if a file was replaced. A copy may keep the time of modification."""
    try:
        state = Path(path).stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _has_certificates(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError:  # the base class of SSLError
        return False
    return True


@lru_cache(maxsize=4)
def _context(_: _State) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context
