"""Measure greedy decoding at GPT-2's 124M in tokens per second: ours, transformers' generate and CTranslate2.

    python tests/benchmarks/bench_decoding.py [--rounds 7] [--checkpoint FOLDER --text FILE] [--out FILE.json]

Each peer has a warm process; all have the same random weights. They take turns, never two at once; a turn is timed
from prompt to last token, including the prompt. Our weights are laid out in the first turn, which is not counted; in
int8 before that ("prepare_seconds"). Every peer generates exactly the number of tokens requested. A round in which
other processes used more than FOREIGN of the machine (load.py) is dropped for all. Each peer runs at its defaults and
with tcmalloc preloaded, if installed; transformers also compiled, with the static cache that this needs; CTranslate2
on glibc's huge pages; ours with its step in C ("compiled"), and assisted by its own int8 form, which changes no token
(with one row only). "At its best" is the fastest of these.
"fp32_step" and "int8_step" are the times of our step, in torch and in C, and of its matrix products; "int8_seconds"
is the time of the conversion to int8, in seven processes.
With a trained --checkpoint, also the perplexity of a text in fp32 and int8, and the share of an int8 assistant's
guesses that are accepted. Needs the extra bench.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from allocator import TCMALLOC
from load import FOREIGN, foreign_share, processor_seconds
from targets import fastest


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in our recipes; set for all peers
KINDS = ("transformers fp32", "transformers bf16", "ctranslate2 int8", "ours fp32", "ours bf16", "ours int8")
ASSISTED = ("ours fp32 assisted", "ours bf16 assisted")
PEERS = [*KINDS, *ASSISTED, *(f"{kind} tcmalloc" for kind in (*KINDS, *ASSISTED) if TCMALLOC)]
# With bf16, only the assistant.
COMPILED = ["transformers fp32", "transformers bf16", "ours fp32", "ours int8", *ASSISTED]
PEERS += [f"{kind} compiled{' tcmalloc' * bool(TCMALLOC)}" for kind in COMPILED]
PEERS += ["ctranslate2 int8 hugetlb"]  # ours moves its int8 weights to huge pages without this
ENVIRONMENTS = {"tcmalloc": {"LD_PRELOAD": TCMALLOC}, "hugetlb": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
# Rows x prompt + new tokens: multiples of --rounds. The first has targets, and its turns are short.
WORK = {"1x32+128": 2, "8x32+128": 1, "1x900+100": 1}
VOCABULARY = 50257
PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "quantized::linear_dynamic")  # matmul.py's


def make(folder: Path, size: dict) -> None:
    """Write random weights in GPT-2's stock layout, a tokenizer of one word per id, and CTranslate2's int8 form."""
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
    """Return a peer's function (ids, new) -> tokens, and the seconds of its preparation."""
    name, kind, *way = peer.split()
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
        static = {}
        if "compiled" in way:
            static = {"cache_implementation": "static"}
            model.forward = torch.compile(model.forward)

        def run(ids, new):
            how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0, **static}
            return model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :].tolist()

        return run, time.perf_counter() - start
    import scratch_gpt
    from scratch_gpt.generation.decoder import make_decoder
    from scratch_gpt.utils.memory import keep_freed_memory

    keep_freed_memory()  # as training/generate.py does
    model = scratch_gpt.ScratchGPTForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    start = time.perf_counter()
    compiled = "compiled" in way
    decoder = make_decoder(model, "int8" if kind == "int8" else None, compiled and kind != "bf16")
    seconds = time.perf_counter() - start
    more = {"assistant_model": make_decoder(model, "int8", compiled)} if "assisted" in way else {}

    def run(ids, new):
        ids = scratch_gpt.generate(decoder, ids, max_new_tokens=new, temperature=0, **more)
        return ids[:, -new:].tolist()

    return run, seconds


def peak_mib() -> float:
    """Return the peak memory of this process. getrusage would return at least that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def serve(peer: str, folder: Path, threads: int) -> None:
    """Run the process of a peer: for each line of stdin (rows, prompt, new), print a line of results."""
    run, seconds = prepare(peer, folder, threads)
    print(json.dumps({"prepare_seconds": seconds}), flush=True)
    for line in sys.stdin:
        rows, length, new = map(int, line.split())
        ids = prompts(rows, length)
        start, busy = time.perf_counter(), time.process_time()
        tokens = run(ids, new)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        assert [len(row) for row in tokens] == [new] * rows, [len(row) for row in tokens]
        figures = {"tokens_per_second": rows * new / seconds, "peak_mib": peak_mib(), "cpu_seconds": busy}
        print(json.dumps(figures), flush=True)


def measure(folder: Path, peers: list[str], work: list[str], rounds: int, threads: int) -> tuple[dict, dict]:
    """Run every peer's work in turns; return the results, and the counted and dropped rounds of each work."""
    command = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads), "--serve"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["OMP_NUM_THREADS"] = str(threads)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes, found, counts = {}, {}, {}
    for peer in peers:
        allocator = ENVIRONMENTS.get(peer.split()[-1], {})
        processes[peer] = subprocess.Popen([*command, peer], env=environment | allocator, **pipes)
        found[peer] = json.loads(processes[peer].stdout.readline())
    for one in work:
        take_round(processes, one)  # warms up
        kept, dropped, wanted = [], [], rounds * WORK.get(one, 1)
        while len(kept) < wanted and len(kept) + len(dropped) < math.ceil(1.5 * wanted):
            processes = dict(reversed(processes.items()))
            turns = take_round(processes, one)
            (kept if max(turn["foreign"] for turn in turns.values()) <= FOREIGN else dropped).append(turns)
        for peer in peers:
            if peer in turns:
                found[peer][one] = [turns[peer] for turns in kept or dropped]
        counts[one] = {"kept": len(kept), "dropped": len(dropped)}
        print_table(found, [one])
        print(f"{one:12} {len(kept)} rounds, {len(dropped)} dropped because of other load", flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found, counts


def time_preparing(peer: str, folder: Path, threads: int, times: int = 7) -> list[float]:
    """Return the seconds of a peer's preparation in several processes."""
    return [measure(folder, [peer], [], 0, threads)[0][peer]["prepare_seconds"] for _ in range(times)]


def take_round(processes: dict[str, subprocess.Popen], one: str) -> dict[str, dict]:
    """Run a turn of each peer; "foreign" is the share of the machine that other processes used meanwhile."""
    turns = {}
    for peer, process in processes.items():
        if "assisted" in peer and not one.startswith("1x"):
            continue
        before = processor_seconds()
        process.stdin.write(one.replace("x", " ").replace("+", " ") + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        turns[peer] = answer | {"foreign": foreign_share(before, answer["cpu_seconds"])}
    return turns


def profile_step(folder: Path, threads: int, quantize: str | None, steps: int = 64) -> dict:
    """Time a step of one token in fp32 or int8, in torch and in C, and the matrix products of the step in torch.

    The profiler measures the share of the products.
    """
    import torch
    from torch.profiler import profile

    import scratch_gpt
    from scratch_gpt.generation.decoder import make_decoder
    from scratch_gpt.utils.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    model = scratch_gpt.ScratchGPTForCausalLM.from_pretrained(folder).eval()
    ids = prompts(1, 32 + 2 * steps)
    mask = torch.ones_like(ids)
    by_torch, in_c = (make_decoder(model, quantize, compile) for compile in (False, True))
    for decoder in (by_torch, in_c):
        decoder.start(ids[:, :32], mask[:, :32], ids.shape[1])

    def step(decoder, n: int) -> float:
        start = time.perf_counter()
        decoder.step(ids[:, n : n + 1], mask[:, : n + 1])
        return 1e3 * (time.perf_counter() - start)

    taken = [step(by_torch, n) for n in range(32, 32 + steps)]
    taken_in_c = [step(in_c, n) for n in range(32, 32 + steps)]
    with profile() as seen:
        profiled = sum(step(by_torch, n) for n in range(32 + steps, ids.shape[1]))
    events = seen.key_averages()
    products = [event for event in events if event.key in PRODUCTS]
    share = sum(event.self_cpu_time_total for event in products) / 1e3 / profiled
    return {
        "milliseconds": statistics.median(taken),
        "milliseconds_in_c": statistics.median(taken_in_c),
        "products_milliseconds": share * statistics.median(taken),
        "products": sum(event.count for event in products) / steps,
        "other_operations": sum(e.count for e in events if "::" in e.key and e not in products) / steps,
    }


def speeds(found: dict, peer: str, one: str) -> list[float]:
    return [turn["tokens_per_second"] for turn in found[peer][one]]


def print_table(found: dict, work: list[str]) -> None:
    for one in work:
        for peer in (peer for peer in found if one in found[peer]):
            values = speeds(found, peer, one)
            spread = f"{statistics.median(values):7.1f} ({min(values):.1f} - {max(values):.1f}) tokens/s"
            print(f"{one:12} {peer:26} {spread}", flush=True)


def summary(found: dict, work: list[str]) -> dict:
    """Return medians, and the ratios of ours to each peer, both at their defaults and both at their best."""
    medians = {
        one: {peer: statistics.median(speeds(found, peer, one)) for peer in found if one in found[peer]}
        for one in work
    }
    ratios = {}
    for one, row in medians.items():
        best = {kind: row[fastest(row, kind)] for kind in KINDS if kind in row}
        pairs = [(mine, other) for mine in best for other in best if mine[:4] == "ours" != other[:4]]
        ratios[one] = {
            how: {f"{mine} / {other}": of[mine] / of[other] for mine, other in pairs}
            for how, of in (("as both come", row), ("each at its best", best))
        }
    return {"tokens_per_second": medians, "ratios": ratios}


def look_at_trained(checkpoint: str, file: Path) -> dict:
    """Measure a trained model's perplexity of a text in fp32 and int8, and the share of int8 guesses that it accepts.

    The rows are as long as the context. Guesses are counted greedily and at temperature 1, as the model completes 20
    rows from their first quarter.
    """
    import torch
    import torch.nn.functional as F

    import scratch_gpt
    from scratch_gpt.generation.decoder import ForwardDecoder, make_decoder
    from scratch_gpt.tokenization.tokenizer import encode

    model = scratch_gpt.ScratchGPTForCausalLM.from_pretrained(checkpoint).eval()
    ids = torch.tensor(encode(scratch_gpt.load_tokenizer(checkpoint), file.read_text(encoding="utf-8")))
    T = model.config.max_position_embeddings
    rows = ids[: len(ids) // T * T].view(-1, T)[:500]
    found, assistant = {"text": file.name, "tokens": rows.numel()}, make_decoder(model, "int8")
    for name, decoder in (("fp32", ForwardDecoder(model)), ("int8", assistant)):
        loss = 0.0
        for some in rows.split(16):
            mask = torch.ones_like(some)
            with torch.no_grad():
                decoder.start(some[:, :1], mask[:, :1], T)
                logits = decoder.step(some[:, 1:], mask)[:, :-1]
            loss += F.cross_entropy(logits.flatten(0, 1), some[:, 2:].flatten()).item() * len(some) / len(rows)
        found[name] = math.exp(loss)
    for temperature in (0, 1):
        decoder = make_decoder(model)
        for row in rows[:: len(rows) // 20][:20]:
            how = {"temperature": temperature, "max_new_tokens": T - T // 4, "assistant_model": assistant}
            scratch_gpt.generate(decoder, row[None, : T // 4], **how)
        found[f"accepted at {temperature}"] = decoder.accepted / decoder.guessed
    found |= {"parameters": model.num_parameters(), "rise": found["int8"] / found["fp32"] - 1}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted turns of each peer; twice that for 1x32+128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--work", nargs="+", default=[*WORK], help="rows x prompt + new tokens")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model; fewer for a quick try")
    parser.add_argument("--checkpoint", help="a trained model, for its perplexity in int8")
    parser.add_argument("--text", type=Path, help="a text that it was not trained on")
    parser.add_argument("--out", type=Path)
    for hidden in ("--make", "--folder", "--serve"):  # arguments of the child processes
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        return make(Path(options.make), {"n_layer": options.layers})
    if options.serve:
        return serve(options.serve, Path(options.folder), options.threads)
    import torch  # not at the top: the process of CTranslate2 does not import torch
    from peers import measure_ceilings

    result = {"rounds": options.rounds, "threads": options.threads, "cpu": torch.cpu.get_capabilities()["cpu_name"]}
    result["ceilings"] = measure_ceilings()("machine", 1)
    if options.checkpoint:
        result["perplexity"] = look_at_trained(options.checkpoint, options.text)
    else:  # keep that of the last checkpoint
        before = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
        result["perplexity"] = before.get("perplexity")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--make", folder, "--layers", str(options.layers)]
        subprocess.run(command, check=True)
        result["fp32_step"] = profile_step(Path(folder), options.threads, None)
        result["int8_step"] = profile_step(Path(folder), options.threads, "int8")
        result["int8_seconds"] = time_preparing("ours int8", Path(folder), options.threads)
        found, counts = measure(Path(folder), list(options.peers), list(options.work), options.rounds, options.threads)
    result |= {"counts": counts, **summary(found, options.work), "runs": found}
    print(json.dumps({name: result[name] for name in ("perplexity", "tokens_per_second", "ratios")}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
