"""Write the results of fine-tuning as Markdown: LoRA, spam, instructions, preferences, triggers and secrets."""

import statistics
from typing import Any

from markup import lines, table
from targets import figures

from scratch_gpt_training.support.run.defaults import default_rate, spell_rate


def lora() -> str:
    """Compare LoRA with full fine-tuning: time, memory and loss."""
    precisions = figures("lora")["precisions"]
    ratios = [found["lora_over_full"] for found in precisions.values()]
    rows = [
        f"| time of a step: LoRA / full | {' | '.join(times(ratio['step_seconds']) for ratio in ratios)} |",
        f"| peak memory: LoRA / full | {' | '.join(times(ratio['peak_bytes']) for ratio in ratios)} |",
    ]
    for way in ("full", "lora", "lora on int8", "lora on nf4"):
        ways = [found["ways"][way] for found in precisions.values()]
        cells = [f"{found['peak_bytes'] / 1e9:.2f} GB, loss {found['losses'][-1]:.3f}" for found in ways]
        rows.append(f"| {way.replace('lora', 'LoRA')} | {' | '.join(cells)} |")
    return table(f"| | {' | '.join(precisions)} |", rows)


def times(ratio: float) -> str:
    """Return a ratio in words."""
    return f"{ratio:.2f} times"


def default_rates() -> str:
    """List the default learning rates of models of several widths."""
    names = {128: "128", 384: "384", 768: "768 (gpt2)", 1024: "1,024 (gpt2-medium)"}
    rows = []
    for recipes, task in (("pretrain, classify, instruct", "instruct"), ("prefer", "prefer")):
        for kind, tune in (("all parameters, or the last ones", "full"), ("LoRA", "lora")):
            rates = [default_rate(task, tune, width, from_scratch=False).value for width in names]
            rows.append(f"| {recipes}: {kind} | {' | '.join(map(spell_rate, rates))} |")
    return table(f"| default rate at width | {' | '.join(names.values())} |", rows)


def rate_sweeps() -> str:
    """List the figure at each rate of the sweeps, with the default rate in bold."""
    content, names = figures("default_rates"), {"lora": "LoRA", "last-block": "last block", "random": "random weights"}
    measures = {"instruct": "instruct: loss", "prefer": "prefer: % of pairs"}
    rows = []
    for name, found in content["sweeps"].items():
        width, task, kind = name.split(" ")
        cells = []
        for rate, values in found["rates"].items():
            runs, mark = values["figures"], "**" if rate == found["default"] else ""
            figure = f"{statistics.mean(runs):.{2 if task == 'instruct' else 1}f}"
            seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
            cells.append(f"{mark}{spell_rate(float(rate))}: {figure}{mark}{seeds}")
        rows.append(f"| {width} | {measures.get(task, f'{task}: %')} | {names.get(kind, kind)} | {', '.join(cells)} |")
    for task, found in content["changes"].items():
        rows += [f"| 128 | {task}: % | full, {name} | {figure:.1f} |" for name, figure in found.items()]
    return table("| width | task | trained | rate: figure |", rows)


def loss() -> str:
    """Compare our loss with the plain form and torch's own: peak memory and processor time."""
    found = figures("loss")["figures"]
    rows = []
    for precision in ("fp32", "bf16"):
        head = {name: cost(value) for name, value in found[f"head, 4x1024, {precision}"].items()}
        rows.append(
            f"| hidden states to loss and gradients, {precision} | {head['plain']} "
            f"| {head['ours']} (per-token losses: {head['ours, each token']}) | {head['torch']} |"
        )
    for precision in ("fp32", "bf16"):
        step = {name: cost(value) for name, value in found[f"step, 4x1024, {precision}"].items()}
        rows.append(f"| a training step with AdamW, {precision} | {step['plain']} | {step['ours']} | |")
    head = "| 124M, T=1024, B=4, one core | plain | ours | torch's `F.linear_cross_entropy`, in chunks |"
    return table(head, rows)


def cost(found: dict[str, Any]) -> str:
    """Return the peak memory and processor time of a measurement."""
    return f"{found['peak_bytes'] / 1e9:.2f} GB, {found['cpu_seconds']:.1f} s"


def spam() -> str:
    """List the test accuracy on the SMS Spam Collection, mean (standard deviation), in per cent."""
    sizes = {"747 + 747": "747 + 747 messages", "653 + 653": "653 + 653, all distinct"}
    rows = []
    for way, found in figures("spam")["ways"].items():
        cells = [found[size]["accuracy"] for size in sizes]
        percents = [f"{100 * cell['mean']:.2f} ({100 * cell['std']:.2f})" for cell in cells]
        rows.append(f"| {way} | {' | '.join(percents)} |")
    return table(f"| | {' | '.join(sizes.values())} |", rows)


def follow() -> str:
    """List the scores before and after instruction and preference tuning, mean (standard deviation)."""
    found = figures("follow")
    rows = [
        f"| {name}: {metric} | {spread(found[name]['before/test'][metric])} | {spread(found[name]['test'][metric])} |"
        for name in ("instruct", "prefer")
        for metric in found[name]["test"]
    ]
    return table("| test split | before | after |", rows)


def spread(cell: dict[str, float]) -> str:
    """Return a mean with its standard deviation."""
    return f"{cell['mean']:.3f} ({cell['std']:.3f})"


def triggers() -> str:
    """List the planted triggers that were found, and the false alarms in clean models."""
    found = figures("safety")["triggers"]
    rows = []
    for run in found["runs"]:
        named = ", ".join(code(phrase["phrase"]) for phrase in run["named"]) or "nothing"
        cells = [run["kind"], code(run["trigger"]), named] if run["trigger"] else ["clean", "none", named]
        attack = f"{100 * run['attack']:.0f} %" if run["trigger"] else ""
        rows.append(f"| {' | '.join(cells)} | {run['most_nats']:.1f} | {attack} |")
    least = min(run["most_nats"] for run in found["runs"] if run["trigger"])
    summary = f"""The search found {found["found"]} of {found["planted_models"]} triggers. It named
    {found["false_alarms_in_planted"]} other phrases in these models, and a phrase in
    {found["clean_models_with_alarm"]} of {found["clean_models"]} clean models. The planted triggers reach {least:.1f}
    nats or more, the phrases in clean models at most {found["most_nats_clean"]:.1f}."""
    return f"{table('| planted | trigger | named | nats | attack |', rows)}\n\n{lines(summary)}"


def code(text: str) -> str:
    """Return a text as code, with escapes for characters that are not ASCII."""
    return f"`{ascii(text)[1:-1]}`"


def memorization() -> str:
    """List the exposure of planted secrets, and the share that the model repeats verbatim."""
    found = figures("safety")["memorization"]
    repeats = list(dict.fromkeys(row["repeats"] for row in found))
    rows = []
    for start in range(0, len(found), len(repeats)):
        group = found[start : start + len(repeats)]
        cells = [
            f"{row['exposure']['mean']:.1f} ({row['exposure']['std']:.1f}), {100 * row['extracted']['mean']:.0f} %"
            for row in group
        ]
        rows.append(f"| {group[0]['same']} | {group[0]['stride']} | {group[0]['steps']:,} | {' | '.join(cells)} |")
    return table(f"| same | stride | steps | {' | '.join(f'{n} x' for n in repeats)} |", rows)


BOOK = {  # part of book.json: what it measures, the book's figure
    "classify": ("chapter 6: test accuracy", "95.67 %"),
    "lora": ("appendix E: test accuracy", "96.67 %"),
    "instruct": ("chapter 7: loss before -> after", "2.626 -> 0.657 (validation)"),
    "prefer": ("DPO: loss (0.693 before)", "0.610 (validation)"),
}


def book_runs() -> str:
    """List the figures of the book's runs, and ours: pretraining at its full size, tuning from a small base."""
    found = figures("book")
    ours = {part: f"{over(found[part]['accuracy'], 100, 1)} %" for part in ("classify", "lora")}
    ours["instruct"] = f"{over(found['instruct']['before'])} -> {over(found['instruct']['after'])} (test)"
    ours["prefer"] = f"{over(found['prefer']['loss'])} (test)"
    seeds = {part: ", ".join(map(str, found[part]["seeds"])) for part in BOOK}
    full = found["pretrain"]
    losses = f"{full['training']['90']:.3f}, {full['validation']:.3f}"
    rows = [f"| chapter 5, from scratch: training, validation loss | 0.569, 6.373 | {losses} | {full['seed']} |"]
    rows += [f"| {measure} | {book} | {ours[part]} | {seeds[part]} |" for part, (measure, book) in BOOK.items()]
    return table("| run | the book | ours | seeds |", rows)


def over(cell: dict[str, float] | float, factor: float = 1, digits: int = 3) -> str:
    """Return a mean with its standard deviation, or the number of a single seed."""
    if not isinstance(cell, dict):
        return f"{factor * cell:.{digits}f}"
    return f"{factor * cell['mean']:.{digits}f} ({factor * cell['std']:.{digits}f})"


def book_changes() -> str:
    """List the losses of the book's pretraining after single changes, for two small models."""
    found = figures("book")["changes"]
    narrow, wide = found["runs"]["384"], found["runs"]["768"]
    rows = []
    for name, losses in narrow.items():
        cells = [f"{losses['train']:.2f}", f"{losses['validation']:.2f}"]
        cells += [f"{wide[name][split]:.2f}" if name in wide else "" for split in ("train", "validation")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    head = (
        "| change | 384 wide, 4 layers: training loss | validation | 768 wide, 2 layers: training loss | validation |"
    )
    return table(head, rows)
