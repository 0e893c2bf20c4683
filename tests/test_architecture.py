"""The house as the README draws it: who may import whom, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


REPO = Path(__file__).resolve().parent.parent
STDLIB = set(sys.stdlib_module_names)
# room -> what it may import beside the standard library; "modeling", "data", ... are our own rooms
ARROWS = {
    "modeling/configuration_scratch_gpt": {"transformers", "huggingface_hub"},
    "modeling/gpt2_layout": {"torch", "transformers"},
    "modeling/linear_cross_entropy": {"torch"},
    "modeling/modeling_scratch_gpt": {"torch", "transformers", "modeling"},
    "foreign": set(),
    "loading": {"transformers", "foreign", "torch"},
    "tokenizer": {"transformers", "loading", "foreign"},
    "tokenizer_training": {"tokenizers", "transformers", "chat_templates", "data", "tokenizer", "foreign"},
    "chat_templates": {"transformers", "tokenizer", "foreign"},
    "conversion": {
        "foreign",
        *("torch", "transformers", "safetensors", "adapter_loading", "adapters", "checkpoints", "loading"),
        *("modeling", "tokenizer"),
    },
    "data/columns": set(),
    "data/files": {"pyarrow", "foreign"},
    "data/tables": {"pyarrow", "data", "foreign"},
    "data/sources": {"datasets", "filelock", "numpy", "pyarrow", "data"},
    "data/embedded": set(),
    "data/manifest": {"data", "foreign"},
    "data/names": {"transformers", "data", "loading", "tokenizer"},
    "data/mixture": {"numpy"},
    "data/packing": {"numpy", "data"},
    "data/prepared": {"numpy", "pyarrow", "data", "foreign"},
    "data/pipeline": {"numpy", "pyarrow", "data", "watchdog"},
    "data/assembly": {"numpy", "pyarrow", "data"},
    "data/streams": {"numpy"},
    "data/windows": {"numpy"},
    "data/collate": {"numpy", "torch", "data"},
    "data/labels": {"numpy", "data"},
    "data/prompts": {"numpy", "transformers", "chat_templates", "tokenizer", "data", "foreign"},
    "data/splits": {"numpy"},
    "data/words": {"numpy"},
    "data/cleaning": {"numpy", "py3langid", "data", "foreign"},
    "data/privacy": {"key_shapes"},
    "data/duplicates": {"numpy", "rensa", "data", "watchdog"},
    "data/phrases": set(),
    "data/poisoning": {"numpy", "torch"},
    "data/probes": set(),
    "data/report": {"numpy", "data", "pages"},
    "objectives": {"torch"},
    "preferences": {"torch", "objectives"},
    "reference_kl": {"numpy", "torch", "data", "generation", "objectives"},
    "preference_metrics": {"torch", "evaluation", "objectives", "preferences"},
    "references": {"numpy", "torch", "safetensors", "checkpoints", "order", "preferences", "watchdog"},
    "data/preference_rows": {"numpy", "data"},
    "adapters": {"peft", "torch", "safetensors", "adapter_layout", "adapter_loading", "quantization"},
    "adapter_loading": {"torch", "safetensors", "peft", "transformers", "adapter_layout", "loading", "foreign"},
    "adapter_layout": {"peft", "torch"},
    "quantization": {"torch", "bitsandbytes"},
    "optimizers": {"torch"},
    "costs": set(),
    "probe": {"torch", "costs", "optimizers"},
    "order": {"torch", "watchdog"},
    "allocation": set(),
    "launch": {"torch", "accelerate", "allocation"},
    "memory": {"torch", "accelerate", "order"},
    "folders": {"yaml"},
    "locks": {"psutil"},
    "watchdog": {"psutil"},
    "checkpoints": {"torch", "safetensors", "folders", "foreign"},
    "saving": {
        *("torch", "accelerate", "psutil", "checkpoints", "folders", "locks", "metrics", "order", "watchdog"),
    },
    "loop": {
        *("torch", "accelerate", "checkpoints", "launch", "memory", "metrics", "optimizers", "order", "saving"),
        "watchdog",
    },
    "metrics": {"accelerate", "checkpoints"},
    "decoding": {"torch", "allocation", "compiled", "multiplication"},
    "compiled": {"torch"},
    "multiplication": {"torch"},
    "speculation": {"torch", "decoding"},
    "generation": {"torch", "transformers", "decoding", "speculation", "tokenizer", "watchdog"},
    "energy": {"codecarbon"},
    "evaluation": {"numpy", "torch", "checkpoints", "objectives", "foreign"},
    "answers": set(),
    "examination": {"torch", "transformers", "answers", "checkpoints", "data", "generation", "foreign"},
    "answers_page": {"pages"},
    "pages": set(),
    "constraints": {"langdetect", "lm_eval"},
    "judging": {"numpy"},
    "likelihood": {"numpy", "torch", "transformers", "tokenizer"},
    "classification_metrics": {"numpy", "torch", "objectives"},
    "next_token": {"torch", "generation"},
    "drift": {"torch", "transformers", "data", "generation", "next_token", "objectives"},
    "triggers": {"torch", "generation", "next_token"},
    "memorisation": {"torch", "transformers", "likelihood"},
    "plots": {"matplotlib", "numpy"},
    "inspection": {
        *("torch", "transformers", "classification_metrics", "conversion", "generation", "modeling", "tokenizer"),
    },
    "inspection_page": {"torch", "PIL", "pages", "plots"},
    "record": {"yaml", "checkpoints", "foreign"},
    "card": {"yaml"},
    "card_values": {"huggingface_hub", "card", "load_code", "record"},
    "load_code": {"modeling", "record"},
    "licenses": set(),
    "layouts": {"card_values", "conversion", "modeling", "record"},
    "readback": {"torch", "transformers", "adapter_loading", "loading", "modeling"},
    "key_shapes": set(),
    "leaks": {"folders", "key_shapes"},
    "published": {
        *("torch", "safetensors", "huggingface_hub", "adapter_loading", "card", "card_values", "checkpoints"),
        *("conversion", "folders", "layouts", "leaks", "licenses", "locks", "modeling", "plots", "readback", "record"),
        "tokenizer",
    },
    "exports": {
        *("torch", "transformers", "gguf", "onnxruntime"),
        *("checkpoints", "conversion", "folders", "locks", "modeling", "tokenizer"),
    },
    "hub": {"huggingface_hub", "card", "checkpoints", "layouts", "licenses", "locks", "published", "record"},
    "__init__": {"transformers", "modeling"},
    "data/__init__": set(),
    "modeling/__init__": set(),
}
NOT_SCRIPTS = {
    "assembling",
    "checking",
    "labelled",
    "measuring",
    "models",
    "planning",
    "preparing",
    "recipe",
    "resuming",
    "runner",
    "seeds",
    "sweep",
}  # what the scripts in training/ share


def imports(file: Path) -> list[tuple[str, bool]]:
    """(room or package, inside a function) for every import of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module.split(".")[0]]
        elif isinstance(node, ast.ImportFrom):
            base = file.parent if node.level == 1 else file.parent.parent
            path = base.joinpath(*(node.module or "").split(".")).relative_to(REPO / "scratch_gpt")
            names = [path.parts[0]] if path.parts else [alias.name for alias in node.names]
        else:
            continue
        found += [(name, id(node) in inside) for name in names if name not in STDLIB]
    return found


def rooms() -> list[str]:
    library = REPO / "scratch_gpt"
    return sorted(str(file.relative_to(library).with_suffix("")) for file in library.rglob("*.py"))


def test_every_file_has_its_arrows_and_every_arrow_its_file():
    assert rooms() == sorted(ARROWS)


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_rooms_import_only_what_they_may(room):
    found = imports(REPO / "scratch_gpt" / f"{room}.py")
    assert {name for name, _ in found} <= ARROWS[room]
    heavy_extras = {
        "bitsandbytes",
        "codecarbon",
        "gguf",
        "langdetect",
        "lm_eval",
        "matplotlib",
        "onnxruntime",
        "peft",
        "py3langid",
        "rensa",
    }
    assert all(inside for name, inside in found if name in heavy_extras)


def test_portable_files_import_flat_siblings_only():
    for file in (REPO / "scratch_gpt" / "modeling").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, file.name
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.startswith("scratch_gpt") for name in names), file.name


def test_scripts_import_no_other_script_and_nothing_heavy_at_the_top():
    files = {file.stem: file for file in (REPO / "training").glob("*.py")}
    scripts = set(files) - NOT_SCRIPTS
    for name in scripts:
        found = imports(files[name])
        assert not {other for other, _ in found} & scripts, name
        assert {other for other, inside in found if not inside} <= {"recipe"}, name
    assert {other for other, inside in imports(files["recipe"]) if not inside} == {"transformers"}


def test_the_library_has_no_command_line_and_asks_for_rank_only_in_the_loop_and_its_record():
    for file in (REPO / "scratch_gpt").rglob("*.py"):
        text = file.read_text()
        assert "argparse" not in text, file.name
        assert file.name in ("loop.py", "metrics.py", "saving.py") or ".is_main_process" not in text, file.name


def names_no_encoding(call: ast.Call) -> bool:
    """Whether a call opens a file or a program's output as text in the encoding of the locale."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in ("open", "fdopen"):
        mode = [*call.args[isinstance(call.func, ast.Name) or name == "fdopen" :], ast.Constant("r")][0]
        mode = given.get("mode", mode)
        return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value
    is_text = any(getattr(given.get(word), "value", False) for word in ("text", "universal_newlines"))
    is_method = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
    return is_text or is_method or name in ("FileHandler", "TextIOWrapper")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        *(("file.read_text()", True), ("file.write_text(text)", True), ("open(name)", True), ("file.open()", True)),
        *(("file.open('w')", True), ("open(name, mode='a')", True), ("run(command, text=True)", True)),
        *(("open(name, 'rb')", False), ("file.open('ab', buffering=0)", False), ("os.open(path, flags)", False)),
        *(("file.read_text(encoding='utf-8')", False), ("run(command, text=True, encoding='utf-8')", False)),
    ],
)
def test_a_call_that_leaves_the_encoding_to_the_locale_is_found(line, found):
    assert names_no_encoding(ast.parse(line).body[0].value) is found


def test_every_file_is_read_and_written_as_utf8_whatever_the_locale():
    """ruff's PLW1514 does the same where it can tell that a value is a path."""
    for folder in ("scratch_gpt", "training", "hub_card"):
        for file in (REPO / folder).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call))
            assert not [call.lineno for call in calls if names_no_encoding(call)], file


def test_importing_the_package_costs_no_more_than_transformers_own_model():
    code = """if True:
        import sys, torch
        import transformers.models.gpt2.modeling_gpt2
        from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
        before = set(sys.modules)
        state = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
        import scratch_gpt
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        assert not new & {"datasets", "peft", "accelerate", "matplotlib", "numpy"}, new
        assert torch.equal(state[0], torch.get_rng_state())
        assert state[1:] == (torch.get_num_threads(), torch.get_default_dtype())
        assert callable(scratch_gpt.export_gpt2) and callable(scratch_gpt.generate)
        try:
            scratch_gpt.nonsense
        except AttributeError:
            print("well")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "well", done.stderr


def test_the_readme_shows_every_room():
    text = (REPO / "README.md").read_text()
    for room in rooms():
        if not room.endswith("__init__"):
            assert f"{Path(room).name}.py" in text, room
