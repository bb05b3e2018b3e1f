"""pipeline export ENCODER FOLDER: writes a trained backbone in the formats that timm, torchvision and the Hugging Face
Hub load."""

from collections.abc import Sequence

from pipeline.commands import Parser, parse, path

ABOUT = """Writes model.safetensors, config.json and a model card. ENCODER: the folder of a pretraining stage, such as
runs/moco-1a2b3c4d, or of one of its snapshots."""


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="pipeline export", description=ABOUT, allow_abbrev=False)
    parser.add_argument("encoder", type=path, metavar="ENCODER", help="a folder with model.safetensors")
    parser.add_argument("out", type=path, metavar="FOLDER", help="where to")
    parser.add_argument("--onnx", action="store_true", help="model.onnx too: uint8 images to features, any encoder")
    options = parse(parser, words)
    from pipeline.evaluation import exports

    print(f"{options.out}: {', '.join(exports.write(options.encoder, options.out, options.onnx, print))}")
    return 0
