"""`python -m benchmarks [NAME…]`: measure, and print one JSON object a line.

A NAME selects every line whose name begins with it: `sketch_update`, `sketch_update/16x200000/image`, `ingest`, …
Fields: name, value, unit, ratio (value over that of `against`, as better-is-larger), against. Nothing is asserted here:
figures are read by people, and the machine and date stand beside them in docs/BENCHMARKS.md.
"""

import argparse
import importlib
import json

# The first part of a name, and the module that measures it.
MODULES = {
    "sketch_update": "benchmarks.sketch",
    "merge": "benchmarks.sketch",
    "gpu": "benchmarks.gpu",
    "recovery": "benchmarks.recovery",
    "ingest": "benchmarks.ingest",
    "scaling": "benchmarks.ingest",
    "reading": "benchmarks.reading",
    "replay": "benchmarks.replay",
    "dqn": "benchmarks.dqn",
    "rounds": "benchmarks.rounds",
    "attention": "benchmarks.attention",
    "patches": "benchmarks.patches",
    "apga": "benchmarks.apga",
    "search": "benchmarks.search",
    "segmentation": "benchmarks.segmentation",
    "streams": "benchmarks.streams",
    "poisoned": "benchmarks.poisoned",
    "privacy": "benchmarks.privacy",
    "masking": "benchmarks.masking",
    "sites": "benchmarks.sites",
    "train_gpu": "benchmarks.train_gpu",
    "dask": "benchmarks.spread",
}


def main() -> None:
    """Run the wanted benchmarks, each module once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MODULES)}, or a longer name")
    wanted = parser.parse_args().names
    unknown = [name for name in wanted if name.split("/")[0] not in MODULES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(MODULES)}")
    modules = dict.fromkeys(MODULES[name.split("/")[0]] for name in wanted or MODULES)
    for module in modules:
        for line in importlib.import_module(module).run():
            if not wanted or any(line["name"].startswith(name) for name in wanted):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
