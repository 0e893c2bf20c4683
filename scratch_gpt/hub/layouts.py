"""Choose the layout in which a run is published: stock GPT-2 if it can express the model, else ours with its code."""

import json
from collections.abc import Callable, Collection
from typing import Any

from ..conversion.gpt2_export import check_exportable_to_gpt2
from ..modeling.modeling_scratch_gpt import ScratchGPTPreTrainedModel
from ..utils.loading import ADAPTER_CONFIG
from .card_values import LAYOUTS


AUTO = "auto"
LAYOUT_CHOICES = (AUTO, *LAYOUTS)


def layout_of(names: Collection[str], read: Callable[[str], str]) -> str | None:
    """Return the layout of a folder or repository, or None if it holds no model of ours or of stock GPT-2.

    Args:
        names: of all its files.
        read: returns the text of a file, given its name.
    """
    if ADAPTER_CONFIG in names:
        return "adapter"
    if "config.json" not in names:
        return None
    try:
        kind = json.loads(read("config.json")).get("model_type")
    except (ValueError, AttributeError):  # a damaged file; a push replaces it
        return None
    return kind if kind in ("scratch_gpt", "gpt2") else None


def choose_layout(
    layout: str,
    model: ScratchGPTPreTrainedModel,
    *,
    repo: str,
    has_adapter: bool,
    published_layout: str | None = None,
    note: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """Return the layout to publish in, and the reason.

    "auto" keeps the layout of an existing repository and of a run that is already published, because adapters may have
    been made on it. Otherwise it is stock GPT-2 if that can express the model, else ours.

    Args:
        layout: one of LAYOUT_CHOICES.
        model: the model to publish.
        repo: user/name.
        has_adapter: whether the run has an adapter.
        published_layout: layout of the files that `repo` holds now.
        note: hub.json of the run.

    Raises:
        ValueError: an unknown layout, or the run cannot have the layout that must be kept.
    """
    if layout not in LAYOUT_CHOICES:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUT_CHOICES)}.")
    note = note or {}
    before = published_layout or (note.get("layout") if note.get("repo") == repo else None)
    if layout != AUTO:
        changed = f"; the layout of {repo} was {before} until now" if before not in (None, layout) else ""
        return layout, f"as requested{changed}"
    if before is None and note.get("layout") in (
        "scratch_gpt",
        "gpt2",
    ):  # an adapter's layout does not decide that of a complete model
        before, place = note["layout"], note["repo"]
    else:
        place = repo
    if before == "adapter" and not has_adapter:
        raise ValueError(
            f"{repo} holds an adapter and keeps that layout, but this run has none. Give another repository, or "
            "replace the adapter by the complete model: layout='gpt2' or layout='scratch_gpt'."
        )
    try:
        check_exportable_to_gpt2(model)
        obstacle = None
    except ValueError as error:
        obstacle = error
    if before == "gpt2" and obstacle is not None:
        raise ValueError(
            f"{place} is in the layout gpt2 and keeps it, but stock GPT-2 cannot express this model: {obstacle} Give "
            "layout='scratch_gpt'."
        ) from obstacle
    if before is not None:
        return before, f"{place} is already published in this layout"
    if obstacle is not None:
        return "scratch_gpt", f"ours, with its code, because stock GPT-2 cannot express the model: {obstacle}"
    return "gpt2", "stock GPT-2 can express the model, so loading it needs no code"


__all__ = ["AUTO", "LAYOUT_CHOICES", "choose_layout", "layout_of"]
