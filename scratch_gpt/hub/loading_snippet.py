"""Write Python code that loads a published model in each layout, and the versions it needs. A test runs the code."""

import json

from ..modeling.configuration_scratch_gpt import OLDEST_TRANSFORMERS
from ..runs.record import Record


OLDEST_FOR_STOCK = "5"  # 4.57 reads the weights, but not a tokenizer that version 5 has saved


def load_code(
    record: Record, repo: str, layout: str, revision: str | None = None, base_needs_trust: bool = False
) -> str:
    """Return Python code that loads the published model and uses it once."""
    source = _source(repo, revision)
    trust = ", trust_remote_code=True" if _brings_code(layout, base_needs_trust) else ""
    if record.kind == "classifier" and layout != "adapter":
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("text-classification", model={source}{trust})\n'
            'print(classify(["A text to classify."], truncation=True))'
        )
    task = "SequenceClassification" if record.kind == "classifier" else "CausalLM"
    length = min(40, record.config["max_position_embeddings"] // 2)  # prompt and answer must fit into the context
    library, prefix = ("peft", "AutoPeft") if layout == "adapter" else ("transformers", "Auto")
    loader = f"{prefix}ModelFor{task}"
    names = f", id2label={_literal(dict(enumerate(record.labels)))}" if record.kind == "classifier" else ""
    imports = f"from {library} import {loader}\nfrom transformers import AutoTokenizer"
    if library == "transformers":
        imports = f"from transformers import {loader}, AutoTokenizer"
    lines = [
        f"{imports}\n",
        f"model = {loader}.from_pretrained({source}{names}{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained({source}{trust})",
    ]
    if record.kind == "classifier":
        lines += [
            'scores = model(**tokenizer("A text to classify.", return_tensors="pt")).logits',
            "print(model.config.id2label[int(scores.argmax())])",
        ]
    elif record.kind == "chat":
        lines += [
            'messages = [{"role": "user", "content": "What is the opposite of low?"}]',
            'ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
            "return_dict=True)",
            f'answer = model.generate(**ids, max_new_tokens={length})[0, ids["input_ids"].shape[1] :]',
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        ]
    else:
        prompt = record.run.get("sample_prompt") or "The"
        lines += [
            f'ids = tokenizer({_literal(prompt)}, return_tensors="pt")',
            f"print(tokenizer.decode(model.generate(**ids, max_new_tokens={length}, do_sample=True, top_k=50)[0]))",
        ]
    return "\n".join(lines)


def load_as_ours(record: Record, repo: str, layout: str, revision: str | None = None) -> str | None:
    """Return a sentence and the code to read a stock model as our class; None for the other layouts."""
    if layout != "gpt2":
        return None
    name = f"ScratchGPTFor{'SequenceClassification' if record.kind == 'classifier' else 'CausalLM'}"
    return (
        "To load it with the class that trained it, from the package scratch_gpt:"
        "\n\n```python\nimport scratch_gpt\n\n"
        f"model = scratch_gpt.{name}.from_pretrained({_source(repo, revision)})\n```"
    )


def load_needs(layout: str, base_needs_trust: bool = False) -> str:
    """Return the libraries and versions that `load_code` needs."""
    oldest = OLDEST_TRANSFORMERS if _brings_code(layout, base_needs_trust) else OLDEST_FOR_STOCK
    return f"Needs {'peft and ' if layout == 'adapter' else ''}transformers {oldest} or newer."


def _source(repo: str, revision: str | None) -> str:
    # Return the first arguments of `from_pretrained`.
    return _literal(repo) + (f", revision={_literal(revision)}" if revision else "")


def _literal(value: str | dict[int, str]) -> str:
    # Return a Python literal on one line, without the card's region marks.
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return text.replace("<!--", "\\x3c!--")


def _brings_code(layout: str, base_needs_trust: bool) -> bool:
    # Return whether loading runs our modeling files, from the model or from an adapter's base.
    return layout == "scratch_gpt" or (layout == "adapter" and base_needs_trust)


__all__ = ["load_as_ours", "load_code", "load_needs"]
