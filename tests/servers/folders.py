"""Write a small model for each server, and the ids that it must return.

    python tests/servers/folders.py FOLDER COUNT

FOLDER/own is our layout, FOLDER/stock is GPT-2's, FOLDER/model-f32.gguf is llama.cpp's. FOLDER/expected.json has for
each prompt its ids, COUNT greedy ids of ours with the texts of their beginnings, and, for each id, how far its logit
is ahead of the second best, and which that is.
"""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))  # tests/helpers/tiny.py

import torch
from tiny import tiny_model
from transformers.utils import logging

from scratch_gpt import export_gpt2
from scratch_gpt.conversion.gguf_file import write_gguf
from scratch_gpt.generation.generate import generate
from scratch_gpt.tokenization.tokenizer import decode, encode
from scratch_gpt.tokenization.training import train_tokenizer


TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
PROMPTS = ["The", "a copy of this ", "Permission to use,\n    and ", "it is provided"]
# The smallest heads that vLLM's attention takes on a CPU are 32 wide.
SIZES = {"vocab_size": 400, "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 128}


@torch.no_grad()
def write_folders(root: Path, count: int) -> None:
    """Fill `root` with one model in three layouts, and expected.json."""
    tokenizer = train_tokenizer([TEXT.read_text()], vocab_size=SIZES["vocab_size"])
    model = tiny_model(**SIZES, initializer_range=0.3, eos_token_id=tokenizer.eos_token_id)
    for id in range(SIZES["vocab_size"]):
        # Some servers return only text, so the model generates only tokens that are text: all others get logit 0.
        text = tokenizer.decode([id])
        if id in tokenizer.all_special_ids or not (text.isascii() and text.isprintable()):
            model.transformer.embed_tokens.weight[id] = 0
    expected = []
    for prompt in PROMPTS:
        ids = encode(tokenizer, prompt)
        whole = generate(model, torch.tensor([ids]), max_new_tokens=count, temperature=0)
        new = whole[0, len(ids) :].tolist()
        best = model(whole[:, :-1]).logits[0, len(ids) - 1 :].topk(2)
        ahead, second = (best.values[:, 0] - best.values[:, 1]).tolist(), best.indices[:, 1].tolist()
        texts = [decode(tokenizer, new[:n]) for n in range(len(new) + 1)]
        tied_texts = [decode(tokenizer, [*new[:n], other]) for n, other in enumerate(second)]
        row = {"prompt": prompt, "ids": ids, "new": new, "texts": texts}
        expected.append({**row, "ahead": ahead, "second": second, "tied_texts": tied_texts})
    model.save_pretrained(root / "own")
    tokenizer.save_pretrained(root / "own")
    export_gpt2(model, root / "stock", tokenizer)
    write_gguf(model, tokenizer, root / "model-f32.gguf")
    (root / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    logging.disable_progress_bar()
    write_folders(Path(sys.argv[1]), int(sys.argv[2]))
