"""`algate completion`: the script with which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gateway.cli.options import unread_config_option
from gateway.model.errors import AlgateError

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@unread_config_option
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    The Debian package installs the scripts of all three shells.

    \b
    Examples:
      source <(algate completion bash)
      algate completion fish > ~/.config/fish/completions/algate.fish
    """
    click.echo(completion_script(context.find_root().command, shell))


def completion_script(command: click.Command, shell: str) -> str:
    """Return the completion script for a shell. Raises AlgateError if the installed shell is too old for it."""
    kind = get_completion_class(shell)
    if kind is None:
        raise AlgateError(f"completion: there is nothing for {shell}")
    try:
        return kind(command, {}, "algate", "_ALGATE_COMPLETE").source()
    except RuntimeError as error:
        raise AlgateError(f"completion: {error}") from error
