"""Test locations: a plain name has defaults, and local files are distinguished from everything else."""

from scratch_gpt.data.sources.location import EMBEDDED, Location, locate


def test_a_plain_name_is_a_location_with_defaults(tmp_path):
    assert locate("a/b") == Location("a/b", None, "train", None) and locate(EMBEDDED) == Location()
    other = Location("a/b", "c", "test", "v1")
    assert locate(other) is other


def test_local_files_are_distinguished_from_other_locations(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "manifest.json").write_text('{"format_version": 1}')
    assert Location(str(tmp_path / "a.txt")).is_files and Location(str(tmp_path)).is_files
    assert not Location(str(prepared)).is_files
    assert not Location().is_files and not Location("user/name").is_files
