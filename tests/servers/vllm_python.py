"""Continue the prompts of expected.json with vLLM's `LLM` and write the ids as JSON.

python tests/servers/vllm_python.py MODEL expected.json COUNT ids.json
"""

import json
import sys

from vllm import LLM, SamplingParams


if __name__ == "__main__":  # vLLM's engine is a process that imports this file
    model, expected, count, out = sys.argv[1:]
    with open(expected, encoding="utf-8") as file:
        prompts = [{"prompt_token_ids": row["ids"]} for row in json.load(file)]
    llm = LLM(model=model, trust_remote_code=True, dtype="float32", enforce_eager=True, max_num_seqs=4)
    answers = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=int(count), ignore_eos=True))
    with open(out, "w", encoding="utf-8") as file:
        json.dump([list(answer.outputs[0].token_ids) for answer in answers], file)
