"""What operators see of a server, and how it ends: log lines, metrics, slots, refusals, time limits, signals; against mock_worker.

    test_manners.py MOCK_WORKER

Standard library only.
"""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from program import check, run

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Server:
    def __init__(self, *flags):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([sys.argv[1], "--worker", "0", *map(str, flags)], stdout=subprocess.PIPE, stderr=self.log)
        self.port = int(self.process.stdout.readline())
        while self.call("GET", "/health")[0] != 200:
            time.sleep(0.02)

    def send(self, method, path, body=None, headers=()):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: mock", "Connection: close", *headers]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        s.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return s

    @staticmethod
    def read(s):
        out = b""
        try:
            while chunk := s.recv(65536):
                out += chunk
        except OSError:
            pass
        s.close()
        head, _, body = out.partition(b"\r\n\r\n")
        if b"chunked" in head:
            whole = b""
            while body:
                size, _, body = body.partition(b"\r\n")
                whole += body[:int(size, 16)]
                body = body[int(size, 16) + 2:]
            body = whole
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head.decode().split("\r\n")[1:])}
        return (int(head.split()[1]) if head else 0), headers, body.decode()

    def call(self, method, path, body=None, headers=()):
        return self.read(self.send(method, path, body, headers))

    def lines(self):
        self.log.seek(0)
        return self.log.read().decode().splitlines()

    def line_with(self, text):
        for _ in range(100):
            found = [line for line in self.lines() if text in line]
            if found:
                return found[0]
            time.sleep(0.02)
        return ""

    def metric(self, name):
        found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", self.call("GET", "/metrics")[2], re.M)
        return float(found.group(1)) if found else None

    def wait_for(self, name, value):
        for _ in range(200):
            if self.metric(name) == value:
                return True
            time.sleep(0.02)
        return False

    def end(self, number=signal.SIGTERM, code=0, within=2.0):
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        check(self.process.wait(20) == code, f"exit code {self.process.returncode}, not {code}")
        check(time.monotonic() - began < within, f"ending took {time.monotonic() - began:.2f} s")


def completion(prompt="say:ab", **more):
    return {"prompt": prompt, "max_tokens": 8, **more}


def test_ids_and_log_lines():
    s = Server("--delay-ms", 5)
    _, headers, _ = s.call("POST", "/v1/completions", completion(), ("X-Request-Id: mine-1", f"traceparent: {TRACE}"))
    check(headers.get("x-request-id") == "mine-1", f"the request id is returned: {headers}")
    line = s.line_with("request_id=mine-1")
    check(re.search(r" INFO request method=POST path=/v1/completions status=200 request_id=mine-1 ", line) is not None, f"a line: {line}")
    check(f" traceparent={TRACE} " in line and " n_prompt=6 " in line and " n_output=2 " in line and " end=eos" in line, f"its fields: {line}")
    times = {k: float(v) for k, v in re.findall(r" (\w+_ms)=(\S+)", line)}
    check(set(times) == {"total_ms", "headers_ms", "first_token_ms", "queue_ms", "prefill_ms", "decode_ms"}, f"its times: {times}")
    check(times["total_ms"] >= times["first_token_ms"] >= 5, f"times make sense: {times}")
    check(sum("request_id=mine-1" in line for line in s.lines()) == 1, "one line a request")
    _, headers, _ = s.call("POST", "/v1/completions", completion(stream=True), ("X-Request-Id: two words", "traceparent: 00-abc-def-01"))
    made = headers.get("x-request-id", "")
    check(re.fullmatch(r"req-[0-9a-f]{24}", made) is not None, f"an id of ours instead of one that is none: {made}")
    check("traceparent" not in s.line_with(made), "a malformed traceparent is ignored")
    s.call("POST", "/v1/completions", {"prompt": 7}, ("X-Request-Id: bad",))
    check("status=400" in s.line_with("request_id=bad"), "a refusal has a line")
    gone = s.send("POST", "/v1/completions", completion("x", max_tokens=2000), ("X-Request-Id: gone",))
    check(s.wait_for("vllm:num_requests_running", 1), "it runs")
    gone.close()
    line = s.line_with("request_id=gone")
    check("status=499" in line and "client=gone" in line and "end=E_CANCELLED" in line, f"a client that left: {line}")
    check(not any("path=/metrics" in line for line in s.lines()), "what only looks leaves no line")
    s.end()


def test_slots():
    s = Server("--delay-ms", 20, "--parallel", 3)
    streams = [s.send("POST", "/v1/completions", completion("x" * 5, max_tokens=1000), (f"X-Request-Id: slot-{i}",)) for i in range(2)]
    check(s.wait_for("vllm:num_requests_running", 2), "both run")
    time.sleep(0.2)
    slots = json.loads(s.call("GET", "/slots")[2])
    check(len(slots) == 3 and [x["is_processing"] for x in slots] == [True, True, False], f"slots: {slots}")
    check([x["request_id"] for x in slots[:2]] == ["slot-0", "slot-1"] and slots[0]["id_task"] < slots[1]["id_task"], f"in their order: {slots}")
    for x in slots[:2]:
        token = x["next_token"][0]
        check(x["n_prompt_tokens"] == 5 and token["n_decoded"] > 1 and token["n_decoded"] + token["n_remain"] == 1000, f"a slot: {x}")
    for stream in streams:
        stream.close()
    s.end()


def test_metrics():
    s = Server("--delay-ms", 5)
    for _ in range(3):
        s.call("POST", "/v1/completions", completion())
    text = s.call("GET", "/metrics")[2]
    # The names that the inference extension of the Kubernetes Gateway API reads when nothing is configured.
    for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
        check(re.search(rf'^{name}{{model_name="mock"}} 0$', text, re.M) is not None, name)
    blocks = re.search(r'^vllm:cache_config_info{model_name="mock",block_size="32",num_gpu_blocks="(\d+)",cache_dtype="f16/q8_0"} 1$', text, re.M)
    check(blocks is not None and int(blocks.group(1)) == 4096 * 64 // 32, "the cache's blocks")
    for name, n in (("time_to_first_token_seconds", 3), ("inter_token_latency_seconds", 3), ("time_per_output_token_seconds", 3),
                    ("e2e_request_latency_seconds", 3), ("request_queue_time_seconds", 3), ("request_prefill_time_seconds", 3),
                    ("request_decode_time_seconds", 3), ("request_inference_time_seconds", 3), ("request_time_per_output_token_seconds", 3)):
        count = re.search(rf'^vllm:{name}_count{{model_name="mock"}} (\d+)$', text, re.M)
        check(count is not None and int(count.group(1)) == n, f"{name}: {count and count.group(1)}, not {n}")
        buckets = [int(v) for v in re.findall(rf'^vllm:{name}_bucket{{model_name="mock",le="[^"]+"}} (\d+)$', text, re.M)]
        check(len(buckets) > 10 and buckets == sorted(buckets) and buckets[-1] == n, f"the buckets of {name}")
    check(s.metric("process_cpu_seconds_total") > 0, "processor time")
    types = re.findall(r"^# TYPE (\S+) ", text, re.M)
    check(len(types) == len(set(types)), "each metric stands once")
    s.end()


def test_refusals_say_when_to_come_again():
    s = Server("--delay-ms", 300, "--queue", 4)
    streams = [s.send("POST", "/v1/completions", completion("say:abcdefgh", max_tokens=8)) for _ in range(5)]
    check(s.wait_for("vllm:num_requests_waiting", 4), "the queue is full")
    time.sleep(1.5)
    status, headers, body = s.call("POST", "/v1/completions", completion())
    # Nothing has ended yet: as long again as the server has been there.
    check(status == 429 and 1 <= int(headers.get("retry-after", 0)) <= 4, f"{status} {headers}")
    check(json.loads(body)["error"]["code"] == "queue_full", body)
    check(s.metric("weir:requests_refused_total") == 1, "a refusal is counted")
    check(s.read(streams[0])[0] == 200 and s.read(streams[1])[0] == 200, "those in the queue are answered")
    streams += [s.send("POST", "/v1/completions", completion("say:abcdefgh", max_tokens=8)) for _ in range(2)]
    check(s.wait_for("vllm:num_requests_waiting", 4), "the queue is full again")
    status, headers, _ = s.call("POST", "/v1/completions", completion())
    # Two have ended in 5 s or a little more: the four that wait take two times as long.
    check(status == 429 and 7 <= int(headers.get("retry-after", 0)) <= 20, f"{status} {headers}")
    for stream in streams[2:]:
        stream.close()
    s.end()


def test_time_limits():
    s = Server("--delay-ms", 50, "--timeout-ms", 400)
    status, _, body = s.call("POST", "/v1/completions", completion("x", max_tokens=1000))
    check(status == 504 and json.loads(body)["error"]["code"] == "timeout", f"the server's limit: {status} {body}")
    began = time.monotonic()
    status, _, _ = s.call("POST", "/v1/completions", completion("x", max_tokens=1000, timeout=0.2))
    check(status == 504 and 0.2 <= time.monotonic() - began < 0.39, f"a request's own, shorter: {time.monotonic() - began:.2f} s")
    status, _, _ = s.call("POST", "/v1/completions", completion("x", max_tokens=20, timeout=20))
    check(status == 200, f"a request's own, longer: {status}")
    for bad in (0, -1, "1", 1e9, True):
        status, _, body = s.call("POST", "/v1/completions", completion(timeout=bad))
        check(status == 400 and json.loads(body)["error"]["param"] == "timeout", f"timeout {bad!r}: {status} {body}")
    stream = s.call("POST", "/v1/completions", completion("x", max_tokens=1000, stream=True))[2]
    check('"code":"timeout"' in stream and stream.endswith("data: [DONE]\n\n"), f"a stream ends with the error: {stream[-200:]}")
    s.end()


def test_drain():
    s = Server("--delay-ms", 50, "--drain-ms", 10000)
    running = s.send("POST", "/v1/completions", completion("x", max_tokens=30, stream=True))
    waiting = s.send("POST", "/v1/completions", completion("say:queued", max_tokens=20))
    check(s.wait_for("vllm:num_requests_waiting", 1), "one runs, one waits")
    s.process.send_signal(signal.SIGTERM)
    check(s.line_with("draining running=1 waiting=1") != "", "the log says so")
    status, _, body = s.call("GET", "/health")
    check(status == 503 and "Shutting down" in body, f"not ready any more: {status} {body}")
    check(json.loads(s.call("GET", "/v1/ready")[2])["ready"] is False, "not ready any more")
    status, headers, body = s.call("POST", "/v1/completions", completion())
    check(status == 503 and json.loads(body)["error"]["code"] == "shutting_down" and headers.get("connection") == "close", f"no new jobs: {status} {body}")
    status, _, body = s.read(running)
    check(status == 200 and body.count('"text"') >= 30 and body.endswith("data: [DONE]\n\n") and "error" not in body, "what ran ends as it would have")
    status, _, body = s.read(waiting)
    check(status == 200 and json.loads(body)["choices"][0]["text"] == "queued", f"what waited, too: {status} {body}")
    s.end(within=1)


def test_drain_has_a_limit():
    s = Server("--delay-ms", 50, "--drain-ms", 500)
    running = s.send("POST", "/v1/completions", completion("x", max_tokens=3000, stream=True))
    check(s.wait_for("vllm:num_requests_running", 1), "it runs")
    began = time.monotonic()
    s.process.send_signal(signal.SIGTERM)
    _, _, body = s.read(running)
    check(0.4 < time.monotonic() - began < 1.5, f"cancelled after the limit: {time.monotonic() - began:.2f} s")
    check('"code":"shutting_down"' in body and body.endswith("data: [DONE]\n\n"), "its stream has its terminal event")
    s.end(within=1)
    check(s.line_with("drained cancelled=1") != "", "the log says so")


def test_no_drain_when_nothing_runs():
    s = Server("--drain-ms", 10000)
    s.end(within=0.5)
    s = Server("--drain-ms", 10000)
    s.end(signal.SIGINT, within=0.5)


def test_idle():
    """A server to which nobody speaks takes no processor time."""
    s = Server("--delay-ms", 5)
    s.call("POST", "/v1/completions", completion())
    time.sleep(0.3)

    def cpu_ns():
        total = 0
        for task in os.listdir(f"/proc/{s.process.pid}/task"):
            total += int(open(f"/proc/{s.process.pid}/task/{task}/schedstat").read().split()[0])
        return total

    before = cpu_ns()
    time.sleep(3)
    ms = (cpu_ns() - before) / 1e6
    check(ms < 10, f"{ms:.2f} ms of processor time in 3 idle seconds")
    print(f"idle: {ms:.2f} ms of processor time in 3 s", flush=True)
    s.end()


def test_delete():
    """DELETE of a job ends it in the queue and while it runs."""
    s = Server("--delay-ms", 50)
    jobs = [json.loads(s.call("POST", "/v1/jobs", {"prompt": "x", "max_tokens": 2000})[2]) for _ in range(2)]
    check(s.wait_for("vllm:num_requests_waiting", 1), "one runs, one waits")
    for job in reversed(jobs):
        check(s.call("DELETE", "/v1/jobs/" + job["job_id"])[0] == 200, "it can be cancelled")
    check(s.wait_for("vllm:num_requests_running", 0) and s.metric("vllm:num_requests_waiting") == 0, "both are gone")
    check(s.metric("weir:requests_cancelled_total") == 2, "both are counted")
    check(s.metric("vllm:kv_cache_usage_perc") == 0, "the cache is free")
    s.end()


run([f for name, f in list(globals().items()) if name.startswith("test_")])
