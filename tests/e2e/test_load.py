"""A crowd of clients, some of which vanish, against a real server: no hang, no leak, no crossed stream, /health answered throughout.

WEIR_BINARY, WEIR_MODEL and WEIR_LOAD (the weir-load program) say what to run. With sanitizers the numbers are smaller and the
limits wider: they slow everything down many times. docs/operations.md has the full size, against a release build.
"""

import os
import pathlib
import socket
import subprocess
import time
import urllib.request

import pytest

BINARY, MODEL = os.environ.get("WEIR_BINARY"), os.environ.get("WEIR_MODEL")
LOAD = os.environ.get("WEIR_LOAD") or (str(pathlib.Path(BINARY).parents[2] / "tests/e2e/weir-load") if BINARY else "")

pytestmark = pytest.mark.skipif(
    not (BINARY and MODEL and os.path.exists(LOAD)), reason="WEIR_BINARY, WEIR_MODEL or weir-load is missing: no load test"
)


def sanitized():
    with open(BINARY, "rb") as f:
        data = f.read()
    return b"__asan_init" in data or b"__tsan_init" in data


def test_crowd(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slow = sanitized()
    with open(tmp_path / "log", "w+b") as log:
        server = subprocess.Popen(
            [BINARY, "serve", "-m", MODEL, "--host", "127.0.0.1", "--port", str(port), "-c", "2048"], stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
                    time.sleep(0.1)
            # ASan keeps freed memory for a while (its quarantine), so growth is watched in the plain build only.
            size = ["--clients", "16", "--requests", "60", "--health-ms", "500", "--grow-mb", "100000"] if slow else [
                "--clients", "64", "--requests", "1000"]
            done = subprocess.run([LOAD, "--port", str(port), "--pid", str(server.pid), *size], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=900)
            print(done.stdout.decode())
            assert done.returncode == 0, done.stdout.decode()
        finally:
            server.terminate()
            assert server.wait(30) == 0
            log.seek(0)
            text = log.read().decode(errors="replace")
            assert "Sanitizer" not in text, text
