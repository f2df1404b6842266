#!/usr/bin/env python3
"""The program from outside, without a model: exit codes, where messages go, the worker's start conditions.

    test_program.py WEIR

Prints a line for each case that fails and last "N passed, N failed"."""
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

WEIR = os.path.abspath(sys.argv[1])
WORKER = ["--worker-id", "w", "--model", "/nonexistent.gguf", "--model-ref", "r", "--backend", "cpu", "--device", "0", "--port", "0",
          "--hive-url", "http://127.0.0.1:1"]
LOCAL = [*WORKER, "--local-mode"]
BARE = {k: v for k, v in os.environ.items() if not k.startswith(("WEIR_", "LLORCH_"))}


def case(arguments, code, out=None, err=None, name=None, env=None, stdin=None):
    return {"arguments": arguments, "code": code, "out": out, "err": err, "name": name, "env": env or {}, "stdin": stdin}


def cases(folder, busy_port):
    garbage, keys = folder / "garbage.gguf", folder / "no_keys"
    garbage.write_bytes(b"not a model at all")
    keys.write_text("\n\n")
    any_file = str(garbage)
    rbee = "llm-worker-rbee"
    yield case(["--version"], 0, out="weir 0.1.0\n")
    yield case([], 2, out="Usage: weir COMMAND")
    yield case(["--help"], 0, out="selftest")
    yield case(["srve"], 2, err="did you mean serve?")
    yield case(["nonsense-entirely"], 2, err="unknown command")
    for command in ("serve", "run", "tokenize", "detokenize", "bench", "perplexity", "selftest"):
        yield case([command, "--help"], 0, out=f"Usage: weir {command}")
        yield case([command], 2, err="needs --model FILE", stdin="")
        yield case([command, "--modle", "x"], 2, err="did you mean --model?")
    yield case(["models", "x"], 2, err="unexpected argument")
    yield case(["inspect", "--check", "/nonexistent.gguf"], 1, err="Error: /nonexistent.gguf")
    yield case(["inspect"], 2, err="needs one FILE")
    yield case(["inspect", "/nonexistent.gguf"], 1, err="Error: /nonexistent.gguf")
    yield case(["inspect", any_file], 1, err="Error: ")
    yield case(["run", "-m", "/nonexistent.gguf", "hello"], 1, err="Error: ")
    yield case(["run", "-m", any_file, "hello"], 1, err="Error: ")
    yield case(["run", "-m", any_file], 1, err="the question is empty", stdin="")
    yield case(["run", "-m", any_file, "-f", "/nonexistent"], 1, err="/nonexistent")
    yield case(["tokenize", "-m", str(folder), "hello"], 1, err="Error: ")
    yield case(["detokenize", "-m", any_file, "-5"], 2, err="unknown option -5")
    yield case(["detokenize", "-m", any_file, "99999999999"], 1, err="no token id")
    yield case(["bench", "-m", any_file, "-p", "5,x"], 2, err="no list of numbers")
    yield case(["bench", "-m", any_file, "-p", "1-9999999"], 2, err="more than 32")
    yield case(["bench", "-m", any_file], 1, err="Error: ")
    yield case(["bench", "-m", any_file, "-npl", "0"], 2, err="--batched-parallel")
    yield case(["bench", "-m", any_file, "--profile", "-o", "csv"], 2, err="no CSV form")
    yield case(["bench", "--limits", "-t", "1"], 0, out="GMAC/s")
    yield case(["perplexity", "-m", any_file], 2, err="--file FILE")
    missing, output = "/nonexistent.gguf", str(folder / "out.gguf")
    yield case(["quantize", "--help"], 0, out="Usage: weir quantize [OPTION...] IN OUT TYPE")
    yield case(["quantize", missing, output], 2, err="IN OUT TYPE")
    yield case(["quantize", missing, output, "Q4_K_X"], 2, err="\"Q4_K_X\" is no type; possible are F32, F16")
    yield case(["quantize", missing, output, "Q4_K_M", "many"], 2, err="THREADS")
    yield case(["quantize", missing, output, "Q4_K_M"], 1, err="Error: /nonexistent.gguf")
    yield case(["quantize", any_file, output, "Q4_K_M"], 1, err="not a GGUF file")
    yield case(["quantize", any_file, any_file, "Q4_K_M"], 2, err="the same file")
    yield case(["quantize", "--tensor-type", "attn", any_file, output, "Q4_0"], 2, err="REGEX=FORMAT")
    yield case(["quantize", "--tensor-type", "attn=Q9", any_file, output, "Q4_0"], 2, err="cannot quantise to \"Q9\"")
    yield case(["quantize", "--output-tensor-type", "IQ1_S", any_file, output, "Q4_0"], 2, err="cannot quantise to \"IQ1_S\"")
    yield case(["quantize", "--keep-split", "yes", any_file, output, "Q4_0"], 2, err="none of no")
    yield case(["convert", any_file], 2, err="convert needs a folder")
    yield case(["convert", any_file, output], 1, err="is no folder")
    yield case(["convert", str(folder), output], 1, err="no config.json")
    yield case(["convert", "--quant", "Q9", str(folder), output], 2, err="is no type")
    yield case(["run", "-m", str(folder), "hello"], 1, err="no config.json")
    yield case(["selftest", "-m", "/nonexistent.gguf"], 0, out="skipped")
    yield case(["serve", "-m", "/nonexistent.gguf", "--port", "0"], 1, err="Error: ")
    yield case(["serve", "-m", any_file, "--port", "0"], 1, err="Error: ")
    yield case(["serve", "-m", any_file, "--port", str(busy_port)], 1, err=str(busy_port))
    yield case(["serve", "-m", any_file, "--port", "0", "--api-key-file", "/nonexistent"], 1, err="/nonexistent")
    yield case(["serve", "-m", any_file, "--port", "0", "--api-key-file", str(keys)], 1, err="holds no key")
    yield case(["serve", "-m", any_file], 2, err="WEIR_PORT", env={"WEIR_PORT": "http"})

    yield case(["--build-info"], 0, name=rbee)
    yield case([*WORKER, "--what", "--build-info"], 0, name=rbee)
    yield case(["--help"], 0, out="--hive-url", name=rbee)
    yield case([], 2, err="--worker-id", name=rbee)
    yield case(LOCAL[:-1] + ["--local-mode", "--local-mode"], 2, err="more than once", name=rbee)
    yield case([*WORKER, "--device=one"], 2, name=rbee)
    yield case([*LOCAL, "stray"], 2, err="stray", name=rbee)
    yield case([a for a in LOCAL if a not in ("--hive-url", "http://127.0.0.1:1")], 2, err="--hive-url", name=rbee)
    yield case(LOCAL, 1, err="--local-mode cannot use LLORCH_API_TOKEN", name=rbee, env={"LLORCH_API_TOKEN": "t"})
    yield case(WORKER, 1, err="Network mode requires LLORCH_API_TOKEN", name=rbee)
    yield case(WORKER, 1, err="LLORCH_API_TOKEN cannot be empty in network mode", name=rbee, env={"LLORCH_API_TOKEN": ""})
    yield case(LOCAL, 1, err="Error: ", name=rbee)
    yield case(LOCAL, 1, err="Error: ", name=rbee, env={"LLORCH_API_TOKEN": ""})
    short = ["--worker-id", "w", "--model", "/nonexistent.gguf", "--port", "0"]
    yield case([*short, "--queen-url", "http://127.0.0.1:1"], 1, err="Network mode", name=rbee)
    for variant in ("cpu", "cuda", "metal"):
        yield case([*short, "--hive-url", "http://127.0.0.1:1"], 1, err="Error: ", name=f"{rbee}-{variant}")
        yield case([*short, "--hive-url", "http://127.0.0.1:1", "--local-mode"], 2, err="--local-mode", name=f"{rbee}-{variant}")


def check(c, folder):
    program = WEIR
    if c["name"]:
        program = folder / c["name"]
        if not program.exists():
            program.symlink_to(WEIR)
    done = subprocess.run([str(program), *c["arguments"]], env={**BARE, **c["env"]}, text=True, capture_output=True,
                          timeout=60, **({"input": c["stdin"]} if c["stdin"] is not None else {"stdin": subprocess.DEVNULL}))
    problems = []
    if done.returncode != c["code"]:
        problems.append(f"exit code {done.returncode} instead of {c['code']}")
    if c["out"] is not None and c["out"] not in done.stdout:
        problems.append(f"no {c['out']!r} in stdout {done.stdout[:200]!r}")
    if c["err"] is not None and c["err"] not in done.stderr:
        problems.append(f"no {c['err']!r} in stderr {done.stderr[:300]!r}")
    if c["code"] == 0 and done.stderr:
        problems.append(f"stderr {done.stderr[:200]!r}")
    if problems:
        print(f"FAILED {c['name'] or 'weir'} {' '.join(c['arguments'])}: {'; '.join(problems)}")
    return not problems


def page_is_current():
    page = Path(__file__).parents[3] / "docs" / "models.md"
    done = subprocess.run([WEIR, "models"], text=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode == 0 and done.stdout == page.read_text():
        return True
    print("FAILED docs/models.md is not what the program prints: weir models > docs/models.md")
    return False


def main():
    passed, failed = (1, 0) if page_is_current() else (0, 1)
    with tempfile.TemporaryDirectory() as name, socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        for c in cases(Path(name), busy.getsockname()[1]):
            if check(c, Path(name)):
                passed += 1
            else:
                failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
