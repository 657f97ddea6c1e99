"""Download networks from the Hugging Face hub and upload them, through huggingface_hub."""

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from piat_jax.core.checks import InputError

PREFIX = "hf:"
SAFE = ("config.json", "model*.safetensors")
PICKLED = ("config.json", "pytorch_model.bin", "model.pt")
"""Files in a folder that `read_weights` reads: formats without pickle first, else with pickle."""
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Packages whose exceptions are connection errors."""


class HubName(NamedTuple):
    """A repository on the hub, and its branch, tag or commit."""

    repository: str
    revision: str  # "" = the main branch

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_on_hub(source: object) -> bool:
    """Whether a source denotes a repository on the hub.

    >>> is_on_hub("hf:user/name"), is_on_hub("runs/x")
    (True, False)
    """
    return str(source).startswith(PREFIX)


def parse_hub(source: object) -> HubName:
    """Parse `hf:user/name` or `hf:user/name@revision`.

    Raises:
      InputError: the text has another form.

    >>> parse_hub("hf:user/name@v1")
    HubName(repository='user/name', revision='v1')
    >>> parse_hub("hf:name")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: 'hf:name' is not a repository; give hf:user/name or hf:user/name@revision
    """
    match = re.fullmatch(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(source))
    if not match:
        raise InputError(f"{str(source)!r} is not a repository; give hf:user/name or hf:user/name@revision")
    return HubName(match[1], match[2] or "")


def fetch(source: object) -> Path:
    """Download the weights and config.json of `hf:user/name`, or take them from the cache; returns their folder.

    With HF_HUB_OFFLINE=1 only the cache is used. Pickles are downloaded only if there is no other format.

    Raises:
      InputError: huggingface_hub is not installed, the repository or revision does not exist, or cannot be reached and
        is not in the cache, or it holds no weights.
    """
    name, hub = parse_hub(source), _hub()
    for patterns in (SAFE, PICKLED):
        with _told(name):
            found = hub.snapshot_download(
                name.repository, revision=name.revision or None, allow_patterns=list(patterns)
            )
        if any(path for pattern in patterns[1:] for path in Path(found).glob(pattern)):
            return Path(found)
    raise InputError(f"{name} holds no weights; give a repository with model.safetensors")


def push(folder: Path, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload the files in a folder to a repository, which is created if necessary, and return its address.

    Raises:
      InputError: as for `check_push`; the token has no write access; or the hub cannot be reached.
    """
    check_push(repository, token)
    name, api = parse_hub(repository), _hub().HfApi(token=token)
    with _told(name):
        made = api.create_repo(name.repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=name.repository, folder_path=str(folder), commit_message="Upload by piat_jax")
    return str(made)


def check_push(repository: str, token: str | None) -> None:
    """Raise InputError if an upload must fail, as far as this can be checked without a connection.

    huggingface_hub must be installed, `repository` must be user/name, and a token must exist.
    """
    name = parse_hub(repository)
    if name.revision:
        raise InputError(f"repository={repository!r} names a revision; give user/name")
    if not (token or _hub().get_token()):
        raise InputError(f"{name} needs a token to write: give token=, set HF_TOKEN, or run hf auth login")


def _hub() -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError("the hub needs the package huggingface_hub: pip install 'piat_jax[hub]'")
    return importlib.import_module("huggingface_hub")


@contextlib.contextmanager
def _told(name: HubName) -> Iterator[None]:
    """Turn exceptions of the hub's library into InputErrors that say what to do."""
    errors = importlib.import_module("huggingface_hub.errors")
    cache = importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"{name} is gated: accept its terms on its page, and set HF_TOKEN or run hf auth login") from (
            error
        )
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: there is no such repository, or it is private; check the name, or set HF_TOKEN or run hf auth "
            "login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name}: the repository has no revision {name.revision!r}; leave it out for main") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        why = "the hub is not used (HF_HUB_OFFLINE)" if _is_offline() else "the hub cannot be reached"
        raise InputError(
            f"{name}: {why}, and the cache {cache} does not have all files; connect once, or set HF_HUB_OFFLINE=0"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise InputError(
                f"{name}: the token may not do this; give one with write access as token= or HF_TOKEN, or run hf auth "
                "login"
            ) from error
        raise InputError(f"{name}: the hub answered {status or 'with an error'} ({_line(error)}); try again") from error
    except Exception as error:  # from any library that the hub's library uses for connections
        if type(error).__module__.partition(".")[0] not in NETWORK and not isinstance(error, ConnectionError):
            raise
        raise InputError(f"{name}: the hub cannot be reached ({_line(error)}); try again later") from error


def _is_offline() -> bool:
    constants = importlib.import_module("huggingface_hub.constants")
    return bool(constants.HF_HUB_OFFLINE)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
