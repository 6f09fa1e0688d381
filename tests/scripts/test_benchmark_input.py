"""The benchmark of the input runs, and all its sides do what they say. Times are not looked at."""

import json
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
def test_the_input_is_measured(run_python, tmp_path, given):
    if given:
        result = run_python(SCRIPT, "--part=input", "--quick", f"--input_images={tmp_path}")
        message = "input_images is '{}'; it must be a folder with a folder of images for each class"
        assert (result.returncode, result.stderr) == (1, f"error: {message.format(tmp_path)}\n")
        return
    result = run_python(SCRIPT, "--part=input", "--quick", f"--output={tmp_path}/input.json")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "input.json").read_text())["input"]
    assert found["images"] == 8 and 80_000 < found["mean_bytes"] < 130_000  # ImageNet's have 110,000
    assert list(found["per_core"]) == ["ImageSource", "Pillow loop", "decoder alone", "Pillow's decoder alone"]
    assert list(found["all_cores"]) == ["threads", "workers"]
    for name, count in found["cores_needed"].items():
        assert count * found["per_core"]["ImageSource"]["images_per_s"] >= {"H200": 3_000, "v5e-8": 12_000}[name]
    first, last = found["resident_mb"]
    assert 0 < last < 1.5 * first
    assert "| ResNet-50 on | assumed images/s |" in result.stdout
