"""Test that figures in the text of the pages equal those in the files of measurements."""

from pages import PAGES, read_page
from targets import figures


TEXT = "\n".join(map(read_page, PAGES))
WORDS = " ".join(TEXT.split())  # a sentence may span lines


def test_figures_equal_those_of_the_files_they_name():
    main_job, loading = figures("main_job"), figures("loading")
    assert f"{main_job['validation']['bits_per_byte']:.2f} bits per byte" in WORDS
    assert f"{main_job['seconds']:.0f} seconds" in WORDS
    for name, value in main_job["validation"].items():
        assert f"eval_{name} {value:.4f}" in WORDS
    for name, value in main_job["before"].items():
        assert f"eval_{name} {value:.4f}" in WORDS
    assert f"{main_job['parameters']:,} parameters" in WORDS
    for name in ("load_seconds", "load_mib"):
        assert f"{loading['figures'][name]['ratio']:.2f} times" in WORDS


def test_figures_of_preparing_data_equal_those_of_the_files():
    made, tokenizers, cleaning = figures("prepare"), figures("tokenizers"), figures("cleaning")
    packing = made["packing"]
    for speed in (made["throughput"], made["generated"]):
        for encoder in ("gigatoken", "tokenizers"):
            figures_of = f"{speed['medians'][encoder]:.2f} MB/s, {speed['ratios'][encoder]:.2f} times run_clm's"
            assert f"{encoder}: {figures_of}" in WORDS
        assert speed["different_ids"] == 0 and f"{speed['tokens']:,} ids, none different" in WORDS
    for size, trainer in tokenizers["trainers"].items():
        ratios = trainer["ratios"]
        text = f"{int(size):,} tokens: {ratios['seconds']:.2f} times the time, {ratios['bytes']:.2f} times the memory"
        assert text in WORDS
    runs = dict(zip(("50 MB", "500 MB", "5 GB"), [*made["memory"]["runs"], made["large"]], strict=True))
    for name, unit, scale, digits in (("peak_anonymous_bytes", "GB", 1e9, 2), ("first_batch_seconds", "s", 1, 2)):
        assert ", ".join(f"{run[name] / scale:.{digits}f} {unit} for {of}" for of, run in runs.items()) in WORDS
    assert made["memory"]["ratio"] <= 1.1 and made["large"]["first_batch_seconds"] < 5  # each file is hashed
    assert f"{packing['ratio']:.2f} times the target tokens per second" in WORDS
    assert f"{tokenizers['memory']['ratio']:.2f} times the memory of 50 MB" in WORDS
    for name, corpus in tokenizers["compression"].items():
        values = " | ".join(f"{value:.2f}" for value in corpus["bytes_per_token"].values())
        assert f"| {name} | {values} |" in WORDS
    assert tokenizers["round_trips"]["failures"] == 0
    assert (cleaning["books"]["pairs_found"], cleaning["books"]["pairs_wrong"]) == (10, 0)
    for kind in ("instructions", "text"):
        for recall in cleaning["poisoning"][kind]["recall"].values():
            assert recall["neighbours"] == 1 and recall["cosine_low"] <= 0.15 and recall["loss_high"] == 0


def test_figures_of_pre_tokenizers_support_the_default():
    found = figures("languages")
    bits = {name: {kind: row[kind]["mean"] for kind in row} for name, row in found["loss"].items()}
    assert bits["Python code"]["qwen35"] > bits["Python code"]["gpt2"]
    assert bits["English"]["qwen35"] < bits["English"]["gpt2"]
    assert len(found["compression"]["own"]) == 27
    for language in ("hi", "bn", "ta", "kn", "my"):
        for kind, size in (("own", "2000"), ("together", "8000")):
            row = {
                name: value["characters_per_token"]
                for name, value in found["compression"][kind][language][size].items()
            }
            assert row["qwen35"] > 1.3 * row["gpt2"]


def test_figures_of_speed_equal_those_of_the_files():
    assert all(found["claim"] for found in figures("training")["workloads"].values())
    for name in ("import scratch_gpt", "pretrain.py --help"):
        assert f"`{name}` {figures('loading')['starts'][name]['median']:.2f} s" in WORDS


def test_figures_of_tuning_equal_those_of_the_files():
    lora, classify, instruct = figures("lora"), figures("classify"), figures("instruct")
    assert f"LoRA trains {100 * lora['trained_share']:.2f} % of the" in WORDS
    for name in ("theirs", "theirs grouped"):
        assert f"{classify['ratios'][name]:.2f}" in WORDS
    base = figures("spam")["base"]
    assert f"(20.8 MB), to {base['bits_per_byte']:.2f} bits per byte" in WORDS
    over = instruct["over_trl_defaults"]
    assert f"{over['ours']:.1f} times the tokens per second of TRL's SFTTrainer with default settings" in WORDS
    best = instruct["over_trl_best"]
    assert f"{best['ours']:.1f} times those of TRL with its best settings" in WORDS
    assert f"{over['ours packed']:.1f} and {best['ours packed']:.1f} times" in WORDS
    assert f"step is {instruct['over_asking_all']:.2f} times as fast as one with all tokens as targets" in WORDS


def test_figures_of_faults_and_checkpoints_equal_those_of_the_files():
    chaos, cost = figures("chaos"), figures("checkpoints")
    assert all(row["lost"] == 0 and row["tried"] == row["recovered"] + row["refused"] for row in chaos.values())
    share = cost["share_at_one_a_minute"]
    assert f"{cost['bytes'] / 1e9:.2f} GB" in WORDS
    assert f"{100 * share['at once']:.1f} % of the run" in WORDS
    assert f"{100 * share['in the background']:.1f} % with `--async-save true`" in WORDS


def test_figures_of_publishing_equal_those_of_the_file():
    made = figures("publish")
    seconds, uploads = made["cpu_seconds"], made["uploads"]
    assert f"{made['bytes'] / 1e9:.2f} GB in {made['files']} files" in WORDS
    names = ("stage", "push", "push unchanged", "push one changed file", "load")
    assert f"| {' | '.join(f'{seconds[name]:.1f} s' for name in names)} |" in WORDS
    assert uploads["push unchanged"] == 0 and uploads["push one changed file"] == 1
