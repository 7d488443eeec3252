"""Files at addresses, as s3://bucket/folder, listed and read through fsspec, which is asked for nothing else.

Every request is one call: a listing, or a part of a file. What fails for a while is tried again here, and here alone,
so that how often is one number; what a library raises becomes one of three errors with a sentence. File systems are
made anew in each process, since those of fsspec survive no fork.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from calotype.damage import quoted
from calotype.errors import CalotypeError, PictureError, RemoteError, UsageError
from calotype.ranges import Ranges
from calotype.stopping import interrupted
from calotype.temporaries import temporary_file

T = TypeVar("T")

AT_ONCE = 16
"""Requests at the same time: each waits for a server far longer than it computes."""

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds before what failed is tried once more, and again."""

BLOCK = 2**22
"""Bytes that a tar's headers are looked for in at a time."""

_HEAD = 2**16  # bytes that a picture's header is looked for in
_MEMORY = 2**24  # bytes of a file that are held in memory; larger ones lie in a temporary
_TICK = 2.0  # seconds, of the coarsest clock that servers have

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)(::.*)?://", re.IGNORECASE)  # a Windows drive has one letter
_FLAT = re.compile(r"([a-z][a-z0-9+.-]+):[/\\](?![/\\])", re.IGNORECASE)  # an address that became a path
_PASSWORD = re.compile(r"[^:/]+://[^/@]*:[^/@]*@")

_WEB = ("http", "https")
_LOCAL = ("file", "local")
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "'calotype[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az"), "adlfs"),
    **dict.fromkeys(_WEB, "aiohttp"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "smb": "smbprotocol",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# of fsspec's, those that stand for other files, or for none at a place
_NO_PLACES = _words(
    "async_wrapper asynclocal asyncwrapper blockcache cached dask data dir filecache generic libarchive reference "
    "simplecache tar zip"
)
_S3 = ("s3", "s3a")

# what libraries raise, by the names of classes, since none of them need be there
_LACKING = _words(
    "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError UnauthorizedSSOTokenError "
    "SSOTokenLoadError ProfileNotFound DefaultCredentialsError RefreshError ClientAuthenticationError"
)
_FOR_A_WHILE = _words(
    "ConnectionError TimeoutError HTTPClientError IncompleteRead ResponseParserError ClientConnectionError "
    "ClientPayloadError ServiceRequestError ServiceResponseError IncompleteReadError"
)
_EXPIRED = ("ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired")


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether a text is an address, and no path; what is a `Path` is one."""
    return isinstance(text, str) and bool(_ADDRESS.match(text))


def local_path(address: str) -> Path | None:
    """The path that file:// stands for; None of other addresses."""
    if _protocol(address) not in _LOCAL:
        return None
    return Path(importlib.import_module("fsspec.implementations.local").LocalFileSystem._strip_protocol(address))


def flat_address(path: str | os.PathLike[str]) -> str:
    """The address that a path was before it was taken for one, where no such folder is; else empty."""
    text = os.fspath(path)
    found = _FLAT.match(text)
    if found is None or Path(found[0][:-1]).exists():
        return ""
    protocols = importlib.import_module("fsspec").available_protocols()
    return f"{found[1]}://{text[found.end() :]}" if found[1].lower() in protocols else ""


def require_local(path: str | os.PathLike[str], option: str) -> None:
    """Checks that what is written to is no address.

    Raises:
        UsageError: if it is one.
    """
    text = os.fspath(path)
    if address := text if is_address(text) else flat_address(text):
        raise UsageError(
            f"{option} {address}: files are written to folders alone; give one, such as that where it is mounted."
        )


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at an address, as it was when it was listed.

    Attributes:
        server: what is asked for it; the address that was given.
        path: as that server has it.
        name: the last part of its path.
        size: in bytes.
        stamp: stays the same as long as its bytes do, as far as the server tells; empty where nothing tells.
    """

    server: str
    path: str
    name: str
    size: int
    stamp: str

    def __str__(self) -> str:
        return self.path if "://" in self.path else f"{_protocol(self.server)}://{self.path.lstrip('/')}"

    def fetch(self, start: int, end: int) -> bytes:
        """These bytes of it, in one request.

        Raises:
            PictureError: they are not there any more, or may not be read.
            RemoteError: the server does not answer, or not right, however often it is asked.
        """
        if end <= start:
            return b""
        if start < 0 or end > self.size:  # what a damaged archive says
            raise PictureError(f"bytes {start:,} to {end:,} are wanted of {self.size:,}; make or upload it again.")
        # of a whole file one byte more, which is there if it has grown
        more = int((start, end) == (0, self.size))

        def get() -> bytes:
            data: bytes = _call(self.server, "cat_file", self.path, start=start, end=end + more)
            if len(data) < end - start:
                raise _Short(f"of {end - start:,} bytes {len(data):,} came")
            return data

        try:
            data = _tried(get)
        except _Failed as failed:
            if failed.kind == "gone":
                raise PictureError("it was there when it was listed, and is no longer.") from failed.error
            if failed.kind == "denied":
                raise PictureError(f"the server denies it ({failed.why}).") from failed.error
            if failed.kind == "short" or isinstance(failed.error, _Short):
                raise PictureError(
                    f"it is shorter than when it was listed ({failed.why}); run the same command again."
                ) from failed.error
            raise RemoteError(f"{self}: {failed.sentence}") from failed.error
        if len(data) > end - start:
            if more:
                raise PictureError("it is longer than when it was listed; run the same command again.")
            raise RemoteError(f"{self}: the server gives no parts of files; download it, and give the file.")
        return data

    def part(self, start: int, end: int) -> IO[bytes]:
        """Some bytes of it, in memory where they are not many, as a file."""
        if end - start <= _MEMORY:
            return io.BytesIO(self.fetch(start, end))
        file = temporary_file(None)
        try:
            for at in range(start, end, _MEMORY):
                file.write(self.fetch(at, min(at + _MEMORY, end)))
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def whole(self) -> IO[bytes]:
        """All of it."""
        return self.part(0, self.size)

    def ranges(self, first: int | None = None) -> Ranges:
        """It as a file of which parts are fetched as they are wanted."""
        return Ranges(self.fetch, self.size, BLOCK, first)

    def head(self) -> IO[bytes]:
        """It as a file of which little is fetched unless more than a header is read."""
        return io.BufferedReader(self.ranges(_HEAD))


def look_up(address: str) -> RemoteFile | None:
    """The file at an address, or None where is none; there may be a folder.

    Raises:
        UsageError, RemoteError: as `listed`.
    """
    try:
        info = _tried(lambda: _call(address, "info", _path(address)))
    except _Failed as failed:
        if failed.kind == "gone":
            return None
        raise _refusal(address, failed) from failed.error
    if info["type"] == "directory":
        return None
    if info.get("size") is None:
        raise RemoteError(f"{address}: the server does not say how long this file is; download it, and give the file.")
    return _file(address, info)


def look_up_all(addresses: Sequence[str]) -> list[RemoteFile | None]:
    """The same of several."""
    return list(at_once(look_up, addresses))


def listed(address: str) -> Iterator[tuple[str, RemoteFile]]:
    """All files below an address that are not hidden, each with its path below it; in no order.

    Raises:
        UsageError: there is none, or what is given can be no folder, or may not be listed; or a package is missing.
        RemoteError: the server does not answer.
    """
    if (protocol := _protocol(address)) in _WEB:
        raise UsageError(f"{address}: over {protocol} no folder can be listed; give a .zip, or .tar, by its address.")
    path = _path(address).rstrip("/")
    try:
        # a listing is many requests, of which S3's client repeats each, or all would begin anew
        pauses = () if protocol in _S3 else PAUSES
        found = _tried(lambda: _call(address, "find", path, detail=True), pauses)
    except _Failed as failed:
        raise _refusal(address, failed) from failed.error
    for name in list(found):
        info = found.pop(name)  # whose memory is several times the path's
        inner = name[len(path) :].lstrip("/")
        if info["type"] == "file" and inner and not any(part.startswith(".") for part in inner.split("/")):
            yield inner, _file(address, info)


def at_once(work: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
    """What `work` gives for each, in order; several at the same time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def _file(address: str, info: dict[str, Any]) -> RemoteFile:
    path = str(info["name"])
    name = path.partition("?")[0] if _protocol(address) in _WEB else path
    return RemoteFile(address, path, name.rstrip("/").rpartition("/")[2], int(info["size"]), _stamp(info))


def _stamp(info: dict[str, Any]) -> str:
    """Of what a server says of a file: a tag of its bytes, or when it was written."""
    tags = (info.get(key) for key in ("ETag", "etag", "generation", "md5Hash", "content_settings_md5", "Content-MD5"))
    tag = next((str(tag) for tag in tags if tag), "")
    times = (info.get(key) for key in ("LastModified", "last_modified", "mtime", "modified", "updated", "created"))
    at = next((at for at in times if at), info.get("Last-Modified"))
    if tag and not tag.startswith("W/"):
        return f"{info['size']} {tag}"
    seconds = at.timestamp() if isinstance(at, datetime) else at
    if at is None or (isinstance(seconds, int | float) and time.time() - seconds <= _TICK):
        return ""  # what is written to within the clock's ticks after it was read may keep its time
    return f"{info['size']} {tag} {seconds}"


# File systems of fsspec


def _protocol(address: str) -> str:
    found = _ADDRESS.match(address)
    assert found is not None
    return found[1].lower()


_System = tuple[Any, str, AbstractContextManager[Any]]
_systems: dict[tuple[str, bool], _System] = {}
_making = threading.Lock()


def _after_fork() -> None:
    global _making
    _systems.clear()
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _system(address: str, patient: bool = False) -> _System:
    """What reads there, the address's path as it has it, and what to hold while it is called.

    Args:
        patient: its own client tries again what fails, where it can.

    Raises:
        UsageError: nothing reads there.
    """
    if (known := _systems.get((address, patient))) is not None:
        return known
    with _making:
        if (address, patient) not in _systems:
            _systems[address, patient] = _made(address, patient)
        return _systems[address, patient]


def _made(address: str, patient: bool) -> _System:
    fsspec = importlib.import_module("fsspec")
    found, protocol = _ADDRESS.match(address), _protocol(address)
    assert found is not None
    if found[2] or protocol in _NO_PLACES:
        raise UsageError(f"{address}: this address stands for another one; give where the files lie themselves.")
    if protocol not in fsspec.available_protocols():
        raise UsageError(
            f"{address}: nothing here reads {protocol}://; give s3://, gs://, az://, https:// or another that fsspec "
            "has, or a folder."
        )
    if _PASSWORD.match(address):
        raise UsageError(
            f"{protocol}://: no password may stand in an address, which is kept in reports; give it as the server's "
            "own programs take it."
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        if package := _PACKAGES.get(protocol):
            raise UsageError(
                f"{address}: to read {protocol}://, a package is needed; install it with: pip install {package}."
            ) from None
        raise UsageError(f"{address}: to read {protocol}://, a package is needed: {quoted(error)}.") from None
    options: dict[str, Any] = {}
    if protocol in _S3:
        retries = {"mode": "standard", "total_max_attempts": len(PAUSES) + 1 if patient else 1}
        options["config_kwargs"] = {"max_pool_connections": AT_ONCE, "retries": retries}
    if protocol in _WEB:
        timeout = importlib.import_module("aiohttp").ClientTimeout(total=None, sock_connect=10, sock_read=30)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    try:
        system, path = fsspec.core.url_to_fs(address, **options)
    except _LIBRARIES as error:
        raise _refusal(address, _failed(error)) from error
    if protocol in _S3:
        system.retries = 1
    # those that are not asynchronous take one call at a time
    return system, str(path), nullcontext() if system.async_impl else threading.Lock()


_LIBRARIES = (Exception,)
"""What they raise: almost any."""


def _path(address: str) -> str:
    return _system(address)[1]


def _call(address: str, method: str, path: str, **more: Any) -> Any:
    system, _, held = _system(address, patient=method == "find")
    with held:
        if method != "cat_file":
            system.invalidate_cache()  # it would give what it listed before
        return getattr(system, method)(path, **more)


# What goes wrong


class _Short(ConnectionError):
    pass


class _Failed(Exception):
    """A request that failed for good.

    Attributes:
        kind: "gone", "short" (of such bytes), "denied", "lacking" (credentials), "expired", "away" (for now), "other".
        why: in the library's words.
        error: as it was raised.
    """

    def __init__(self, kind: str, why: str, error: Exception) -> None:
        super().__init__(kind, why)
        self.kind, self.why, self.error = kind, why, error

    @property
    def sentence(self) -> str:
        """What to tell, after the address."""
        return {
            "gone": "there is no such bucket, folder or file; give one that is there.",
            "denied": f"the server denies it ({self.why}); check that these credentials may list and read there.",
            "lacking": f"there are no credentials for it ({self.why}); give them as the server's own programs take "
            "them, for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or set FSSPEC_S3_ANON=true if it is public.",
            "expired": f"the credentials have expired ({self.why}); renew them, and run the same command again.",
            "away": f"the server does not answer as it should, and was asked {len(PAUSES) + 1} times ({self.why}); "
            "check the address and the network, and run the same command again.",
        }.get(self.kind, f"it can't be read ({self.why}).")


def _refusal(address: str, failed: _Failed) -> CalotypeError:
    """The error where an address is opened."""
    kind = RemoteError if failed.kind in ("away", "expired") else UsageError
    return kind(f"{address}: {failed.sentence}")


def _tried(request: Callable[[], T], pauses: Sequence[float] | None = None) -> T:
    """
    Args:
        pauses: seconds before each time that it is tried once more; None: `PAUSES`.

    Raises:
        _Failed: it fails, and where that may pass did so each time.
    """
    for pause in (*(PAUSES if pauses is None else pauses), None):
        try:
            return request()
        except (CalotypeError, _Failed):
            raise
        except _LIBRARIES as error:
            failed = _failed(error)
            if failed.kind != "away" or pause is None or interrupted():
                raise failed from error
            time.sleep(pause)
    raise AssertionError


def _failed(error: Exception) -> _Failed:
    """What an error of a library means, by it and by what caused it."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    deepest = causes[-1]
    why = quoted(deepest) or type(deepest).__name__
    names = {kind.__name__ for one in causes for kind in type(one).__mro__}
    status = next(filter(None, map(_status, causes)), 0)
    said = partial(_Failed, why=why, error=error)
    if any(code in str(one) for one in causes for code in _EXPIRED):
        return said("expired")
    if names & _LACKING:
        return said("lacking")
    if status in (408, 425, 429) or status >= 500:
        return said("away")
    if status in (401, 403) or "PermissionError" in names:
        return said("denied")
    if status in (404, 410):
        return said("gone")
    if status == 416:
        return said("short")
    if names & _FOR_A_WHILE:
        return said("away")
    return said("gone" if "FileNotFoundError" in names else "other")


def _status(error: BaseException) -> int:
    """The status of HTTP that an error tells of; 0 for none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        places = (getattr(one, name, None) for one in (error, response) for name in ("status", "status_code", "code"))
        found = next((one for one in places if isinstance(one, int)), 0)
    return found if isinstance(found, int) else 0
