"""Unpack Hugging Face's test mixins for the installed transformers version in `.conformance/`.

    python tests/conformance/fetch.py

transformers' wheel has no tests; its source distribution has the common ones. pip downloads that (it reads the
metadata, and compiles and installs nothing), and only the folder `tests/` is kept. Git ignores it: Hugging Face's code
is run here, never copied into this repository.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


FOLDER = Path(__file__).resolve().parents[2] / ".conformance"
DONE = FOLDER / "VERSION"  # written last: an incomplete folder does not count

# Files that the mixins import or read and the source distribution lacks, with their replacements.
STAND_INS = {
    "tests/__init__.py": "",
    "src/transformers/__init__.py": "",  # the mixins execute it, then use the installed transformers
    "tests/distributed_testing_utils.py": "from stand_ins import *\n",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "from stand_ins import ExportTesterMixin\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "from stand_ins import GenerationTesterMixin\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "from stand_ins import config_common_kwargs\n",
}


def unpacked_version() -> str | None:
    """Return the version of the tests in `.conformance/`, or None."""
    return DONE.read_text().strip() if DONE.exists() else None


def fetch(wanted: str) -> None:
    """Replace `.conformance/` by the tests of transformers `wanted`; RuntimeError if pip finds no sources."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--no-binary", "transformers", "--quiet", "--dest", folder]
        pip = [sys.executable, "-m", "pip", "download", *options, f"transformers=={wanted}"]
        if subprocess.run(pip).returncode:
            raise RuntimeError(
                f"pip could not download the sources of transformers {wanted}: `{' '.join(pip)}`. A released version "
                "and an index that keeps source distributions are needed; pip's own message is above."
            )
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        shutil.rmtree(FOLDER, ignore_errors=True)
        with tarfile.open(archive) as sources:
            for member in sources.getmembers():
                _, _, name = member.name.partition("/")  # without the top folder, transformers-<version>
                if member.isfile() and name.startswith("tests/"):
                    member.name = name
                    sources.extract(member, FOLDER, filter="data")
    for name, text in STAND_INS.items():
        path = FOLDER / name
        if not path.exists():  # a later source distribution may include the file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    DONE.write_text(wanted + "\n")


def main() -> None:
    """Fetch once per transformers version."""
    wanted = version("transformers")
    if unpacked_version() == wanted:
        print(f"The tests of transformers {wanted} are already in {FOLDER}.")
        return
    fetch(wanted)
    print(f"Unpacked the tests of transformers {wanted} in {FOLDER}.")


if __name__ == "__main__":
    main()
