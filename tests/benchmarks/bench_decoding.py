"""Tokens per second of greedy decoding at GPT-2's 124M: ours beside transformers' generate and CTranslate2.

    python tests/benchmarks/bench_decoding.py [--rounds 7] [--checkpoint FOLDER --text FILE] [--out FILE.json]

One warm process for each peer, all on the same random weights; they take turns, never two at once, and each says how
long it took from prompt to last token, the prompt's reading included. Our weights' layout is made in the first turn,
which is not counted, in int8 before it ("prepare_seconds"). Every peer draws exactly the tokens that are asked for.
As it comes; with tcmalloc preloaded, where that is installed; and compiled too (CTranslate2 has nothing to compile),
transformers with the static cache that this takes. "At its best" is the fastest of these.
Of our step in int8, what its products take ("int8_step").
With a trained --checkpoint, the perplexity of its text in fp32 and int8 as well. Needs the extra bench.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from allocator import TCMALLOC


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as our recipes do; for all peers
KINDS = ("transformers fp32", "transformers bf16", "ctranslate2 int8", "ours fp32", "ours bf16", "ours int8")
WAYS = (*("", " tcmalloc")[: 2 if TCMALLOC else 1], " compiled" + " tcmalloc" * bool(TCMALLOC))
PEERS = [kind + way for way in WAYS for kind in KINDS if not ("compiled" in way and kind.startswith("ctranslate2"))]
WORK = ("1x32+128", "8x32+128", "1x900+100")  # rows x prompt + new tokens
VOCABULARY = 50257


def make(folder: Path, size: dict) -> None:
    """Random weights in GPT-2's stock layout, a tokenizer whose words are its ids, and CTranslate2's int8 of both."""
    import ctranslate2
    import torch
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **size)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "0")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(folder / "ct2"), quantization="int8")


def prompts(rows: int, length: int):
    import torch

    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


def prepare(peer: str, folder: Path, threads: int):
    """(ids, new) -> tokens, by one peer, as a function; and what its preparing took in seconds."""
    (name, kind), is_compiled = peer.split()[:2], "compiled" in peer
    if name == "ctranslate2":
        import ctranslate2

        start = time.perf_counter()
        generator = ctranslate2.Generator(str(folder / "ct2"), compute_type=kind, intra_threads=threads)

        def run(ids, new):
            words = [[str(n) for n in row] for row in ids.tolist()]
            how = {"max_length": new, "min_length": new, "sampling_topk": 1, "include_prompt_in_result": False}
            return [result.sequences_ids[0] for result in generator.generate_batch(words, **how)]

        return run, time.perf_counter() - start
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    if name == "transformers":
        start = time.perf_counter()
        model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval()
        static = {"cache_implementation": "static"} if is_compiled else {}
        if is_compiled:
            model.forward = torch.compile(model.forward)

        def run(ids, new):
            how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0, **static}
            return model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :].tolist()

        return run, time.perf_counter() - start
    import scratch_gpt
    from scratch_gpt.decoding import make_decoder

    model = scratch_gpt.ScratchGPTForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    start = time.perf_counter()
    decoder = make_decoder(model, "int8" if kind == "int8" else None, is_compiled)
    seconds = time.perf_counter() - start

    def run(ids, new):
        ids = scratch_gpt.generate(decoder, ids, max_new_tokens=new, temperature=0)
        return ids[:, -new:].tolist()

    return run, seconds


def serve(peer: str, folder: Path, threads: int) -> None:
    """A peer's process: one line in (rows, prompt, new), one line out."""
    run, seconds = prepare(peer, folder, threads)
    print(json.dumps({"prepare_seconds": seconds}), flush=True)
    for line in sys.stdin:
        rows, length, new = map(int, line.split())
        ids = prompts(rows, length)
        start = time.perf_counter()
        tokens = run(ids, new)
        seconds = time.perf_counter() - start
        assert [len(row) for row in tokens] == [new] * rows, [len(row) for row in tokens]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"tokens_per_second": rows * new / seconds, "peak_mib": peak}), flush=True)


def measure(folder: Path, peers: list[str], work: list[str], rounds: int, threads: int) -> dict:
    """Every peer's work in turns; a first, uncounted turn warms it."""
    command = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads), "--serve"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["OMP_NUM_THREADS"] = str(threads)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes, found = {}, {}
    for peer in peers:
        allocator = {"LD_PRELOAD": TCMALLOC} if peer.endswith("tcmalloc") else {}
        processes[peer] = subprocess.Popen([*command, peer], env=environment | allocator, **pipes)
        found[peer] = json.loads(processes[peer].stdout.readline())
    for one in work:
        sizes = one.replace("x", " ").replace("+", " ")
        for number in range(rounds + 1):
            for peer in peers if number % 2 else peers[::-1]:
                process = processes[peer]
                process.stdin.write(f"{sizes}\n")
                process.stdin.flush()
                said = json.loads(process.stdout.readline())
                if number:
                    found[peer].setdefault(one, []).append(said)
        print_table(found, [one])
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found


def int8_step(folder: Path, threads: int, steps: int = 64) -> dict:
    """What one token takes in int8, compiled and not, and what of the latter its products take by torch's profiler."""
    import torch
    from torch.profiler import profile

    import scratch_gpt
    from scratch_gpt.decoding import make_decoder

    torch.set_num_threads(threads)
    model = scratch_gpt.ScratchGPTForCausalLM.from_pretrained(folder).eval()
    ids = prompts(1, 32 + steps)
    mask = torch.ones_like(ids)

    def milliseconds(decoder) -> float:
        taken = []
        decoder.start(ids[:, :32], mask[:, :32], ids.shape[1])
        for n in range(32, 32 + steps):
            start = time.perf_counter()
            decoder.step(ids[:, n : n + 1], mask[:, : n + 1])
            taken.append(1e3 * (time.perf_counter() - start))
        return statistics.median(taken)

    plain, compiled = (make_decoder(model, "int8", compile) for compile in (False, True))
    found = {"milliseconds": milliseconds(plain), "milliseconds_compiled": milliseconds(compiled)}
    with profile() as seen:
        milliseconds(plain)
    products = [event for event in seen.events() if event.name.startswith("onednn::qlinear")]
    prompt = len(products) // (steps + 1)  # the prompt's, first
    return {
        **found,
        "products": prompt,
        "products_milliseconds": sum(event.self_cpu_time_total for event in products[prompt:]) / steps / 1e3,
        "operations": sum("::" in event.name for event in seen.events()) / (steps + 1),
    }


def speeds(found: dict, peer: str, one: str) -> list[float]:
    return [said["tokens_per_second"] for said in found[peer][one]]


def print_table(found: dict, work: list[str]) -> None:
    for one in work:
        for peer in found:
            values = speeds(found, peer, one)
            spread = f"{statistics.median(values):7.1f} ({min(values):.1f} - {max(values):.1f}) tokens/s"
            print(f"{one:12} {peer:26} {spread}", flush=True)


def summary(found: dict, work: list[str]) -> dict:
    """Medians, and ours over each peer, as both come and each at its best."""
    medians = {one: {peer: statistics.median(speeds(found, peer, one)) for peer in found} for one in work}
    ratios = {}
    for one, row in medians.items():
        best = {
            kind: max(value for peer, value in row.items() if peer.startswith(kind)) for kind in KINDS if kind in row
        }
        pairs = [(mine, other) for mine in best for other in best if mine[:4] == "ours" != other[:4]]
        ratios[one] = {
            how: {f"{mine} / {other}": of[mine] / of[other] for mine, other in pairs}
            for how, of in (("as both come", row), ("each at its best", best))
        }
    return {"tokens_per_second": medians, "ratios": ratios}


def perplexities(checkpoint: str, file: Path) -> dict:
    """A trained model's perplexity of a text, in rows of its context, in fp32 and int8."""
    import torch
    import torch.nn.functional as F

    import scratch_gpt
    from scratch_gpt.decoding import ForwardDecoder, make_decoder
    from scratch_gpt.tokenizer import encode

    model = scratch_gpt.ScratchGPTForCausalLM.from_pretrained(checkpoint).eval()
    ids = torch.tensor(encode(scratch_gpt.load_tokenizer(checkpoint), file.read_text()))
    T = model.config.max_position_embeddings
    rows = ids[: len(ids) // T * T].view(-1, T)[:500]
    found = {"text": file.name, "tokens": rows.numel()}
    decoders = {
        "fp32": (ForwardDecoder(model), 16, T),
        "int8": (make_decoder(model, "int8"), 16, T),
        "int8 compiled": (make_decoder(model, "int8", compile=True), 1, 1),  # one token of one row at a time
    }
    for name, (decoder, some, new) in decoders.items():
        loss = 0.0
        for part in rows.split(some):
            mask = torch.ones_like(part)
            with torch.no_grad():
                decoder.start(part[:, :1], mask[:, :1], T)
                logits = [decoder.step(part[:, n : n + new], mask[:, : n + new]) for n in range(1, T, new)]
            logits = torch.cat(logits, 1)[:, :-1].flatten(0, 1)
            loss += F.cross_entropy(logits, part[:, 2:].flatten()).item() * len(part) / len(rows)
        found[name] = math.exp(loss)
    return {**found, "rise": max(found["int8"], found["int8 compiled"]) / found["fp32"] - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted turns of each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--work", nargs="+", default=WORK, help="rows x prompt + new tokens")
    parser.add_argument("--layers", type=int, default=12, help="fewer to try it out")
    parser.add_argument("--checkpoint", help="a trained model, for its perplexity in int8")
    parser.add_argument("--text", type=Path, help="a text that it has not seen")
    parser.add_argument("--out", type=Path)
    for hidden in ("--make", "--folder", "--serve"):  # what the other processes are called with
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        return make(Path(options.make), {"n_layer": options.layers})
    if options.serve:
        return serve(options.serve, Path(options.folder), options.threads)
    result = {"rounds": options.rounds, "threads": options.threads, "machine": platform.processor() or "unknown"}
    result["perplexity"] = perplexities(options.checkpoint, options.text) if options.checkpoint else None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--make", folder, "--layers", str(options.layers)]
        subprocess.run(command, check=True)
        result["int8_step"] = int8_step(Path(folder), options.threads)
        found = measure(Path(folder), list(options.peers), list(options.work), options.rounds, options.threads)
    result |= {**summary(found, options.work), "runs": found}
    print(json.dumps({name: result[name] for name in ("perplexity", "tokens_per_second", "ratios")}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
