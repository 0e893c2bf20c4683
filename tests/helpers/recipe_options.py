"""The options of every recipe."""

from scratch_gpt_training import (
    classify,
    evaluate,
    generate,
    instruct,
    prefer,
    prepare,
    pretrain,
    publish,
    train_tokenizer,
)


KINDS = {
    "pretrain": pretrain.PretrainRun,
    "classify": classify.ClassifyRun,
    "instruct": instruct.InstructRun,
    "prefer": prefer.PreferRun,
    "evaluate": evaluate.EvaluateRun,
    "prepare": prepare.PrepareRun,
    "generate": generate.GenerateRun,
    "train_tokenizer": train_tokenizer.TokenizerRun,
    "publish": publish.PublishRun,
}
