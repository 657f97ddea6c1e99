import ast
import json
from pathlib import Path

import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.nested import leaves
from piat_jax.experiment import Experiment, resolve
from piat_jax.experiment.config import load as read_config
from piat_jax.experiment.config import parse_value
from piat_jax.experiment.experiment import differences
from piat_jax.experiment.methods import parse_method
from piat_jax.experiment.validate import problems
from piat_jax.objectives import METHODS, PGDAT, WRAPPERS

EMBEDDED = "configs/embedded.py"
CONFIGS = {  # file -> epochs, learning rate, knots, weight decay, classes of its data set
    "cifar10_resnet18": ("resnet18", 120, 0.01, (0, 60, 90, 120), 3.5e-3),
    "cifar100_resnet18": ("resnet18", 120, 0.01, (0, 60, 90, 120), 3.5e-3),
    "svhn_resnet18": ("resnet18", 120, 0.01, (0, 60, 90, 120), 3.5e-3),
    "cifar10_wrn32_10": ("wrn_32_10", 180, 0.1, (0, 90, 135, 180), 7e-4),
    "cifar100_wrn32_10": ("wrn_32_10", 180, 0.1, (0, 90, 135, 180), 7e-4),
    "svhn_wrn32_10": ("wrn_32_10", 180, 0.1, (0, 90, 135, 180), 7e-4),
}

VITS = {"cifar10_vit_b": "vit_base", "cifar10_deit_s": "deit_small", "cifar10_convit_b": "convit_base"}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_papers_protocol(name):
    model, epochs, rate, knots, decay = CONFIGS[name]
    config = read_config(f"configs/{name}.py:nmse+piat", {})
    assert config.model.name == model
    assert config.dataset.name == name.partition("_")[0]
    assert (config.epochs, config.batch_size) == (epochs, 128)
    assert config.optimizer.lr_epochs == knots
    assert config.optimizer.lr_values == pytest.approx((rate, rate, rate / 10, rate / 100))
    assert config.optimizer.weight_decay == decay
    assert config.optimizer.momentum == 0.9
    assert (config.attack.eps, config.attack.step_size, config.attack.steps) == (8 / 255, 2 / 255, 10)
    assert (config.evaluation.eps, config.evaluation.step_size) == (8 / 255, 2 / 255)
    assert config.objective.mu == 5
    assert (str(config.method), config.piat.first_epoch, config.piat.batch_stats) == ("nmse+piat", 1, "interpolate")
    assert config.dataset.flip == (not name.startswith("svhn"))
    assert read_config(f"configs/{name}.py:trades", {}).objective.beta == 6


@pytest.mark.parametrize("name", VITS)
def test_the_protocol_of_vision_transformers(name):
    config = read_config(f"configs/{name}.py", {})
    assert (config.model.name, config.model.std) == (VITS[name], (0.2471, 0.2435, 0.2616))
    assert (config.dataset.name, config.epochs, config.batch_size) == ("cifar10", 40, 64)
    assert (config.optimizer.weight_decay, config.optimizer.max_norm, config.optimizer.momentum) == (1e-4, 1, 0.9)
    rate = config.build_rate(1).learning_rate
    assert [round(float(rate(n - 1)), 6) for n in (1, 35, 36, 38, 39, 40)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert (config.attack.eps, config.attack.step_size, config.attack.steps) == (8 / 255, 2 / 255, 10)
    assert (str(config.method), config.wrappers["ard_prm"].ard, config.wrappers["ard_prm"].ramp) == (
        "pgd_at+ard_prm+piat",
        True,
        10 / 40,
    )
    objective = config.build_objective(config.build_model(10))
    assert (objective.patch_size, objective.model.attention_blocks) == (4, 12)
    for method in ("trades", "mart", "rat"):
        config = read_config(f"configs/{name}.py:{method}", {})
        assert (config.objective.beta, config.attack.start) == (6, "normal")
    assert config.wrappers["rat"].head == ("head", "kernel")
    # Patches of images elsewhere: the mask's follow the model's.
    larger = read_config(
        f"configs/{name}.py:ard_prm", {"model.options.patch_size": "16", "model.options.remat": "true"}
    )
    assert larger.wrappers["ard_prm"].patch_size == 16
    assert larger.build_model(10).module.remat
    with pytest.raises(InputError, match="ard=True drops attention, but this model has none"):
        read_config("configs/cifar10_resnet18.py:ard_prm", {"ard_prm.ard": "true"})


STARTS_NEAR = ("trades", "mart", "ikl", "stat", "mail", "rat", "dafa", "cure", "lbgat")


@pytest.mark.parametrize(
    "method", [*METHODS, "piat", *(name for name in WRAPPERS if name not in ("kd", "hat")), "swa", "fawa"]
)
@pytest.mark.parametrize(
    "name", ["cifar10_resnet18", "cifar100_wrn32_10", "embedded", "cifar10_vit_b"]
)  # one of each kind
def test_every_config_takes_every_method(name, method):
    config = read_config(f"configs/{name}.py:{method}", {})
    assert config.method == parse_method(method)
    start = "normal" if method in STARTS_NEAR else "none" if method in ("free", "grad_align") else "uniform"
    assert config.attack.start == start
    built = config.build_objective(config.build_model(10))
    if method in WRAPPERS:
        assert type(built) is WRAPPERS[method]
        assert type(built.inner) is METHODS[WRAPPERS[method].default_inner]
    else:
        assert type(built) is METHODS.get(method, PGDAT)


def test_what_a_paper_changes_around_another_method():
    config = read_config("configs/cifar10_resnet18.py:trades+awp+ecas", {})
    assert (config.wrappers["awp"].gamma, config.wrappers["awp"].start) == (0.005, 0.045)
    assert config.objective.attack_loss == "cross_entropy"
    assert (config.attack.start, config.wrappers["ecas"].levels[0], config.wrappers["ecas"].clip) == (
        "uniform",
        6,
        True,
    )
    # Label smoothing belongs to ECAS on PGD-AT, not to that on AWP.
    assert read_config("configs/cifar10_resnet18.py:awp+ecas", {}).objective.attack_batch_norm == "eval"
    assert read_config("configs/cifar10_resnet18.py:awp", {}).objective.attack_batch_norm == "train"
    for method, smoothing in (("ecas", 0.3), ("awp+ecas", 0.0), ("rpat+awp+las", 0.0), ("pgd_at", 0.0)):
        assert read_config(f"configs/cifar10_resnet18.py:{method}", {}).objective.label_smoothing == smoothing
    config = read_config("configs/cifar10_resnet18.py:trades+mail", {})
    mail, objective = config.wrappers["mail"], config.objective
    assert (mail.slope, mail.bias, objective.beta, objective.clean_forwards) == (2, 0, 5, 1)


def test_radii_of_wrappers_follow_the_attack():
    config = read_config("configs/cifar10_resnet18.py:ecas", {"attack.eps": "0.5", "attack.norm": "l2"})
    assert config.wrappers["ecas"].eps == config.evaluation.eps == 0.5


def test_100_classes_and_wide_networks():
    config = read_config("configs/cifar100_wrn32_10.py:rat", {})
    assert read_config("configs/cifar10_wrn32_10.py:mart", {}).objective.beta == 6
    assert read_config("configs/cifar100_resnet18.py:cfa+fawa", {}).dataset.validation_examples == 2500
    assert (config.wrappers["rat"].kappa, config.wrappers["rat"].head) == (0.98, ("fc", "dense", "kernel"))
    assert read_config("configs/cifar100_resnet18.py:ecas", {}).wrappers["ecas"].entropy_high == 4.582
    las = read_config("configs/cifar100_resnet18.py:trades+las", {}).wrappers["las"]
    assert (max(las.eps_levels), las.clean_reward, las.betas[0]) == (10, 2, 5)
    assert max(read_config("configs/cifar100_resnet18.py:las", {}).wrappers["las"].step_counts) == 12


def test_the_average_of_a_method():
    for method, kind in (("ema", "step"), ("seat", "step"), ("swa", "epoch"), ("fawa", "epoch")):
        config = read_config(f"configs/cifar10_resnet18.py:trades+{method}+piat", {})
        assert config.build_average().every == kind
    assert config.dataset.validation_examples == 1000
    assert read_config("configs/cifar10_resnet18.py:trades+piat", {}).build_average() is None


def test_overrides_take_each_fields_type_and_fractions():
    config = read_config(
        f"{EMBEDDED}:nmse",
        {
            "attack.eps": "8/255",
            "epochs": "3",
            "dataset.flip": "true",
            "optimizer.lr_epochs": "0,1.5",
            "evaluation.attacks": "clean, pgd10",
            "model.options.stage_sizes": "(2,2)",
            "model.mean": "0.5",
            "objective.mu": "3",
            "model.name": "imagenet_resnet",
        },
        checked=False,
    )
    assert config.attack.eps == 8 / 255
    assert config.evaluation.eps == 8 / 255  # follows the training radius
    assert (config.epochs, config.dataset.flip, config.optimizer.lr_epochs) == (3, True, (0, 1.5))
    assert config.evaluation.attacks == ("clean", "pgd10")
    assert config.model.options.stage_sizes == (2, 2)
    assert config.model.mean == (0.5,)
    assert config.objective.mu == 3.0
    assert config.model.name == "imagenet_resnet"


def test_every_problem_is_reported_at_once_with_the_nearest_name():
    with pytest.raises(InputError) as caught:
        read_config(
            f"{EMBEDDED}:nmse",
            {
                "atack.eps": "1",
                "attack.eps": "8",
                "epochs": "many",
                "model": "mlp",
                "evaluation.select": "pgd2",
                "evaluation.final_attacks": "clean,pdg20,pgd,fgsm3",
                "piat.batch_stats": "interpolat",
                "optimizer.lr_values": "1,2",
                "dataset.padding_mode": "zero",
                "attack.step_size": "1/0",
            },
        )
    lines = str(caught.value).splitlines()
    expected = [
        "config.atack.eps is unknown; did you mean 'attack.eps'?",
        "config.epochs='many' is not a whole number",
        "config.attack.step_size='1/0' is not a number (8/255 is one)",
        "config: attack.eps=8.0 must be in (0, 1]; did you mean 8/255?",
        "config: attack 'pdg20' is unknown; did you mean 'pgd20'?",
        "config: attack 'pgd' needs its number of steps; did you mean 'pgd20'?",
        "config: attack 'fgsm3': fgsm takes one step; did you mean 'mi_fgsm3' or 'pgd3'?",
        "config: evaluation.select='pgd2' is not evaluated during training; did you mean 'pgd20'?",
        "config: piat.batch_stats='interpolat' is unknown; did you mean 'interpolate'?",
        "config: lr_epochs has 4 entries and lr_values 2; give one value per knot",
        "config: dataset.padding_mode='zero' is unknown; did you mean 'zeros'?",
    ]
    for line in expected:
        assert line in lines, (line, lines)
    assert any(line.startswith("config.model is a group of fields; set one of them: model.") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attack.eps": "0"}, r"attack.eps=0.0 must be in \(0, 1\]"),
        ({"attack.eps": "nan"}, r"attack.eps=nan must be in \(0, 1\]"),
        ({"attack.eps": "-1/255"}, r"must be in \(0, 1\]"),
        ({"attack.steps": "0"}, "steps=0 must be at least 1"),
        (
            {"optimizer.lr_epochs": "0,nan,75,100"},
            r"config: optimizer.lr_epochs=\(0.0, nan, 75.0, 100.0\) must be finite",
        ),
        ({"optimizer.lr_epochs": "-inf,50,75,100"}, "config: optimizer.lr_epochs=.* must be finite"),
        ({"seed": "4294967296"}, r"config: seed=4294967296 must be in \[0, 4294967295\]; JAX would take it for 0"),
        ({"seed": "-1"}, r"config: seed=-1 must be in \[0, 4294967295\]"),
        ({"attack.norm": "l3"}, "norm='l3' is unknown"),
        ({"model.name": "resnet81"}, "did you mean 'resnet18'"),
        ({"model.options.width": "8", "model.name": "mlp"}, "config.model.options.width is unknown"),
        ({"model.mean": "0.5", "model.std": "0"}, "std > 0"),
        ({"attack.step_size": "nan"}, "config: attack.step_size=nan must be in"),
        ({"piat.first_epoch": "-1"}, "config: piat.first_epoch=-1 must be at least 0"),
        ({"optimizer.lr_values": "0.2,-0.2,0,0"}, "config: optimizer.lr_values=.* must be finite and at least 0"),
        ({"optimizer.momentum": "1.5"}, r"config: optimizer.momentum=1.5 must be in \[0, 1\]"),
        ({"optimizer.lr_values": "inf,0.2,0,0"}, "lr_values=.* must be finite"),
        ({"objective.mu": "-1"}, "mu=-1.0 must be at least 0"),
        ({"objective.attack_batch_norm": "evil"}, "did you mean 'eval'"),
        ({"piat.a": "2"}, "can leave"),
        ({"batch_size": "0"}, "batch_size=0 must be at least 1"),
        ({"model.bn_groups": "3"}, "model.bn_groups=3 does not divide batch_size="),
        ({"dataset.name": "mnist", "dataset.flip": "true"}, "would mirror the digits"),
        ({"method": "trades"}, r"choose the method after the colon: --config=NAME:trades"),
        ({"evaluation.precision": "high"}, "did you mean 'highest'"),
    ],
)
def test_bad_values(overrides, message):
    with pytest.raises(InputError, match=message):
        read_config(f"{EMBEDDED}:nmse", overrides)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_number_of_any_config_but_a_radius_may_be_infinite(number):
    for method in ("mart+awp+ecas+fawa+piat", "trades+cfa+rat+swa", "fat", "las", "rpat+mail", "gairat+rpatpp", "nmse"):
        config, changed = read_config(f"{EMBEDDED}:{method}", checked=False), {}
        for name, value in leaves(config.plain()).items():
            listed = isinstance(value, tuple) and bool(value) and isinstance(value[-1], float)
            if (listed or isinstance(value, float)) and not name.endswith("eps"):
                changed[name] = (*value[:-1], number) if listed else number
        told = problems(config.with_fields(changed))
        assert len(changed) > 10
        for name in changed:
            field = name.rpartition(".")[2]
            assert any(f"{field}=" in line for line in told), (method, field, told)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("configs/embeded.py", "did you mean 'configs/embedded.py'"),
        ("nowhere/x.py", "there are no config files in .*nowhere"),
        (f"{EMBEDDED}:tradse", "did you mean 'trades'"),
        (f"{EMBEDDED}:trades+pia", "'pia' is unknown; did you mean 'piat'"),
        (f"{EMBEDDED}:trades+mart", "has 2 objectives"),
        (f"{EMBEDDED}:swa+swa", "has 'swa' twice"),
        (f"{EMBEDDED}:ema2", "'ema2' is a further average without a first one; write 'ema'"),
        (f"{EMBEDDED}:ema+swa3x", "'swa3x' is unknown"),
        (f"{EMBEDDED}:ema+awp2", "'awp2' is unknown; did you mean 'awp'"),
        (f"{EMBEDDED}:awp+awp", "has 'awp' twice"),
    ],
)
def test_bad_config_files(text, message):
    with pytest.raises(InputError, match=message):
        read_config(text)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (
            "optimizer.rho",
            "is unknown; choose one of optimizer.layer_decay, optimizer.lr_epochs",
        ),
        ("optimizer.weight_decy", "is unknown; did you mean 'optimizer.weight_decay'?"),
        ("optimizer.eps", "is unknown; did you mean 'attack.eps'?"),
        ("eps", "is unknown; did you mean 'attack.eps'?"),
        ("epoch", "is unknown; did you mean 'epochs'?"),
        ("nope", "is unknown; there are"),
    ],
)
def test_an_unknown_field_is_answered_by_what_is_near_or_where_to_look(field, told):
    with pytest.raises(InputError) as caught:
        read_config(f"{EMBEDDED}:piat", {field: "1"})
    line = str(caught.value)
    assert line.startswith(f"config.{field} ")
    if "there are" in told:
        names = line.partition("there are ")[2].partition("; piat-train --fields lists")[0].split(", ")
        assert {"seed", "optimizer.", "evaluation."} <= set(names)
        assert len(names) < 20
    else:
        assert told in line


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def get_config(", "line 1: SyntaxError: "),
        ("import piat_jaxx", "line 1: ModuleNotFoundError: No module named 'piat_jaxx'"),
        ("def get_config(): return None", "TypeError: get_config"),
        ("def get_config(method): return {}", "get_config returned dict; return a ConfigDict"),
        ("def get_config(method):\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("x = 1", "does not define a function get_config"),
        (
            "from piat_jax.configs import common\ndef get_config(method):\n    common.get_config().atack.eps = 1",
            'line 3: AttributeError: \'atack\' Did you mean "attack" instead of "atack"',
        ),
    ],
)
def test_what_is_wrong_in_a_config_file_of_ones_own_is_one_line(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(InputError, match=message):
        read_config(f"{tmp_path}/mine.py:pgd_at")


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        (
            "pgd_at",
            {"objective.mu": "5"},
            "config.objective.mu is not a field of pgd_at; choose one of objective.attack_batch_norm",
        ),
        ("trades", {"attack.stepsize": "1"}, "config.attack.stepsize is unknown; did you mean 'attack.step_size'"),
        ("trades", {"awp.gamma": "1"}, r"trades has no awp; write --config=NAME:trades\+awp"),
        ("cfa+rebat+mail", {"rebat.start": "3"}, "config: rebat.start=3.0 must be a share of the run"),
        ("mail", {"mail.start": "76"}, "mail.start=76.0 must be a share of the run"),
        ("fat", {"attack.restarts": "2"}, "fat: FAT follows one run to its end: attack.restarts=2 must be 1"),
        ("gairat", {"attack.keep": "best"}, "attack.keep='best' must be 'last'"),
        ("trades+las+mail", {}, "las: betas multiply"),
        ("ecas+las", {}, "LAS and ECAS both choose"),
        ("trades+cfa+rat", {}, r"put it outside: CFA\(RAT"),
        ("awp", {"awp.gama": "1"}, "did you mean 'awp.gamma'"),
        ("awp", {"awp.gamma": "-1"}, "gamma=-1.0 must be at least 0"),
        ("kd", {}, "kd.standard is empty; give the folder of a run"),
        ("kd", {"kd.standard": "nowhere", "kd.robust": "nowhere"}, "kd.standard='nowhere' has no best checkpoint"),
        ("las", {"las.strategy": "resnet81"}, "did you mean 'resnet18'"),
        ("swa", {"average.start": "2"}, "start=2.0 must be a share of the run"),
        ("fawa", {"dataset.validation_examples": "0"}, "set dataset.validation_examples"),
        ("mart+rat", {}, "cannot go around MART"),
        ("standard+awp+gairat", {}, "GAIRAT needs adversarial images, but the method inside crafts none"),
        ("gairat", {"attack.steps": "1"}, "steps=1 must be at least 2"),
    ],
)
def test_bad_values_of_wrappers_and_averages(method, overrides, message):
    with pytest.raises(InputError, match=message):
        read_config(f"{EMBEDDED}:{method}", overrides)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("piat.batch_stats", "foo"),
        ("piat.momentum", "foo"),
        ("piat.first_epoch", "-1"),
        ("average.decay", "2"),
        ("average.batch_stats", "foo"),
        ("ema2.decay", "3"),
        ("ema2.start", "1.5"),
        ("model.dtype", "f"),
        ("model.options.width", "0"),
        ("model.bn_momentum", "3"),
        ("objective.label_smoothing", "2"),
        ("objective.smoothing_over", "x"),
        ("optimizer.momentum", "2"),
        ("attack.steps", "0"),
        ("dataset.policy", "x"),
        ("dataset.policy_operations", "0"),
        ("dataset.policy_magnitude", "31"),
        ("dataset.erasing", "1.5"),
    ],
)
def test_a_bad_value_is_one_line_that_begins_with_its_field(path, value):
    with pytest.raises(InputError) as caught:
        read_config(f"{EMBEDDED}:pgd_at+ema+ema2+piat", {path: value})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"config: {path}=")


def test_a_file_without_get_config(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="does not define a function get_config"):
        read_config(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(("text", "like"), [("yes", True), ("1.5", 1), ("x", 1.0), ("1,x", (1.0,))])
def test_values_of_the_wrong_type(text, like):
    with pytest.raises(ValueError, match=r".*"):
        parse_value(text, like)


def test_plain_configs_round_trip_and_differ_by_field():
    config = read_config(f"{EMBEDDED}:piat", {})
    assert Experiment.from_plain(config.plain()) == config
    other = read_config(f"{EMBEDDED}:piat", {"attack.steps": "7", "model.options.width": "9"})
    assert differences(config.plain(), other.plain()) == ["attack.steps: 10 -> 7", "model.options.width: 8 -> 9"]
    nmse = read_config(f"{EMBEDDED}:nmse", {})
    assert "objective.mu: absent -> 1.0" in differences(config.plain(), nmse.plain())


def test_the_evaluation_of_a_run_follows_its_attack_as_a_config_does():
    run = read_config("embedded:piat")
    followed = resolve(run, {"attack.eps": "0.2"})
    assert (followed.attack.eps, followed.evaluation.eps) == (0.2, 0.2)
    given = resolve(run, {"attack.eps": "0.2", "evaluation.eps": "0.3"})
    assert (given.attack.eps, given.evaluation.eps) == (0.2, 0.3)
    apart = resolve(run.with_fields({"evaluation.eps": 0.05}), {"attack.eps": "0.2"})
    assert apart.evaluation.eps == 0.05
    # A wrapper's radius as well.
    assert resolve(read_config("embedded:ecas"), {"attack.eps": "0.2"}).wrappers["ecas"].eps == 0.2


def test_a_list_of_configs_is_followed_by_a_sentence():
    with pytest.raises(InputError, match=r"tiny_imagenet_resnet18\. A file needs its ending \.py"):
        read_config("zzzz")
    with pytest.raises(InputError, match=r"did you mean 'embedded'\? A file needs its ending \.py"):
        read_config("embeded")


def test_names_of_the_package_work_with_their_ending_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config("embedded.py:piat") == read_config("embedded:piat")
    with pytest.raises(InputError, match=f"there are no config files in {tmp_path}"):
        read_config("mine.py")


@pytest.mark.parametrize(
    ("given", "extra"),
    [
        ("", ""),
        ("a.npz", "a.npz"),
        ("5m.npz,~/my data/b.npz", ("5m.npz", "~/my data/b.npz")),
        ("('a.npz', 'b.npz')", ("a.npz", "b.npz")),
        (("a.npz", "b,c.npz"), ("a.npz", "b,c.npz")),
        (["a.npz", "b.npz"], ("a.npz", "b.npz")),
        (("a.npz",), "a.npz"),
        ((), ""),
        (Path("a.npz"), "a.npz"),
    ],
)
def test_a_field_of_one_text_or_several(given, extra):
    experiment = read_config("embedded:pgd_at", {"dataset.extra": given})
    assert experiment.dataset.extra == extra
    assert experiment.extra_files == ((extra,) if extra and isinstance(extra, str) else tuple(extra))
    # As a run keeps it, and changed from there.
    kept = Experiment.from_plain(json.loads(json.dumps(experiment.plain())))
    assert differences(kept.plain(), experiment.plain()) == []
    assert resolve(kept, {"dataset.extra": "c.npz"}).dataset.extra == "c.npz"
    assert resolve(experiment, {"epochs": 3}).dataset.extra == extra


@pytest.mark.parametrize("given", [3, ("a.npz", 3), None])
def test_what_is_no_text_is_refused(given):
    with pytest.raises(InputError, match=r"config.dataset.extra=.* is not text"):
        read_config("embedded:pgd_at", {"dataset.extra": given})


@pytest.mark.parametrize(("written", "weights"), [("'a.npz'", (1.0,)), ("('a.npz', 'b.npz')", (2.0, 1.0))])
def test_a_config_file_gives_one_text_or_several(written, weights, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from piat_jax.configs import common\n\n"
        "def get_config(method='pgd_at'):\n"
        "    config = common.get_config(method)\n"
        f"    config.dataset.extra = {written}\n"
        f"    config.dataset.extra_weights = {weights}\n"
        "    config.dataset.extra_smoothing = (0.1,)\n"
        "    config.dataset.epoch_steps = 7\n"
        "    return config\n"
    )
    experiment = read_config(str(path))
    assert experiment.dataset.extra == ast.literal_eval(written)
    assert (experiment.dataset.extra_smoothing, experiment.dataset.epoch_steps) == ((0.1,), 7)
    assert read_config(str(path), {"dataset.extra": "c.npz", "dataset.extra_weights": ()}).extra_files == ("c.npz",)


def test_shares_and_weights_are_written_as_numbers():
    texts = {"dataset.extra": "a,b", "dataset.extra_weights": "2,1", "dataset.extra_smoothing": "1/10,0"}
    fields = read_config("embedded:pgd_at", texts).dataset
    assert (fields.extra_weights, fields.extra_smoothing) == ((2, 1), (0.1, 0.0))


def test_any_option_of_the_network_can_be_set():
    fields = {"model.name": "imagenet_resnet", "model.options.width": "8", "model.options.stage_sizes": "1,1,1,1"}
    model = read_config("imagenet_resnet50:piat", {**fields, "model.options.remat": "true"}).model
    assert dict(model.options) == {"width": 8, "stage_sizes": (1, 1, 1, 1), "remat": True}
    with pytest.raises(InputError, match=r"config.model.options.depth is unknown"):
        read_config("imagenet_resnet50", {"model.options.depth": "8"})
    with pytest.raises(InputError, match=r"config.model.options.width='wide' is not a whole number"):
        read_config("imagenet_resnet50", {**fields, "model.options.width": "wide"})


def test_options_of_another_network_go_and_shared_ones_stay():
    assert dict(read_config("cifar10_vit_b:pgd_at").model.options) == {"patch_size": 4, "remat": False}
    assert dict(read_config("cifar10_vit_b:pgd_at", {"model.name": "resnet18"}).model.options) == {"remat": False}
    assert dict(read_config("cifar10_vit_b:pgd_at", {"model.name": "mlp"}).model.options) == {}
    swin = read_config(
        "cifar10_vit_b:pgd_at", {"model.name": "swin_tiny", "model.options.drop_path": "0.1"}
    ).model.options
    assert dict(swin) == {"patch_size": 4, "remat": False, "drop_path": 0.1}
