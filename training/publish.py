# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Publish a run on the Hub: weights, config, tokenizer, code, a card with results and pictures.

    python training/publish.py RUN --repo user/name [--layout scratch_gpt] [--private] [--dry-run]
    python training/publish.py RUN --export onnx|gguf|gguf-f16

RUN is the output_dir of a recipe. Only files of an allow-list are published, after a search for secrets and for traces
of this machine; RUN/published holds them. The same command again updates the repository, and keeps text that was
written on the card by hand outside its marked regions.

An export is one file in RUN/exports, which runs without PyTorch. For an export, RUN may also be any model folder.
"""

from dataclasses import dataclass
from typing import Any, Literal

from scratch_gpt_training.support.command_line import one_clear_line, parse
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import option


@dataclass(frozen=True)
class PublishRun:
    """Publication."""

    COMMON = ("run", "repo", "layout", "private", "revision", "license", "dry_run", "export")

    run: str = option("", "Folder of a finished run; can be given as the first word.")
    repo: str = option("", "Repository on the Hub, user/name; it is created if it does not exist.")
    layout: Literal["auto", "scratch_gpt", "gpt2", "adapter"] = option(
        "auto",
        "gpt2: stock GPT-2, needs no code; scratch_gpt: ours, with its code; adapter: only LoRA. auto "
        "keeps the layout of the repository, else takes gpt2, or scratch_gpt if GPT-2 cannot represent "
        "the model.",
    )
    private: bool = option(False, "Create a private repository.")
    revision: str | None = option(None, "Branch to push to; by default main.")
    license: str | None = option(None, "License of the weights, by its Hub identifier: apache-2.0, mit, other.")
    license_name: str | None = option(None, "Name of the license, with --license other: my-license-1.0.")
    license_link: str | None = option(
        None, "Link to its text, with --license other: https://..., LICENSE or LICENSE.md."
    )
    checkpoints: bool = option(False, "Also publish the run's checkpoints, each to a branch step-N.")
    dry_run: bool = option(False, "Write RUN/published and show it, without contacting the Hub.")
    export: Literal["no", "onnx", "gguf", "gguf-f16"] = option(
        "no", "Write RUN/exports for onnxruntime or llama.cpp (gguf-f16: 16 bits) instead of pushing."
    )


def unused_fields(run: PublishRun) -> dict[str, str]:
    """Return the fields that this run does not use, with the reasons."""
    names = ("layout", "private", "revision", "license", "license_name", "license_link", "checkpoints", "dry_run")
    return {} if run.export == "no" else dict.fromkeys(names, "--export writes a file here and pushes nothing")


def terms(run: PublishRun) -> dict[str, Any]:
    """Return the license as arguments of `stage` and `publish`."""
    return {"license": run.license, "license_name": run.license_name, "license_link": run.license_link}


def show_staged(run: PublishRun, steps: list[int]) -> None:
    """Stage the run, and print the tree with sizes, the branches of checkpoints and the card."""
    from pathlib import Path

    from scratch_gpt.hub.staging import files_of, left_behind, stage
    from scratch_gpt.utils.foreign import shown

    out = stage(run.run, repo=run.repo, layout=run.layout, revision=run.revision, **terms(run))
    sizes = {name: (out / name).stat().st_size for name in files_of(out)}
    for name, size in sizes.items():
        print(f"{size:>15,}  {shown(name)}")
    print(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files, in {out}")
    for step in steps:
        print(f"also: branch step-{step}, with the weights of that checkpoint")
    print(shown(f"not uploaded: {', '.join(left_behind(Path(run.run)))}\n"))
    print(shown((out / "README.md").read_text(encoding="utf-8")))
    print(f"Nothing was pushed. Push it with:  {push_command(run)}")


def push_command(run: PublishRun) -> str:
    """Return the command that pushes the result of this dry run."""
    import shlex
    from dataclasses import fields

    words = [run.run, "--repo", run.repo]
    for item in fields(run):
        value = getattr(run, item.name)
        if item.name not in ("run", "repo", "dry_run") and value != item.default:
            words += [f"--{item.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return command(f"publish {shlex.join(words)}")


ONNX_NEXT = """
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("{folder}")
    session = onnxruntime.InferenceSession("{file}")
    rows = tokenizer(["The"], return_tensors="np")
    output = session.run(None, {{name: rows[name] for name in ("input_ids", "attention_mask")}})[0]
    print(output.shape)
"""
GGUF_NEXT = """
    llama-completion -m {file} -p "The" -n 100 --temp 0 -no-cnv
    llama-server -m {file}
"""


def write_export(run: PublishRun) -> None:
    """Export the model, and print the file's name and how to run it."""
    from scratch_gpt.conversion.export import export

    file, difference = export(run.run, kind=run.export)
    size = sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*"))
    print(f"Written: {file}, {size:,} bytes")
    if difference is not None:
        print(f"Checked: onnxruntime and PyTorch differ by at most {difference:.1e}. The file has no KV cache.")
    print("Next:")
    print((ONNX_NEXT if run.export == "onnx" else GGUF_NEXT).format(file=file, folder=file.parent).strip("\n"))


def main(argv: list[str] | None = None) -> None:
    with one_clear_line(stopped="Nothing is lost: run the same command again to continue."):
        run = parse(PublishRun, argv, positional=("run",), unused=unused_fields)
        if run.run and run.export != "no":
            if run.repo:
                raise ValueError("--export writes a file here and pushes nothing. Remove --repo.")
            write_export(run)
            return
        if not run.run or not run.repo:
            raise ValueError(f"Give a run and a repository: {command('publish RUN --repo user/name')}")

        from scratch_gpt.hub.publish import check_repo_name, publish, publish_checkpoints
        from scratch_gpt.hub.staging import checkpoint_steps

        check_repo_name(run.repo)
        steps = checkpoint_steps(run.run) if run.checkpoints else []  # raises before anything is staged or pushed
        if run.dry_run:
            show_staged(run, steps)
            return
        options = {"layout": run.layout, "private": run.private, **terms(run)}
        show_push(publish(run.run, run.repo, revision=run.revision, **options))
        for push in publish_checkpoints(run.run, run.repo, **options) if run.checkpoints else ():
            show_push(push)


def show_push(push) -> None:
    """Print a line about the push."""
    print(f"{'Published' if push.has_changed else 'Nothing has changed'}: {push.url} (commit {push.commit})")


if __name__ == "__main__":
    main()
