"""The command line: aafit study | run | train | identify | show | compare | report."""

from importlib import import_module

import click

from aafit.errors import needs_extra
from aafit.version import __version__

GROUPS = {
    "Any network": {"study": ("study", "Study the activations of any network, or of a finished run's.")},
    "The paper's experiment": {
        "run": ("run", "Run a suite: all its runs, then tables, figures and a report."),
        "train": ("train", "One run, by the authors' command line."),
        "identify": ("identify", "Replace activations of a finished run and identify them."),
    },
    "Finished runs": {
        "report": ("run", "Write the tables, figures and report of a suite again."),
        "show": ("show", "Draw the activations before and after tuning."),
        "compare": ("show", "Compare the networks of two finished runs."),
    },
}
"""The commands, each with the module that has a function of the command's name, and its summary."""


class CommandLine(click.Group):
    """The commands in their groups; the module of each is imported when it is used, which can take seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in GROUPS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = [commands[cmd_name] for commands in GROUPS.values() if cmd_name in commands]
        if not found:
            return None
        module, _ = found[0]
        try:
            with needs_extra(f"aafit {cmd_name}", "cli" if cmd_name == "study" else "experiment"):
                command: click.Command = getattr(import_module(f"aafit.experiment.cli.{module}"), cmd_name)
        except ImportError as error:
            raise click.UsageError(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()], col_max=12)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Learn the activation functions of trained networks: replace, identify or tune, compare, draw.

    `aafit COMMAND --help` describes a command.
    """


if __name__ == "__main__":
    main()
