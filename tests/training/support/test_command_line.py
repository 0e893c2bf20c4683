"""Test the command line: messages of the library that name arguments are printed with flags."""

from dataclasses import dataclass

import pytest

from scratch_gpt_training.support.command_line import name_flags, one_clear_line, parse


NAMES = {"text_column", "max_length", "stride", "seed", "overwrite", "output_dir", "resume"}


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("max_length 9 is more than the context.", "--max-length 9 is more than the context."),
        ("Pass `max_length` or output_dir.", "Pass --max-length or --output-dir."),
        ("Give text_column=.", "Give --text-column."),
        ("Give text_column='the text'.", "Give --text-column 'the text'."),
        ("Pass resume='latest'.", "Pass --resume latest."),
        ("With output_dir=/a/b.c and resume='latest'.", "With --output-dir /a/b.c and --resume latest."),
        ("With output_dir='a/b-1.c', or output_dir=a/b.", "With --output-dir a/b-1.c, or --output-dir a/b."),
        ("Pass stride=4, seed=-1 or overwrite=True.", "Pass --stride 4, --seed -1 or --overwrite true."),
        ("--max-length is a text_column's.", "--max-length is a --text-column's."),
        ("The parents' max_length isn't theirs.", "The parents' --max-length isn't theirs."),
    ],
)
def test_arguments_become_flags(message, printed):
    assert name_flags(message, NAMES) == printed


@pytest.mark.parametrize(
    "message",
    [
        "The stride and the seed are the model's; stride 4 is small.",  # these are also ordinary words
        "The model's max_length is 3.",
        "It has the columns 'max_length', \"text_column=\" and `{max_length: 3}`.",
        "runs/max_length/a b.md, ./text_column, C:\\output_dir",
        "https://example.org/?max_length=3&stride=4",
        "max_length.txt, config.max_length, max_length(3), my_max_length, max_length_2, no_field=3",
    ],
)
def test_quoted_text_paths_and_other_names_stay(message):
    assert name_flags(message, NAMES) == message


@dataclass(frozen=True)
class Options:
    text_column: str = "text"


@pytest.mark.parametrize("piece", ["[", "x", "'x ", "`", "/", "x-", '"\\'])
def test_a_long_message_takes_linear_time(piece):
    text = 300_000 // len(piece) * piece
    assert name_flags(text, NAMES) == text


def test_the_printed_line_has_the_flags_of_the_parsed_options(capsys):
    with pytest.raises(SystemExit), one_clear_line():
        parse(Options, [])
        raise ValueError("text_column is not max_length")
    assert capsys.readouterr().err == "error: --text-column is not max_length\n"


def test_a_file_that_cannot_be_read_keeps_its_name(capsys):
    with pytest.raises(SystemExit), one_clear_line():
        parse(Options, [])
        raise FileNotFoundError(2, "No such file", "text_column")
    assert "'text_column'" in capsys.readouterr().err
