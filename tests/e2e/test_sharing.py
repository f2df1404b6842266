"""Many requests at one server: what they share, how they are kept apart, who waits for whom, and what a full KV cache does.

WEIR_BINARY and WEIR_MODEL as in test_openai.py; without them the tests are skipped, and pytest says so.
"""

import concurrent.futures
import signal
import subprocess
import time

import pytest
import requests

from test_openai import BINARY, MODEL, Server

pytestmark = pytest.mark.skipif(
    not (BINARY and MODEL), reason="WEIR_BINARY and WEIR_MODEL are not set: sharing between requests is NOT tested"
)


def words(n, seed):
    return " ".join(f"w{(i * 7919 + seed * 104729) % 1000}" for i in range(n))


def ask(server, prompt, key=None, **options):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **options}
    reply = requests.post(server.url + "/v1/completions", json=body, headers=headers, timeout=300)
    assert reply.status_code == 200, reply.text
    return reply.json()


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def stop(server):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0


def test_prompts_that_begin_alike(tmp_path):
    server = Server(tmp_path)
    prompt = words(100, 1)
    first, again = ask(server, prompt), ask(server, prompt)
    n = first["usage"]["prompt_tokens"]
    assert cached(first) == 0 and cached(again) == n - 1
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    longer = ask(server, prompt + first["choices"][0]["text"] + words(5, 2))
    assert cached(longer) >= n - 1
    assert cached(ask(server, prompt, cache_prompt=False)) == 0
    assert cached(ask(server, prompt, cache_salt="mine")) == 0
    assert cached(ask(server, prompt, cache_salt="mine")) == n - 1
    stop(server)


def test_choices_compute_their_prompt_once(tmp_path):
    server = Server(tmp_path)
    before = server.metric("vllm:prompt_tokens_total")
    reply = ask(server, words(100, 3), n=6, temperature=1, seed=1)
    n = reply["usage"]["prompt_tokens"]
    computed = server.metric("vllm:prompt_tokens_total") - before
    assert computed <= n + 5 * 32
    assert len({choice["text"] for choice in reply["choices"]}) > 1
    stop(server)


def test_the_file_outlives_the_server(tmp_path):
    file, prompt = tmp_path / "prefixes", words(150, 4)
    server = Server(tmp_path, "--prefix-cache-file", str(file))
    first = ask(server, prompt)
    stop(server)
    assert file.stat().st_mode & 0o077 == 0
    server = Server(tmp_path, "--prefix-cache-file", str(file))
    again = ask(server, prompt)
    assert cached(again) == first["usage"]["prompt_tokens"] - 1
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    stop(server)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    server = Server(tmp_path, "--prefix-cache-file", str(file))
    assert cached(ask(server, prompt)) == 0
    stop(server)
    assert "checksum" in (tmp_path / "weir.log").read_text()


def test_a_full_cache_fails_nobody(tmp_path):
    """Eight answers that together need several times the cache: all come, and are those that each gives alone."""
    server = Server(tmp_path, "--kv-cache-size", "16", "-c", "600")
    prompts = [words(30, seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda p: ask(server, p, max_tokens=250, temperature=0.7, seed=5), prompts))
    assert server.metric("vllm:num_preemptions_total") > 0
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    for prompt, reply in zip(prompts, together):
        assert reply["usage"]["completion_tokens"] == 250
        alone = ask(server, prompt, max_tokens=250, temperature=0.7, seed=5, cache_prompt=False)
        assert reply["choices"][0]["text"] == alone["choices"][0]["text"]
    stop(server)


def infer(server, prompt, key, max_tokens):
    """The same over the worker contract."""
    body = {"job_id": f"job-{abs(hash(prompt))}", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
    reply = requests.post(server.url + "/v1/inference", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=300)
    assert reply.status_code == 200, reply.text
    return reply.text


@pytest.mark.parametrize("send", [lambda s, p, k, n: ask(s, p, k, max_tokens=n), infer], ids=["completions", "inference"])
def test_keys_share_fairly(tmp_path, send):
    """A flood under one key does not delay the one request under another."""
    keys = tmp_path / "keys"
    keys.write_text("# who may\nflood-key name=flood\nsingle-key name=single weight=1\n")
    server = Server(tmp_path, "--api-key-file", str(keys), "-np", "2")
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        flood = [pool.submit(send, server, words(20, seed), "flood-key", 150) for seed in range(12)]
        time.sleep(1)
        send(server, words(20, 100), "single-key", 20)
        left = sum(not f.done() for f in flood)
        # A more important request is not to be had by asking for it.
        urgent = pool.submit(ask, server, words(20, 101), "flood-key", max_tokens=20, priority=-5)
        assert [f.result() for f in flood] and urgent.result()
    assert left >= 8
    stop(server)


@pytest.mark.parametrize("line", ["key weight=0", "key weight=x", "key priority=y", "key colour=blue"])
def test_a_bad_line_of_the_key_file(tmp_path, line):
    keys = tmp_path / "keys"
    keys.write_text(line + "\n")
    run = subprocess.run([BINARY, "serve", "-m", MODEL, "--port", "0", "--api-key-file", str(keys)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and line.split()[1] in run.stderr
