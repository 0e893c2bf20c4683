"""A run folder -> the folder that is published: an allow-list of its files, a card, pictures, and no trace of here."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

from ..conversion.gpt2_export import export_gpt2
from ..conversion.load import load_any_head
from ..finetuning.adapter_files import BASE, WEIGHTS, fingerprint
from ..modeling.modeling_scratch_gpt import ScratchGPTPreTrainedModel
from ..runs.folder import CODE, MODEL, STEP, TOKENIZER, replace_folder
from ..runs.record import ADAPTER_CONFIG, FOLDER, Record, at_step, is_hub_id, may_be_folder, published_as, read_record
from ..tokenization.tokenizer import load_tokenizer
from ..train.checkpoints import check_shapes, list_checkpoints
from ..utils.files import DRAFT, remove
from ..utils.locks import LOCK, hold
from ..utils.plots import plot_attention, plot_parameters, plot_token_lengths
from .card import fill, template
from .card_values import PICTURES, card_values
from .layouts import AUTO, choose_layout
from .leak_check import PICKLES, WEIGHTS_LIMIT, find_leaks
from .licenses import check_license
from .readback import Outputs, check_outputs, outputs_of, read_adapter, read_model, sentence_ids


ADAPTER = (ADAPTER_CONFIG, WEIGHTS, BASE)
EVENTS = "tensorboard"
# What may be published, and what a push therefore takes away where it is not there any more.
ALLOWED = (*MODEL, *CODE, *TOKENIZER, *ADAPTER, "README.md", "metrics.jsonl", "evaluation.json")
ALLOWED += (*(f"assets/{name}.png" for name in PICTURES), f"{EVENTS}/events.out.tfevents.*")
LAYERS = 4  # whose attention is drawn
MERGED = "publish the merged model: --layout gpt2, or --layout scratch_gpt if GPT-2 cannot express it."


def stage(
    folder: str | Path,
    *,
    repo: str,
    layout: str = AUTO,
    revision: str | None = None,
    licence: str | None = None,
    licence_name: str | None = None,
    licence_link: str | None = None,
    step: int | None = None,
    there: str | None = None,
    pin: Callable[[str, str | None], tuple[str, str | None]] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write `folder/published`, as it would be pushed to `repo`; whole or not at all. Returns its path.

    What was written is loaded again as its users load it, and its outputs are compared with those of the run's model.

    Args:
        layout: "scratch_gpt" (ours, with its code), "gpt2" (stock, without), "adapter" (what LoRA has learned), or
            "auto", which layouts.choose_layout decides.
        licence, licence_name, licence_link: as in licenses.check_license.
        step: of the checkpoint whose weights these are to be, instead of the run's model.
        there: layout of what `repo` holds already.
        pin: (Hub id, revision) -> (commit, layout of its files), for the base of an adapter; without it the revision
            stays as it is.
        say: is given two lines: the layout with the reason, and the result of the comparison.

    Raises:
        ValueError: no whole run, one that another process is writing, a layout that it cannot have, something in it
            that must not be published, or other outputs than the run's.
    """
    check_license(licence, licence_name, licence_link)
    top = Path(folder)
    read_record(top)
    with hold(top, say):
        terms = {"licence": licence, "licence_name": licence_name, "licence_link": licence_link}
        return _stage(top, repo, layout, revision, terms, step, there, pin, say)


def _stage(top: Path, repo: str, layout: str, revision, terms: dict, step, there, pin, say) -> Path:
    record = read_record(top) if step is None else at_step(read_record(top), step)
    if pickles := [path.name for path in sorted((top / "model").iterdir()) if path.suffix in PICKLES]:
        raise ValueError(f"{top}/model/{pickles[0]} is a pickle, which can run code when it is opened. Take it away.")
    model = load_any_head(top / "model") if step is None else _at_checkpoint(record, top, step)
    has_adapter = (record.folder / "adapter" / ADAPTER_CONFIG).exists()
    note = published_as(top / "model")
    layout, why = choose_layout(layout, model, repo=repo, has_adapter=has_adapter, there=there, note=note)
    say(f"Layout {layout}: {why}{'' if why.endswith('.') else '.'}")
    tokenizer = load_tokenizer(top / "model")
    expected = outputs_of(model, tokenizer)
    target = top / FOLDER
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
            for path in CODE.values():  # the package's own: loading it runs it
                shutil.copyfile(path, draft / path.name)
        else:
            model.save_pretrained(draft, save_original_format=False)
        _put(top / "model", draft, TOKENIZER)
        _forget_names(draft)
        _cut_weights(draft)
        if record.metrics:  # without a line that a kill has cut
            _write_lines(draft / "metrics.jsonl", record.metrics)
        _put(top, draft, ("evaluation.json",))
        if step is not None:
            (draft / "evaluation.json").unlink(missing_ok=True)
        _put_events(record.folder, draft)
        _draw(record, model, tokenizer, draft / "assets")
        kind = type(model)
        del model  # the one that is read back takes its place
        say(_compare(record, draft, expected, kind, local_base))
        pictures = {path.name for path in (draft / "assets").iterdir()}
        values = card_values(
            *(record,),
            **{"repo": repo, "layout": layout, "revision": revision, "pictures": pictures, **terms},
            **{"base": base, "base_needs_trust": needs_trust},
        )
        (draft / "README.md").write_text(fill(template(), values), encoding="utf-8")
        check(draft, repo)
        draft.chmod(0o755)
        replace_folder(draft, target)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written ({error.strerror or error}). Make room, then try again."
        ) from error
    finally:
        remove(draft)
    return target


def check(folder: Path, repo: str) -> None:
    """Raise a ValueError that names the file and the line of what must not be published."""
    leaks = find_leaks(folder, files_of(folder), known=repo.split("/"))
    if leaks:
        more = f" (and {len(leaks) - 1} more: {'; '.join(map(str, leaks[1:6]))})" if len(leaks) > 1 else ""
        raise ValueError(f"Nothing was published. {leaks[0]}{more}. Take it out of the run, then publish again.")


def files_of(folder: Path) -> list[str]:
    """The names of all files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def left_behind(folder: Path) -> list[str]:
    """What of a run stays where it is: everything that is not on the list."""
    here = (path for path in sorted(folder.iterdir()) if path.name not in (FOLDER, "model", LOCK))
    out = [path.name + "/" * path.is_dir() for path in here]
    known = {"metrics.jsonl", "evaluation.json", "loss.png", "confusion.png"}
    inside = (path.name for path in sorted((folder / "model").iterdir()) if path.name != STEP)
    odd = (name for name in inside if not is_allowed(name))
    return [name for name in out if name not in known] + [f"model/{name}" for name in odd]


def is_allowed(name: str) -> bool:
    """Whether a file of this name, folders included, is one that a push writes, and takes away."""
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in ALLOWED)


# --- Weights, config, tokenizer, code ----------------------------------------------------------------------------


def _put(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    # Weights take no second place on the disk where the file system knows links; the rest is small.
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
    """Of the weights of a run's model: by it an adapter knows its base again."""
    return fingerprint(load_any_head(Path(folder) / "model"))


def checkpoint_steps(folder: str | Path) -> list[int]:
    """The steps of a run's checkpoints, of several seeds the one whose model it is.

    Raises:
        ValueError: there are none, or they hold LoRA beside its base.
    """
    record = read_record(folder)
    steps = [int(path.name.removeprefix("step-")) for path in list_checkpoints(record.folder / "checkpoints")]
    if not steps:
        raise ValueError(f"{folder} has no checkpoints: leave --checkpoints out.")
    if record.run.get("tune") == "lora":
        raise ValueError(f"{folder} holds LoRA beside its base: only the end of such a run can be published.")
    return steps


def _at_checkpoint(record: Record, top: Path, step: int):
    # The run's model with a checkpoint's weights.
    path = record.folder / "checkpoints" / f"step-{step}"
    if path not in list_checkpoints(path.parent):
        raise ValueError(f"{top} has no checkpoint step-{step}.")
    model = load_any_head(top / "model")
    weights = load_file(str(path / "model.safetensors"))
    if any(".lora_" in name for name in weights):
        raise ValueError(f"{path} holds LoRA beside its base: only the end of such a run can be published.")
    check_shapes(path, model)
    model.load_state_dict(weights, strict=False)  # a tied head is one tensor of two names
    return model


def _put_adapter(
    record: Record, top: Path, draft: Path, pin
) -> tuple[tuple[str, str | None], bool, tuple[str, str | None]]:
    """Copy the adapter and name its base as the Hub does.

    Returns:
        (id, revision) of the base, whether it brings code, and the place to load it from here.
    """
    source = record.folder / "adapter"
    if not (source / ADAPTER_CONFIG).exists():
        raise ValueError(f"{top} has no adapter/: only a run with --tune lora leaves one.")
    _put(source, draft, ADAPTER)
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    kept = json.loads((source / BASE).read_text(encoding="utf-8")) if (source / BASE).exists() else {}
    layout = kept.get("layout")
    by_name = f" --layout {layout}" if layout else ""
    base, revision = config["base_model_name_or_path"], config.get("revision")
    place = next((path for path in (Path(base), source / base) if path.is_dir()), None)
    if "folder" in kept:  # a name that was written there since is taken as it is
        was_folder = kept["folder"] == base
        place = place if was_folder or not is_hub_id(base) else None
    else:
        was_folder = may_be_folder(base)
    if place is None and was_folder:
        raise ValueError(
            f"The adapter's base is the folder {base}, which is not there now, and no file says what it is called on "
            f"the Hub. Publish from the folder that it lies in, name the Hub's id and revision in "
            f"{source / ADAPTER_CONFIG}, or {MERGED}"
        )
    if place is not None:
        there = published_as(place)
        if there is None:
            raise ValueError(
                f"The adapter's base is {base}, a folder of this machine. Publish it first ({Path(base).parent} as "
                f"USER/NAME{by_name}), or {MERGED}"
            )
        if there["layout"] != layout:
            raise ValueError(
                f"The adapter was made on {base} in the layout {layout}, which is published in the layout "
                f"{there['layout']}. Publish the base in a repository of its own{by_name and f' with{by_name}'}, or "
                f"{MERGED}"
            )
        if there.get("fingerprint") not in (None, kept.get("fingerprint")):
            raise ValueError(
                f"The adapter was made on {base}, whose weights have changed since they were published as "
                f"{there['repo']}. Publish the base again, or {MERGED}"
            )
        base, revision = there["repo"], there["commit"]
    elif pin is not None:
        revision, now = pin(base, revision)
        if layout is not None and now not in (None, layout):
            raise ValueError(
                f"The adapter was made on {base} in the layout {layout}, which is in the layout {now} at {revision}. "
                f"Name a commit that has the layout {layout} as revision in {source / ADAPTER_CONFIG}, or {MERGED}"
            )
    if kept:
        here = {name: value for name, value in kept.items() if name != "folder"}
        (draft / BASE).write_text(json.dumps(here, indent=2) + "\n", encoding="utf-8")
    config |= {"base_model_name_or_path": base, "revision": revision}
    (draft / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return (base, revision), layout != "gpt2", (base, revision) if place is None else (str(place), None)


def _compare(
    record: Record, draft: Path, expected: Outputs, model_class: type, base: tuple[str, str | None] | None
) -> str:
    """Return the line about the comparison of a staged folder with the run's model, or why there is none."""
    if base is None:
        return check_outputs(expected, read_model(draft, model_class), draft)
    if (bits := record.run.get("quantize_base") or "no") != "no":
        return (
            f"Not compared with the run: the adapter was trained on its base in {bits}, and is loaded on it as it is."
        )
    model = read_adapter(draft, *base, model_class, expected.dtype)
    if model is None:
        return f"Not compared with the run: the adapter's base {base[0]} is not on this machine."
    return check_outputs(expected, model, draft)


def _forget_names(folder: Path) -> None:
    # Where a model or tokenizer was loaded from is nobody's business.
    for file in ("config.json", "tokenizer_config.json"):
        path = folder / file
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if named := content.keys() & {"_name_or_path", "name_or_path"}:
            kept = {key: value for key, value in content.items() if key not in named}
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cut_weights(folder: Path, limit: int = WEIGHTS_LIMIT) -> None:
    """model.safetensors of more than `limit` bytes -> shards and their index, as transformers reads them."""
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


# --- The rest ----------------------------------------------------------------------------------------------------


def _put_events(source: Path, draft: Path) -> None:
    # events.out.tfevents.SECONDS.HOST.PROCESS.N: only the seconds and a number are kept.
    for n, path in enumerate(sorted((source / "tracking").rglob("events.out.tfevents.*"))):
        (draft / EVENTS).mkdir(exist_ok=True)
        seconds = re.search(r"tfevents\.(\d+)", path.name)
        shutil.copyfile(path, draft / EVENTS / f"events.out.tfevents.{seconds[1] if seconds else 0}.{n}")


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@torch.no_grad()
def _draw(record: Record, model: ScratchGPTPreTrainedModel, tokenizer, assets: Path) -> None:
    assets.mkdir()
    for name in PICTURES:
        if (record.folder / f"{name}.png").exists():
            shutil.copyfile(record.folder / f"{name}.png", assets / f"{name}.png")
    plot_parameters(_parts(model), assets / "parameters.png", "Where the parameters are")
    lengths = [*_token_lengths(tokenizer)]
    if lengths:
        plot_token_lengths(lengths, assets / "tokens.png", "Lengths of the vocabulary's tokens")
    ids = sentence_ids(tokenizer)[: min(16, model.config.max_position_embeddings)]
    model.set_attn_implementation("eager")
    found = model.base_model(torch.tensor([ids]), output_attentions=True).attentions
    count = min(LAYERS, len(found))
    chosen = sorted({round(n * (len(found) - 1) / max(1, count - 1)) for n in range(count)})
    maps = {layer + 1: found[layer][0].float().numpy() for layer in chosen}
    words = [tokenizer.decode([id]) for id in ids]
    plot_attention(maps, words, assets / "attention.png", "What each head attends to")


def _parts(model: torch.nn.Module) -> dict[str, int]:
    names = {"embed_tokens": "token embeddings", "embed_positions": "positions", ".attn.": "attention"}
    names |= {".mlp.": "MLP", "norm": "norms", ".ln_": "norms"}
    counts = dict.fromkeys([*names.values()], 0)
    for name, parameter in model.named_parameters():  # tied ones once
        part = next((part for key, part in names.items() if key in name), "head")
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {part: count for part, count in counts.items() if count}


def _token_lengths(tokenizer) -> Iterator[int]:
    # In bytes. A byte-level token is written with one letter for each byte.
    is_bytes = "ByteLevel" in type(getattr(tokenizer.backend_tokenizer, "decoder", None)).__name__
    for token, id in tokenizer.get_vocab().items():
        if id not in tokenizer.all_special_ids:
            yield len(token) if is_bytes else len(token.encode())


__all__ = ["FOLDER", "check", "checkpoint_steps", "files_of", "fingerprint_of", "is_allowed", "left_behind", "stage"]
