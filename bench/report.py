"""From samples to tables: medians, the best setting of each rival, ratios, shares of the machine's limit. Pure functions of what was
measured; nothing is run here.

samples: {program: {setting: {label: [tokens per second of each round]}}}, where weir's only setting is "".
"""
import statistics


def limit_of(work, limits):
    """Tokens per second that the machine allows for this work per token: {"int8_macs", "f32_macs", "bytes"} against what it does in a
    second. Attention's own multiply-accumulates are left out."""
    computing = work["int8_macs"] / limits["int8_macs_per_s"] + work["f32_macs"] / limits["f32_macs_per_s"]
    return 1 / max(computing, work["bytes"] / limits["read_bytes_per_s"])


def labels_of(samples):
    """In the order in which weir measured them."""
    return list(next(iter(samples["weir"].values())))


def best_of(samples, program, label):
    """(median, setting) of the program's best setting for a test, or None."""
    measured = [(statistics.median(s[label]), setting) for setting, s in samples.get(program, {}).items() if s.get(label)]
    return max(measured, default=None)


def number(value):
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def main_table(samples, limits_by_label):
    """One row a test: the limit, weir, its share of it, each rival at its best setting and how many times as fast weir is."""
    rivals = [program for program in samples if program != "weir"]
    heading = ["test", "limit", "weir", "of limit"] + [text for rival in rivals for text in (rival, "weir is")]
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "---:|" * (len(heading) - 1)]
    for label in labels_of(samples):
        mine = best_of(samples, "weir", label)[0]
        limit = limits_by_label.get(label)
        row = [label, number(limit) if limit else "", f"**{number(mine)}**", f"{100 * mine / limit:.0f} %" if limit else ""]
        others = [best_of(samples, rival, label) for rival in rivals]
        fastest = max((other for other in others if other), default=None)
        for other in others:
            ratio = f"{mine / other[0]:.2f}x" if other else ""
            row += [number(other[0]), f"**{ratio}**" if other == fastest else ratio] if other else ["", ""]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def settings_text(samples):
    """Which setting of each rival was best, where it has several."""
    lines = []
    for program in samples:
        if program == "weir" or len(samples[program]) < 2:
            continue
        chosen = {}
        for label in labels_of(samples):
            best = best_of(samples, program, label)
            if best:
                chosen.setdefault(best[1], []).append(label)
        lines.append(f"Best settings of {program}: " + "; ".join(f"{', '.join(labels)}: `{setting}`" for setting, labels in chosen.items()) + ".")
    return "\n".join(lines)


def detail_table(samples):
    """Every setting that was measured."""
    lines = ["| test | program | median t/s | min | max | rounds |", "|---|---|---:|---:|---:|---:|"]
    for label in labels_of(samples):
        rows = [(program, setting, s[label]) for program, settings in samples.items() for setting, s in settings.items() if s.get(label)]
        for program, setting, speeds in sorted(rows, key=lambda r: (r[0] != "weir", -statistics.median(r[2]))):
            name = f"{program} `{setting}`" if setting else program
            lines.append(f"| {label} | {name} | {number(statistics.median(speeds))} | {number(min(speeds))} | {number(max(speeds))} | {len(speeds)} |")
    return "\n".join(lines)


def markdown(report):
    """The whole result as a page."""
    limits, machine = report["limits"], report["machine"]
    by_label = {label: limit_of(work, limits) for label, work in report["work"].items()}
    loads = "; ".join(f"{part}: {before:.2f}, {after:.2f}" for part, before, after in report["loads"])
    text = [f"# weir and others, {report['model']}", "",
            f"{report['date']}; {machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gb']} GB, Linux {machine['kernel']}; {report['threads']} threads; "
            f"instruction-set level {limits['cpu_level']}" + (" (a short run)" if report["quick"] else "") + ".",
            f"weir {report['weir_version']}; " + "; ".join(f"{name}: {text}" for name, text in report["versions"].items()) + ".",
            f"Limits: {limits['int8_macs_per_s'] / 1e9:.0f} GMAC/s in int8, {limits['f32_macs_per_s'] / 1e9:.0f} in F32, "
            f"{limits['read_bytes_per_s'] / 1e9:.1f} GB/s.",
            f"Load average before and after: {loads}.", "",
            "Tokens per second, medians over alternating rounds, of several sequences in total; each rival at its best setting.", "",
            main_table(report["samples_ts"], by_label), "", settings_text(report["samples_ts"])]
    for label, work in report["work"].items():
        if label.startswith("pp"):
            text.append(f"The limit of {label} leaves out attention's {work['attention_macs'] / 1e6:.1f} million multiply-accumulates a token "
                        f"beside the matrices' {(work['int8_macs'] + work['f32_macs']) / 1e6:.1f}.")
    text += [f"Left out: {name}: {reason}" for name, reason in report["left_out"]]
    text += [f"Measured once only, far slower in every test: {name}" for name in report["pruned"]]
    return "\n".join(line for line in [*text, "", "## All settings", "", detail_table(report["samples_ts"])]).rstrip() + "\n"
