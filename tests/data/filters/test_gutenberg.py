"""Test that Project Gutenberg's header and license are stripped, and that other texts are not changed."""

import time

import pytest

from scratch_gpt.data.filters.gutenberg import strip_gutenberg


HEADER = "The Project Gutenberg EBook of Emma, by Jane Austen\n\nThis eBook is for the use of anyone anywhere.\n\n"
LICENSE = (
    "\n\nUpdated editions will replace the previous one.\nTHE FULL PROJECT GUTENBERG LICENSE\n" + "Terms.\n" * 300
)
BODY = "     EMMA\n\nCHAPTER I\n\nEmma Woodhouse, handsome, clever, and rich.\n"
OLD = "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*"


def book(
    start="*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***", end="*** END OF THE PROJECT GUTENBERG EBOOK EMMA ***"
):
    return f"{HEADER}{start}\n\n\n{BODY}\n\n{end}{LICENSE}"


STARTS = (
    "*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***",
    "*** START OF THIS PROJECT GUTENBERG EBOOK EMMA ***",
    "***START OF THE PROJECT GUTENBERG EBOOK EMMA***",
    "*** START OF THE PROJECT GUTENBERG EBOOK, EMMA",
    "*** START OF THE PROJECT GUTENBERG EBOOK EMMA, WITH A TITLE\nOF SEVERAL\nLINES ***",
    "*** START OF THIS COPYRIGHTED PROJECT GUTENBERG EBOOK EMMA ***",
    OLD,
    "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*",
    f"{OLD}\n\n*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***",
    "*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***\n\nProduced by A Volunteer and the\nDistributed Proofreaders",
    "*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***\n\n[This etext was prepared by A Volunteer.]",
)
ENDS = (
    "*** END OF THE PROJECT GUTENBERG EBOOK EMMA ***",
    "***END OF THIS PROJECT GUTENBERG EBOOK EMMA***",
    "End of the Project Gutenberg EBook of Emma, by Jane Austen\n\n*** END OF THIS PROJECT GUTENBERG EBOOK EMMA ***",
    "End of Project Gutenberg's Emma, by Jane Austen",
    "End of The Project Gutenberg Etext of Emma",
    "Ende dieses Projekt Gutenberg Etextes Faust",
    "Fin de Project Gutenberg's Candide, by Voltaire",
    "Fin del Proyecto Gutenberg de Don Quijote",
    "Fine del Progetto Gutenberg, I promessi sposi",
    "Einde van het Project Gutenberg EBook van Max Havelaar",
)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("line_end", ("\n", "\r\n"))
def test_header_and_credits_are_stripped(start, line_end):
    assert strip_gutenberg(book(start).replace("\n", line_end)).rstrip() == BODY.replace("\n", line_end).rstrip()


@pytest.mark.parametrize("end", ENDS)
def test_the_license_is_stripped(end):
    assert strip_gutenberg(book(end=end)) == BODY


def test_parts_may_be_missing():
    start = "*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***\n"
    end = "*** END OF THE PROJECT GUTENBERG EBOOK EMMA ***\n"
    for text in (start + BODY, BODY + end, start + BODY + end, HEADER + start + BODY, f"\ufeff{HEADER}{start}{BODY}"):
        assert strip_gutenberg(text) == BODY
    assert strip_gutenberg(f"{BODY}End of this Project Gutenberg Etext of Emma\n\n") == BODY
    assert strip_gutenberg(BODY + end + LICENSE + "Visit www.gutenberg.org") == BODY
    assert strip_gutenberg(start + end) == strip_gutenberg(HEADER + start + "\n \n" + end + LICENSE) == ""


def test_a_small_print_below_the_book_is_stripped_with_the_license():
    assert strip_gutenberg(f"{book()}{OLD}\n\n") == BODY


def test_each_of_several_books_in_a_text_is_stripped():
    other = book().replace("EMMA", "PERSUASION")
    assert strip_gutenberg(book() + other) == f"{BODY}\n{BODY.replace('EMMA', 'PERSUASION')}"


MENTIONS = {
    "without markers": BODY,
    "empty": "",
    "in a sentence": f'{BODY}Look for "*** START OF THE PROJECT GUTENBERG" and "*** END OF THE PROJECT GUTENBERG".\n',
    "in code": 'MARKERS = (\n    "*** START OF THE PROJECT GUTENBERG",\n    "*** END OF THE PROJECT GUTENBERG",\n)\n',
    "as an example": "How to clean books\n\nFiles of Project Gutenberg have a header that ends with\n\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nand a license, which begins with\n\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\nSo it is easy to strip the license of Project Gutenberg.\n",
    "only the end": f"{BODY}*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\nis the line before the license.\n",
    "far inside a text": HEADER + BODY * 5000 + "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n" + BODY,
    "a book about it": f"{BODY}The end of the Project Gutenberg era came.\nFinally, Project Gutenberg closed.\n{BODY}",
    "an end before a start": f"*** END OF THE PROJECT GUTENBERG\n{BODY}*** START OF THE PROJECT GUTENBERG\n{BODY}"
    "*** START OF THE PROJECT GUTENBERG\n",
}


@pytest.mark.parametrize("name", MENTIONS)
def test_a_text_that_only_mentions_the_markers_is_not_changed(name):
    assert strip_gutenberg(MENTIONS[name]) == MENTIONS[name]


def test_time_is_linear():
    start = "*** START OF THE PROJECT GUTENBERG\n"
    end = "*** END OF THE PROJECT GUTENBERG\n"
    for text in (
        " ",
        "\n",
        "\ufeff",
        start,
        end,
        end + start,
        f"{end}license of gutenberg\n{start}",
        "End of ",
        "***",
    ):
        begin = time.process_time()
        strip_gutenberg(text * (10**6 // len(text)))
        assert time.process_time() - begin < 5, text


def test_books_without_markers_are_not_changed(data):
    for file in sorted((data / "books").glob("*.txt")):
        text = file.read_text(encoding="utf-8")
        assert strip_gutenberg(text) == text, file.name
    etext = (data / "near_duplicates" / "frankenstein_frank10a.txt").read_text(encoding="utf-8")
    assert etext.startswith(strip_gutenberg(etext).rstrip()) and "Gutenberg" not in strip_gutenberg(etext)
