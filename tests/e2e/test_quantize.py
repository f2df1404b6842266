"""weir quantize from outside: its files read by the gguf package of the ggml project, and run by weir."""
import os
import subprocess

import pytest

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

WEIR = os.environ.get("WEIR_BINARY", "build/release/src/cli/weir")
MODEL = os.environ.get("WEIR_MODEL")
TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS",
         "TQ1_0", "TQ2_0", "MXFP4_MOE"]
# Relative error of normal values; what a format reaches, and a little.
BOUNDS = {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q4_0": 0.11, "Q4_1": 0.09, "Q5_0": 0.055, "Q5_1": 0.045, "Q8_0": 0.008, "Q2_K": 0.32,
          "Q3_K": 0.19, "Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.022, "IQ4_NL": 0.09, "IQ4_XS": 0.09, "TQ1_0": 0.6, "TQ2_0": 0.6,
          "MXFP4": 0.14}


def weir(*arguments):
    return subprocess.run([WEIR, *map(str, arguments)], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantize") / "source.gguf"
    rng = np.random.default_rng(3)
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_block_count(2)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_array("numbers", [1, 2, 3])
    w.add_array("texts", ["a", "", "ü"])
    shapes = {"token_embd": (64, 512), "output": (64, 512), "blk.0.attn_v": (64, 512), "blk.0.ffn_down": (64, 512),
              "blk.1.attn_v": (64, 512), "blk.1.ffn_down": (64, 512), "blk.1.ffn_up_exps": (4, 32, 256), "blk.1.odd": (8, 96)}
    for name, shape in shapes.items():
        w.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    w.add_tensor("output_norm.weight", np.ones(512, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.mark.parametrize("kind", TYPES)
def test_files_are_read_by_gguf(source, tmp_path, kind):
    out = tmp_path / "out.gguf"
    done = weir("quantize", source, out, kind)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]
    before, after = gguf.GGUFReader(str(source)), gguf.GGUFReader(str(out))
    assert after.fields["general.quantization_version"].contents() == 2
    assert after.fields["general.file_type"].contents() == gguf.LlamaFileType[
        {"F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}.get(kind, f"MOSTLY_{kind}")]
    for key, field in before.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.file_type", "general.quantization_version"):
            assert after.fields[key].contents() == field.contents()
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    for a, b in zip(before.tensors, after.tensors):
        assert a.shape.tolist() == b.shape.tolist()
        x = a.data.astype(np.float64)
        y = gguf.quants.dequantize(b.data, b.tensor_type).astype(np.float64).reshape(x.shape)
        error = np.sqrt(((x - y) ** 2).sum() / (x ** 2).sum())
        assert error <= BOUNDS[b.tensor_type.name], (b.name, b.tensor_type.name, error)


def test_full_disk_leaves_nothing(source, tmp_path):
    done = subprocess.run(["bash", "-c", f"ulimit -f 8; exec {WEIR} quantize {source} {tmp_path}/out.gguf Q8_0"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "out.gguf" in done.stderr
    assert not list(tmp_path.iterdir())


def test_dry_run_writes_nothing(source, tmp_path):
    done = weir("quantize", "--dry-run", source, "Q4_K_M")
    assert done.returncode == 0
    assert "blk.0.attn_v.weight" in done.stdout and "F32 -> Q5_0 (rows do not fit" in done.stdout
    assert "bits per weight" in done.stdout.splitlines()[-1]


def test_requantised_model_runs(tmp_path):
    if not MODEL:
        pytest.skip("the default model cannot be had")
    out, text = tmp_path / "out.gguf", tmp_path / "text"
    text.write_text("The sun rises in the east and sets in the west. Water boils at a hundred degrees. " * 8)
    refused = weir("quantize", MODEL, out, "Q8_0")
    assert refused.returncode == 1 and "--allow-requantize" in refused.stderr
    assert weir("quantize", "--allow-requantize", MODEL, out, "Q8_0").returncode == 0
    done = weir("perplexity", "-q", "--json", "-c", "64", "-m", out, "-f", text, "--reference", MODEL)
    assert done.returncode == 0, done.stderr
    import json
    result = json.loads(done.stdout)
    assert 0 <= result["mean_kl_divergence"] < 0.01
    assert result["same_top_token"] > 0.95
