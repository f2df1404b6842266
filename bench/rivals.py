"""The programs that weir is compared with: one entry each, which says how to get it, build it, run it and read what it says.

A measurement asks for prompts ("pp512"), answers ("tg128"), answers after a depth ("tg128 @ d4096") or answers of several sequences
at once ("8 x tg64"); each program's entry turns that into a command, and the command's output into {label: tokens per second}.
"""
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weir"
# What reading the build description of a source archive needs; pip does that even when it only downloads.
BUILD_NEEDS = ["scikit-build-core", "pyproject_metadata", "pathspec", "flit_core", "setuptools", "wheel"]
# (CPU flag of /proc/cpuinfo, CMake option) of the builds that leave out AMX
EXTENSIONS = [("avx512f", "GGML_AVX512"), ("avx512vbmi", "GGML_AVX512_VBMI"), ("avx512_vnni", "GGML_AVX512_VNNI"),
              ("avx512_bf16", "GGML_AVX512_BF16"), ("avx2", "GGML_AVX2"), ("fma", "GGML_FMA"), ("f16c", "GGML_F16C"), ("bmi2", "GGML_BMI2")]
CMAKE_OPTIONS = ["-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DBUILD_SHARED_LIBS=OFF",
                 "-DCMAKE_BUILD_TYPE=Release"]


@dataclass(frozen=True)
class Task:
    """What is measured in one run of a program; lengths in tokens."""
    model: str
    threads: int
    n_prompt: int = 0
    n_gen: int = 0
    depth: int = 0                  # tokens in the sequence before the answer
    parallel: tuple = ()            # numbers of sequences: then n_prompt and n_gen are each sequence's


@dataclass(frozen=True)
class Rival:
    name: str
    package: str                                # on PyPI
    tree: Optional[str]                         # folder of the C++ project in the source archive; None: the wheel is used
    options: list = field(default_factory=list)  # of CMake, beside CMAKE_OPTIONS
    files: dict = field(default_factory=dict)    # what the archive lacks: path in the tree -> text
    variants: tuple = ("native",)                # builds to try
    settings: tuple = ({},)
    single: Callable = None                      # (folder of programs, Task, setting) -> command
    batched: Optional[Callable] = None           # the same for several sequences
    environment: Callable = lambda task: {}


def label_of(row):
    """The label of a row of the JSON of llama-bench, llama-batched-bench or weir bench."""
    if "speed_tg" in row:
        return f"{row['pl']} x tg{row['tg']}"
    if "n_parallel" in row:  # weir bench -npl
        return f"{row['n_parallel']} x tg{row['n_gen']}"
    if row["n_prompt"] and row["n_gen"]:  # ik_llama.cpp's answers after a depth
        return f"tg{row['n_gen']} @ d{row['n_prompt']}"
    label = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
    return label + (f" @ d{row['n_depth']}" if row.get("n_depth") else "")


def parse(text):
    """{label: tokens per second} from what llama-bench, llama-batched-bench or weir bench print."""
    found = re.search(r"^[\[{]", text, re.M)  # log lines may come before
    if found is None:
        # The table of an older llama-batched-bench: PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S.
        table = re.findall(r"^\|((?: *[0-9.]+ \|){10})", text, re.M)
        if not table:
            raise ValueError("neither JSON nor a table in the output")
        cells = [row.replace(" ", "").split("|") for row in table]
        return {f"{row[2]} x tg{row[1]}": float(row[7]) for row in cells}
    start = found.start()
    lines = [line for line in text[start:].splitlines() if line.startswith("{") and line.endswith("}")]
    rows = [json.loads(line) for line in lines] if text[start] == "{" else json.JSONDecoder().raw_decode(text[start:])[0]
    speeds = {}
    for row in rows:
        samples = row["samples_ts_tg"] if "n_parallel" in row else [row["speed_tg"]] if "speed_tg" in row else row["samples_ts"]
        speeds[label_of(row)] = statistics.median(samples)
    return speeds


def flags(setting):
    return [str(part) for pair in setting.items() for part in pair]


def llama_single(folder, task, setting):
    return [folder / "llama-bench", "-m", task.model, "-t", task.threads, "-p", task.n_prompt, "-n", task.n_gen, "-d", task.depth, "-r", 1,
            "-o", "json", *flags(setting)]


def context_of(task):
    return max(task.parallel) * (task.n_prompt + task.n_gen) + 64


def llama_batched(folder, task, setting):
    extra = ["--no-repack"] if setting.get("--repack") == 0 else []
    return [folder / "llama-batched-bench", "-m", task.model, "-t", task.threads, "-c", context_of(task), "-npp", task.n_prompt,
            "-ntg", task.n_gen, "-npl", ",".join(map(str, task.parallel)), "--output-format", "jsonl", "-fa", "on" if setting["-fa"] else "off",
            *extra]


def ik_single(folder, task, setting):
    tests = ["-p", 0, "-n", 0, "-gp", f"{task.depth},{task.n_gen}"] if task.depth else ["-p", task.n_prompt, "-n", task.n_gen]
    return [folder / "llama-bench", "-m", task.model, "-t", task.threads, *tests, "-r", 1, "-o", "json", *flags(setting)]


def ik_batched(folder, task, setting):
    extra = (["-rtr"] if setting["-rtr"] else []) + (["-mqkv"] if setting.get("-mqkv") else []) + (["-thp"] if setting.get("-thp") else [])
    return [folder / "llama-batched-bench", "-m", task.model, "-t", task.threads, "-c", context_of(task), "-npp", task.n_prompt,
            "-ntg", task.n_gen, "-npl", ",".join(map(str, task.parallel)), "-fa", "on" if setting["-fa"] else "off",
            *extra]


def mistralrs_single(folder, task, setting):
    return [folder / "python", ROOT / "bench" / "mistralrs_bench.py", "-m", task.model, "-p", task.n_prompt, "-n", task.n_gen, "-d", task.depth]


RIVALS = [
    Rival("llama.cpp", "llama-cpp-python", "vendor/llama.cpp", options=["-DLLAMA_BUILD_UI=OFF", "-DLLAMA_BUILD_WEBUI=OFF"],
          variants=("native", "avx512"), settings=tuple({"--repack": repack, "-fa": fa} for repack in (1, 0) for fa in (1, 0)),
          single=llama_single, batched=llama_batched),
    # Its attention kernels are built for the default KV types only, which saves most of the build's time.
    Rival("ik_llama.cpp", "ik-llama-cpp-python", "vendor/ik_llama.cpp", options=["-DGGML_IQK_FA_ALL_QUANTS=OFF"],
          files={"common/build-info.cpp": 'int LLAMA_BUILD_NUMBER = 0;\nchar const *LLAMA_COMMIT = "unknown";\n'
                                          'char const *LLAMA_COMPILER = "unknown";\nchar const *LLAMA_BUILD_TARGET = "unknown";\n'},
          settings=(*({"-rtr": rtr, "-fa": fa} for rtr in (1, 0) for fa in (1, 0)), {"-rtr": 1, "-fa": 1, "-mqkv": 1},
                    {"-rtr": 0, "-fa": 1, "-thp": 1}),
          single=ik_single, batched=ik_batched),
    Rival("mistral.rs", "mistralrs", None, single=mistralrs_single,
          environment=lambda task: {"RAYON_NUM_THREADS": str(task.threads), "HF_HUB_OFFLINE": "1"}),
]
TARGETS = ["llama-bench", "llama-batched-bench"]


def say(text):
    print(text, file=sys.stderr, flush=True)


def cpu_info():
    """The name of the CPU and its flags."""
    name, flags = platform.processor() or "unknown CPU", set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() == "flags":
            flags = set(value.split())
    return name, flags


def python_with(*packages):
    """The Python of the cache folder's virtual environment, with these packages."""
    done = subprocess.run(["bash", "-c", '. scripts/setup.sh && python_with "$@"', "bash", *packages], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"the Python packages {' '.join(packages)} cannot be had")
    return Path(done.stdout.strip())


def source(rival):
    """The folder of the C++ project, downloaded if need be."""
    folder = CACHE / rival.name
    tree = folder / "source" / rival.tree
    if not (tree / "CMakeLists.txt").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [str(python_with(*BUILD_NEEDS)), "-m", "pip", "--disable-pip-version-check"]
        with tempfile.TemporaryDirectory(dir=folder) as download:
            subprocess.run([*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", download, rival.package], check=True,
                           stdin=subprocess.DEVNULL, stdout=sys.stderr)
            archive, = Path(download).glob("*.tar.gz")
            unpacked = Path(download) / "unpacked"
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(unpacked)
            top, = unpacked.iterdir()
            shutil.rmtree(folder / "source", ignore_errors=True)
            shutil.move(top, folder / "source")
        (folder / "version").write_text(archive.name.removesuffix(".tar.gz"))
    for path, text in rival.files.items():
        if not (tree / path).is_file():
            (tree / path).write_text(text)
    return tree


def cmake_options(variant, cpu_flags):
    """Of a build variant; None: this CPU has no use for it."""
    if variant == "native":
        return ["-DGGML_NATIVE=ON"]
    if variant == "avx512" and "avx512f" not in cpu_flags:
        return None
    wanted = [(flag, option) for flag, option in EXTENSIONS if variant == "avx512" or not flag.startswith("avx512")]
    return ["-DGGML_NATIVE=OFF", *(f"-D{option}=ON" for flag, option in wanted if flag in cpu_flags)]


def build(rival, variant, cpu_flags):
    """The folder of the built programs; None: no such variant on this CPU. RuntimeError: it cannot be built."""
    if rival.tree is None:
        return python_with(rival.package).parent
    options = cmake_options(variant, cpu_flags)
    if options is None:
        return None
    folder = CACHE / rival.name / f"build-{variant}"
    if all((folder / "bin" / target).is_file() for target in TARGETS):
        return folder / "bin"
    tree = source(rival)
    say(f"Building {rival.name} ({variant}); this takes some minutes")
    log = CACHE / rival.name / f"build-{variant}.log"
    with open(log, "w") as out:
        for command in (["cmake", "-S", str(tree), "-B", str(folder), *CMAKE_OPTIONS, *rival.options, *options],
                        ["cmake", "--build", str(folder), f"-j{os.cpu_count()}", "--target", *TARGETS]):
            if subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL).returncode != 0:
                raise RuntimeError(f"the build failed; see {log}")
    return folder / "bin"


def version(rival):
    """Package and version."""
    folder = CACHE / rival.name
    if rival.tree is None:
        done = subprocess.run([CACHE / "venv" / "bin" / "python", "-c",
                               f"import importlib.metadata as m; print(m.version({rival.package!r}))"], capture_output=True, text=True)
        return f"{rival.package} {done.stdout.strip()}"
    if (folder / "version").is_file():
        return (folder / "version").read_text().strip()
    info = folder / "source" / "PKG-INFO"
    for line in info.read_text(errors="replace").splitlines() if info.is_file() else []:
        if line.startswith("Version: "):
            return f"{rival.package} {line[9:]}"
    return f"{rival.package}, version unknown"
