"""From the samples of bench/serve to tables and a plot. Pure functions of the results file."""
import statistics

KEYS = ("streams", "where", "rate")  # what tells samples of one scenario and program apart


def groups(results):
    """{scenario: {(program, setting, key): [samples]}}, in the order in which they were measured."""
    found = {}
    for s in results["samples"]:
        key = next((s[k] for k in KEYS if k in s), "")
        found.setdefault(s["scenario"], {}).setdefault((s["program"], s["setting"], key), []).append(s)
    return found


def median(samples, name):
    values = [s[name] for s in samples if isinstance(s.get(name), (int, float))]
    return statistics.median(values) if values else None


def number(value):
    if value is None:
        return ""
    if isinstance(value, (list, str)):
        return ", ".join(value) if isinstance(value, list) else value
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def table(rows):
    return "\n".join(["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])] + ["| " + " | ".join(row) + " |" for row in rows[1:]])


def throughput_table(found):
    streams = sorted({key for _, _, key in found})
    rows = [["output tokens a second", *(f"{n} streams" for n in streams)]]
    best = {}
    for program, setting in dict.fromkeys((p, s) for p, s, _ in found):
        speeds = [median(found.get((program, setting, n), []), "tokens_per_s") for n in streams]
        rows.append([f"{program} {setting}".strip(), *map(number, speeds)])
        for n, speed in zip(streams, speeds):
            if speed:
                best[program, n] = max(best.get((program, n), 0), speed)
    if any(p == "weir" for p, _ in best) and any(p == "llama-server" for p, _ in best):
        rows.append(["weir's best to llama-server's best", *(f"{best['weir', n] / best['llama-server', n]:.2f}x" if ("weir", n) in best and
                                                             ("llama-server", n) in best else "" for n in streams)])
    return table(rows)


def plain_table(found):
    names = [name for name in dict.fromkeys(name for samples in found.values() for s in samples for name in s)
             if name not in ("scenario", "program", "setting", "note", *KEYS)]
    columns = [f"{p} {s} {k}".strip() for p, s, k in found]
    rows = [["", *columns]]
    for name in names:
        values = [median(samples, name) if median(samples, name) is not None else samples[-1].get(name) for samples in found.values()]
        rows.append([name, *map(number, values)])
    if len(columns) > len(names):
        rows = [list(row) for row in zip(*rows)]
    notes = sorted({f"{s['program']} {s['setting']}, {'1 stream' if s.get('streams') == 1 else str(s.get('streams')) + ' streams'}: {s['note']}."
                    for samples in found.values() for s in samples if "note" in s})
    return table(rows) + ("\n\n" + "\n".join("- " + note for note in notes) if notes else "")


def markdown(results):
    m = results["machine"]
    out = [f"# Servers under load: {results['model']}, {results['threads']} threads", "",
           f"{results['date']}, {m['cpu']}, {m['cpus']} CPUs, Linux {m['kernel']}. llama-server of {results['versions']['llama-server']}. "
           "Medians over the samples. `bench/serve --help` says what each scenario does.", ""]
    for scenario, found in groups(results).items():
        counts = sorted({len(samples) for samples in found.values()})
        out += [f"## {scenario}", "", f"{counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} sample{'s' if counts[-1] > 1 else ''} each.", ""]
        if scenario == "throughput":
            out += [throughput_table(found), ""]
        out += [plain_table(found), ""]
    return "\n".join(out)


COLOURS = ["#1f6feb", "#6cb6ff", "#d1242f", "#f0883e", "#2da44e", "#8250df"]


def plot(results, path):
    """Output tokens a second against streams, as SVG; nothing where throughput was not measured."""
    found = groups(results).get("throughput")
    if not found:
        return
    lines = {}
    for (program, setting, n), samples in found.items():
        lines.setdefault(f"{program} {setting}".strip(), []).append((n, median(samples, "tokens_per_s")))
    streams = sorted({n for line in lines.values() for n, _ in line})
    top = max(speed for line in lines.values() for _, speed in line) * 1.1
    x = lambda n: 70 + 500 * streams.index(n) / max(1, len(streams) - 1)  # noqa: E731
    y = lambda speed: 320 - 290 * speed / top  # noqa: E731
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="760" height="370" font-family="sans-serif" font-size="12">',
           '<rect width="760" height="370" fill="white"/>', '<text x="70" y="18">output tokens a second, by number of streams</text>']
    for i in range(6):
        value = top * i / 5
        out.append(f'<line x1="70" x2="570" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
                   f'<text x="62" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    out += [f'<text x="{x(n):.1f}" y="340" text-anchor="middle">{n}</text>' for n in streams]
    for i, (name, line) in enumerate(lines.items()):
        colour, line = COLOURS[i % len(COLOURS)], sorted(line)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x(n):.1f},{y(s):.1f}" for n, s in line)}"/>')
        out.append(f'<text x="585" y="{40 + 18 * i}" fill="{colour}">{name}</text>')
    path.write_text("\n".join(out + ["</svg>", ""]))
