"""The load generator of bench/serve: what it sends, when, and what it tells, against mock_worker.

    test_serve_load.py MOCK_WORKER WEIR_SERVE_LOAD

Standard library only.
"""
import json
import signal
import subprocess
import sys
import time

from program import check, finish

mock = subprocess.Popen([sys.argv[1], "--worker", "0", "--delay-ms", "20", "--parallel", "4", "--queue", "4"], stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL)
port = mock.stdout.readline().decode().strip()


def run(plan, *arguments):
    text = "".join(json.dumps(line) + "\n" for line in plan)
    done = subprocess.run([sys.argv[2], "--port", port, *arguments], input=text, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return {r["i"]: r for r in map(json.loads, done.stdout.splitlines())}


def stream(prompt, n=50, **more):
    body = {"prompt": prompt, "max_tokens": n, "stream": True, "stream_options": {"include_usage": True}}
    return {"path": "/v1/completions", "body": body, **more}


while run([{"path": "/health"}])[0]["status"] != 200:
    pass

# One after the other of one client, whole.
r = run([stream("say:abc", client=0), stream("say:abcde", client=0), {"path": "/v1/models", "client": 0, "keep": True}])
check([r[i]["outcome"] for i in range(3)] == ["done"] * 3 and [r[i]["ended"] for i in range(3)] == ["done", "done", ""], f"whole answers: {r}")
check([len(r[i]["tokens"]) for i in range(3)] == [3, 5, 0], "the time of every token")
check(r[0]["usage"]["completion_tokens"] == 3 and r[1]["usage"]["completion_tokens"] == 5, "usage")
check(all(b - a >= 0.015 for t in (r[0]["tokens"], r[1]["tokens"]) for a, b in zip(t, t[1:])), f"times between tokens: {r[1]['tokens']}")
check(r[0]["start"] <= r[0]["connected"] <= r[0]["headers"] <= r[0]["first"] == r[0]["tokens"][0] <= r[0]["end"] <= r[1]["start"], "the order of times")
check(json.loads(r[2]["body"])["data"][0]["id"] == "mock", "a body that is kept")

# Open loop, and those that leave.
r = run([stream("say:a", at=0.2), stream("x", at=0.1, leave_tokens=3), stream("x", leave_s=0.25), stream("x", 300, at=5)], "--stop-s", "2")
check(0.2 <= r[0]["start"] < 0.3 and 0.1 <= r[1]["start"] < 0.2, f"arrivals: {r[0]['start']}, {r[1]['start']}")
check(r[1]["outcome"] == "left" and len(r[1]["tokens"]) == 3, f"left after three tokens: {r[1]}")
check(r[2]["outcome"] == "left" and 0.25 <= r[2]["end"] - r[2]["start"] < 0.35, f"left after 0.25 s: {r[2]}")
check(3 not in r, "not started after --stop-s")

# Refusals, errors, what is no HTTP, one that does not read, one that takes too long.
rest = ('requests_running{model_name="mock"} 0', 'requests_waiting{model_name="mock"} 0')
while not all(line in run([{"path": "/metrics", "keep": True}])[0]["body"] for line in rest):
    pass
r = run([stream("x", 30, client=i) for i in range(9)])
check(sorted(x["status"] for x in r.values()) == [200] * 8 + [429] and [x.get("retry_after") for x in r.values() if x["status"] == 429][0], f"{[(x['status'], x.get('retry_after')) for x in r.values()]}")
r = run([{"raw": "nonsense\r\n\r\n"}, {"path": "/v1/completions", "body": "{"}, stream("x", 20, rate=0, leave_s=0.5), stream("fail", 20),
         {"path": "/nowhere"}])
check(r[0]["status"] in (0, 400) and r[1]["status"] == 400 and r[4]["status"] == 404, f"errors: {r}")
check(r[2]["outcome"] in ("left", "cut") and r[2]["status"] == 0, f"nothing was read: {r[2]}")
check(r[3]["outcome"] == "done" and r[3]["ended"] == "error", f"a stream that ends with an error: {r[3]}")
r = run([stream("x", 3000)], "--limit-s", "0.5")
check(r[0]["outcome"] == "stuck" and len(r[0]["tokens"]) > 5, f"too long: {r[0]['outcome']}")

# A server that ends in between, and one that is not there.
load = subprocess.Popen([sys.argv[2], "--port", port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
load.stdin.write(json.dumps(stream("x", 3000)) + "\n" + json.dumps(stream("x", at=3)) + "\n")
load.stdin.close()
time.sleep(0.5)
mock.send_signal(signal.SIGKILL)
mock.wait()
r = {x["i"]: x for x in map(json.loads, load.stdout)}
check(r[0]["outcome"] == "cut" and r[0]["ended"] == "" and r[1]["outcome"] == "refused", f"a server that dies: {[x['outcome'] for x in r.values()]}")
finish()
