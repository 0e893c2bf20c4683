"""Measure publishing: bytes, and seconds to stage, push, push again and load, with the Hub on loopback.

    python tests/benchmarks/bench_publish.py --out tests/benchmarks/publish.json [--preset gpt2]

The run has a model of the preset's shape with random weights. Loopback excludes the network; the time is that of
reading, hashing, drawing and the client.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "helpers"), str(TESTS.parent)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="gpt2")
    given = parser.parse_args()

    import hub_server

    with hub_server.serve(part=2**26) as hub, tempfile.TemporaryDirectory() as work:
        # The client reads these when it is imported.
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_server.WRITER, "HF_HUB_DISABLE_XET": "1"}
        os.environ |= {"HF_HOME": str(Path(work) / "home"), "HF_HUB_OFFLINE": "0"}
        given.out.write_text(json.dumps(measure(hub, Path(work) / "run", given.preset), indent=2) + "\n")
    print(given.out.read_text())


def measure(hub, run: Path, preset: str) -> dict:
    """Time these: stage, push, push unchanged, push with one file changed, load."""
    import torch
    from card_run import write_run

    from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
    from scratch_gpt.hub.publish import publish
    from scratch_gpt.hub.staging import files_of, stage
    from scratch_gpt.tokenization.training import train_tokenizer

    write_run(run)
    model = ScratchGPTForCausalLM(ScratchGPTConfig.from_preset(preset))
    model.save_pretrained(run / "model")
    train_tokenizer(["The cat sat on the mat because it was tired."] * 9, vocab_size=300).save_pretrained(
        run / "model"
    )
    seconds, cpu_seconds, uploads = {}, {}, {}

    def timed(name: str, work, *arguments, **how):
        asked, began, cpu_began = len(hub.requests), time.perf_counter(), time.process_time()
        result = work(*arguments, **how)
        seconds[name] = round(time.perf_counter() - began, 2)
        cpu_seconds[name] = round(time.process_time() - cpu_began, 2)
        uploads[name] = sum(line.startswith("PUT ") or "/commit/" in line for line in hub.requests[asked:])
        return result

    out = timed("stage", stage, run, repo="ada/x")
    sizes = {name: (out / name).stat().st_size for name in files_of(out)}
    assert timed("push", publish, run, "ada/x").has_changed
    assert not timed("push unchanged", publish, run, "ada/x").has_changed
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 20, "tokens": 1280, "loss": 2.0, "epoch": 0.1}) + "\n")
    assert timed("push one changed file", publish, run, "ada/x").has_changed
    again = timed("load", ScratchGPTForCausalLM.from_pretrained, "ada/x", use_safetensors=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    return {
        "preset": preset,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(sizes.values()),
        "bytes_without_weights": sum(size for name, size in sizes.items() if not name.endswith(".safetensors")),
        "files": len(sizes),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # includes the Hub's thread; independent of other load
        "uploads": uploads,  # requests with content: files in LFS, in parts, and the commit
    }


if __name__ == "__main__":
    main()
