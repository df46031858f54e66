"""The live demo: one page, and a WebSocket that answers every keystroke (extra: demo)."""

import asyncio
import contextlib
import hmac
import json
import re
import secrets
import socket
import time
from importlib import resources
from typing import Any

from jaxllm.errors import UserError, brief
from jaxllm.write.service import Desk, Service
from jaxllm.write.writer import Suggestion

_USER = re.compile(r"[A-Za-z0-9-]{16,64}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_REFUSED = 1008  # a WebSocket's close code: policy violation


def open_port(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before anything slow is done; port 0 takes a free one.

    Raises:
      UserError: the port is in use, the host is not this machine's, or this machine has no IPv6 for it.
    """
    try:
        with contextlib.ExitStack() as closing:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = closing.enter_context(socket.socket(family))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(128)
            closing.pop_all()
            return listening
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of {host} cannot be opened ({getattr(error, 'strerror', None) or error}); give "
            "another with --port, or another --host"
        ) from error


def is_loopback(host: str) -> bool:
    """Say whether only programs on this machine reach a host."""
    return host in _LOOPBACK or host.startswith("127.")


def make_app(service: Service, token: str | None = None) -> Any:
    """Return the Starlette application.

    The page holds a secret of this process, without which the WebSocket, export and erasure are refused: a
    page of somebody else's that a browser has open cannot use them. A user is named by random letters that
    the browser keeps; who does not know them sees nothing of that user.

    Args:
      service: who answers.
      token: what the page's address must carry (`?token=`); None: anybody who reaches it may open it.
    """
    starlette = _starlette()
    secret = token or secrets.token_urlsafe(16)
    page = resources.files("jaxllm.write").joinpath("assets/page.html").read_text(encoding="utf-8")
    limit = service.config.most_characters
    page = page.replace("__TOKEN__", json.dumps(secret)).replace("__MOST__", str(limit))

    def knows(connection) -> bool:
        return hmac.compare_digest(connection.query_params.get("token", "").encode(), secret.encode())

    def user(connection) -> str | None:
        name = connection.query_params.get("user", "")
        return name if _USER.fullmatch(name) else None

    async def show(request):
        if token is not None and not knows(request):
            return starlette.PlainTextResponse("the address needs ?token=, as the command printed it", 403)
        return starlette.HTMLResponse(page, headers={"Cache-Control": "no-store"})

    async def export(request):
        if not knows(request) or user(request) is None:
            return starlette.PlainTextResponse("refused", 403)
        return starlette.JSONResponse(service.export(user(request)))

    async def erase(request):
        if not knows(request) or user(request) is None:
            return starlette.PlainTextResponse("refused", 403)
        service.erase(user(request))
        return starlette.JSONResponse({"erased": True})

    async def write(connection):
        if not knows(connection) or user(connection) is None:
            await connection.close(_REFUSED)
            return
        await connection.accept()
        try:
            desk = service.open(user(connection))
        except UserError as error:
            await connection.send_json({"type": "error", "message": str(error)})
            await connection.close(_REFUSED)
            return
        try:
            await _Conversation(connection, desk).run()
        except starlette.WebSocketDisconnect:
            pass
        finally:
            desk.close()

    return starlette.Starlette(
        routes=[
            starlette.Route("/", show),
            starlette.Route("/export", export),
            starlette.Route("/erase", erase, methods=["POST"]),
            starlette.WebSocketRoute("/ws", write),
        ]
    )


class _Conversation:
    """Messages of one connection. A key is answered in the order it came; the model only after the latest."""

    def __init__(self, connection, desk: Desk):
        self._connection, self._desk = connection, desk
        self._waiting = asyncio.Event()
        self._received = 0.0

    async def run(self) -> None:
        model = asyncio.create_task(self._ask_model())
        try:
            while True:
                message = await self._connection.receive_text()
                self._received = time.perf_counter()
                try:
                    await self._answer(_read(message))
                except UserError as error:
                    await self._connection.send_json({"type": "error", "message": str(error)})
        finally:
            model.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await model

    async def _answer(self, message: dict) -> None:
        kind = message.get("type")
        if kind == "text":
            shown = self._desk.typed(message.get("seq"), message.get("text"))
            await self._send(shown, self._received, "counts")
            self._waiting.set()
        elif kind == "accept":
            self._desk.took(message.get("text"), bool(message.get("whole")))
        elif kind == "reject":
            self._desk.refused()
        else:
            raise UserError(f"a message of type {brief(kind, 20)}; expected text, accept or reject")

    async def _ask_model(self) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            received = self._received
            shown = await self._desk.asked(received)
            if shown is not None:
                await self._send(shown, received, "model")

    async def _send(self, shown: list[Suggestion], received: float, by: str) -> None:
        suggestions = [
            {"text": one.text, "first": one.first, "chance": round(one.chance, 3), "source": one.source}
            for one in shown
        ]
        milliseconds = round(1000 * (time.perf_counter() - received), 2)
        said = {"by": by, "ms": milliseconds, "shown": suggestions}
        await self._connection.send_json({"type": "suggest", "seq": self._desk.sequence} | said)


def _read(message: str) -> dict:
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{brief(message, 40)} is no message; send a JSON object")
    return content


def serve(service: Service, listening: socket.socket, token: str | None = None) -> None:
    """Answer until Ctrl-C."""
    make_server(service, token).run(sockets=[listening])


def make_server(service: Service, token: str | None = None) -> Any:
    """Return uvicorn's server of the application; its `run` takes the socket."""
    app = make_app(service, token)
    import uvicorn

    # UTF-8 takes up to 4 bytes a character, JSON's escapes up to 12; what is longer closes the connection.
    most = 12 * service.config.most_characters + 4096
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", ws_max_size=most, lifespan="off", access_log=False)
    )


def check_extra() -> None:
    """Check that the packages of the extra are there.

    Raises:
      UserError: naming what is missing.
    """
    _starlette()


def _starlette() -> Any:
    """Return what is used of Starlette, under one roof."""
    try:
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
        from starlette.routing import Route, WebSocketRoute
        from starlette.websockets import WebSocketDisconnect
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}; install it: pip install 'jaxllm[demo]'") from error
    import types

    return types.SimpleNamespace(
        Starlette=Starlette, HTMLResponse=HTMLResponse, JSONResponse=JSONResponse,
        PlainTextResponse=PlainTextResponse, Route=Route, WebSocketRoute=WebSocketRoute,
        WebSocketDisconnect=WebSocketDisconnect,
    )  # fmt: skip
