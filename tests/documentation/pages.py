"""Write the generated parts of the project's pages, each between two comments.

    python tests/documentation/pages.py        # or: make docs

A part begins with `<!-- NAME: written by make docs -->` and ends with `<!-- end -->`. A test checks that the pages are
up to date.
"""

import re
import sys
from functools import partial
from pathlib import Path


REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests" / folder) for folder in ("documentation", "helpers", "benchmarks")]

import facts  # noqa: E402
import languages  # noqa: E402
import preparation  # noqa: E402
import speed  # noqa: E402
import tuning  # noqa: E402


PAGES = (  # in reading order: later commands use files written by earlier ones
    "README.md",
    "training/README.md",
    *(
        f"training/docs/{name}.md"
        for name in (
            "tokenizers",
            "prepare",
            "pretrain",
            "finetune",
            "classify",
            "instruct",
            "prefer",
            "book",
            "evaluate",
            "safety",
            "generate",
            "publish",
            "resume",
            "distributed",
        )
    ),
    "training/CHAPTERS.md",
    "scratch_gpt/README.md",
    "scratch_gpt/modeling/README.md",
    "hub_card/README.md",
    "tests/README.md",
    "tests/benchmarks/README.md",
)
MARKED = re.compile(r"(<!-- (\S+): written by make docs -->\n).*?(?=<!-- end -->)", re.DOTALL)
PARTS = {
    part.__name__.replace("_", "-"): part
    for part in (
        facts.verbs,
        facts.presets,
        facts.rooms,
        facts.compatibility,
        facts.servers,
        facts.works_with,
        facts.chaos,
        facts.promises,
        facts.coming_from,
        facts.aliases,
        facts.hints,
        facts.public_names,
        speed.why,
        speed.training,
        speed.decoding,
        speed.quality,
        speed.tried,
        speed.plan,
        speed.scaling,
        speed.loading,
        speed.target_table,
        languages.languages,
        languages.pre_tokenizers,
        preparation.filters,
        preparation.near_duplicates,
        tuning.lora,
        tuning.loss,
        tuning.default_rates,
        tuning.rate_sweeps,
        tuning.spam,
        tuning.follow,
        tuning.triggers,
        tuning.memorization,
        tuning.book_runs,
        tuning.book_changes,
    )
}
PARTS |= {f"options-{verb}": partial(facts.options_of, verb) for verb in facts.VERBS if verb != "chat"}


def written(text: str) -> str:
    """Return a page with updated generated parts; KeyError for a name that is not in PARTS."""
    return MARKED.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n", text)


def read_page(name: str) -> str:
    """Return the text of a page."""
    return (REPO / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for page in PAGES:
        text = read_page(page)
        if (new := written(text)) != text:
            (REPO / page).write_text(new, encoding="utf-8")
            print(f"Written: {page}")
