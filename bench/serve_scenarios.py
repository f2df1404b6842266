"""The scenarios of bench/serve: each starts a server, has the load generator run a plan, and gives samples, dictionaries of figures.

Times in a sample are in milliseconds where the name ends in _ms, else in seconds. SCENARIOS at the end says what each measures."""
import random
import statistics
import subprocess
import sys
import time

from serving import Prompts, ask, gaps, metric_of, n_output, percentile, run_plan, whole

PROMPT, OUTPUT = 230, 128


def spread_ms(name, seconds):
    """p50, p99 and the greatest of a list of seconds, in milliseconds."""
    if not seconds:
        return {}
    return {f"{name}_p50_ms": 1e3 * percentile(seconds, 50), f"{name}_p99_ms": 1e3 * percentile(seconds, 99), f"{name}_max_ms": 1e3 * max(seconds)}


def first_token_s(results):
    return [r["first"] - r["start"] for r in results]


def headers_s(results):
    return [r["headers"] - r["start"] for r in results if "headers" in r]


def span(results):
    return max(r["end"] for r in results) - min(r["start"] for r in results)


def warm_up(server, prompts):
    whole(run_plan(server, [ask(prompts.make(PROMPT), 16, client=i) for i in range(2)]))


def serve(o, contestant, n_parallel, n_ctx, *extra):
    contestant.server = contestant.start(o, n_parallel, n_ctx, *extra)
    return contestant.server


# ---- what streams cost ---------------------------------------------------------------------------------------------------


def throughput(o, contestant):
    """Closed loop: so many clients, each of which asks again when it was answered."""
    for n in o.streams:
        with serve(o, contestant, n, 512) as server:
            prompts = Prompts(server, 1000 * o.seed + n)
            warm_up(server, prompts)
            n_requests = max(n, o.least_requests)
            plan = [ask(prompts.make(PROMPT), OUTPUT, seed=i, client=i % n) for i in range(n_requests)]
            results = whole(run_plan(server, plan))
            first = first_token_s(results)
            yield {"streams": n, "requests": n_requests, "prompt_tokens": statistics.mean(r["usage"]["prompt_tokens"] for r in results),
                   "tokens_per_s": sum(map(n_output, results)) / span(results), "first_token_mean": statistics.mean(first),
                   **spread_ms("gap", [g for r in results for g in gaps(r)]), **spread_ms("headers", headers_s(results))}


def arrivals(o, contestant):
    """16 requests within 16 ms."""
    n = 16
    with serve(o, contestant, n, 512) as server:
        prompts = Prompts(server, o.seed)
        warm_up(server, prompts)
        results = whole(run_plan(server, [ask(prompts.make(PROMPT), OUTPUT, at=0.001 * i, seed=i) for i in range(n)]))
        first = [r["first"] for r in results]
        turned = sum(first[i] > first[j] for i in range(n) for j in range(i + 1, n))
        seconds = first_token_s(results)
        yield {"streams": n, "first_token_mean": statistics.mean(seconds), "first_token_p50": percentile(seconds, 50),
               "first_token_p99": percentile(seconds, 99), "pairs_out_of_order": turned, "pairs": n * (n - 1) // 2,
               "tokens_per_s": sum(map(n_output, results)) / span(results)}


def headers(o, contestant):
    """A queue that only grows: far more arrive than can be served; all leave after a while."""
    n, rate, stay = (400, 100, 8) if contestant.is_weir else (64, 100, 30)
    with serve(o, contestant, 32, 512) as server:
        prompts = Prompts(server, o.seed)
        warm_up(server, prompts)
        plan = [ask(prompts.make(PROMPT), OUTPUT, at=i / rate, seed=i, leave_s=stay) for i in range(n)]
        results = run_plan(server, plan)
        seconds = [r["headers"] - r["start"] if "headers" in r else float("inf") for r in results]
        never = sum(s == float("inf") for s in seconds)
        yield {"requests": n, "arrivals_per_s": rate, "without_headers": never, "left_after_s": stay,
               **spread_ms("headers", [min(s, stay) for s in seconds])}


def interference(o, contestant):
    """8 streams run; then a prompt of 4,000 tokens comes."""
    n, long_prompt, quiet = 8, 4000, 10.0 if contestant.is_weir else 20.0
    with serve(o, contestant, n + 1, 4608) as server:
        prompts = Prompts(server, o.seed)
        warm_up(server, prompts)
        plan = [ask(prompts.make(64), 3000, seed=i, leave_s=110) for i in range(n)] + [ask(prompts.make(long_prompt), 4, at=quiet)]
        # The streams leave when the long prompt has been answered: the generator runs it to the end, so they have a limit of time.
        stay = o.interference_s or (25 if contestant.is_weir else 60)
        for line in plan[:n]:
            line["leave_s"] = stay
        results = run_plan(server, plan)
        long = whole(results[n:])[0]
        begin = max(r["tokens"][3] for r in results[:n])
        calm = [g for r in results[:n] for g in gaps(r, begin, long["start"])]
        # A gap that ends after the long prompt's first token may have begun during its prefill.
        hit = [g for r in results[:n] for g in gaps(r, long["start"], long["first"] + 2 * percentile(calm, 50))]
        frozen = 0 if hit else long["first"] - long["start"]
        worst = hit or [frozen]
        yield {"streams": n, "long_prompt_tokens": long["usage"]["prompt_tokens"], "long_first_token": long["first"] - long["start"],
               "gaps_in_calm": len(calm), "gaps_in_prefill": len(hit), **spread_ms("calm_gap", calm), **spread_ms("prefill_gap", worst),
               "p99_to_calm_median": percentile(worst, 99) / percentile(calm, 50)}


def prefix(o, contestant):
    """A prompt of 2,000 tokens; then others that begin with the same 2,000."""
    n = 4
    with serve(o, contestant, 2, 3072) as server:
        prompts = Prompts(server, o.seed)
        warm_up(server, prompts)
        plan = []
        for i in range(n):
            common = prompts.make(2000)
            plan += [ask(common + " " + prompts.make(12), 8, client=0), ask(common + " " + prompts.make(12), 8, client=0)]
        results = whole(run_plan(server, plan))
        seconds = first_token_s(results)
        cached = [((r["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0) for r in results]
        cold, warm = statistics.median(seconds[0::2]), statistics.median(seconds[1::2])
        yield {"prompt_tokens": statistics.mean(r["usage"]["prompt_tokens"] for r in results), "cold_ms": 1e3 * cold, "warm_ms": 1e3 * warm,
               "warm_to_cold": warm / cold, "cached_tokens": statistics.mean(cached[1::2])}


# ---- those that go away --------------------------------------------------------------------------------------------------


def freed_after(results, left, name):
    """Seconds from a client's leaving to the first look at the metrics that shows nothing running, and the KV tokens then."""
    for r in results:
        if r["start"] < left["end"] or metric_of(r["body"], "vllm:num_requests_running") != 0:
            continue
        return r["end"] - left["end"], metric_of(r["body"], name)
    return float("inf"), None


def cancel(o, contestant):
    """A client leaves in the middle of a prefill of 4,000 tokens, and in the middle of an answer; /metrics is read all the time."""
    name = "llamacpp:kv_cache_tokens"
    with serve(o, contestant, 4, 4608) as server:
        prompts = Prompts(server, o.seed)
        warm_up(server, prompts)
        for where, line in (("prefill", lambda at: ask(prompts.make(4000), 8, at=at, leave_s=1.0)),
                            ("decode", lambda at: ask(prompts.make(PROMPT), 2000, at=at, leave_tokens=30))):
            rounds, period = 6, 3.0
            looks = [{"at": 0.004 * i, "client": 0, "path": "/metrics", "keep": True} for i in range(int(rounds * period / 0.004))]
            results = run_plan(server, [{**line(period * i), "client": 1 + i} for i in range(rounds)] + looks, "--stop-s", rounds * period)
            left, looks = results[:rounds], [r for r in results[rounds:] if r and r["outcome"] == "done"]
            if any(r["outcome"] != "left" for r in left):
                raise RuntimeError(f"a request in {where} was over before its client left")
            after = [freed_after(looks, r, name) for r in left]
            held = [max((metric_of(r["body"], name) or 0) for r in looks if left[i]["start"] < r["start"] < left[i]["end"]) for i in range(rounds)]
            yield {"where": where, "rounds": rounds, "look_every_ms": 1e3 * span(looks) / len(looks), "kv_tokens_held": statistics.median(held),
                   "kv_tokens_after": max(kv for _, kv in after), **spread_ms("stopped", [s for s, _ in after])}


# ---- too much ------------------------------------------------------------------------------------------------------------


def short(prompts, i, at, **plan):
    return ask(prompts.make(60), 32, at=at, seed=i, **plan)


def overload(o, contestant):
    """What the server can do with 16 clients; then ten times that for a minute, as a Poisson process."""
    seconds, queue = o.seconds or 60, 16
    with serve(o, contestant, 16, 512, "--max-queue", queue) as server:
        prompts, source = Prompts(server, o.seed), random.Random(o.seed)
        warm_up(server, prompts)
        full = [r for r in run_plan(server, [short(prompts, i, 0, client=i % 16) for i in range(800)], "--stop-s", 8) if r]
        capacity = len(whole(full)) / span(full)
        plan, at = [], 0.0
        while at < seconds:
            plan.append(short(prompts, len(plan), at))
            at += source.expovariate(10 * capacity)
        results, samples = run_plan(server, plan, watch=True)
        refused = [r for r in results if r["status"] == 429]
        accepted = whole([r for r in results if r["status"] != 429])
        first = [r for r in accepted if r["start"] < seconds / 3]
        last = [r for r in accepted if r["start"] > seconds * 2 / 3]
        begin = samples[0][0]
        early = [m for t, m, _ in samples if 5 < t - begin < 15]
        late = [m for t, m, _ in samples if t - begin > seconds - 10]
        yield {"capacity_requests_per_s": capacity, "offered_per_s": 10 * capacity, "seconds": seconds, "requests": len(results), "refused": len(refused),
               "accepted_per_s": len(accepted) / span(accepted), "max_queue": queue,
               "retry_after": sorted({r.get("retry_after", "none") for r in refused}), **spread_ms("refusal", [r["end"] - r["start"] for r in refused]),
               **spread_ms("accepted_headers", headers_s(accepted)),
               "accepted_s_p50_first_third": percentile([r["end"] - r["start"] for r in first], 50),
               "accepted_s_p50_last_third": percentile([r["end"] - r["start"] for r in last], 50),
               "accepted_s_p99_first_third": percentile([r["end"] - r["start"] for r in first], 99),
               "accepted_s_p99_last_third": percentile([r["end"] - r["start"] for r in last], 99),
               "memory_mb_early": statistics.mean(early) if early else None, "memory_mb_late": statistics.mean(late) if late else None}


def connections(o, contestant):
    """8 streams run in a server that computes 8 at once; then 2,000 more streams are opened, which wait."""
    n, more, opened, over = 8, o.connections, 6.0, 20.0
    with serve(o, contestant, n, 2048, "--max-queue", 2 * more) as server:
        prompts = Prompts(server, o.seed)
        warm_up(server, prompts)
        plan = [ask(prompts.make(40), 1900, seed=i, leave_s=over) for i in range(n)]
        run_plan(server, plan)  # the streams' KV cache takes memory as it is used: not a part of what a connection costs
        plan += [ask("Once", 4, at=opened + 4.0 * i / more, leave_s=over - opened) for i in range(more)]
        plan[n:] = [{**line, "leave_s": over - line["at"]} for line in plan[n:]]
        results, samples = run_plan(server, plan, watch=True)
        begin = samples[0][0]
        before = [m for t, m, _ in samples if 3 < t - begin < opened]
        after = [m for t, m, _ in samples if opened + 6 < t - begin < over - 1]
        streams, waiting = results[:n], results[n:]
        calm = [g for r in streams for g in gaps(r, 2.0, opened)]
        arriving = [g for r in streams for g in gaps(r, opened, opened + 4.5)]
        crowded = [g for r in streams for g in gaps(r, opened + 4.5, over)]
        yield {"connections": more, "opened": sum("headers" in r and r["status"] == 200 for r in waiting),
               "kb_each": 1e3 * (statistics.mean(after) - statistics.mean(before)) / more, **spread_ms("headers", headers_s(waiting)),
               **spread_ms("gap_before", calm), **spread_ms("gap_arriving", arriving), **spread_ms("gap_among_them", crowded)}


def slow(o, contestant):
    """16 streams, first all read as it comes, then 8 of them at 50 bytes a second: what the other 8 notice, and the memory."""
    n = 16
    with serve(o, contestant, n, 1024) as server:
        prompts = Prompts(server, o.seed)
        warm_up(server, prompts)
        sample = {}
        for name, rate in (("all_read", None), ("half_slow", 50)):
            plan = [ask(prompts.make(40), 600, seed=i, leave_s=12, **({"rate": rate} if rate and i % 2 else {})) for i in range(n)]
            results, samples = run_plan(server, plan, watch=True)
            sample |= spread_ms(f"gap_{name}", [g for r in results[0::2] for g in gaps(r, 2.0)])
            sample[f"memory_mb_{name}"] = max(m for _, m, _ in samples)
        yield {"streams": n, **sample}


# ---- manners -------------------------------------------------------------------------------------------------------------

SPIN = "import os\nwhile True: pass"


def busy(o, contestant):
    """Tokens a second while other processes spin."""
    for streams in (1, 8):
        with serve(o, contestant, 8, 1024) as server:
            prompts = Prompts(server, o.seed)
            warm_up(server, prompts)
            speeds = []
            for n_busy in (0, 1, 2):
                spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(n_busy)]
                try:
                    results = run_plan(server, [ask(prompts.make(16), 900, seed=i, leave_s=8) for i in range(streams)])
                finally:
                    for process in spinning:
                        process.kill()
                        process.wait()
                times = [t for r in results for t in r["tokens"] if t > 2.0]
                speeds.append(len(times) / (max(times) - 2.0))
            yield {"streams": streams, "idle_tokens_per_s": speeds[0], "one_busy_tokens_per_s": speeds[1], "two_busy_tokens_per_s": speeds[2],
                   "one_busy_share": speeds[1] / speeds[0], "two_busy_share": speeds[2] / speeds[0]}


def idle(o, contestant):
    """Processor time of a server to which nobody speaks, after it has answered something."""
    with serve(o, contestant, 4, 512) as server:
        warm_up(server, Prompts(server, o.seed))
        time.sleep(2)
        before = server.cpu_s()
        time.sleep(10)
        yield {"seconds": 10, "cpu_ms": 1e3 * (server.cpu_s() - before)}


# ---- open loop -----------------------------------------------------------------------------------------------------------


def read_lengths(path):
    """(prompt, output) tokens from lines of two numbers."""
    with open(path) as f:
        return [tuple(map(int, line.split()[:2])) for line in f if line.strip() and not line.startswith("#")]


def poisson(o, contestant):
    """Open loop: arrivals as a Poisson process at each rate, lengths drawn from a file."""
    lengths, seconds = read_lengths(o.lengths), o.seconds or 60
    for rate in o.rate:
        with serve(o, contestant, 16, 2048) as server:
            prompts, source = Prompts(server, o.seed), random.Random(o.seed)
            warm_up(server, prompts)
            plan, at = [], 0.0
            while at < seconds:
                prompt, output = source.choice(lengths)
                plan.append(ask(prompts.make(prompt), output, at=at, seed=len(plan)))
                at += source.expovariate(rate)
            results = run_plan(server, plan, "--limit-s", 200)
            done = [r for r in results if r["outcome"] == "done" and r["ended"] == "done"]
            if o.trace:
                o.write_trace(contestant, f"poisson-{rate:g}", results)
            yield {"rate": rate, "requests": len(results), "whole": len(done), "tokens_per_s": sum(map(n_output, done)) / span(done),
                   **spread_ms("first_token", first_token_s(done)), **spread_ms("gap", [g for r in done for g in gaps(r)]),
                   **spread_ms("whole", [r["end"] - r["start"] for r in done])}


# (name, function, whether llama-server runs it too)
SCENARIOS = {f.__name__: (f, rivals) for f, rivals in ((throughput, True), (arrivals, True), (headers, True), (interference, True), (prefix, True),
                                                       (cancel, False), (overload, False), (connections, False), (slow, True), (busy, True),
                                                       (idle, True), (poisson, True))}
