"""The hub, as a server on this machine and as the cache of huggingface_hub, with the real package."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import piat_jax
from piat_jax.cli import convert, errors
from piat_jax.core.checks import InputError
from piat_jax.experiment.classifier import Classifier
from piat_jax.interop import About, hub
from piat_jax.models import create
from tests.interop.hub_server import COMMIT, Hub, serving

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = importlib.import_module("huggingface_hub.constants")
OPTIONS = {"width": 2, "stage_sizes": (1,)}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    net = create("small_resnet", num_classes=3, **OPTIONS)
    weights = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    about = About(
        model="small_resnet",
        num_classes=3,
        image_shape=(8, 8, 3),
        options=OPTIONS,
        accuracy={"clean": 0.5},
        dataset="cifar10",
    )
    return Classifier.of(net, weights, about)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A hub on this machine that huggingface_hub takes for its own, with an empty cache and no token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    there = Hub()
    with serving(there) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        path = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
        huggingface_hub.close_session()
        yield there
        huggingface_hub.close_session()


def same(one, other):
    np.testing.assert_array_equal(one.logits(IMAGES), other.logits(IMAGES))


def test_a_network_goes_there_and_comes_back(here, model, monkeypatch):
    address = model.push_to_hub("user/net", private=True, token="hf_secret", license="mit")
    assert address.endswith("/user/net")
    assert set(here.files["user/net"]) == {"README.md", "config.json", "model.safetensors"}
    assert here.made[0].get("visibility") == "private" or here.made[0].get("private") is True
    assert {token for method, _, token in here.asked if method == "POST"} == {"Bearer hf_secret"}
    card = here.files["user/net"]["README.md"].decode()
    assert 'piat_jax.load("hf:user/net")' in card
    assert 'hf_hub_download("user/net", "model.safetensors")' in card
    assert 'license: "mit"' in card
    for name in ("hf:user/net", "hf:user/net@v1"):
        loaded = piat_jax.load(name)
        same(loaded, model)
        assert (loaded.about.model, loaded.about.source) == ("small_resnet", name)
    # Whatever is in the cache is there without the hub.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(here.asked)
    same(piat_jax.load("hf:user/net"), model)
    assert len(here.asked) == before


def test_what_is_no_pickle_is_fetched_alone(here, model, tmp_path):
    model.to_safetensors(tmp_path / "out")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    here.files["user/both"] = {**files, "pytorch_model.bin": b"a pickle", "other.bin": b"more"}
    same(piat_jax.load("hf:user/both"), model)
    fetched = {path.rpartition("/")[2] for method, path, _ in here.asked if method == "GET" and "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors"}
    here.files["user/pickle"] = {"config.json": files["config.json"], "pytorch_model.bin": b"a pickle"}
    assert (hub.fetch("hf:user/pickle") / "pytorch_model.bin").read_bytes() == b"a pickle"
    here.files["user/none"] = {"README.md": b"nothing here"}
    with pytest.raises(InputError, match=r"hf:user/none holds no weights; give a repository with model.safetensors"):
        hub.fetch("hf:user/none")


def test_piat_convert_takes_it(here, model, tmp_path, capsys):
    model.to_safetensors(tmp_path / "out")
    here.files["user/net"] = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert errors.run(convert.main, ["hf:user/net", str(tmp_path / "again"), "--to=safetensors", "--quiet"]) == 0
    same(piat_jax.load(tmp_path / "again"), model)
    assert "| Made from | hf:user/net |" in (tmp_path / "again/README.md").read_text()
    capsys.readouterr()
    assert errors.run(convert.main, ["hf:user/net", str(tmp_path / "run")]) == 2
    assert "--config is missing: a run needs a config" in capsys.readouterr().err
    fields = ["--config=cifar10_resnet18", "--config.dataset.name=embedded"]
    assert errors.run(convert.main, ["hf:user/net", str(tmp_path / "run"), "--quiet", *fields]) == 0
    same(piat_jax.load(tmp_path / "run", image_shape=(8, 8, 3)), model)


def test_timm_s_repositories_are_known_by_their_names(here, monkeypatch):
    from piat_jax.experiment import loading

    here.files["timm/convnext_tiny.fb_in1k"] = {"config.json": b"{}", "model.safetensors": b"?"}
    asked = []

    def stop(path, row, read, *, model, **options):
        asked.append((row, model))
        raise InputError("seen")

    monkeypatch.setattr(loading, "_of_weights", stop)
    with pytest.raises(InputError, match="seen"):
        piat_jax.load("hf:timm/convnext_tiny.fb_in1k")
    ((row, model),) = asked
    assert (row.model, model) == ("convnext_tiny", "timm:convnext_tiny.fb_in1k")


def test_from_the_cache_alone(tmp_path, monkeypatch, model):
    """A cache in the package's own layout."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--user--net"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    model.to_safetensors(folder / "snapshots" / COMMIT)
    same(piat_jax.load("hf:user/net"), model)
    same(piat_jax.load(f"hf:user/net@{COMMIT}"), model)
    with pytest.raises(InputError) as told:
        piat_jax.load("hf:user/other")
    assert str(told.value) == (
        f"hf:user/other: the hub is not used (HF_HUB_OFFLINE), and the cache {tmp_path} does not have all files; "
        "connect once, or set HF_HUB_OFFLINE=0"
    )
    with pytest.raises(InputError, match=r"the hub is not used|cannot be reached"):
        model.push_to_hub("user/net", token="hf_secret")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:net", "'hf:net' is not a repository; give hf:user/name"),
        ("hf:a/b/c", "is not a repository"),
        (
            "hf:user/none",
            "hf:user/none: there is no such repository, or it is private; check the name, or set HF_TOKEN",
        ),
        ("hf:user/net@v9", "hf:user/net@v9: the repository has no revision 'v9'; leave it out for main"),
        ("hf:user/gated", "hf:user/gated is gated: accept its terms on its page, and set HF_TOKEN"),
        ("hf:user/broken", "hf:user/broken: the hub cannot be reached, and the cache"),
    ],
)
def test_what_cannot_be_fetched(source, message, here):
    here.files["user/net"] = {"config.json": b"{}"}
    here.refuse = {(403, "GatedRepo"): ["user/gated"], (500, ""): ["user/broken"]}
    with pytest.raises(InputError) as told:
        piat_jax.load(source)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_what_cannot_be_pushed(here, model, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="hf:user/net needs a token to write: give token=, set HF_TOKEN, or run"):
        model.push_to_hub("user/net")
    assert here.asked == []
    with pytest.raises(InputError, match="repository='user/net@v1' names a revision; give user/name"):
        model.push_to_hub("user/net@v1", token="hf_secret")
    here.refuse = {(403, ""): ["user/locked"], (401, ""): ["user/wrong"], (500, ""): ["user/broken"]}
    for name in ("locked", "wrong"):
        with pytest.raises(InputError, match=f"hf:user/{name}: the token may not do this; give one with write access"):
            model.push_to_hub(f"user/{name}", token="hf_secret")
    with pytest.raises(InputError, match="hf:user/broken: the hub answered 500"):
        model.push_to_hub("user/broken", token="hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"hf:user/net: the hub cannot be reached \("):
        model.push_to_hub("user/net", token="hf_secret")
    # A token of the environment is enough.
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    hub.check_push("user/net", None)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"the hub needs the package huggingface_hub: pip install 'piat_jax\[hub\]'"):
        piat_jax.load("hf:user/net")


def test_its_own_mistakes_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), hub._told(hub.HubName("user/net", "")):
        raise ZeroDivisionError
