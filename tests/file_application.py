"""A small application that serves stored files: ``file_application.py PORT``, with the FSWORKER settings of a client.

``/file/<hash>?filename=…&media_type=…&disposition=…&immutable=1``; uploads named ``aaa…`` are allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fsworker.client import Client
from fsworker.contrib.answers import FileAnswers


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def main() -> None:
    files = FileAnswers(Client("shop"))

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/fsworker-upload-allowed":  # config/nginx/fsworker-upload.conf
            allowed = environ["HTTP_X_ORIGINAL_URI"].endswith("a" * 32)
            start_response("204 No Content" if allowed else "403 Forbidden", [])
            return ()
        how: dict[str, Any] = dict(parse_qsl(environ["QUERY_STRING"]))
        how.update({name: True for name in ("immutable", "public") if name in how})
        answer = files.answer(
            environ["REQUEST_METHOD"],
            lambda name: environ.get(f"HTTP_{name.upper().replace('-', '_')}"),
            environ["PATH_INFO"].removeprefix("/file/"),
            **how,
        )
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", list(answer.headers.items()))
        return answer.body or ()

    with make_server("127.0.0.1", int(sys.argv[1]), application, _Server, _Quiet) as server:
        server.serve_forever()


main()
