"""The metadata service of an EC2 machine, on this one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "of this session"


class Metadata(ThreadingHTTPServer):
    """Answers as version 2 of the service: to who brings a token."""

    ends_at: datetime | None = None
    fails = False
    failed = 0
    """Questions that it has failed to answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token" and int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(200 if asked else 400, TOKEN)

    def do_GET(self) -> None:
        if self.server.fails:
            self.server.failed += 1
            self._answer(500, "")
        elif self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.ends_at is None:
            self._answer(404, "")
        else:
            time = self.server.ends_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._answer(200, json.dumps({"action": "terminate", "time": time}))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def metadata_service() -> Iterator[Metadata]:
    """The service, as long as it is needed."""
    with Metadata(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
