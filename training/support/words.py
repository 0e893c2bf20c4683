"""Translate the option names of other tools: transformers, TRL, nanoGPT, litgpt and the book.

`SYNONYMS` has names with exactly our meaning and values: they are accepted. `HINTS` has names with a similar meaning
and a sentence that says what to write. Imports nothing heavy.
"""

from collections.abc import Collection, Iterable


SYNONYMS = {  # their name: ours, and the tool that it comes from
    # transformers' TrainingArguments and run_clm
    "per_device_train_batch_size": ("batch_size", "transformers"),
    "gradient_accumulation_steps": ("accumulation_steps", "transformers"),
    "num_train_epochs": ("epochs", "transformers"),
    "adam_beta2": ("beta2", "transformers"),
    "logging_steps": ("log_every", "transformers"),
    "eval_steps": ("eval_every", "transformers"),
    "save_steps": ("checkpoint_every", "transformers"),
    "save_total_limit": ("keep", "transformers"),
    "load_best_model_at_end": ("keep_best", "transformers"),
    "early_stopping_patience": ("patience", "transformers"),
    "overwrite_output_dir": ("overwrite", "transformers"),
    "dataloader_num_workers": ("workers", "transformers"),
    "torch_compile": ("compile", "transformers"),
    "train_file": ("dataset", "transformers"),
    "tokenizer_name": ("tokenizer", "transformers"),
    "dataset_config_name": ("dataset_config", "transformers"),
    "num_return_sequences": ("samples", "transformers"),
    # TRL
    "model_name_or_path": ("model", "TRL"),
    "dataset_name": ("dataset", "TRL"),
    "dataset_train_split": ("dataset_split", "TRL"),
    "dataset_text_field": ("text_column", "TRL"),
    "max_seq_length": ("max_length", "TRL"),
    "packing": ("pack", "TRL"),
    "lora_r": ("lora_rank", "TRL"),
    # nanoGPT
    "max_iters": ("max_steps", "nanoGPT"),
    "warmup_iters": ("warmup_steps", "nanoGPT"),
    "min_lr": ("min_learning_rate", "nanoGPT"),
    "grad_clip": ("max_grad_norm", "nanoGPT"),
    "eval_interval": ("eval_every", "nanoGPT"),
    "log_interval": ("log_every", "nanoGPT"),
    "out_dir": ("output_dir", "nanoGPT"),
    "start": ("prompt", "nanoGPT"),
    "num_samples": ("samples", "nanoGPT"),
    # litgpt
    "micro_batch_size": ("batch_size", "litgpt"),
    "lr_warmup_steps": ("warmup_steps", "litgpt"),
    "save_interval": ("checkpoint_every", "litgpt"),
    "max_norm": ("max_grad_norm", "litgpt"),
    # "Build a Large Language Model (From Scratch)"
    "num_epochs": ("epochs", "the book"),
    "lr": ("learning_rate", "the book"),
    "eval_freq": ("eval_every", "the book"),
    "start_context": ("sample_prompt", "the book"),
    # our own earlier spelling
    "licence": ("license", "scratch_gpt"),
    "licence_name": ("license_name", "scratch_gpt"),
    "licence_link": ("license_link", "scratch_gpt"),
}

_SHAPE = "The shape of a new model is set with --preset and --config-overrides, such as"
_NOTHING = "Remove it:"

HINTS: dict[str, tuple[str | None, str]] = {  # their name: our field (None for every recipe), and what to write
    "lr_scheduler_type": (
        "schedule",
        "Use --schedule cosine or linear. Here the rate ends at a tenth of its peak; --min-learning-rate 0 ends at 0.",
    ),
    "warmup_ratio": ("warmup_steps", "Use --warmup-steps, which counts steps instead of a share of the run."),
    "bf16": ("mixed_precision", "Use --mixed-precision bf16."),
    "fp16": ("mixed_precision", "Use --mixed-precision fp16."),
    "tf32": ("mixed_precision", "Use --mixed-precision bf16."),
    "dtype": ("mixed_precision", "Use --mixed-precision bf16, fp16 or no."),
    "torch_dtype": ("mixed_precision", "Use --mixed-precision bf16, fp16 or no."),
    "precision": ("mixed_precision", "Use --mixed-precision bf16, fp16 or no."),
    "use_cpu": ("device", "Use --device cpu."),
    "no_cuda": ("device", "Use --device cpu."),
    "per_device_eval_batch_size": ("batch_size", "Use --batch-size, which evaluation uses too."),
    "global_batch_size": (
        "accumulation_steps",
        "A step has --batch-size x --accumulation-steps x processes rows: set the first two.",
    ),
    "eval_strategy": ("eval_every", "Use --eval-every N, which counts steps."),
    "save_strategy": ("checkpoint_every", "Use --checkpoint-every N, which counts steps."),
    "logging_strategy": ("log_every", "Use --log-every N, which counts steps."),
    "eval_iters": ("eval_batches", "Use --eval-batches, which counts batches of the validation split per process."),
    "eval_iter": ("eval_batches", "Use --eval-batches, which counts batches of the validation split per process."),
    "resume_from_checkpoint": ("resume", "Use --resume latest, or --resume with the path of a checkpoint."),
    "init_from": ("model", "Use --resume latest to continue a run, or --model to start from another model."),
    "hub_model_id": ("push_to_hub", "Use --push-to-hub user/name."),
    "hub_token": ("push_to_hub", "Log in once with `hf auth login`."),
    "run_name": ("output_dir", "Use --output-dir runs/NAME: a run has the name of its folder."),
    "logging_dir": ("report_to", "Use --report-to tensorboard, which writes into --output-dir."),
    "wandb_log": ("report_to", "Use --report-to wandb."),
    "wandb_project": ("report_to", "Use --report-to wandb, and set WANDB_PROJECT."),
    "optim": ("optimizer", "Use --optimizer adamw or muon."),
    "adam_beta1": ("beta2", f"{_NOTHING} beta1 is 0.9. --beta2 sets the other."),
    "beta1": ("beta2", f"{_NOTHING} beta1 is 0.9. --beta2 sets the other."),
    "adam_epsilon": ("beta2", f"{_NOTHING} epsilon is 1e-8."),
    "decay_lr": ("schedule", "Use --schedule cosine or linear; the rate always decays over the whole run."),
    "lr_decay_iters": ("schedule", f"{_NOTHING} the rate always decays over the whole run."),
    "block_size": (
        "max_length",
        "Use --max-length for the tokens per row; --config-overrides max_position_embeddings=N sets the context.",
    ),
    "context_length": (
        "max_length",
        "Use --max-length for the tokens per row; --config-overrides max_position_embeddings=N sets the context.",
    ),
    "max_prompt_length": ("max_length", "Use --max-length, which holds prompt and answer together."),
    "n_layer": ("config_overrides", f"{_SHAPE} --config-overrides n_layer=6."),
    "n_layers": ("config_overrides", f"{_SHAPE} --config-overrides n_layer=6."),
    "n_head": ("config_overrides", f"{_SHAPE} --config-overrides n_head=6."),
    "n_heads": ("config_overrides", f"{_SHAPE} --config-overrides n_head=6."),
    "n_embd": ("config_overrides", f"{_SHAPE} --config-overrides n_embd=384."),
    "emb_dim": ("config_overrides", f"{_SHAPE} --config-overrides emb_dim=384."),
    "bias": ("config_overrides", f"{_SHAPE} --config-overrides attention_bias=false."),
    "qkv_bias": ("config_overrides", f"{_SHAPE} --config-overrides qkv_bias=false."),
    "drop_rate": ("dropout", "Use --dropout."),
    "config_name": ("preset", "Use --preset, or --model with a model's folder."),
    "model_name": ("model", "Use --model with a folder or Hub id, or --preset for a new model."),
    "checkpoint_dir": ("model", "Use --model with a folder or Hub id."),
    "tokenizer_dir": ("tokenizer", "Use --tokenizer with a folder or Hub id."),
    "validation_file": ("validation_fraction", "Use --validation-fraction, or prepare data with splits first."),
    "validation_split_percentage": (
        "validation_fraction",
        "Use --validation-fraction, a fraction such as 0.1 instead of a percentage.",
    ),
    "drop_last": ("drop_tail", "Use --drop-tail for the last window of a split; every batch is full."),
    "shuffle": ("seed", f"{_NOTHING} training rows are always shuffled, by --seed."),
    "data_seed": ("seed", "Use --seed, which also orders the rows."),
    "group_by_length": ("batch_size", f"{_NOTHING} recipes that pad always batch rows of similar length."),
    "use_peft": ("tune", "Use --tune lora."),
    "lora_target_modules": ("lora_targets", "Use --lora-targets default, attention or all-linear."),
    "load_in_4bit": ("quantize_base", "Use --tune lora --quantize-base nf4."),
    "load_in_8bit": ("quantize_base", "Use --tune lora --quantize-base int8."),
    "completion_only_loss": ("train_on", "Use --train-on completion, which is the default."),
    "assistant_only_loss": ("train_on", "Use --train-on completion, which is the default."),
    "chat_template_path": ("prompt_format", "Use --prompt-format."),
    "num_labels": ("label_column", f"{_NOTHING} classes are counted from the labels."),
    "problem_type": ("label_separator", f"{_NOTHING} it follows from the labels."),
    "do_sample": ("temperature", "Use --temperature: 0 is greedy, above 0 samples."),
    "num_beams": ("temperature", "Beam search is in transformers: model.generate(num_beams=4)."),
    "do_train": (None, f"{_NOTHING} a training recipe always trains; --max-steps 0 only evaluates."),
    "do_eval": (None, f"{_NOTHING} validation runs during training; --max-steps 0 only evaluates."),
    "do_predict": (None, "Use `classify --predict FILE`, or `evaluate`."),
    "trust_remote_code": (None, f"{_NOTHING} code from a model's folder is never run."),
    "deepspeed": ("expect_processes", "DeepSpeed is not supported; use FSDP by `accelerate config`."),
    "fsdp": ("expect_processes", "Use `accelerate launch --use_fsdp --fsdp_version 2`, or a launch file."),
    "local_rank": ("expect_processes", f"{_NOTHING} the launcher sets it."),
    "backend": ("expect_processes", f"{_NOTHING} the launcher chooses it."),
}

CHOICE_HINTS = {  # (field, their value): what to write
    ("loss_type", "sigmoid"): "TRL's sigmoid is dpo here.",
    ("loss_type", "kto_pair"): "TRL's kto_pair is kto here.",
    ("schedule", "cosine_with_min_lr"): "That is cosine with --min-learning-rate here.",
    ("optimizer", "adamw_torch"): "That is adamw here.",
    ("optimizer", "adamw_torch_fused"): "That is adamw here.",
    ("mixed_precision", "fp32"): "That is `no` here.",
}


def translate(name: str, fields: Collection[str]) -> str:
    """Return our field for another tool's name of the same meaning; return any other name unchanged.

    >>> translate("num_train_epochs", {"epochs"})
    'epochs'
    >>> translate("warmup_ratio", {"warmup_steps"})
    'warmup_ratio'
    """
    field = SYNONYMS.get(name, (name, ""))[0]
    return field if name not in fields and field in fields else name


def hint(name: str, fields: Collection[str]) -> str | None:
    """Return what to write instead of another tool's name, if this recipe has a field for it."""
    field, text = HINTS.get(name, ("", ""))
    return text if text and (field is None or field in fields) else None


def check_once(names: Iterable[str], fields: Collection[str], file: str | None = None) -> None:
    """Raise a ValueError if two names of a file or a command line, one of them another tool's, are the same field."""
    seen: dict[str, str] = {}
    for name in names:
        field = translate(name, fields)
        if seen.setdefault(field, name) != name:
            if file is not None:
                raise ValueError(f"{file}: {seen[field]} and {name} are the same field. Give one of them.")
            first, second = (f"--{word.replace('_', '-')}" for word in (seen[field], name))
            raise ValueError(f"{first} and {second} are the same option. Give one of them.")
