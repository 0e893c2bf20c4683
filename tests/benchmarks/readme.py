"""The speed figures of README.md, from the files of the benches.

    python tests/benchmarks/readme.py

writes each part anew between its two marks, `<!-- NAME: written by tests/benchmarks/readme.py -->` and `<!-- end -->`.
A test compares the two.
"""

import re
import textwrap
from pathlib import Path
from statistics import mean

from targets import figures, targets


README = Path(__file__).resolve().parents[2] / "README.md"
MARKED = re.compile(r"(<!-- (\S+): written by tests/benchmarks/readme\.py -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(head: str, rows: list[str]) -> str:
    """Markdown of a table whose first row is `head`."""
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])


def lines(text: str, indent: str = "") -> str:
    return textwrap.fill(" ".join(text.split()), 125, subsequent_indent=indent, break_on_hyphens=False)


def why() -> str:
    """Five sentences with numbers."""
    middle, loop, decoding = figures("training")["workloads"]["middle"], figures("loop"), figures("decoding")
    losses = figures("loss")["figures"]
    heads = [losses[f"head, 4x1024, {precision}"] for precision in ("fp32", "bf16")]
    shares = [head["ours"]["peak_bytes"] / head["plain"]["peak_bytes"] for head in heads]
    step = {name: row["step_seconds"]["median"] for name, row in middle["rows"].items()}
    over, best = (decoding["ratios"]["1x32+128"][how] for how in ("as both come", "each at its best"))
    sentences = (
        f"""**The processor's own 16 bits**: matrix products in bf16 run at {middle["ceilings"]["bf16"]:.0f} GFLOP/s
        here, those in fp32 {middle["ceilings"]["fp32"]:.0f}, so the recipes take bf16 where it is native, and keep
        weights, sums and softmax in fp32.""",
        f"""**The loss is one function with its own backward**: from hidden states to loss and gradients it peaks at
        {shares[0]:.2f} times the memory of the plain form in fp32, {shares[1]:.2f} in bf16, and what it computes in
        fp32 stays in the processor's cache.""",
        f"""**Big buffers are kept**: the plain loop at its best takes {step["reference, best"]:.2f} s a step, and
        {step["reference, best, our allocator"]:.2f} s with an allocator that keeps what is freed instead of handing it
        back page by page; the recipes have glibc do so, in pages of 2 MB.""",
        f"""**The loop stays out of the way**: seeding, checks, sums, metrics and batches are
        {100 * loop["share_of_cpu_seconds"]:.1f} % of a step's processor time in the smallest preset
        ({1e3 * loop["seconds_of_a_step"]["ours"][0]:.0f} ms), and training waits {100 * loop["data_wait"]:.2f} % of
        its time for rows.""",
        f"""**Decoding has a step of its own**, a cache of fixed size and matrices laid out for one row; in int8
        {over["ours int8 / transformers fp32"]:.1f} times transformers' `generate` in fp32 and
        {over["ours int8 / ctranslate2 int8"]:.2f} times CTranslate2 in int8, each at its best (ours compiled)
        {best["ours int8 / transformers fp32"]:.1f} and {best["ours int8 / ctranslate2 int8"]:.2f} times (124M, one
        row, 32 + 128 tokens).""",
    )
    return "\n".join(lines(f"{n}. {sentence}", "   ") for n, sentence in enumerate(sentences, 1))


def training() -> str:
    """What bench_training.py has printed, and what limits the largest model."""
    found = figures("training")
    rows = "\n".join(found["table"][2:-2])  # without the machine's line and that of the losses
    rows = re.sub(r"^(?![|\n]|ceilings)([^,]*, [^,]*), (.*)$", r"**\1**, \2.", rows, flags=re.MULTILINE)
    rows = re.sub(r"^ceilings (.*)$", r"Ceilings \1.", rows, flags=re.MULTILINE)
    gpt2 = found["workloads"]["gpt2"]
    plain, gigaflops = gpt2["rows"]["reference"]["step_seconds"]["median"], gpt2["flops"] / 1e9
    limit = f"""At 124M, 3 times the reference was not reached: its fp32 products alone take
    {gigaflops / gpt2["ceilings"]["fp32"]:.2f} s of its {plain:.2f} s, and a third of its step would be
    {100 * gigaflops / (plain / 3) / gpt2["ceilings"]["bf16"]:.0f} % of the bf16 ceiling, with AdamW's pass over 2 GB
    within it. The more buffers fault on a machine, the slower the reference, and the larger all these ratios."""
    losses = f"""In the first 100 steps from the same weights on the same text, losses out of the box and those of
    plain fp32 are at most {100 * found["losses"]["largest_difference"]:.2f} % apart. On a GPU: not measured."""
    return f"{rows}\n\n![Tokens a second](tests/benchmarks/training.png)\n\n{lines(limit)}\n\n{lines(losses)}"


def decoding() -> str:
    """Tokens a second of each peer, each way."""
    found = figures("decoding")
    kinds = list(dict.fromkeys(" ".join(peer.split()[:2]) for peer in found["runs"]))
    ways = list(dict.fromkeys(peer.removeprefix(kind) for kind in kinds for peer in found["runs"] if kind in peer))
    rows = []
    for work, medians in found["tokens_per_second"].items():
        for way in ways:
            cells = []
            for peer in (kind + way for kind in kinds):
                each = [turn["tokens_per_second"] for turn in found["runs"].get(peer, {work: []})[work]]
                cells.append(f"{medians[peer]:.1f} ({min(each):.0f} - {max(each):.0f})" if each else "")
            rows.append(f"| {work}{way and ','}{way} | {' | '.join(cells)} |")
    what = f"""124M, {found["threads"]} threads, greedy, tokens a second with the prompt's reading included: median of
    {found["rounds"]} turns (lowest - highest), as each comes, with tcmalloc preloaded, and compiled."""
    step = found["int8_step"]
    int8 = f"""A step in int8 takes {step["milliseconds"]:.1f} ms at one row, {step["products_milliseconds"]:.1f} of
    them in its {step["products"]} products, among {step["operations"]:,.0f} operations; compiled it takes
    {step["milliseconds_compiled"]:.1f} ms. 124M in int8 loads in
    {found["runs"]["ours int8"]["prepare_seconds"]:.1f} s, compiled in
    {found["runs"]["ours int8" + ways[-1]]["prepare_seconds"]:.1f} s, and raises a trained 2.6M model's perplexity by
    {100 * found["perplexity"]["rise"]:.2f} %."""
    head = f"| rows x prompt + new | {' | '.join(kinds)} |"
    return f"{lines(what)}\n\n{table(head, rows)}\n\n{lines(int8)}"


def quality() -> str:
    """How long until a loss, and what more time gives."""
    found = figures("quality")
    rows = []
    for name in ("reference", "ours", "ours, 5 minutes", "ours, 15 minutes"):
        one = found[name]
        steps = one["runs"][0]["steps"] if "runs" in one else one["steps"]
        seconds, loss = f"{one['seconds']:.1f}", f"{one['loss']:.3f}"
        if "runs" in one:
            seconds, loss = f"{seconds} ({one['seconds_std']:.1f})", f"{loss} ({one['loss_std']:.3f})"
        rows.append(f"| {name} | {steps:,} | {seconds} | {loss} |")
    runs = found["ours"]["runs"]
    beside = mean(run["seconds"] - run["steps"] * run["step_seconds"] for run in runs)
    less = found["reference"]["loss"] - found["ours"]["loss"]
    where = f"{less:.3f} nats below the reference" if less > 0 else "Short of the reference"
    what = f"""{where} in
    {100 * found["time_over_reference"]:.0f} % of its time, imports, tokenizer, evaluations and saving ({beside:.0f} s)
    included."""
    return f"{table('| | steps | seconds | loss, nats a character |', rows)}\n\n{lines(what)}"


def plan() -> str:
    """Plans beside runs."""
    rows = []
    for size, found in figures("plan")["figures"].items():
        seconds, memory = found["seconds"], found["bytes"]
        times = f"{1e3 * seconds['planned']:,.0f} ms | {1e3 * seconds['measured']:,.0f} ms | {seconds['ratio']:.2f}"
        sizes = f"{memory['planned'] / 1e9:.2f} GB | {memory['measured'] / 1e9:.2f} GB | {memory['ratio']:.2f}"
        rows.append(f"| {size} | {times} | {sizes} |")
    return table("| | time planned | run | ratio | memory planned | run | ratio |", rows)


def scaling() -> str:
    """One field at a time."""
    rows = [
        f"| {name}{f' {row[name]:,}' if name in row else ''} | {row['microseconds_per_token']:.1f} "
        f"| {row['gflops_per_second']:.0f} | {row['bytes'] / 1e6:,.0f} | {row['bytes_counted'] / 1e6:,.0f} |"
        for name, found in figures("scaling")["table"].items()
        for row in found
    ]
    return table("| | µs a token | GFLOP/s | MB | counted |", rows)


def aims() -> str:
    return table("| | aim | found | |", [str(target) for target in targets()])


PARTS = (why, training, decoding, quality, plan, scaling, aims)


def written(text: str) -> str:
    """The text with every part as the files say it now.

    Raises:
        KeyError: a mark of a part that is none.
    """
    makers = {part.__name__: part for part in PARTS}
    return MARKED.sub(lambda found: f"{found[1]}{makers[found[2]]()}\n", text)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
