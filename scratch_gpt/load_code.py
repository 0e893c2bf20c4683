"""A published model and its layout -> the Python that a stranger loads it with. It is run by a test."""

import json

from .record import Record


def load_code(record: Record, repo: str, layout: str, revision: str | None = None, base_needs_trust=False) -> str:
    """Python that loads the published model and uses it once."""
    needs_trust = layout == "scratch_gpt" or (layout == "adapter" and base_needs_trust)
    at = f'"{repo}"' + (f', revision="{revision}"' if revision else "")
    more = ", trust_remote_code=True" if needs_trust else ""
    if record.kind == "classifier" and layout != "adapter":
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("text-classification", model={at}{more})\n'
            'print(classify(["A text that is to be classified."], truncation=True))'
        )
    task = "SequenceClassification" if record.kind == "classifier" else "CausalLM"
    most = min(40, record.config["max_position_embeddings"] // 2)  # prompt and answer have to fit
    library, prefix = ("peft", "AutoPeft") if layout == "adapter" else ("transformers", "Auto")
    loader = f"{prefix}ModelFor{task}"
    names = f", id2label={dict(enumerate(record.labels))!r}" if record.kind == "classifier" else ""
    imports = f"from {library} import {loader}\nfrom transformers import AutoTokenizer"
    if library == "transformers":
        imports = f"from transformers import {loader}, AutoTokenizer"
    lines = [
        f"{imports}\n",
        f"model = {loader}.from_pretrained({at}{names}{more})",
        f"tokenizer = AutoTokenizer.from_pretrained({at}{more})",
    ]
    if record.kind == "classifier":
        lines += [
            'scores = model(**tokenizer("A text that is to be classified.", return_tensors="pt")).logits',
            "print(model.config.id2label[int(scores.argmax())])",
        ]
    elif record.kind == "chat":
        lines += [
            'messages = [{"role": "user", "content": "What is the opposite of low?"}]',
            'ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
            "return_dict=True)",
            f'answer = model.generate(**ids, max_new_tokens={most})[0, ids["input_ids"].shape[1] :]',
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        ]
    else:
        prompt = record.run.get("sample_prompt") or "The"
        lines += [
            f'ids = tokenizer({json.dumps(prompt, ensure_ascii=False)}, return_tensors="pt")',
            f"print(tokenizer.decode(model.generate(**ids, max_new_tokens={most}, do_sample=True, top_k=50)[0]))",
        ]
    return "\n".join(lines)


__all__ = ["load_code"]
