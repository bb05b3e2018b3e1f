"""pipeline check SHARDS: compares every byte with the recorded checksums, and lists all damage."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.commands import Parser, parse, path, positive
from pipeline.errors import ConfigError, DataError


def main(words: Sequence[str]) -> int:
    about = "Finds every damaged or missing shard and image; exit code 65 if there are any."
    parser = Parser(prog="pipeline check", allow_abbrev=False, description=about)
    named = "a folder of packed or indexed shards, or of images; or a pattern of tars"
    parser.add_argument("shards", metavar="SHARDS", help=named)
    lasting = "leave out what is found from now on: the list is part of the set's fingerprint"
    parser.add_argument("--quarantine", action="store_true", help=lasting)
    texts = "also what trainings could not read: their bad-*.jsonl"
    parser.add_argument("--bad-samples", nargs="+", type=path, default=[], metavar="FILE", help=texts)
    parser.add_argument("--threads", type=positive, default=1)
    options = parse(parser, words)
    location = path(options.shards)
    from pipeline.data import check, patterns
    from pipeline.data.shards import MANIFEST
    from pipeline.data.sources.folder import ImageFolder

    described = (location / MANIFEST).exists() or next(location.glob("*.idx"), None)
    if location.is_dir() and not described and next(location.glob("*.tar"), None):
        raise ConfigError(f"{patterns.unmatched(options.shards)}, or make a set of them first, with `pipeline index`")
    if location.is_dir() and not described:
        listing = ImageFolder.at(location).listing()
        for line in listing.lines():
            print(line)
        stream = check.undecodable(listing, options.threads)
    elif location.is_dir() or "://" in options.shards:
        stream = check.problems(options.shards if "://" in options.shards else location, options.threads)
    elif paths := patterns.tars(options.shards):
        absent = [check.Problem(Path(name).name, None, "missing") for name in patterns.missing(options.shards)]
        stream = (p for part in (absent, check.unindexed(paths, options.threads)) for p in part)
    else:
        raise ConfigError(f"no such folder, and {patterns.unmatched(options.shards)}")
    problems = []
    for problem in stream:
        print(problem, flush=True)
        problems.append(problem)
    problems += check.from_logs(options.bad_samples)
    if options.quarantine and problems:
        print(f"quarantined: {check.quarantine(location, problems)}")
    if problems:
        raise DataError(f"{options.shards}: {len(problems)} problems")
    how = "every byte is as it was written" if described or not location.is_dir() else "every image can be read"
    print(f"{options.shards}: {how}")
    return 0
