"""One YAML file configures a run; a setting that cannot be used is refused with a message that says what to write."""

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
    """The path of a config that does not exist yet."""
    return tmp_path / "run.yaml"


def load(config_file: Path, text: str, *overrides: str) -> RunConfig:
    """Write a config and load it."""
    config_file.write_text(text)
    return load_config(config_file, overrides)


def test_the_block_that_users_know(config_file: Path) -> None:
    """The telemetry block and save_val_predictions keep their places in the file."""
    text = BASE + "save_val_predictions: true\ntelemetry: {enabled: true, collect_every_n: 25}\n"
    config = load(config_file, text)
    assert (config.save_val_predictions, config.telemetry.enabled, config.telemetry.collect_every_n) == (True, True, 25)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configs_load(path: Path) -> None:
    """Each file in configs/ is complete and valid, and has an output directory of its own."""
    config = load_config(path)
    assert config.output_dir.parts[:2] == ("outputs", "ava")
    assert (config.data.sample is not None) == (path.stem == "demo")


def test_three_configs_are_shipped() -> None:
    """The test above covers the configs that users get."""
    assert {path.stem for path in CONFIGS} >= {"demo", "ava_resnet18", "ava_resnet50"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("telmetry: {}", "telmetry: unknown key; did you mean 'telemetry'? Known keys: checkpoint, data,"),
        ("optim: {base_rl: 1}", "optim.base_rl: unknown key; did you mean 'base_lr'?"),
        ("train: {epochs: 2.5}", "train.epochs: expected a whole number, got 2.5"),
        ("train: {epochs: true}", "train.epochs: expected a whole number, got true"),
        ("train: {epochs: '3'}", "train.epochs: expected a whole number, got '3' (text)"),
        ("train: {amp: fp8}", "train.amp: expected 'auto', 'off', 'bf16' or 'fp16', got 'fp8'"),
        ("optim: {base_lr: -1}", "optim.base_lr: expected a number above 0, got -1"),
        ("optim: {base_lr: .inf}", "optim.base_lr: expected a finite number, got inf"),
        ("optim: {min_lr: 1.0}", "optim: expected min_lr of at most base_lr, 0.0001, got 1"),
        ("optim: {warmup_epochs: 1, warmup_batches: 9}", "give only one of them"),
        ("save_val_predictions: yes", "expected true or false, got 'yes' (text)"),
        ("data: {labels: a/AVA.txt, images: b, sample: {}}", "generated data is written as FOLDER/AVA.txt"),
        ("train: 3", "train: expected a block of keys, got 3"),
        ("model: {hidden_sizes: [16, 0]}", "model.hidden_sizes.1: expected a number of at least 1, got 0"),
        ("model: {backbone: resnet19}", "expected 'resnet18', 'resnet34', 'resnet50' or 'resnet101', got 'resnet19'"),
        ("float: 3", "float: unknown key; known keys: checkpoint, data,"),
        ("'a[0]': 3", "a[0]: unknown key; known keys: checkpoint, data,"),
        ("1: 3", "1: unknown key; known keys: checkpoint, data,"),
        ("telemetry: {groups: {str: 3}}", "telemetry.groups.str: expected text or a list, got 3"),
        ("telemetry: {groups: {2: a}}", "telemetry.groups.2: expected text, got 2"),
        ("telemetry: {formats: []}", "telemetry.formats: expected a list that is not empty, got []"),
        (
            "telemetry: {track_embeddings: true}",
            "track_embeddings: Embedding norms are a measure of your own",
        ),
        ("telemetry: {track_arcface_weights: false}", "docs/extending.md shows. Remove the key"),
        ("data: {ava_txt: AVA.txt}", "data.ava_txt: unknown key; ava_txt is data.labels here"),
        ("model: {mlp_hidden_dims: [256]}", "mlp_hidden_dims is model.hidden_sizes here"),
        ("model: {pretrained: true}", "pretrained is model.weights here (imagenet for true, none for false)"),
        (
            "training: {learning_rate: 1e-4, max_epochs: 3}",
            "training: unknown block; its keys have other places here: learning_rate is optim.base_lr here; max_epochs",
        ),
        ("telemetry: {label_classes: {winner: 1}}", "label_classes.winner: expected a number of at least 2, got 1"),
        ("model: {weights: ''}", "model.weights: expected text that is not empty, got ''"),
    ],
)
def test_a_wrong_setting_is_named(config_file: Path, line: str, sentence: str) -> None:
    """The message has the file, the key, what was expected and given, and the nearest known key."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, (BASE if "data:" not in line else "output_dir: x\n") + line + "\n")
    assert str(refused.value).startswith(f"{config_file}: ")
    assert sentence in str(refused.value)


def test_every_problem_is_listed_at_once(config_file: Path) -> None:
    """A user repairs the whole file at once, not one problem per run."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, "train: {epochs: 0}\noptim: {name: adam}\n")
    assert len(str(refused.value).splitlines()) == 4  # epochs, name, and the missing output_dir and data


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "line 1"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: the key 'seed' is given twice"),
        ("a: &x [1]\nb: [*x, *x]\n", "*x is an alias; write its value instead"),
        ("- 1\n", "expected keys at the top level"),
        ("", "expected keys at the top level"),
        ("[" * 50_000, "nested too deeply"),
        ("#" * (MAX_CHARS + 1), "is this a config?"),
        ("a: !!bool maybe", "line 1, column 4: 'tag:yaml.org,2002:bool' is a tag"),
        ("a: !!timestamp x", "is a tag"),
        ("!!int '': 1", "is a tag"),
        ("a: !!python/object/apply:os.getcwd []", "is a tag; write a plain value"),
        ("a: \x00", "special characters are not allowed"),
    ],
    ids=["torn", "twice", "alias", "list", "empty", "deep", "large", "bool", "time", "key", "code", "binary"],
)
def test_a_file_that_is_not_a_config_is_refused(config_file: Path, text: str, sentence: str) -> None:
    """Broken, hostile and foreign files cause an error that names the file."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, text)
    assert str(config_file) in str(refused.value)
    assert sentence in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file in another encoding is named too."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not a YAML config"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize("written", ["1e-3", "1E-03", "0.001", ".001", "1.0e-3", "+1e-3"])
def test_numbers_may_be_written_in_every_usual_way(config_file: Path, written: str) -> None:
    """YAML 1.1 reads `1e-3` as text; here it is a number, in files and in overrides."""
    assert load(config_file, BASE + f"optim: {{base_lr: {written}}}").optim.base_lr == 1e-3
    assert load(config_file, BASE, f"optim.base_lr={written}").optim.base_lr == 1e-3


def test_a_whole_number_is_a_rate_and_off_is_text(config_file: Path) -> None:
    """`1` is a valid learning rate, and `off` is not a boolean."""
    config = load(config_file, BASE + "optim: {base_lr: 1}\ntrain: {amp: off}")
    assert (config.optim.base_lr, config.train.amp) == (1.0, "off")


def test_overrides_win_and_create_missing_blocks(config_file: Path) -> None:
    """The last of several overrides wins."""
    config = load(config_file, BASE, "train.epochs=3", "telemetry.formats=[csv]", "data.sample=null", "train.epochs=4")
    assert (config.train.epochs, config.telemetry.formats, config.data.sample) == (4, ("csv",), None)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epochs", "--set train.epochs: expected a.b=value"),
        ("train..epochs=1", "--set train..epochs=1: expected a.b=value"),
        ("train.epochs=[", "--set train.epochs=[: line 1"),
        ("output_dir.x=1", "output_dir is 'outputs/ava/x' and has no keys below it"),
        ("train.epoch=1", "--set train.epoch=1: train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.epochs=0", "--set train.epochs=0: train.epochs: expected a number of at least 1, got 0"),
        (
            "output_dir=''",
            "--set output_dir='': output_dir: expected a path, such as . for the current directory, got ''",
        ),
        ("train.str=3", "--set train.str=3: train.str: unknown key; known keys: accumulate,"),
    ],
)
def test_a_wrong_override_is_named_instead_of_the_file(config_file: Path, override: str, sentence: str) -> None:
    """The message names the mistyped `--set`, and not the file."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, BASE, override)
    assert sentence in str(refused.value)
    assert str(config_file) not in str(refused.value)


def test_an_override_that_breaks_a_blocks_rule_is_named_beside_the_file(config_file: Path) -> None:
    """The file alone is valid, so the override is named too."""
    text = BASE + "  split: {train: 0.5, val: 0.25, test: 0.25}\n"
    with pytest.raises(ConfigError) as refused:
        load(config_file, text, "train.epochs=3", "data.split.train=0.8")
    where = f"{config_file} and --set data.split.train=0.8: data.split: expected fractions that add up to 1, "
    assert str(refused.value).startswith(where)


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("{train: 0.5, val: 0.2, test: 0.2}", "data.split: expected fractions that add up to 1, got a sum of 0.9"),
        ("{train: 1.0, val: 0, test: 0}", "expected train and val above 0"),
        ("{train: ids.txt, val: 0.5}", "fractions and files are mixed"),
        ("{train: ids.txt, val: val.txt, test: 0.1}", "fractions and files are mixed"),
        ("{train: true, val: 0.5}", "expected a number or a path, got true"),
        (
            "{train: '', val: 0.5}",
            "data.split.train: expected a number or a path, such as . for the current directory, got ''",
        ),
        ("{train: 1.0}", "data.split.val: missing"),
    ],
)
def test_an_invalid_split_is_refused(config_file: Path, split: str, sentence: str) -> None:
    """A split is fractions that add up to 1, or a file for each set."""
    with pytest.raises(ConfigError) as refused:
        load(config_file, BASE + f"  split: {split}\n")
    assert sentence in str(refused.value)


def test_a_split_is_fractions_or_files(config_file: Path) -> None:
    """Both forms may leave out the test set."""
    by_fraction = load(config_file, BASE + "  split: {train: 0.8, val: 0.2}\n").data.split
    assert (by_fraction.fractions, by_fraction.paths) == ((0.8, 0.2, 0.0), {})
    by_file = load(config_file, BASE + "  split: {train: a.txt, val: b.txt}\n").data.split
    assert (by_file.fractions, by_file.paths) == (None, {"train": Path("a.txt"), "val": Path("b.txt")})


names = st.text(min_size=1, max_size=12)
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
    """A run's config.yaml loads as an equal config, and other YAML readers read the same values."""
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


def test_the_heads_rate_is_expected_above_the_backbones_if_the_config_sets_it_there(config_file: Path) -> None:
    """`optim` or the telemetry setting decides; other settings are unchanged."""
    for overrides, is_above in (
        (["optim.head_lr_mult=10"], True),
        (["optim.head_lr_mult=1"], False),
        (["optim.head_lr_mult=1", "telemetry.signs.head_rate_above=true"], True),
    ):
        given = load(config_file, BASE, *overrides, "telemetry.collect_every_n=3", "telemetry.signs.spike_factor=7.0")
        held = given.resolved_telemetry()
        assert held.signs.head_rate_above is is_above
        assert (held.collect_every_n, held.signs.spike_factor) == (3, 7.0)


def test_every_setting_is_described() -> None:
    """The descriptions document the JSON Schema."""
    assert [name for name, description in fields(RunConfig) if not description] == []
