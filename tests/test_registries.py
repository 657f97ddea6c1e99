"""What has a name: that each says what it is, and that files of one's own add to it."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import ATTACKS, attack, bind, pgd, takes
from piat_jax.averaging import AVERAGES, INTERPOLATIONS
from piat_jax.core.checks import InputError
from piat_jax.data import DATASETS, KNOWN, DatasetInfo, Found, dataset, load, names
from piat_jax.models import MODELS, create, model
from piat_jax.objectives import METHODS, WRAPPERS

WITH_PAPERS = (METHODS, WRAPPERS, AVERAGES, INTERPOLATIONS)
ALL = (*WITH_PAPERS, MODELS, DATASETS, ATTACKS)


@pytest.fixture(autouse=True)
def _registries_as_they_were():
    before = [set(registry) for registry in (*ALL, KNOWN)]
    yield
    for registry, entries in zip((*ALL, KNOWN), before):
        for name in set(registry) - entries:
            del registry[name]


@pytest.mark.parametrize(
    ("registry", "name"), [pytest.param(registry, name, id=name) for registry in ALL for name in registry]
)
def test_everything_has_a_title_and_one_sentence(registry, name):
    about = registry.about(name)
    assert about.name == name
    assert re.fullmatch(r"[A-Z]\S.*", about.title)
    assert re.fullmatch(r"[A-Z].*[^.][.]", about.summary)
    assert not re.search(r"[.!?] [A-Z]", about.summary)
    if registry in WITH_PAPERS:
        assert re.fullmatch(r".* \(\d{4}\), .*|none|.*the \w+ paper.*|Polyak and Juditsky \(1992\)", about.paper)


def test_they_are_listed_in_the_order_in_which_they_are_read():
    assert " ".join(METHODS) == "standard pgd_at alp trades mart nmse free score ikl stat"
    assert " ".join(WRAPPERS) == (
        "mail gairat fat cfa rat consistency awp rpat grad_align rebat rpatpp kd ecas las ard_prm mix multi_norm "
        "ewat sovr mlcat hat uiat dafa mma te adr cure lbgat generalist"
    )
    assert " ".join([*AVERAGES, *INTERPOLATIONS]) == "ema seat swa fawa piat"
    assert " ".join(MODELS) == (
        "resnet18 resnet26 resnet50 preact_resnet18 preact_resnet18_v1 small_resnet resnet18_imagenet "
        "resnet50_imagenet wrn_50_2 imagenet_resnet wrn_28_10 wrn_32_10 wrn_34_10 "
        "wrn_34_20 wrn_70_16 wide_resnet dm_preact_resnet18 dm_wrn_28_10 dm_wrn_34_10 dm_wrn_70_16 dm_wide_resnet mlp "
        "vit_tiny vit_small vit_base vit_large deit_tiny deit_small vit_small_convstem vit_base_convstem vit "
        "convit_tiny convit_small convit_base convit "
        "convnext_tiny convnext_small convnext_base convnext_large convnext_tiny_convstem convnext_small_convstem "
        "convnext_base_convstem convnext_large_convstem convnext swin_tiny swin_small swin_base swin_large swin "
        "xcit_s12 xcit_m12 xcit_l12 xcit"
    )
    assert " ".join(names()) == ("embedded circles cifar10 cifar100 svhn tiny_imagenet fashion_mnist mnist npz")
    assert " ".join(KNOWN) == "cifar10 cifar100 svhn tiny_imagenet fashion_mnist mnist"
    assert " ".join(ATTACKS) == "apgd n_fgsm msd fgsm pgd mi_fgsm cw mt pgd_ll"


def test_a_model_of_your_own():
    @model("wide", hidden=(7,))
    @model("narrow", summary="Two units.", hidden=(2,))
    class Net(nn.Module):
        num_classes: int
        hidden: tuple = (3,)
        mean: tuple = ()
        std: tuple = ()
        dtype: object = jnp.float32

        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(self.num_classes)(nn.Dense(self.hidden[0])(images.reshape(len(images), -1)))

    assert list(MODELS)[-2:] == ["narrow", "wide"]
    assert MODELS["narrow"] == (Net, {"hidden": (2,)})
    assert MODELS.about("narrow").summary == "Two units."
    shapes = jax.eval_shape(create("wide", num_classes=3).init, jax.random.key(0), jnp.zeros((1, 2, 2, 1))).params
    assert shapes["Dense_0"]["kernel"].shape == (7, 3)
    with pytest.raises(InputError, match="model 'narrow' takes no option 'hidden'"):
        create("narrow", num_classes=3, hidden=(5,))


def test_an_attack_of_your_own():
    @attack("nudge", summary="A little brighter.")
    def nudge(logits_fn, images, labels, *, key=None, indices=None, eps=0.1, restarts=1):
        return images + eps

    assert ATTACKS["nudge"] is nudge
    assert takes("nudge") == {"eps", "restarts"}
    assert takes("cw") == takes("pgd") >= {"steps", "step_size", "restarts", "norm", "eps"}
    assert "steps" in takes("mi_fgsm")
    assert not takes("mi_fgsm") & {"restarts", "key", "indices"}
    assert not takes("fgsm") & {"steps", "step_size", "restarts"}
    ATTACKS["nudged"] = bind(nudge, eps=0.2)
    assert takes("nudged") == takes("nudge")
    with pytest.raises(InputError, match="attack='pgdd' is unknown"):
        takes("pgdd")
    assert ATTACKS["pgd"] is pgd


EXAMPLES = (np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1), np.arange(6, dtype=np.int32) % 2)


def test_a_data_set_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIAT_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    @dataset("mine", summary="Six images.")
    def read_mine(search, folder):
        path = search.file(folder / "mine.bin")
        if path is None:
            return None
        images = np.frombuffer(path.read_bytes(), np.uint8).reshape(6, 2, 2, 1)
        return Found((images, EXAMPLES[1]), (images, EXAMPLES[1]), str(folder), class_names=("even", "odd"))

    assert names()[-2:] == ["mine", "npz"]
    assert DATASETS.about("mine").title == "MINE"
    with pytest.raises(InputError) as caught:
        load("mine")
    for place in ("data/mine", "tfds/mine"):
        assert place in str(caught.value)
    assert str(caught.value).endswith("; give data_dir, the folder that holds it")
    for folder in ("data", "data/mine", "elsewhere"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "mine.bin"
        path.write_bytes(EXAMPLES[0].tobytes())
        found = load("mine", data_dir="" if "data" in folder else folder)
        assert (found.name, found.class_names) == ("mine", ("even", "odd"))
        assert Path(found.where).resolve() == path.parent
        np.testing.assert_array_equal(found.train.images, EXAMPLES[0])
        by_path = load(str(path.parent))
        np.testing.assert_array_equal(by_path.test.labels, EXAMPLES[1])
        path.unlink()


def test_a_published_data_set_of_your_own_is_checked(tmp_path):
    info = DatasetInfo(
        title="Mine",
        image_shape=(2, 2, 3),
        train=6,
        test=6,
        classes=2,
        class_names=("a", "b"),
        mean=(0.5,),
        std=(0.5,),
        crop_padding=0,
        flip=True,
        names=("mine",),
        home="https://example.org",
    )
    dataset("mine", info)(lambda search, folder: Found(EXAMPLES, EXAMPLES, str(folder)))
    assert KNOWN["mine"] is info
    assert DATASETS.about("mine").title == "Mine"
    with pytest.raises(InputError, match=r"mine has images \(2, 2, 3\), but these files have \(2, 2, 1\)"):
        load("mine", data_dir=tmp_path)


def test_a_data_set_that_is_made():
    dataset("made")(lambda: Found(EXAMPLES, EXAMPLES, "nowhere", "made"))
    assert load("made").num_classes == 2
    with pytest.raises(InputError, match="data_dir='x' has no meaning for 'made'; leave it out"):
        load("made", data_dir="x")
    dataset("unmade")(lambda: None)
    with pytest.raises(InputError, match=r"dataset='unmade': its function returns nothing; let it return a"):
        load("unmade")


def test_known_was_the_name_of_a_data_sets_description():
    import piat_jax.data

    with pytest.warns(DeprecationWarning, match=r"piat_jax\.data\.Known is called piat_jax\.data\.DatasetInfo now"):
        assert piat_jax.data.Known is DatasetInfo
