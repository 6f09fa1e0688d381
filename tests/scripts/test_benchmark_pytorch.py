"""The comparison with PyTorch, as far as it goes without PyTorch. With it, `--part=pytorch --check` is the test."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def run(program):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, 'scripts')\n{program}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_without_pytorch_it_names_the_extra():
    program = """
import importlib.util, runpy
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "torch" else find(name)
sys.argv = ["scripts/benchmark.py", "--part=pytorch"]
runpy.run_path("scripts/benchmark.py", run_name="__main__")
"""
    result = run(program)
    assert result.returncode == 1
    assert result.stderr == (
        "error: part is 'pytorch'; it must be left out without PyTorch: pip install bsjax[benchmark]\n"
    )


def test_the_table_has_every_row_and_what_was_left_out():
    program = """
import benchmark_pytorch
row = {"model": "mlp", "batch_size": 2048, "engine_images_per_second": 1234.5, "pytorch_images_per_second": 1000.0,
       "pytorch_form": "eager", "ratio": 1.2345, "ratio_quartiles": [1.2, 1.25]}
print(benchmark_pytorch.markdown({"rows": [row], "left_out": ["cnn, batch 8: too slow"]}))
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert "\n| mlp | 2,048 | 1,234 | 1,000 | eager | 1.23 (1.20-1.25) |\n" in result.stdout
    assert result.stdout.endswith("\n\nLeft out: cnn, batch 8: too slow.\n")


def test_the_table_of_tokens_has_a_ratio_for_each_side():
    program = """
import benchmark_tokens
row = {"batch_size": 1200, "tokens_per_second": {"engine": 1234.5, "bare loop": 1000.0},
       "forms": {"engine": "microbatch 8", "bare loop": "one program"},
       "engine_over": {"bare loop": [1.2, 1.2345, 1.25]}}
print(benchmark_tokens.markdown([row]))
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n| 1,200 | 1,234 (microbatch 8) | 1,000 (one program) | 1.23 (1.20-1.25) |\n")
