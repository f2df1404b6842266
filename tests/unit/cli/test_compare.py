#!/usr/bin/env python3
"""bench/compare's reading and tables on canned samples; nothing is measured.

    test_compare.py BENCH-FOLDER

Prints a line for each case that fails and last "N passed, N failed"."""
import importlib.machinery
import importlib.util
import json
import sys
import traceback
from pathlib import Path

sys.dont_write_bytecode = True
BENCH = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(BENCH))
import report  # noqa: E402
import rivals  # noqa: E402

loader = importlib.machinery.SourceFileLoader("compare", str(BENCH / "compare"))
compare = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare", loader))
loader.exec_module(compare)

LIMITS = {"int8_macs_per_s": 200e9, "f32_macs_per_s": 50e9, "read_bytes_per_s": 20e9, "cpu_level": "avx2", "n_threads": 2}
SAMPLES = {"weir": {"": {"pp512": [1000.0, 900.0, 1100.0], "tg128": [100.0, 90.0, 95.0], "8 x tg64": [400.0]}},
           "llama.cpp": {"repack=1 fa=1": {"pp512": [500.0, 400.0, 510.0], "tg128": [50.0, 52.0, 51.0]},
                         "repack=0 fa=1": {"pp512": [300.0], "tg128": [60.0, 59.0, 61.0], "8 x tg64": [100.0]}},
           "mistral.rs": {"": {"pp512": [17.0], "tg128": [190.0]}}}


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_main_table():
    heading, _, prompt, answer, batched = cells(report.main_table(SAMPLES, {"pp512": 2000.0, "tg128": 200.0}))
    assert heading == ["test", "limit", "weir", "of limit", "llama.cpp", "weir is", "mistral.rs", "weir is"], heading
    # Medians; the best setting of a rival for each test; the fastest rival's ratio stands out.
    assert prompt == ["pp512", "2000", "**1000**", "50 %", "500.0", "**2.00x**", "17.0", "58.82x"], prompt
    assert answer == ["tg128", "200.0", "**95.0**", "48 %", "60.0", "1.58x", "190.0", "**0.50x**"], answer
    assert batched == ["8 x tg64", "", "**400.0**", "", "100.0", "**4.00x**", "", ""], batched


def test_settings():
    text = report.settings_text(SAMPLES)
    assert "pp512: `repack=1 fa=1`" in text and "tg128, 8 x tg64: `repack=0 fa=1`" in text and "mistral.rs" not in text, text


def test_detail_table():
    rows = cells(report.detail_table(SAMPLES))
    assert rows[2] == ["pp512", "weir", "1000", "900.0", "1100", "3"], rows[2]
    assert rows[3][1] == "llama.cpp `repack=1 fa=1`" and len(rows) == 2 + 4 + 4 + 2, rows


def test_limits():
    work = {"int8_macs": 100e6, "f32_macs": 0, "bytes": 1e6, "attention_macs": 1e9}
    assert abs(report.limit_of(work, LIMITS) - 2000) < 1e-6  # computing
    assert abs(report.limit_of({**work, "bytes": 100e6}, LIMITS) - 200) < 1e-6  # reading
    assert abs(report.limit_of({**work, "f32_macs": 25e6}, LIMITS) - 1000) < 1e-6


def test_parse():
    llama_bench = [{"n_prompt": 512, "n_gen": 0, "n_depth": 0, "samples_ts": [3.0, 1.0, 2.0]}, {"n_prompt": 0, "n_gen": 32, "n_depth": 4096, "samples_ts": [5.0]},
                   {"n_prompt": 4096, "n_gen": 32, "test": "tg32@pp4096", "samples_ts": [6.0]}]
    assert rivals.parse("\x1b[2mnoise [x]\n" + json.dumps(llama_bench, indent=2) + "\nend\n") == {"pp512": 2.0, "tg32 @ d4096": 6.0}
    batched = '\nmain: something\n{"pp": 128, "tg": 64, "pl": 8, "speed_pp": 9.0, "speed_tg": 7.5}\nmore\n{"pp": 128, "tg": 64, "pl": 1, "speed_tg": 2.5}\n'
    assert rivals.parse(batched) == {"8 x tg64": 7.5, "1 x tg64": 2.5}
    assert rivals.parse('{"n_parallel":4,"n_prompt":128,"n_gen":64,"samples_ts_tg":[8.0]}\n') == {"4 x tg64": 8.0}
    table = "|    PP |     TG |    B |\n|-------|\n|   128 |     64 |    8 |   1536 |    0.117 |   137.18 |    0.134 |    59.77 |    0.250 |    95.81 |\n"
    assert rivals.parse(table) == {"8 x tg64": 59.77}, rivals.parse(table)
    for broken in ("", "no json", "[{]"):
        try:
            rivals.parse(broken)
        except ValueError:
            continue
        raise AssertionError(f"{broken!r} was parsed")


def test_commands():
    """Every setting of every rival makes a command for each kind of task that it takes part in."""
    for rival in rivals.RIVALS:
        for setting in rival.settings:
            for task in (rivals.Task("m.gguf", 2, n_prompt=512, n_gen=128), rivals.Task("m.gguf", 2, n_gen=32, depth=4096)):
                command = [str(part) for part in rival.single(Path("/bin"), task, setting)]
                assert "m.gguf" in command and str(task.n_gen) in " ".join(command), command
            if rival.batched:
                command = [str(part) for part in rival.batched(Path("/bin"), rivals.Task("m.gguf", 2, n_prompt=128, n_gen=64, parallel=(1, 8)), setting)]
                assert "1,8" in command, command


def test_drop_slow():
    rival = rivals.RIVALS[0]
    fast, slow, near = (compare.Contestant(rival, "native", Path("/bin"), s) for s in rival.settings[:3])
    kept, dropped = compare.drop_slow([fast, slow, near], {fast: {"pp": 100, "tg": 10}, slow: {"pp": 70, "tg": 7}, near: {"pp": 50, "tg": 9}})
    assert kept == [fast, near] and dropped == [slow.full], (kept, dropped)
    snail = compare.Contestant(rivals.RIVALS[2], "native", Path("/bin"), {})  # another program, far behind
    kept, dropped = compare.drop_slow([fast, snail], {fast: {"pp": 100, "tg": 10}, snail: {"pp": 20, "tg": 2}})
    assert kept == [fast] and dropped == ["mistral.rs"], (kept, dropped)


def test_markdown():
    result = {"limits": LIMITS, "memory": {"matmul_params": 1e8, "head_params": 0, "decode_bytes": 1e8, "kv_token_bytes": 1e4}, "model": "m.gguf", "date": "2026-01-01",
              "work": {"pp512": {"int8_macs": 1e8, "f32_macs": 0, "bytes": 1e6, "attention_macs": 1e7},
                       "8 x tg64": {"int8_macs": 1e8, "f32_macs": 0, "bytes": 1e7, "attention_macs": 1e6}},
              "machine": {"cpu": "a CPU", "cpus": 2, "memory_gb": 8, "kernel": "6.1"}, "threads": 2, "quick": True, "weir_version": "0", "versions": {"llama.cpp": "x 1"},
              "loads": [["no depth", 0.5, 1.5]], "left_out": [["ik_llama.cpp native", "the build failed"]], "pruned": ["llama.cpp repack=0 fa=0 (no depth)"], "samples_ts": SAMPLES}
    text = report.markdown(result)
    for wanted in ("a CPU", "a short run", "0.50, 1.50", "the build failed", "repack=0 fa=0", "## All settings", "| pp512 | 2000 |", "| 8 x tg64 | 2000 |", "10.0 million"):
        assert wanted in text, (wanted, text)


def main():
    passed = failed = 0
    for name, function in list(globals().items()):
        if not name.startswith("test_"):
            continue
        try:
            function()
            passed += 1
        except Exception:
            failed += 1
            print(f"FAILED {name}")
            traceback.print_exc(file=sys.stdout)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
