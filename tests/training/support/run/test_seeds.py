"""Test runs of several seeds."""

from types import SimpleNamespace

from scratch_gpt_training import classify
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.run import output_dir, seeds


def test_run_yaml_has_the_current_number_of_seeds_if_the_first_is_finished(tmp_path, monkeypatch):
    def launch(count: int):
        words = ["--output-dir", str(tmp_path), "--resume", "latest", "--seeds", str(count)]
        return command_line.parse(classify.ClassifyRun, words)

    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, free_memory=lambda: None)
    monkeypatch.setattr(seeds, "run_task", lambda *_: alone)  # all seeds are finished: none is run
    for name in ("open_run", "summarize", "close_run"):
        monkeypatch.setattr(seeds, name, lambda *_: None)
    output_dir.write_run_yaml(launch(2), tmp_path, {"runs": ["seed-0", "seed-1"]})
    seeds.run_seeds(launch(3), None)
    text = (tmp_path / "run.yaml").read_text()
    assert "\nseeds: 3\n" in text and "# - seed-2\n" in text
