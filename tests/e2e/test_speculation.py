"""Speculation from outside: the same requests, greedy and sampled, give the same answers with and without it, alone and together.

WEIR_BINARY is the weir binary, WEIR_MODEL a GGUF file. Two servers run side by side.
"""
import concurrent.futures
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
import requests

BINARY, MODEL = os.environ.get("WEIR_BINARY"), os.environ.get("WEIR_MODEL")
TEXTS = Path(__file__).resolve().parent.parent.parent / "bench" / "texts"
pytestmark = pytest.mark.skipif(not (BINARY and MODEL), reason="WEIR_BINARY or WEIR_MODEL is missing: speculation is NOT tested")


def start(*options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([BINARY, "serve", "-m", MODEL, "--port", str(port), "-c", "2048", *options], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(url + "/health", timeout=2).status_code == 200:
                return process, url
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    process.kill()
    raise RuntimeError("the server did not become healthy within 120 s")


@pytest.fixture(scope="module")
def servers():
    running = [start("--no-spec"), start()]
    yield [url for _, url in running]
    for process, _ in running:
        process.terminate()
        process.wait(timeout=30)


def complete(url, body):
    reply = requests.post(url + "/v1/completions", json=body, timeout=300)
    reply.raise_for_status()
    return reply.json()


def metric(url, name):
    text = requests.get(url + "/metrics", timeout=5).text
    return float(re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE).group(1))


def bodies():
    for name in ("edit", "json", "quote", "repeat", "story"):
        prompt = (TEXTS / f"{name}.txt").read_text()
        for number, temperature in enumerate((0, 0.7, 1.3)):
            yield {"prompt": prompt, "max_tokens": 60 + 7 * number, "temperature": temperature, "seed": 11 + number, "logprobs": 2,
                   "stop": ["\n\n\n", "never said"], "frequency_penalty": 0.3 if number == 2 else 0}


def test_the_same_answers(servers):
    without, with_it = servers
    drafted = 0
    requests_made = list(bodies())
    for body in requests_made:
        a, b = complete(without, body), complete(with_it, body)
        assert a["choices"] == b["choices"]
        assert a["usage"] == b["usage"]
        assert "draft_n" not in a["timings"]
        drafted += b["timings"].get("draft_n", 0)
        assert 0 <= b["timings"].get("draft_n_accepted", 0) <= b["timings"].get("draft_n", 0)
    assert drafted > 100
    assert metric(without, "vllm:spec_decode_num_draft_tokens_total") == 0
    assert metric(with_it, "vllm:spec_decode_num_draft_tokens_total") >= drafted
    assert metric(with_it, "llamacpp:spec_decode_num_accepted_tokens_total") > 50
    # All at once: what is guessed now depends on the company, the answers do not.
    alone = [complete(without, body)["choices"] for body in requests_made[:6]]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = [reply["choices"] for reply in pool.map(lambda body: complete(with_it, body), requests_made[:6])]
    assert together == alone
