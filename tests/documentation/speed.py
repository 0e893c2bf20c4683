"""Write what the benches measured as Markdown: why it is fast, and every table of speed."""

import re
from collections.abc import Iterator
from statistics import mean, median

from markup import lines, table
from targets import DECODING, PLANS, SPEEDS, decoded_on, fastest, figures, made_int8, planned_on, targets


ALSO_TRAINING = ("training-epyc",)  # other machines


def why() -> str:
    """Five sentences with numbers."""
    middle, loop, decoding = figures("training")["workloads"]["middle"], figures("loop"), figures("decoding")
    losses = figures("loss")["figures"]
    heads = [losses[f"head, 4x1024, {precision}"] for precision in ("fp32", "bf16")]
    shares = [head["ours"]["peak_bytes"] / head["plain"]["peak_bytes"] for head in heads]
    step = {name: row["step_seconds"]["median"] for name, row in middle["rows"].items()}
    over, best = (decoding["ratios"]["1x32+128"][how] for how in ("as both come", "each at its best"))
    sentences = (
        f"""**The processor's own 16 bits**: matrix products in bf16 run at {middle["ceilings"]["bf16"]:,.0f} GFLOP/s
        on {decoding["cpu"]}, those in fp32 {middle["ceilings"]["fp32"]:.0f}, so the recipes take bf16 where it is
        native, and keep weights, sums and softmax in fp32.""",
        f"""**The loss is one function with its own backward**: from hidden states to loss and gradients it peaks at
        {shares[0]:.2f} times the memory of the plain form in fp32, {shares[1]:.2f} in bf16, and what it computes in
        fp32 stays in the processor's cache.""",
        f"""**Big buffers are kept**: the plain loop at its best takes {step["reference, best"]:.2f} s a step, and
        {step["reference, best, our allocator"]:.2f} s with an allocator that keeps what is freed instead of handing it
        back page by page; the recipes have glibc do so, in pages of 2 MB.""",
        f"""**The loop stays out of the way**: seeding, checks, sums, metrics and batches are
        {100 * loop["share_of_cpu_seconds"]:.1f} % of a step's processor time in the preset {loop["preset"]}
        ({loop["batch_size"] * loop["accumulation_steps"]} rows, {1e3 * loop["seconds_of_a_step"][0]:.0f} ms),
        and training waits {100 * loop["data_wait"]:.2f} % of its time for rows.""",
        f"""**Decoding has a step of its own**, a cache of fixed size, matrices laid out for one row and no Python
        between a block's operations: in fp32
        {over["ours fp32 / transformers fp32"]:.1f} times transformers' `generate`, in bf16
        {over["ours bf16 / transformers bf16"]:.1f} times, in int8 {over["ours int8 / transformers fp32"]:.1f} times
        its fp32 and {over["ours int8 / ctranslate2 int8"]:.2f} times CTranslate2; compiled as one function in C, and
        each at its best, int8 {best["ours int8 / ctranslate2 int8"]:.2f} times CTranslate2, and with it as assistant
        the very text of fp32 {best["ours fp32 / transformers fp32"]:.1f} times transformers (124M, one row, 32 + 128
        tokens, on {decoded_on(decoding)}).""",
    )
    return "\n".join(lines(f"{n}. {sentence}", "   ") for n, sentence in enumerate(sentences, 1))


def training() -> str:
    """What bench_training.py has printed on each machine, and what limits it."""
    found = figures("training")
    losses = f"""In the first 100 steps from the same weights on the same text, losses out of the box and those of
    plain fp32 are at most {100 * found["losses"]["largest_difference"]:.2f} % apart. On a GPU: not measured."""
    picture = "![Tokens a second](training.png)"
    return "\n\n".join([training_on(found), picture, lines(losses), *map(training_on, map(figures, ALSO_TRAINING))])


def training_on(found: dict) -> str:
    machine = f"#### On {found['table'][0].partition(',')[0]}\n\n{lines(found['table'][0])}"
    rows = "\n".join(found["table"][2:-2])  # without the machine's line and that of the losses
    rows = re.sub(r"^(?![|\n]|ceilings)([^,]*, [^,]*), (.*)$", r"**\1**, \2.", rows, flags=re.MULTILINE)
    rows = re.sub(r"^ceilings (.*)$", r"Ceilings \1.", rows, flags=re.MULTILINE)
    return "\n\n".join([machine, rows, *map(lines, limits(found))])


def limits(found: dict) -> Iterator[str]:
    """Why no step is faster: what its products take, and what a target would ask of them."""
    gpt2 = found["workloads"]["gpt2"]
    plain, peak = gpt2["rows"]["reference"]["step_seconds"]["median"], gpt2["ceilings"]
    if not all(target["reached"] for target in gpt2["targets"] if target["over"] == "reference"):
        gigaflops = gpt2["flops"] / 1e9
        yield f"""At 124M, 3 times the reference was not reached: its fp32 products alone take
        {gigaflops / peak["fp32"]:.2f} s of its {plain:.2f} s, and a third of its step would be
        {100 * gigaflops / (plain / 3) / peak["bf16"]:.0f} % of the bf16 ceiling, with AdamW's pass over 2 GB within
        it. The more buffers fault on a machine, the slower the reference, and the larger all these ratios."""
    ours, plain = "ours, best, compiled", "reference, best, our allocator"
    shared = [one for one in found["workloads"].values() if {ours, plain} <= {*one["rows"]}]
    if shared:
        times = ", ".join(
            f"{one['rows'][plain]['step_seconds']['median'] / one['rows'][ours]['step_seconds']['median']:.2f} times"
            for one in shared
        )
        yield f"""Compiled in bf16 with the same allocator, the plain loop takes {times} as long as ours at its best
        ({", ".join(one["title"] for one in shared)}): what is left is the loss, the clipping and the loop."""
    profiled = [one for one in found["workloads"].values() if "products" in one]
    if profiled:
        shares = [f"{100 * products(one)[0]:.0f} % of a step ({one['title']})" for one in profiled]
        rates = [f"{100 * products(one)[1]:.0f}" for one in profiled]
        yield f"""By torch's profiler, out of the box, matrix products take {", ".join(shares)}. In it they reach
        {", ".join(rates)} % of the ceiling measured beside each step: were all the rest free, a step could reach no
        more."""
    for one in profiled:
        asked = {target["over"]: target for target in one["targets"] if target["row"].endswith("compiled")}
        if "ceiling" in asked and not asked["ceiling"]["reached"]:
            share, ceilings = asked["ceiling"]["asked"], one["ceilings"]
            at_ceiling = one["flops"] / 1e9 / ceilings["bf16"]
            step, multiplied = at_ceiling / share, at_ceiling / products(one)[1]
            adamw = 28 * one["rows"][asked["ceiling"]["row"]]["parameters"] / 1e9 / ceilings["memory"]
            yield f"""{100 * share:.0f} % of the ceiling ({one["title"]}) would be a step of {step:.2f} s. Its products
            take {multiplied:.2f} s at their rate, and AdamW, which moves 28 bytes a parameter, {adamw:.2f} s at
            memory's {ceilings["memory"]:.0f} GB/s: {100 * (multiplied + adamw) / step:.0f} % of that step before the
            softmax of all logits, attention, GELU, norms, clipping and the gradients' sums."""


def products(workload: dict) -> tuple[float, float]:
    """Of the profiled steps' time the share of the matrix products, and of the ceiling what they reach in it."""
    gigaflops, steps = workload["flops"] / 1e9, workload["products"]
    share = median(step["products_seconds"] / step["step_seconds"] for step in steps)
    return share, median(gigaflops / step["products_seconds"] / step["bf16"] for step in steps)


def decoding() -> str:
    """Tokens a second of each peer, each way, on each machine."""
    return "\n\n".join(decoding_on(figures(name)) for name in DECODING)


def decoding_on(found: dict) -> str:
    kinds = list(dict.fromkeys(" ".join(peer.split()[:2]) for peer in found["runs"]))
    ways = list(dict.fromkeys(peer.removeprefix(kind) for kind in kinds for peer in found["runs"] if kind in peer))
    rows = []
    for work, medians in found["tokens_per_second"].items():
        for way in ways:
            cells = []
            for peer in (kind + way for kind in kinds):
                each = [turn["tokens_per_second"] for turn in found["runs"].get(peer, {}).get(work, [])]
                cells.append(f"{medians[peer]:.1f} ({min(each):.0f} - {max(each):.0f})" if each else "")
            rows += [f"| {work}{way and ','}{way} | {' | '.join(cells)} |"] if any(cells) else []
    turns = {work: len(found["runs"]["ours int8"][work]) for work in found["tokens_per_second"]}
    more = "".join(f", of {work} {n}" for work, n in turns.items() if n != found["rounds"])
    what = f"""124M on {decoded_on(found)}, {found["threads"]} threads, greedy, tokens a second with the prompt's
    reading included: median of {found["rounds"]} turns{more} (lowest - highest)."""
    if "counts" in found:
        what += f" Dropped for foreign load: {sum(count['dropped'] for count in found['counts'].values())} rounds."
    step = found["int8_step"]
    int8 = f"""A step in int8 takes {step["milliseconds"]:.1f} ms at one row, its {step["products"]:.0f} products alone
    {step["products_milliseconds"]:.1f}: {step["other_operations"]:,.0f} small operations are the rest.{in_c(step)}
    124M is made int8 in {made_int8(found):.1f} s once it is loaded."""
    if perplexity := found["perplexity"]:
        int8 += f""" A trained model of {perplexity["parameters"] / 1e6:.1f}M has a perplexity of
        {perplexity["fp32"]:.2f} on a text that it has not seen, in int8 one {100 * perplexity["rise"]:.2f} %
        higher."""
        if "accepted at 0" in perplexity:
            int8 += f""" Of the guesses of its int8 as its assistant {100 * perplexity["accepted at 0"]:.0f} % hold
            greedily, {100 * perplexity["accepted at 1"]:.0f} % at temperature 1."""
    if "ceilings" in found:
        each = found["ceilings"]["memory"] * 1e9 / (12 * 12 * 768**2 + 50257 * 768)  # what a token reads
        int8 += f""" Memory reads {found["ceilings"]["memory"]:.1f} GB/s there, enough for {each / 4:.0f} tokens a
        second in fp32, {each / 2:.0f} in bf16, {each:.0f} in int8, where the cache does not help."""
        if "fp32_step" in found:
            fp32 = found["fp32_step"]
            int8 += f""" A step in fp32 takes {fp32["milliseconds"]:.1f} ms, its products
            {fp32["products_milliseconds"]:.1f}.{in_c(fp32)}"""
        int8 += "".join(missed_speeds(found, {"fp32": each / 4, "bf16": each / 2, "int8": each}))
    head = f"| rows x prompt + new | {' | '.join(kinds)} |"
    return f"{lines(what)}\n\n{table(head, rows)}\n\n{lines(int8)}"


def in_c(step: dict) -> str:
    """What a step takes compiled, where that was measured."""
    return f" In C it takes {step['milliseconds_in_c']:.1f}." if "milliseconds_in_c" in step else ""


def missed_speeds(found: dict, most: dict[str, float]) -> Iterator[str]:
    """What a target of decoding that was missed would be of the most that memory allows."""
    medians = found["tokens_per_second"]["1x32+128"]
    for how, ratios in found["ratios"]["1x32+128"].items():
        for pair, asked in SPEEDS.items():
            if ratios[pair] < asked:
                mine, other = pair.split(" / ")
                way = other if how == "as both come" else fastest(medians, other)
                needed, kind = asked * medians[way], mine.split()[1]  # tokens a second
                of_it = f"{100 * needed / most[kind]:.0f} % of that"
                if (step := found.get(f"{kind}_step")) is not None:
                    products = step["products_milliseconds"]
                    of_it += f", {1e3 / needed:.1f} ms a token, of which its products take {products:.1f}"
                yield f" {asked} times {other}, {how}, which {mine} misses at one row, would be {of_it}."


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
        cpu = one.get("cpu", found["cpu"])
        rows.append(f"| {name} | {cpu} | {steps:,} | {seconds} | {loss} |")
    runs = found["ours"]["runs"]
    beside = mean(run["seconds"] - run["steps"] * run["step_seconds"] for run in runs)
    less = found["reference"]["loss"] - found["ours"]["loss"]
    where = f"{less:.3f} nats below the reference" if less > 0 else "Short of the reference"
    what = f"""{where} in
    {100 * found["time_over_reference"]:.0f} % of its time, imports, tokenizer, evaluations and saving ({beside:.0f} s)
    included."""
    return f"{table('| | on | steps | seconds | loss, nats a character |', rows)}\n\n{lines(what)}"


def tried() -> str:
    """What the settings for more time were chosen from."""
    rows = [f"| `{one['arguments']}` | {one['loss']:.3f} |" for one in figures("quality")["tried"]]
    return table("| arguments of the recipe | loss on the play |", rows)


def plan() -> str:
    """Plans beside runs, on each machine; and between which rates of its products a plan found it."""
    rows, rates = [], []
    for plan in map(figures, PLANS):
        for size, found in plan["figures"].items():
            seconds, memory = found["seconds"], found["bytes"]
            times = " | ".join(f"{1e3 * seconds[name]:,.0f} ms" for name in ("planned", "measured"))
            sizes = f"{memory['planned'] / 1e9:.2f} GB | {memory['measured'] / 1e9:.2f} GB | {memory['ratio']:.2f}"
            rows.append(f"| {size}, {planned_on(plan)} | {times} | {seconds['ratio']:.2f} | {sizes} |")
        turns = [turn["plan"]["matmul_rate"] / 1e9 for found in plan["figures"].values() for turn in found["turns"]]
        rates.append(f"from {min(turns):,.0f} to {max(turns):,.0f} GFLOP/s on {planned_on(plan)}")
    head = "| | time planned | run | ratio | memory planned | run | ratio |"
    what = f"""A plan sees the machine for two seconds. What it found for a bf16 product, from turn to turn:
    {", ".join(rates)}."""
    return f"{table(head, rows)}\n\n{lines(what)}"


def scaling() -> str:
    """One field at a time."""
    rows = [
        f"| {name}{f' {row[name]:,}' if name in row else ''} | {row['microseconds_per_token']:.1f} "
        f"| {row['gflops_per_second']:.0f} | {row['bytes'] / 1e6:,.0f} | {row['bytes_counted'] / 1e6:,.0f} |"
        for name, found in figures("scaling")["table"].items()
        for row in found
    ]
    return table("| | µs a token | GFLOP/s | MB | counted |", rows)  # noqa: RUF001


def aims() -> str:
    return table("| | aim | found | |", [str(target) for target in targets()])
