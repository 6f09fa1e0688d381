"""What all scripts share: errors in one line, and the compilation cache."""

import os
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from bsjax import InvalidArgument
from bsjax.loop import DivergedError
from experiments.runs import StoppedEarly

_CACHE_DIR = flags.DEFINE_string(
    "compilation_cache_dir", "~/.cache/bsjax/compilation", "Folder that keeps compiled programs for the next run."
)
_CACHE = flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs.")


def run(main: Callable[[], None]) -> None:
    """Runs a script's main: bad input exits with 2, a run that diverges with 1, each with one line."""

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise InvalidArgument("argument", argv[1], "a flag, such as --seed=1", f"--{argv[1].lstrip('-')}")
            if _CACHE.value:
                use_compilation_cache(_CACHE_DIR.value)
            logging.set_verbosity(logging.WARNING)  # jax tells at INFO which accelerators there are not
            main()
        except InvalidArgument as error:
            sys.exit(_fail(f"--{error}", 2))
        except DivergedError as error:
            sys.exit(_fail(str(error), 1))
        except StoppedEarly as stopped:
            print(stopped)
        except KeyboardInterrupt:
            sys.exit(_fail("interrupted", 130))

    for module, flags_there in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):
            for flag in flags_there:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # for --helpshort
    app.run(guarded)


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, for this process and those it starts."""
    for name, value in (
        ("jax_compilation_cache_dir", os.path.expanduser(folder)),
        ("jax_persistent_cache_min_compile_time_secs", 0.1),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
