"""Score a model on public tasks, by their names in lm_eval: LAMBADA, ARC-easy and BLiMP.

They suit a base of a few million parameters. Prompts, answers and metrics are those of lm_eval, without a few-shot
prompt, so the numbers are the same; lm_eval itself is not needed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.columns import LAST_WORDS, Columns
from .likelihood import Likelihood, choice_metrics, choice_pairs, last_word_metrics, last_word_pairs


Choices = list[tuple[str, list[str], int]]  # query, choices, number of the correct one


class BenchmarkTask(NamedTuple):
    """A task: the rows of a Hub dataset, how they are read, and the metrics of the answers."""

    dataset: str  # its id on the Hub
    config: str | None
    split: str
    columns: Columns
    read: Callable[[Iterable[Mapping[str, Any]]], Choices] | None  # None: the last word of each text
    metrics: tuple[str, ...]


# The 67 sets of BLiMP (Warstadt et al. 2020): pairs of sentences of which one is grammatical.
BLIMP = """
adjunct_island anaphor_gender_agreement anaphor_number_agreement animate_subject_passive animate_subject_trans
causative complex_NP_island coordinate_structure_constraint_complex_left_branch
coordinate_structure_constraint_object_extraction determiner_noun_agreement_1 determiner_noun_agreement_2
determiner_noun_agreement_irregular_1 determiner_noun_agreement_irregular_2 determiner_noun_agreement_with_adj_2
determiner_noun_agreement_with_adj_irregular_1 determiner_noun_agreement_with_adj_irregular_2
determiner_noun_agreement_with_adjective_1 distractor_agreement_relational_noun distractor_agreement_relative_clause
drop_argument ellipsis_n_bar_1 ellipsis_n_bar_2 existential_there_object_raising existential_there_quantifiers_1
existential_there_quantifiers_2 existential_there_subject_raising expletive_it_object_raising inchoative intransitive
irregular_past_participle_adjectives irregular_past_participle_verbs irregular_plural_subject_verb_agreement_1
irregular_plural_subject_verb_agreement_2 left_branch_island_echo_question left_branch_island_simple_question
matrix_question_npi_licensor_present npi_present_1 npi_present_2 only_npi_licensor_present only_npi_scope passive_1
passive_2 principle_A_c_command principle_A_case_1 principle_A_case_2 principle_A_domain_1 principle_A_domain_2
principle_A_domain_3 principle_A_reconstruction regular_plural_subject_verb_agreement_1
regular_plural_subject_verb_agreement_2 sentential_negation_npi_licensor_present sentential_negation_npi_scope
sentential_subject_island superlative_quantifiers_1 superlative_quantifiers_2 tough_vs_raising_1 tough_vs_raising_2
transitive wh_island wh_questions_object_gap wh_questions_subject_gap wh_questions_subject_gap_long_distance
wh_vs_that_no_gap wh_vs_that_no_gap_long_distance wh_vs_that_with_gap wh_vs_that_with_gap_long_distance
""".split()
KNOWN = "lambada_openai, arc_easy, blimp, and blimp_NAME for one of its 67 sets"


def read_arc(rows: Iterable[Mapping[str, Any]]) -> Choices:
    """Read rows of ARC: {"question": str, "choices": {"text": [...], "label": [...]}, "answerKey": str}.

    Raises:
        ValueError: a row without these fields, or whose answer is not one of its labels.
    """
    tasks = []
    for number, row in enumerate(rows, start=1):
        try:
            texts, labels = row["choices"]["text"], row["choices"]["label"]
            tasks.append((f"Question: {row['question']}\nAnswer:", [*texts], labels.index(row["answerKey"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"Row {number} is not {{question: text, choices: {{text: [texts], label: [labels]}}, answerKey: "
                f"label}}: {repr(dict(row))[:100]}."
            ) from error
    return tasks


def read_sentence_pairs(rows: Iterable[Mapping[str, Any]]) -> Choices:
    """Read rows of BLiMP, {"sentence_good": str, "sentence_bad": str}; ValueError for a row without a sentence."""
    tasks: Choices = []
    for number, row in enumerate(rows, start=1):
        sentences = [row.get("sentence_good"), row.get("sentence_bad")]
        if not all(isinstance(sentence, str) and sentence.strip() for sentence in sentences):
            raise ValueError(f"Row {number} needs a sentence_good and a sentence_bad: {repr(dict(row))[:100]}.")
        tasks.append(("", [str(sentence) for sentence in sentences], 0))
    return tasks


ARC = Columns((("question", "choices", "answerKey"),))
SENTENCES = Columns((("sentence_good", "sentence_bad"),))
TASKS = {
    "lambada_openai": BenchmarkTask(
        "EleutherAI/lambada_openai", "default", "test", LAST_WORDS, None, ("acc", "perplexity")
    ),
    "arc_easy": BenchmarkTask("allenai/ai2_arc", "ARC-Easy", "test", ARC, read_arc, ("acc", "acc_norm")),
    **{
        f"blimp_{name}": BenchmarkTask("nyu-mll/blimp", name, "train", SENTENCES, read_sentence_pairs, ("acc",))
        for name in BLIMP
    },
}


def parts_of(name: str) -> dict[str, BenchmarkTask]:
    """Return the tasks of a name: one, or all sets of "blimp"; ValueError for an unknown name."""
    if name == "blimp":
        return {part: task for part, task in TASKS.items() if part.startswith("blimp_")}
    if name not in TASKS:
        raise ValueError(
            f"Unknown task {name!r}. Known are {KNOWN}. For others run lm_eval --model hf --model_args "
            f"pretrained=MODEL,trust_remote_code=True --tasks {name}."
        )
    return {name: TASKS[name]}


def task_metrics(
    task: BenchmarkTask,
    rows: Iterable[Mapping[str, Any]],
    score: Callable[[Sequence[tuple[str, str]]], list[Likelihood]],
) -> dict[str, float]:
    """Return the metrics of a task on its rows.

    Args:
        score: (context, continuation) texts -> their likelihoods.
    """
    if task.read is None:
        values = last_word_metrics(score(last_word_pairs(rows)))
    else:
        choices = task.read(rows)
        values = choice_metrics(choices, score(choice_pairs(choices)))
    return {name: values[name] for name in task.metrics}


__all__ = ["KNOWN", "TASKS", "BenchmarkTask", "parts_of", "task_metrics"]
