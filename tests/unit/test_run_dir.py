"""What an instance that was killed has left in the run directory."""

from __future__ import annotations

from pathlib import Path

from gateway.supervisor.run_dir import RunDir


def test_what_a_killed_instance_has_left_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.mkdir()
    (program / "module.py").touch()
    path = tmp_path / "run"
    links = path / "code-4242"
    links.mkdir(parents=True)
    (links / "gateway").symlink_to(program)
    (path / "worker-0.sock").touch()
    (path / "notes").touch()
    run_dir = RunDir(str(path))
    assert sorted(file.name for file in path.iterdir()) == ["lock", "notes"]
    assert (program / "module.py").exists()
    run_dir.remove()
