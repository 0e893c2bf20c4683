"""Stage a run for publication: allowed files, a card and pictures, nothing that identifies this machine."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ..conversion.gpt2_export import export_gpt2
from ..conversion.load import load_any_head
from ..finetuning.adapter_files import ADAPTER_BASE, ADAPTER_WEIGHTS, weights_fingerprint
from ..modeling.modeling_scratch_gpt import ScratchGPTPreTrainedModel
from ..runs.folder import EVAL_RESULTS, EVALUATION, METRICS, MODEL, MODEL_CODE, STEP_FILE, TOKENIZER, replace_folder
from ..runs.record import PUBLISHED_FOLDER, Record, at_step, is_hub_id, may_be_folder, published_as, read_record
from ..tokenization.tokenizer import load_tokenizer
from ..train.checkpoints import check_shapes, list_checkpoints
from ..utils.files import DRAFT, remove
from ..utils.loading import ADAPTER_CONFIG
from ..utils.locks import LOCK, hold
from ..utils.plots import plot_attention, plot_parameters, plot_token_lengths
from .card import fill, template
from .card_values import PICTURES, card_values
from .eval_results import eval_results
from .layouts import AUTO, choose_layout
from .leak_check import PICKLES, WEIGHTS_LIMIT, find_leaks
from .licenses import check_license
from .readback import Outputs, check_outputs, outputs_of, read_adapter, read_model, sentence_ids


ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_BASE)
EVENTS = "tensorboard"
# Files that may be published. A push deletes those of them that the run no longer has.
ALLOWED = (*MODEL, *MODEL_CODE, *TOKENIZER, *ADAPTER, "README.md", METRICS, EVALUATION, EVAL_RESULTS)
ALLOWED += (*(f"assets/{name}.png" for name in PICTURES), f"{EVENTS}/events.out.tfevents.*")
LAYERS = 4  # the number of layers with an attention picture
MERGED = "publish the merged model: layout='gpt2', or layout='scratch_gpt' if GPT-2 cannot express it."
Pin: TypeAlias = Callable[[str, str | None], tuple[str, str | None]]  # (Hub id, revision) -> (commit, layout)


def stage(
    folder: str | Path,
    *,
    repo: str,
    layout: str = AUTO,
    revision: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    step: int | None = None,
    published_layout: str | None = None,
    pin: Pin | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write `folder/published` atomically, with the content to push to `repo`, and return its path.

    The staged folder is loaded as its users load it, and its outputs are compared with those of the run's model.

    Args:
        layout: "scratch_gpt" (ours, with its code), "gpt2" (stock, without code), "adapter" (LoRA's weights), or
            "auto": layouts.choose_layout decides.
        license, license_name, license_link: as in licenses.check_license.
        step: publish the weights of this checkpoint instead of the run's model.
        published_layout: layout of the files that `repo` already holds.
        pin: (Hub id, revision) -> (commit, layout of its files), for the base of an adapter; without it the revision
            is not changed.
        say: is called with two lines: the layout with the reason, and the result of the comparison.

    Raises:
        ValueError: an incomplete run, one that another process is writing, a layout that it cannot have, content that
            must not be published, or outputs that differ from the run's.
    """
    check_license(license, license_name, license_link)
    top = Path(folder)
    read_record(top)
    with hold(top, say):
        terms = {"license": license, "license_name": license_name, "license_link": license_link}
        return _stage(top, repo, layout, revision, terms, step, published_layout, pin, say)


def _stage(
    top: Path,
    repo: str,
    layout: str,
    revision: str | None,
    terms: dict[str, str | None],
    step: int | None,
    published_layout: str | None,
    pin: Pin | None,
    say: Callable[[str], None],
) -> Path:
    record = read_record(top) if step is None else at_step(read_record(top), step)
    if pickles := [path.name for path in sorted((top / "model").iterdir()) if path.suffix in PICKLES]:
        raise ValueError(f"{top}/model/{pickles[0]} is a pickle, which can run code when it is opened. Remove it.")
    model = load_any_head(top / "model") if step is None else _at_checkpoint(record, top, step)
    has_adapter = (record.folder / "adapter" / ADAPTER_CONFIG).exists()
    note = published_as(top / "model")
    layout, reason = choose_layout(
        layout, model, repo=repo, has_adapter=has_adapter, published_layout=published_layout, note=note
    )
    say(f"Layout {layout}: {reason}{'' if reason.endswith('.') else '.'}")
    tokenizer = load_tokenizer(top / "model")
    expected = outputs_of(model, tokenizer)
    target = top / PUBLISHED_FOLDER
    draft = target.with_name(DRAFT + target.name)
    remove(draft)
    try:
        draft.mkdir()
        base, needs_trust, local_base = None, False, None
        if layout == "adapter":
            base, needs_trust, local_base = _put_adapter(record, top, draft, pin)
        elif layout == "gpt2":
            export_gpt2(model, draft)
        elif step is None:
            _put(top / "model", draft, MODEL)
            for path in MODEL_CODE.values():  # from the package, because loading runs it
                shutil.copyfile(path, draft / path.name)
        else:
            model.save_pretrained(draft, save_original_format=False)
        _put(top / "model", draft, TOKENIZER)
        _remove_names(draft)
        _cut_weights(draft)
        if record.metrics:  # write them without an incomplete last line
            _write_lines(draft / METRICS, record.metrics)
        _put(top, draft, (EVALUATION,))
        if step is not None:
            (draft / EVALUATION).unlink(missing_ok=True)
        if (content := eval_results(record)) is not None:
            (draft / EVAL_RESULTS).parent.mkdir()
            (draft / EVAL_RESULTS).write_text(content, encoding="utf-8")
        _put_events(record.folder, draft)
        _draw(record, model, tokenizer, draft / "assets")
        kind = type(model)
        del model  # to free its memory for the model that is read back
        say(_compare(record, draft, expected, kind, local_base))
        pictures = {path.name for path in (draft / "assets").iterdir()}
        values = card_values(
            record,
            repo=repo,
            layout=layout,
            revision=revision,
            pictures=pictures,
            base=base,
            base_needs_trust=needs_trust,
            **terms,
        )
        (draft / "README.md").write_text(fill(template(), values), encoding="utf-8")
        check_leaks(draft, repo)
        draft.chmod(0o755)
        replace_folder(draft, target)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written ({error.strerror or error}). Free some disk space, then try again."
        ) from error
    finally:
        remove(draft)
    return target


def check_leaks(folder: Path, repo: str) -> None:
    """Raise a ValueError that names the file and the line of content that must not be published."""
    leaks = find_leaks(folder, files_of(folder), allowed_names=repo.split("/"))
    if leaks:
        remaining = f" (and {len(leaks) - 1} more: {'; '.join(map(str, leaks[1:6]))})" if len(leaks) > 1 else ""
        raise ValueError(f"Nothing was published. {leaks[0]}{remaining}. Remove it from the run, then publish again.")


def files_of(folder: Path) -> list[str]:
    """Return the names of all files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def left_behind(folder: Path) -> list[str]:
    """Return the files and folders of a run that are not published."""
    paths = (path for path in sorted(folder.iterdir()) if path.name not in (PUBLISHED_FOLDER, "model", LOCK))
    names = [path.name + "/" * path.is_dir() for path in paths]
    published = {METRICS, EVALUATION, "loss.png", "confusion.png"}
    model_files = (path.name for path in sorted((folder / "model").iterdir()) if path.name != STEP_FILE)
    private = (name for name in model_files if not is_allowed(name))
    return [name for name in names if name not in published] + [f"model/{name}" for name in private]


def is_allowed(name: str) -> bool:
    """Return whether a push writes and deletes files of this name, in subfolders too."""
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in ALLOWED)


# --- Weights, config, tokenizer, code ----------------------------------------------------------------------------


def _put(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    # Weights are hard-linked if the file system allows it, so they take no space; other files are small.
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns):
            if path.suffix == ".safetensors":
                try:
                    os.link(path, target / path.name)
                    continue
                except OSError:
                    pass
            shutil.copyfile(path, target / path.name)


def fingerprint_of(folder: str | Path) -> str:
    """Return the fingerprint of the run's weights, used to match an adapter to its base."""
    return weights_fingerprint(load_any_head(Path(folder) / "model"))


def checkpoint_steps(folder: str | Path) -> list[int]:
    """Return the steps of a run's checkpoints; with several seeds, those of the seed that its model comes from.

    Raises:
        ValueError: the run has no checkpoints, or they hold LoRA separate from its base.
    """
    record = read_record(folder)
    steps = [int(path.name.removeprefix("step-")) for path in list_checkpoints(record.folder / "checkpoints")]
    if not steps:
        raise ValueError(f"{folder} has no checkpoints.")
    if record.run.get("tune") == "lora":
        raise ValueError(f"{folder} holds LoRA separate from its base. Only the end of such a run can be published.")
    return steps


def _at_checkpoint(record: Record, top: Path, step: int) -> ScratchGPTPreTrainedModel:
    # Return the run's model with a checkpoint's weights.
    path = record.folder / "checkpoints" / f"step-{step}"
    if path not in list_checkpoints(path.parent):
        raise ValueError(f"{top} has no checkpoint step-{step}.")
    model = load_any_head(top / "model")
    weights = load_file(str(path / "model.safetensors"))
    if any(".lora_" in name for name in weights):
        raise ValueError(f"{path} holds LoRA separate from its base. Only the end of such a run can be published.")
    check_shapes(path, model)
    model.load_state_dict(weights, strict=False)  # a tied head is one tensor with two names
    return model


def _put_adapter(
    record: Record, top: Path, draft: Path, pin: Pin | None
) -> tuple[tuple[str, str | None], bool, tuple[str, str | None]]:
    """Copy the adapter and name its base by its Hub id.

    Returns:
        (id, revision) of the base, whether it has its own code, and the (path or id, revision) to load it from.
    """
    source = record.folder / "adapter"
    if not (source / ADAPTER_CONFIG).exists():
        raise ValueError(f"{top} has no adapter/. Only a run with tune='lora' has one.")
    _put(source, draft, ADAPTER)
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base_record = (
        json.loads((source / ADAPTER_BASE).read_text(encoding="utf-8")) if (source / ADAPTER_BASE).exists() else {}
    )
    layout = base_record.get("layout")
    by_name = f" layout={layout!r}" if layout else ""
    base, revision = config["base_model_name_or_path"], config.get("revision")
    place = next((path for path in (Path(base), source / base) if path.is_dir()), None)
    if "folder" in base_record:  # a name that was edited later is used unchanged
        was_folder = base_record["folder"] == base
        place = place if was_folder or not is_hub_id(base) else None
    else:
        was_folder = may_be_folder(base)
    if place is None and was_folder:
        raise ValueError(
            f"The adapter's base is the folder {base}, which does not exist now, and no file names its repository on "
            f"the Hub. Publish from the folder that contains it, name the Hub's id and revision in "
            f"{source / ADAPTER_CONFIG}, or {MERGED}"
        )
    if place is not None:
        base_note = published_as(place)
        if base_note is None:
            raise ValueError(
                f"The adapter's base is {base}, a folder on this machine. Publish it first ({Path(base).parent} as "
                f"USER/NAME{by_name}), or {MERGED}"
            )
        if base_note["layout"] != layout:
            raise ValueError(
                f"The adapter was made on {base} in the layout {layout}, which is published in the layout "
                f"{base_note['layout']}. Publish the base in another repository{by_name and f' with{by_name}'}, or "
                f"{MERGED}"
            )
        if base_note.get("fingerprint") not in (None, base_record.get("fingerprint")):
            raise ValueError(
                f"The adapter was made on {base}, and its weights have changed since they were published as "
                f"{base_note['repo']}. Publish the base again, or {MERGED}"
            )
        base, revision = base_note["repo"], base_note["commit"]
    elif pin is not None:
        revision, base_layout = pin(base, revision)
        if layout is not None and base_layout not in (None, layout):
            raise ValueError(
                f"The adapter was made on {base} in the layout {layout}, which is in the layout {base_layout} at "
                f"{revision}. Name a commit that has the layout {layout} as revision in {source / ADAPTER_CONFIG}, "
                f"or {MERGED}"
            )
    if base_record:
        public = {name: value for name, value in base_record.items() if name != "folder"}
        (draft / ADAPTER_BASE).write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")
    config |= {"base_model_name_or_path": base, "revision": revision}
    (draft / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return (base, revision), layout != "gpt2", (base, revision) if place is None else (str(place), None)


def _compare(
    record: Record,
    draft: Path,
    expected: Outputs,
    model_class: type[ScratchGPTPreTrainedModel],
    base: tuple[str, str | None] | None,
) -> str:
    """Return the line about the comparison of a staged folder with the run's model, or the reason for its absence."""
    if base is None:
        return check_outputs(expected, read_model(draft, model_class), draft)
    if (bits := record.run.get("quantize_base") or "no") != "no":
        return f"Not compared with the run: the adapter was trained on its base in {bits}, and loads on the full base."
    model = read_adapter(draft, *base, model_class, expected.dtype)
    if model is None:
        return f"Not compared with the run: the adapter's base {base[0]} is not on this machine."
    return check_outputs(expected, model, draft)


def _remove_names(folder: Path) -> None:
    # Remove the path from which a model or tokenizer was loaded: it is private.
    for file in ("config.json", "tokenizer_config.json"):
        path = folder / file
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if names := content.keys() & {"_name_or_path", "name_or_path"}:
            public = {key: value for key, value in content.items() if key not in names}
            path.write_text(json.dumps(public, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cut_weights(folder: Path, limit: int = WEIGHTS_LIMIT) -> None:
    """Split a model.safetensors of more than `limit` bytes into shards and their index, as transformers reads them."""
    path = folder / "model.safetensors"
    if not path.exists() or path.stat().st_size <= limit:
        return
    weights = load_file(str(path))
    split = split_torch_state_dict_into_shards(weights, max_shard_size=limit)
    for name, keys in split.filename_to_tensors.items():
        save_file({key: weights[key] for key in keys}, str(folder / name), metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    path.unlink()


# --- Measurements and pictures -----------------------------------------------------------------------------------


def _put_events(source: Path, draft: Path) -> None:
    # Keep only the seconds and a number of events.out.tfevents.SECONDS.HOST.PROCESS.N.
    for n, path in enumerate(sorted((source / "tracking").rglob("events.out.tfevents.*"))):
        (draft / EVENTS).mkdir(exist_ok=True)
        seconds = re.search(r"tfevents\.(\d+)", path.name)
        shutil.copyfile(path, draft / EVENTS / f"events.out.tfevents.{seconds[1] if seconds else 0}.{n}")


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@torch.no_grad()
def _draw(record: Record, model: ScratchGPTPreTrainedModel, tokenizer: PreTrainedTokenizerBase, assets: Path) -> None:
    assets.mkdir()
    for name in PICTURES:
        if (record.folder / f"{name}.png").exists():
            shutil.copyfile(record.folder / f"{name}.png", assets / f"{name}.png")
    plot_parameters(_parts(model), assets / "parameters.png", "Number of parameters in each part")
    lengths = [*_token_lengths(tokenizer)]
    if lengths:
        plot_token_lengths(lengths, assets / "tokens.png", "Lengths of the vocabulary's tokens")
    ids = sentence_ids(tokenizer)[: min(16, model.config.max_position_embeddings)]
    model.set_attn_implementation("eager")
    attentions = model.base_model(torch.tensor([ids]), output_attentions=True).attentions
    count = min(LAYERS, len(attentions))
    layers = sorted({round(n * (len(attentions) - 1) / max(1, count - 1)) for n in range(count)})
    maps = {layer + 1: attentions[layer][0].float().numpy() for layer in layers}
    words = [str(tokenizer.decode([id])) for id in ids]
    plot_attention(maps, words, assets / "attention.png", "Attention of each head")


def _parts(model: torch.nn.Module) -> dict[str, int]:
    names = {"embed_tokens": "token embeddings", "embed_positions": "positions", ".attn.": "attention"}
    names |= {".mlp.": "MLP", "norm": "norms", ".ln_": "norms"}
    counts = dict.fromkeys([*names.values()], 0)
    for name, parameter in model.named_parameters():  # tied ones are listed once
        part = next((part for key, part in names.items() if key in name), "head")
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {part: count for part, count in counts.items() if count}


def _token_lengths(tokenizer: Any) -> Iterator[int]:
    # Yield the lengths in bytes. A byte-level token has one letter per byte.
    is_bytes = "ByteLevel" in type(getattr(tokenizer.backend_tokenizer, "decoder", None)).__name__
    for token, id in tokenizer.get_vocab().items():
        if id not in tokenizer.all_special_ids:
            yield len(token) if is_bytes else len(token.encode())


__all__ = [
    "PUBLISHED_FOLDER",
    "check_leaks",
    "checkpoint_steps",
    "files_of",
    "fingerprint_of",
    "is_allowed",
    "left_behind",
    "stage",
]
