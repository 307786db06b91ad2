"""`trl_erprm.parsing`: what reaches a field from command line and YAML, and each error by its message."""

import dataclasses
import math
import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest
from trl import GRPOConfig, RewardConfig, SFTConfig, TrlParser

from trl_erprm.arguments import DataArguments, ModelArguments, StrictParser


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Kinds:
    """A field of each kind of type hint that configurations use."""

    eta: float = 1.0
    top_p: float | None = 0.9
    num_samples: int = 16
    max_length: int | None = 512
    name: str = "run"
    note: str | None = None
    report_to: None | str | list[str] = "none"
    shuffle: bool = True
    packing: bool = False
    fp16: bool | None = None
    how: Literal["min", "mean", 3] = "min"
    color: Color | str = "red"
    dtype: str | None = field(default="float32", metadata={"choices": ["float32", "bfloat16"]})
    etas: list[float] | None = None
    sites: list[str] = field(default_factory=lambda: ["a"])
    kwargs: dict[str, Any] | str | None = None
    flags: dict[str, bool] | None = None
    pad_to: int | str | None = None
    loose: str | bool = False
    site: str | None | Literal[False] = None


@pytest.fixture
def parse(tmp_path):
    """Parses YAML text and a command line into one dataclass."""

    def parse(config: str | None = None, *args: str, cls=Kinds):
        if config is not None:
            path = tmp_path / "run.yaml"
            path.write_text(config, encoding="utf-8")
            args = ("--config", str(path), *args)
        return StrictParser(cls).parse_args_and_config(args)[0]

    return parse


def same(first, second):
    return type(first) is type(second) and (first == second or first != first and second != second)


# The same text on the command line and in YAML gives the same value.
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("eta", "0.5", 0.5),
        ("eta", "3", 3.0),
        ("eta", "1e-6", 1e-6),
        ("eta", "1E6", 1e6),
        ("eta", "-1e-3", -1e-3),
        ("eta", "-.5", -0.5),
        ("eta", "inf", math.inf),
        ("eta", ".inf", math.inf),
        ("eta", "-inf", -math.inf),
        ("eta", "-.inf", -math.inf),
        ("eta", "-.Inf", -math.inf),
        ("eta", "nan", math.nan),
        ("eta", ".nan", math.nan),
        ("top_p", "1", 1.0),
        ("top_p", "null", None),
        ("top_p", "none", None),
        ("num_samples", "4", 4),
        ("num_samples", "-4", -4),
        ("max_length", "null", None),
        ("name", "no", "no"),
        ("name", "123", "123"),
        ("name", "1e-6", "1e-6"),
        ("name", "2024-01-02", "2024-01-02"),
        ("note", "none", "none"),
        ("report_to", "none", "none"),
        ("shuffle", "false", False),
        ("shuffle", "off", False),
        ("packing", "yes", True),
        ("packing", "1", True),
        ("fp16", "true", True),
        ("fp16", "null", None),
        ("how", "mean", "mean"),
        ("how", "3", 3),
        ("color", "blue", "blue"),
        ("dtype", "bfloat16", "bfloat16"),
        ("etas", "-inf", [-math.inf]),
        ("sites", "b", ["b"]),
        ("pad_to", "8", 8),
        ("pad_to", "longest", "longest"),
        ("loose", "true", True),
        ("loose", "all", "all"),
        ("site", "False", False),
        ("site", "user/space", "user/space"),
    ],
)
def test_command_line_and_config_agree(parse, name, text, expected):
    assert same(getattr(parse(None, f"--{name}", text), name), expected)
    assert same(getattr(parse(None, f"--{name}={text}"), name), expected)
    assert same(getattr(parse(f"{name}: {text}"), name), expected)


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        ("note: null", "note", None),
        ("note: ~", "note", None),
        ("note:", "note", None),
        ("note: 'null'", "note", "null"),
        ("dtype: null", "dtype", None),
        ("etas: [1, 1e-3, -inf, .inf]", "etas", [1.0, 1e-3, -math.inf, math.inf]),
        ("sites: [no, 1]", "sites", ["no", "1"]),
        ("sites: []", "sites", []),
        ("report_to: [a, b]", "report_to", ["a", "b"]),
        ("kwargs: {a: no, b: [1, {c: 2.5}]}", "kwargs", {"a": False, "b": [1, {"c": 2.5}]}),
        ("kwargs: '{}'", "kwargs", "{}"),
        ("base: &b {eta: 2}\n", None, None),
        ("flags: {a: true}", "flags", {"a": True}),
        ("name: |\n  two\n  lines\n", "name", "two\nlines\n"),
        ("<<: {eta: 2, name: x}\neta: 3", "eta", 3.0),
        ("<<: {eta: 2, name: x}\neta: 3", "name", "x"),
    ],
)
def test_config_values(parse, config, name, expected):
    if name is None:
        with pytest.raises(ValueError, match="Unknown argument `base`"):
            parse(config)
    else:
        assert same(getattr(parse(config), name), expected)


def test_lists_and_flags_of_the_command_line(parse):
    values = parse(None, "--etas", "1", "-inf", "-1e-3", "--packing", "--no_shuffle", "--flags", '{"a": true}')
    assert values.etas == [1.0, -math.inf, -1e-3]
    assert values.packing is True and values.shuffle is False and values.flags == {"a": True}
    assert parse(None, "--max-length", "7").max_length == 7


def test_command_line_goes_before_config(parse):
    values = parse("eta: 2\nnum_samples: 4\nshuffle: true", "--eta", "3", "--no_shuffle")
    assert (values.eta, values.num_samples, values.shuffle) == (3.0, 4, False)


def test_an_empty_config_gives_the_defaults(parse):
    assert parse("") == parse("# eta: 3\n") == parse(None) == Kinds()


def test_config_is_read_anew_each_time(tmp_path):
    parser = StrictParser(Kinds)
    (tmp_path / "a.yaml").write_text("eta: 5")
    assert parser.parse_args_and_config(["--config", str(tmp_path / "a.yaml")])[0].eta == 5
    assert parser.parse_args_and_config([f"--config={tmp_path / 'a.yaml'}"])[0].eta == 5
    assert parser.parse_args_and_config([])[0].eta == 1


def test_a_required_field_may_stand_in_the_config(tmp_path):
    @dataclass
    class Needs:
        path: str

    (tmp_path / "a.yaml").write_text("path: x")
    parser = StrictParser(Needs)
    assert parser.parse_args_and_config(["--config", str(tmp_path / "a.yaml")])[0].path == "x"
    with pytest.raises(ValueError, match="the following arguments are required: --path"):
        parser.parse_args_and_config([])


def test_several_dataclasses_and_added_arguments():
    parser = StrictParser((Kinds, DataArguments))
    parser.add_argument("--task", default="none")
    kinds, data_args, rest = parser.parse_args_and_config(["--eta", "2", "--num_rows", "3", "--task", "x"])
    assert (kinds.eta, data_args.num_rows, rest.task) == (2.0, 3, "x")


def test_arguments_are_taken_from_sys_argv_and_no_args_file_is_read(monkeypatch, tmp_path):
    (tmp_path / "recipe.args").write_text("--eta 7")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "recipe.py"), "--num_samples", "2"])
    assert StrictParser(Kinds).parse_args_and_config()[0] == Kinds(num_samples=2)


def test_help_shows_the_groups_and_the_config(capsys):
    with pytest.raises(SystemExit):
        StrictParser((ModelArguments, DataArguments)).parse_args_and_config(["--help"])
    out = capsys.readouterr().out
    assert "model:" in out and "data:" in out and "--config FILE" in out and "--num_rows" in out
    assert "(default: '\\n')" in " ".join(
        out.split()
    )  # of `prompt_suffix`: folded with the text, it would not be seen


def test_help_shows_the_description_and_what_is_required(capsys):
    @dataclass
    class Needs:
        output_dir: str = field(metadata={"help": "Where it goes."})
        count: int = field(default=3, metadata={"help": "How many."})

    with pytest.raises(SystemExit):
        StrictParser(Needs, prog="run.py", description="Two lines,\n    as written.").parse_args_and_config(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: run.py [--config FILE] [--name value ...]\n\nTwo lines,\n    as written.\n")
    assert "Where it goes. (required)" in out and "How many. (default: 3)" in out


# TRL's configurations: hundreds of fields


@pytest.mark.parametrize("cls", [RewardConfig, SFTConfig, GRPOConfig])
def test_defaults_of_trl_configurations_are_those_of_trl(cls):
    args = ["--output_dir", "x", "--use_cpu"]
    ours, theirs = (parser(cls).parse_args_and_config(args)[0] for parser in (StrictParser, TrlParser))
    for one in dataclasses.fields(cls):
        assert getattr(ours, one.name) == getattr(theirs, one.name), one.name


def test_trl_configuration_from_yaml(parse):
    config = parse(
        "output_dir: x\nuse_cpu: yes\nlearning_rate: 1e-6\nsave_strategy: no\nreport_to: none\nmax_length: null\n"
        "eval_steps: 0.1\nrun_name: 7\nlabel_names: [labels]\nmodel_init_kwargs: {use_cache: no}\noptim: adafactor",
        cls=SFTConfig,
    )
    assert config.learning_rate == 1e-6 and config.save_strategy == "no" and config.report_to == []
    assert config.max_length is None and config.eval_steps == 0.1 and config.run_name == "7"
    assert config.label_names == ["labels"] and config.model_init_kwargs == {"use_cache": False}
    assert config.optim == "adafactor"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learning_rte", "`learning_rate`"),
        ("learning-rate-", "`learning_rate`"),
        ("lora_rank", "`lora_r`"),
        ("num_row", "`num_rows`"),
        ("num_epochs", "`num_train_epochs`"),
        ("batch_size", "`per_device_train_batch_size`"),
    ],
)
def test_nearest_names_across_dataclasses(wrong, right, tmp_path):
    parser = StrictParser((SFTConfig, ModelArguments, DataArguments))
    (tmp_path / "c.yaml").write_text(f"{wrong}: 1")
    for args in ([f"--{wrong}", "1"], [f"--{wrong}=1"], ["--config", str(tmp_path / "c.yaml")]):
        with pytest.raises(ValueError, match=f"Unknown argument `{wrong}` .*Did you mean .*{right}"):
            parser.parse_args_and_config(args)


# Errors


def test_unknown_names_say_where_they_stand(parse, tmp_path):
    with pytest.raises(ValueError) as error:
        parse("eta: 1\netta: 2\nzzz: 3")
    path = tmp_path / "run.yaml"
    assert str(error.value) == (
        f"Unknown argument `etta` in {path}, line 2. Did you mean `eta` or `etas`?\n"
        f"Unknown argument `zzz` in {path}, line 3. No known argument has a similar name; run with --help for all of "
        "them."
    )
    with pytest.raises(ValueError) as error:
        parse(None, "--etta", "2", "--samples", "3")
    assert str(error.value) == (
        "Unknown argument `etta` on the command line. Did you mean `eta` or `etas`?\n"
        "Unknown argument `samples` on the command line. Did you mean `num_samples`?"
    )


def test_names_are_not_abbreviated(parse):
    with pytest.raises(ValueError, match="Unknown argument `num_sample` on the command line. Did you mean"):
        parse(None, "--num_sample", "3")


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("eta", "abc", "a number (such as 0.5, 1e-6 or inf)"),
        ("eta", "true", "a number (such as 0.5, 1e-6 or inf)"),
        ("top_p", "high", "a number (such as 0.5, 1e-6 or inf) or null"),
        ("num_samples", "1.5", "a whole number"),
        ("num_samples", "1e3", "a whole number"),
        ("max_length", "long", "a whole number or null"),
        ("shuffle", "perhaps", "true or false"),
        ("fp16", "2", "true or false or null"),
        ("how", "meen", "one of 'min', 'mean', 3"),
        ("color", "green", "one of 'red', 'blue'"),
        ("dtype", "float33", "one of 'float32', 'bfloat16' or null"),
        ("etas", "low", "a number (such as 0.5, 1e-6 or inf)"),
        ("flags", "[1]", "a mapping or null"),
    ],
)
def test_wrong_type_names_field_value_and_accepted_type(parse, tmp_path, name, text, accepted):
    nearest = {"meen": " (did you mean 'mean'?)", "float33": " (did you mean 'float32'?)"}.get(text, "")
    with pytest.raises(ValueError) as error:
        parse(None, f"--{name}", text)
    message = f"`{name}` must be {accepted}, got '{text}'{nearest} on the command line. Correct it there."
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        parse(f"# a comment\n{name}: '{text}'")
    assert str(error.value) == message.replace("on the command line", f"in {tmp_path / 'run.yaml'}, line 2")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("eta: null", r"`eta` must be a number \(.*\), got null in .*run.yaml, line 1"),
        ("eta: [1]", r"`eta` must be a number \(.*\), got a list in .*run.yaml, line 1"),
        ("name: {a: 1}", "`name` must be text, got a mapping in .*run.yaml, line 1"),
        ("etas: [1, null]", "`etas` must be a list of numbers or null, got None in a list in .*run.yaml, line 1"),
        ("etas: [1, [2]]", r"`etas` must be a list of numbers or null, got \[2\] in a list in .*run.yaml, line 1"),
        ("etas: [1, low]", r"`etas` must be a number .* got 'low' in .*run.yaml, line 1"),
        ("eta: 1\nname: x\neta: 2", "`eta` must stand once in .*run.yaml, got it in lines 1 and 3"),
        ("- eta", "run.yaml, line 1, must be a YAML mapping, got a sequence"),
        ("eta", "run.yaml, line 1, must be a YAML mapping, got a scalar"),
        ("[a]: 1", "run.yaml, line 1, must have a name before the colon"),
        ("eta: [", "must be a YAML file, got .*run.yaml, which is not: while parsing"),
        ("eta: 1\n---\neta: 2", "must be a YAML file, got .*run.yaml, which is not: expected a single document"),
        ("env: 3", "run.yaml, line 1, must be a YAML mapping, got a scalar"),
        ("env: {A: [1]}", "environment variable must be text, got a list or a mapping for `A` in .*run.yaml, line 1"),
    ],
)
def test_bad_configs(parse, config, message):
    with pytest.raises(ValueError, match=message):
        parse(config)


def test_missing_config(tmp_path):
    parser = StrictParser(Kinds)
    (tmp_path / "arithmetic.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match="must be an existing YAML file, got '.*gsm8k.yaml'.*Check the path"):
        parser.parse_args_and_config(["--config", str(tmp_path / "gsm8k.yaml")])
    with pytest.raises(FileNotFoundError, match="arithmetik.yaml'.* Did you mean '.*/arithmetic.yaml'"):
        parser.parse_args_and_config(["--config", str(tmp_path / "arithmetik.yaml")])
    with pytest.raises(FileNotFoundError, match="which is a directory. Name one of its files"):
        parser.parse_args_and_config(["--config", str(tmp_path)])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config"], "`config` on the command line must name a file, got none"),
        (["--config", "--eta"], "`config` on the command line must name a file, got none"),
        (["--config", "a", "--config=b"], "`config` must be given once, got a and b"),
        (["--eta"], "`eta` on the command line: expected one argument"),
        (["eta=3"], "Unexpected value 'eta=3' on the command line. Arguments are given as `--name value`"),
    ],
)
def test_bad_command_lines(args, message):
    with pytest.raises(ValueError, match=message):
        StrictParser(Kinds).parse_args_and_config(args)


def test_a_field_in_two_dataclasses_is_an_error():
    @dataclass
    class Other:
        eta: float = 0.0

    with pytest.raises(ValueError, match="fields of different names, got `eta` in Kinds and Other"):
        StrictParser((Kinds, Other))


def test_environment_is_set_only_by_a_config_without_mistakes(parse, monkeypatch):
    monkeypatch.delenv("TRL_ERPRM_TEST", raising=False)
    for config, args in (("env: {TRL_ERPRM_TEST: 1}\netta: 3", ()), ("env: {TRL_ERPRM_TEST: 1}", ("--etta", "3"))):
        with pytest.raises(ValueError):
            parse(config, *args)
        assert "TRL_ERPRM_TEST" not in os.environ
    monkeypatch.setenv("TRL_ERPRM_TEST", "before")  # restored after the test
    parse("env: {TRL_ERPRM_TEST: 0.10}")
    assert os.environ["TRL_ERPRM_TEST"] == "0.10"
