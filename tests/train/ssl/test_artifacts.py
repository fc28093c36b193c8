from __future__ import annotations

import hashlib
from pathlib import Path

from tk.train.ssl.artifacts import note_artifact, read_artifacts


def test_note_artifact__replaces_by_name_and_hashes(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "backbone.pt"
    run.mkdir()
    assert read_artifacts(run) == []
    (run / "last.pt").write_bytes(b"one")
    outside.write_bytes(b"weights")
    note_artifact(run, "checkpoint_last", run / "last.pt", {"step": 1})
    note_artifact(run, "backbone", outside, {"stream": "face"})
    (run / "last.pt").write_bytes(b"two!")
    note_artifact(run, "checkpoint_last", run / "last.pt", {"step": 2})
    backbone, last = read_artifacts(run)
    assert (last["path"], last["metadata"], last["bytes"]) == ("last.pt", {"step": 2}, 4)
    assert last["sha256"] == hashlib.sha256(b"two!").hexdigest()
    assert backbone["path"] == str(outside) and backbone["metadata"] == {"stream": "face"}
