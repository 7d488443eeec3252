#!/usr/bin/env bash
# fsspec 2026.9.0: over HTTP a server that is busy, or not there, is told as a file that does not exist.
#
# What one expects: info() raises FileNotFoundError where the server says 404, and something else where it says 503 or can't
# be reached, since then nobody knows whether the file is there. What happens: all of them are FileNotFoundError, and
# exists() is False for all. Reading (cat_file) tells them apart: 503 is aiohttp's ClientResponseError, a refused
# connection its ClientConnectorError. The reason is in the exception's __cause__.
# Who meets it: whoever looks whether pictures or shards of a data set are there before reading them, and leaves out what is
# not: a busy server makes the set smaller, without a word, and a retry for other errors is never reached.
# What helps: looking at __cause__ (status 404 or 410 is gone, all else is unknown), or reading and catching.
#
# Seen:
#   404: FileNotFoundError, exists False, read FileNotFoundError
#   503: FileNotFoundError, exists False, read ClientResponseError
#   nobody there: FileNotFoundError, exists False, read ClientConnectorError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0 aiohttp==3.14.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import fsspec


class Answers(BaseHTTPRequestHandler):
    """The status that the path names."""

    def do_GET(self):
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


server = HTTPServer(("127.0.0.1", 0), Answers)
threading.Thread(target=server.serve_forever, daemon=True).start()
with socket.socket() as nobody:
    nobody.bind(("127.0.0.1", 0))
    closed = nobody.getsockname()[1]
files = fsspec.filesystem("http", skip_instance_cache=True)


def told(address):
    """What is raised by a look and by a read."""
    raised = []
    for look in (files.info, files.cat_file):
        try:
            look(address)
            raised.append("nothing")
        except Exception as error:
            raised.append(type(error).__name__)
    return f"{raised[0]}, exists {files.exists(address)}, read {raised[1]}"


place = f"http://127.0.0.1:{server.server_port}"
seen = {"404": told(f"{place}/404"), "503": told(f"{place}/503"), "nobody there": told(f"http://127.0.0.1:{closed}/a")}
for case, text in seen.items():
    print(f"{case}: {text}")
look = "FileNotFoundError, exists False, read"
sys.exit(
    seen
    != {
        "404": f"{look} FileNotFoundError",
        "503": f"{look} ClientResponseError",
        "nobody there": f"{look} ClientConnectorError",
    }
)
PYTHON
