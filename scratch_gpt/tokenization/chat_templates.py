"""Prompt formats: a Jinja chat template for each, stored with the tokenizer and used for training and generation.

format      a question and its answer                                                             end of an answer
alpaca      Below is an instruction ... ### Instruction:\\n{question}\\n\\n### Response:\\n{answer}   EOS
book        the same, with one introduction for questions with and without input              EOS
chatml      <|im_start|>user\\n{question}<|im_end|>\\n<|im_start|>assistant\\n{answer}              <|im_end|>
phi3        <|user|>\\n{question}<|end|>\\n<|assistant|>\\n{answer}                                 <|end|>
plain       {question}{answer}, nothing trimmed                                                   EOS
tokenizer   the template that is stored with the tokenizer                                        its end token

`{% generation %}` and `{% endgeneration %}` enclose the assistant's answer and the token that ends it. Thus
`apply_chat_template(..., return_assistant_tokens_mask=True)` marks the same tokens as targets as our rows do
(data/rows/conversations.py).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ..utils.foreign import one_error, time_limit
from .tokenizer import extend_tokenizer


INPUT = "\n\n### Input:\n"  # between an instruction and its input, inside the user's message

# Answers are trimmed, so that no token crosses their border.
CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PHI3 = """{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + '<|end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
# The questions and answers of Alpaca (Taori et al. 2023), without the introduction.
ALPACA_MESSAGES = """{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '\\n\\n### Instruction:\\n' + message['content'] | trim + '\\n\\n### Response:\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
"""
# Its two introductions, for a question with and without input. A system message replaces them.
ALPACA = (
    """{%- if messages[0]['role'] == 'system' -%}
{{- messages[0]['content'] | trim -}}
{%- elif '\\n\\n### Input:\\n' in messages[0]['content'] -%}
{{- 'Below is an instruction that describes a task, paired with an input that provides further context. ' -}}
{{- 'Write a response that appropriately completes the request.' -}}
{%- else -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.' -}}
{%- endif -%}
"""
    + ALPACA_MESSAGES
)
# "Build a Large Language Model (From Scratch)", chapter 7: Alpaca with one introduction for all questions.
BOOK = (
    """{%- if messages[0]['role'] == 'system' -%}
{{- messages[0]['content'] | trim -}}
{%- else -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.' -}}
{%- endif -%}
"""
    + ALPACA_MESSAGES
)
PLAIN = """{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
"""


class Format(NamedTuple):
    """A template and its special tokens, except EOS."""

    template: str
    tokens: tuple[str, ...] = ()


FORMATS = {
    "alpaca": Format(ALPACA),
    "book": Format(BOOK),
    "chatml": Format(CHATML, ("<|im_start|>", "<|im_end|>")),
    "phi3": Format(PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "plain": Format(PLAIN),
}
RENDER_SECONDS = 10  # time limit for one conversation
TRIAL = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Well."}]


def choose_format(
    tokenizer: PreTrainedTokenizerBase, prompt_format: str | None = None, *, replace: bool = False
) -> str:
    """Return the name of the format to use: `prompt_format`, else the tokenizer's format, else `alpaca`.

    Args:
        replace: allow a format that differs from the tokenizer's, for training. Otherwise the two must be the same.

    Raises:
        ValueError: the format is unknown, it differs from the tokenizer's, or it is `tokenizer` and the tokenizer has
            no chat template.
    """
    stored = tokenizer.chat_template
    stored_format = next(
        (name for name, candidate in FORMATS.items() if candidate.template == stored), "tokenizer" if stored else None
    )
    if prompt_format is None:
        return stored_format or "alpaca"
    if prompt_format == "tokenizer":
        if stored_format is None:
            raise ValueError(f"The tokenizer has no chat template. Choose one of {', '.join(FORMATS)}.")
        return stored_format
    if prompt_format not in FORMATS:
        raise ValueError(f"prompt_format must be {', '.join(FORMATS)} or tokenizer, not {prompt_format!r}.")
    if stored_format not in (None, prompt_format) and not replace:
        name = "another chat template" if stored_format == "tokenizer" else f"the format {stored_format}"
        raise ValueError(
            f"The model was trained with {name}, not with {prompt_format}, so it would not understand such prompts. "
            "Use the stored format: remove prompt_format."
        )
    return prompt_format


def template_of(tokenizer: PreTrainedTokenizerBase, prompt_format: str | None = None) -> str:
    """Return the Jinja template of a format; raise a ValueError if the tokenizer has another format."""
    return _template(tokenizer, choose_format(tokenizer, prompt_format))


def _template(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    return FORMATS[name].template if name in FORMATS else cast(str, tokenizer.chat_template)


def store_format(
    tokenizer: PreTrainedTokenizerBase, prompt_format: str, model: PreTrainedModel | None = None
) -> list[str]:
    """Store a format in the tokenizer, set the token that ends its answers as EOS, and return notices for the user.

    `model` gets the same EOS. Tokens that the format needs are added to the tokenizer and the model if missing.

    Raises:
        ValueError: the template does not render, has no generation markers, does not end an answer with one special
            token, or begins an answer differently than its generation prompt.
    """
    known_format, notices = FORMATS.get(prompt_format), []
    if known_format and tokenizer.chat_template not in (None, known_format.template):
        notices.append(
            f"Warning: the model's chat template is replaced by {prompt_format}. After training it no longer expects "
            "prompts in the old format."
        )
    if known_format and (
        missing_tokens := [token for token in known_format.tokens if token not in tokenizer.all_special_tokens]
    ):
        extend_tokenizer(tokenizer, missing_tokens, model, special=True)
        notices.append(f"Added to the tokenizer and the model for {prompt_format}: {' '.join(missing_tokens)}")
    template = _template(tokenizer, prompt_format)
    closing = _closing_token(tokenizer, template)
    if closing != tokenizer.eos_token:
        notices.append(f"EOS of the tokenizer and the model is now {closing}, which ends an answer.")
        tokenizer.eos_token = closing
    if model is not None:
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.chat_template = template
    return notices


def _closing_token(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    text, spans = render(tokenizer, template, TRIAL)
    prompt, _ = render(tokenizer, template, TRIAL[:1], add_generation_prompt=True)
    if len(spans) != 1:
        raise ValueError(
            "The chat template has no generation markers, so the assistant's tokens cannot be located. Put "
            "{% generation %} and {% endgeneration %} around an answer and the token that ends it, or choose "
            f"a prompt_format of {', '.join(FORMATS)}."
        )
    start, end = spans[0]
    if text[:start] != prompt:
        raise ValueError(
            f"The chat template begins an answer in training with {text[:start][-30:]!r}, but its generation prompt "
            f"ends with {prompt[-30:]!r}. Make the two equal."
        )
    before, _, closing = text[start:end].rpartition(TRIAL[-1]["content"])
    if before or closing not in tokenizer.all_special_tokens:
        raise ValueError(
            f"The chat template marks {text[start:end]!r} as the answer {TRIAL[-1]['content']!r}. It must mark the "
            "answer and one special token that ends it."
        )
    return closing


def render(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict], add_generation_prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of messages, and the (start, end) of each answer of the assistant in it.

    Raises:
        ValueError: the template fails, rejects the messages (`raise_exception`), or takes more than RENDER_SECONDS.
    """
    return render_text(template, messages, tokenizer.special_tokens_map, add_generation_prompt)


def render_text(
    template: str,
    messages: list[dict],
    special_tokens: Mapping[str, Any],
    add_generation_prompt: bool = False,
    name: str = "The chat template",
) -> tuple[str, list[tuple[int, int]]]:
    """Render like `render`, with the special tokens given by role; errors call the template `name`."""
    with one_error(f"{name} does not render a conversation"), time_limit(RENDER_SECONDS, "it"):
        texts, spans = render_jinja_template(
            [messages],
            chat_template=template,
            return_assistant_tokens_mask="endgeneration" in template,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    return texts[0], cast(list[tuple[int, int]], spans[0]) if spans else []


__all__ = [
    "CHATML",
    "FORMATS",
    "INPUT",
    "TRIAL",
    "choose_format",
    "render",
    "render_text",
    "store_format",
    "template_of",
]
