"""The OpenAI surface through the official client, against a real server with a real model.

WEIR_BINARY is the weir binary, WEIR_MODEL a GGUF file of a chat model (for example SmolLM2-135M-Instruct). Without them all
tests are skipped, and pytest says so. The server is started here on a free port.
"""

import asyncio
import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import time

import openai
import pytest
import requests

BINARY = os.environ.get("WEIR_BINARY")
MODEL = os.environ.get("WEIR_MODEL")

pytestmark = pytest.mark.skipif(
    not (BINARY and MODEL), reason="WEIR_BINARY and WEIR_MODEL are not set: the OpenAI surface is NOT tested"
)

HELLO = [{"role": "user", "content": "Say hello."}]
N_CTX = 2048
JSON_TYPE = {"Content-Type": "application/json"}


class Server:
    def __init__(self, tmp_path, *more):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers = {}
        self.log = open(tmp_path / "weir.log", "w+b")
        command = [BINARY, "serve", "-m", MODEL, "--host", "127.0.0.1", "--port", str(self.port), "-c", str(N_CTX),
                   "--alias", "tiny", *more]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.log.seek(0)
                text = self.log.read().decode(errors="replace")
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{text}")
            try:
                if requests.get(self.url + "/health", timeout=2).status_code == 200:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise RuntimeError("the server did not become healthy within 120 s")

    def metric(self, name):
        """The value of a metric's first sample, whatever its labels."""
        text = requests.get(self.url + "/metrics", timeout=5, headers=self.headers).text
        found = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in\n{text}"
        return float(found.group(1))

    def wait_idle(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.metric("vllm:num_requests_running") == 0 and self.metric("vllm:num_requests_waiting") == 0:
                return
            time.sleep(0.02)
        pytest.fail(f"requests still run after {seconds} s")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("openai"))
    yield server
    assert server.process.poll() is None, "the server died during the tests"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


def chat(client, **options):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 0, **options}
    )


def complete(client, **options):
    return client.completions.create(
        **{"model": "tiny", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, **options}
    )


def deltas(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def post(server, path, body, **options):
    return requests.post(server.url + path, json=body, timeout=120, **options)


# ---- models, health, metrics -----------------------------------------------------------------------------------------


def test_models(server, client):
    listed = list(client.models.list())
    assert [m.id for m in listed] == ["tiny"]
    assert listed[0].object == "model"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert requests.get(server.url + "/models", timeout=5).json() == requests.get(server.url + "/v1/models", timeout=5).json()


def test_health(server):
    assert requests.get(server.url + "/health", timeout=5).status_code == 200


def test_metrics_text(server, client):
    chat(client, max_tokens=4)
    reply = requests.get(server.url + "/metrics", timeout=5)
    assert reply.status_code == 200
    assert reply.headers["Content-Type"].startswith("text/plain")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", reply.text, re.MULTILINE))
    helps = set(re.findall(r"^# HELP (\S+) ", reply.text, re.MULTILINE))
    assert set(types) == helps
    for name, kind in {
        "llamacpp:prompt_tokens_total": "counter",
        "llamacpp:tokens_predicted_total": "counter",
        "vllm:num_requests_running": "gauge",
        "vllm:num_requests_waiting": "gauge",
        "vllm:kv_cache_usage_perc": "gauge",
        "vllm:time_to_first_token_seconds": "histogram",
        "vllm:inter_token_latency_seconds": "histogram",
        "vllm:e2e_request_latency_seconds": "histogram",
        "vllm:request_queue_time_seconds": "histogram",
    }.items():
        assert types[name] == kind
    for line in reply.text.splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z_:]+[a-z0-9_:]*(\{.*\})? [-+0-9.e]+", line), line
    assert server.metric("vllm:time_to_first_token_seconds_count") >= 1
    config = re.search(r'^vllm:cache_config_info\{model_name="[^"]*",(.*)\} 1$', reply.text, re.MULTILINE).group(1)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', config))
    assert int(labels["block_size"]) * int(labels["num_gpu_blocks"]) == server.metric("weir:kv_cache_capacity_tokens")
    assert labels["cache_dtype"] in ("f16", "f16/q8_0")


def test_metrics_count_what_requests_report(server, client):
    server.wait_idle(5)
    before = server.metric("llamacpp:tokens_predicted_total")
    count = server.metric("vllm:time_to_first_token_seconds_count")
    used = sum(chat(client, max_tokens=7, seed=i).usage.completion_tokens for i in range(3))
    server.wait_idle(5)
    assert server.metric("llamacpp:tokens_predicted_total") - before == used
    assert server.metric("vllm:time_to_first_token_seconds_count") - count == 3


# ---- chat ------------------------------------------------------------------------------------------------------------


def test_chat(client):
    reply = chat(client)
    assert reply.id.startswith("chatcmpl-")
    assert reply.object == "chat.completion"
    assert reply.model == "tiny"
    assert abs(reply.created - time.time()) < 60
    assert reply.system_fingerprint.startswith("weir-")
    choice = reply.choices[0]
    assert choice.index == 0 and choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens


def test_length_and_usage_are_exact(client):
    reply = chat(client, max_tokens=5, extra_body={"ignore_eos": True})
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 5
    assert chat(client, max_tokens=openai.omit, max_completion_tokens=3).usage.completion_tokens <= 3


def test_stream_shape(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, max_tokens=8))
    assert len({c.id for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    assert [c.choices[0].finish_reason for c in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert not chunks[-2].choices[0].delta.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])


def test_stream_without_usage(client):
    chunks = list(chat(client, stream=True, max_tokens=4))
    assert all(c.choices for c in chunks)


def test_stream_equals_whole(client):
    for options in ({}, {"temperature": 1.0, "seed": 11}, {"temperature": 1.5, "top_k": 0, "seed": 3}):
        extra = {"top_k": options.pop("top_k")} if "top_k" in options else {}
        whole = chat(client, **options, extra_body=extra).choices[0].message.content
        assert deltas(chat(client, stream=True, **options, extra_body=extra)) == whole


def test_stream_ends_with_done(server):
    with post(server, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 4, "stream": True}, stream=True) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        text = reply.raw.read().decode()
    frames = text.split("\n\n")
    assert frames[-1] == "" and frames[-2] == "data: [DONE]"
    assert all(f.startswith("data: ") for f in frames[:-1])
    last = json.loads(frames[-3][len("data: "):])
    assert last["timings"]["predicted_n"] <= 4 and last["timings"]["prompt_n"] >= 0


def test_tokens_arrive_one_by_one(client):
    stream = chat(client, stream=True, max_tokens=48, extra_body={"ignore_eos": True})
    times = [time.monotonic() for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert len(times) >= 12
    assert times[len(times) // 2] - times[0] > 0.2 * (times[-1] - times[0]), "the stream came in one burst"


def test_async(server):
    async def run():
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
        whole = await chat(client, max_tokens=12)
        text = ""
        async for chunk in await chat(client, max_tokens=12, stream=True):
            text += chunk.choices[0].delta.content or ""
        await client.close()
        assert text == whole.choices[0].message.content

    asyncio.run(run())


def test_seed(client):
    hot = {"temperature": 1.5, "top_p": 1.0, "extra_body": {"top_k": 0, "min_p": 0}, "max_tokens": 16}
    first = chat(client, seed=5, **hot).choices[0].message.content
    assert chat(client, seed=5, **hot).choices[0].message.content == first
    others = {chat(client, seed=s, **hot).choices[0].message.content for s in (6, 7, 8)}
    assert others != {first}
    assert len({chat(client, **hot).choices[0].message.content for _ in range(4)}) > 1, "without a seed answers should differ"


def test_stop(client):
    text = complete(client, max_tokens=32).choices[0].text
    stop = text[len(text) // 2:][:4]
    stopped = complete(client, max_tokens=32, stop=stop).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == text[: text.index(stop)]
    streamed = "".join(c.choices[0].text for c in complete(client, max_tokens=32, stop=["\x01never", stop], stream=True))
    assert streamed == stopped.text
    assert complete(client, max_tokens=8, stop=["\x01%d" % i for i in range(16)]).choices[0].text


def test_n(client):
    reply = chat(client, n=3, temperature=1.2, seed=1, max_tokens=8)
    assert [c.index for c in reply.choices] == [0, 1, 2]
    assert reply.usage.completion_tokens <= 24
    assert len({c.message.content for c in reply.choices}) > 1
    assert chat(client, temperature=1.2, seed=1, max_tokens=8).choices[0].message.content == reply.choices[0].message.content
    texts = {}
    finished = set()
    for chunk in chat(client, n=3, temperature=1.2, seed=1, max_tokens=8, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                finished.add(choice.index)
    assert finished == {0, 1, 2}
    assert [texts[i] for i in range(3)] == [c.message.content for c in reply.choices]


def test_logprobs(client):
    reply = chat(client, logprobs=True, top_logprobs=5, max_tokens=8)
    entries = reply.choices[0].logprobs.content
    assert b"".join(bytes(e.bytes) for e in entries).decode() == reply.choices[0].message.content
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 5
        tops = [t.logprob for t in entry.top_logprobs]
        assert tops == sorted(tops, reverse=True)
        assert tops[0] == entry.logprob, "greedy takes the most probable token"
    streamed = [
        e.token
        for c in chat(client, logprobs=True, top_logprobs=5, max_tokens=8, stream=True)
        if c.choices[0].logprobs
        for e in c.choices[0].logprobs.content
    ]
    assert streamed == [e.token for e in entries]


def test_logit_bias(server, client):
    entries = chat(client, logprobs=True, top_logprobs=1, max_tokens=1).choices[0].logprobs.content
    text = entries[0].token
    token = post(server, "/tokenize", {"content": text}).json()["tokens"][0]
    banned = chat(client, logit_bias={str(token): -100}, max_tokens=1, logprobs=True).choices[0].logprobs.content
    assert banned[0].token != text


def test_system_and_history(client):
    messages = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello."}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Again."},
    ]
    assert chat(client, messages=messages).choices[0].message.content


def test_prefill(client):
    reply = chat(client, messages=HELLO + [{"role": "assistant", "content": "Hello there, my"}], max_tokens=6)
    assert not reply.choices[0].message.content.startswith("Hello there, my")


def test_unicode(server, client):
    prompt = "Repeat: \u00e9\u4f60\u597d\U0001f600\u200d\u0639\u0631\u0628\u064a \\\"\n\t\u0000 end"
    tokens = post(server, "/tokenize", {"content": prompt}).json()["tokens"]
    assert post(server, "/detokenize", {"tokens": tokens}).json()["content"] == prompt
    for seed in range(4):
        options = {"messages": [{"role": "user", "content": prompt}], "temperature": 2, "seed": seed, "max_tokens": 32, "top_p": 1,
                   "extra_body": {"top_k": 0, "min_p": 0}}
        text = deltas(chat(client, stream=True, **options))
        whole = chat(client, **options).choices[0].message.content
        assert text == whole
        text.encode("utf-8")


# ---- completions -----------------------------------------------------------------------------------------------------


def test_completion(client):
    reply = complete(client)
    assert reply.id.startswith("cmpl-") and reply.object == "text_completion"
    assert reply.choices[0].text and reply.choices[0].finish_reason in ("stop", "length")
    streamed = "".join(c.choices[0].text for c in complete(client, stream=True))
    assert streamed == reply.choices[0].text


def test_prompt_forms_agree(server, client):
    tokens = post(server, "/tokenize", {"content": "Once upon a time", "add_special": True}).json()["tokens"]
    text = complete(client).choices[0].text
    assert complete(client, prompt=tokens).choices[0].text == text
    batch = complete(client, prompt=["Once upon a time", "The sky is", "Once upon a time"]).choices
    assert [c.index for c in batch] == [0, 1, 2]
    assert batch[0].text == batch[2].text == text
    assert complete(client, prompt=[tokens, tokens]).choices[1].text == text


def test_echo(client):
    text = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == "Once upon a time" + text
    assert "".join(c.choices[0].text for c in complete(client, echo=True, stream=True)) == "Once upon a time" + text
    assert complete(client, echo=True, max_tokens=0).choices[0].text == "Once upon a time"


def test_legacy_logprobs(client):
    choice = complete(client, logprobs=3, max_tokens=6).choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
    assert "".join(logprobs.tokens) == choice.text
    assert all(len(top) == 3 for top in logprobs.top_logprobs)
    for offset, token in zip(logprobs.text_offset, logprobs.tokens):
        assert choice.text[offset: offset + len(token)] == token


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "field, value",
    [("temperature", 3), ("temperature", "hot"), ("top_p", -1), ("n", 0), ("max_tokens", "x"), ("stop", 5),
     ("response_format", {"type": "yaml"}), ("messages", []), ("logit_bias", {"x": 1})],
)
def test_bad_fields(client, field, value, stream):
    body = {"model": "tiny", "messages": HELLO, "stream": stream, field: value}
    with pytest.raises(openai.BadRequestError) as info:
        client.post("/chat/completions", body=body, cast_to=object)
    error = info.value
    assert error.status_code == 400
    assert error.param.split(".")[0] == field
    assert error.type == "invalid_request_error"
    assert error.code and field in error.message


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_prompt(client, stream):
    with pytest.raises(openai.BadRequestError) as info:
        complete(client, prompt="word " * 4 * N_CTX, stream=stream)
    assert info.value.code == "context_length_exceeded"
    assert info.value.type == "exceed_context_size_error"
    assert info.value.body["n_ctx"] == N_CTX and info.value.body["n_prompt_tokens"] > N_CTX


def test_image_is_refused(client):
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    with pytest.raises(openai.BadRequestError) as info:
        chat(client, messages=[{"role": "user", "content": parts}])
    assert info.value.param == "messages[0].content[1]"


def test_broken_json(server):
    for body in (b"", b"{", b"[]", b'{"messages": \xff}', b"{" * 100000):
        reply = requests.post(server.url + "/v1/chat/completions", data=body, headers=JSON_TYPE, timeout=10)
        assert reply.status_code == 400, body[:20]
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_request_id_is_returned(server):
    reply = post(server, "/v1/completions", {"prompt": "x", "max_tokens": 1}, headers={"X-Request-Id": "me-42"})
    assert reply.headers["X-Request-Id"] == "me-42"
    assert post(server, "/v1/completions", {"prompt": "x", "max_tokens": 1}).headers["X-Request-Id"]


def test_paths_without_v1(server):
    assert post(server, "/chat/completions", {"messages": HELLO, "max_tokens": 1}).status_code == 200
    assert post(server, "/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200


# ---- many clients, lost clients --------------------------------------------------------------------------------------


def test_parallel_streams(server, client):
    alone = [deltas(chat(client, messages=[{"role": "user", "content": f"Count to {i}."}], stream=True)) for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(
            lambda i: deltas(chat(client, messages=[{"role": "user", "content": f"Count to {i}."}], stream=True)), range(16)))
    assert together == alone
    server.wait_idle(5)


@pytest.mark.parametrize("stream", [True, False])
def test_lost_client_stops_the_work(server, stream):
    server.wait_idle(10)
    body = json.dumps({"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    request = head % len(body) + body
    cancelled = server.metric("weir:requests_cancelled_total")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request)
        deadline = time.monotonic() + 10
        while server.metric("vllm:num_requests_running") == 0:
            assert time.monotonic() < deadline, "the request never ran"
            time.sleep(0.01)
        if stream:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
    server.wait_idle(2)
    assert server.metric("weir:requests_cancelled_total") == cancelled + 1
    tokens = server.metric("llamacpp:tokens_predicted_total")
    time.sleep(0.3)
    assert server.metric("llamacpp:tokens_predicted_total") == tokens


def test_lost_client_with_many_choices(server):
    server.wait_idle(10)
    with post(server, "/v1/completions", {"prompt": ["a", "b"], "n": 3, "max_tokens": 1500, "ignore_eos": True, "stream": True,
                                          "seed": 1}, stream=True) as reply:
        next(reply.iter_content(16))
    server.wait_idle(3)


def test_shutdown_ends_answers_with_an_error(tmp_path):
    server = Server(tmp_path, "--drain-timeout", "0")
    body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        whole = pool.submit(post, server, "/v1/completions", body)
        streamed = pool.submit(post, server, "/v1/completions", {**body, "stream": True})
        deadline = time.monotonic() + 10
        while server.metric("vllm:num_requests_running") < 2:
            assert time.monotonic() < deadline, "the requests never ran"
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "shutting_down"
        frames = streamed.result().text.split("\n\n")
    assert frames[-2] == "data: [DONE]"
    assert json.loads(frames[-3][len("data: "):])["error"]["code"] == "shutting_down"


def test_shutdown_lets_answers_end(tmp_path):
    server = Server(tmp_path)
    body = {"prompt": "Once", "max_tokens": 60, "ignore_eos": True, "seed": 3}
    alone = post(server, "/v1/completions", body).json()["choices"][0]["text"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server, "/v1/completions", body)
        deadline = time.monotonic() + 10
        while server.metric("vllm:num_requests_running") < 1 and not answer.done():
            assert time.monotonic() < deadline, "the request never ran"
        server.process.send_signal(signal.SIGTERM)
        assert answer.result().status_code == 200
        assert answer.result().json()["choices"][0]["text"] == alone
    assert server.process.wait(timeout=10) == 0


def test_a_second_signal_ends_at_once(tmp_path):
    server = Server(tmp_path)
    with post(server, "/v1/completions", {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}, stream=True) as reply:
        content = reply.iter_content(16)  # kept: the connection is closed with it
        next(content)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None and requests.get(server.url + "/health", timeout=5).status_code == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=1) == 128 + signal.SIGTERM


# ---- native endpoints ------------------------------------------------------------------------------------------------


def test_tokenize(server):
    plain = post(server, "/tokenize", {"content": "Hello world"}).json()["tokens"]
    assert plain and all(isinstance(t, int) for t in plain)
    assert post(server, "/detokenize", {"tokens": plain}).json() == {"content": "Hello world"}
    pieces = post(server, "/tokenize", {"content": "Hello world", "with_pieces": True}).json()["tokens"]
    assert [p["id"] for p in pieces] == plain
    assert "".join(p["piece"] for p in pieces) == "Hello world"
    split = post(server, "/tokenize", {"content": "\U0001f9ff", "with_pieces": True}).json()["tokens"]
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in split)
    assert raw.decode().strip() == "\U0001f9ff"
    assert post(server, "/tokenize", {"content": ""}).json() == {"tokens": []}
    for body in ({}, {"content": 5}, {"content": "x", "add_special": 1}):
        assert post(server, "/tokenize", body).status_code == 400
    for body in ({}, {"tokens": 5}, {"tokens": ["x"]}, {"tokens": [-1]}, {"tokens": [10**9]}):
        assert post(server, "/detokenize", body).status_code == 400


def test_apply_template(server):
    reply = post(server, "/apply-template", {"messages": HELLO}).json()
    assert "Say hello." in reply["prompt"]
    assert post(server, "/apply-template", {"messages": 5}).status_code == 400


def test_props(server):
    props = requests.get(server.url + "/props", timeout=5).json()
    assert props["model_path"] == MODEL
    assert props["total_slots"] > 0
    assert props["default_generation_settings"]["n_ctx"] == N_CTX
    assert props["chat_template"] and "build_info" in props and "bos_token" in props and "eos_token" in props


def test_keys_and_unknown_paths(tmp_path):
    """A key is taken from either header; what is not there is refused in OpenAI's shape."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([BINARY, "serve", "-m", MODEL, "--port", str(port), "--api-key", "secret", "-c", "256"],
                                   stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    if requests.get(url + "/health", timeout=2).status_code == 200:
                        break
                except requests.ConnectionError:
                    pass
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            models = url + "/v1/models"
            assert requests.get(models, timeout=5).status_code == 401
            assert requests.get(models, headers={"X-Api-Key": "wrong"}, timeout=5).status_code == 401
            assert requests.get(models, headers={"X-Api-Key": "secret"}, timeout=5).status_code == 200
            assert requests.get(models, headers={"Authorization": "Bearer secret"}, timeout=5).status_code == 200
            with pytest.raises(openai.AuthenticationError):
                openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0).models.list()
            key = {"X-Api-Key": "secret"}
            missing = requests.get(url + "/v1/nothing", headers=key, timeout=5)
            assert missing.status_code == 404 and missing.json()["error"]["type"]
            wrong = requests.put(models, headers=key, timeout=5)
            assert wrong.status_code == 405 and "GET" in wrong.headers["Allow"] and wrong.json()["error"]["message"]
        finally:
            process.terminate()
            assert process.wait(30) == 0


# ---- answers of a given shape ------------------------------------------------------------------------------------------------

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
                                           "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
          "required": ["name", "age", "tags"], "additionalProperties": False}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_json_schema(client, temperature):
    jsonschema = pytest.importorskip("jsonschema")
    answer = chat(client, max_tokens=200, temperature=temperature, seed=3, messages=[{"role": "user", "content": "Make up a person, in JSON."}],
                  response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}})
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)


def test_json_object_streamed(client):
    parts = chat(client, max_tokens=300, temperature=1, seed=1, stream=True, response_format={"type": "json_object"})
    text, reason = "", None
    for part in parts:
        text += part.choices[0].delta.content or ""
        reason = part.choices[0].finish_reason or reason
    assert reason in ("stop", "length")
    assert text.startswith("{")
    if reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_shape_that_is_cut_says_so(client):
    answer = chat(client, max_tokens=3, response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}})
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("body, pattern", [
    ({"grammar": 'root ::= "yes" | "no"'}, r"yes|no"),
    ({"guided_choice": ["red", "green"]}, r"red|green"),
    ({"guided_regex": "[0-9]{4}-[0-9]{2}"}, r"[0-9]{4}-[0-9]{2}"),
    ({"json_schema": {"type": "boolean"}}, r"true|false"),
    ({"structured_outputs": {"regex": "[A-C]{3}"}}, r"[A-C]{3}"),
])
def test_other_ways_to_ask(client, body, pattern):
    answer = chat(client, extra_body=body)
    assert re.fullmatch(pattern, answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"


def test_a_schema_that_does_not_compile_is_refused_before_the_stream(client):
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, stream=True, response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": schema}})
    assert refused.value.param == "response_format.json_schema.schema"
    assert "uniqueItems" in str(refused.value)


def test_every_sampler_at_once(client):
    body = {"samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"], "typical_p": 0.9, "top_n_sigma": 2,
            "xtc_probability": 0.5, "dry_multiplier": 0.8, "dynatemp_range": 0.3, "repeat_penalty": 1.1, "dry_sequence_breakers": ["\n"]}
    first, again = (chat(client, temperature=1, seed=7, extra_body=body).choices[0].message.content for _ in range(2))
    assert first == again
    assert chat(client, temperature=1, seed=7, extra_body={"mirostat": 2, "mirostat_tau": 3}).choices[0].message.content


# ---- tools -------------------------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": {
              "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
              "required": ["city", "days"]}}},
         {"type": "function", "function": {"name": "clock", "parameters": {
              "type": "object", "properties": {"zone": {"$ref": "#/$defs/zone"}}, "required": ["zone"], "$defs": {"zone": {"enum": ["UTC", "CET"]}}}}}]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
@pytest.mark.parametrize("temperature", [0, 2])
def test_a_call_that_must_be_made(client, choice, temperature):
    jsonschema = pytest.importorskip("jsonschema")
    answer = chat(client, tools=TOOLS, tool_choice=choice, max_tokens=200, temperature=temperature, seed=5)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function" and call.id.startswith("call_")
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    assert choice == "required" or call.function.name == "clock"


def test_a_streamed_call(client):
    parts = list(chat(client, tools=TOOLS, tool_choice="required", max_tokens=200, seed=5, stream=True))
    calls = [call for part in parts for call in part.choices[0].delta.tool_calls or []]
    assert calls[0].index == 0 and calls[0].id and calls[0].type == "function" and calls[0].function.name in ("weather", "clock")
    json.loads("".join(call.function.arguments or "" for call in calls))
    assert parts[-1].choices[0].finish_reason == "tool_calls"
    assert not any(part.choices[0].delta.content for part in parts)


def test_a_call_that_is_cut_is_text(client):
    answer = chat(client, tools=TOOLS, tool_choice="required", max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_tools_need_not_be_used(client):
    answer = chat(client, tools=TOOLS, parallel_tool_calls=False)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert chat(client, tools=TOOLS, tool_choice="none").choices[0].message.tool_calls is None
