"""What bench/serve and bench/soak share: servers that are started and stopped, prompts, plans for the load generator, percentiles."""
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from rivals import CACHE, ROOT

LOAD = ROOT / "build" / "release" / "bench" / "weir-serve-load"
WEIR = ROOT / "build" / "release" / "src" / "cli" / "weir"
LLAMA_SERVER = CACHE / "llama.cpp" / "build-native" / "bin" / "llama-server"

WORDS = """time year people way day man thing woman life child world school state family student group country problem hand part place case week
company system program question work government number night point home water room mother area money story fact month lot right study book
eye job word business issue side kind head house service friend father power hour game line end member law car city community name president
team minute idea body information back parent face others level office door health person art war history party result change morning reason
research girl guy moment air teacher force education foot boy age policy music market sense nation plan college interest death experience
effect use class control field development role effort rate heart drug show leader light voice wife police mind price report decision son view
relationship town road arm difference value building action season society tax director position player record paper space ground form event
official matter center couple site project activity star table need court oil situation cost industry figure street image phone data picture
practice piece land product doctor wall patient worker news test movie north love support technology step baby computer type attention film
tree source hair window culture chance brother energy period course summer plant opportunity term letter condition choice rule daughter south
husband floor campaign material population call economy hospital church risk fire future bank island river mountain harbour engine winter""".split()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process, ready when /health says so. `with` ends it with SIGTERM."""

    def __init__(self, name, command, environment=None):
        self.name, self.port = name, free_port()
        self.command = [str(part) for part in command] + ["--port", str(self.port)]
        self.environment = {**os.environ, **(environment or {})}

    def __enter__(self):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=self.environment)
        self.pid = self.process.pid
        deadline = time.monotonic() + 120
        while True:
            try:
                self.get("/health")
                return self
            except (OSError, urllib.error.URLError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"{self.name} did not start: {self.text()[-600:]}") from None
                time.sleep(0.05)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as r:
            return r.read().decode()

    def post(self, path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as r:
            return json.load(r)

    def metric(self, name):
        return metric_of(self.get("/metrics"), name)

    def rss_mb(self):
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_s(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metric_of(text, name):
    """The first sample of a metric, or None."""
    for line in text.splitlines():
        if line.startswith(name) and line[len(name)] in " {":
            return float(line.rsplit(" ", 1)[1])
    return None


def weir_server(options, *extra):
    return Server("weir", [options.weir, "serve", "-m", options.model, "-t", options.threads, "--host", "127.0.0.1", *extra], )


def llama_server(options, n_parallel, n_ctx, *extra):
    """n_ctx of each slot."""
    return Server("llama-server", [options.llama_server, "-m", options.model, "-t", options.threads, "-np", n_parallel, "-c", n_parallel * n_ctx,
                                   "--host", "127.0.0.1", "--no-webui", "--metrics", "--cont-batching", *extra])


class Prompts:
    """Texts of a given number of tokens, no two of which begin alike."""

    def __init__(self, server, seed):
        self.random = random.Random(seed)
        sample = self.words(2000)
        n_tokens = len(server.post("/tokenize", {"content": sample})["tokens"])
        self.words_per_token = 2000 / n_tokens

    def words(self, n):
        text, sentence = [], 0
        for _ in range(n):
            word = self.random.choice(WORDS)
            text.append(word if sentence else word.capitalize())
            sentence += 1
            if sentence > 6 and self.random.random() < 0.2:
                text[-1] += "."
                sentence = 0
        return " ".join(text)

    def make(self, n_tokens):
        return self.words(max(1, round(n_tokens * self.words_per_token)))


def completion(prompt, n_output, seed=1, **more):
    """The body of a streaming completion of exactly n_output tokens."""
    return {"prompt": prompt, "max_tokens": n_output, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "seed": seed,
            "temperature": 0.8, **more}


def ask(prompt, n_output, at=0.0, seed=1, **plan):
    """A line of a plan: a streaming completion."""
    fields = plan.pop("fields", {})
    return {"at": at, "path": "/v1/completions", "body": completion(prompt, n_output, seed, **fields), **plan}


class Watch(threading.Thread):
    """Samples the memory of a server while a plan runs."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.over, self.samples = server, threading.Event(), []

    def run(self):
        while not self.over.wait(0.25):
            try:
                self.samples.append((time.monotonic(), self.server.rss_mb(), self.server.cpu_s()))
            except (OSError, IndexError):
                return


def cpu_total_s():
    """Processor time that all processes of the machine have had."""
    fields = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class Strangers:
    """`with`: how much of a processor went to others than the server and this program and its children, in `share`."""

    def __init__(self, server):
        self.server = server

    def own(self):
        t = os.times()
        return (self.server.cpu_s() if self.server.pid else 0) + t.user + t.system + t.children_user + t.children_system

    def __enter__(self):
        self.before = time.monotonic(), cpu_total_s(), self.own()
        return self

    def __exit__(self, *_):
        now = time.monotonic(), cpu_total_s(), self.own()
        self.share = ((now[1] - self.before[1]) - (now[2] - self.before[2])) / max(1e-3, now[0] - self.before[0])


def run_plan(server, plan, *arguments, watch=False):
    """The results of the load generator, in the plan's order, each with its line of the plan; None for those that were not started."""
    watcher = Watch(server) if watch else None
    if watcher:
        watcher.start()
    text = "".join(json.dumps(line) + "\n" for line in plan)
    with Strangers(server) as strangers:
        done = subprocess.run([LOAD, "--port", str(server.port), *map(str, arguments)], input=text, stdout=subprocess.PIPE, text=True, check=True)
    server.others_cpu = strangers.share
    if watcher:
        watcher.over.set()
        watcher.join()
    results = [None] * len(plan)
    for line in done.stdout.splitlines():
        result = json.loads(line)
        results[result["i"]] = {**result, "plan": plan[result["i"]]}
    return (results, watcher.samples) if watch else results


def percentile(values, p):
    """Nearest rank (0 <= p <= 100); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * p // 100) - 1))]


def whole(results):
    """Those that were answered completely; RuntimeError when one was not."""
    for r in results:
        if r is None or r["outcome"] != "done" or r["status"] != 200 or r["ended"] != "done":
            raise RuntimeError(f"not a whole answer: {json.dumps({k: v for k, v in (r or {}).items() if k not in ('plan', 'tokens')})}")
    return results


def gaps(result, begin=0.0, end=float("inf")):
    """Seconds between two tokens, of those gaps that end in the interval."""
    t = result["tokens"]
    return [b - a for a, b in zip(t, t[1:]) if begin <= b <= end]


def n_output(result):
    return result["usage"]["completion_tokens"]
