#!/usr/bin/env python3
"""Writes tests/unit/engine/sampler_cases.inc: sampler settings, logits and histories, and the exact probability of every token.

    scripts/gen_sampler_cases.py > tests/unit/engine/sampler_cases.inc

The reference is NumPy in double precision, straight from the definitions: everything sorted, nothing clever, no code shared with
weir. Needs numpy."""
import sys

import numpy as np

N_VOCAB = 48
BREAKER = 7  # the token whose text is a sequence breaker
DEFAULT = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
OFF = dict(temperature=1.0, dynatemp_range=0.0, dynatemp_exponent=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, top_n_sigma=0.0,
           xtc_probability=0.0, xtc_threshold=0.1, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0,
           penalty_last_n=64, dry_multiplier=0.0, dry_base=1.75, dry_allowed_length=2, dry_penalty_last_n=-1, mirostat=0,
           mirostat_tau=5.0, mirostat_eta=0.1)


def softmax(x):
    e = np.exp(x - np.max(x[np.isfinite(x)]))
    e[~np.isfinite(x)] = 0
    return e / e.sum()


def entropy(p):
    q = p[p > 0]
    return -(q * np.log(q)).sum()


def keep(x, ids):
    out = np.full_like(x, -np.inf)
    out[ids] = x[ids]
    return out


def ranked(x):
    order = np.lexsort((np.arange(len(x)), -x))
    return [i for i in order if np.isfinite(x[i])]


def penalties(x, s, history):
    n = s["penalty_last_n"]
    seen = history if n < 0 else history[len(history) - min(n, len(history)):]
    for i in set(seen):
        x[i] = x[i] / s["repetition_penalty"] if x[i] > 0 else x[i] * s["repetition_penalty"]
        x[i] -= list(seen).count(i) * s["frequency_penalty"] + s["presence_penalty"]
    return x


def dry(x, s, history):
    if s["dry_multiplier"] <= 0:
        return x
    n = s["dry_penalty_last_n"]
    window = list(history) if n < 0 else list(history)[len(history) - min(n, len(history)):]
    limit = next((i for i, t in enumerate(reversed(list(history))) if t == BREAKER), len(history))
    longest = {}
    for end in range(1, len(window)):  # window[:end] ends like the whole window; window[end] followed
        length = 0
        while length < end and length < limit and window[end - 1 - length] == window[-1 - length]:
            length += 1
        if length >= max(1, s["dry_allowed_length"]):
            longest[window[end]] = max(longest.get(window[end], 0), length)
    for token, length in longest.items():
        x[token] -= s["dry_multiplier"] * s["dry_base"] ** (length - s["dry_allowed_length"])
    return x


def top_n_sigma(x, s):
    if s["top_n_sigma"] <= 0:
        return x
    finite = x[np.isfinite(x)]
    return keep(x, x >= finite.max() - s["top_n_sigma"] * finite.std())


def top_k(x, s):
    return keep(x, ranked(x)[:s["top_k"]]) if s["top_k"] > 0 else x


def typical(x, s):
    if not 0 < s["typical_p"] < 1:
        return x
    p = softmax(x)
    ids = ranked(x)
    distance = {i: abs(-np.log(p[i]) - entropy(p)) for i in ids}
    kept, total = [], 0.0
    for i in sorted(ids, key=lambda i: (distance[i], i)):
        kept.append(i)
        total += p[i]
        if total > s["typical_p"]:
            break
    return keep(x, kept)


def top_p(x, s):
    if s["top_p"] >= 1:
        return x
    p, kept, total = softmax(x), [], 0.0
    for i in ranked(x):
        kept.append(i)
        total += p[i]
        if total >= s["top_p"]:
            break
    return keep(x, kept)


def min_p(x, s):
    p = softmax(x)
    return keep(x, p >= s["min_p"] * p.max()) if s["min_p"] > 0 else x


def without_likely(x, s):
    p = softmax(x)
    above = [i for i in ranked(x) if p[i] >= s["xtc_threshold"]]
    return keep(x, [i for i in ranked(x) if i not in above[:-1]])


def temperature(x, s):
    t = s["temperature"]
    if s["dynatemp_range"] > 0:
        ids = ranked(x)
        low, high = max(0, t - s["dynatemp_range"]), t + s["dynatemp_range"]
        share = entropy(softmax(x)) / np.log(len(ids)) if len(ids) > 1 else 1
        t = low + (high - low) * share ** s["dynatemp_exponent"]
    return x / t


def run(x, s, history, chain):
    """Probabilities: a step that is random splits the rest of the chain in two."""
    x = x.copy()
    for at, step in enumerate(chain):
        if step == "xtc":
            if s["xtc_probability"] > 0 and s["xtc_threshold"] <= 0.5:
                rest = chain[at + 1:]
                q = s["xtc_probability"]
                return q * run(without_likely(x, s), s, history, rest) + (1 - q) * run(x, s, history, rest)
        elif step in ("penalties", "dry"):
            dead = ~np.isfinite(x)
            x = {"penalties": penalties, "dry": dry}[step](x, s, history)
            x[dead] = -np.inf
        else:
            x = {"top_n_sigma": top_n_sigma, "top_k": top_k, "typ_p": typical, "top_p": top_p, "min_p": min_p,
                 "temperature": temperature}[step](x, s)
    return softmax(x)


def mirostat(x, s):
    """The first draw, mu = 2 tau."""
    x = x / s["temperature"]
    mu, p, ids = 2 * s["mirostat_tau"], softmax(x), ranked(x)
    if s["mirostat"] == 2:
        kept = [i for i in ids if -np.log2(p[i]) <= mu] or ids[:1]
    else:
        t = np.log([(i + 2) / (i + 1) for i in range(min(99, len(ids) - 1))])
        b = np.log([p[ids[i]] / p[ids[i + 1]] for i in range(min(99, len(ids) - 1))])
        exponent = (t * b).sum() / (t * t).sum()
        epsilon = exponent - 1
        k = (epsilon * 2 ** mu / (1 - len(ids) ** -epsilon)) ** (1 / exponent)
        kept = ids[:max(1, int(round(k)))]
    return softmax(keep(x, kept))


def cases(rng):
    some = [
        dict(typical_p=0.5), dict(typical_p=0.9), dict(typical_p=0.2, top_k=20), dict(top_n_sigma=1.0), dict(top_n_sigma=0.5, top_k=30),
        dict(top_n_sigma=2.0, temperature=1.6), dict(xtc_probability=0.5), dict(xtc_probability=1.0, xtc_threshold=0.05),
        dict(xtc_probability=0.3, xtc_threshold=0.15, top_k=12, min_p=0.02), dict(xtc_probability=1.0, xtc_threshold=0.6),
        dict(dynatemp_range=0.5), dict(temperature=0.7, dynatemp_range=0.9, dynatemp_exponent=1.5, top_k=20),
        dict(temperature=1.2, dynatemp_range=0.4, dynatemp_exponent=0.5, min_p=0.05), dict(dry_multiplier=0.8),
        dict(dry_multiplier=0.5, dry_allowed_length=1), dict(dry_multiplier=1.0, dry_base=1.2, dry_allowed_length=3, dry_penalty_last_n=20),
        dict(dry_multiplier=0.8, top_k=20, repetition_penalty=1.2, penalty_last_n=-1), dict(mirostat=1, mirostat_tau=1.5),
        dict(mirostat=1, mirostat_tau=2.2, temperature=0.8), dict(mirostat=2, mirostat_tau=1.0), dict(mirostat=2, mirostat_tau=1.8, temperature=1.3),
        dict(mirostat=2, mirostat_tau=0.05),
    ]
    for settings in some:
        yield settings, []
    values = dict(temperature=[0.6, 1.5], top_k=[5, 25], top_p=[0.6, 0.95], min_p=[0.05, 0.2], typical_p=[0.4, 0.95], top_n_sigma=[1.0, 1.8],
                  xtc_probability=[0.4, 1.0], repetition_penalty=[1.3, 0.9], presence_penalty=[0.5], frequency_penalty=[0.2], dry_multiplier=[0.8])
    for _ in range(42):
        settings = {k: float(rng.choice(v)) if k != "top_k" else int(rng.choice(v)) for k, v in values.items() if rng.random() < 0.5}
        chain = [str(c) for c in rng.permutation(DEFAULT)[:rng.integers(2, len(DEFAULT) + 1)]] if rng.random() < 0.7 else []
        yield settings, chain


def main():
    rng = np.random.default_rng(20261125)
    out = ["/* Made by scripts/gen_sampler_cases.py. */"]
    for settings, chain in cases(rng):
        s = dict(OFF, **settings)
        logits = np.round(rng.normal(0, 2, N_VOCAB), 3).astype(np.float32).astype(np.float64)
        history = [int(t) for t in rng.integers(0, 12, int(rng.integers(5, 60)))]
        if s["dry_multiplier"] > 0:  # something that repeats
            phrase = [int(t) for t in rng.integers(12, 24, int(rng.integers(2, 6)))]
            history += phrase + [int(rng.integers(24, 30))] + ([BREAKER] if rng.random() < 0.3 else []) + phrase
        p = mirostat(logits, s) if s["mirostat"] else run(logits, s, history, chain or DEFAULT)
        fields = ", ".join(f".{k} = {v:g}" if isinstance(v, float) else f".{k} = {v}" for k, v in s.items())
        order = ", ".join("WEIR_SAMPLER_" + {"typ_p": "TYPICAL"}.get(c, c.upper()) for c in chain)
        if chain:
            fields += f", .chain = {{{order}}}, .n_chain = {len(chain)}"
        out.append("{{%s},\n {%s}, %d,\n {%s},\n {%s}}," % (
            fields, ", ".join(map(str, history)), len(history), ", ".join(f"{v:.9g}" for v in logits), ", ".join(f"{v:.9g}" for v in p)))
    sys.stdout.write("\n".join(out) + "\n")


main()
