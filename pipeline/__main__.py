"""`python -m pipeline`, and the command `pipeline`."""

from pipeline import cli, process


def command() -> None:
    process.run(cli.main)


if __name__ == "__main__":
    command()
