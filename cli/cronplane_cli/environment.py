"""Reads settings from the environment, and says in a line what is wrong with them."""

import re
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

from cronplane_cli.errors import CommandError

# How the library names the field of a variable that has to be JSON and is not; it does not repeat the value.
_FIELD = re.compile(r'field "(\w+)"')
SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def read_settings(model: type[SettingsT]) -> SettingsT:
    """Read the settings of one role.

    Raises:
        CommandError: one is missing or wrong; the message names its variable, and never a value.

    """
    try:
        return model()
    except SettingsError as error:
        fields = _FIELD.findall(str(error))
        wrong = ", ".join(f"CRONPLANE_{field.upper()}" for field in fields)
        raise CommandError(f"Set these environment variables right: {wrong}: it is not JSON") from error
    except ValidationError as error:
        wrong = "; ".join(f"CRONPLANE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise CommandError(f"Set these environment variables right: {wrong}") from error
