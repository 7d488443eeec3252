"""The studio's server: who may ask what, and by which address."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calotype.errors import CalotypeError, UsageError
from calotype.studio import draw, edit, latents, look, measure, plan
from calotype.studio.jobs import Desk, Job, Order
from calotype.studio.shelf import Shelf
from calotype.studio.visits import MOST_BYTES, MOST_OF_A_VISIT, Visit, Visits
from calotype.temporaries import temporary_folder
from calotype.texts import TextError, json_table

COOKIE = "calotype-studio"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_ORDERS: dict[str, Callable[[Shelf, Visit, dict[str, Any]], Order]] = {
    **look.ORDERS, **plan.ORDERS, **latents.ORDERS, **edit.ORDERS, **draw.ORDERS, **measure.ORDERS
}  # fmt: skip
_MOST_JSON = 2**23  # bytes
_TIDY = 300.0  # seconds between looks for visits that were left
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; frame-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
# a report is a page of its own, with its script inside; it can ask for nothing, this server included
_REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; frame-ancestors 'self'"
)


class Guard:
    """Lets through what the studio's own page asks for, and nothing that another page has a browser ask for.

    The Host header must name this machine, or a name that an attacker has resolve to it would be an origin of theirs;
    what changes anything must come from the page's own origin; and another page may lead here, but fetch nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or passes on and adds headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if (reason := _foreign(scope["method"], headers)) is not None:
            await JSONResponse({"error": reason}, 403)(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = {key.lower() for key, _ in message["headers"]}
                for name, value in (
                    (b"content-security-policy", _POLICY), (b"x-content-type-options", "nosniff"),
                    (b"referrer-policy", "no-referrer"), (b"cross-origin-resource-policy", "same-origin"),
                    (b"cache-control", "no-store"),
                ):  # fmt: skip
                    if name not in found:
                        message["headers"].append((name, value.encode()))
            await send(message)

        await self.app(scope, receive, guarded)


def _foreign(method: str, headers: dict[str, str]) -> str | None:
    """Why a request is not the page's own; None if it is."""
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
        return "The studio answers to 127.0.0.1 and localhost only."
    origin = urlsplit(headers.get("origin", ""))
    if method in ("GET", "HEAD"):
        led = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        own = led or headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    else:
        own = origin.scheme in ("http", "https") and origin.netloc == host
    return None if own else "This was asked for by another page; the studio listens to its own."


class Studio:
    """The addresses, and what answers there."""

    def __init__(self, shelf: Shelf, visits: Visits, desk: Desk) -> None:
        self.shelf, self.visits, self.desk = shelf, visits, desk
        self.files = {
            one.name: one.read_bytes()
            for one in resources.files("calotype.studio").joinpath("static").iterdir()
            if Path(one.name).suffix in _TYPES
        }
        report = resources.files("calotype.evaluate.report")
        self.files["report.css"] = report.joinpath("report.css").read_bytes()
        self.at_once = asyncio.Lock()  # what this process computes while the page waits
        self.later = asyncio.Lock()  # and what takes seconds
        self.reading = asyncio.Lock()  # a large picture takes memory while it is read

    def routes(self) -> list[Route]:
        """All addresses."""
        return [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/api/shelf", self._for_visit(self.facts)),
            Route("/api/visit", self._for_visit(self.visit), methods=["GET"]),
            Route("/api/visit", self.forget, methods=["DELETE"]),
            Route("/api/things", self._for_visit(self.add), methods=["POST"]),
            Route("/api/things/{id}", self._for_visit(self.remove), methods=["DELETE"]),
            Route("/api/things/{id}/{which}", self._for_visit(self.thing)),
            Route("/api/jobs", self._for_visit(self.order), methods=["POST"]),
            Route("/api/jobs/{id}/events", self._for_visit(self.events)),
            Route("/api/jobs/{id}/cancel", self._for_visit(self.cancel), methods=["POST"]),
            Route("/api/jobs/{id}/preview", self._for_visit(self.preview)),
            Route("/api/jobs/{id}/files/{path:path}", self._for_visit(self.file)),
            Route("/api/now/{what}", self._for_visit(self.now), methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        """The page; a browser's first visit begins here."""
        response = Response(self.files["index.html"], media_type="text/html")
        if self.visits.find(_token(request)) is None:
            token, _ = await asyncio.to_thread(self.visits.begin)
            response.set_cookie(_cookie(request), token, httponly=True, samesite="lax", path="/")
        return response

    async def static(self, request: Request) -> Response:
        """A part of the page."""
        name = request.path_params["name"]
        if name not in self.files:
            return _error("There is no such file.", 404)
        return Response(self.files[name], media_type=_TYPES[Path(name).suffix], headers={"cache-control": "no-cache"})

    def _for_visit(
        self, answer: Callable[[Request, Visit], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """What answers a visit; errors become sentences."""

        async def found(request: Request) -> Response:
            visit = self.visits.find(_token(request))
            if visit is None:
                return _error("Your visit has ended and its pictures are gone; load the page anew.", 401)
            try:
                return await answer(request, visit)
            except CalotypeError as error:
                return _error(visit.tidy(str(error)), 400)
            except ClientDisconnect:
                return Response(status_code=400)
            except OSError as error:
                return _error(f"{error.strerror or error}.", 500)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                said = visit.tidy(f"{type(error).__name__}: {error}")
                return _error(f"The studio made an error of its own ({said}).", 500)

        return found

    async def facts(self, request: Request, visit: Visit) -> Response:
        """What there is to choose from."""
        return JSONResponse(await asyncio.to_thread(self.shelf.facts))

    async def visit(self, request: Request, visit: Visit) -> Response:
        """What this visit holds."""
        running = [one.facts(self.desk.place(one)) for one in list(visit.jobs.values()) if one.unfinished]
        return JSONResponse({"things": [one.facts() for one in list(visit.things.values())], "jobs": running})

    async def forget(self, request: Request) -> Response:
        """Ends the visit."""
        token = _token(request)
        if token is not None and (visit := self.visits.find(token)) is not None:
            for job in [one for one in visit.jobs.values() if one.unfinished]:
                self.desk.cancel(job)
                while job.unfinished:
                    await asyncio.sleep(0.05)
            await asyncio.to_thread(self.visits.end, token)
        response = JSONResponse({})
        response.delete_cookie(_cookie(request))
        return response

    async def add(self, request: Request, visit: Visit) -> Response:
        """Takes a file."""
        name = request.query_params.get("name", "")
        kind = request.query_params.get("kind", "picture")
        if kind not in ("picture", "direction"):
            raise UsageError(f"A file is a picture or a direction, not {kind!r}.")
        shown = visit.name(name)
        place = visit.place()
        path, size = place / shown, 0
        room = min(MOST_BYTES, MOST_OF_A_VISIT - visit.bytes())
        try:
            with path.open("wb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > room:
                        raise UsageError(
                            f"{shown} has more than {room // 2**20} MiB, and the studio takes no more; use the command "
                            f"line, or forget some pictures."
                        )
                    file.write(chunk)
            take = visit.add_picture if kind == "picture" else visit.add_direction
            async with self.reading:
                thing = await asyncio.to_thread(take, path, shown)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            raise
        return JSONResponse(thing.facts())

    async def remove(self, request: Request, visit: Visit) -> Response:
        """Forgets one."""
        thing = visit.things.get(request.path_params["id"])
        if thing is not None:
            await asyncio.to_thread(visit.forget, thing)
        return JSONResponse({})

    async def thing(self, request: Request, visit: Visit) -> Response:
        """A thing's file, or how it is seen."""
        thing = visit.things.get(request.path_params["id"])
        which = request.path_params["which"]
        paths = {} if thing is None else {"file": thing.path, "seen.png": thing.seen, "thumbnail.png": thing.thumbnail}
        if thing is None or (path := paths.get(which)) is None:
            return _error("There is no such picture here any more.", 404)
        if which == "file":
            return FileResponse(path, headers=_download(thing.name))
        return FileResponse(path, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    async def order(self, request: Request, visit: Visit) -> Response:
        """Takes an order."""
        form = await _json(request)
        make = _ORDERS.get(str(form.get("tab")))
        if make is None:
            raise UsageError(f"There is no tab {form.get('tab')!r}.")
        order = await asyncio.to_thread(make, self.shelf, visit, form)
        return JSONResponse(self.desk.take(visit, order).facts(0))

    def _job(self, request: Request, visit: Visit) -> Job:
        job = visit.jobs.get(request.path_params["id"])
        if not isinstance(job, Job):
            raise UsageError("There is no such job here any more.")
        return job

    async def events(self, request: Request, visit: Visit) -> Response:
        """What becomes of a job, as it becomes so."""
        job = self._job(request, visit)

        async def lines() -> AsyncIterator[str]:
            async for facts in self.desk.follow(job):
                yield f"data: {json.dumps(_plain(facts))}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def cancel(self, request: Request, visit: Visit) -> Response:
        """Stops a job."""
        self.desk.cancel(self._job(request, visit))
        return JSONResponse({})

    async def preview(self, request: Request, visit: Visit) -> Response:
        """What a drawing is going to be."""
        job = self._job(request, visit)
        path = job.folder / (job.order.preview or "")
        try:
            return Response(await asyncio.to_thread(path.read_bytes), media_type="image/png")
        except OSError:  # the drawing is done, and its folder cleared up, since the page heard of it
            return Response(status_code=204)

    async def file(self, request: Request, visit: Visit) -> Response:
        """One that a job made."""
        path = self._job(request, visit).files.get(request.path_params["path"])
        if path is None:
            return _error("There is no such file.", 404)
        if path.suffix == ".html":
            headers = {"content-security-policy": _REPORT_POLICY, "cross-origin-resource-policy": "same-origin"}
            return FileResponse(path, media_type="text/html", headers=headers)
        return FileResponse(path, headers=_download(path.name) if "download" in request.query_params else None)

    async def now(self, request: Request, visit: Visit) -> Response:
        """What this process computes itself: one at a time, and beside it one that takes longer."""
        what = request.path_params["what"]
        answer = {**look.NOW, **look.LATER, **plan.NOW, **latents.NOW}.get(what)
        if answer is None:
            raise UsageError("There is no such question.")
        form = await _json(request)
        async with self.later if what in look.LATER else self.at_once:
            if await request.is_disconnected():  # the page has asked for something else meanwhile
                return Response(status_code=400)
            found = await asyncio.to_thread(answer, self.shelf, visit, form)
        if isinstance(found, bytes):
            return Response(found, media_type="application/octet-stream")
        return JSONResponse(_plain(found))


def _cookie(request: Request) -> str:
    """Browsers send a cookie to all ports of a host; another studio there has its own."""
    return f"{COOKIE}-{request.url.port or 80}"


def _token(request: Request) -> str | None:
    return request.cookies.get(_cookie(request))


async def _json(request: Request) -> dict[str, Any]:
    """A table that the page sends."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_JSON:
            raise UsageError(f"This form has more than {_MOST_JSON // 2**20} MiB, and the studio takes no more.")
    try:
        return json_table(content)
    except TextError as error:
        raise UsageError(f"This form can't be read: {error}.") from None


async def _tidying(visits: Visits) -> None:
    """Ends visits that were left."""
    while True:
        await asyncio.sleep(_TIDY)
        await asyncio.to_thread(visits.tidy)


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _download(name: str) -> dict[str, str]:
    return {"content-disposition": f"attachment; filename*=utf-8''{quote(name)}"}


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status)


def make_app(shelf: Shelf, opened: Callable[[], None] = lambda: None) -> ASGIApp:
    """The studio as an ASGI application.

    Args:
        opened: called when it can be asked.
    """
    desk = Desk()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with temporary_folder(Path(tempfile.gettempdir())) as folder:
            visits = Visits(folder)
            app.router.routes[:] = Studio(shelf, visits, desk).routes()
            await desk.open()
            warm = asyncio.create_task(asyncio.to_thread(shelf.facts))
            tidy = asyncio.create_task(_tidying(visits))
            try:
                opened()
                yield
            finally:
                tidy.cancel()
                await desk.close()
                await asyncio.gather(warm, return_exceptions=True)

    return Guard(Starlette(lifespan=lifespan))
