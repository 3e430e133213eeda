"""What a Secret lacks, and what is put there."""

from base64 import b64decode, b64encode

import pytest

from cronplane_cli.credentials_role import missing_keys
from cronplane_core.settings import DeclaredSecret, TokenSettings
from cronplane_core.signed_tokens import token_signer

DECLARED = DeclaredSecret.model_validate(
    {
        "name": "a-secret",
        "keys": {
            "url": {"template": "postgresql://a:{password}@b/c?d={password}"},
            "password": {"generate": "password"},
        },
    }
)


def data(**values: str) -> dict[str, str]:
    return {key: b64encode(value.encode()).decode() for key, value in values.items()}


def read(missing: dict[str, str]) -> dict[str, str]:
    return {key: b64decode(value).decode() for key, value in missing.items()}


def test_what_is_generated_is_put_into_what_is_templated() -> None:
    made = read(missing_keys(DECLARED, {}))
    assert made["url"] == f"postgresql://a:{made['password']}@b/c?d={made['password']}"
    assert made != read(missing_keys(DECLARED, {}))


def test_what_is_there_stays() -> None:
    assert missing_keys(DECLARED, data(password="kept", url="kept too", other="of somebody")) == {}
    assert read(missing_keys(DECLARED, data(password="kept"))) == {"url": "postgresql://a:kept@b/c?d=kept"}
    assert list(missing_keys(DECLARED, data(url="kept"))) == ["password"]


@pytest.mark.parametrize(("password", "written"), [("p@ss/w:rd", "p%40ss%2Fw%3Ard"), ("é {url}", "%C3%A9%20%7Burl%7D")])
def test_a_password_of_ones_own_is_written_as_addresses_write_it(password: str, written: str) -> None:
    [url] = read(missing_keys(DECLARED, data(password=password))).values()
    assert url == f"postgresql://a:{written}@b/c?d={written}"


def test_token_keys_are_such_as_sign_tokens() -> None:
    declared = DeclaredSecret.model_validate({"name": "a-secret", "keys": {"keys": {"generate": "token-keys"}}})
    [keys] = read(missing_keys(declared, {})).values()
    assert token_signer(TokenSettings(database_url="postgresql://", token_keys=keys)) is not None
