"""`calotype studio`: a page in the browser."""

from __future__ import annotations

import socket
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from calotype.cli.common import DeviceOption, MemoryOption
from calotype.errors import UsageError

NAME = "studio"
EXAMPLE = "Example: [bold]calotype studio --vae builtin --vae sdxl-vae --pictures photos/[/]"
PORT = 7842


def command(
    vae: Annotated[
        list[str] | None,
        typer.Option("--vae", help="Weights to look at: a preset, a file or a folder; more than once for several."),
    ] = None,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            help="Pictures to measure and to learn directions from: a folder, a .zip or a .tar, here or at an address; "
            "more than once for several."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="What draws beside the built-in model: a drawing model's file, or a checkpoint."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Of this machine; 0 is any.", show_default=f"{PORT}, or any")
    ] = None,
    memory: MemoryOption = None,
    device: DeviceOption = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Look into latents in the browser: compare VAEs, change latents, edit, draw, measure and plan.

    The page is for this machine: nothing else can reach it, and it asks for nothing outside. Pictures that are dropped
    there lie in a temporary folder, which is removed when the studio ends (Ctrl-C). What it makes stands beside the
    command line that makes it too.
    """
    try:
        import uvicorn

        from calotype.studio.app import make_app
    except ImportError as error:
        raise UsageError(f"The studio needs the package {error.name}: pip install 'calotype[studio]'.") from None
    from calotype.addresses import is_address
    from calotype.engine.budget import parse_memory
    from calotype.studio.shelf import BUILTIN, Given, Shelf

    if memory is not None:
        parse_memory(memory)
    for path in pictures or ():
        if not is_address(path) and not Path(path).exists():
            raise UsageError(f"--pictures {path}: there is no such folder or archive; give another.")
    shelf = Shelf(
        vaes=[Given.weights(one) for one in dict.fromkeys(vae or [BUILTIN])],
        folders=[Given.pictures(one) for one in dict.fromkeys(pictures or ())],
        models=[Given.weights(one) for one in dict.fromkeys([BUILTIN, *(model or ())])],
        memory=memory, device=device,
    )  # fmt: skip
    with _listening(port) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def opened() -> None:
            print(f"The studio is open at {address} (Ctrl-C ends it).", flush=True)
            if open_page:
                webbrowser.open(address)

        config = uvicorn.Config(
            make_app(shelf, opened), log_level="warning", access_log=False, timeout_graceful_shutdown=1,
            server_header=False, h11_max_incomplete_event_size=2**16,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.run(sockets=[listener])


def _listening(port: int | None) -> socket.socket:
    """A socket of this machine alone.

    Raises:
        UsageError: the port that was asked for is taken.
    """
    for wanted in (PORT, 0) if port is None else (port,):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wanted))
        except OSError as error:
            listener.close()
            if port is not None:
                raise UsageError(f"--port {port}: {error.strerror}; give another, or 0 for any.") from None
            continue
        listener.listen(128)
        return listener
    raise UsageError("There is no free port on this machine.")
