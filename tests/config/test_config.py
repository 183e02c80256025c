"""One YAML decides a run; what cannot be used is refused in words that say what to write instead."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from ava_pipeline.config.load import MAX_CHARS, dump_config, load_config
from ava_pipeline.config.models import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SampleConfig,
    SplitConfig,
    TelemetryConfig,
    TrainConfig,
)
from ava_pipeline.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
BASE = "output_dir: outputs/ava/x\ndata:\n  labels: AVA.txt\n  images: images\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A place for a config."""
    return tmp_path / "run.yaml"


def load(config_file: Path, text: str, *overrides: str) -> RunConfig:
    """Write a config and read it."""
    config_file.write_text(text)
    return load_config(config_file, overrides)


def test_the_block_that_users_know(config_file: Path) -> None:
    """The telemetry block and save_val_predictions stand where they always stood."""
    text = BASE + "save_val_predictions: true\ntelemetry: {enabled: true, collect_every_n: 25}\n"
    config = load(config_file, text)
    assert (config.save_val_predictions, config.telemetry.enabled, config.telemetry.collect_every_n) == (True, True, 25)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configs_load(path: Path) -> None:
    """Each file in configs/ is complete and correct, and names its own output directory."""
    config = load_config(path)
    assert config.output_dir.parts[:2] == ("outputs", "ava")
    assert (config.data.sample is not None) == (path.stem == "demo")


def test_three_configs_are_shipped() -> None:
    """The test above looks at what users find."""
    assert {path.stem for path in CONFIGS} >= {"demo", "ava_resnet18", "ava_resnet50"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("telmetry: {}", "telmetry: unknown key; did you mean 'telemetry'? Known here: checkpoint, data,"),
        ("optim: {base_rl: 1}", "optim.base_rl: unknown key; did you mean 'base_lr'?"),
        ("train: {epochs: 2.5}", "train.epochs: given 2.5 (a number); allowed is a whole number"),
        ("train: {epochs: true}", "train.epochs: given True (true or false); allowed is a whole number"),
        ("train: {epochs: '3'}", "train.epochs: given '3' (text); allowed is a whole number"),
        ("train: {amp: fp8}", "train.amp: given 'fp8' (text); allowed is 'auto', 'off', 'bf16' or 'fp16'"),
        ("optim: {base_lr: -1}", "optim.base_lr: given -1 (a whole number); allowed is greater than 0"),
        ("optim: {base_lr: .inf}", "optim.base_lr: given inf (a number); allowed is a finite number"),
        ("optim: {min_lr: 1.0}", "min_lr 1 is above base_lr 0.0001"),
        ("optim: {warmup_epochs: 1, warmup_batches: 9}", "give one of them"),
        ("save_val_predictions: yes", "given 'yes' (text); allowed is true or false"),
        ("data: {labels: a/AVA.txt, images: b, sample: {}}", "generated data is written as FOLDER/AVA.txt"),
        ("train: 3", "train: given 3 (a whole number); allowed is a block of keys"),
        ("model: {hidden_sizes: [16, 0]}", "model.hidden_sizes.1: given 0"),
        ("model: {backbone: resnet19}", "allowed is 'resnet18', 'resnet34', 'resnet50' or 'resnet101'"),
        ("float: 3", "float: unknown key; known here: checkpoint, data,"),
        ("'a[0]': 3", "a[0]: unknown key; known here: checkpoint, data,"),
        ("1: 3", "1: unknown key; known here: checkpoint, data,"),
        ("telemetry: {groups: {str: 3}}", "telemetry.groups.str: given 3 (a whole number); allowed is text or a list"),
        ("telemetry: {groups: {2: a}}", "telemetry.groups.2: given 2 (a whole number); allowed is text"),
    ],
)
def test_a_wrong_setting_is_named(config_file: Path, line: str, sentence: str) -> None:
    """File, key path, what was given, what is allowed, and the nearest known key."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, (BASE if "data:" not in line else "output_dir: x\n") + line + "\n")
    assert str(refused.value).startswith(f"{config_file}: ")
    assert sentence in str(refused.value)


def test_every_problem_is_listed_at_once(config_file: Path) -> None:
    """Nobody repairs a file one run at a time."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, "train: {epochs: 0}\noptim: {name: adam}\n")
    assert len(str(refused.value).splitlines()) == 4  # epochs, name, and the missing output_dir and data


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "line 1"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: the key 'seed' is given twice"),
        ("a: &x [1]\nb: [*x, *x]\n", "*x is an alias; write the values out"),
        ("- 1\n", "holds no keys"),
        ("", "holds no keys"),
        ("[" * 50_000, "nested too deeply"),
        ("#" * (MAX_CHARS + 1), "Is it another kind of file?"),
        ("a: !!bool maybe", "line 1, column 4: 'tag:yaml.org,2002:bool' is a tag"),
        ("a: !!timestamp x", "is a tag"),
        ("!!int '': 1", "is a tag"),
        ("a: !!python/object/apply:os.getcwd []", "is a tag; write a plain value"),
        ("a: \x00", "special characters are not allowed"),
    ],
    ids=["torn", "twice", "alias", "list", "empty", "deep", "large", "bool", "time", "key", "code", "binary"],
)
def test_what_is_no_config_is_refused(config_file: Path, text: str, sentence: str) -> None:
    """Broken, hostile and foreign files end in a sentence that names the file."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, text)
    assert str(config_file) in str(refused.value)
    assert sentence in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """So is one in another encoding."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not a config in YAML"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize("written", ["1e-3", "1E-03", "0.001", ".001", "1.0e-3", "+1e-3"])
def test_every_way_to_write_a_number(config_file: Path, written: str) -> None:
    """YAML 1.1 takes `1e-3` for text; here it is the number it looks like, in files and in overrides."""
    assert load(config_file, BASE + f"optim: {{base_lr: {written}}}").optim.base_lr == 1e-3
    assert load(config_file, BASE, f"optim.base_lr={written}").optim.base_lr == 1e-3


def test_whole_numbers_and_off_mean_what_they_say(config_file: Path) -> None:
    """`1` is a fine learning rate, and `off` is no boolean."""
    config = load(config_file, BASE + "optim: {base_lr: 1}\ntrain: {amp: off}")
    assert (config.optim.base_lr, config.train.amp) == (1.0, "off")


def test_overrides_win_and_reach_blocks_that_the_file_leaves_out(config_file: Path) -> None:
    """The last of several wins."""
    config = load(config_file, BASE, "train.epochs=3", "telemetry.formats=[csv]", "data.sample=null", "train.epochs=4")
    assert (config.train.epochs, config.telemetry.formats, config.data.sample) == (4, ("csv",), None)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epochs", "--set train.epochs: give it as a.b=value"),
        ("train..epochs=1", "--set train..epochs=1: give it as a.b=value"),
        ("train.epochs=[", "--set train.epochs=[: line 1"),
        ("output_dir.x=1", "output_dir is 'outputs/ava/x' and has no keys below it"),
        ("train.epoch=1", "--set train.epoch=1: train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.epochs=0", "--set train.epochs=0: train.epochs: given 0"),
        ("output_dir=''", "--set output_dir='': output_dir: given '' (text); allowed is a path, such as ."),
        ("train.str=3", "--set train.str=3: train.str: unknown key; known here: accumulate,"),
    ],
)
def test_a_wrong_override_is_named_instead_of_the_file(config_file: Path, override: str, sentence: str) -> None:
    """Who mistypes a `--set` is not sent to the file."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, BASE, override)
    assert sentence in str(refused.value)
    assert str(config_file) not in str(refused.value)


def test_an_override_that_breaks_a_blocks_rule_is_named_beside_the_file(config_file: Path) -> None:
    """The file alone kept it."""
    text = BASE + "  split: {train: 0.5, val: 0.25, test: 0.25}\n"
    with pytest.raises(ConfigError) as refused:
        load(config_file, text, "train.epochs=3", "data.split.train=0.8")
    where = f"{config_file} and --set data.split.train=0.8: data.split: does not fit together; "
    assert str(refused.value).startswith(where)


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("{train: 0.5, val: 0.2, test: 0.2}", "add up to 0.9; they must add up to 1"),
        ("{train: 1.0, val: 0, test: 0}", "train and val must be above 0"),
        ("{train: ids.txt, val: 0.5}", "fractions and files are mixed"),
        ("{train: ids.txt, val: val.txt, test: 0.1}", "fractions and files are mixed"),
        ("{train: true, val: 0.5}", "allowed is a number or a path"),
        ("{train: '', val: 0.5}", "data.split.train: given '' (text); allowed is a number or a path"),
        ("{train: 1.0}", "data.split.val: missing"),
    ],
)
def test_a_split_that_is_none_is_refused(config_file: Path, split: str, sentence: str) -> None:
    """Three fractions that make a whole, or a file for each set."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, BASE + f"  split: {split}\n")
    assert sentence in str(refused.value)


def test_a_split_is_fractions_or_files(config_file: Path) -> None:
    """A test set may be left out of either."""
    by_fraction = load(config_file, BASE + "  split: {train: 0.8, val: 0.2}\n").data.split
    assert (by_fraction.fractions, by_fraction.paths) == ((0.8, 0.2, 0.0), {})
    by_file = load(config_file, BASE + "  split: {train: a.txt, val: b.txt}\n").data.split
    assert (by_file.fractions, by_file.paths) == (None, {"train": Path("a.txt"), "val": Path("b.txt")})


names = st.text(min_size=1, max_size=12)
# A path that pathlib keeps as it is written.
paths = names.map(Path)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
small = st.integers(1, 10**6)
splits = st.one_of(
    st.builds(SplitConfig, train=st.just(0.75), val=st.just(0.25), test=st.sampled_from([None, 0.0])),
    st.builds(SplitConfig, train=paths, val=paths, test=st.none() | paths),
)
samples = st.builds(SampleConfig, num_images=st.integers(10, 99), seed=small, image_size=st.integers(32, 99))
configs = st.builds(
    RunConfig,
    output_dir=paths,
    seed=st.integers(0, 2**63 - 1),
    save_val_predictions=st.booleans(),
    data=st.one_of(
        st.builds(DataConfig, labels=paths, images=paths, split=splits),
        st.builds(
            DataConfig, labels=st.just(Path("AVA.txt")), images=st.just(Path("images")), split=splits, sample=samples
        ),
    ),
    model=st.builds(
        ModelConfig, weights=names, hidden_sizes=st.lists(small).map(tuple), dropout=st.floats(0, 1, exclude_max=True)
    ),
    optim=st.builds(OptimConfig, base_lr=positive, min_lr=st.just(0.0), warmup_epochs=st.none() | positive),
    train=st.builds(TrainConfig, amp=st.sampled_from(["off", "bf16"]), clip_norm=st.none() | positive),
    checkpoint=st.builds(CheckpointConfig, every_n_batches=st.none() | small),
    telemetry=st.builds(
        TelemetryConfig,
        groups=st.none() | st.dictionaries(names, names | st.lists(names).map(tuple)),
        flush_interval_s=positive,
    ),
)


@settings(max_examples=60, deadline=None)
@given(config=configs)
def test_a_config_survives_being_written(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> None:
    """The config.yaml of a run starts the same run again, and other YAML readers agree on it."""
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    text = dump_config(config)
    path.write_text(text, encoding="utf-8")
    assert load_config(path) == config
    assert yaml.safe_load(text) == config.model_dump(mode="json")


def fields(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    """Every field of a model and the models in it, with its description."""
    inner = [
        kind
        for field in model.model_fields.values()
        if isinstance(kind := field.annotation, type) and issubclass(kind, BaseModel)
    ]
    own = [(f"{model.__name__}.{name}", field.description) for name, field in model.model_fields.items()]
    return own + [described for kind in inner for described in fields(kind)]


def test_the_head_is_held_above_the_backbone_where_its_rate_is_set_there(config_file: Path) -> None:
    """By `optim`, or by the telemetry's own setting; every other setting stays."""
    for overrides, is_above in (
        (["optim.head_lr_mult=10"], True),
        (["optim.head_lr_mult=1"], False),
        (["optim.head_lr_mult=1", "telemetry.signs.head_rate_above=true"], True),
    ):
        given = load(config_file, BASE, *overrides, "telemetry.collect_every_n=3", "telemetry.signs.spike_factor=7.0")
        held = given.with_head_above()
        assert held.signs.head_rate_above is is_above
        assert (held.collect_every_n, held.signs.spike_factor) == (3, 7.0)


def test_every_setting_is_described() -> None:
    """The descriptions are the JSON Schema's documentation."""
    assert [name for name, description in fields(RunConfig) if not description] == []
