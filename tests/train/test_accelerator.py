"""Test settings of a launch: each is followed, or refused in one line; none changes a run silently."""

import ast
import copy
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import launch as accelerate_environment
from bad_input import fails, snapshot
from places import REPO
from safetensors.torch import load_file
from stories import story_file
from tiny import some_ids, tiny_model
from tiny_run import run
from transformers import AutoModelForCausalLM

from scratch_gpt.finetuning.lora import add_lora
from scratch_gpt.train import accelerator as launch
from scratch_gpt.train.accelerator import VARIABLES, check_launch, make_accelerator
from scratch_gpt.train.checkpoints import CheckpointError, check_shapes, take_snapshot, tensor_shapes, write_checkpoint
from scratch_gpt.train.optimizers import adamw
from scratch_gpt_training import pretrain


STORY = "The old sailor walked to the shiny sea, and the sun shone on ninety quiet boats.\n" * 60
SMALL = ["--preset", "tiny", "--vocab-size", "300", "--max-length", "32", "--device", "cpu", "--config-overrides"]
SMALL += ["hidden_size=32,num_hidden_layers=2", "--batch-size", "4", "--log-every", "1"]

# Options of `accelerate launch` that only decide where and how its processes start.
LAUNCHERS_OWN = {
    *("help", "config_file", "quiet", "cpu", "multi_gpu", "num_processes", "num_machines", "machine_rank"),
    *("num_cpu_threads_per_process", "gpu_ids", "same_network", "main_process_ip", "main_process_port", "tee"),
    *("log_dir", "role", "rdzv_backend", "rdzv_conf", "max_restarts", "monitor_interval", "module", "no_python"),
    *("training_script", "training_script_args", "mpirun_hostfile", "aws_access_key_id", "aws_secret_access_key"),
    # TPUs: run in the launching process, which has torch_xla
    *("tpu", "tpu_use_cluster", "tpu_use_sudo", "vm", "env", "main_training_function", "downcast_bf16"),
    # DeepSpeed's launcher, and the options that it reads from its JSON file
    *("deepspeed_hostfile", "deepspeed_exclusion_filter", "deepspeed_inclusion_filter"),
    *("deepspeed_multinode_launcher", "offload_optimizer_nvme_path", "offload_param_nvme_path"),
}
# Variables set by those options, and the address where processes meet.
PLACES = {"OMP_NUM_THREADS", "KMP_AFFINITY", "KMP_BLOCKTIME", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"}
PLACES |= {"PYTHONPATH"}
# Variables that Accelerate reads and that have no effect on a run.
WITHOUT_EFFECT = {
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_DEBUG_RDV_FILE",  # test mode of notebook_launcher
    "ACCELERATE_INIT_INCLUDE_BUFFERS",  # used by init_empty_weights
    "ACCELERATE_BYPASS_DEVICE_MAP",  # used by models loaded with a device_map
    "ACCELERATE_ALLOW_CP_STANDALONE",  # used by context parallelism, which is refused
}
# Variables that a run follows, with a value that none of the launches below has by default.
OBEYED = {
    *("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY"),
    *("ACCELERATE_MIXED_PRECISION", "FSDP_RESHARD_AFTER_FORWARD", "FSDP_MIN_NUM_PARAMS"),
    *("FSDP_USE_ORIG_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES"),
}


@pytest.fixture(autouse=True)
def _no_launch(monkeypatch):
    """Remove the variables of a launch and the machine's Accelerate config."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_", "MASTER_")) or name == "WORLD_SIZE":
            monkeypatch.delenv(name)
    monkeypatch.setattr(accelerate_launch, "default_config_file", "/no/where.yaml")
    monkeypatch.setattr(accelerate_environment, "is_fp8_available", lambda: True)


def reset() -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()


def train(*words) -> None:
    reset()
    pretrain.main([str(word) for word in words])


story = story_file(STORY)


@pytest.fixture(scope="module")
def trained(story, tmp_path_factory):
    """Return a run folder that must not change, and the arguments that would continue it."""
    words = ["--dataset", story, *SMALL, "--output-dir", tmp_path_factory.mktemp("runs") / "run"]
    train(*words, "--max-steps", 1)
    return words[-1], [*words, "--max-steps", 2, "--resume", "latest"]


# --- Every setting -----------------------------------------------------------------------------------------------


def environment_of(args) -> dict[str, str]:
    """Return the variables that `accelerate launch` sets for its processes."""
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        written = accelerate_environment.prepare_deepspeed_cmd_env(args)[1]
    elif args.use_fsdp or args.use_megatron_lm or args.multi_gpu:
        written = accelerate_environment.prepare_multi_gpu_env(args)
    else:
        written = accelerate_environment.prepare_simple_launcher_cmd_env(args)[1]
    return {name: value for name, value in written.items() if os.environ.get(name) != value}


def launched(*words, **changes) -> dict[str, str]:
    """Return the variables of an `accelerate launch` with these arguments and changed options."""
    args = copy.copy(parsed(words))
    args.main_process_port = 0  # any free port
    vars(args).update(changes)
    return environment_of(args)


@functools.cache
def parsed(words: tuple):
    args = accelerate_launch.launch_command_parser().parse_args([*words, "train.py"])
    return accelerate_launch._validate_launch_command(args)[0]


def other_values(action) -> list:
    """Return values of an option that differ from its default."""
    if action.choices:
        return [choice for choice in action.choices if choice != action.default] or ["other"]
    if action.dest == "fp8_override_linear_precision":
        return [(True, False, False)]
    if isinstance(action.default, bool) or str(action.default).lower() in ("true", "false"):
        return [not action.default if isinstance(action.default, bool) else str(action.default != "true").lower()]
    return [7] if action.type in (int, float) else ["other"]


KINDS = {
    "plain": {"num_processes": 1},
    "ddp": {"multi_gpu": True},
    "fsdp": {"use_fsdp": True, "fsdp_version": "2"},
    "megatron": {"use_megatron_lm": True},
    "deepspeed": {"use_deepspeed": True},
    "fp8": {"mixed_precision": "fp8"},
    "parallel": {
        "use_fsdp": True,
        "use_parallelism_config": True,
        "parallelism_config_cp_size": 2,
        "parallelism_config_sp_size": 2,
    },
}


@pytest.fixture
def settings() -> dict[tuple[str, str], str]:
    """Map (variable, value) to the option that sets it, for all options and values of `accelerate launch`."""
    found: dict[tuple[str, str], str] = {}
    silent = set()
    for action in accelerate_launch.launch_command_parser()._actions:
        has_effect = False
        for kind in KINDS.values():
            before = launched(**kind)
            found.update(dict.fromkeys(before.items(), "its default"))
            for value in other_values(action):
                if action.dest in ("help", "training_script", "training_script_args", "config_file"):
                    continue
                try:
                    after = launched(**{**kind, action.dest: value})
                except (AssertionError, TypeError, ValueError, OSError):  # the launcher refuses it
                    continue
                changed = {name: value for name, value in after.items() if before.get(name) != value}
                has_effect = has_effect or bool(set(changed) - PLACES)
                found.update(dict.fromkeys(changed.items(), action.dest))
        silent |= set() if has_effect else {action.dest}
    assert silent <= LAUNCHERS_OWN, (
        f"options of accelerate launch that this test does not classify: {silent - LAUNCHERS_OWN}"
    )
    return {pair: option for pair, option in found.items() if pair[0] not in PLACES}


def rule_of(name: str) -> str | None:
    return next((rule for rule in VARIABLES if name == rule or (rule.endswith("_") and name.startswith(rule))), None)


def test_every_option_of_accelerate_launch_is_followed_or_refused_by_name(settings, trained, monkeypatch, capsys):
    folder, words = trained
    assert len(settings) > 80 and {rule_of(name) for name, _ in settings} >= {"MEGATRON_LM_", "ACCELERATE_FP8_"}
    before, obeyed, refused = snapshot(folder), set(), set()
    for name, value in settings:
        assert rule_of(name), f"{name} ({settings[name, value]}) is a variable that this test does not classify"
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            try:
                check_launch()
                obeyed |= {name} if settings[name, value] != "its default" else set()
            except ValueError:
                fails(words, f"^error: This launch sets {name} to {re.escape(repr(value))}; it ", capsys)
                refused.add(name)
    assert obeyed == OBEYED
    assert {"ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "FSDP_OFFLOAD_PARAMS"} <= refused
    assert snapshot(folder) == before


def test_every_variable_that_accelerate_reads_is_classified():
    families = r"(?:ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG|XLA)_[A-Z0-9_]*[A-Z0-9]"
    read = set()
    for file in Path(accelerate.__file__).parent.rglob("*.py"):
        if "test_utils" not in file.parts:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read |= {node.value} if re.fullmatch(families, node.value) else set()
    assert len(read) > 50
    assert {name for name in read if not rule_of(name)} == WITHOUT_EFFECT


def test_every_field_of_accelerate_config_is_classified():
    options = {action.dest for action in accelerate_launch.launch_command_parser()._actions}
    # Groups are split into options; the rest are names of options, TPU pods and SageMaker, which is refused.
    groups = {"fp8_config", "deepspeed_config", "fsdp_config", "parallelism_config", "megatron_lm_config"}
    groups |= {"mpirun_config", "dynamo_config"}
    others = {"compute_environment", "distributed_type", "use_cpu"}
    pods = {"tpu_name", "tpu_zone", "command_file", "commands", "tpu_vm", "tpu_env"}
    assert {field.name for field in fields(ClusterConfig)} - options == groups | others | pods
    assert "ACCELERATE_USE_SAGEMAKER" in VARIABLES and SageMakerConfig  # with any fields


@pytest.mark.parametrize(
    "file", sorted((REPO / "training" / "configs" / "accelerate").glob("*.yaml")), ids=lambda f: f.stem
)
def test_our_launch_files_and_a_plain_launch_are_accepted(file, monkeypatch):
    args = ["--config_file", str(file)]
    wrong = {"FSDP_OFFLOAD_PARAMS": "true"}  # the check finds a wrong value
    for variables in (launched(*args), launched()):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's
        check_launch()
        assert variables["ACCELERATE_MIXED_PRECISION"] == "no"
    monkeypatch.setenv(*wrong.popitem())
    with pytest.raises(ValueError, match="FSDP_OFFLOAD_PARAMS"):
        check_launch()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "must be no. To compile the model, .*--compile true"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "must be 1. Pass --accumulation-steps to the recipe"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "Pass --max-grad-norm to the recipe"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "must be no or bf16 or fp16"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16 needs a GPU"),
        ("ACCELERATE_USE_CPU", "perhaps", "ACCELERATE_USE_CPU to 'perhaps'; it must be true or false"),
        ("ACCELERATE_USE_FSDP", "true", "requests FSDP, but Accelerate would train without it"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is not supported"),
        ("OMPI_COMM_WORLD_SIZE", "2", "mpirun .* Start them with torchrun"),
    ],
)
def test_a_setting_that_would_change_the_run_is_a_one_line_error(name, value, message, trained, monkeypatch, capsys):
    folder, words = trained
    before = snapshot(folder)
    monkeypatch.setenv(name, value)
    reset()
    saved = [word for word in words if word not in ("--resume", "latest")]  # a resumed run keeps its precision
    saved[saved.index("--output-dir") + 1] = folder.parent / "other"
    fails(saved, message, capsys)
    assert not (folder.parent / "other").exists() and snapshot(folder) == before


def test_a_process_started_without_its_peers_is_refused(story, tmp_path, monkeypatch, capsys):
    places = {"main_process_ip": "127.0.0.1"}
    for asked in ({"num_processes": 2}, {"num_processes": 2, "num_machines": 2, **places}):
        with monkeypatch.context() as patch:
            for name, value in launched("--cpu", **asked).items():
                patch.setenv(name, value)
            words = ["--dataset", story, *SMALL, "--max-steps", 1, "--output-dir", tmp_path / "run"]
            fails(words, "started a single process, .* Start them with torchrun", capsys)
            check_launch(expect_processes=1)
    assert not (tmp_path / "run").exists()
    for name, value in launched("--cpu", num_processes=1).items():
        monkeypatch.setenv(name, value)
    check_launch()


# --- Precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "asked", "best", "expected"),
    [
        ("auto", None, "bf16", "bf16"),
        ("auto", "no", "bf16", "bf16"),  # the default of every launch
        ("auto", "no", "no", "no"),
        ("auto", "bf16", "no", "bf16"),
        ("no", "bf16", "bf16", "no"),
        ("bf16", "no", "no", "bf16"),
        ("bf16", "fp16", "no", "bf16"),
    ],
)
def test_the_precision_of_the_launch_is_used_if_the_recipe_sets_none(own, asked, best, expected, monkeypatch, capsys):
    monkeypatch.setattr(launch, "best_precision", lambda device: best)
    if asked is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert make_accelerator("cpu", own).mixed_precision == expected
    told = f"precision {asked} is ignored: this run uses {expected}." in capsys.readouterr().err
    assert told == (asked not in (None, "no", expected))


def test_a_resumed_run_keeps_its_precision(story, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "best_precision", lambda device: "no")
    words = ["--dataset", story, *SMALL, "--checkpoint-every", 1, "--output-dir", tmp_path / "run"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(*words, "--max-steps", 1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    train(*words, "--max-steps", 2, "--resume", "latest", "--allow-changed", "true")
    said = capsys.readouterr()
    assert said.out.count("precision bf16") == 2 and "fp16 is ignored: this run uses bf16" in said.err
    assert "# precision: bf16" in (tmp_path / "run" / "run.yaml").read_text()


# --- Settings that a launch cannot change ------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_accelerates_accumulation_does_not_divide_gradients(given, tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", accumulation_steps=2, sgd=True)
    reset()
    if given == "variable":
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
        told = Accelerator
    else:
        told = lambda **options: Accelerator(**options, gradient_accumulation_steps=4)  # noqa: E731
    monkeypatch.setattr("tiny_run.Accelerator", told)
    divided = run(tmp_path / "divided", accumulation_steps=2, sgd=True)
    assert all(torch.equal(plain[0][name], divided[0][name]) for name in plain[0])


def without_a_matrix(weights):
    weights.pop("transformer.layers.1.attn.q_proj.weight")


def with_a_strange_name(weights):
    weights["_orig_mod.transformer.norm.weight"] = weights.pop("transformer.norm.weight")


def with_another_shape(weights):
    weights["transformer.norm.weight"] = weights["transformer.norm.weight"][:-1]


@pytest.mark.parametrize("harm", [dict.clear, without_a_matrix, with_a_strange_name, with_another_shape])
def test_a_checkpoint_that_is_not_exactly_the_model_is_not_written(harm, tmp_path):
    model = tiny_model()
    state = {"progress": {"step": 3, "tokens": 0, "position": 0}, "record": {}}
    whole = take_snapshot(model, adamw(model, 1e-2, 0.1), state, "")
    harm(whole.weights)
    with pytest.raises(CheckpointError, match="The model cannot be saved: .* in the file and .* in the model"):
        write_checkpoint(tmp_path, whole)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("regional", [False, True])
def test_a_compiled_model_has_the_checkpoints_of_a_plain_one(regional, tmp_path, monkeypatch):
    run(tmp_path / "plain", checkpoint_every=2, sgd=True)
    plugin = accelerate.utils.TorchDynamoPlugin(backend="eager", use_regional_compilation=regional)
    reset()
    with monkeypatch.context() as patch:
        patch.setattr("tiny_run.Accelerator", lambda **options: Accelerator(**options, dynamo_plugin=plugin))
        run(tmp_path / "compiled", checkpoint_every=2, sgd=True)
    reset()
    step = Path("checkpoints") / "step-2"
    one, other = (load_file(tmp_path / kind / step / "model.safetensors") for kind in ("plain", "compiled"))
    assert one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    check_shapes(tmp_path / "compiled" / step, tiny_model())


def test_a_model_folder_that_is_not_exactly_the_model_replaces_nothing(story, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    words = [
        "--dataset",
        story,
        *SMALL,
        "--mixed-precision",
        "no",
        "--validation-fraction",
        0,
        "--checkpoint-every",
        9,
    ]
    train(*words, "--max-steps", 1, "--output-dir", folder)
    before = snapshot(folder / "model")
    whole = tiny_model.__globals__["ScratchGPTForCausalLM"].save_pretrained

    def save_less(self, *arguments, **options):
        state = {name: value for name, value in self.state_dict().items() if "q_proj" not in name}
        return whole(self, *arguments, **{**options, "state_dict": state})

    monkeypatch.setattr(tiny_model.__globals__["ScratchGPTForCausalLM"], "save_pretrained", save_less)
    reset()
    resume = [*words, "--max-steps", 2, "--output-dir", folder, "--resume", "latest", "--allow-changed", "true"]
    fails(resume, "The model cannot be saved: transformer.layers.0.attn.q_proj", capsys)
    assert snapshot(folder / "model") == before


def test_tensors_are_named_without_wrappers_and_include_adapters():
    model = tiny_model(tie_word_embeddings=False)
    plain = tensor_shapes(model)
    assert plain == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert tensor_shapes(torch.compile(model, backend="eager")) == plain
    add_lora(model, base=None, revision=None, rank=2)
    assert set(tensor_shapes(model)) > {"transformer.layers.0.attn.q_proj.lora_A.default.weight"}


# --- Two machines ------------------------------------------------------------------------------------------------

SHARED = ["--max-steps", 4, "--checkpoint-every", 2, "--eval-batches", 2, "--mixed-precision", "no", "--dropout", 0]
SHARED += ["--eval-every", 2, "--keep-best", "true", "--test-fraction", 0.1]


def machines(*words, count: int = 2, script: str = "training/pretrain.py") -> list[subprocess.CompletedProcess]:
    """Run the recipe on `count` machines with 2 / count processes each, as torchrun starts it on each machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    shared |= {"ACCELERATE_DEBUG_MODE": "true", "ACCELERATE_CPU_AFFINITY": "1"}  # without effect
    started = []
    for rank in range(count):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", count, "--node_rank", rank]
        command += ["--master_addr", "127.0.0.1", "--master_port", port, "--nproc_per_node", 2 // count]
        command += [REPO / script, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*map(str, command)], env=shared, **pipes))
    try:
        ends = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *said)
        for process, said in zip(started, ends, strict=True)
    ]


@pytest.fixture(scope="module")
def one_machine(story, tmp_path_factory):
    """Run two processes on one machine."""
    folder = tmp_path_factory.mktemp("one") / "run"
    words = ["--dataset", story, *SMALL, *SHARED, "--expect-processes", 2]
    (done,) = machines(*words, "--output-dir", folder, count=1)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, words


@pytest.mark.parametrize("way", ["two machines", "FSDP2"])
def test_two_machines_or_a_sharded_model_train_save_resume_and_load(way, one_machine, tmp_path):
    """Two machines on loopback, and Accelerate's FSDP2 on two CPU processes, equal two processes with DDP."""
    folder, words = one_machine
    how = {"two machines": {}, "FSDP2": {"count": 1, "script": "tests/helpers/sharded_recipe.py"}}[way]
    tolerance = {"two machines": 1e-6, "FSDP2": 1e-5}[way]
    words = [*words, "--output-dir", tmp_path / "run"]

    def assert_equal() -> None:
        for name in ("model/model.safetensors", "checkpoints/step-4/model.safetensors"):
            a, b = load_file(folder / name), load_file(tmp_path / "run" / name)
            assert a.keys() == b.keys(), name
            assert all(torch.allclose(a[key], b[key], atol=tolerance) for key in a), name

    done = machines(*words, **how)
    assert not any(end.returncode for end in done), "".join(end.stderr[-2000:] for end in done)
    assert "2 processes" in done[0].stdout and "Written:" in done[0].stdout
    assert_equal()
    for path in ("evaluation.json", "model", "checkpoints/step-4"):
        path = tmp_path / "run" / path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = machines(*words, "--resume", "latest", **how)
    assert not any(end.returncode for end in done), "".join(end.stderr[-2000:] for end in done)
    assert "Resuming from step-2." in done[0].stdout
    assert_equal()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model(some_ids(1, vocab_size=200)).logits.isfinite().all()


def test_machines_that_do_not_share_their_checkpoints_are_refused(trained, monkeypatch, capsys):
    folder, words = trained
    before = snapshot(folder)
    other = {"step": None}  # this machine's disk has no checkpoint
    monkeypatch.setattr(
        "scratch_gpt_training.support.run.setup.gather_object",
        lambda records: [*records, {**records[0], "resume": other}],
    )
    reset()
    fails(words, r"processes of this launch differ in resume.step \(1 -> None\).*on a shared disk", capsys)
    assert snapshot(folder) == before


def test_a_launch_with_fewer_processes_than_expected_is_an_error():
    with pytest.raises(ValueError, match="expect_processes is 2, but 1 started"):
        make_accelerator("cpu", expect_processes=2)


def test_a_missing_device_is_an_error():
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="device='mps' is not available"):
            make_accelerator("mps")
