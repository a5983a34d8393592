"""The ``hyperlapse`` command. Each subcommand lives in a module of its own, imported only when it is used, so that
``hyperlapse run`` starts without the predictor's imports.
"""

from __future__ import annotations

import importlib
import sys

import click

COMMANDS = {
    "bench": "hyperlapse.cli.bench",
    "clock": "hyperlapse.cli.clock",
    "compare": "hyperlapse.cli.compare",
    "coordinator": "hyperlapse.cli.coordinator",
    "devices": "hyperlapse.cli.devices",
    "doctor": "hyperlapse.cli.doctor",
    "engines": "hyperlapse.cli.engines",
    "models": "hyperlapse.cli.models",
    "predict": "hyperlapse.cli.predict",
    "run": "hyperlapse.cli.run",
    "top": "hyperlapse.cli.top",
    "trace": "hyperlapse.cli.trace",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS) if args else []
            if near:
                raise click.UsageError(f"{error.format_message()} Did you mean {', '.join(near)}?", ctx) from None
            raise


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hyperlapse")
def cli() -> None:
    """Run unmodified LLM-serving code with no GPU, on a virtual clock."""


def main() -> None:
    """Entry point of the console script. Exit status: 2 for wrong input, 1 for a failure, else the command's own."""
    sys.exit(cli(standalone_mode=True))


if __name__ == "__main__":
    main()
