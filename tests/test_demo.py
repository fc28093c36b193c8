"""`tk demo --quick`: the whole chain as a stranger runs it, and once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import orjson
import pytest

import tk.runtime.records
from tk.cli.demo import QUICK, Arch, steps


def test_steps__shipped_models_are_exported_not_trained(tmp_path: Path) -> None:
    own, shipped = (list(steps(tmp_path, QUICK, arch)) for arch in (Arch.compact, Arch.words))
    assert own == list(steps(tmp_path, QUICK)), "compact is the default"
    lines = [step.arguments for step in shipped]
    assert [line[1] for line in lines if line[0] == "train"] == ["embedder"]
    exported = [line[1] for line in lines if line[0] == "export"]
    assert exported == [
        *("tk/grounding-dino-tools", "tk/sam2-tools"),
        str(tmp_path / "runs" / "embedder"),
    ]
    # The rest is the same, in the same order, but for the prompt.
    left = [line for line in lines if line[0] not in ("train", "export")]
    same = [step.arguments for step in own if step.arguments[0] not in ("train", "export")]
    asked = [line for line in left if "--prompt" in line]
    assert [line[:2] for line in asked] == [("annotate", asked[0][1]), ("bench", "annotator")]
    assert [line[:-2] if line in asked else line for line in left] == same
    for tool in ("wrench", "pliers", "cutters", "screwdriver", "brace", "opener"):
        assert f"{tool} ." in asked[0][-1]


def test_demo__unknown_arch_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tk.cli", "demo", "--arch", "yolo", "--out", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "grounding-dino-sam2" in done.stderr
    assert not (tmp_path / "demo").exists()


def run_demo(folder: Path) -> str:
    command = [sys.executable, "-m", "tk.cli", "demo", "--quick", "--out", "demo"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_demo__whole_chain_and_again(tmp_path: Path) -> None:
    output = run_demo(tmp_path)

    demo = tmp_path / "demo"
    assert output.count("\n$ tk ") == 13
    for task in ("detector", "segmenter", "embedder"):
        assert (demo / "bundles" / task / "manifest.json").is_file()
    assert {p.name for p in (demo / "gallery").iterdir()} == {"gallery.json", "prototypes.npz"}
    records = orjson.loads((demo / "out" / "predictions.json").read_bytes())
    schema = Path(tk.runtime.records.__file__).with_name("predictions.schema.json")
    jsonschema.validate(records, orjson.loads(schema.read_bytes()))
    truth = json.loads((demo / "scenes" / "held-out" / "annotations.json").read_text("utf-8"))
    assert [r["image"] for r in records] == sorted(i["file_name"] for i in truth["images"])
    pictures = list((demo / "out" / "pictures").iterdir())
    assert len(pictures) == len(records)
    assert (demo / "out" / "report.html").stat().st_size > 5000
    results = json.loads((demo / "bench" / "results.json").read_text("utf-8"))
    assert results["problems"] == [] and results["quality"] is not None
    for words in ("AP50", "mask IoU", "class accuracy", "unknown", "report.html"):
        assert words in output

    stamp = (demo / "bundles" / "detector" / "manifest.json").stat().st_mtime_ns
    again = run_demo(tmp_path)
    assert again.count("finished earlier") == 13
    assert (demo / "bundles" / "detector" / "manifest.json").stat().st_mtime_ns == stamp
