"""Networks from and to the Hugging Face hub, through huggingface_hub."""

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
"""Files that `read_weights` reads of a folder: what is no pickle first, and else what is one."""
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Packages whose errors are those of a connection."""


class HubName(NamedTuple):
    """A repository on the hub, and a branch, tag or commit of it."""

    repository: str
    revision: str  # "" is its main branch

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_on_hub(source: object) -> bool:
    """Whether a source is meant as a repository on the hub.

    >>> is_on_hub("hf:user/name"), is_on_hub("runs/x")
    (True, False)
    """
    return str(source).startswith(PREFIX)


def parse_hub(source: object) -> HubName:
    """The parts of `hf:user/name` or `hf:user/name@revision`.

    Raises:
      InputError: it has another form.

    >>> parse_hub("hf:user/name@v1")
    HubName(repository='user/name', revision='v1')
    >>> parse_hub("hf:name")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: 'hf:name' is no repository of the hub; give hf:user/name or hf:user/name@revision
    """
    match = re.fullmatch(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(source))
    if not match:
        raise InputError(f"{str(source)!r} is no repository of the hub; give hf:user/name or hf:user/name@revision")
    return HubName(match[1], match[2] or "")


def fetch(source: object) -> Path:
    """The folder with the weights and config.json of `hf:user/name`, from the cache or the hub.

    Nothing is asked of the hub where HF_HUB_OFFLINE is 1. Pickles are fetched only where there is nothing else.

    Raises:
      InputError: huggingface_hub is not installed, there is no such repository or revision, it cannot be reached and is
        not in the cache, or it holds no weights.
    """
    name, hub = parse_hub(source), _hub()
    for patterns in (SAFE, PICKLED):
        with _told(name):
            found = hub.snapshot_download(
                name.repository, revision=name.revision or None, allow_patterns=list(patterns)
            )
        if any(path for pattern in patterns[1:] for path in Path(found).glob(pattern)):
            return Path(found)
    raise InputError(f"{name} holds no weights; a repository with model.safetensors is needed")


def push(folder: Path, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Put the files of a folder into a repository, which is made where it does not exist, and return its address.

    Raises:
      InputError: as of `check_push`; the token may not write there; or the hub cannot be reached.
    """
    check_push(repository, token)
    name, api = parse_hub(repository), _hub().HfApi(token=token)
    with _told(name):
        made = api.create_repo(name.repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=name.repository, folder_path=str(folder), commit_message="Upload by piat_jax")
    return str(made)


def check_push(repository: str, token: str | None) -> None:
    """Raise InputError unless something may be put there, as far as that is known here; asks nobody.

    huggingface_hub has to be installed, `repository` to be user/name, and there has to be a token.
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
    """What the hub's library raises, as InputErrors that say what to do."""
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
        why = "the hub is not asked (HF_HUB_OFFLINE)" if _is_offline() else "the hub cannot be reached"
        raise InputError(
            f"{name}: {why}, and it is not whole in the cache {cache}; connect once, or set HF_HUB_OFFLINE=0"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise InputError(
                f"{name}: the token may not do this; give one with write access as token= or HF_TOKEN, or run hf auth "
                "login"
            ) from error
        raise InputError(f"{name}: the hub answered {status or 'with an error'} ({_line(error)}); try again") from error
    except Exception as error:  # of whichever library the hub's makes its connections with
        if type(error).__module__.partition(".")[0] not in NETWORK and not isinstance(error, ConnectionError):
            raise
        raise InputError(f"{name}: the hub cannot be reached ({_line(error)}); try again later") from error


def _is_offline() -> bool:
    constants = importlib.import_module("huggingface_hub.constants")
    return bool(constants.HF_HUB_OFFLINE)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
