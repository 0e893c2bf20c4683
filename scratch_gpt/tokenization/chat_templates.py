"""The name of a prompt format -> the one Jinja template that a tokenizer keeps: trained with it, used with it.

format      a question and its answer                                                             ends an answer
alpaca      Below is an instruction ... ### Instruction:\\n{question}\\n\\n### Response:\\n{answer}   EOS
chatml      <|im_start|>user\\n{question}<|im_end|>\\n<|im_start|>assistant\\n{answer}              <|im_end|>
phi3        <|user|>\\n{question}<|end|>\\n<|assistant|>\\n{answer}                                 <|end|>
plain       {question}{answer}, nothing trimmed                                                   EOS
tokenizer   what the tokenizer's own template writes                                              its own

Between `{% generation %}` and `{% endgeneration %}` stands what a model says: the answer and the token that ends it.
So `apply_chat_template(..., return_assistant_tokens_mask=True)` marks the same tokens as our rows do
(data/rows/conversations.py).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ..utils.foreign import one_error, time_limit
from .tokenizer import extend_tokenizer


INPUT = "\n\n### Input:\n"  # between an instruction and its input, inside the user's message

# Answers are trimmed, so that no token reaches across their border.
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
# Taori et al. 2023, with and without input. A system message stands in the place of the first paragraph.
ALPACA = """{%- if messages[0]['role'] == 'system' -%}
{{- messages[0]['content'] | trim -}}
{%- elif '\\n\\n### Input:\\n' in messages[0]['content'] -%}
{{- 'Below is an instruction that describes a task, paired with an input that provides further context. ' -}}
{{- 'Write a response that appropriately completes the request.' -}}
{%- else -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '\\n\\n### Instruction:\\n' + message['content'] | trim + '\\n\\n### Response:\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
"""
PLAIN = """{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] -}}
{%- endif -%}
{%- endfor -%}
"""


class Format(NamedTuple):
    """A template and the special tokens that it writes, beside EOS."""

    template: str
    tokens: tuple[str, ...] = ()


FORMATS = {
    "alpaca": Format(ALPACA),
    "chatml": Format(CHATML, ("<|im_start|>", "<|im_end|>")),
    "phi3": Format(PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "plain": Format(PLAIN),
}
RENDER_SECONDS = 10  # that a template has for one conversation
TRIAL = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Well."}]


def choose_format(
    tokenizer: PreTrainedTokenizerBase, prompt_format: str | None = None, *, replace: bool = False
) -> str:
    """Return the name of the format to use: `prompt_format`, else the tokenizer's own, else `alpaca`.

    Args:
        replace: a training run may give a model another format than it came with. Otherwise what is asked for has to
            be what the tokenizer keeps.

    Raises:
        ValueError: no such format, a mismatch, or `tokenizer` where it has no chat template.
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
        raise ValueError(f"There is no prompt_format {prompt_format!r}; it is {', '.join(FORMATS)} or tokenizer.")
    if stored_format not in (None, prompt_format) and not replace:
        name = "a chat template of its own" if stored_format == "tokenizer" else f"the format {stored_format}"
        raise ValueError(
            f"The model was trained with {name}, and {prompt_format} is asked for: it would not understand its "
            "prompts. Leave the format out."
        )
    return prompt_format


def template_of(tokenizer: PreTrainedTokenizerBase, prompt_format: str | None = None) -> str:
    """Return the Jinja template of a format; raise a ValueError if the tokenizer has another one."""
    return _template(tokenizer, choose_format(tokenizer, prompt_format))


def _template(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    return FORMATS[name].template if name in FORMATS else cast(str, tokenizer.chat_template)


def store_format(
    tokenizer: PreTrainedTokenizerBase, prompt_format: str, model: PreTrainedModel | None = None
) -> list[str]:
    """Make a format the one that the tokenizer keeps, what ends its answers EOS, of `model` too; what to say of it.

    Tokens that the format needs and the tokenizer does not have are added, to the model as well.

    Raises:
        ValueError: a template that does not render, has no generation markers, does not end an answer with one
            special token, or begins it otherwise than its generation prompt.
    """
    known_format, notices = FORMATS.get(prompt_format), []
    if known_format and tokenizer.chat_template not in (None, known_format.template):
        notices.append(
            f"Warning: the chat template that the model came with is replaced by {prompt_format}. Prompts in the old "
            "one are no longer what it expects."
        )
    if known_format and (
        missing_tokens := [token for token in known_format.tokens if token not in tokenizer.all_special_tokens]
    ):
        extend_tokenizer(tokenizer, missing_tokens, model, special=True)
        notices.append(f"Added to tokenizer and model for {prompt_format}: {' '.join(missing_tokens)}")
    template = _template(tokenizer, prompt_format)
    closing = _closing_token(tokenizer, template)
    if closing != tokenizer.eos_token:
        notices.append(f"{closing} ends an answer: it is the tokenizer's and the model's EOS now.")
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
            "The chat template has no generation markers, so nobody knows what the assistant says. Put "
            "{% generation %} and {% endgeneration %} around its answer and the token that ends it, or choose "
            f"a prompt_format of {', '.join(FORMATS)}."
        )
    start, end = spans[0]
    if text[:start] != prompt:
        raise ValueError(
            "The chat template begins an answer in training otherwise than its generation prompt does "
            f"({text[:start][-30:]!r}, {prompt[-30:]!r})."
        )
    before, _, closing = text[start:end].rpartition(TRIAL[-1]["content"])
    if before or closing not in tokenizer.all_special_tokens:
        raise ValueError(
            f"The chat template marks {text[start:end]!r} as the answer {TRIAL[-1]['content']!r}: it has to be the "
            "answer and one special token that ends it."
        )
    return closing


def render(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict], add_generation_prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of messages, and the (start, end) of each part of it that the assistant says.

    Raises:
        ValueError: whatever the template does wrong, refuses (`raise_exception`), or does for more than SECONDS.
    """
    return render_text(template, messages, tokenizer.special_tokens_map, add_generation_prompt)


def render_text(
    template: str,
    messages: list[dict],
    special_tokens: Mapping[str, Any],
    add_generation_prompt: bool = False,
    name: str = "The chat template",
) -> tuple[str, list[tuple[int, int]]]:
    """Render as `render` does, with special tokens by their roles; errors call the template `name`."""
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
