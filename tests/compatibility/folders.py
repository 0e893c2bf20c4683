"""Write the folders that checks.py loads, and the expected results, with the current code.

python tests/compatibility/folders.py FOLDER
"""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))  # tests/helpers/tiny.py

import torch
from tiny import some_ids, tiny_gpt2, tiny_model
from transformers import pipeline

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTModel, export_gpt2
from scratch_gpt.conversion.load import fresh_head
from scratch_gpt.finetuning.lora import add_lora, merged_state, save_adapter
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.training import train_tokenizer


CLASSES = {
    "AutoModel": ScratchGPTModel,
    "AutoModelForCausalLM": ScratchGPTForCausalLM,
    "AutoModelForSequenceClassification": ScratchGPTForSequenceClassification,
}
PLANTS = ["import scratch_gpt", "from scratch_gpt.modeling.gpt2_layout import GPT2_LAYOUT"]
TEXTS = ["a boat at sea", "sea"]
MESSAGES = [{"role": "user", "content": "Where is the boat?"}]
GREEDY = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}


@torch.no_grad()
def write_folders(root: Path) -> None:
    """Fill `root`: a folder for each Auto class, a chat model, a classifier, GPT-2, an adapter; and expected.json."""
    ids = some_ids()
    expected = {"ids": ids.tolist(), "outputs": {}, "classes": {}}
    for name, model_class in CLASSES.items():
        model = tiny_model(model_class, num_labels=3)
        model.save_pretrained(root / name)
        expected["outputs"][name] = model(ids)[0].tolist()
        expected["classes"][name] = model_class.__name__
    model = tiny_model()
    expected["greedy"] = model.generate(ids, use_cache=False, **GREEDY).tolist()
    expected["beams"] = model.generate(ids, use_cache=False, num_beams=3, **GREEDY).tolist()
    expected["loss"] = model(ids, labels=ids).loss.item()
    export_gpt2(model, root / "stock")
    tiny_model(seed=1, num_hidden_layers=1).save_pretrained(root / "assistant")
    gpt2 = tiny_gpt2()
    gpt2.save_pretrained(root / "gpt2")
    expected["gpt2"] = gpt2(ids).logits.tolist()

    adapted = tiny_model()
    add_lora(adapted, base="AutoModelForCausalLM", rank=4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    save_adapter(adapted, root / "adapter")
    merged = tiny_model()
    merged.load_state_dict(merged_state(adapted), strict=False)
    expected["adapted"] = merged(ids).logits.tolist()

    tokenizer = train_tokenizer([*TEXTS, str(MESSAGES)], vocab_size=300)
    chat = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=128)
    store_format(tokenizer, "chatml", chat)
    for part in (chat, tokenizer):
        part.save_pretrained(root / "chat")
    write = pipeline("text-generation", model=chat, tokenizer=tokenizer)
    expected |= {"prompt": TEXTS[0], "messages": MESSAGES}
    how = {"max_new_tokens": 8, "do_sample": False}
    expected["continued"] = write(TEXTS[0], return_full_text=False, **how)[0]["generated_text"]
    expected["answer"] = write(MESSAGES, **how)[0]["generated_text"][-1]["content"]
    prompt = {"add_generation_prompt": True}
    expected["chat"] = tokenizer.apply_chat_template(MESSAGES, tokenize=False, **prompt)
    expected["chat_ids"] = tokenizer.apply_chat_template(MESSAGES, return_dict=True, **prompt)["input_ids"]

    tokenizer = train_tokenizer(TEXTS, vocab_size=270)
    tokenizer.pad_token = tokenizer.eos_token
    classifier = tiny_model(ScratchGPTForSequenceClassification, vocab_size=270, pad_token_id=tokenizer.pad_token_id)
    fresh_head(classifier, ["ham", "spam"], has_many=False, seed=0)
    for part in (classifier, tokenizer):
        part.save_pretrained(root / "classifier")
    scores = pipeline("text-classification", model=classifier, tokenizer=tokenizer)(TEXTS, top_k=None)
    expected |= {"texts": TEXTS, "scores": [{label["label"]: label["score"] for label in row} for row in scores]}

    for number, plant in enumerate(PLANTS):
        folder = root / "planted" / str(number)
        model.save_pretrained(folder)
        code = folder / "modeling_scratch_gpt.py"
        code.write_text(code.read_text().replace("\nimport math\n", f"\nimport math\n{plant}\n"))
        assert plant in code.read_text()
    (root / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    write_folders(Path(sys.argv[1]))
