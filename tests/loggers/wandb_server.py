"""As much of a W&B server as a run needs to be uploaded: it keeps the history and how the run ended."""

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "a" * 40


class WandbServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: list[dict[str, Any]] = []  # what was asked for each run
        self.history: list[dict[str, Any]] = []
        self.exit_code: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": KEY}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path.startswith("/graphql"):
            answer = self.graphql(json.loads(body))
        elif "file_stream" in self.path:
            content = json.loads(body)
            lines = (content.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history += [json.loads(line) for line in lines]
            if content.get("complete"):
                self.server.exit_code = content["exitcode"]
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        project = {"id": "p", "name": "bsq_lightning", "entity": {"id": "e", "name": "us"}}
        if name and name[1] == "UpsertBucket":
            self.server.runs.append(request["variables"])
            asked = {"id": "b", "name": request["variables"]["name"], "displayName": "", "config": "{}"}
            return {"data": {"upsertBucket": {"bucket": {**asked, "project": project}, "inserted": True}}}
        if name and name[1] == "RunResumeStatus":
            return {"data": {"model": {**project, "bucket": None}}}
        if name and name[1] == "Viewer":
            return {"data": {"viewer": {"id": "u", "entity": "us", "username": "us", "flags": "{}"}}}
        return {"errors": [{"message": "not here"}]}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
