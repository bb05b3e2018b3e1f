"""pipeline embed ENCODER IMAGES OUT.parquet: writes an encoder's features of any images."""

import json
from collections.abc import Sequence

from pipeline import lines
from pipeline.commands import Parser, parse, path, positive
from pipeline.errors import ConfigError

ABOUT = """Writes a row for every image: name, split, label, class, features. Images of another size are resized and
cut as the probe does it; unreadable ones are left out, and listed beside the file."""


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline embed", description=ABOUT, allow_abbrev=False)
    parser.add_argument("encoder", type=path, metavar="ENCODER", help="the folder of a stage that makes an encoder")
    parser.add_argument("images", type=path, metavar="IMAGES", help="a folder of images, or of packed shards")
    parser.add_argument("out", type=path, metavar="OUT.parquet", help="the file to write")
    parser.add_argument("--threads", type=positive, default=1, help="of the forward pass (default: 1)")
    parser.add_argument("--max-bad", type=int, default=100, help="unreadable images listed before it gives up")
    options = parse(parser, words)
    if options.out.suffix != ".parquet":
        raise ConfigError(f"{options.out}: the file is written as Parquet; expected a name that ends in .parquet")
    from pipeline.evaluation import embed, encoders
    from pipeline.objectives import models
    from pipeline.world import World

    folder = options.encoder
    encoder = encoders.load(folder)
    record = folder / "artifact.json"
    key = json.loads(record.read_text()).get("key", "") if record.exists() else ""
    about = {"encoder": folder.name, "key": key, "spec": (folder / models.SPEC).read_text()}
    device = World(options.threads).device
    count = embed.embed(encoder, options.images, options.out, device, about, options.max_bad, lines.say)
    print(f"{options.out}: features of {count} images")
    return 0
