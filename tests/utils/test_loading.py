"""Test loading: a model is complete or refused, no code of a folder runs, and no file outside it is read."""

import ast
import builtins
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bad_input import fails
from names_model import save_names_model
from places import REPO
from safetensors.torch import load_file, save_file
from tiny import some_ids, tiny_gpt2, tiny_model
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    dynamic_module_utils,
)

from scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    export_gpt2,
    import_checkpoint,
    load_tokenizer,
)
from scratch_gpt.analysis.inspection import class_probabilities, look, open_subject
from scratch_gpt.conversion.export import export
from scratch_gpt.conversion.gguf_file import write_gguf
from scratch_gpt.conversion.load import STOCK_CLASSES, load_any_head, load_model
from scratch_gpt.conversion.onnx_file import write_onnx
from scratch_gpt.data.filters.person_names import names_finder
from scratch_gpt.finetuning.lora import add_lora, save_adapter
from scratch_gpt.hub import staging as published
from scratch_gpt.hub.staging import checkpoint_steps, stage
from scratch_gpt.tokenization.training import train_tokenizer as make_tokenizer
from scratch_gpt.utils.loading import load_complete
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


STORY = "The sun shines on the sea, and every effort moves you on. " * 60
CLASSIFIER = ScratchGPTForSequenceClassification


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([STORY], vocab_size=300, chat_template="chatml")


def saved(folder: Path, model, tokenizer=None, weights=None, **config) -> Path:
    """Save a model; `weights` changes the tensors in its file, `config` replaces fields of its config.json."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if weights is not None:
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", **config)
    return folder


def edit(file: Path, **fields) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**content, **fields}), encoding="utf-8")


# --- Exactly the tensors of the config ---------------------------------------------------------------------------

NORM = "transformer.layers.1.ln_1.weight"
C_ATTN = "transformer.h.0.attn.c_attn.weight"
PARTIAL = {
    "fewer layers": (tiny_model, None, {"num_hidden_layers": 1}, r"it holds transformer.layers.1.*\(and 15 more\)"),
    "more layers": (tiny_model, None, {"num_hidden_layers": 3}, "it lacks transformer.layers.2"),
    "fewer layers in GPT-2": (tiny_gpt2, None, {"n_layer": 1}, r"it holds transformer\.(layers|h)\.1"),
    "without a tensor": (tiny_model, lambda w: w.pop(NORM), {}, f"it lacks {NORM}, which a ScratchGPTForCausalLM"),
    "without c_attn": (tiny_gpt2, lambda w: w.pop(C_ATTN), {}, r"it lacks transformer\.(layers|h)\.0\.attn"),
    "with another tensor": (tiny_model, lambda w: w.update(extra=torch.zeros(1)), {}, "it holds extra, which a"),
    "without biases": (tiny_model, None, {"attention_bias": False}, "it holds transformer.layers.0.attn.k_proj.bias"),
    "smaller vocabulary": (
        tiny_model,
        None,
        {"vocab_size": 98},
        r"\(99, 32\), but its config.json needs \(98, 32\)",
    ),
    "narrow c_attn": (tiny_gpt2, lambda w: w.update({C_ATTN: torch.zeros(32, 64)}), {}, "config.json needs"),
    "c_attn of two": (tiny_gpt2, lambda w: w.update({C_ATTN: torch.zeros(32, 2)}), {}, "config.json needs"),
    "without its head": (tiny_model, None, {"tie_word_embeddings": False}, "it lacks lm_head.weight"),
    "with two heads": (
        *(tiny_model, lambda w: w.update({"lm_head.weight": torch.ones(99, 32)}), {}),
        "lm_head.weight differs from transformer.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("kind", PARTIAL)
def test_files_without_exactly_the_tensors_of_the_config_are_refused(kind, tmp_path):
    make, weights, config, message = PARTIAL[kind]
    folder = saved(tmp_path / "model", make(), None, weights, **config)
    for load in (load_model, generate.load_language_model, lambda name: load_any_head(Path(name))):
        with pytest.raises(ValueError, match="model cannot be loaded: .*" + message) as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)


def test_only_a_new_head_a_missing_head_and_old_buffers_may_differ(tmp_path):
    ids = some_ids()
    language = tiny_model(tie_word_embeddings=False)
    folder = str(saved(tmp_path / "language", language))
    classifier = load_model(folder, None, CLASSIFIER)
    assert_close(classifier.transformer(ids)[0], language.transformer(ids)[0])
    assert_close(load_model(folder, None, ScratchGPTModel).eval()(ids)[0], language.transformer(ids)[0])
    with pytest.raises(ValueError, match="it lacks score.weight"):
        load_model(folder, None, CLASSIFIER, needs_head=True)

    buffers = {"attn.bias": torch.ones(1, 1, 64, 64), "attn.masked_bias": torch.tensor(-1e4)}

    def add(weights):
        weights.update({f"transformer.h.{n}.{name}": t + n for n in (0, 1) for name, t in buffers.items()})

    stock = tiny_gpt2()
    assert_close(load_model(str(saved(tmp_path / "old", stock, None, add))).eval()(ids).logits, stock(ids).logits)
    headless = GPT2Model(stock.config)
    headless.load_state_dict(stock.transformer.state_dict())
    folder = str(saved(tmp_path / "headless", headless))  # as in openai-community/gpt2, whose names have no prefix
    assert_close(load_model(folder).eval()(ids).logits, stock(ids).logits)

    scores = tiny_model(CLASSIFIER, num_labels=3)
    folder = str(saved(tmp_path / "scores", scores))
    assert_close(load_model(folder, None, CLASSIFIER).eval()(ids).logits, scores(ids).logits)
    with pytest.raises(ValueError, match="is a classifier, and a language model is needed"):
        load_model(folder)
    with pytest.raises(ValueError, match="it holds score.weight"):
        generate.load_language_model(folder)


def test_a_model_of_another_kind_is_complete_or_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    ids = some_ids(vocab_size=50)
    assert_close(
        generate.load_language_model(str(saved(tmp_path / "llama", llama)))(ids).logits, llama.eval()(ids).logits
    )
    edit(tmp_path / "llama" / "config.json", num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"llama cannot be loaded: it lacks model.layers.1.*a LlamaForCausalLM"):
        generate.load_language_model(str(tmp_path / "llama"))

    for name, change, message in (
        ("pooled", lambda w: w.update({"bert.pooler.dense.weight": torch.ones(8, 8)}), None),
        ("headless", lambda w: w.pop("classifier.weight"), "it lacks classifier.weight"),
        ("more", lambda w: w.update({"bert.more": torch.ones(1)}), "it holds bert.more"),
    ):
        folder = save_names_model(tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if message is None:
            assert [*names_finder(str(folder))("to Ada")] == [(3, 6)]
            continue
        with pytest.raises(ValueError, match=f"{name} cannot be loaded: {message}"):
            names_finder(str(folder))


def test_an_adapter_brings_its_complete_head(tmp_path):
    pytest.importorskip("peft")
    base = saved(tmp_path / "base", tiny_model())
    model = load_model(str(base), None, CLASSIFIER)
    model.config.id2label = {0: "ham", 1: "spam"}
    add_lora(model, base=str(base))
    save_adapter(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    head = next(name for name in tensors if name.endswith("score.weight"))
    assert_close(load_model(str(file.parent), None, CLASSIFIER).score.weight, tensors[head])
    for change, message in (
        ({head: tensors[head][:1]}, r"its score.weight has the shape \(1, 32\), not \(2, 32\)"),
        ({head: None}, "it has labels but no score.weight"),
    ):
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load_model(str(file.parent), None, CLASSIFIER)


@pytest.fixture(scope="module")
def home(tokenizer, tmp_path_factory):
    """Make a finished run, and data of each kind."""
    home = tmp_path_factory.mktemp("home")
    (home / "story.txt").write_text(STORY)
    (home / "texts.jsonl").write_text("".join(json.dumps({"text": f"{n} {STORY}"}) + "\n" for n in range(20)))
    (home / "mails.tsv").write_text("".join(f"{('ham', 'spam')[n % 2]}\tmail {n}\n" for n in range(20)))
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n}"} for n in range(20)]
    (home / "questions.json").write_text(json.dumps(rows))
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(20)]
    (home / "pairs.json").write_text(json.dumps(pairs))
    saved(home / "good", tiny_model(vocab_size=len(tokenizer)), tokenizer)
    words = ["--dataset", home / "story.txt", "--model", home / "good", "--max-length", 32, "--max-steps", 1]
    words += ["--device", "cpu", "--eval-batches", 1, "--output-dir", home / "run"]
    pretrain.main([str(word) for word in words])
    return home


def test_every_recipe_refuses_an_incomplete_model_in_one_line(home, tokenizer, tmp_path, capsys):
    size = len(tokenizer)
    fewer = saved(tmp_path / "fewer", tiny_model(vocab_size=size), tokenizer, num_hidden_layers=1)
    scores = saved(tmp_path / "scores", tiny_model(CLASSIFIER, vocab_size=size), tokenizer, num_hidden_layers=1)
    bad, out, good = "(fewer|scores|model) cannot be loaded: it holds", tmp_path / "out", home / "good"
    new = ["--output-dir", out, "--device", "cpu"]
    text = ["--dataset", home / "story.txt", *new]
    fails(["--model", fewer, *text, "--max-steps", 1, "--max-length", 32], bad, capsys, pretrain.main)
    mails = ["--dataset", home / "mails.tsv", "--column-names", "label,text", *new]
    fails(["--model", fewer, *mails, "--max-steps", 1], bad, capsys, classify.main)
    fails(["--model", scores, "--predict", home / "story.txt"], bad, capsys, classify.main)
    instruct_words = ["--dataset", home / "questions.json", *new, "--max-steps", 1]
    fails(["--model", fewer, *instruct_words], bad, capsys, instruct.main)
    pairs = ["--dataset", home / "pairs.json", *new, "--max-steps", 1]
    fails(["--model", fewer, *pairs], bad, capsys, prefer.main)
    fails([fewer, *text], bad, capsys, evaluate.main)
    fails([good, "--base", fewer, *new], bad, capsys, evaluate.main)
    fails([fewer, "The"], bad, capsys, generate.main)
    fails([good, "The", "--assistant-model", fewer], bad, capsys, generate.main)
    cleaned = ["--dataset", home / "texts.jsonl", "--task", "text", "--output-dir", out]
    fails([*cleaned, "--reference-model", fewer], bad, capsys, prepare.main)
    run = shutil.copytree(home / "run", tmp_path / "run")
    edit(run / "model" / "config.json", num_hidden_layers=1)
    for words in (["--repo", "ada/x", "--dry-run", "true"], ["--export", "onnx"]):
        fails([run, *words], bad, capsys, publish.main)
    assert not (run / "published").exists()
    with pytest.raises(ValueError, match=bad):
        open_subject(fewer)


def test_weights_of_a_checkpoint_fit_the_model_or_are_refused(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    step = checkpoint_steps(run)[0]
    file = run / "checkpoints" / f"step-{step}" / "model.safetensors"
    tensors = load_file(file)
    for changed in ({**tensors, "extra": torch.ones(1)}, {k: t for k, t in tensors.items() if "ln_1" not in k}):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="belongs to another model"):
            stage(run, repo="ada/x", step=step)
    assert not (run / "published").exists()


# --- Files -------------------------------------------------------------------------------------------------------


def test_an_index_that_names_anything_but_safetensors_in_its_folder_is_refused(tmp_path):
    model = tiny_model()
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert_close(load_model(str(folder)).eval()(some_ids()).logits, model(some_ids()).logits)  # shards are allowed
    first = sorted(content["weight_map"].values())[0]
    shutil.copy(folder / first, tmp_path / "x.safetensors")

    def map_to(shard) -> str:
        names = {name: shard if file == first else file for name, file in content["weight_map"].items()}
        return json.dumps({**content, "weight_map": names})

    outside = ["../x.safetensors", str(tmp_path / "x.safetensors"), "a/../../x.safetensors", "..\\x.safetensors"]
    cases = dict.fromkeys([*outside, "C:x.safetensors", 3], "which is outside the folder")
    cases |= {"pytorch_model.bin": "which is not a safetensors file"}
    texts = {map_to(shard): message for shard, message in cases.items()}
    texts |= dict.fromkeys(("{", "{}", '{"weight_map": 3}', "[]"), "its model.safetensors.index.json is damaged")
    loaders = (load_model, generate.load_language_model, names_finder, lambda name: load_any_head(Path(name)))
    for text, message in texts.items():
        index.write_text(text)
        for load in loaders:
            with pytest.raises(ValueError, match=f"model cannot be loaded: .*{message}"):
                load(str(folder))
    other = index.rename(folder / "other.safetensors.index.json")  # config.json may name them
    other.write_text(map_to("../x.safetensors"))
    edit(folder / "config.json", transformers_weights=other.name)
    for load in loaders:
        with pytest.raises(ValueError, match="other.safetensors.index.json names ../x.safetensors"):
            load(str(folder))


def test_pickles_and_distributed_checkpoints_are_refused_in_one_line(tmp_path):
    folder = saved(tmp_path / "model", tiny_model())
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.rename(folder / "shard-00001-model-00001-of-00001.safetensors")
    for message in ("it is a distributed checkpoint", "it has no model.safetensors, and weights in other formats"):
        for load in (load_model, generate.load_language_model, lambda name: load_any_head(Path(name))):
            with pytest.raises(ValueError, match=f"model cannot be loaded: {message}"):
                load(str(folder))
        for file in folder.glob("shard-*"):
            file.unlink()


def test_a_missing_model_is_a_one_line_error(tmp_path, capsys):
    for load in (load_model, generate.load_language_model, names_finder, load_tokenizer):
        with pytest.raises(ValueError, match="cannot be loaded|could be loaded") as caught:
            load("nobody/nothing")
        assert "\n" not in str(caught.value) and "trust_remote_code" not in str(caught.value)
    adapter = saved(tmp_path / "tagger", tiny_model())
    edit(adapter / "adapter_config.json", base_model_name_or_path="../base", peft_type="LORA")
    with pytest.raises(ValueError, match="it is an adapter"):
        load_complete(AutoModelForCausalLM, adapter)


# --- Code --------------------------------------------------------------------------------------------------------

# Functions that never run code from the folder they load, and have no argument trust_remote_code.
WITHOUT_TRUST = {
    "peft.PeftConfig.from_pretrained",
    "import_peft().PeftModel.from_pretrained",
    "datasets.load_dataset",
}
LOADERS = re.compile(r"(^|\.)(from_pretrained|from_config|pipeline|load_dataset|load_from_disk|from_name)$")
UNSAFE = re.compile(r"(^|\.)(pickle\.loads?|torch\.hub\.load|joblib\.load|load_state_dict_from_url)$")


def calls(text: str):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def calls_without_trust_argument(text: str) -> list[str]:
    """Return the calls in a file that load something without an explicit trust_remote_code=False."""
    out = []
    for name, words in calls(text):
        if LOADERS.search(name) and name not in WITHOUT_TRUST:
            is_model = not re.search("Tokenizer|Config|pipeline|Processor", name)
            safe = words.get("trust_remote_code") == "False" and (not is_model or words["use_safetensors"] == "True")
            out += [] if safe else [name]
        elif UNSAFE.search(name) or (name == "torch.load" and words.get("weights_only") != "True"):
            out.append(name)
    return out


def test_every_loading_call_states_whether_code_may_run():
    files = [file for room in ("scratch_gpt", "training", "hub_card") for file in (REPO / room).rglob("*.py")]
    assert {file.name: found for file in files if (found := calls_without_trust_argument(file.read_text()))} == {}
    seen = {name for file in files for name, _ in calls(file.read_text()) if LOADERS.search(name)}
    known = {"model_class.from_pretrained", "AutoTokenizer.from_pretrained", "pipeline"}
    assert known | {"_auto_class(model_class).from_pretrained", *WITHOUT_TRUST} == seen
    assert calls_without_trust_argument("a.from_pretrained(b)\ntorch.load(c)\npickle.load(d)") == [
        "a.from_pretrained",
        *UNSAFE_CALLS,
    ]


UNSAFE_CALLS = ["torch.load", "pickle.load"]
EVIL = """
from pathlib import Path
Path({marker!r}).write_text(__name__)
from transformers import {config}, {model}, PreTrainedTokenizerFast
class EvilConfig({config}):
    model_type = {kind!r}
class EvilModel({model}):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
def generate(*args, **kwargs):
    return args
"""
AUTO = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Use a separate folder for the code that transformers copies from model folders and imports."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def hostile(tmp_path, tokenizer, monkeypatch, modules):
    """Make folders with Python code that creates a marker file, and answer every prompt with "yes".

    Return the folders, a list of the prompts, and the marker.
    """
    marker, asked, folders = tmp_path / "ran", [], []

    def ask(prompt: str = "") -> str:
        asked.append(prompt)
        if prompt == "> " and asked.count(prompt) % 2 == 0:  # generate.py --chat, after one message
            raise EOFError
        return "yes"

    monkeypatch.setattr(builtins, "input", ask)
    for kind in ("evil", "gpt2", "scratch_gpt"):
        folder = saved(tmp_path / kind, (tiny_gpt2 if kind == "gpt2" else tiny_model)(vocab_size=len(tokenizer)))
        tokenizer.save_pretrained(folder)
        code = EVIL.format(marker=str(marker), config="GPT2Config", model="GPT2LMHeadModel", kind=kind)
        (folder / "custom_generate").mkdir()
        for file in [*folder.glob("*.py"), folder / "evil.py", folder / "custom_generate" / "generate.py"]:
            file.write_text(code)
        auto = {"AutoConfig": "evil.EvilConfig", **dict.fromkeys(AUTO, "evil.EvilModel")}
        edit(folder / "config.json", model_type=kind, auto_map=auto, custom_pipelines={"evil": {"impl": "evil.E"}})
        if kind == "gpt2":  # recipes open the tokenizer first; only this folder has a hostile one
            names = {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}}
            edit(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", **names)
        folders.append(folder)
    return folders, asked, marker


def test_the_code_of_a_folder_never_runs_with_any_standard_input(hostile, home, tmp_path, monkeypatch):
    folders, asked, marker = hostile
    for name in ("plot_attention", "plot_parameters", "plot_token_lengths"):
        monkeypatch.setattr(published, name, lambda _, *rest: next(p for p in rest if isinstance(p, Path)).touch())
    with pytest.raises(OSError, match="read"):  # the code runs if it is trusted
        AutoModelForCausalLM.from_pretrained(folders[0], trust_remote_code=True)
        raise OSError("read" if marker.exists() else "not run")
    marker.unlink()

    out, text = tmp_path / "out", home / "story.txt"
    train = ["--device", "cpu", "--max-steps", 1, "--output-dir", out, "--overwrite", "true"]
    train += ["--max-length", 65]  # more than the context, an error after the model is loaded
    look_at = ["--dataset", text, "--device", "cpu", "--output-dir", out]
    mails = ["--dataset", home / "mails.tsv", "--column-names", "label,text", *train]
    cleaned = ["--dataset", home / "texts.jsonl", "--task", "text", "--output-dir", out]
    good = home / "good"
    for folder in folders:
        recipes = [
            (generate.main, [folder, "The", "--max-new-tokens", 1]),
            (generate.main, [folder, "--chat", "--max-new-tokens", 1]),
            (generate.main, [good, "The", "--assistant-model", folder, "--max-new-tokens", 1]),
            (evaluate.main, [folder, *look_at]),
            (pretrain.main, ["--model", folder, "--dataset", text, *train]),
            (pretrain.main, ["--tokenizer", folder, "--dataset", text, *train]),
            (pretrain.main, ["--model", folder, "--dataset", text, *train, "--plan", "true"]),
            (classify.main, ["--model", folder, *mails]),
            (classify.main, ["--model", folder, "--predict", text]),
            (instruct.main, ["--model", folder, "--dataset", home / "questions.json", *train]),
            (prefer.main, ["--model", folder, "--dataset", home / "pairs.json", *train]),
            (prepare.main, [*cleaned, "--reference-model", folder]),
            (prepare.main, [*cleaned, "--privacy", "mask", "--names-model", folder]),
            (prepare.main, ["--dataset", home / "texts.jsonl", "--tokenizer", folder, "--output-dir", out]),
            (train_tokenizer.main, ["--dataset", text, "--compare", folder, "--output-dir", out]),
            (publish.main, [folder, "--export", "gguf"]),
        ]
        if folder.name == "evil":  # any other model would be compared for drift
            recipes.append((evaluate.main, [good, *look_at, "--base", folder]))
        if folder.name != "gpt2":  # the model of a run has our type
            run = shutil.copytree(home / "run", tmp_path / f"run-{folder.name}")
            shutil.copytree(folder, run / "model", dirs_exist_ok=True)
            recipes.append((publish.main, [run, "--repo", "ada/x", "--dry-run", "true"]))
        for main, words in recipes:
            monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 99))
            shutil.rmtree(out, ignore_errors=True)
            asked.clear()
            try:
                main([str(word) for word in words])
            except SystemExit as end:
                assert end.code == 2, words
            assert not marker.exists() and {*asked} <= {"> "}, (main.__module__, words)
        for load in (
            *(load_model, generate.load_language_model, names_finder, load_tokenizer, open_subject),
            lambda name: load_model(name, None, CLASSIFIER),
            lambda name: load_any_head(Path(name)),
            lambda name: export_gpt2(name, tmp_path / "stock" / Path(name).name),
            lambda name: export(name, kind="gguf"),
        ):
            asked.clear()
            try:
                load(str(folder))
            except ValueError as error:
                assert "trust_remote_code" not in str(error)
            except ImportError as error:
                assert "gguf" in str(error)
            assert not marker.exists() and not asked


# --- Our class from a folder -------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path, modules):
    """Return a function that saves a model and loads it with the class from the saved folder."""

    def load(model):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        name = f"modeling_scratch_gpt.{type(model).__name__}"
        kind = dynamic_module_utils.get_class_from_dynamic_module(name, str(folder))
        assert kind is not type(model) and kind.__module__.startswith("transformers_modules.")
        return kind.from_pretrained(folder, attn_implementation="eager")

    return load


@pytest.mark.parametrize("ours", STOCK_CLASSES)
def test_our_class_from_a_folder_is_exported_like_the_packages_class(ours, remote, tmp_path):
    model = tiny_model(ours, num_labels=3, pad_token_id=98)
    theirs = remote(model)
    for name, source in (("own", model), ("remote", theirs)):
        export_gpt2(source, tmp_path / name)
    own, other = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "remote"))
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    ids = some_ids(vocab_size=98)
    stock = STOCK_CLASSES[ours].from_pretrained(tmp_path / "remote").eval()
    assert_close(stock(ids, attention_mask=torch.ones_like(ids))[0], model(ids)[0], atol=1e-5, rtol=1e-5)
    if ours is CLASSIFIER:
        assert isinstance(stock, GPT2ForSequenceClassification)
        assert_close(class_probabilities(theirs, look(theirs, [1, 2]).hidden).sum(), torch.tensor(1.0))


def test_a_class_of_our_name_or_type_with_another_layout_is_not_ours(remote, tmp_path):
    class Other(ScratchGPTForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.more = torch.nn.Linear(2, 2)

    for model in (Other(tiny_model().config), tiny_gpt2(), torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=f"A {type(model).__name__} is not one of ScratchGPTModel"):
            export_gpt2(model, tmp_path / "out")


def test_onnx_accepts_our_class_from_a_folder(remote, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert write_onnx(remote(tiny_model(ScratchGPTModel)), tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state"]
    assert "labels" not in session.get_modelmeta().custom_metadata_map


def test_gguf_and_import_accept_our_class_from_a_folder(remote, tokenizer, tmp_path):
    model = tiny_model(vocab_size=len(tokenizer))
    theirs = remote(model)
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="has a tensor 'x'"):  # and not an error about the type of the config
        import_checkpoint(tmp_path / "x.pt", config=theirs.config)
    pytest.importorskip("gguf")
    for name, source in (("own", model), ("remote", theirs)):
        write_gguf(source, tokenizer, tmp_path / f"{name}.gguf")
    with pytest.raises(ValueError, match="A GGUF file holds a language model"):
        write_gguf(remote(tiny_model(CLASSIFIER)), tokenizer, tmp_path / "classifier.gguf")
    assert (tmp_path / "own.gguf").read_bytes() == (tmp_path / "remote.gguf").read_bytes()
