"""Fixtures that run the local LLM server (tests/doubles) as a process."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

SCRIPT = Path(__file__).parents[1] / "doubles" / "llm_server.py"
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LlmServer:
    """One running server.

    Args:
      faults: names of presets or a list of rules, see llm_faults.py.
      options: of its command line, e.g. latency_ms=5.
    """

    def __init__(self, faults: str | list[dict[str, Any]] = "", **options: Any):
        self._options = options | {"faults": _rules(faults)}
        self._port = 0
        self._start()

    def _start(self) -> None:
        line = [sys.executable, str(SCRIPT), "--until-stdin-closes", "--port", str(self._port)]
        for name, value in self._options.items():
            line += [f"--{name.replace('_', '-')}", str(value)]
        pipe = subprocess.PIPE  # stdin is closed when this process ends in any way
        self._process = subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True)
        ready = self._process.stdout.readline()
        if not ready.startswith("listening on "):
            self.kill()
            raise RuntimeError(f"the local server did not start: {ready!r}")
        self.base_url = ready.split()[-1]
        self._port = int(self.base_url.split(":")[2].split("/")[0])

    def stats(self, *, requests: bool = True) -> dict[str, Any]:
        """Its counts, see llm_counts.py; `requests` by `hash_of`."""
        return json.loads(self._call("GET", "_stats" + ("" if requests else "?totals=1")))

    def set_faults(self, faults: str | list[dict[str, Any]]) -> None:
        """Replaces the faults."""
        self._call("PUT", "_faults", _rules(faults).encode())

    def kill(self) -> None:
        """Ends it with kill -9 and waits for its end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def restart(self) -> None:
        """Starts it again on the same port and options; with state=... it knows what it knew."""
        self.kill()
        self._start()

    @staticmethod
    def hash_of(body: dict[str, Any]) -> str:
        """The server's hash of a request's body."""
        data = json.dumps(body, sort_keys=True, ensure_ascii=False).encode()
        return hashlib.blake2b(data, digest_size=12).hexdigest()

    def _call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        url = f"{self.base_url.removesuffix('v1')}{path}"
        request = urllib.request.Request(url, data=data, method=method)
        with _HTTP.open(request, timeout=30) as response:
            return response.read()


def _rules(faults: str | list[dict[str, Any]]) -> str:
    return faults if isinstance(faults, str) else json.dumps(faults)


@pytest.fixture
def llm_server():
    """start(faults=..., **options) -> LlmServer; all are killed at the end."""
    servers: list[LlmServer] = []

    def start(faults: str | list[dict[str, Any]] = "", **options: Any) -> LlmServer:
        servers.append(LlmServer(faults, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def calm_server():
    """One server without faults, for all tests that do not look at its totals."""
    server = LlmServer()
    yield server
    server.kill()


@pytest.fixture
def client_of():
    """(server, key) -> openai.OpenAI without retries, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(server: LlmServer, key: str = "sk-any") -> openai.OpenAI:
            client = openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0)
            return stack.enter_context(client)

        yield make


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Removes proxy settings, which would apply to 127.0.0.1."""
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
