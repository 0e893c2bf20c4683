"""Generate invalid command lines and files for tests/training/test_bad_input.py and `make chaos`."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import strategies as st

from scratch_gpt_training import pretrain
from scratch_gpt_training.support import options as recipe


FIELDS = {item.name: item for item in fields(pretrain.PretrainRun)}
WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=3, max_size=12)
LIMITS = recipe.OPTION_LIMITS


def _is(kind, item) -> bool:
    return item.type is kind or kind in get_args(item.type)


NUMBERS = [name for name, item in FIELDS.items() if _is(int, item) or (_is(float, item) and item.type is not bool)]
INTEGERS = [name for name, item in FIELDS.items() if _is(int, item)]
TRUTHS = [name for name, item in FIELDS.items() if item.type is bool]
CHOICES = [name for name, item in FIELDS.items() if getattr(item.type, "__origin__", None) is Literal]

command_lines = st.one_of(
    WORDS.filter(lambda word: word not in FIELDS).map(lambda word: [f"--{word}", "1"]),
    st.tuples(st.sampled_from(NUMBERS), WORDS.filter(lambda w: w not in ("nan", "inf", "infinity"))).map(
        lambda pair: [f"--{pair[0]}", pair[1]]
    ),
    st.tuples(st.sampled_from(INTEGERS), st.floats(0.1, 0.9)).map(lambda pair: [f"--{pair[0]}", str(pair[1])]),
    st.tuples(st.sampled_from(sorted(set(NUMBERS) & set(LIMITS))), st.integers(1, 10**9)).map(
        lambda pair: [f"--{pair[0]}", str(LIMITS[pair[0]][0] - pair[1])]
    ),
    st.tuples(st.sampled_from(sorted(set(NUMBERS) & set(LIMITS))), st.integers(1, 10**30)).map(
        lambda pair: [f"--{pair[0]}", str(LIMITS[pair[0]][1] + pair[1])]
    ),
    st.tuples(st.sampled_from(TRUTHS), WORDS.filter(lambda w: w not in ("yes", "true", "t", "y", "no", "false"))).map(
        lambda pair: [f"--{pair[0]}", pair[1]]
    ),
    st.tuples(st.sampled_from(CHOICES), WORDS.filter(lambda w: w not in ("auto", "ask", "stop"))).map(
        lambda pair: [f"--{pair[0]}", f"{pair[1]}_x"]
    ),
    st.sampled_from(NUMBERS).map(lambda name: [f"--{name}"]),  # the value is missing
    WORDS.map(lambda word: ["--preset", f"{word}_x"]),
    WORDS.map(lambda word: ["--config-overrides", f"{word}_x=1"]),
    WORDS.map(lambda word: ["--dataset", f"/no/where/{word}.txt"]),
    WORDS.map(lambda word: ["--resume", f"/no/where/{word}"]),
)


@st.composite
def configs(draw):
    """Generate the text of a file that is not valid YAML, or not a valid config of a run."""
    return draw(
        st.one_of(
            WORDS.filter(lambda word: word not in FIELDS).map(lambda word: f"{word}: 1"),
            st.sampled_from(NUMBERS).map(lambda name: f"{name}: [1, 2]"),
            st.sampled_from(NUMBERS).map(lambda name: f"{name}: {{a: 1}}"),
            st.tuples(st.sampled_from(NUMBERS), WORDS).map(lambda pair: f"{pair[0]}: {pair[1]}_x"),
            st.text(alphabet="{}[]:,&*!|>%@`", min_size=2, max_size=9).map(lambda text: f"seed: 1\n{text} - : ]["),
            WORDS.map(lambda word: f"- {word}"),
        )
    )


@st.composite
def data_files(draw):
    """Generate (suffix, bytes) of a file without usable text, whatever the suffix is."""
    nothing = st.sampled_from([b"", b"\n", b"   \n\n"])
    noise = st.binary(min_size=1, max_size=200).map(lambda content: b"\xff\xfe\x00" + content)
    other = WORDS.map(lambda word: json.dumps({f"{word}_x": 1}).encode())
    kind = draw(st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".parquet"]))
    choices = {".txt": [nothing], ".md": [nothing], ".csv": [nothing], ".parquet": [nothing, noise]}
    return kind, draw(st.one_of(*choices.get(kind, [nothing, noise, other])))


def fails(arguments, message, capsys, main=pretrain.main):
    """Check that main(arguments) exits with code 2 and prints one line that matches."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        main([str(argument) for argument in arguments])
    assert ending.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), lines


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
