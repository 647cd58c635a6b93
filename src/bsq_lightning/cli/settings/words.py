"""Types of settings, each with the words that a message needs: ``seed must be WORDS, not 1.5``."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, Field


class Words(str):
    """What a type admits, for the message."""


def _rising(values: list[int]) -> list[int]:
    if any(one >= other for one, other in zip(values, values[1:], strict=False)):
        raise ValueError("not rising")
    return values


Bool = Annotated[bool, Field(strict=True), Words("true or false")]
Whole = Annotated[int, Field(strict=True), Words("a whole number")]
NotNegativeWhole = Annotated[int, Field(strict=True, ge=0), Words("a whole number from 0 on")]
PositiveWhole = Annotated[int, Field(strict=True, ge=1), Words("a whole number from 1 on")]
TwoOrMore = Annotated[int, Field(strict=True, ge=2), Words("a whole number from 2 on")]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32), Words("a whole number from 0 to 4294967295")]
Bits = Annotated[int, Field(strict=True, ge=1, le=16), Words("a whole number of bits from 1 to 16")]
BitsOrFloat = Annotated[int, Field(strict=True, ge=0, le=16), Words("a whole number of bits from 0 to 16")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), Words("a number")]
AnyNumber = Annotated[float, Field(strict=True), Words("a number")]  # of foreign code, whose limits may be infinite
NotNegative = Annotated[
    float, Field(strict=True, allow_inf_nan=False, ge=0), Words("a number that is not negative, and finite")
]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0), Words("a number above 0, and finite")]
Momentum = Annotated[float, Field(strict=True, ge=0, lt=1), Words("a number from 0 to below 1")]
AnyText = Annotated[str, Field(strict=True), Words("text")]
Text = Annotated[str, Field(strict=True, min_length=1), Words("text")]
Path = Annotated[str, Field(strict=True, min_length=1), Words("a path")]
Patterns = Annotated[
    list[Annotated[str, Field(strict=True)]], Words("a list of name patterns, such as [conv1,'*.downsample.0']")
]
Milestones = Annotated[
    list[NotNegativeWhole], AfterValidator(_rising), Words("a list of epochs in rising order, such as [100,150]")
]


def words(annotation: Any) -> str:
    """What a type admits.

    Example:
        >>> words(PositiveWhole | None)
        'a whole number from 1 on or null'
        >>> words(Literal["stop", "skip"])
        'stop or skip'
    """
    if found := [each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Words)]:
        return str(found[-1])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(arguments[0])
    if origin is Literal:
        names = [str(each).lower() if isinstance(each, bool) else str(each) for each in arguments]
        return names[0] if len(names) == 1 else " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words(each) for each in arguments))
    if origin is list:
        return f"a list, of {words(arguments[0])} each"
    if annotation in (None, NoneType):
        return "null"
    return getattr(annotation, "__settings__", "something else")


def plain(annotation: Any) -> Any:
    """An annotation of Python code as a type of settings; ``Any`` where a config cannot tell whether a value fits.

    Example:
        >>> words(plain(int | None)), words(plain(tuple[float, float])), plain(NoneType | object)
        ('a whole number or null', 'a list, of a number each', typing.Any)
    """
    literal = {bool: Bool, int: Whole, float: AnyNumber, str: AnyText, None: None, NoneType: None}
    if isinstance(annotation, type | None) and annotation in literal:
        return literal[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return annotation
    if origin is Annotated:
        return plain(arguments[0])
    if origin in (Union, UnionType):
        members = [plain(each) for each in arguments]
        return Any if Any in members else Union[tuple(members)]  # noqa: UP007
    if origin in (list, tuple, Sequence):
        members = {plain(each) for each in arguments if each is not Ellipsis}
        return list[members.pop()] if len(members) == 1 else Any
    return Any
