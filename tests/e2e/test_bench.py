"""weir bench from outside: its JSON parses and holds what other programs read. WEIR_BINARY and WEIR_MODEL say what to run."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BINARY, MODEL = os.environ.get("WEIR_BINARY"), os.environ.get("WEIR_MODEL")
ROOT = Path(__file__).resolve().parent.parent.parent
needs_binary = pytest.mark.skipif(not BINARY, reason="WEIR_BINARY is missing")
needs_model = pytest.mark.skipif(not (BINARY and MODEL), reason="WEIR_BINARY or WEIR_MODEL is missing")


def run(*arguments, **more):
    return subprocess.run([str(a) for a in arguments], check=True, capture_output=True, text=True, timeout=600, **more).stdout


@needs_binary
def test_limits():
    report = json.loads(run(BINARY, "bench", "--limits", "-t", "1,2", "-o", "json"))
    assert report["buffer_bytes"] > report["cache_bytes"]
    assert [row["n_threads"] for row in report["limits"]] == [1, 2]
    for row in report["limits"]:
        assert row["int8_macs_per_s"] > 1e8 and row["f32_macs_per_s"] > 1e7 and row["read_bytes_per_s"] > 1e8


@needs_model
def test_profile():
    rows = json.loads(run(BINARY, "bench", "-m", MODEL, "-p", "40", "-n", "4", "-d", "8", "-r", "2", "-b", "16", "--profile", "-o", "json"))
    assert [row["test"] for row in rows] == ["pp40 @ d8", "tg4 @ d8"]
    for row in rows:
        shares = {op["op"]: op["share"] for op in row["profile"]}
        assert {"QKV", "attention", "gate, up", "down", "waiting"} <= set(shares) and "experts" not in shares
        assert abs(sum(shares.values()) - 1) < 1e-6
        n_steps = 3 if row["n_prompt"] else 4
        measured = sum(op["ms_per_step"] for op in row["profile"]) * n_steps
        assert 0.5 < measured * 1e6 / row["avg_ns"] <= 1.0001  # the steps are nearly all of a run
        assert all(op["of_limit"] > 0 for op in row["profile"] if op["op"] in ("QKV", "attention", "down"))
    inspected = json.loads(run(BINARY, "inspect", "--json", MODEL))["memory"]
    work = rows[1]["work"]
    assert work["int8_macs"] + work["f32_macs"] == inspected["matmul_params"] + inspected["head_params"]
    kv = inspected["kv_token_bytes"] * (9 + 10 + 11 + 12) / 4  # keys and values that four tokens after eight see
    assert abs(work["bytes"] - inspected["decode_bytes"] - kv) < 1


@needs_model
def test_cache_types():
    arguments = [BINARY, "bench", "-m", MODEL, "-p", "0", "-n", "4", "-d", "8", "-r", "1", "-o", "jsonl"]
    full, small = (json.loads(run(*arguments, *types)) for types in ([], ["-ctk", "bf16", "--cache-type-v", "f32"]))
    assert (full["type_k"], full["type_v"]) == ("f16", "f16")
    assert (small["type_k"], small["type_v"]) == ("bf16", "f32")
    kv = json.loads(run(BINARY, "inspect", "--json", MODEL))["memory"]["kv_token_bytes"] * (9 + 10 + 11 + 12) / 4
    assert small["work"]["bytes"] - full["work"]["bytes"] == pytest.approx(kv / 2, abs=1)
    failed = subprocess.run([*arguments, "-ctk", "q5_0"], capture_output=True, text=True)
    assert failed.returncode == 2 and "f16|bf16|q8_0|q4_0|f32" in failed.stderr


@needs_model
def test_batched():
    arguments = [BINARY, "bench", "-m", MODEL, "-npl", "1,3", "-npp", "20", "-ntg", "5", "-b", "16", "-r", "2", "--profile", "-o", "jsonl"]
    rows = [json.loads(line) for line in run(*arguments).splitlines()]
    assert [row["n_parallel"] for row in rows] == [1, 3]
    for row in rows:
        for kind, n_tok in (("pp", 20), ("tg", 5)):
            assert len(row[f"samples_ts_{kind}"]) == 2
            seconds = row[f"samples_ns_{kind}"][0] / 1e9
            assert row[f"samples_ts_{kind}"][0] == pytest.approx(n_tok * row["n_parallel"] / seconds, rel=1e-3)
        # The profile is of the answers alone.
        measured = sum(op["ms_per_step"] for op in row["profile"]) * 5
        assert 0.5 < measured * 1e6 / row["avg_ns_tg"] <= 1.0001
    inspected = json.loads(run(BINARY, "inspect", "--json", MODEL))["memory"]
    kv = inspected["kv_token_bytes"] * (21 + 22 + 23 + 24 + 25) / 5
    for row in rows:  # weights are read once for all sequences, except the rows of the embedding
        shared = (row["work"]["bytes"] - kv) * row["n_parallel"]
        assert shared == pytest.approx(inspected["decode_bytes"], rel=1e-4)
        assert row["work"]["int8_macs"] == inspected["matmul_params"] + inspected["head_params"]


@needs_model
def test_csv_and_text():
    arguments = [BINARY, "bench", "-m", MODEL, "-p", "8", "-n", "2", "-r", "1", "--no-warmup"]
    heading, *rows = run(*arguments, "-o", "csv").splitlines()
    assert [len(row.split(",")) for row in rows] == [len(heading.split(","))] * 2
    assert "of limit" in run(*arguments, "--profile")


@needs_model
@pytest.mark.parametrize("ftype", ["q4_0", "q4_k_m", "q8_0", "f16", "bf16"])
def test_synth(tmp_path, ftype):
    """A file of random weights is one that weir runs, with finite logits."""
    pytest.importorskip("gguf", reason="the Python packages numpy and gguf are missing")
    pytest.importorskip("numpy", reason="the Python packages numpy and gguf are missing")
    path = run(sys.executable, ROOT / "bench" / "synth", "tiny", ftype, tmp_path / "m.gguf", "--tokenizer", MODEL).strip()
    description = json.loads(run(BINARY, "inspect", "--json", path))
    assert description["file_type"].lower() == ftype and "problem" not in description["memory"]
    assert description["memory"]["matmul_params"] == 2 * (256 * 256 * 2 + 128 * 256 * 2 + 3 * 256 * 512)
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 80)
    measured = json.loads(run(BINARY, "perplexity", "-m", path, "-f", text, "-q", "--json"))
    assert 5 < measured["mean_nll"] < 20, measured  # random, not broken: ln 49152 = 10.8 is what knowing nothing gives
