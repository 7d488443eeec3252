"""A server of S3 on this machine, of which every request is seen, and one of HTTP that fails as it is told."""

from __future__ import annotations

import importlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "pictures"


@dataclass
class Bucket:
    """A bucket of the server.

    Attributes:
        url: of the server.
        seen: requests: method, path with its query, and range.
        before: called with each request; a status that it gives is answered.
    """

    url: str
    client: Any
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    before: Callable[[str, str], int | None] = lambda method, path: None

    def put(self, **contents: bytes) -> None:
        for name, content in contents.items():
            self.client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def put_folder(self, folder: Path, prefix: str) -> str:
        """A folder's files; gives their address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(**{f"{prefix}/{path.relative_to(folder).as_posix()}": path.read_bytes()})
        return f"s3://{BUCKET}/{prefix}"

    def gets(self, ending: str = "") -> list[str]:
        """Objects that were fetched, by the ends of their names."""
        return [path for method, path, _ in self.seen if method == "GET" and "?" not in path and path.endswith(ending)]

    def clear(self) -> None:
        self.seen.clear()
        self.before = lambda method, path: None


class Reading:
    """A data set of a source's pixels, which other processes can read."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Any:
        return self.source.read(i)


@contextmanager
def s3_server() -> Iterator[Bucket]:
    """moto's server on a free port, with one bucket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own while it is imported
        moto, boto3 = importlib.import_module("moto.server"), importlib.import_module("boto3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
        )
        client.create_bucket(Bucket=BUCKET)
        bucket = Bucket(url, client)
        inner = server._server.app

        def counted(environ: dict[str, Any], start: Any) -> Any:
            method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
            path = environ["PATH_INFO"] + (f"?{query}" if query else "")
            if "Boto3" not in environ.get("HTTP_USER_AGENT", ""):  # of the client above
                bucket.seen.append((method, path, environ.get("HTTP_RANGE", "")))
                if (status := bucket.before(method, path)) is not None:
                    code = {400: "ExpiredToken", 403: "AccessDenied", 503: "SlowDown"}.get(status, "InternalError")
                    start(f"{status} told", [("Content-Type", "application/xml")])
                    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                    return [body] if method == "GET" else []
            return inner(environ, start)

        server._server.app = counted
        yield bucket
        client.close()
    finally:
        server.stop()


@contextmanager
def http_server(files: Mapping[str, bytes], answer: Callable[[Any, int], bool]) -> Iterator[tuple[str, list[str]]]:
    """Files over HTTP by ranges: its address, and the requests that come.

    Args:
        answer: is given the handler and how many requests came before; True: it answered in its way.
    """
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            if answer(self, len(seen) - 1):
                return
            content = files.get(self.path.partition("?")[0])
            if content is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first, last = 0, len(content) - 1
            if wanted := self.headers.get("Range"):
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(end or last), last)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(last + 1 - first))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[first : last + 1])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
