"""A strict parser for recipes: YAML file and command line by the same rules, and every mistake an error.

    parser = StrictParser((ScriptArguments, RFTConfig, ModelArguments, DataArguments))
    script_args, training_args, model_args, data_args = parser.parse_args_and_config()

Departures from [`~trl.TrlParser`]:

- An unknown name is an error on the command line, too, and names the nearest known ones. Names are not abbreviated.
- Values of the YAML file go through the same conversion as those of the command line. There, `1e-6` stays a string
  (YAML 1.1) and no type is checked; here it is the number that it is on the command line, `no` given to
  `save_strategy` is the word and not False, and a value of a wrong type is an error with file and line.
- A key that stands twice in the YAML file is an error.
- Mistakes raise `ValueError`; argparse would print all of several hundred arguments and exit.
- `<script>.args` next to the script is not read: what a run does stands in its config and on its command line.
"""

import argparse
import dataclasses
import difflib
import json
import os
import re
import sys
import types
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

__all__ = ["StrictParser"]


class StrictParser(TrlParser):
    r"""Parser of command line and YAML config into dataclasses, in which every mistake is an error that says where.

    `--config file.yaml` names the config; what is given on the command line goes before it. The config may hold `env`,
    a mapping of environment variables to set.

    Args:
        dataclass_types (dataclass or iterable of dataclasses):
            Classes to fill, TRL's and transformers' configurations included. No two may have a field of one name.
        **kwargs:
            Further arguments of `argparse.ArgumentParser`.

    Raises:
        ValueError: if two dataclasses share a field.

    Example:

    ```python
    >>> from trl_erprm.arguments import DataArguments
    >>> parser = StrictParser(DataArguments)
    >>> parser.parse_args_and_config(["--dataset_path", "rows.jsonl", "--num_rows", "20"])[0].num_rows
    20
    >>> parser.parse_args_and_config(["--num_row", "20"])
    Traceback (most recent call last):
        ...
    ValueError: Unknown argument `num_row` on the command line. Did you mean `num_rows` or `num_eval_rows`?
    >>> parser.parse_args_and_config(["--num_rows", "few"])
    Traceback (most recent call last):
        ...
    ValueError: `num_rows` must be a whole number or null, got 'few' on the command line. Correct it there.

    ```
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        if dataclass_types is None:
            dataclass_types = []
        classes = list(dataclass_types) if isinstance(dataclass_types, Iterable) else [dataclass_types]
        self._fields: dict[str, dataclasses.Field] = {}
        self._hints: dict[str, Any] = {}
        owners: dict[str, type] = {}
        for cls in classes:
            hints = get_type_hints(cls)
            for one in dataclasses.fields(cls):
                if not one.init:
                    continue
                if one.name in owners:
                    raise ValueError(
                        f"The dataclasses of a parser must have fields of different names, got `{one.name}` in "
                        f"{owners[one.name].__name__} and {cls.__name__}. Leave it out of one of them."
                    )
                owners[one.name] = cls
                self._fields[one.name], self._hints[one.name] = one, hints[one.name]
        kwargs.setdefault(
            "epilog", "--config FILE reads any of these from a YAML file; the command line overrides it."
        )
        kwargs.setdefault("usage", "%(prog)s [--config FILE] [--name value ...]")  # not hundreds of names
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(classes, allow_abbrev=False, **kwargs)
        # argparse takes "-inf" and "-1e-3" for options, unless they match this.
        self._negative_number_matcher = re.compile(r"-(\.?\d|\.?inf)", re.IGNORECASE)
        for action in self._actions:
            if action.dest in self._fields and action.nargs != 0:  # 0: the --no_... form of a flag
                action.type = _TextConverter(
                    _element_hint(self._hints[action.dest]) if action.nargs == "+" else self._hints[action.dest],
                    action.choices,
                )

    def parse_args_and_config(self, args: Iterable[str] | None = None) -> tuple[Any, ...]:  # type: ignore[override]
        """Parses the command line and the config that it names.

        Args:
            args (`Iterable[str]`, *optional*):
                Command line without the name of the program; `sys.argv[1:]` if `None`.

        Returns:
            `tuple`: an instance of each dataclass, in order; then a namespace, if arguments were added by
            `add_argument`.

        Raises:
            FileNotFoundError: if the config does not exist.
            ValueError: if a name is not known, a value has a wrong type, a required one is missing, the config is no
                YAML mapping, or a dataclass refuses its values.
        """
        args, config_path = _take_config_path(list(args) if args is not None else sys.argv[1:])
        values, environment = self._read_config(config_path) if config_path is not None else ({}, {})
        namespace = argparse.Namespace(**values)
        was_required = [action for action in self._actions if action.required and action.dest in values]
        for action in was_required:
            action.required = False
        try:
            namespace, remaining = self.parse_known_args(args, namespace)
        finally:
            for action in was_required:
                action.required = True
        if remaining:
            raise ValueError(self._unknown_on_command_line(remaining))
        os.environ.update(environment)  # before the dataclasses, which may read it, and only if all else was right
        outputs = []
        for cls in self.dataclass_types:
            names = [one.name for one in dataclasses.fields(cls) if one.init]
            outputs.append(cls(**{name: namespace.__dict__.pop(name) for name in names if name in namespace}))
        return (*outputs, namespace) if vars(namespace) else tuple(outputs)

    def error(self, message: str) -> Any:
        """Raises `ValueError` in place of argparse's usage and exit."""
        match = re.match(r"argument --([\w-]+)\S*: (?P<rest>.*)", message, re.DOTALL)
        if match is None:
            raise ValueError(f"Error on the command line: {message}. Run with --help for all arguments.")
        name, rest = match[1], match["rest"]
        if rest.startswith("must be"):
            raise ValueError(f"`{name}` {rest} on the command line. Correct it there.")
        raise ValueError(f"`{name}` on the command line: {rest}. Run with --help for all arguments.")

    def _read_config(self, config_path: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Values of the fields, and environment variables, that the file sets."""
        path = Path(config_path)
        if not path.is_file():
            raise FileNotFoundError(_missing_config_message(path))
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            root = loader.get_single_node()
            entries = _entries(loader, root, config_path)
            values: dict[str, Any] = {}
            environment: dict[str, str] = {}
            unknown = []
            for name, (node, line) in entries.items():
                place = f"in {config_path}, line {line}"
                if name == "env":
                    for key, (one, line) in _entries(loader, node, config_path).items():
                        if not isinstance(one, yaml.ScalarNode):
                            raise ValueError(
                                f"An environment variable must be text, got a list or a mapping for `{key}` in "
                                f"{config_path}, line {line}. Write it in quotes."
                            )
                        environment[key] = one.value
                elif name not in self._fields:
                    unknown.append(f"Unknown argument `{name}` {place}. {_nearest_message(name, self._fields)}")
                else:
                    try:
                        values[name] = self._value_of_node(loader, name, node)
                    except _WrongTypeError as error:
                        raise ValueError(f"`{name}` {error} {place}. Correct it there.") from None
            if unknown:
                raise ValueError("\n".join(unknown))
        except yaml.YAMLError as error:
            raise ValueError(f"The config must be a YAML file, got {config_path}, which is not: {error}") from error
        finally:
            loader.dispose()
        return values, environment

    def _value_of_node(self, loader: yaml.SafeLoader, name: str, node: yaml.Node) -> Any:
        hint = self._hints[name]
        choices = next(action.choices for action in self._actions if action.dest == name)
        members = _members(hint)
        if node.tag == _YAML_NULL:
            if type(None) in members or Any in members or self._fields[name].default is None:
                return None
            raise _WrongTypeError(f"must be {_described(hint, choices)}, got null")
        if isinstance(node, yaml.MappingNode):
            if not {dict, Any} & {get_origin(member) or member for member in members}:
                raise _WrongTypeError(f"must be {_described(hint, choices)}, got a mapping")
            return loader.construct_object(node, deep=True)
        list_hints = [member for member in members if (get_origin(member) or member) in (list, Any)]
        if isinstance(node, yaml.SequenceNode):
            if not list_hints:
                raise _WrongTypeError(f"must be {_described(hint, choices)}, got a list")
            convert = _TextConverter(_element_hint(hint), choices)
            for one in node.value:
                if not isinstance(one, yaml.ScalarNode) or one.tag == _YAML_NULL:
                    value = loader.construct_object(one, deep=True)
                    raise _WrongTypeError(f"must be {_described(hint, choices)}, got {value!r} in a list")
            return [_checked(convert, one.value) for one in node.value]
        if list_hints and str not in members and Any not in members:  # one value for a list, as on the command line
            return [_checked(_TextConverter(_element_hint(hint), choices), node.value)]
        return _checked(_TextConverter(hint, choices), node.value)

    def _unknown_on_command_line(self, remaining: Sequence[str]) -> str:
        names = [token.lstrip("-").partition("=")[0] for token in remaining if re.match(r"--?[A-Za-z_]", token)]
        if not names:
            return f"Unexpected value {remaining[0]!r} on the command line. Arguments are given as `--name value`."
        known = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        known = [name for name in known if "-" not in name] + ["config"]  # each is known with dashes, too
        place = "on the command line"
        return "\n".join(f"Unknown argument `{name}` {place}. {_nearest_message(name, known)}" for name in names)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written; of each argument its default, or that it is required."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help or ''} (required)".lstrip()
        if isinstance(action.default, str) and not action.default.strip():  # folded with the text, it would be gone
            return f"{action.help or ''} (default: {action.default!r})".lstrip()
        return super()._get_help_string(action)


_YAML_NULL = "tag:yaml.org,2002:null"


class _WrongTypeError(Exception):
    """Message: "must be ..., got ..."."""


class _TextConverter:
    """Text of an argument -> value of a type hint: what command line and config have in common."""

    def __init__(self, hint: Any, choices: Iterable[Any] | None = None) -> None:
        self.hint = hint
        self.choices = list(choices) if choices is not None else None

    def __call__(self, text: str) -> Any:
        try:
            value = _from_text(text, self.hint)
            if self.choices is not None and value is not None and value not in self.choices:
                raise ValueError
        except ValueError:
            accepted = _described(self.hint, self.choices)
            options = self.choices or _options(self.hint)
            nearest = difflib.get_close_matches(text, [str(option) for option in options], n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {text!r}{hint}") from None
        return value


def _checked(convert: _TextConverter, text: str) -> Any:
    try:
        return convert(text)
    except argparse.ArgumentTypeError as error:
        raise _WrongTypeError(str(error)) from None


def _from_text(text: str, hint: Any) -> Any:
    """Value of the first member of `hint` that `text` fits, the narrowest first; `ValueError` if there is none."""
    members = _members(hint)
    options = _options(hint)
    for option in options:
        if text == str(option):
            return option
    takes_text = str in members or Any in members
    # A text field may mean the word: `report_to` "none".
    if type(None) in members and not takes_text and text.lower() in ("none", "null"):
        return None
    if bool in members and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    for kind, read in ((int, int), (float, _float)):
        if kind in members:
            try:
                return read(text)
            except ValueError:
                pass
    if takes_text:
        return text
    if any((get_origin(member) or member) is dict for member in members):
        value = json.loads(text)  # JSONDecodeError is a ValueError
        if isinstance(value, dict):
            return value
    raise ValueError


_TRUTH = dict.fromkeys(("yes", "true", "t", "y", "on", "1"), True) | dict.fromkeys(
    ("no", "false", "f", "n", "off", "0"), False
)


def _float(text: str) -> float:
    """A float as Python or YAML writes it: 1e-6, inf, -.inf, .nan."""
    return float(re.sub(r"^([-+]?)\.(?=inf$|nan$)", r"\1", text.strip().lower()))


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _options(hint: Any) -> list[Any]:
    """Values that the literals and enumerations of a hint list; of enumerations the text, as [`HfArgumentParser`]."""
    options: list[Any] = []
    for member in _members(hint):
        if get_origin(member) is Literal:
            options += get_args(member)
        elif _is_enum(member):
            options += [option.value for option in member]
    return options


def _element_hint(hint: Any) -> Any:
    for member in _members(hint):
        if get_origin(member) is list:
            return get_args(member)[0]
    return str


def _described(hint: Any, choices: Iterable[Any] | None = None) -> str:
    options = list(choices) if choices is not None else _options(hint)
    parts = ["one of " + ", ".join(map(repr, options))] if options else []
    for member in _members(hint):
        kind = get_origin(member) or member
        if kind is str and choices is None:
            parts.append("text")
        elif kind is list:
            parts.append(f"a list of {_PLURALS.get(_element_hint(member), 'values')}")
        elif kind in _NAMES:
            parts.append(_NAMES[kind])
    if type(None) in _members(hint):
        parts.append("null")
    return " or ".join(parts) or f"a {getattr(hint, '__name__', hint)}, which cannot be given here"


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number (such as 0.5, 1e-6 or inf)",
    dict: "a mapping",
}
_PLURALS = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}


def _take_config_path(args: list[str]) -> tuple[list[str], str | None]:
    """Command line without `--config`, and its value."""
    remaining: list[str] = []
    paths: list[str] = []
    tokens = iter(args)
    for token in tokens:
        if token == "--config":
            path = next(tokens, None)
            if path is None or path.startswith("--"):
                raise ValueError("`config` on the command line must name a file, got none. Write `--config run.yaml`.")
            paths.append(path)
        elif token.startswith("--config="):
            paths.append(token.removeprefix("--config="))
        else:
            remaining.append(token)
    if len(paths) > 1:
        raise ValueError(f"`config` must be given once, got {' and '.join(paths)}. Merge them into one file.")
    return remaining, paths[0] if paths else None


def _entries(loader: yaml.SafeLoader, node: yaml.Node | None, path: str) -> dict[str, tuple[yaml.Node, int]]:
    """Entries of a YAML mapping as they are written: key -> (node of the value, line). An empty file has none."""
    if node is None or node.tag == _YAML_NULL:
        return {}
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise ValueError(
            f"{path}, line {line}, must be a YAML mapping, got a {type(node).__name__.removesuffix('Node').lower()}. "
            "Write one `name: value` a line."
        )
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{path}, line {line}, must have a name before the colon, got a {key.tag}. Write a name.")
        if key.value in lines:
            first = lines[key.value]
            raise ValueError(f"`{key.value}` must stand once in {path}, got it in lines {first} and {line}. Keep one.")
        lines[key.value] = line
    loader.flatten_mapping(node)  # YAML's merge key, `<<`
    return {key.value: (value, key.start_mark.line + 1) for key, value in node.value}


def _missing_config_message(path: Path) -> str:
    message = f"`config` must be an existing YAML file, got {str(path)!r}"
    if path.is_dir():
        return f"{message}, which is a directory. Name one of its files."
    siblings = [*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")] if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, [sibling.name for sibling in siblings], n=1)
    advice = f"Did you mean {str(path.parent / nearest[0])!r}?" if nearest else "Check the path."
    return f"{message}, which does not exist in {Path.cwd()}. {advice}"


def _nearest_message(name: str, known: Iterable[str]) -> str:
    known = list(known)
    name = name.replace("-", "_")
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    # a part of a long name, such as batch_size, has little in common with the whole by difflib's measure
    nearest += [one for one in known if len(name) > 3 and name in one and one not in nearest]
    if not nearest:
        return "No known argument has a similar name; run with --help for all of them."
    return f"Did you mean {' or '.join(f'`{one}`' for one in nearest[:3])}?"
