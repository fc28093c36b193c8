"""A ClearML server that says yes to everything and remembers what it was asked."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TASK = {"id": "t1", "name": "n", "project": "p1", "type": "training", "status": "in_progress"}
ANSWERS: dict[str, dict[str, Any]] = {
    "projects.get_all": {"projects": []},
    "projects.create": {"id": "p1"},
    "projects.get_by_id": {"project": {"id": "p1", "name": "p"}},
    "tasks.create": {"id": "t1"},
    "tasks.get_by_id": {"task": TASK},
    "tasks.get_all": {"tasks": [TASK]},
    "events.add_batch": {"added": 1, "errors": 0},
}


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _token() -> str:
    now = int(time.time())
    claims = {
        "iat": now,
        "exp": now + 9999,
        "api_version": "2.23",
        "server_version": "1.9.0",
        "server_build": "1",
        "feature_set": "basic",
        "env": "e",
        "identity": {"company": "c", "user": "u", "role": "admin"},
    }
    return ".".join([_part({"alg": "HS256", "typ": "JWT"}), _part(claims), "AAAA"])


@contextmanager
def clearml_server() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield its address and the growing list of (endpoint, body)."""
    calls: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            name = self.path.split("?")[0].rsplit("/", 1)[-1]
            calls.append((name, body))
            data = {"token": _token()} if name == "auth.login" else ANSWERS.get(name, {})
            meta: dict[str, Any] = {"id": "1", "trx": "1", "result_code": 200, "result_subcode": 0}
            meta |= {"result_msg": "OK", "error_stack": "", "error_data": {}}
            meta["endpoint"] = {
                "name": name,
                "requested_version": "2.23",
                "actual_version": "2.23",
            }
            answer = json.dumps({"meta": meta, "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", calls
    finally:
        server.shutdown()
        server.server_close()
