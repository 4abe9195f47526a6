"""Configurations: every field has a default and a type, and what is wrong is named together with what is right."""

import pathlib

import pytest
from ml_collections import ConfigDict

from dl_core.errors import UsageError
from train import configuration
from train.configs import defaults

NAMES = [summary.name for summary in configuration.list_configs()]


@pytest.fixture
def config() -> ConfigDict:
    return defaults.get_config()


def write(folder: pathlib.Path, body: str, name: str = "mine.py") -> str:
    path = folder / name
    head = "from train.configs import defaults\n\ndef get_config():\n    config = defaults.get_config()\n"
    path.write_text(head + body + "    return config\n")
    return str(path)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optimizer.learning_rate=3e-3", "optimizer.learning_rate", 3e-3),
        ("config.seed=7", "seed", 7),
        ("optimizer.weight_decay=1", "optimizer.weight_decay", 1.0),
        ("max_steps=1e5", "max_steps", 100_000),
        ("augment.flip=yes", "augment.flip", True),
        ("recompute_batch_stats=1", "recompute_batch_stats", True),
        ("augment.flip=Off", "augment.flip", False),
        ("data.split=0.8,0.1,0.1", "data.split", (0.8, 0.1, 0.1)),
        ("data.split=(1,0.5,0.5)", "data.split", (1.0, 0.5, 0.5)),
        ("model.name=resnet20_cifar", "model.name", "resnet20_cifar"),
        ("data.name=folder:/a=b", "data.name", "folder:/a=b"),
        ("data.data_dir=", "data.data_dir", ""),
        ("model.fields.hidden=(256,128)", "model.fields.hidden", (256, 128)),
        ("model.fields.activation=relu", "model.fields.activation", "relu"),
        ("model.fields.zero_init=true", "model.fields.zero_init", True),
        ("optimizer.options={'momentum': 0.9}", "optimizer.options.momentum", 0.9),
    ],
)
def test_an_override_is_read_in_the_type_of_its_field(config, override, path, value):
    changed = dict(configuration.flatten(configuration.apply_overrides(config, [override])))
    assert changed[path] == value
    assert type(changed[path]) is type(value)


def test_overrides_leave_the_original_alone_and_the_last_one_wins(config):
    changed = configuration.apply_overrides(
        config, ["epochs=3", "epochs=5", "model.fields.width=8", "model.fields.width=9"]
    )
    assert (changed.epochs, changed.model.fields.width) == (5, 9)
    assert configuration.to_json(config) == configuration.to_json(defaults.get_config())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=abc", "config.optimizer.learning_rate is a float field .* got 'abc'"),
        ("optimizer.learning_rate=nan", "float field .* got 'nan'"),
        ("optimizer.learning_rate=1e999", "float field .* got inf"),
        ("batch_size=3.5", "config.batch_size is an int field .* got 3.5"),
        ("batch_size=true", "int field .* got 'true'"),
        ("batch_size=True", "int field .* got True"),
        ("augment.flip=maybe", "true/false field .* got 'maybe'"),
        ("data.split=0.7", "tuple field .* got 0.7"),
        ("data.split=0.7,x,0.1", "config.data.split is a tuple field"),
        ("data.split=0.7,'x',0.1", r"config.data.split\[1\] is a float field .* got 'x'"),
        ("optimizer=adam", "config.optimizer is a group of fields.*--config.optimizer.name=VALUE"),
        ("optimizer.name.x=1", "config.optimizer.name is a single value"),
        ("epochs", "config.epochs was given no value"),
    ],
)
def test_a_wrong_type_is_refused_with_the_field_and_the_value(config, override, words):
    with pytest.raises(UsageError, match=words):
        configuration.apply_overrides(config, [override])


def test_a_number_among_the_options_stays_a_number(config):
    config.optimizer.options = {"momentum": 0.9}
    assert configuration.apply_overrides(config, ["optimizer.options.momentum=1"]).optimizer.options.momentum == 1.0
    with pytest.raises(UsageError, match=r"config.optimizer.options.momentum is a float field .* got 'high'"):
        configuration.apply_overrides(config, ["optimizer.options.momentum=high"])


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("optimizer.learning_rat", "config.optimizer.learning_rate"),
        ("optimizer.lr", "config.optimizer.learning_rate"),
        ("optimiser.learning_rate", "config.optimizer.learning_rate"),
        ("optimiser.learning_rte", "config.optimizer.learning_rate"),
        ("learning_rate", "config.optimizer.learning_rate"),
        ("batchsize", "config.batch_size"),
        ("epoch", "config.epochs"),
        ("wd", "config.optimizer.weight_decay"),
        ("loss.smoothing", "config.loss.label_smoothing"),
        ("early_stoping.patience", "config.early_stopping.patience"),
        ("optimzer", "config.optimizer"),
        ("augment.zzz", "the fields of config.augment are .*crop_padding, cut_out, flip, "),
        ("zzzzz", "the fields and groups of config are .*optimizer"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(config, path, nearest):
    with pytest.raises(UsageError, match=f"there is no field config.{path};.*{nearest}"):
        configuration.apply_overrides(config, [f"{path}=1"])


def test_any_field_that_exists_can_be_set_to_what_it_is(config):
    values = [(path, value) for path, value in configuration.flatten(config) if value != {}]
    same = configuration.apply_overrides(config, [f"{path}={value}" for path, value in values])
    assert configuration.to_json(same) == configuration.to_json(config)


def test_a_stored_config_is_read_back_the_same(config):
    config.model.fields = {"hidden": (64, 32), "nested": {"a": (1, (2, 3))}}
    again = configuration.from_json(configuration.to_json(config))
    assert again.model.fields.to_dict() == {"hidden": (64, 32), "nested": {"a": (1, (2, 3))}}
    assert configuration.differences(config, again) == []
    assert again.data.split == (0.70, 0.15, 0.15)


def test_a_stored_config_of_an_older_version_takes_the_new_defaults():
    assert configuration.differences(configuration.from_json('{"epochs": 3}'), defaults.get_config()) == [
        "config.epochs: 3 stored, 40 given"
    ]


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not JSON"), ("[1]", "not a JSON object"), ('{"epoch": 3}', "did you mean config.epochs")]
)
def test_a_damaged_stored_config_is_said_to_be_one(text, words):
    with pytest.raises(UsageError, match=words):
        configuration.from_json(text)


def test_differences_name_fields_of_either_side(config):
    other = configuration.apply_overrides(config, ["seed=1", "model.fields.width=8"])
    assert configuration.differences(config, other) == [
        "config.model.fields: {} stored, 'not set' given",
        "config.seed: 0 stored, 1 given",
        "config.model.fields.width: 'not set' stored, 8 given",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_config_is_legal_and_says_what_to_expect(name):
    configuration.validate(configuration.load_config(name))
    summary = next(s for s in configuration.list_configs() if s.name == name)
    assert f"--config={name}" in summary.command
    assert all(summary)
    assert len(summary.description) < 120


def test_the_bundled_configs_are_there():
    assert {
        "digits",
        "linear_digits",
        "mlp_digits",
        "scenes",
        "fashion_mnist",
        "cifar10_resnet20",
        "imagenet_resnet50",
    } <= set(NAMES)


def test_a_path_to_ones_own_file_is_a_config(tmp_path):
    path = write(tmp_path, "    config.optimizer.learning_rate = 1\n    config.model.fields.hidden = (8,)\n")
    config = configuration.load_config(path)
    assert (config.optimizer.learning_rate, config.model.fields.hidden) == (1.0, (8,))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    config.optimiser = 3\n", r"mine.py:5: AttributeError: .*optimiser"),
        ("    config.epochs = 'many'\n", r"mine.py:5: TypeError: .*epochs"),
        ("    1 / 0\n", "mine.py:5: ZeroDivisionError: division by zero"),
        ("    config.epochs = (\n", r"mine.py:\d: SyntaxError"),
        ("    return 3\n", "returned int, not an ml_collections.ConfigDict"),
        ("    return {'epoch': 3}\n", "no field config.epoch; did you mean config.epochs.*mine.py"),
        ("    return {'epochs': 'many'}\n", "config.epochs is an int field.*mine.py"),
        ("    return {'optimizer': 3}\n", "config.optimizer is a group of fields"),
        ("    return {'epochs': {'a': 3}}\n", "config.epochs is a single value"),
    ],
)
def test_a_mistake_in_ones_own_file_is_shown_with_its_line(tmp_path, body, words):
    with pytest.raises(UsageError, match=words):
        configuration.load_config(write(tmp_path, body))


def test_a_file_without_get_config_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UsageError, match=r"empty.py has no function get_config"):
        configuration.load_config(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "did you mean 'digits'"),
        ("no/such.py", "no config file 'no/such.py'"),
        ("defaults", "unknown config 'defaults'"),
    ],
)
def test_an_unknown_config_is_answered_with_the_nearest(name, words):
    with pytest.raises(UsageError, match=words):
        configuration.load_config(name)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.name=adm"], "config.optimizer.name is 'adm'; legal values, nearest first: adam"),
        (["schedule.name=cos"], "config.schedule.name is 'cos'; legal values, nearest first: cosine"),
        (["model.name=lenet"], "config.model.name is 'lenet'; legal values, nearest first: lenet5"),
        (["task=classify"], "config.task is 'classify'; legal values, nearest first: classification"),
        (["loop=compile"], "config.loop is 'compile'; legal values, nearest first: compiled"),
        (["optimizer.decay=l2"], "config.optimizer.decay is 'l2'; .*coupled"),
        (["average.name=EMA"], "config.average.name is 'EMA'; legal values, nearest first: ema"),
        (["epochs=0"], "config.epochs must lie in .*, got 0"),
        (["optimizer.learning_rate=-1"], "config.optimizer.learning_rate must lie in \\(0, inf\\), got -1.0"),
        (["optimizer.weight_decay=-1e-4"], "config.optimizer.weight_decay must lie in .*, got -0.0001"),
        (["loss.label_smoothing=1"], r"config.loss.label_smoothing must lie in \[0, 1\), got 1.0"),
        (["folds=0"], "config.folds must lie in"),
        (
            ["batch_size=65", "accumulate=2"],
            "config.batch_size = 65 is not a multiple of config.accumulate = 2; the next multiple is 66",
        ),
        (["data.split=0.5,0.5,0.5"], "config.data.split is .* add up to 1"),
        (["data.split=0.5,0.5"], "config.data.split is .* three positive shares"),
        (["schedule.warmup_epochs=40"], "config.schedule.warmup_epochs = 40.0 must be less than config.epochs = 40"),
        (["evaluate_with=average"], "config.evaluate_with is 'average' and nothing is averaged"),
        (["parallel.mode=pmap", "parallel.fsdp=2"], "data-parallel only"),
        (["parallel.num_processes=2"], "config.parallel.coordinator"),
        (["optimizer.options.momentun=0.9"], "optimizer 'adam' has no option 'momentun'"),
        (["schedule.options.evry=9"], "schedule 'cosine' has no option 'evry'"),
        (["model.fields.poling=max"], "no field 'poling'; did you mean 'pooling'"),
        (["schedule.name=plateau"], "config.schedule.name is 'plateau'"),
        (["parallel.process_id=1"], "config.parallel.process_id is 1; it must be less than"),
    ],
)
def test_values_that_cannot_work_are_refused_before_any_work(config, overrides, words):
    with pytest.raises(UsageError, match=words):
        configuration.validate(configuration.apply_overrides(config, overrides))
