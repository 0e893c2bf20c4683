"""Test the rooms of scratch_gpt/: their allowed imports and the cost of importing."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import REPO
from rooms import ONLY_IN, ROOMS


STDLIB = set(sys.stdlib_module_names)
OURS = ("scratch_gpt", "scratch_gpt_training")

# Modules without a separate test file, and the file that tests them.
UNTESTED_BY_NAME = {
    "scratch_gpt/runs/evaluation_file.py": "with the recipe that writes it: tests/training/test_evaluate.py",
    "scratch_gpt/utils/extras.py": "with a missing extra: tests/conversion/test_export.py",
    "scratch_gpt/utils/key_shapes.py": "with the leak check: tests/hub/test_leak_check.py",
    "scratch_gpt/utils/plots.py": "with the runs that draw them: tests/training/test_classify.py",
    "training/__main__.py": "as the command: tests/training/test_main.py",
    "training/publish.py": "with published runs: tests/hub/test_publish.py",
    "training/support/evaluation/labeled.py": "with its recipe: tests/training/test_evaluate.py",
    "training/support/evaluation/measurements.py": "with its recipe: tests/training/test_evaluate.py",
    "training/support/preparation/outputs.py": "with its recipe: tests/training/test_prepare.py",
    "training/support/run/description.py": "with a trained run: tests/training/test_pretrain.py",
    "training/support/run/output_dir.py": "with folders that a run must not use: tests/runs/test_folder.py",
    "training/support/run/recipe.py": "with a trained run: tests/training/test_pretrain.py",
    "training/support/run/results.py": "with a trained run: tests/training/test_pretrain.py",
    "training/support/run/runner.py": "with a trained run: tests/training/test_pretrain.py",
    "training/support/run/setup.py": "with resumed runs: tests/training/test_pretrain.py",
    "training/support/run/task.py": "with a trained run: tests/training/test_pretrain.py",
}


def modules(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def imports(file: Path) -> list[tuple[str, bool]]:
    """Return (dotted name, inside a function) for every import of a file; our names are absolute."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    package = file.relative_to(REPO).parent.parts
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *filter(None, [node.module])])
            # from our packages, a module or a name of a module is imported
            names = [f"{name}.{alias.name}" for alias in node.names] if name.split(".")[0] in OURS else [name]
        else:
            continue
        found += [(name, id(node) in inside) for name in names if name.split(".")[0] not in STDLIB]
    return found


def test_every_folder_of_the_package_is_in_the_table():
    folders = {file.relative_to(REPO / "scratch_gpt").parts[0] for file in modules("scratch_gpt")}
    assert folders == {*ROOMS, "__init__.py"}


def test_every_module_has_a_test_file_with_its_path_or_a_reason():
    without = set()
    for file in [*modules("scratch_gpt"), *modules("training")]:
        path = file.relative_to(REPO)
        mirrored = path.relative_to("scratch_gpt") if path.parts[0] == "scratch_gpt" else path
        if file.name != "__init__.py" and not (REPO / "tests" / mirrored.parent / f"test_{file.name}").exists():
            without.add(path.as_posix())
    assert without == UNTESTED_BY_NAME.keys()
    for module, reason in UNTESTED_BY_NAME.items():
        assert (REPO / reason.rsplit(": ", 1)[1]).is_file(), module


@pytest.mark.parametrize("name", ROOMS)
def test_packages_import_only_what_the_table_allows(name):
    room = ROOMS[name]
    for file in modules(f"scratch_gpt/{name}"):
        folder = file.relative_to(REPO / "scratch_gpt").parent.as_posix()
        for module, is_inside in imports(file):
            top, *rest = module.split(".")
            if top == "scratch_gpt":
                assert rest[0] in {name, *room.ours}, (file, module)
                continue
            assert top in room.others | (room.inside if is_inside else set()), (file, module)
            assert folder.startswith(ONLY_IN.get(top, "")), (file, module)


def test_packages_import_each_other_without_cycles():
    done: set[str] = set()
    while rest := ROOMS.keys() - done:
        ready = {name for name in rest if ROOMS[name].ours <= done}
        assert ready, rest
        done |= ready


def test_every_allowed_import_between_packages_is_used():
    for name, room in ROOMS.items():
        found = [module for file in modules(f"scratch_gpt/{name}") for module, _ in imports(file)]
        used = {module.split(".")[1] for module in found if module.startswith("scratch_gpt.")} - {name}
        assert used == room.ours, name
        assert {module.split(".")[0] for module in found} - {"scratch_gpt"} == room.others | room.inside, name


def test_every_import_of_our_modules_names_an_existing_name():
    """This includes benchmarks and scripts that no test runs."""
    for folder in ("scratch_gpt", "training", "tests", "hub_card"):
        for file in modules(folder):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in OURS:
                    continue
                module = importlib.import_module(node.module)
                for alias in node.names:
                    is_module = (
                        importlib.util.find_spec(f"{node.module}.{alias.name}")
                        if hasattr(module, "__path__")
                        else None
                    )
                    assert is_module or hasattr(module, alias.name), f"{file}: {node.module} has no {alias.name}"


def test_portable_files_import_flat_siblings_only():
    for file in (REPO / "scratch_gpt" / "modeling").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, file.name
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.startswith("scratch_gpt") for name in names), file.name


def test_recipes_import_no_other_recipe_and_nothing_heavy_at_the_top():
    recipes = {file.stem for file in (REPO / "training").glob("*.py")} - {"__init__", "__main__"}
    light = {
        f"scratch_gpt_training.support.{module}"
        for module in ("command_line", "commands", "options", "run.output_dir", "run.recipe")
    }
    for name in recipes:
        found = imports(REPO / "training" / f"{name}.py")
        assert not {module.split(".")[1] for module, _ in found if module.startswith(OURS[1])} & recipes, name
        assert {module.rsplit(".", 1)[0] for module, is_inside in found if not is_inside} <= light, name
    for module in ("command_line", "commands", "options", "run/output_dir", "run/recipe"):
        found = imports(REPO / "training" / "support" / f"{module}.py")
        heavy = {name.split(".")[0] for name, is_inside in found if not is_inside} - {"scratch_gpt_training"}
        assert heavy <= {"transformers"}, module


def test_the_command_answers_without_importing_a_library():
    code = """if True:
        import sys
        from scratch_gpt_training.__main__ import main
        main(["--help"])
        loaded = {name.split(".")[0] for name in sys.modules}
        assert not loaded & {"torch", "transformers", "accelerate", "numpy", "yaml"}, loaded
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_package_lists_every_folder():
    found = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(REPO).as_posix().replace("/", ".") for file in modules("scratch_gpt")}
    training = {file.parent.relative_to(REPO).as_posix().replace("/", ".") for file in modules("training")}
    folders |= {name.replace("training", "scratch_gpt_training", 1) for name in training} | {"scratch_gpt.hub_card"}
    assert set(found["packages"]) == folders


def test_the_library_has_no_command_line_and_uses_the_rank_only_in_the_loop():
    for file in (REPO / "scratch_gpt").rglob("*.py"):
        text = file.read_text()
        assert "argparse" not in text, file.name
        assert file.name in ("loop.py", "metrics_log.py", "checkpoint_writer.py") or ".is_main_process" not in text, (
            file.name
        )


def names_no_encoding(call: ast.Call) -> bool:
    """Return whether a call opens a file or a program's output as text in the encoding of the locale."""
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
    """ruff's PLW1514 checks the same only for values that it recognizes as paths."""
    for folder in ("scratch_gpt", "training", "hub_card"):
        for file in (REPO / folder).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call))
            assert not [call.lineno for call in calls if names_no_encoding(call)], file


def test_importing_the_package_costs_no_more_than_transformers_gpt2():
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
