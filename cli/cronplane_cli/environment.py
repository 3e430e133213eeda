"""Reads settings from the environment, and says in a line what is wrong with them."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from cronplane_cli.errors import CommandError

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def read_settings(model: type[SettingsT]) -> SettingsT:
    """Read the settings of one role.

    Raises:
        CommandError: one is missing or wrong; the message names its variable, and never a value.

    """
    try:
        return model()
    except ValidationError as error:
        wrong = "; ".join(f"CRONPLANE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise CommandError(f"Set these environment variables right: {wrong}") from error
