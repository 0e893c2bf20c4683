"""Write the measurements of the benchmarks as Markdown: the reasons for the speed, and every table of speed."""

import re
from collections.abc import Iterator
from statistics import mean, median

from markup import lines, table
from targets import (
    DECODING,
    HEAD,
    PLANS,
    SETTINGS,
    SPEEDS,
    decoded_on,
    fastest,
    figures,
    made_int8,
    planned_on,
    targets,
)


ALSO_TRAINING = ("training-epyc",)  # files of other machines


def why() -> str:
    """List the five reasons, each with its numbers."""
    middle, loop, decoding = figures("training")["workloads"]["middle"], figures("loop"), figures("decoding")
    losses = figures("loss")["figures"]
    heads = [losses[f"head, 4x1024, {precision}"] for precision in ("fp32", "bf16")]
    shares = [head["ours"]["peak_bytes"] / head["plain"]["peak_bytes"] for head in heads]
    step = {name: row["step_seconds"]["median"] for name, row in middle["rows"].items()}
    default, best = (decoding["ratios"]["1x32+128"][name] for name in ("as both come", "each at its best"))
    sentences = (
        f"""**bf16 on processors that support it**: on {decoding["cpu"]}, matrix products run at
        {middle["ceilings"]["bf16"]:,.0f} GFLOP/s in bf16 and at {middle["ceilings"]["fp32"]:.0f} GFLOP/s in fp32. The
        recipes use bf16 if the hardware supports it, and keep weights, sums and softmax in fp32.""",
        f"""**One function for the loss and its gradient**: from hidden states to loss and gradients, peak memory is
        {shares[0]:.2f} times that of the plain form in fp32, and {shares[1]:.2f} times in bf16. The part that is
        computed in fp32 stays in the processor's cache.""",
        f"""**Large buffers are reused**: a step of the plain loop at its best takes {step["reference, best"]:.2f} s,
        and {step["reference, best, our allocator"]:.2f} s with an allocator that keeps freed memory instead of
        returning it to the system page by page. The recipes configure glibc to keep it, and use pages of 2 MB.""",
        f"""**Little overhead in the loop**: seeding, checks, sums, metrics and batches take
        {100 * loop["share_of_cpu_seconds"]:.1f} % of a step's processor time with the preset {loop["preset"]}
        ({loop["batch_size"] * loop["accumulation_steps"]} rows, {1e3 * loop["seconds_of_a_step"][0]:.0f} ms), and
        training waits for rows during {100 * loop["data_wait"]:.2f} % of its time.""",
        f"""**A decoding step written for speed**: it has a cache of fixed size, matrices laid out for one row, and no
        Python between the operations of a block. It is {default["ours fp32 / transformers fp32"]:.1f} times as fast as
        transformers' `generate` in fp32 and {default["ours bf16 / transformers bf16"]:.1f} times in bf16. In int8 it
        is {default["ours int8 / transformers fp32"]:.1f} times as fast as transformers in fp32 and
        {default["ours int8 / ctranslate2 int8"]:.2f} times as fast as CTranslate2. With the best settings of each,
        int8 compiled as one C function is {best["ours int8 / ctranslate2 int8"]:.2f} times as fast as CTranslate2, and
        fp32 with the int8 model as assistant, which gives the same text, is
        {best["ours fp32 / transformers fp32"]:.1f} times as fast as transformers (124M, one row, 32 + 128 tokens, on
        {decoded_on(decoding)}).""",
    )
    return "\n".join(lines(f"{n}. {sentence}", "   ") for n, sentence in enumerate(sentences, 1))


def training() -> str:
    """Show the tables of bench_training.py for each machine, and the limits of a step."""
    measured = figures("training")
    losses = f"""In the first 100 steps from the same weights on the same text, the losses of ours out of the box and
    of plain fp32 differ by at most {100 * measured["losses"]["largest_difference"]:.2f} %. Not measured on a GPU."""
    picture = "![Tokens per second of each setting. The dashed line is 60 % of the bf16 ceiling.](training.png)"
    others = map(training_on, map(figures, ALSO_TRAINING))
    return "\n\n".join([training_on(measured), picture, lines(losses), *others])


def training_on(measured: dict) -> str:
    """Show the tables of one machine."""
    machine = f"#### On {measured['table'][0].partition(',')[0]}\n\n{lines(measured['table'][0])}"
    rows = "\n".join(measured["table"][2:-2])  # without the lines of the machine and of the losses
    rows = re.sub(r"^(?![|\n]|ceilings)([^,]*, [^,]*), (.*)$", r"**\1**, \2.", rows, flags=re.MULTILINE)
    rows = re.sub(r"^ceilings (.*)$", r"Ceilings \1.", rows, flags=re.MULTILINE)
    return "\n\n".join([machine, rows, *map(lines, limits(measured))])


def limits(measured: dict) -> Iterator[str]:
    """Yield why a step is not faster: the time of its matrix products, and the requirements of a target."""
    gpt2 = measured["workloads"]["gpt2"]
    plain, peak = gpt2["rows"]["reference"]["step_seconds"]["median"], gpt2["ceilings"]
    if not all(target["reached"] for target in gpt2["targets"] if target["over"] == "reference"):
        gigaflops = gpt2["flops"] / 1e9
        yield f"""At 124M, the target of 3 times the reference is not met: the reference's fp32 products take
        {gigaflops / peak["fp32"]:.2f} s of its step of {plain:.2f} s, and a third of its step would require
        {100 * gigaflops / (plain / 3) / peak["bf16"]:.0f} % of the bf16 ceiling, including AdamW's pass over 2 GB. The
        more page faults large buffers cause on a machine, the slower the reference and the larger all these
        ratios."""
    ours, plain = "ours, best, compiled", "reference, best, our allocator"
    shared = [work for work in measured["workloads"].values() if {ours, plain} <= {*work["rows"]}]
    if shared:
        times = ", ".join(
            f"{work['rows'][plain]['step_seconds']['median'] / work['rows'][ours]['step_seconds']['median']:.2f} times"
            for work in shared
        )
        yield f"""Compiled in bf16 with the same allocator, a step of the plain loop takes {times} as long as ours at
        its best ({", ".join(work["title"] for work in shared)}). That difference comes from the loss, the clipping and
        the loop."""
    profiled = [work for work in measured["workloads"].values() if "products" in work]
    if profiled:
        shares = [f"{100 * products(work)[0]:.0f} % of a step ({work['title']})" for work in profiled]
        rates = [f"{100 * products(work)[1]:.0f}" for work in profiled]
        yield f"""According to torch's profiler, out of the box, matrix products take {", ".join(shares)}. They run at
        {", ".join(rates)} % of the ceiling measured next to each step. A step could not exceed that share even if
        everything else took no time."""
    for work in profiled:
        compiled = {target["over"]: target for target in work["targets"] if target["row"].endswith("compiled")}
        if "ceiling" in compiled and not compiled["ceiling"]["reached"]:
            share, ceilings = compiled["ceiling"]["asked"], work["ceilings"]
            at_ceiling = work["flops"] / 1e9 / ceilings["bf16"]
            step, multiplied = at_ceiling / share, at_ceiling / products(work)[1]
            adamw = 28 * work["rows"][compiled["ceiling"]["row"]]["parameters"] / 1e9 / ceilings["memory"]
            yield f"""{100 * share:.0f} % of the ceiling ({work["title"]}) would be a step of {step:.2f} s. Its
            products take {multiplied:.2f} s at the rate that they reach, and AdamW, which moves 28 bytes per
            parameter, takes {adamw:.2f} s at the memory's {ceilings["memory"]:.0f} GB/s. Together they are
            {100 * (multiplied + adamw) / step:.0f} % of that step, before the softmax of all logits, attention, GELU,
            norms, clipping and the sums of the gradients."""


def products(workload: dict) -> tuple[float, float]:
    """Return the share of the matrix products in the profiled steps, and their share of the ceiling."""
    gigaflops, steps = workload["flops"] / 1e9, workload["products"]
    share = median(step["products_seconds"] / step["step_seconds"] for step in steps)
    return share, median(gigaflops / step["products_seconds"] / step["bf16"] for step in steps)


def decoding() -> str:
    """Show the tokens per second of each peer with each of its settings, on each machine."""
    return "\n\n".join(decoding_on(figures(name)) for name in DECODING)


def decoding_on(measured: dict) -> str:
    """Show the table of one machine."""
    kinds = list(dict.fromkeys(" ".join(peer.split()[:2]) for peer in measured["runs"]))
    ways = list(dict.fromkeys(peer.removeprefix(kind) for kind in kinds for peer in measured["runs"] if kind in peer))
    rows = []
    for work, medians in measured["tokens_per_second"].items():
        for way in ways:
            cells = []
            for peer in (kind + way for kind in kinds):
                each = [turn["tokens_per_second"] for turn in measured["runs"].get(peer, {}).get(work, [])]
                cells.append(f"{medians[peer]:.1f} ({min(each):.0f} - {max(each):.0f})" if each else "")
            rows += [f"| {work}{way and ','}{way} | {' | '.join(cells)} |"] if any(cells) else []
    turns = {work: len(measured["runs"]["ours int8"][work]) for work in measured["tokens_per_second"]}
    more = "".join(f", {n} for {work}" for work, n in turns.items() if n != measured["rounds"])
    title = f"""124M on {decoded_on(measured)}, {measured["threads"]} threads, greedy decoding. Tokens per second,
    including the time to read the prompt: median (lowest - highest) of {measured["rounds"]} turns{more}."""
    if "counts" in measured:
        dropped = sum(count["dropped"] for count in measured["counts"].values())
        title += f" Rounds dropped because of other load: {dropped}."
    step = measured["int8_step"]
    int8 = f"""With one row, an int8 step takes {step["milliseconds"]:.1f} ms. Its {step["products"]:.0f} matrix
    products take {step["products_milliseconds"]:.1f} ms of that; {step["other_operations"]:,.0f} small operations take
    the rest.{in_c(step)} Converting a loaded 124M model to int8 takes {made_int8(measured):.1f} s."""
    if perplexity := measured["perplexity"]:
        int8 += f""" A trained model of {perplexity["parameters"] / 1e6:.1f}M parameters has a perplexity of
        {perplexity["fp32"]:.2f} on a text that it was not trained on; in int8 it is {100 * perplexity["rise"]:.2f} %
        higher."""
        if "accepted at 0" in perplexity:
            int8 += f""" With its int8 form as assistant, {100 * perplexity["accepted at 0"]:.0f} % of the guesses are
            accepted in greedy decoding and {100 * perplexity["accepted at 1"]:.0f} % at temperature 1."""
    if "ceilings" in measured:
        each = measured["ceilings"]["memory"] * 1e9 / (12 * 12 * 768**2 + 50257 * 768)  # bytes read per token
        int8 += f""" Memory is read at {measured["ceilings"]["memory"]:.1f} GB/s on this machine. Without help from the
        cache, that limits decoding to {each / 4:.0f} tokens per second in fp32, {each / 2:.0f} in bf16 and {each:.0f}
        in int8."""
        if "fp32_step" in measured:
            fp32 = measured["fp32_step"]
            int8 += f""" An fp32 step takes {fp32["milliseconds"]:.1f} ms, its products
            {fp32["products_milliseconds"]:.1f} ms.{in_c(fp32)}"""
        int8 += "".join(missed_speeds(measured, {"fp32": each / 4, "bf16": each / 2, "int8": each}))
    head = f"| rows x prompt + new tokens | {' | '.join(kinds)} |"
    return f"{lines(title)}\n\n{table(head, rows)}\n\n{lines(int8)}"


def in_c(step: dict) -> str:
    """Return a sentence with the time of a step compiled as C, if it was measured."""
    return f" In C the step takes {step['milliseconds_in_c']:.1f} ms." if "milliseconds_in_c" in step else ""


def missed_speeds(measured: dict, limits: dict[str, float]) -> Iterator[str]:
    """Yield for each target of decoding that is not met its share of the limit that memory sets."""
    medians = measured["tokens_per_second"]["1x32+128"]
    for way, ratios in measured["ratios"]["1x32+128"].items():
        for pair, target in SPEEDS.items():
            if ratios[pair] < target:
                mine, other = pair.split(" / ")
                peer = other if way == "as both come" else fastest(medians, other)
                needed, kind = target * medians[peer], mine.split()[1]  # tokens per second
                share = f"{100 * needed / limits[kind]:.0f} % of that limit"
                if (step := measured.get(f"{kind}_step")) is not None:
                    milliseconds = step["products_milliseconds"]
                    share += f", or {1e3 / needed:.1f} ms per token, of which the products take {milliseconds:.1f} ms"
                yield f""" With one row, {mine} does not meet its target of {target} times {other}
                ({SETTINGS[way]}), which would be {share}."""


def quality() -> str:
    """Show the time to the reference's loss, and the loss after more time."""
    measured = figures("quality")
    rows = []
    for name in ("reference", "ours", "ours, 5 minutes", "ours, 15 minutes"):
        figure = measured[name]
        steps = figure["runs"][0]["steps"] if "runs" in figure else figure["steps"]
        seconds, loss = f"{figure['seconds']:.1f}", f"{figure['loss']:.3f}"
        if "runs" in figure:
            seconds, loss = f"{seconds} ({figure['seconds_std']:.1f})", f"{loss} ({figure['loss_std']:.3f})"
        cpu = figure.get("cpu", measured["cpu"])
        rows.append(f"| {name} | {cpu} | {steps:,} | {seconds} | {loss} |")
    runs = measured["ours"]["runs"]
    other = mean(run["seconds"] - run["steps"] * run["step_seconds"] for run in runs)
    difference = measured["reference"]["loss"] - measured["ours"]["loss"]
    verb = f"is {difference:.3f} nats lower" if difference > 0 else f"is {-difference:.3f} nats higher"
    summary = f"""Our loss {verb} than the reference's after {100 * measured["time_over_reference"]:.0f} % of its time,
    including {other:.0f} s for imports, tokenizer, evaluations and saving."""
    return f"{table('| | machine | steps | seconds | loss, nats per character |', rows)}\n\n{lines(summary)}"


def tried() -> str:
    """List the settings that were compared for a longer training time."""
    rows = [f"| `{settings['arguments']}` | {settings['loss']:.3f} |" for settings in figures("quality")["tried"]]
    return table("| arguments of the recipe | loss on the play |", rows)


def plan() -> str:
    """Compare plans with runs on each machine, and show how much a plan's matmul rate varies."""
    rows, rates = [], []
    for plan in map(figures, PLANS):
        for size, figure in plan["figures"].items():
            seconds, memory = figure["seconds"], figure["bytes"]
            times = " | ".join(f"{1e3 * seconds[name]:,.0f} ms" for name in ("planned", "measured"))
            sizes = f"{memory['planned'] / 1e9:.2f} GB | {memory['measured'] / 1e9:.2f} GB | {memory['ratio']:.2f}"
            rows.append(f"| {size}, {planned_on(plan)} | {times} | {seconds['ratio']:.2f} | {sizes} |")
        turns = [turn["plan"]["matmul_rate"] / 1e9 for figure in plan["figures"].values() for turn in figure["turns"]]
        rates.append(f"between {min(turns):,.0f} and {max(turns):,.0f} GFLOP/s on {planned_on(plan)}")
    head = "| | planned time | measured | ratio | planned memory | measured | ratio |"
    summary = f"""A plan measures the machine for two seconds. Its rate of bf16 matrix products varied from turn to
    turn: {", ".join(rates)}."""
    return f"{table(head, rows)}\n\n{lines(summary)}"


def scaling() -> str:
    """Show time and memory as one field at a time changes."""
    rows = [
        f"| {name}{f' {row[name]:,}' if name in row else ''} | {row['microseconds_per_token']:.1f} "
        f"| {row['gflops_per_second']:.0f} | {row['bytes'] / 1e6:,.0f} | {row['bytes_counted'] / 1e6:,.0f} |"
        for name, figure in figures("scaling")["table"].items()
        for row in figure
    ]
    return table("| | µs per token | GFLOP/s | MB measured | MB computed |", rows)  # noqa: RUF001


def loading() -> str:
    """Compare loading GPT-2's 124M with stock transformers, and show the times to start."""
    measured = figures("loading")
    rows = []
    for name, title, unit, scale in (
        ("load_seconds", "`from_pretrained`, time", "s", 1),
        ("load_mib", "`from_pretrained`, peak memory", "MB", 2**20 / 1e6),
        ("logits_seconds", "up to the first logits, time", "s", 1),
        ("logits_mib", "up to the first logits, peak memory", "MB", 2**20 / 1e6),
    ):
        figure = measured["figures"][name]
        digits = 2 if unit == "s" else 0
        cells = [f"{scale * figure[kind]['median']:,.{digits}f} {unit}" for kind in ("ours", "stock")]
        rows.append(f"| {title} | {' | '.join(cells)} | {figure['ratio']:.2f} times |")
    starts = ", ".join(
        f"`{name}` {measured['starts'][name]['median']:.2f} s" for name in ("import scratch_gpt", "pretrain.py --help")
    )
    summary = f"""Loading: medians of {measured["rounds"]} fresh processes of each class, which take turns. Time to
    start: {starts}. The import is measured after those of torch and of transformers' own GPT-2 class."""
    return f"{table('| | ours | stock transformers | ratio |', rows)}\n\n{lines(summary)}"


def target_table() -> str:
    """List every target except those of a training step."""
    return table(HEAD, [str(target) for target in targets()])
