"""Files and batches of the local server."""

from pathlib import Path
from typing import Any


class Batches:
    def __init__(self, server: Any, state: Path | None):
        self._server = server

    def route(self, method, path, query, headers, data):
        return self._server._json(404, {"error": {"message": "not there yet"}})

    def summary(self) -> list:
        return []

    def resume(self) -> None:
        pass
