"""What the environment says of processes and folders: a mistake is one line; links that lead nowhere raise nothing."""

import re
from pathlib import Path

import pytest

from edgekd.devices.host import number_of, processes, user_folder
from edgekd.errors import ConfigError
from edgekd.files import real


def test_a_training_has_one_process_unless_torchrun_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, count in ((None, 1), ("", 1), ("1", 1), ("16", 16)):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if text is not None:
            monkeypatch.setenv("WORLD_SIZE", text)
        assert processes() == count


@pytest.mark.parametrize("text", ["x", "0", "-1", "1.0", " 2", "²", "9" * 5000, "nan"])
def test_a_wrong_number_of_processes_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ConfigError, match=r"^WORLD_SIZE: got '.{1,60}; it should be a whole number of at least 1, or"):
        processes()


def test_a_rank_may_be_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert number_of("RANK", default=3, least=0) == 0


def test_a_home_folder_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_folder("~/.cache", "XDG_CACHE_HOME") == Path("/home/me/.cache")
    assert user_folder("a/~b", "XDG_CACHE_HOME") == Path("a/~b")
    said = "XDG_CACHE_HOME: no home folder is known here for '~no-such-user/x'; set it to the whole path of a folder"
    with pytest.raises(ConfigError, match=rf"^{re.escape(said)}$"):
        user_folder("~no-such-user/x", "XDG_CACHE_HOME")


def test_links_are_followed_where_they_lead_somewhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert real(tmp_path / "link") == (tmp_path / "file").resolve()
    assert real(tmp_path / "loop").name == "loop"
